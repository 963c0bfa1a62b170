"""HeadwiseTensor in less time: common operations work directly on the leading dimension, past torch.vmap.

A subclass of :class:`alrao_rl.core.headwise.HeadwiseTensor`, which handles all that is not in :data:`HANDLERS`.
``gather`` along the outputs is put off until its result is read: a loss can do both in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alrao_rl.checks import HeadwiseError
from alrao_rl.core import headwise as core
from alrao_rl.core.headwise import (
    OutputLayer,
    average_of,
    every_branch,
    record,
    watch_term,
    weighted,
)
from alrao_rl.fast.losses import chosen_losses, quantile_losses


class HeadwiseTensor(core.HeadwiseTensor):
    """See :class:`alrao_rl.core.headwise.HeadwiseTensor`."""

    pending_gather: tuple[Tensor, Tensor] | None = None
    """Until ``branches`` are read: what they are gathered from, ``[1 + J, n, K]``, and the index, ``[n, 1]``."""
    is_zero_loss = False
    """Whether this is a loss times 0: its gradient need not be computed."""

    @staticmethod
    def of(branches: Tensor, layers: frozenset[OutputLayer]) -> HeadwiseTensor:
        """:meth:`wrap`, for layers that are a set already."""
        # Every operation ends here, which is why it does without a class argument and a conversion.
        result = HeadwiseTensor()
        result.branches = branches
        result.layers = layers
        return result

    def __getattr__(self, name: str) -> Any:
        if name != "branches" or self.pending_gather is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        source, index = self.pending_gather
        # With a graph even if it is only looked at without gradients: a loss may need it later.
        with torch.inference_mode(False), torch.enable_grad():
            self.branches = source.gather(2, index.expand(len(source), -1, -1))
        self.pending_gather = None
        return self.branches

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # By function first and then by name: the first is one look-up for the commonest operations.
        if not kwargs and (quick := _QUICK.get(func)) is not None:
            return quick(*args)
        kwargs = kwargs or {}
        if not args:
            kwargs = dict(kwargs)
            args = tuple(kwargs.pop(name) for name in ("input", "tensors", "tensor") if name in kwargs)
        handler = HANDLERS.get(func.__name__)
        if handler is not None:
            return handler(func, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


_wrap = HeadwiseTensor.of


def _like(branches: Tensor, source: core.HeadwiseTensor) -> HeadwiseTensor:
    return _wrap(branches, source.layers)


# --- operands -------------------------------------------------------------------------------------------------------


def of_one_layer(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, core.HeadwiseTensor]:
    """As the plain function of this name, past its walk through all arguments where there is one layer anyway."""
    found = list(_headwise((*args, *kwargs.values())))
    if all([other.layers == found[0].layers for other in found]):
        return args, kwargs, found[0]
    return core.of_one_layer(func, args, kwargs)


def _headwise(values: Any) -> Iterator[core.HeadwiseTensor]:
    for value in values:
        if isinstance(value, core.HeadwiseTensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _headwise(value)


def _promote(value: Tensor, n_branches: int) -> Tensor:
    """Branches of a plain tensor that requires a gradient: as it is for the average, detached for the heads."""
    heads = value.detach().unsqueeze(0).expand(n_branches - 1, *value.shape)
    return torch.cat([value.unsqueeze(0), heads])


def _align(value: Tensor, ndim: int) -> Tensor:
    """Insert dimensions after the leading one, so that branches broadcast like their visible parts."""
    # [1 + J, n] beside a visible [m, n]: without it the branches would be taken for the m.
    missing = ndim + 1 - value.dim()
    return value if missing <= 0 else value.reshape(value.shape[0], *(1,) * missing, *value.shape[1:])


def _full_branches(value: Tensor, n_branches: int, shape: tuple[int, ...]) -> Tensor:
    """Branches of any tensor, expanded to the visible ``shape``."""
    if type(value) is HeadwiseTensor:
        branches = value.branches
    elif value.requires_grad and torch.is_grad_enabled():
        branches = _promote(value, n_branches)
    else:
        return value.expand(n_branches, *shape)
    branches = _align(branches, len(shape))
    return branches if branches.shape == (n_branches, *shape) else branches.expand(n_branches, *shape)


def _rows(branches: Tensor) -> Tensor:
    """One row for every branch."""
    return branches if branches.dim() == 2 else branches.reshape(branches.shape[0], -1)


def _needs_branches(value: Any) -> bool:
    return type(value) is not HeadwiseTensor and isinstance(value, Tensor) and value.requires_grad


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _visible_ndim(value: Tensor) -> int:
    return value.branches.dim() - 1 if type(value) is HeadwiseTensor else value.dim()


# --- handlers -------------------------------------------------------------------------------------------------------


def _elementwise(func: Any, args: Any, kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return func(*map(average_of, args), **{key: average_of(value) for key, value in kwargs.items()})
    args, kwargs, first = of_one_layer(func, args, kwargs)
    n_branches = first.branches.shape[0]
    gradients = torch.is_grad_enabled()
    # Labels, without branches, broadcast from the right as they are.
    ndim = max(_visible_ndim(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def operand(value: Any) -> Any:
        if type(value) is HeadwiseTensor:
            return _align(value.branches, ndim)
        if gradients and _needs_branches(value):
            return _align(_promote(value, n_branches), ndim)
        return value

    branches = func(*[operand(value) for value in args], **{key: operand(value) for key, value in kwargs.items()})
    return _like(branches, first)


def _sum(func: Any, args: Any, kwargs: Any) -> Any:
    """add, sub and stack: also join losses of different layers."""
    # The commonest case, one headwise operand, needs no question about layers.
    if len(args) == 2 and not kwargs and not (type(args[0]) is type(args[1]) is HeadwiseTensor):
        return (_join if isinstance(args[0], (list, tuple)) else _elementwise)(func, args, kwargs)
    first, other = args if len(args) == 2 else (None, None)
    if (
        type(first) is type(other) is HeadwiseTensor
        and not kwargs
        and first.layers != other.layers
        and torch.is_grad_enabled()
        and first.branches.shape == other.branches.shape
        and first.branches.requires_grad
        and other.branches.requires_grad
    ):
        # The sum of two losses, as core's _sum makes it.
        for loss in args:
            if len(loss.layers) == 1:
                watch_term(loss)
        return _wrap(func(first.branches, other.branches), first.layers | other.layers)
    stack = func.__name__ == "stack"
    terms = args[0] if stack else [*args[:2], kwargs.get("other")]
    losses = [term for term in terms if type(term) is HeadwiseTensor and term.branches.requires_grad]
    if len(losses) < 2 or all([loss.layers == losses[0].layers for loss in losses[1:]]):
        return (_join if stack else _elementwise)(func, args, kwargs)
    return core.OPERATIONS["add"](func, args, kwargs)


def _multiply(func: Any, args: Any, kwargs: Any) -> Any:
    """mul; :func:`_quick` knows that a loss times 0, as an entropy bonus of 0, has no gradient to compute."""
    return _elementwise(func, args, kwargs)


def _clamp(func: Any, args: Any, kwargs: Any) -> Any:
    """Clamp; of layers that say so only the average."""
    source = args[0]
    if type(source) is HeadwiseTensor and not kwargs and torch.is_grad_enabled() and not any(map(_is_tensor, args[1:])):
        result = _wrap(func(source.branches, *args[1:]), source.layers)
    else:
        result = _elementwise(func, args, kwargs)
    if isinstance(source, HeadwiseTensor) and all([layer.clamp_average_only for layer in source.layers]):
        result = _like(torch.cat([result.branches[:1], source.branches[1:]]), source)
    return result


def _detach(func: Any, args: Any, kwargs: Any) -> Any:
    return core.OPERATIONS["detach"](func, args, kwargs) if torch.is_grad_enabled() else args[0].branches[0].detach()


def _extremum(func: Any, args: Any, kwargs: Any) -> Any:
    """max and min: of two tensors, along a dimension, or over everything."""
    if (len(args) > 1 and isinstance(args[1], Tensor)) or "other" in kwargs:
        return _QUICK[torch.maximum if func.__name__ == "max" else torch.minimum](*args, **kwargs)
    return _along(func, args, kwargs)


_FULL_REDUCTIONS = {"sum", "mean", "all", "any", "amax", "amin", "max", "min"}


def _along(func: Any, args: Any, kwargs: Any) -> Any:
    """Functions along a dimension, ``f(x, dim, …)``, and reductions over everything, ``f(x)``."""
    # Of branches [1 + J, …] every dimension counted from the front is one further, and "all" is all but the first.
    (x, *rest), name = args, func.__name__
    if not kwargs and name in ("sum", "mean") and x.branches.dim() > 1:  # the commonest cases
        if not rest:
            return _wrap(func(_rows(x.branches), 1), x.layers)
        if len(rest) == 1 and type(rest[0]) is int:
            return _wrap(func(x.branches, _shift(rest[0])), x.layers)
    kwargs = dict(kwargs)
    if not isinstance(x, HeadwiseTensor) or isinstance(kwargs.get("out"), Tensor):
        return every_branch(func, args, kwargs)
    branches, key = x.branches, "axis" if "axis" in kwargs else "dim"
    position, everything = 1 if name in ("split", "chunk") else 0, False
    if kwargs.get(key) in ((), []):  # no dimension means all of them, but not the branches
        del kwargs[key]
    elif len(rest) > position and rest[position] in ((), []):
        del rest[position]
    if kwargs.get(key) is not None:
        kwargs[key] = _shift(kwargs[key])
    elif len(rest) > position and rest[position] is not None:
        rest[position] = _shift(rest[position])
    elif everything := name in _FULL_REDUCTIONS and not rest and not kwargs.get("keepdim"):
        branches, rest = _rows(branches), [1]
        kwargs.pop(key, None)
    elif name in ("split", "chunk", "unbind"):
        kwargs[key] = 1
    else:
        return every_branch(func, args, kwargs)
    if name in ("softmax", "log_softmax") and branches.dim() > 2:
        dim = kwargs[key] if key in kwargs else rest[0]
        if dim in (-1, branches.dim() - 1) and len(rest) < 2 and kwargs.get("dtype") is None:
            # Torch's kernel for the last dimension takes one row at a time, and there are few actions in a row: along
            # the batch it has long ones.
            return _like(getattr(torch, name)(branches.transpose(-1, -2), -2).transpose(-1, -2), x)
    if branches.dim() == 1 and name != "unsqueeze":  # a dimension of a scalar: 0 and -1 stand for none
        return every_branch(func, args, kwargs if key not in kwargs else {**kwargs, key: 0})
    result = func(branches, *rest, **kwargs)
    if isinstance(result, Tensor):
        return x.like(result) if name in ("squeeze", "unsqueeze") else _like(result, x)
    if everything:  # max and min, which then give no index
        return _like(result[0], x)
    pieces = [x.like(piece) for piece in result]
    return tuple(pieces) if type(result) in (tuple, list) else type(result)(pieces)


def _gather(func: Any, args: Any, kwargs: Any) -> Any:
    x, dim, index = (*args, None, None)[:3]
    dim, index = kwargs.get("dim", dim), kwargs.get("index", index)
    if type(x) is not HeadwiseTensor or type(index) is not Tensor or x.branches.dim() < 2:
        return every_branch(func, args, kwargs)
    branches = x.branches
    # DQN's choice of the values of the actions taken: chosen_losses reads them where they are.
    if (
        branches.dim() == 3
        and dim in (1, -1)
        and index.shape == (branches.shape[1], 1)
        and index.dtype is torch.int64
        and index.device == branches.device
        and not index._is_zerotensor()
        and torch.is_grad_enabled()
    ):
        result = HeadwiseTensor()
        # A copy of the index: its owner may write into it before the result is read.
        result.layers, result.pending_gather = x.layers, (branches, index.clone())
        return result
    return _wrap(branches.gather(_shift(dim), index.expand(len(branches), *index.shape)), x.layers)


def _shift(dim: Any) -> Any:
    if isinstance(dim, (tuple, list)):
        return tuple(_shift(one) for one in dim)
    return dim + 1 if isinstance(dim, int) and dim >= 0 else dim


def _reshape(func: Any, args: Any, kwargs: Any) -> Any:
    x, *shape = args
    if not shape:
        shape = [kwargs.get("shape", kwargs.get("size"))]
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = list(shape[0])
    if not all(isinstance(n, int) for n in shape):
        return every_branch(func, args, kwargs)
    return x.like(x.branches.reshape(x.branches.shape[0], *shape))


def _expand(func: Any, args: Any, kwargs: Any) -> Any:
    x, *shape = args
    shape = shape or [kwargs["size"]]
    shape = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return x.like(_align(x.branches, len(shape)).expand(x.branches.shape[0], *shape))


def _flatten(func: Any, args: Any, kwargs: Any) -> Any:
    def flatten(x: HeadwiseTensor, start_dim: int = 0, end_dim: int = -1) -> HeadwiseTensor:
        if x.branches.dim() == 1:
            return x.like(x.branches.unsqueeze(1))
        return x.like(x.branches.flatten(_shift(start_dim), _shift(end_dim)))

    return flatten(*args, **kwargs)


def _join(func: Any, args: Any, kwargs: Any) -> Any:
    """cat and stack."""
    args, kwargs, first = of_one_layer(func, args, kwargs)
    tensors, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    n_branches = first.branches.shape[0]

    def branches(value: Tensor) -> Tensor:
        if isinstance(value, HeadwiseTensor):
            return value.branches
        if torch.is_grad_enabled() and _needs_branches(value):
            return _promote(value, n_branches)
        return value.unsqueeze(0).expand(n_branches, *value.shape)

    return _like(func([branches(value) for value in tensors], dim=_shift(dim)), first)


def _getitem(func: Any, args: Any, kwargs: Any) -> Any:
    x, index = args
    if not isinstance(x, HeadwiseTensor):
        raise HeadwiseError("__getitem__() cannot index a plain tensor with the outputs of Alrao heads")
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
        return x.like(x.branches[(slice(None), *parts)])
    if len(parts) == 1 and isinstance(index, Tensor) and not isinstance(index, HeadwiseTensor):
        return _like(x.branches[:, index], x)
    return every_branch(func, args, kwargs)


def _broadcast_tensors(func: Any, args: Any, kwargs: Any) -> Any:
    values = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    shape = torch.broadcast_shapes(*[tuple(value.shape) for value in values])
    return tuple(value.expand(shape) for value in values)


def _matmul(func: Any, args: Any, kwargs: Any) -> Any:
    if len(args) != 2 or min(_visible_ndim(value) for value in args) < 2:
        return every_branch(func, args, kwargs)
    return _elementwise(torch.matmul, args[::-1] if func.__name__ == "__rmatmul__" else args, kwargs)


_DEFAULTS: tuple[dict[str, float], ...] = {}, {"beta": 1.0}, {"delta": 1.0}
"""Options of regression losses that change nothing."""


def _loss(func: Any, args: Any, kwargs: Any) -> Any:
    """Regression losses: also record by how much each branch missed its label, see core's ``_regression_loss``."""
    values, options = list(args[:2]), dict(zip(("size_average", "reduce", "reduction"), args[2:], strict=False))
    options |= {key: value for key, value in kwargs.items() if value is not None}
    if len(values) < 2:
        values.append(options.pop("target"))
    reduction = options.pop("reduction", "mean")
    # These losses are symmetric: a label may come first.
    first, label = values if type(values[0]) is HeadwiseTensor else reversed(values)
    pending_gather = getattr(first, "pending_gather", None) if reduction == "mean" and options in _DEFAULTS else None
    if pending_gather is not None and (found := chosen_losses(func.__name__, pending_gather, label)) is not None:
        return record(_wrap(found[0], first.layers), lambda: found[1])
    squares = func.__name__ == "mse_loss"
    # A label of the same shape broadcasts over the branches by itself.
    if (
        type(first) is HeadwiseTensor
        and type(label) is Tensor
        and not label.requires_grad
        and label.shape == first.branches.shape[1:]
    ):
        left, right = first.branches, label if squares else label.expand_as(first.branches)
    else:
        values, _, first = of_one_layer(func, values, {})
        n_branches, shape = first.branches.shape[0], values[0].shape
        if shape != values[1].shape:
            shape = torch.broadcast_shapes(*[tuple(value.shape) for value in values])
        left, right = [_full_branches(value, n_branches, shape) for value in values]
    if not options.keys().isdisjoint(("weight", "reduce", "size_average")):
        return every_branch(func, tuple(values), {**options, "reduction": reduction})
    losses = (left - right).square() if squares else func(left, right, **options, reduction="none")
    if reduction == "none":
        return record(_wrap(losses, first.layers), lambda: partial(weighted, (left.detach() - right.detach()).square()))
    losses = getattr(_rows(losses), reduction)(1)  # [1 + J]
    # The mean squared error is its own residual.
    if squares and reduction == "mean":
        return record(_wrap(losses, first.layers), losses.detach)
    return record(_wrap(losses, first.layers), lambda: _rows((left.detach() - right.detach()).square()).mean(1))


