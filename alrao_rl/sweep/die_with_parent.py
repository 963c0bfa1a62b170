"""Run a command that dies with the process that started it.

``python -m alrao_rl.sweep.die_with_parent PARENT_PID COMMAND …``

The kernel does it (Linux: the parent-death signal), so that no orphan is left, however the parent ends. It is set here
and not between fork and exec in the parent, which is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Become the command; end at once if the parent is gone already."""
    parent, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the signal was requested.
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
    # A hanging run is aborted for its traceback, not for its memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
