"""log σ of a Gaussian policy as one value, to be read and written, where every output head has its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from alrao_rl.core import HeadwiseError, HeadwiseTensor, OutputHeads


def log_std(heads: OutputHeads) -> Tensor:
    """The average of the heads' log σ: headwise when gradients are enabled, else one that can be written.

    So can its ``data`` when gradients are enabled.
    """
    if not torch.is_grad_enabled():
        return WritableAverage.of(heads)
    average = heads.averaged_extra()
    if isinstance(average, HeadwiseTensor):
        average.on_write = partial(_write, heads)
    return average


def _write(heads: OutputHeads, func: Any, args: Any, kwargs: Any) -> Any:
    """Writing the headwise average: its ``data`` in all ways, itself in those in which torch writes a parameter."""
    average, name = WritableAverage.of(heads), func.__name__
    if name == "__get__":  # of data
        return average
    if name not in ("__set__", "requires_grad_") and getattr(func, "__module__", "") != "torch.nn.init":
        when = (
            "while gradients are enabled" if torch.is_grad_enabled() else "that was read while gradients were enabled"
        )
        raise HeadwiseError(
            f"{name}() cannot change a parameter in place {when}: read it and write it under torch.no_grad(), "
            "or write to its .data"
        )
    return func(average, *args[1:], **kwargs)


@torch.no_grad()
def write_log_std(heads: OutputHeads, value: Any) -> None:
    """Give every head this log σ, one number or as many as there are.

    Raises:
        AttributeError: the policy has none.
        ValueError: it has another shape.
    """
    own = heads.extra
    if own is None:
        raise AttributeError("this policy has no log_std: its actions are not Gaussian")
    value = torch.as_tensor(value.average if isinstance(value, HeadwiseTensor) else value)
    if value.dim() and value.shape != own.shape[1:]:
        raise ValueError(f"log_std is of shape {tuple(value.shape)}, expected {tuple(own.shape[1:])}")
    own.copy_(value)


class WritableAverage(Tensor):
    """An average of the heads' own values, a plain tensor but for this: what is written into it, every head has then.

    Also where it is written into what shares its memory, as ``average[0]``.
    """

    _heads: OutputHeads
    _whole: Tensor

    @staticmethod
    def of(heads: OutputHeads) -> Tensor:
        """That of the extra parameter of an output layer."""
        with torch.no_grad():
            average = heads.averaged_extra()
        return _writable(average, average, heads)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("__set__", "requires_grad_"):
            return _set(func, *args)
        mine = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, WritableAverage)]
        with torch._C.DisableTorchFunctionSubclass():
            before = [x._version for x in mine]
            result = func(*args, **(kwargs or {}))
            for x, version in zip(mine, before, strict=True):
                if x._version != version:
                    write_log_std(x._heads, x._whole)
                if isinstance(result, (tuple, list)):
                    return type(result)(_view(one, x) for one in result)
                result = _view(result, x)
        return result

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).clone().__reduce_ex__(protocol)


def _writable(value: Tensor, whole: Tensor, heads: OutputHeads) -> Tensor:
    result = value.as_subclass(WritableAverage)
    result._heads, result._whole = heads, whole
    return result


def _view(result: Any, source: WritableAverage) -> Any:
    """What shares the memory of ``source``, as one that is written like it; anything else as it is."""
    if type(result) is not Tensor or not result.numel():
        return result
    same = result.untyped_storage().data_ptr() == source._whole.untyped_storage().data_ptr()
    return _writable(result, source._whole, source._heads) if same else result


def _set(func: Any, target: WritableAverage, value: Any = True) -> Tensor:
    """``log_std.data = value``; ``requires_grad`` cannot be set."""
    name = "requires_grad" if func.__name__ == "requires_grad_" else func.__self__.__name__
    if name != "data":
        raise AttributeError(f"{name} of log_std cannot be set: every output head has one of its own, and all learn")
    target.copy_(value)
    return target
