"""Ctrl-C and SIGTERM: a command stops at a point it can resume from, and within seconds wherever it is.

    the signal     is noted; running code checks whether to stop, at points where it can do so cleanly
    patience over  it has not stopped: KeyboardInterrupt is raised in the main thread, wherever that is
    limit reached  code that catches everything, or hangs, has ignored it: the process ends
    second signal  the process ends at once

A thread keeps the time, because a Python signal handler has to wait until the main thread returns from C. It is
powerless only against C code that hangs without releasing the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_STATUSES = tuple(128 + number for number in SIGNALS)
"""Exit statuses of an interrupted command, by the shell's convention."""

_SAME = 0.3
"""Seconds within which a second signal counts as the same one: ``timeout`` sends each twice."""
_LAST_WORDS = 1.0
"""Seconds they may take: the thread that ends a hanging process must not hang itself."""

_current: Interruption | None = None


class Interruption:
    """A context in which signals are handled like this. Outside the main thread it does nothing.

    Args:
        patience: seconds from the signal until KeyboardInterrupt is raised.
        limit: seconds from the signal until the process ends; one more for its last words.
        last_words: called before the process ends, in another thread.
    """

    def __init__(self, patience: float, limit: float, last_words: Callable[[], object] = lambda: None) -> None:
        self._patience, self._limit, self._last_words = patience, limit, last_words
        self._signal: int | None = None
        self._lock = threading.Lock()
        self._armed = self._in_order = False
        self.raised = False
        """Whether KeyboardInterrupt was raised. An environment may have caught it: discard everything after it."""

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self._signal is not None

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self._signal or signal.SIGINT)

    def __enter__(self) -> Interruption:
        global _current
        if threading.current_thread() is threading.main_thread():
            self._armed, _current = True, self
            self._main = threading.get_ident()
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            # Even if the shell ignores SIGINT, as for commands in the background: whoever sends it means it.
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        with self._lock:
            if not self._armed:
                return
            self._armed, _current = False, None
        self.restore()
        with self._writer:
            self._writer.shutdown(socket.SHUT_RDWR)  # ends the thread

    def abandon(self) -> None:
        """Stop handling signals, in a forked child; the socket stays as it is: its other end is the parent's."""
        global _current
        self._armed, _current = False, None
        self.restore()

    def restore(self) -> None:
        """Restore the signal handlers that were installed before."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_in_order(self) -> bool:
        """Call at a point where the command can stop cleanly: from here on nothing is raised.

        Returns:
            False if KeyboardInterrupt has been raised already.
        """
        with self._lock:
            self._in_order = True
            return not self.raised

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.raised and self._armed:
            raise KeyboardInterrupt

    def _watch(self, reader: socket.socket) -> None:
        """Time the seconds after a signal, in a separate thread."""
        with reader:
            self._signal = _next(reader, None)
            if self._signal is None:
                return
            noted = time.monotonic()
            if not _another(reader, noted + self._patience):
                self._raise()
                _another(reader, noted + self._limit)
            self._end()

    def _raise(self) -> None:
        with self._lock:
            if self._armed and not self._in_order:
                self.raised = True
                # Sent to the thread, to end its sleep or wait.
                signal.pthread_kill(self._main, self.exit_status - 128)

    def _end(self) -> None:
        with self._lock:
            if self._armed:
                words = threading.Thread(target=self._say_last_words, daemon=True)
                words.start()
                words.join(_LAST_WORDS)
                os._exit(self.exit_status)

    def _say_last_words(self) -> None:
        with contextlib.suppress(OSError):
            if os.isatty(1):  # a live display may have hidden the cursor
                os.write(1, b"\x1b[?25h\n")
        self._last_words()


def _next(reader: socket.socket, until: float | None) -> int | None:
    """The next of ``SIGNALS``; None if there was none until then, or no more will come."""
    while True:
        reader.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))
        try:
            found = reader.recv(1)
        except TimeoutError:
            return None
        if not found or found[0] in SIGNALS:
            return found[0] if found else None


def _another(reader: socket.socket, until: float) -> bool:
    """Wait until then; return whether another signal came."""
    same = min(time.monotonic() + _SAME, until)
    while _next(reader, same) is not None:
        pass
    return time.monotonic() < until and _next(reader, until) is not None


def _forget() -> None:
    """Leave the signals of a forked process alone; an environment may have forked it."""
    if _current is not None:
        _current.abandon()


os.register_at_fork(after_in_child=_forget)


def exit_at_once() -> None:
    """End quietly on the first signal, while there is nothing to clean up yet."""

    def end(number: int, frame: Any) -> None:
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)


def leave(status: int) -> NoReturn:
    """End the process; after an interruption, regardless of what an environment may have left running."""
    if status in EXIT_STATUSES:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    if "ale_py" in sys.modules:
        # ALE complains at length about games alive at exit. What torch holds is freed only by the second call.
        gc.collect()
        gc.collect()
    sys.exit(status)
