"""The method, on torch alone: rates.py, heads.py, averaging.py, optim.py, tied together by convert.py."""

from alrao_rl.core.config import AlraoConfig
from alrao_rl.core.convert import Output, convert
from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.optim import AlraoOptimizer
from alrao_rl.headwise import HeadwiseError, HeadwiseTensor, on_branches

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