def _bce_with_logits(func: Any, args: Any, kwargs: Any) -> Any:
    options = {key: value for key, value in kwargs.items() if value is not None}
    if options != {"reduction": "none"} or len(args) != 2:
        return every_branch(func, args, options)
    args, _, first = of_one_layer(func, args, {})
    return _like(
        func(*(_full_branches(x, first.branches.shape[0], args[0].shape) for x in args), reduction="none"), first
    )


def _quantile_huber_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """QR-DQN's, as sb3-contrib calls it; else operation by operation."""
    current, target, *options = args
    summed = not options and kwargs in ({}, {"sum_over_quantiles": True})
    if summed and type(current) is HeadwiseTensor and type(target) is Tensor:
        losses = quantile_losses(current.branches, target)
        if losses is not None:
            return _like(losses, current)
    return func.__wrapped__(*args, **kwargs)


def _backward(func: Any, args: Any, kwargs: Any) -> None:
    # It has no graph: there is nothing to do, and torch would call that an error.
    if not getattr(args[0], "is_zero_loss", False):
        core.OPERATIONS["backward"](func, args, kwargs)


def _item(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0].branches[0].item()


def _shape(func: Any, args: Any, kwargs: Any) -> Any:
    shape = args[0].branches.shape[1:]
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return shape if dim is None else shape[dim]


