"""The duplicated output layer: J copies of a Linear layer, each with its own learning rate, and their average.

    Φ(x) = Σ_j a_j C_j(φ(x))        log η_j = log η_min + (j−1)/(J−1) · log(η_max/η_min)

The trunk φ learns from the loss of the average Φ alone, every head C_j from its own loss alone, the averaging weights
a_j from how well each head has been doing (averaging.py): docs/method.md, "One loss, J + 1 gradients". Shapes: J heads,
P parameters per head, B data, I inputs, O outputs. The functions of this file take any dimensions in front (``…``), as
of S networks at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from alrao_rl.checks import output_options, warn_of_unused_passes
from alrao_rl.core.averaging import AveragingRule, Evidence, Spec, make_rule
from alrao_rl.core.headwise import HeadwiseTensor, Losses
from alrao_rl.core.mixtures import by_component, mix_bernoulli, mix_logits
from alrao_rl.core.rates import head_rates

KINDS = ("values", "categorical", "bernoulli", "mean")
LINEAR = ("values", "mean")
"""Kinds whose average is that of the outputs; for the others it is that of probabilities."""
_uncompiled: list[Callable[[OutputHeads, Tensor, Tensor | None], Tensor]] = []
"""``_averaged`` wrapped in ``torch.compiler.disable``, made where it is needed: importing dynamo takes a second."""


def average_outputs(kind: str, splits: Sequence[int], outputs: Tensor, weights: Tensor) -> Tensor:
    """Φ from the outputs of every head, ``[…, J, O, B]`` and ``[…, J]`` to ``[…, O, B]``."""
    if kind in LINEAR:
        return (weights[..., None, None] * outputs).sum(-3)
    if kind == "bernoulli":
        return mix_bernoulli(outputs, weights)
    return by_component(mix_logits, splits, outputs, weights)


def average_heads(theta: Tensor, weights: Tensor) -> Tensor:
    """Σ_j a_j θ_j, ``[…, J, P]`` and ``[…, J]`` to ``[…, P]``."""
    return (weights.unsqueeze(-1) * theta).sum(-2)


def without_lost(theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """θ and averaging weights without the heads that are not finite: these are zeros, their weight goes to the others.

    ``[…, J, P]`` and ``[…, J]`` to the same. The others share it in proportion to their weights, equally if these are
    all 0.
    """
    finite = theta.isfinite().all(-1)
    kept = weights * finite
    kept = kept / kept.sum(-1, keepdim=True)
    equal = finite.to(kept) / finite.sum(-1, keepdim=True).clamp_min(1).to(kept)
    kept = torch.where(kept.isfinite(), kept, equal)
    # where, not a product: 0 · NaN is NaN. And mixtures take the logarithm of every weight, so none may be exactly 0.
    return torch.where(finite.unsqueeze(-1), theta, 0.0), kept.clamp_min(torch.finfo(kept.dtype).tiny)


@dataclass(frozen=True)
class Output:
    """How one output layer is averaged.

    Args:
        kind: ``"values"`` and ``"mean"`` average outputs (``"mean"`` is the location of a policy, ``"values"`` an
            estimate of a label), ``"categorical"`` averages probabilities, giving log-probabilities, ``"bernoulli"``
            averages the probability of each component, giving logits.
        rule: averaging rule, see :func:`~alrao_rl.core.averaging.make_rule`; None takes the configuration's
            ``value_averaging`` for ``kind="values"`` and its ``policy_averaging`` otherwise.
        splits: sizes of the independent categorical components of the output (default: one of all outputs).
        init: initialises a fresh copy of the layer in place (default: the layer's own ``reset_parameters``).
        extra: further parameters of the output that each head has a copy of, such as a Gaussian policy's log_std.
        clamp_average_only: ``clamp`` leaves the heads' branches, as PPO's ``clip_range_vf`` needs: its band moves with
            the average, so that a head outside of it would never have a gradient again.
        detach_average_only: ``detach`` gives the average as a plain tensor: what SAC's entropy coefficient learns from,
            which is one for all heads.

    Raises:
        ValueError, TypeError: an argument is not one of these.
    """

    kind: str = "values"
    rule: Spec | None = None
    splits: Sequence[int] | None = None
    init: Callable[[nn.Linear], object] | None = None
    extra: Tensor | None = None
    clamp_average_only: bool = False
    detach_average_only: bool = False

    def __post_init__(self) -> None:
        output_options(self.kind, KINDS, self.splits, self.init, self.extra)


class OutputHeads(nn.Module):
    """J copies of an output ``Linear`` as one parameter θ, ``[J, P]``, and their average.

    With gradients enabled the output is a :class:`~alrao_rl.core.headwise.HeadwiseTensor` whose average branch sees the
    heads detached and whose heads' branches see the input detached. Under ``torch.no_grad()`` it is the plain average.

    A head whose parameters are not finite is left out of the average, its weight shared among the others.

    Args:
        layer: the layer to duplicate; head 1 keeps its weights.
        n_heads: J.
        lr_range: (η_min, η_max).
        args, kwargs: how they are averaged, the arguments of :class:`Output`; ``rule`` is ``"switch"`` by default.

    Raises:
        ValueError: an unknown kind or rule, or ``splits`` that do not add up to the outputs.
    """

    tensor = HeadwiseTensor
    """The class of the outputs."""
    make_rule: Callable[..., AveragingRule] = staticmethod(make_rule)
    theta: nn.Parameter
    """θ, ``[J, P]``: for each output its I weights and its bias, then the extra parameter."""
    averaging_weights: nn.Parameter
    """a, ``[J]``."""
    rates: Tensor
    """η_j, ``[J]``."""

    def __init__(
        self, layer: nn.Linear, n_heads: int, lr_range: tuple[float, float], *args: Any, **kwargs: Any
    ) -> None:
        super().__init__()
        output = Output(*args, **kwargs)
        self.n_heads, self.kind = n_heads, output.kind
        self.clamp_average_only, self.detach_average_only = output.clamp_average_only, output.detach_average_only
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.splits = list(output.splits or [layer.out_features])
        if sum(self.splits) != layer.out_features:
            raise ValueError(f"splits are {self.splits}, expected sizes that add up to {layer.out_features} outputs")
        extra = torch.empty(0) if output.extra is None else output.extra
        self._extra_shape = None if output.extra is None else extra.shape
        self._has_bias = layer.bias is not None
        self._columns = self.in_features + self._has_bias
        self._n_matrix = self.out_features * self._columns
        copies = [layer, *(_fresh(layer, output.init) for _ in range(n_heads - 1))]
        own = [torch.cat([_matrix(copy).flatten(), extra.to(layer.weight).flatten()]) for copy in copies]
        # One parameter for all heads, so that one product gives all outputs and one row is all there is of a head.
        self.theta = nn.Parameter(torch.stack(own).detach())
        # A parameter, though nothing trains it by gradient descent: target networks copy parameters, not buffers.
        self.averaging_weights = nn.Parameter(torch.full((n_heads,), 1.0 / n_heads), requires_grad=False)
        self.register_buffer("rates", head_rates(n_heads, lr_range))
        self.rule = self.make_rule("switch" if output.rule is None else output.rule, self.rates)
        self.rule.prepare(self.theta.shape[1])
        self.to(layer.weight)
        self.register_load_state_dict_post_hook(make_distribution)
        self._evidence = Evidence()
        self._passes = 0

    @property
    def weight(self) -> Tensor:
        """View of every head's weight, ``[J, O, I]``."""
        return self._split(self._rows(self.theta))[0]

    @property
    def bias(self) -> Tensor | None:
        """View of every head's bias, ``[J, O]``, or None."""
        return self._rows(self.theta)[..., -1] if self._has_bias else None

    @property
    def extra(self) -> Tensor | None:
        """View of every head's extra parameter, ``[J, *extra.shape]``, or None."""
        return None if self._extra_shape is None else self._extra(self.theta)

    def _rows(self, theta: Tensor) -> Tensor:
        """View of the rows of each head's matrix, ``[…, P]`` to ``[…, O, columns]``."""
        return theta[..., : self._n_matrix].view(*theta.shape[:-1], self.out_features, self._columns)

    def _extra(self, theta: Tensor) -> Tensor:
        """View of each head's extra parameter, ``[…, P]`` to ``[…, *extra.shape]``."""
        return theta[..., self._n_matrix :].unflatten(-1, cast(torch.Size, self._extra_shape))

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Views of weight and bias, ``[…, columns]`` to ``[…, I]`` and ``[…, 1]``."""
        weight = rows.narrow(-1, 0, self.in_features)
        return weight, rows.narrow(-1, self.in_features, 1) if self._has_bias else None

    def extra_repr(self) -> str:
        """Shapes and kind, for ``print(network)``."""
        return f"{self.in_features}, {self.out_features}, n_heads={self.n_heads}, kind={self.kind!r}"

    # --- forward ----------------------------------------------------------------------------------------------------

    def forward(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Average the heads' outputs: ``[…, I]`` to ``[…, O]``.

        ``offset``, ``[…, O]``, is added to the outputs of every head before they are averaged: a mask of classes.
        """
        # torch.compile cannot trace a loss with several branches, so it has to break its graph here.
        if torch.compiler.is_compiling():
            if not _uncompiled:
                _uncompiled.append(torch.compiler.disable(OutputHeads._averaged))
            return _uncompiled[0](self, features, offset)
        return self._averaged(features, offset)

    def _averaged(self, features: Tensor, offset: Tensor | None) -> Tensor:
        if features.dim() != 2:
            flat = None if offset is None else offset.reshape(-1, self.out_features)
            output = self._averaged(features.reshape(-1, self.in_features), flat)
            return output.reshape(*features.shape[:-1], self.out_features)
        return self._forward(features, offset, *self._finite_heads())

    def _forward(self, features: Tensor, offset: Tensor | None, theta: Tensor, weights: Tensor) -> Tensor:
        """Average, ``[B, O]``, or all branches, ``[1 + J, B, O]``, from features ``[B, I]``, θ and a."""
        is_function = self._is_function()
        # The average's branch: the gradient of its loss reaches the trunk through the features, and a, but no head.
        held = self._outputs(features, offset, theta if is_function else theta.detach())  # [J, O, B]
        average = average_outputs(self.kind, self.splits, held, weights).t()
        if not torch.is_grad_enabled() or is_function:
            return average
        # The heads' branches: the gradient of head j's loss reaches θ_j alone, and no trunk.
        own = self._outputs(features.detach(), offset, theta)  # [J, O, B]
        if self.kind == "categorical":
            # As the average, which is a mixture of these.
            own = by_component(lambda part: part.log_softmax(-2), self.splits, own)
        return self.tensor.wrap(torch.cat([average.unsqueeze(0), own.transpose(1, 2)]), [self])

    def _outputs(self, x: Tensor, offset: Tensor | None, theta: Tensor) -> Tensor:
        """Outputs of every head: ``[B, I]`` to ``[J, O, B]``."""
        weight, bias = self._split(self._rows(theta))
        outputs = weight @ x.t()
        outputs = outputs if bias is None else outputs + bias
        return outputs if offset is None else outputs + offset.t()

    def averaged_extra(self) -> Tensor:
        """The extra parameter (a log_std), averaged as outputs are; headwise when gradients are enabled."""
        if self._extra_shape is None:
            raise AttributeError("this output layer has no extra parameter")
        return self._averaged_extra(*self._finite_heads())

    def _averaged_extra(self, theta: Tensor, weights: Tensor) -> Tensor:
        own, is_function = self._extra(theta), self._is_function()
        average = average_heads((own if is_function else own.detach()).flatten(1), weights).view(own.shape[1:])
        if not torch.is_grad_enabled() or is_function:
            return average
        return self.tensor.wrap(torch.cat([average.unsqueeze(0), own]), [self])

    def collapse(self) -> dict[str, Tensor | None]:
        """Weight ``[O, I]`` and bias ``[O]`` of the one ``Linear`` that computes the average, Σ_j a_j θ_j.

        Raises:
            ValueError: the heads' probabilities are averaged, which is more than one layer.
        """
        if self.kind not in LINEAR:
            raise ValueError(f"heads of the kind {self.kind!r} average probabilities: no one layer computes that")
        theta, weights = self._finite_heads()
        weight, bias = self._split(self._rows(self._mean(theta.detach(), weights.detach())))
        return {"weight": weight, "bias": None if bias is None else bias.squeeze(1)}

    _mean = staticmethod(average_heads)

    def _is_function(self) -> bool:
        """Whether this is called as a function of its parameters, by torch.func, a trace or functional_call.

        Then it is the plain average, differentiable in all it depends on: nothing is learned from such a call.
        """
        transformed = torch.jit.is_tracing() or bool(retrieve_all_functorch_interpreters())  # type: ignore[attr-defined]
        return transformed or not isinstance(self.theta, nn.Parameter)

    def _finite_heads(self) -> tuple[Tensor, Tensor]:
        """θ and averaging weights, non-finite heads masked out; the weights require grad if the rule needs ∂ℓ/∂a."""
        theta: Tensor = self.theta
        if self._is_function():
            # No branch on values, which a trace does not have.
            kept, weights = without_lost(theta, self.averaging_weights)
            return kept, torch.where(theta.isfinite().all(), self.averaging_weights, weights)
        # Here and not in __init__: copies of a network lose their hooks.
        if theta.requires_grad and not self.theta._post_accumulate_grad_hooks:
            self.theta.register_post_accumulate_grad_hook(self._take_gradient)
        weights = self.averaging_weights.detach()
        if not theta.detach().isfinite().all():
            theta, weights = without_lost(theta, weights)
        if self.rule.uses == "gains" and torch.is_grad_enabled():
            # A clone, so that its gradient −g_j arrives here and not in the .grad of a parameter.
            weights = weights.clone().requires_grad_()
            weights.register_hook(lambda gradient: self._evidence.add("gains", -gradient))
        return theta, weights

    # --- what arrives in the backward pass --------------------------------------------------------------------------

    @property
    def evidence(self) -> Evidence:
        """What has arrived since the last step."""
        return self._evidence

    @property
    def gradient(self) -> Tensor | None:
        """Gradient of θ, ``[J, P]``; None if none has arrived since the last step."""
        return self._evidence.gradient

    def _take_gradient(self, theta: Tensor) -> None:
        """Move the heads' gradient from ``.grad`` to the evidence."""
        # Algorithms clip the norm over all .grad: there one diverging head would starve the trunk and the others.
        if theta.grad is not None:
            self._evidence.add("gradient", theta.grad)
        theta.grad = None
        self._passes += 1
        warn_of_unused_passes(self._passes)

    def watch(self, branches: Tensor, losses: Losses, name: str = "residual") -> None:
        """Record ``losses`` as evidence once a backward pass runs through ``branches``.

        Args:
            branches: the branches of a loss, ``[1 + J, …]``.
            losses: ``[1 + J]``, or a function that makes them of the gradient that arrives at ``branches``; None of it
                is no evidence.
            name: which field of :class:`~alrao_rl.core.averaging.Evidence` they are.
        """
        if not branches.requires_grad:
            return

        def take(gradient: Tensor) -> None:
            found = losses if isinstance(losses, Tensor) else losses(gradient)
            if found is not None:
                self._evidence.add(name, found.to(self.theta.dtype))

        # Only with the backward pass: a loss that is logged and not learned from is no evidence.
        branches.register_hook(take)

    def drop_evidence(self) -> None:
        """Forget gradients and evidence that no optimizer step has used."""
        self._evidence.clear()
        self._passes = 0

    # --- updates ----------------------------------------------------------------------------------------------------

    def update_averaging(self, gradient: Tensor) -> None:
        """Move the averaging weights by the evidence of this step, judged on outputs from before the step.

        ``gradient``, ``[J, P]``, is that of the heads, finite.
        """
        self.rule.update(self.averaging_weights.detach(), replace(self.evidence, gradient=gradient))

    @torch.no_grad()
    def reclone(self, lost: Tensor) -> None:
        """Replace the heads where the mask ``lost``, ``[J]``, is true by the average Σ_j a_j θ_j of the finite ones.

        Without lost heads nothing changes, bit for bit.
        """
        theta, weights = without_lost(self.theta, self.averaging_weights)
        self.theta.copy_(torch.where(lost[:, None], self._mean(theta, weights), self.theta))
        self.rule.forget(lost)


@torch.no_grad()
def make_distribution(layer: OutputHeads, *_: object) -> None:
    """Make the averaging weights non-negative with sum 1 again, after noise on all parameters for example."""
    weights = layer.averaging_weights
    if not (math.isclose(weights.sum().item(), 1.0, abs_tol=1e-3) and (weights >= 0).all()):
        weights.nan_to_num_(0.0, 0.0, 0.0).clamp_(min=torch.finfo(weights.dtype).tiny)
        weights.div_(weights.sum())


def _matrix(layer: nn.Linear) -> Tensor:
    """Weight and bias of a layer side by side, ``[O, columns]``."""
    return layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1)


def _fresh(layer: nn.Linear, init: Callable[[nn.Linear], object] | None) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    if init is not None:
        init(copy)
    return copy.to(layer.weight)
