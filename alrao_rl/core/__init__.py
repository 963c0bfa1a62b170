"""The method, plain, on torch alone: what it is, and what everything faster is compared with.

``rates.py`` (a learning rate for every feature), ``headwise.py`` (one loss, J + 1 gradients), ``heads.py`` (the
duplicated output layer), ``averaging.py`` (how its copies are weighed), ``bases.py`` and ``optim.py`` (one step), tied
together by ``convert.py``. :mod:`alrao_rl.fast` computes the same in less time, by subclasses of these.
"""

from alrao_rl.core.config import AlraoConfig
from alrao_rl.core.convert import convert
from alrao_rl.core.heads import Output, OutputHeads
from alrao_rl.core.headwise import HeadwiseError, HeadwiseTensor, on_branches
from alrao_rl.core.optim import AlraoOptimizer

__all__ = [
    "AlraoConfig",
    "AlraoOptimizer",
    "HeadwiseError",
    "HeadwiseTensor",
    "Output",
    "OutputHeads",
    "convert",
    "on_branches",
]
