"""What compiled code may be told of memory, which it believes."""

from __future__ import annotations

import torch
from torch import Tensor


def can_read(*tensors: Tensor) -> bool:
    """Whether their memory is what compiled code takes it for: on the CPU, of float32, without gaps."""
    return all([x.is_cpu and x.dtype is torch.float32 and x.is_contiguous() for x in tensors])


def is_plain(x: Tensor) -> bool:
    """Whether this is a tensor of numbers, float32 and on the CPU, and not what a transform of torch.func passes."""
    return (
        type(x) is Tensor and x.is_cpu and x.dtype is torch.float32 and not torch._C._are_functorch_transforms_active()
    )
