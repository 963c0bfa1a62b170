"""HeadwiseTensor: a loss evaluated once for the averaged model and once for every head.

Alrao needs three gradients from one loss: that of the averaged model Φ(x) = Σ_j a_j C_j(φ(x)) for the trunk, and for
every head its own, as if it alone were the output. A :class:`HeadwiseTensor` shows the averaged output and carries a
hidden leading dimension ``[average, head_1 … head_J]``. Every operation on it is applied to each of these branches, so
whatever loss an algorithm computes comes out as J + 1 losses, and ``backward()`` starts from their sum.

* What is read from it (``shape``, ``item()``, ``numpy()``, ``bool()`` …) is read from the average. Under ``no_grad``,
  where nothing can become a loss, elementwise operations compute the average alone and give a plain tensor.
* A plain tensor is the same for all branches (a label). One that requires a gradient enters the average branch as it
  is and the heads' branches detached, otherwise it would receive J + 1 gradients.
* Tensors of the same output layer combine branch by branch. Losses of different layers add, subtract and stack branch
  by branch; in any other operation the detached one contributes its average, and two differentiable ones are an error.
* Of ``gather`` along the outputs is only noted what was chosen, until somebody reads it: a loss takes both in one go.
* Common operations work directly on the leading dimension; ``torch.vmap`` serves the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from alrao_rl.compiled.losses import chosen_losses, quantile_losses


class HeadwiseError(RuntimeError):
    """An operation that has no meaning, or no implementation, per output head.

    Not a TypeError: operators would take that for "not implemented" and hide the message.
    """


class HeadwiseTensor(torch.Tensor):
    """The averaged output of duplicated output layers, with one hidden branch for the average and one per head.

    Attributes:
        branches: plain tensor ``[1 + n_heads, *shape]``; ``branches[0]`` is the average.
        layers: the output layers this value depends on, more than one for a sum of losses.
    """

    branches: Tensor
    layers: frozenset[Any]
    choice: tuple[Tensor, Tensor] | None = None
    """Until ``branches`` are read: those they are gathered from, ``[1 + n_heads, n, K]``, and the index, ``[n, 1]``."""
    told = False
    """Whether a loss function has told the layer more of this loss than its value."""
    free = False
    """Whether this is a loss times 0, whose gradient need not be computed."""
    part = False
    """Whether this is a view of another value, which is written when this one is."""
    writable: Callable[[], Tensor] | None = None
    """Gives, where this is an average of parameters, a plain tensor that stands for them: its ``data``."""

    @staticmethod
    def wrap(branches: Tensor, layers: Iterable[Any]) -> HeadwiseTensor:
        """Make a headwise tensor of ``branches`` that belongs to the given output layers (usually one)."""
        return _wrap(branches, frozenset(layers))

    def __getattr__(self, name: str) -> Any:
        if name != "branches" or self.choice is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        source, index = self.choice
        with torch.inference_mode(False), torch.enable_grad():  # a loss may need it after who only looks at it
            self.branches = source.gather(2, index.expand(len(source), -1, -1))
        self.choice = None
        return self.branches

    @property
    def average(self) -> Tensor:
        """The average branch, a plain tensor of the visible shape."""
        return self.branches[0]

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The visible shape."""
        return self.branches.shape[1:]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and (quick := _QUICK.get(func)) is not None:
            return quick(*args)
        name = func.__name__
        kwargs = kwargs or {}
        if not args:
            kwargs = dict(kwargs)
            args = tuple(kwargs.pop(name) for name in ("input", "tensors", "tensor") if name in kwargs)
        handler = _HANDLERS.get(name)
        if handler is not None:
            return handler(func, args, kwargs)
        if name == "__get__":
            return _get_attribute(func, args)
        if args and isinstance(args[0], HeadwiseTensor) and args[0].writable is not None and _writes(name):
            return _write(func, args, kwargs)
        if name.startswith("__i") and f"__{name[3:]}" in _HANDLERS:
            return _in_place(getattr(Tensor, f"__{name[3:]}"), args, kwargs)
        if name.endswith("_") and name.strip("_") in _HANDLERS and not name.startswith("__"):
            return _in_place(getattr(Tensor, name[:-1]), args, kwargs)
        return _by_vmap(func, args, kwargs)


