"""HeadwiseTensor: a loss evaluated once for the averaged model and once for every head.

Alrao needs three gradients from one loss: that of the averaged model Φ(x) = Σ_j a_j C_j(φ(x)) for the trunk, that of
the averaging weights, and for every head its own, as if it alone were the output (docs/method.md, "One loss, J + 1
gradients"). A :class:`HeadwiseTensor` shows the averaged output and carries a hidden leading dimension
``[average, head_1 … head_J]``. Every function of it is applied to each of these branches (``torch.vmap``), so whatever
loss an algorithm computes comes out as J + 1 losses, and ``backward()`` starts from their sum.

* What is read from it (``shape``, ``item()``, ``numpy()``, ``bool()`` …) is read from the average. Under ``no_grad``,
  where nothing can become a loss, functions compute the average alone and give a plain tensor.
* A plain tensor is the same for all branches (a label). One that requires a gradient enters the average branch as it
  is and the heads' branches detached, otherwise it would receive J + 1 gradients.
* Tensors of the same output layer combine branch by branch. Losses of different layers add, subtract and stack branch
  by branch; in any other operation the detached one contributes its average, and two differentiable ones are an error.
* The standard loss functions also record, as evidence for the averaging rule, how well each branch did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from alrao_rl import checks
from alrao_rl.checks import HeadwiseError as HeadwiseError
from alrao_rl.core.averaging import AveragingRule

Losses = Tensor | Callable[[Tensor], Tensor | None]
"""Losses of all branches, ``[1 + J]``, or what makes them of the gradient that arrives at the branches of a loss."""


class OutputLayer(Protocol):
    """What a headwise tensor knows of the layer that it comes from, an :class:`~alrao_rl.core.heads.OutputHeads`."""

    clamp_average_only: bool
    detach_average_only: bool

    @property
    def rule(self) -> AveragingRule:
        """What moves its averaging weights: a rule that uses ``"losses"`` is to see each branch's loss."""

    def watch(self, branches: Tensor, losses: Losses, name: str = "residual") -> None:
        """Record ``losses`` as the evidence ``name`` once a backward pass runs through ``branches``, ``[1 + J, …]``."""


class HeadwiseTensor(torch.Tensor):
    """The averaged output of duplicated output layers, with one hidden branch for the average and one per head.

    Its own storage stays empty and is never read: every access goes through ``__torch_function__``.

    Attributes:
        branches: plain tensor ``[1 + n_heads, *shape]``; ``branches[0]`` is the average.
        layers: the output layers this value depends on, more than one for a sum of losses.
        evidence_recorded: whether the layer has seen better evidence of this loss than its value, such as residuals.
        is_part: whether this is a view of another value, so that writing it in place writes that one, too.
        on_write: handles, if this stands for parameters, in-place operations on it and access to its ``data``, in place
            of the rules of this file.
    """

    branches: Tensor
    layers: frozenset[OutputLayer]
    evidence_recorded: bool = False
    is_part: bool = False
    on_write: Callable[[Any, Any, Any], Any] | None = None

    @classmethod
    def wrap(cls, branches: Tensor, layers: Iterable[OutputLayer]) -> Self:
        """Make a headwise tensor of ``branches``, ``[1 + J, …]``, that belongs to the given output layers."""
        result = cls()
        result.branches, result.layers = branches, frozenset(layers)
        return result

    def like(self, branches: Tensor) -> Self:
        """A tensor of the same layers with other ``branches``, which may be a view of these."""
        result = type(self).wrap(branches, self.layers)
        result.is_part = branches is self.branches or branches._is_view()
        return result

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
        name, kwargs = func.__name__, dict(kwargs or {})
        args = args or tuple(kwargs.pop(name) for name in ("input", "tensors", "tensor") if name in kwargs)
        if name == "__get__":  # an attribute
            return _attribute(func, *args)
        if _writes(name):
            if (on_write := getattr(args[0], "on_write", None)) is not None:
                return on_write(func, args, kwargs)
            return _in_place(func, args, kwargs)
        # By name: an operator, a method and its torch.* twin are the same operation. Without gradients nothing can be
        # a loss: the average alone is what acting, logging and target networks need.
        if name in READS or (not torch.is_grad_enabled() and name not in ("backward", "grad")):
            return _on_average(func, args, kwargs)
        return OPERATIONS.get(name, every_branch)(func, args, kwargs)


def average_of(value: Any) -> Any:
    """The average of a headwise tensor; anything else as it is."""
    return value.average if isinstance(value, HeadwiseTensor) else value


def _on_average(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*tree_map(average_of, args), **tree_map(average_of, kwargs))