def _get_attribute(func: Any, args: Any, kwargs: Any) -> Any:
    x, name = args[0], func.__self__.__name__
    if name in ("dtype", "device", "requires_grad", "is_cuda"):
        return getattr(x.branches, name)
    return core.HeadwiseTensor.__torch_function__(func, (), args, kwargs)


# Functions are known by name: an operator, a method and its torch.* twin are the same operation.
HANDLERS: dict[str, Callable[[Any, Any, Any], Any]] = {}
for _handler, _names in {
    _elementwise: """
        div divide true_divide __truediv__
        __rtruediv__ __rdiv__ pow __pow__ __rpow__ exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square abs
        absolute __abs__ neg negative __neg__ sign reciprocal sigmoid tanh sin cos erf relu softplus logsigmoid maximum
        minimum where
        logaddexp lt le gt ge eq ne less greater __lt__ __le__ __gt__ __ge__ __eq__ __ne__ isfinite isnan isinf
        logical_and logical_or logical_not __and__ __or__ __invert__ bitwise_and bitwise_or nan_to_num masked_fill float
        double half long int bool clone contiguous cpu cuda round floor ceil xlogy""",
    _sum: "add __add__ __radd__ sub subtract __sub__ rsub __rsub__ stack",
    _multiply: "mul multiply __mul__ __rmul__",
    _clamp: "clamp clip clamp_min clamp_max",
    _detach: "detach",
    _extremum: "max min",
    _along: """
        sum mean logsumexp softmax log_softmax amax amin all any squeeze unsqueeze split chunk unbind""",
    _gather: "gather",
    _reshape: "reshape view",
    _expand: "expand",
    _flatten: "flatten",
    _join: "cat concat concatenate",
    _getitem: "__getitem__",
    _broadcast_tensors: "broadcast_tensors",
    _matmul: "matmul mm __matmul__ __rmatmul__",
    _loss: "mse_loss smooth_l1_loss huber_loss l1_loss",
    _bce_with_logits: "binary_cross_entropy_with_logits",
    _quantile_huber_loss: "quantile_huber_loss",
    _backward: "backward",
    _shape: "size",
    _item: "item",
    _get_attribute: "__get__",
}.items():
    HANDLERS.update(dict.fromkeys(_names.split(), _handler))