def _wrap(branches: Tensor, layers: frozenset[Any]) -> HeadwiseTensor:
    # Its own storage stays empty and is never read: every access goes through __torch_function__, and making a view of
    # the average for each operation would cost as much as the operation.
    result = HeadwiseTensor()
    result.branches = branches
    result.layers = layers
    return result


def on_branches(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """``function``, which looks at the last dimensions only, in one go for all branches of values of one layer."""
    first = values[0]
    if type(first) is not HeadwiseTensor:
        return function(*values)
    if not torch.is_grad_enabled():
        return function(*[value.branches[0] for value in values])  # type: ignore[attr-defined]
    return _wrap(function(*[value.branches for value in values]), first.layers)  # type: ignore[attr-defined]


def _like(branches: Tensor, source: HeadwiseTensor) -> HeadwiseTensor:
    return _wrap(branches, source.layers)


def _part(branches: Tensor, source: HeadwiseTensor) -> HeadwiseTensor:
    """The same for what may be a view of ``source``."""
    result = _wrap(branches, source.layers)
    result.part = branches is source.branches or branches._is_view()
    return result


# --- operands -------------------------------------------------------------------------------------------------------


def _headwise(values: Any) -> Iterator[HeadwiseTensor]:
    for value in values:
        if isinstance(value, HeadwiseTensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _headwise(value)


def _resolve(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, HeadwiseTensor]:
    """Make all headwise operands belong to the same layer; return the operands and one that stands for the result."""
    found = list(_headwise(args))
    if kwargs:
        found += _headwise(kwargs.values())
    first = found[0]
    if len(found) == 1 or all(other.layers == first.layers for other in found):
        return args, kwargs, first
    leaders = [value for value in found if value.branches.requires_grad] or found[:1]
    first = leaders[0]
    if any(other.layers != first.layers for other in leaders):
        raise HeadwiseError(
            f"{func.__name__.strip('_')}() combines the outputs of two different Alrao output layers, and both need a "
            "gradient: only a sum of their losses has a meaning per head (detach() one of them)"
        )

    def plain(value: Any) -> Any:
        if isinstance(value, HeadwiseTensor) and value.layers != first.layers:
            return value.average
        return value

    return tree_map(plain, args), tree_map(plain, kwargs), first


def _promote(value: Tensor, n_branches: int) -> Tensor:
    """Branches of a plain tensor that requires a gradient: as it is for the average, detached for the heads."""
    heads = value.detach().unsqueeze(0).expand(n_branches - 1, *value.shape)
    return torch.cat([value.unsqueeze(0), heads])


def _align(value: Tensor, ndim: int) -> Tensor:
    """Insert dimensions after the leading one, so that branches broadcast like their visible parts."""
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
        return _visible(func, args, kwargs)
    args, kwargs, first = _resolve(func, args, kwargs)
    n_branches = first.branches.shape[0]
    gradients = torch.is_grad_enabled()
    ndim = max(_visible_ndim(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def operand(value: Any) -> Any:
        if type(value) is HeadwiseTensor:
            return _align(value.branches, ndim)
        if gradients and _needs_branches(value):
            return _align(_promote(value, n_branches), ndim)
        return value

    branches = func(*[operand(value) for value in args], **{key: operand(value) for key, value in kwargs.items()})
    return _like(branches, first)


def _as_type(func: Any, args: Any, kwargs: Any) -> Any:
    """to and type_as: another tensor says a dtype and a device only, and a plain one stays plain."""

    def branches(value: Any) -> Any:
        return value.branches if isinstance(value, HeadwiseTensor) else value

    x, *rest = args
    result = func(branches(x), *map(branches, rest), **{key: branches(value) for key, value in kwargs.items()})
    if not isinstance(x, HeadwiseTensor):
        return result
    return _like(result, x) if torch.is_grad_enabled() else result[0]


def _detach(func: Any, args: Any, kwargs: Any) -> Any:
    x = args[0]
    return _data(x) if torch.is_grad_enabled() else x.branches[0].detach()


def _data(x: HeadwiseTensor) -> HeadwiseTensor:
    result = _like(x.branches.detach(), x)
    result.part = True  # torch does not call it a view
    result.writable = x.writable
    return result


def _sum(func: Any, args: Any, kwargs: Any) -> Any:
    """add, sub and stack: also join losses of different layers."""
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
    ):  # the sum of two losses
        for loss in args:
            if len(loss.layers) == 1:
                _watch_term(loss)
        return _wrap(func(first.branches, other.branches), first.layers | other.layers)
    stack = func.__name__ == "stack"
    terms = args[0] if stack else [*args[:2], kwargs.get("other")]
    losses = [term for term in terms if type(term) is HeadwiseTensor and term.branches.requires_grad]
    if len(losses) < 2 or all([loss.layers == losses[0].layers for loss in losses[1:]]):
        return (_join if stack else _elementwise)(func, args, kwargs)
    n_branches = losses[0].branches.shape[0]
    for loss in losses:
        if loss.branches.shape[0] != n_branches:
            raise HeadwiseError(
                f"{func.__name__.strip('_')}() joins losses of output layers with {n_branches - 1} and "
                f"{loss.branches.shape[0] - 1} heads: layers whose losses are added need the same n_heads"
            )
        if len(loss.layers) == 1:
            _watch_term(loss)
    layers = losses[0].layers.union(*(loss.layers for loss in losses[1:]))
    joined = {id(loss): _wrap(loss.branches, layers) for loss in losses}

    def swap(value: Any) -> Any:
        return joined.get(id(value), value)

    if stack:
        return _join(func, ([swap(term) for term in terms], *args[1:]), kwargs)
    return _elementwise(func, tuple(map(swap, args)), {key: swap(value) for key, value in kwargs.items()})


def _watch_term(loss: HeadwiseTensor) -> None:
    """Of a sum of losses tell the only layer of this term what it contributes.

    The gradient that comes back knows what was done to the sum since: its sign, its scale, its reduction. Where more
    than that was done, as to a sum of outputs, it is the contribution to first order; a loss function tells more.
    """
    (layer,) = loss.layers
    if layer.rule.uses == "losses" and not loss.told:
        loss.told = True
        losses = loss.branches.detach()
        loss.branches.register_hook(lambda gradient: layer.watch_loss(losses, gradient))


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


def _extremum(func: Any, args: Any, kwargs: Any) -> Any:
    """max and min: of two tensors, along a dimension, or over everything."""
    if (len(args) > 1 and isinstance(args[1], Tensor)) or "other" in kwargs:
        return _QUICK[torch.maximum if func.__name__ == "max" else torch.minimum](*args, **kwargs)
    return _along(func, args, kwargs)


_FULL_REDUCTIONS = {"sum", "mean", "all", "any", "amax", "amin", "max", "min"}


def _along(func: Any, args: Any, kwargs: Any) -> Any:
    """Functions along a dimension, ``f(x, dim, …)``, and reductions over everything, ``f(x)``."""
    (x, *rest), name = args, func.__name__
    if not kwargs and name in ("sum", "mean") and x.branches.dim() > 1:  # the commonest cases
        if not rest:
            return _wrap(func(_rows(x.branches), 1), x.layers)
        if len(rest) == 1 and type(rest[0]) is int:
            return _wrap(func(x.branches, _shift(rest[0])), x.layers)
    kwargs = dict(kwargs)
    if not isinstance(x, HeadwiseTensor) or isinstance(kwargs.get("out"), Tensor):
        return _by_vmap(func, args, kwargs)
    branches, key = x.branches, "axis" if "axis" in kwargs else "dim"
    position, everything = 1 if name in ("split", "chunk") else 0, False
    if kwargs.get(key) in ((), []):  # no dimension stands for all, but not for the branches
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
        return _by_vmap(func, args, kwargs)
    if name in ("softmax", "log_softmax") and branches.dim() > 2:
        dim = kwargs[key] if key in kwargs else rest[0]
        if dim in (-1, branches.dim() - 1) and len(rest) < 2 and kwargs.get("dtype") is None:
            # Torch's kernel for the last dimension takes a row at a time, and those of actions are short.
            return _like(getattr(torch, name)(branches.transpose(-1, -2), -2).transpose(-1, -2), x)
    if branches.dim() == 1 and name != "unsqueeze":  # a dimension of a scalar: 0 and -1 stand for none
        return _by_vmap(func, args, kwargs if key not in kwargs else {**kwargs, key: 0})
    result = func(branches, *rest, **kwargs)
    if isinstance(result, Tensor):
        return _part(result, x) if name in ("squeeze", "unsqueeze") else _like(result, x)
    if everything:  # max and min, which then give no index
        return _like(result[0], x)
    pieces = [_part(piece, x) for piece in result]
    return tuple(pieces) if type(result) in (tuple, list) else type(result)(pieces)


def _gather(func: Any, args: Any, kwargs: Any) -> Any:
    x, dim, index = (*args, None, None)[:3]
    dim, index = kwargs.get("dim", dim), kwargs.get("index", index)
    if type(x) is not HeadwiseTensor or type(index) is not Tensor or x.branches.dim() < 2:
        return _by_vmap(func, args, kwargs)
    branches = x.branches
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
        result.layers, result.choice = x.layers, (branches, index.clone())  # whose owner may write into it
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
        return _by_vmap(func, args, kwargs)
    return _part(x.branches.reshape(x.branches.shape[0], *shape), x)


def _expand(func: Any, args: Any, kwargs: Any) -> Any:
    x, *shape = args
    shape = shape or [kwargs["size"]]
    shape = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return _part(_align(x.branches, len(shape)).expand(x.branches.shape[0], *shape), x)


def _flatten(func: Any, args: Any, kwargs: Any) -> Any:
    def flatten(x: HeadwiseTensor, start_dim: int = 0, end_dim: int = -1) -> HeadwiseTensor:
        if x.branches.dim() == 1:
            return _part(x.branches.unsqueeze(1), x)
        return _part(x.branches.flatten(_shift(start_dim), _shift(end_dim)), x)

    return flatten(*args, **kwargs)


def _join(func: Any, args: Any, kwargs: Any) -> Any:
    """cat and stack."""
    args, kwargs, first = _resolve(func, args, kwargs)
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
        return _part(x.branches[(slice(None), *parts)], x)
    if len(parts) == 1 and isinstance(index, Tensor) and not isinstance(index, HeadwiseTensor):
        return _like(x.branches[:, index], x)
    return _by_vmap(func, args, kwargs)


def _broadcast_tensors(func: Any, args: Any, kwargs: Any) -> Any:
    values = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    shape = torch.broadcast_shapes(*[tuple(value.shape) for value in values])
    return tuple(value.expand(shape) for value in values)


def _matmul(func: Any, args: Any, kwargs: Any) -> Any:
    if len(args) != 2 or min(_visible_ndim(value) for value in args) < 2:
        return _by_vmap(func, args, kwargs)
    return _elementwise(torch.matmul, args[::-1] if func.__name__ == "__rmatmul__" else args, kwargs)


_DEFAULTS: tuple[dict[str, float], ...] = {}, {"beta": 1.0}, {"delta": 1.0}
"""Options of regression losses that change nothing."""


def _loss(func: Any, args: Any, kwargs: Any) -> Any:
    """Regression losses: also tell the output layers by how much each branch missed its label.

    The residual is output − label before any clipping: Huber's gradient is ±1 for every head once errors are large.
    """
    values, options = list(args[:2]), dict(zip(("size_average", "reduce", "reduction"), args[2:], strict=False))
    options |= {key: value for key, value in kwargs.items() if value is not None}
    if len(values) < 2:
        values.append(options.pop("target"))
    reduction = options.pop("reduction", "mean")
    first, label = values if type(values[0]) is HeadwiseTensor else reversed(values)  # they ask not which is the label
    choice = getattr(first, "choice", None) if reduction == "mean" and options in _DEFAULTS else None
    if choice is not None and (found := chosen_losses(func.__name__, choice, label)) is not None:
        return _with_residuals(found[0], first, lambda: found[1])
    squares = func.__name__ == "mse_loss"
    if (
        type(first) is HeadwiseTensor
        and type(label) is Tensor
        and not label.requires_grad
        and label.shape == first.branches.shape[1:]
    ):
        left, right = first.branches, label if squares else label.expand_as(first.branches)
    else:
        values, _, first = _resolve(func, values, {})
        n_branches, shape = first.branches.shape[0], values[0].shape
        if shape != values[1].shape:
            shape = torch.broadcast_shapes(*[tuple(value.shape) for value in values])
        left, right = [_full_branches(value, n_branches, shape) for value in values]
    if not options.keys().isdisjoint(("weight", "reduce", "size_average")):
        return _by_vmap(func, tuple(values), {**options, "reduction": reduction})
    losses = (left - right).square() if squares else func(left, right, **options, reduction="none")
    if reduction == "none":  # what is made of them later, as by a mask, says how much each counts
        return _with_residuals(losses, first, lambda: partial(_weighted, (left.detach() - right.detach()).square()))
    losses = getattr(_rows(losses), reduction)(1)
    if squares and reduction == "mean":
        return _with_residuals(losses, first, losses.detach)
    return _with_residuals(losses, first, lambda: _rows((left.detach() - right.detach()).square()).mean(1))


def _weighted(values: Tensor, gradient: Tensor) -> Tensor | None:
    """Mean over each branch, weighted as the average branch's values enter the final loss; None where none does."""
    weights = gradient[0].abs()
    total = weights.sum()
    return _rows(values * weights).sum(1) / total if total else None


def _counted(values: Tensor, gradient: Tensor) -> Tensor | None:
    """Sum over each branch of what enters the final loss."""
    return _rows(values * (gradient[0] != 0)).sum(1)


def _with_residuals(losses: Tensor, first: HeadwiseTensor, mean_squares: Callable[[], Any]) -> HeadwiseTensor:
    """A regression loss whose layers, where they judge by it, are told the mean squared residuals.

    These, or a function that makes them of the gradient of ``losses``.
    """
    result = _wrap(losses, first.layers)
    for layer in first.layers:
        if layer.rule.uses == "losses":
            layer.watch(losses, mean_squares())
            result.told = True
    return result


def _likelihood_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """Classification losses: the negative log-likelihood of each branch is its evidence as it stands."""
    result = _by_vmap(func, args, kwargs)
    layers = [layer for layer in result.layers if layer.rule.uses == "losses"]
    total: Any = None
    if layers and kwargs.get("reduction") == "none":
        total = partial(_counted, result.branches.detach())
    elif layers:
        with torch.no_grad():
            total = _by_vmap(func, args, {**kwargs, "reduction": "sum"}).branches
    for layer in layers:
        layer.watch(result.branches, total, is_likelihood=True)
        result.told = True
    return result


def _bce_with_logits(func: Any, args: Any, kwargs: Any) -> Any:
    options = {key: value for key, value in kwargs.items() if value is not None}
    if options != {"reduction": "none"} or len(args) != 2:
        return _by_vmap(func, args, options)
    args, _, first = _resolve(func, args, {})
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
    def backward(x: HeadwiseTensor, gradient: Tensor | None = None, *rest: Any, **options: Any) -> None:
        if x.free:
            return
        if gradient is None:
            if x.branches.dim() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            gradient = torch.ones_like(x.branches)
        else:
            gradient = gradient.average if isinstance(gradient, HeadwiseTensor) else gradient
            gradient = gradient.expand_as(x.branches)
        for layer in x.layers if len(x.layers) == 1 and not x.told else ():  # the terms of a sum are told already
            if layer.rule.uses == "losses":
                layer.watch_loss(x.branches.detach(), gradient)
        x.branches.backward(gradient, *rest, **options)

    tensors = args[0]
    if isinstance(tensors, (list, tuple)):  # torch.autograd.backward
        options = {key: value for key, value in kwargs.items() if value is not None}
        if len(args) > 1 or "grad_tensors" in options:
            raise HeadwiseError("backward() with grad_tensors is not implemented for Alrao heads: call loss.backward()")
        for tensor in tensors:
            tensor.backward(**options)
        return
    backward(*args, **kwargs)


def _gradients(func: Any, args: Any, kwargs: Any) -> Any:
    """torch.autograd.grad: of the sum of all branches."""

    def gradients(outputs: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if rest or options.pop("grad_outputs", None) is not None:
            raise HeadwiseError("grad() with grad_outputs is not implemented for the outputs of Alrao heads")
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        plain = [value.branches.sum() if isinstance(value, HeadwiseTensor) else value for value in outputs]
        return torch.autograd.grad(plain, inputs, **options)

    return gradients(*args, **kwargs)


def _setitem(func: Any, args: Any, kwargs: Any) -> None:
    """Write a number or a label into every branch, or a number where a mask of the heads' own says."""
    x, index, value = args
    if isinstance(x, HeadwiseTensor) and x.writable is not None:
        _write(func, args, kwargs)
    parts = index if isinstance(index, tuple) else (index,)
    masked = isinstance(index, HeadwiseTensor) and index.dtype is torch.bool and not isinstance(value, Tensor)
    known = isinstance(x, HeadwiseTensor) and not isinstance(value, HeadwiseTensor)
    if not known or (not masked and any(isinstance(part, HeadwiseTensor) for part in parts)):
        raise HeadwiseError("__setitem__() cannot write the outputs of Alrao heads, or where they say; use torch.where")
    branches = x.branches if x.part else x.branches.clone()
    if masked:
        branches.masked_fill_(_align(index.branches, branches.dim() - 1), value)
    else:
        place = (slice(None), *parts)
        if torch.is_grad_enabled() and _needs_branches(value):
            value = _align(_promote(value, len(branches)), branches[place].dim() - 1)
        branches[place] = value
    x.branches = branches


def _visible(func: Any, args: Any, kwargs: Any) -> Any:
    """Read from the average branch."""

    def plain(value: Any) -> Any:
        return value.branches[0] if isinstance(value, HeadwiseTensor) else value

    if len(args) <= 2 and not kwargs and not isinstance(args[0], (list, tuple)):
        return func(*map(plain, args))
    return func(*tree_map(plain, args), **tree_map(plain, kwargs))


def _item(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0].branches[0].item()


def _deepcopy(func: Any, args: Any, kwargs: Any) -> Tensor:
    """The average's numbers: the graph behind them cannot be copied."""
    return args[0].branches[0].detach().clone()


def _shape(func: Any, args: Any, kwargs: Any) -> Any:
    shape = args[0].branches.shape[1:]
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return shape if dim is None else shape[dim]


def _get_attribute(func: Any, args: Any) -> Any:
    x, name = args[0], func.__self__.__name__
    if name in ("dtype", "device", "requires_grad", "is_cuda", "layout"):
        return getattr(x.branches, name)
    if name == "data":
        return _data(x) if x.writable is None else x.writable()
    if name in ("T", "mT", "H", "mH", "real", "imag"):
        return _by_vmap(lambda value: getattr(value, name), (x,), {})
    return getattr(x.average, name)


def _writes(name: str) -> bool:
    return name == "__set__" or name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))


def _write(func: Any, args: Any, kwargs: Any) -> Any:
    """Write an average of parameters: ``data`` in all ways, itself in those in which torch writes a parameter."""
    if func.__name__ not in ("__set__", "requires_grad_") and getattr(func, "__module__", "") != "torch.nn.init":
        raise HeadwiseError(
            f"{func.__name__}() cannot change a parameter in place while gradients are enabled: do it under "
            "torch.no_grad(), or to its .data"
        )
    return func(args[0].writable(), *args[1:], **kwargs)


def _in_place(func: Any, args: Any, kwargs: Any) -> Any:
    target = args[0]
    if not isinstance(target, HeadwiseTensor):
        raise HeadwiseError(f"{func.__name__}() cannot write the outputs of Alrao heads into a plain tensor in place")
    if not torch.is_grad_enabled():
        raise HeadwiseError(
            f"{func.__name__}() cannot change the outputs of Alrao heads under no_grad: detach() them first"
        )
    if target.part:  # Of a copy: backward may need what was there before.
        before = _like(target.branches.clone(), target)
        args = tuple(before if value is target else value for value in args)
    result = _HANDLERS[func.__name__](func, args, kwargs)
    if target.part:  # and with it what it is a part of, which autograd keeps track of
        target.branches.copy_(result.branches)
    else:
        target.branches = result.branches
    target.layers = result.layers
    return target


def _by_vmap(func: Any, args: Any, kwargs: Any) -> Any:
    """Any other function, one branch at a time in effect, through ``torch.vmap``."""
    args, kwargs, first = _resolve(func, args, kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    mapped: dict[int, Tensor] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, HeadwiseTensor):
            mapped[i] = leaf.branches
        elif torch.is_grad_enabled() and _needs_branches(leaf):
            mapped[i] = _promote(leaf, first.branches.shape[0])

    def one_branch(*values: Tensor) -> Any:
        for i, value in zip(mapped, values, strict=True):
            leaves[i] = value
        args, kwargs = tree_unflatten(leaves, spec)
        return func(*args, **kwargs)

    try:
        result = torch.vmap(one_branch, randomness="same")(*mapped.values())
    except Exception as error:
        try:
            _visible(func, args, kwargs)
        except Exception as mistake:  # what torch refuses of a plain tensor, too, it says itself
            raise mistake from None
        name = getattr(func, "__name__", str(func))
        raise HeadwiseError(
            f"{name}() cannot be applied to the output of Alrao heads ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}); "
            "use the plain average with .detach().average, or compute under torch.no_grad()"
        ) from error
    return tree_map(lambda value: _part(value, first) if isinstance(value, Tensor) else value, result)


# Functions are known by name: an operator, a method and its torch.* twin are the same operation.
_HANDLERS: dict[str, Callable[[Any, Any, Any], Any]] = {}
for _handler, _names in {
    _elementwise: """
        div divide true_divide __truediv__
        __rtruediv__ __rdiv__ pow __pow__ __rpow__ exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square abs
        absolute __abs__ neg negative __neg__ sign reciprocal sigmoid tanh sin cos erf relu softplus logsigmoid maximum
        minimum where
        logaddexp lt le gt ge eq ne less greater __lt__ __le__ __gt__ __ge__ __eq__ __ne__ isfinite isnan isinf
        logical_and logical_or logical_not __and__ __or__ __invert__ bitwise_and bitwise_or nan_to_num masked_fill float
        double half long int bool clone contiguous cpu cuda round floor ceil xlogy""",
    _as_type: "to type_as",
    _detach: "detach",
    _sum: "add __add__ __radd__ sub subtract __sub__ rsub __rsub__ stack",
    _multiply: "mul multiply __mul__ __rmul__",
    _clamp: "clamp clip clamp_min clamp_max",
    _extremum: "max min",
    _along: """
        sum mean logsumexp softmax log_softmax amax amin all any squeeze unsqueeze split chunk unbind""",
    _gather: "gather",
    _reshape: "reshape view",
    _expand: "expand",
    _flatten: "flatten",
    _join: "cat concat concatenate",
    _getitem: "__getitem__",
    _setitem: "__setitem__",
    _broadcast_tensors: "broadcast_tensors",
    _matmul: "matmul mm __matmul__ __rmatmul__",
    _loss: "mse_loss smooth_l1_loss huber_loss l1_loss",
    _likelihood_loss: "cross_entropy nll_loss",
    _bce_with_logits: "binary_cross_entropy_with_logits",
    _quantile_huber_loss: "quantile_huber_loss",
    _backward: "backward",
    _gradients: "grad",
    _shape: "size",
    _item: "item",
    _deepcopy: "__deepcopy__",
    _visible: """
        dim ndimension numel nelement numpy tolist __len__ __bool__ __float__ __int__ __index__ __format__ __repr__
        __str__ __array__ __contains__ __hash__ __reduce_ex__ is_floating_point is_complex is_tensor
        element_size stride storage_offset is_contiguous get_device type allclose equal is_same_size is_nonzero
        multinomial bernoulli normal poisson zeros_like ones_like empty_like full_like rand_like randn_like randint_like
        new_zeros new_ones new_empty new_full new_tensor argmax argmin
        _is_all_true _is_any_true""",
}.items():
    _HANDLERS.update(dict.fromkeys(_names.split(), _handler))


def _quick(function: Any, handler: Callable[[Any, Any, Any], Any]) -> Any:
    """An elementwise operation that goes past all questions for the commonest operands, else through its handler."""

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
                    if other.layers == first.layers and other.branches.dim() == branches.dim():
                        return _wrap(function(branches, other.branches), first.layers)
                elif kind is Tensor:  # a label
                    if not other.requires_grad and other.dim() < branches.dim():
                        return _wrap(function(branches, other), first.layers)
                elif kind is float or kind is int:
                    free = not other and handler is _multiply and branches.dim() == 1
                    result = _wrap(function(branches.detach() if free else branches, other), first.layers)
                    if free:
                        result.free = True
                    if first.told and handler is _multiply:
                        result.told = True
                    return result
        elif type(first) is Tensor and len(args) == 2 and not first.requires_grad:  # a label in front
            other = args[1]
            if type(other) is HeadwiseTensor and first.dim() < other.branches.dim():
                return _wrap(function(first, other.branches), other.layers)
        return handler(function, args, kwargs)

    return operation


def _direct(function: Any, handler: Callable[[Any, Any, Any], Any]) -> Any:
    """A method that goes straight to its handler: half of a small operation's time is torch's way there."""

    def method(self: HeadwiseTensor, *args: Any, **kwargs: Any) -> Any:
        return handler(function, (self, *args), kwargs)

    return method


_QUICK: dict[Any, Any] = {}
for _name in [name for name, handler in _HANDLERS.items() if handler in (_elementwise, _sum, _multiply)]:
    for _function in (getattr(torch, _name, None), getattr(Tensor, _name, None)):
        if callable(_function) and _name != "stack":
            _QUICK[_function] = _quick(_function, _HANDLERS[_name])
for _name in [name for name, handler in _HANDLERS.items() if handler is not _visible]:
    if callable(_function := getattr(Tensor, _name, None)):
        setattr(HeadwiseTensor, _name, _QUICK.get(_function) or _direct(_function, _HANDLERS[_name]))