def on_branches(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Apply ``function`` to all branches at once: it looks at the last dimensions only.

    ``values`` are of one layer; without gradients, or for plain tensors, the result is plain.
    """
    first = values[0]
    if not isinstance(first, HeadwiseTensor) or not torch.is_grad_enabled():
        return function(*map(average_of, values))
    return type(first).wrap(function(*[value.branches for value in values]), first.layers)  # type: ignore[attr-defined]


def every_branch(func: Any, args: Any, kwargs: Any) -> Any:
    """Apply ``func`` to each branch, in effect one after the other.

    Raises:
        HeadwiseError: torch cannot vectorise it, or its operands belong to different layers.
    """
    args, kwargs, first = of_one_layer(func, args, kwargs)
    n = len(first.branches)
    dims = tree_map(lambda leaf: 0 if _varies(leaf) else None, (args, kwargs))
    # The same random numbers for all branches: they are to differ by their head and nothing else.
    vectorised = torch.vmap(lambda args, kwargs: func(*args, **kwargs), dims, randomness="same")
    try:
        result = vectorised(*tree_map(lambda leaf: _branches(leaf, n) if _varies(leaf) else leaf, (args, kwargs)))
    except Exception as refused:
        error = refused
    else:
        return tree_map(lambda value: first.like(value) if isinstance(value, Tensor) else value, result)
    # What torch refuses of a plain tensor, too, it explains best itself.
    _on_average(func, args, kwargs)
    raise checks.cannot_apply(func, error) from error


def of_one_layer(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, HeadwiseTensor]:
    """Make all headwise operands belong to one layer: return the arguments, and an operand of that layer.

    Raises:
        HeadwiseError: two layers' operands both require a gradient.
    """
    found = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, HeadwiseTensor)]
    # Head j of a policy and head j of its values have nothing in common: a detached value (an advantage, a baseline)
    # enters the other layer's branches as its average, like a label.
    leaders = [value for value in found if value.branches.requires_grad] or found[:1]
    first = leaders[0]
    if any(other.layers != first.layers for other in leaders):
        checks.refuse_two_layers(func)

    def plain(value: Any) -> Any:
        return value.average if isinstance(value, HeadwiseTensor) and value.layers != first.layers else value

    return tree_map(plain, args), tree_map(plain, kwargs), first


def _varies(value: Any) -> bool:
    """Whether an operand may differ from branch to branch."""
    return isinstance(value, HeadwiseTensor) or (isinstance(value, Tensor) and value.requires_grad)


def _branches(value: Tensor, n: int) -> Tensor:
    """The branches of an operand that varies, ``[n, …]``: the gradient of a plain one comes from the average only."""
    if isinstance(value, HeadwiseTensor):
        return value.branches
    return torch.cat([value.unsqueeze(0), value.detach().expand(n - 1, *value.shape)])


# --- losses ---------------------------------------------------------------------------------------------------------


def _backward(func: Any, args: Any, kwargs: Any) -> None:
    """Start from the sum of all branches: ``gradient``, of the visible shape, arrives at each of them."""
    x, *rest = args
    if isinstance(x, (list, tuple)):  # torch.autograd.backward
        options = {key: value for key, value in kwargs.items() if value is not None}
        if rest or "grad_tensors" in options:
            raise HeadwiseError("backward() with grad_tensors is not implemented for Alrao heads: call loss.backward()")
        for loss in x:
            loss.backward(**options)
        return
    gradient = rest.pop(0) if rest else kwargs.pop("gradient", None)
    if gradient is None:
        if x.branches.dim() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        gradient = torch.ones_like(x.branches)
    else:
        gradient = average_of(gradient).expand_as(x.branches)
    # The average's branch and each head's depend on different parameters, so that one backward pass through their sum
    # gives each the gradient of its own loss.
    # A loss that no loss function made, such as a policy gradient's, is its own evidence.
    watch_term(x)
    x.branches.backward(gradient, *rest, **kwargs)


def _gradients(func: Any, args: Any, kwargs: Any) -> Any:
    """torch.autograd.grad: of the sum of all branches."""
    outputs, inputs = args
    if kwargs.pop("grad_outputs", None) is not None:
        raise HeadwiseError("grad() with grad_outputs is not implemented for the outputs of Alrao heads")
    sums = [value.branches.sum() if isinstance(value, HeadwiseTensor) else value for value in outputs]
    return torch.autograd.grad(sums, inputs, **kwargs)


def _sum(func: Any, args: Any, kwargs: Any) -> Any:
    """add, sub and stack: also join losses of different layers."""
    values = tree_flatten((args, kwargs))[0]
    losses = [value for value in values if isinstance(value, HeadwiseTensor) and value.branches.requires_grad]
    layers = frozenset[OutputLayer]().union(*(loss.layers for loss in losses))
    # The one operation with a meaning across layers: the gradients of a sum are those of its terms, so head j of the
    # policy and head j of the values each get the gradient of their own loss, whichever branch they share.
    if any(loss.layers != layers for loss in losses):
        checks.same_heads(func, [len(loss.branches) - 1 for loss in losses])
        for loss in losses:
            watch_term(loss)
        joined = {id(loss): type(loss).wrap(loss.branches, layers) for loss in losses}
        args, kwargs = tree_map(lambda value: joined.get(id(value), value), (args, kwargs))
    return _with_evidence(every_branch(func, args, kwargs), args)


def watch_term(loss: HeadwiseTensor) -> None:
    """Record what a loss, or one term of a sum of them, contributes, unless the layer has better evidence of it."""
    # To first order, if the term is not a loss but an output. A sum over several layers is no evidence for any of them:
    # its terms have been recorded one by one.
    if len(loss.layers) == 1 and not loss.evidence_recorded:
        record(loss, lambda: partial(_contributed, loss.branches.detach()), "loss")


def _multiply(func: Any, args: Any, kwargs: Any) -> Any:
    """mul: a product of losses is another loss."""
    return _with_evidence(every_branch(func, args, kwargs), args)


def _with_evidence(result: Any, args: Any) -> Any:
    """A loss and a number, as sum() begins with 0: it needs no more evidence than the loss itself."""
    known = any(isinstance(value, HeadwiseTensor) and value.evidence_recorded for value in args)
    result.evidence_recorded = known and not all(map(torch.is_tensor, args))
    return result


def _clamp(func: Any, args: Any, kwargs: Any) -> Any:
    """Clamp; only the average where the layer says so (see ``clamp_average_only`` of ``OutputHeads``)."""
    source, result = args[0], every_branch(func, args, kwargs)
    if isinstance(source, HeadwiseTensor) and all(layer.clamp_average_only for layer in source.layers):
        return source.like(torch.cat([result.branches[:1], source.branches[1:]]))
    return result


def _regression_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """Regression losses: also record by how much each branch missed its label."""
    output, label = (*args, kwargs.get("target"))[:2]

    def residuals() -> Losses:
        # The squared residual, output − label, whatever the loss does with it (Huber's clips its gradient): r_j and σ²
        # of the rules are mean squares.
        squares = every_branch(lambda a, b: (a - b).square(), (output, label), {}).branches.detach()
        if kwargs.get("reduction") == "none":
            # The gradient will show how much each datum counts: a mask may leave some out.
            return partial(weighted, squares)
        return squares.reshape(len(squares), -1).mean(1)

    return record(every_branch(func, args, kwargs), residuals)


def _likelihood_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """Classification losses: the negative log-likelihood of each branch is its evidence as it stands."""
    result = every_branch(func, args, kwargs)
    if kwargs.get("reduction") == "none":
        return record(result, lambda: partial(_counted, result.branches.detach()), "nll")
    return record(result, lambda: every_branch(func, args, {**kwargs, "reduction": "sum"}).branches.detach(), "nll")


def record(loss: HeadwiseTensor, evidence: Callable[[], Losses], name: str = "residual") -> HeadwiseTensor:
    """Let those layers of a loss that use losses as evidence watch what ``evidence`` computes of it."""
    for layer in loss.layers:
        if layer.rule.uses == "losses":
            layer.watch(loss.branches, evidence(), name)
            loss.evidence_recorded = True
    return loss


def weighted(values: Tensor, gradient: Tensor) -> Tensor | None:
    """Mean over each branch of ``values``, ``[1 + J, …]``, weighted as they enter the final loss; None if none does."""
    # One weight per datum for all branches, the average's: heads are compared on the same data.
    weights = gradient[0].abs()
    total = weights.sum()
    return (values * weights).reshape(len(values), -1).sum(1) / total if total else None


def _counted(values: Tensor, gradient: Tensor) -> Tensor:
    """Sum over each branch of those of ``values``, ``[1 + J, …]``, that enter the final loss."""
    # Not weighted: a log-likelihood is in nats, and a scale of the loss does not make data more likely.
    return (values * (gradient[0] != 0)).reshape(len(values), -1).sum(1)


def _contributed(values: Tensor, gradient: Tensor) -> Tensor:
    """Sum over each branch of ``values``, ``[1 + J, …]``, times the gradient at them.

    It knows what was done to them since: their sign, their scale, their reduction.
    """
    return (values * gradient).reshape(len(values), -1).sum(1)


# --- reading and writing --------------------------------------------------------------------------------------------


def _attribute(func: Any, x: HeadwiseTensor) -> Any:
    name = func.__self__.__name__
    if name in ("T", "mT", "H", "mH", "real", "imag"):
        return every_branch(lambda value: getattr(value, name), (x,), {})
    if name == "data":
        return (x.on_write or _detach)(func, (x,), {})
    return getattr(x.branches if name in ("requires_grad", "layout") else x.average, name)


def _detach(func: Any, args: Any, kwargs: Any) -> Any:
    """detach and data; a plain tensor where layers say so (see ``detach_average_only`` of ``OutputHeads``)."""
    x = args[0]
    if func.__name__ == "detach" and all(layer.detach_average_only for layer in x.layers):
        return x.average.detach()
    result = type(x).wrap(x.branches.detach(), x.layers)
    result.is_part = True  # it shares memory, though torch does not count a detached tensor as a view
    result.on_write = x.on_write
    return result


def _writes(name: str) -> bool:
    operator = name.startswith("__i") and name[3:] in _OPERATORS
    return name in ("__set__", "__setitem__") or operator or (name.endswith("_") and not name.endswith("__"))


def _in_place(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation that returns a new value, and its result in the place of the first operand."""
    target, name = args[0], func.__name__
    if not isinstance(target, HeadwiseTensor):
        raise HeadwiseError(
            f"{name}() cannot write the outputs of Alrao heads into a plain tensor in place; use torch.where"
        )
    if not torch.is_grad_enabled() and name != "__setitem__":
        raise HeadwiseError(f"{name}() cannot change the outputs of Alrao heads under no_grad: detach() them first")
    pure = getattr(Tensor, f"__{name[3:]}" if name.startswith("__i") else name[:-1], None)
    pure = _with_item if name == "__setitem__" else pure
    if not callable(pure):
        return every_branch(func, args, kwargs)
    # A part is overwritten where it lies, and backward may need what was there: so the operation gets a copy of it.
    before = type(target).wrap(target.branches.clone() if target.is_part else target.branches, target.layers)
    result = pure(*(before if value is target else value for value in args), **kwargs)
    if target.is_part:
        target.branches.copy_(result.branches)  # autograd knows of it in the value that this is a part of
    else:
        target.branches = result.branches
    target.layers = result.layers
    return target


def _with_item(x: HeadwiseTensor, index: Any, value: Any) -> Any:
    """A copy of ``x`` in which ``x[index]`` is ``value``."""

    def masked(x: Tensor, mask: Tensor, value: Any) -> Tensor:
        return x.masked_fill(mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), value)

    def written(x: Tensor, index: Any, value: Any) -> Tensor:
        x = x.clone()
        x[index] = value
        return x

    # Masks of the heads' own, as in torch's KL divergence, select another number of entries in each branch.
    has_masks = isinstance(index, HeadwiseTensor) and index.dtype is torch.bool
    return every_branch(masked if has_masks else written, (x, index, value), {})