def _quick(function: Any, handler: Callable[[Any, Any, Any], Any]) -> Any:
    """An elementwise operation that skips all checks for the commonest operands; others go through its handler."""

    def operation(*args: Any, **kwargs: Any) -> Any:
        first = args[0]
        if kwargs or not torch.is_grad_enabled():
            return handler(function, args, kwargs)
        if type(first) is HeadwiseTensor:
            branches = first.branches
            if len(args) == 1:
                return _wrap(function(branches), first.layers)
            if len(args) == 2:
                other = args[1]
                kind = type(other)
                if kind is HeadwiseTensor:
                    # As many dimensions, or the branches would not broadcast like their visible parts.
                    if other.layers == first.layers and other.branches.dim() == branches.dim():
                        return _wrap(function(branches, other.branches), first.layers)
                elif kind is Tensor:  # a label
                    if not other.requires_grad and other.dim() < branches.dim():
                        return _wrap(function(branches, other), first.layers)
                elif kind is float or kind is int:
                    # An entropy bonus with coefficient 0: its gradient would be computed and be zeros.
                    free = not other and handler is _multiply and branches.dim() == 1
                    result = _wrap(function(branches.detach() if free else branches, other), first.layers)
                    if free:
                        result.is_zero_loss = True
                    if first.evidence_recorded and (handler is _multiply or handler is _sum):
                        result.evidence_recorded = True
                    return result
        elif type(first) is Tensor and len(args) == 2 and not first.requires_grad:  # a label in front
            other = args[1]
            if type(other) is HeadwiseTensor and first.dim() < other.branches.dim():
                return _wrap(function(first, other.branches), other.layers)
        return handler(function, args, kwargs)

    return operation


def _direct(function: Any, handler: Callable[[Any, Any, Any], Any]) -> Any:
    """A method that calls its handler directly: half of a small operation's time is torch's way to it."""

    def method(self: HeadwiseTensor, *args: Any, **kwargs: Any) -> Any:
        return handler(function, (self, *args), kwargs)

    return method


_QUICK: dict[Any, Any] = {}
for _name in [name for name, handler in HANDLERS.items() if handler in (_elementwise, _sum, _multiply)]:
    for _function in (getattr(torch, _name, None), getattr(Tensor, _name, None)):
        if callable(_function) and _name != "stack":
            _QUICK[_function] = _quick(_function, HANDLERS[_name])
for _name in HANDLERS:
    if callable(_function := getattr(Tensor, _name, None)):
        setattr(HeadwiseTensor, _name, _QUICK.get(_function) or _direct(_function, HANDLERS[_name]))
