"""The duplicated output layer: J copies of a Linear layer, each with its own learning rate, and their average.

    Φ(x) = Σ_j a_j C_j(φ(x))        log η_j = log η_min + (j−1)/(J−1) · log(η_max/η_min)

The trunk φ learns from the loss of the average Φ alone, every head C_j from its own loss alone, the averaging weights
a_j from how well each head has been doing (averaging.py). Shapes: J heads, B batch dimensions, I inputs, O outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from alrao_rl.checks import one_of
from alrao_rl.core.averaging import Evidence, make_rule
from alrao_rl.core.rates import head_rates
from alrao_rl.headwise import HeadwiseTensor


def mix_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j a_j softmax(logits_j): log-probabilities of the mixture; ``[J, K, B]`` and ``[J]`` to ``[K, B]``."""
    return _weighted(torch.softmax(logits, 1), weights).clamp_min(_TINY).log()


def mix_bernoulli(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of the mixture Σ_j a_j σ(logits_j) of each component; ``[J, K, B]`` and ``[J]`` to ``[K, B]``."""
    yes, no = _weighted(torch.sigmoid(logits), weights), _weighted(torch.sigmoid(-logits), weights)
    return yes.clamp_min(_TINY).log() - no.clamp_min(_TINY).log()


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    return (weights @ values.reshape(len(values), -1)).view(values.shape[1:])


def all_finite(tensor: Tensor) -> bool:
    """Whether all is well, where looking is free: on a GPU, which would have to be waited for, always False."""
    return not tensor.is_cuda and math.isfinite(tensor.detach().sum().item())


MANY_PASSES = 100
"""Backward passes for one step: more than anyone accumulates."""
_TINY = torch.finfo(torch.float32).tiny
KINDS = ("values", "categorical", "bernoulli", "mean")
_LINEAR = ("values", "mean")


class OutputHeads(nn.Module):
    """J copies of an output ``Linear`` as one parameter θ, ``[J, P]``, and their average.

    With gradients enabled the output is a :class:`HeadwiseTensor` whose average branch sees the heads detached and
    whose heads' branches see the input detached. Under ``torch.no_grad()`` it is the plain average.

    A head whose output is not finite is left out of the average, its weight shared among the others.

    Args:
        layer: the layer to duplicate; head 1 keeps its weights.
        n_heads: J.
        lr_range: (η_min, η_max).
        kind: how heads are averaged: ``"values"`` and ``"mean"`` average outputs (``"mean"`` is the location of a
            policy, ``"values"`` an estimate of a label), ``"categorical"`` averages probabilities, giving
            log-probabilities, ``"bernoulli"`` averages the probability of each component, giving logits.
        rule: averaging rule, see :func:`~alrao_rl.core.averaging.make_rule`.
        splits: sizes of the independent categorical components of the output (default: one of all outputs).
        init: initialises a fresh copy of the layer in place (default: the layer's own ``reset_parameters``).
        extra: further parameters of the output that a head owns a copy of, such as a Gaussian policy's log_std.
        clamp_average_only: ``clamp`` leaves the heads' branches, as PPO's ``clip_range_vf`` needs: its band moves with
            the average, so that a head outside of it would have no gradient for ever.
    """

    theta: nn.Parameter
    rates: Tensor

    def __init__(
        self,
        layer: nn.Linear,
        n_heads: int,
        lr_range: tuple[float, float],
        kind: str = "values",
        rule: str | Mapping[str, Any] = "switch",
        splits: Sequence[int] | None = None,
        init: Callable[[nn.Linear], object] | None = None,
        extra: Tensor | None = None,
        clamp_average_only: bool = False,
    ) -> None:
        super().__init__()
        one_of("kind", kind, KINDS)
        self.n_heads, self.kind = n_heads, kind
        self.clamp_average_only = clamp_average_only
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.splits = list(splits) if splits is not None else [layer.out_features]
        if sum(self.splits) != layer.out_features:
            raise ValueError(f"splits are {self.splits}, expected sizes that add up to {layer.out_features} outputs")
        self._extra_shape = None if extra is None else extra.shape
        self._sizes = [layer.weight.numel(), 0 if layer.bias is None else layer.out_features]
        self._sizes.append(0 if extra is None else extra.numel())
        copies = [layer, *(_fresh(layer, init) for _ in range(n_heads - 1))]
        own = [[p.detach().flatten() for p in (copy.weight, copy.bias, extra) if p is not None] for copy in copies]
        self.theta = nn.Parameter(torch.stack([torch.cat(one) for one in own]))
        # A parameter, though nothing trains it by gradient descent: target networks copy parameters, not buffers.
        self.averaging_weights = nn.Parameter(torch.full((n_heads,), 1.0 / n_heads), requires_grad=False)
        self.register_buffer("rates", head_rates(n_heads, lr_range))
        self.rule = make_rule(rule, self.rates)
        self.rule.prepare(self.theta.shape[1])
        self.to(layer.weight)
        self.evidence = Evidence()

    @property
    def weight(self) -> Tensor:
        """View of every head's weight, ``[J, O, I]``."""
        return self._parts(self.theta)[0]

    @property
    def bias(self) -> Tensor | None:
        """View of every head's bias, ``[J, O]``, or None."""
        return self._parts(self.theta)[1]

    @property
    def extra(self) -> Tensor | None:
        """View of every head's extra parameter, ``[J, *extra.shape]``, or None."""
        return self._parts(self.theta)[2]

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weight, bias and extra parameter in ``theta``, ``[…, P]``."""
        weight, bias, extra = theta.split(self._sizes, -1)
        return (
            weight.unflatten(-1, (self.out_features, self.in_features)),
            bias if self._sizes[1] else None,
            None if self._extra_shape is None else extra.reshape(*extra.shape[:-1], *self._extra_shape),
        )

    def extra_repr(self) -> str:
        """Shapes and kind, for ``print(network)``."""
        return f"{self.in_features}, {self.out_features}, n_heads={self.n_heads}, kind={self.kind!r}"

    # --- forward ----------------------------------------------------------------------------------------------------

    def forward(self, features: Tensor) -> Tensor:
        """Average the heads' outputs: ``[…, I]`` to ``[…, O]``."""
        # Inside, the batch comes last: over rows as short as the outputs of a head torch works one at a time.
        x = features if features.dim() == 2 else features.reshape(-1, self.in_features)
        shape = (*features.shape[:-1], self.out_features)
        if not torch.is_grad_enabled():
            return self._average(x).t().reshape(shape)
        self._catch_gradient()
        own = self._outputs(x.detach(), self.theta)
        if self.kind == "categorical":
            own = own.view(self.n_heads, self.out_features, len(x))
            parts = [part.log_softmax(1) for part in own.split(self.splits, 1)]
            own = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(0, 1)
        branches = torch.cat([self._average(x), own])
        branches = branches.view(1 + self.n_heads, self.out_features, len(x)).transpose(1, 2)
        if features.dim() != 2:
            branches = branches.reshape(1 + self.n_heads, *shape)
        return HeadwiseTensor.wrap(branches, [self])

    def collapse(self) -> dict[str, Tensor | None]:
        """Weight and bias of the one ``Linear`` that computes the average of outputs, Σ_j a_j θ_j."""
        if self.kind not in _LINEAR:
            raise ValueError(f"heads of the kind {self.kind!r} average probabilities: no one layer computes that")
        theta, weights = self._usable()
        weight, bias, _ = self._parts(weights @ theta)
        return {"weight": weight, "bias": bias}

    def averaged_extra(self) -> Tensor:
        """The extra parameter (a log_std), averaged as the outputs are; headwise when gradients are enabled."""
        if self._extra_shape is None:
            raise AttributeError("this output layer has no extra parameter")
        theta, weights = self._usable()
        average = cast(Tensor, self._parts(weights @ theta)[2])
        if not torch.is_grad_enabled():
            return average
        self._catch_gradient()
        return HeadwiseTensor.wrap(torch.cat([average.unsqueeze(0), cast(Tensor, self.extra)]), [self])

    def _average(self, features: Tensor) -> Tensor:
        """Φ as a function of the features and of a, the heads' parameters detached: ``[B, I]`` to ``[O, B]``."""
        theta, weights = self._usable()
        if self.kind in _LINEAR:
            # Averaging outputs is averaging parameters: one layer instead of J.
            return self._outputs(features, weights @ theta)
        outputs = self._outputs(features, theta).view(self.n_heads, self.out_features, len(features))
        if self.kind == "bernoulli":
            return mix_bernoulli(outputs, weights)
        if len(self.splits) == 1:
            return mix_logits(outputs, weights)
        return torch.cat([mix_logits(part, weights) for part in outputs.split(self.splits, 1)])

    def _outputs(self, features: Tensor, theta: Tensor) -> Tensor:
        """Outputs of heads, ``[B, I]`` and ``[…, P]`` to ``[… · O, B]``, by one matrix product."""
        weight, bias, _ = theta.split(self._sizes, -1)
        weight = weight.reshape(-1, self.in_features)
        return torch.addmm(bias.reshape(-1, 1), weight, features.t()) if self._sizes[1] else weight @ features.t()

    def _usable(self) -> tuple[Tensor, Tensor]:
        """θ, detached, and averaging weights, without heads that are not finite.

        When the loss decides on a, the weights are a leaf whose gradient is kept as evidence.
        """
        theta, weights = self.theta.detach(), self.averaging_weights.detach()
        if not all_finite(theta):
            theta, weights = self._without_lost(theta, weights)
        if self.rule.uses == "gains" and torch.is_grad_enabled():
            weights = weights.clone().requires_grad_()
            weights.register_hook(lambda gradient: self.evidence.add("gains", -gradient))
        return theta, weights

    @staticmethod
    def _without_lost(theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Heads that are not finite as zeros, their weight shared among the others, by their weights if any."""
        finite = theta.isfinite().all(1)
        kept = weights * finite
        kept = kept / kept.sum()
        kept = torch.where(kept.isfinite(), kept, finite.to(kept) / finite.sum().clamp_min(1).to(kept))
        return torch.where(finite[:, None], theta, 0.0), kept

    # --- what arrives in the backward pass --------------------------------------------------------------------------

    def _catch_gradient(self) -> None:
        """Take the heads' gradient out of ``.grad`` as it arrives.

        Algorithms clip the global norm over all parameters; there one diverging head would starve the trunk and the
        others. The hook is checked in every forward pass because ``deepcopy`` drops it.
        """
        if self.theta.requires_grad and not self.theta._post_accumulate_grad_hooks:
            self.theta.register_post_accumulate_grad_hook(self._take_gradient)

    def _take_gradient(self, theta: Tensor) -> None:
        if theta.grad is not None:
            self.evidence.add("gradient", theta.grad)
        theta.grad = None
        self.evidence.passes += 1
        if self.evidence.passes == MANY_PASSES:
            warnings.warn(
                f"{MANY_PASSES} backward passes without a step of the Alrao optimizer: output heads learn only through "
                "it (policy.optimizer, or AlraoOptimizer of alrao_rl.core), not through another torch optimizer",
                stacklevel=2,
            )

    def watch(self, branches: Tensor, losses: Tensor, is_likelihood: bool = False) -> None:
        """Take ``losses``, ``[1 + J]``, as evidence once a backward pass runs through ``branches``."""
        if not branches.requires_grad:
            return

        name = "nll" if is_likelihood else "residual"
        branches.register_hook(lambda gradient: self.evidence.add(name, losses))

    def watch_loss(self, losses: Tensor, gradient: Tensor) -> None:
        """Take ``losses``, ``[1 + J, …]``, as they enter the final loss, as evidence if no loss function tells more."""
        self.evidence.add("loss", (losses * gradient).reshape(len(losses), -1).sum(1))

    def drop_evidence(self) -> None:
        """Forget gradients and evidence that no optimizer step has used."""
        self.evidence = Evidence()

    # --- updates ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update_averaging(self, gradient: Tensor) -> None:
        """Move the averaging weights by the evidence of this step, judged on outputs from before the step."""
        self.evidence.gradient = gradient
        self.averaging_weights.copy_(self.rule.step(self.averaging_weights, self.evidence))

    @torch.no_grad()
    def reclone(self, lost: Tensor) -> None:
        """Replace the heads where the mask ``lost``, ``[J]``, is true by the average Σ_j a_j θ_j of the finite ones.

        Branch-free, so that nothing waits for a GPU; without lost heads nothing changes, bit for bit.
        """
        theta, weights = self._without_lost(self.theta, self.averaging_weights)
        self.theta.copy_(torch.where(lost[:, None], weights @ theta, self.theta))
        self.rule.forget(lost)

    def stats(self) -> dict[str, Any]:
        """Weights and rates ``[J]``, the entropy of the weights in nats, the effective learning rate Π_j η_j^{a_j}."""
        weights = self.averaging_weights.detach().double().cpu()
        rates = self.rates.double().cpu()
        return {
            "weights": weights.numpy(),
            "rates": rates.numpy(),
            "entropy": float(torch.special.entr(weights).sum()),
            "effective_lr": float(torch.exp((weights * rates.log()).sum())),
        }


def _fresh(layer: nn.Linear, init: Callable[[nn.Linear], object] | None) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    if init is not None:
        init(copy)
    return copy.to(layer.weight)