def _deepcopy(func: Any, args: Any, kwargs: Any) -> Tensor:
    """The average's numbers: the graph behind them cannot be copied."""
    return args[0].average.detach().clone()


def _cast(func: Any, args: Any, kwargs: Any) -> Any:
    """to and type_as: another tensor only names a dtype and a device, and a plain one stays plain."""
    all_args = tree_map(lambda value: value.branches if isinstance(value, HeadwiseTensor) else value, (args, kwargs))
    result = func(*all_args[0], **all_args[1])
    return args[0].like(result) if isinstance(args[0], HeadwiseTensor) else result


# --- which function does what -----------------------------------------------------------------------------------------


OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {}
"""Operations that do more than apply the function to every branch, by name."""
for _handler, _names in {
    _sum: "add __add__ __radd__ sub subtract __sub__ rsub __rsub__ stack",
    _multiply: "mul multiply __mul__ __rmul__",
    _clamp: "clamp clip clamp_min clamp_max",
    _cast: "to type_as",
    _detach: "detach",
    _deepcopy: "__deepcopy__",
    _regression_loss: "mse_loss smooth_l1_loss huber_loss l1_loss",
    _likelihood_loss: "cross_entropy nll_loss",
    _backward: "backward",
    _gradients: "grad",
}.items():
    OPERATIONS.update(dict.fromkeys(_names.split(), _handler))
_OPERATORS = ("add__", "sub__", "mul__", "truediv__", "pow__", "and__", "or__")
_READS = """
    size dim ndimension numel nelement item numpy tolist __len__ __bool__ __float__ __int__ __index__ __format__
    __repr__ __str__ __array__ __contains__ __hash__ __reduce_ex__ is_floating_point is_complex is_tensor
    element_size stride storage_offset is_contiguous get_device type allclose equal is_same_size is_nonzero
    multinomial bernoulli normal poisson zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_full new_tensor argmax argmin _is_all_true _is_any_true"""
READS = frozenset(_READS.split())
"""Operations that give a plain answer, that of the average: shapes, numbers, random draws, choices of actions."""
