"""The method, on torch alone: rates.py, heads.py, headwise.py, averaging.py, optim.py, tied together by convert.py;
average.py for playing."""

from alrao_rl.core.average import follow, plain_copy
from alrao_rl.core.config import AlraoConfig
from alrao_rl.core.convert import Output, convert
from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.headwise import HeadwiseError, HeadwiseTensor
from alrao_rl.core.optim import AlraoOptimizer

__all__ = [
    "AlraoConfig",
    "AlraoOptimizer",
    "HeadwiseError",
    "HeadwiseTensor",
    "Output",
    "OutputHeads",
    "convert",
    "follow",
    "plain_copy",
]
