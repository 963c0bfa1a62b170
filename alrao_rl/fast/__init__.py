"""The method in less time: subclasses of the plain classes of :mod:`alrao_rl.core`, and loops in C.

On small networks most of an update is the time that torch takes to start operations. ``heads.py``, ``headwise.py``,
``averaging.py`` and ``optim.py`` are the subclasses; ``kernels.c`` is called by these and by ``branches.py``,
``losses.py`` and ``densities.py``, on the CPU and in float32. :func:`convert` is where the fast classes come in.
"""

from functools import partial

from alrao_rl import core
from alrao_rl.fast.heads import OutputHeads
from alrao_rl.fast.headwise import HeadwiseTensor
from alrao_rl.fast.optim import AlraoOptimizer

convert = partial(core.convert, heads=OutputHeads)
"""See :func:`alrao_rl.core.convert.convert`."""

__all__ = ["AlraoOptimizer", "HeadwiseTensor", "OutputHeads", "convert"]
