"""The duplicated output layer: J copies of a Linear layer, each with its own learning rate, and their average.

    Φ(x) = Σ_j a_j C_j(φ(x))        log η_j = log η_min + (j−1)/(J−1) · log(η_max/η_min)

The trunk φ learns from the loss of the average Φ alone, every head C_j from its own loss alone, the averaging weights
a_j from how well each head has been doing (averaging.py). Shapes: J heads, B batch dimensions, I inputs, O outputs.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from alrao_rl.checks import one_of
from alrao_rl.compiled.branches import Branches, Kernel
from alrao_rl.core.averaging import Evidence, make_rule
from alrao_rl.core.rates import head_rates
from alrao_rl.headwise import HeadwiseTensor
from alrao_rl.mixtures import mix_bernoulli, mix_logits


def all_finite(tensor: Tensor) -> bool:
    """Whether all is well. On a GPU this waits for it: for less time than the dozens of kernels that need not know."""
    return math.isfinite((tensor.sum() if tensor.dim() else tensor).item())


MANY_PASSES = 100
"""Backward passes for one step: more than anyone accumulates."""
KINDS = ("values", "categorical", "bernoulli", "mean")
_LINEAR = ("values", "mean")
_uncompiled: list[Callable[[OutputHeads, Tensor, Tensor | None], Tensor]] = []
"""Filled with :meth:`OutputHeads._averaged` past torch.compile, once somebody has loaded it: loading takes a second."""


class OutputHeads(nn.Module):
    """J copies of an output ``Linear`` as one parameter θ, ``[J, P]``, and their average.

    With gradients enabled the output is a :class:`HeadwiseTensor` whose average branch sees the heads detached and
    whose heads' branches see the input detached. Under ``torch.no_grad()`` it is the plain average.

    A head whose parameters are not finite is left out of the average, its weight shared among the others.

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
    _flat_extra: Tensor
    _held: tuple[Tensor, Tensor]
    _kernel: Kernel | None = None
    _leaves: list[Tensor]
    _matrix: tuple[Tensor, Tensor | None]

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
        # A head is the rows of its matrix, the bias of every output behind its weights, and then the extra parameter.
        self._columns = layer.in_features + (layer.bias is not None)
        self._n_matrix = self.out_features * self._columns
        copies = [layer, *(_fresh(layer, init) for _ in range(n_heads - 1))]
        own = [torch.cat([_matrix(copy).flatten(), *([] if extra is None else [extra.flatten()])]) for copy in copies]
        self.theta = nn.Parameter(torch.stack(own).detach())
        # A parameter, though nothing trains it by gradient descent: target networks copy parameters, not buffers.
        self.averaging_weights = nn.Parameter(torch.full((n_heads,), 1.0 / n_heads), requires_grad=False)
        self.register_buffer("rates", head_rates(n_heads, lr_range))
        self.rule = make_rule(rule, self.rates)
        self.rule.prepare(self.theta.shape[1])
        self.to(layer.weight)
        self.register_load_state_dict_post_hook(_make_distribution)
        self._evidence = Evidence()
        self._place: tuple[Any, ...] = ()
        self._finite = -1
        self._warned = False

    @property
    def weight(self) -> Tensor:
        """View of every head's weight, ``[J, O, I]``."""
        return self._rows(self.theta)[..., : self.in_features]

    @property
    def bias(self) -> Tensor | None:
        """View of every head's bias, ``[J, O]``, or None."""
        return self._rows(self.theta)[..., -1] if self._has_bias else None

    @property
    def extra(self) -> Tensor | None:
        """View of every head's extra parameter, ``[J, *extra.shape]``, or None."""
        return None if self._extra_shape is None else self._extra(self.theta)

    @property
    def _has_bias(self) -> bool:
        return self._columns > self.in_features

    def _rows(self, theta: Tensor) -> Tensor:
        """View of the rows of each head's matrix, ``[…, P]`` to ``[…, O, columns]``."""
        return theta[..., : self._n_matrix].unflatten(-1, (self.out_features, self._columns))

    def _extra(self, theta: Tensor) -> Tensor:
        """View of each head's extra parameter, ``[…, P]`` to ``[…, *extra.shape]``."""
        return theta[..., self._n_matrix :].unflatten(-1, cast(torch.Size, self._extra_shape))

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Views of weight and bias, ``[…, columns]`` to ``[…, I]`` and ``[…, 1]``."""
        if not self._has_bias:
            return rows, None
        return rows.narrow(-1, 0, self.in_features), rows.narrow(-1, self.in_features, 1)

    def extra_repr(self) -> str:
        """Shapes and kind, for ``print(network)``."""
        return f"{self.in_features}, {self.out_features}, n_heads={self.n_heads}, kind={self.kind!r}"

    # --- forward ----------------------------------------------------------------------------------------------------

    def forward(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """Average the heads' outputs: ``[…, I]`` to ``[…, O]``.

        ``offset``, ``[…, O]``, is added to the outputs of every head before they are averaged: a mask of classes.
        """
        if "torch._dynamo" in sys.modules:
            if not _uncompiled:
                _uncompiled.append(torch.compiler.disable(OutputHeads._averaged))
            return _uncompiled[0](self, features, offset)
        return self._averaged(features, offset)

    def _averaged(self, features: Tensor, offset: Tensor | None) -> Tensor:
        if features.dim() != 2:
            flat = None if offset is None else offset.reshape(-1, self.out_features)
            output = self._averaged(features.reshape(-1, self.in_features), flat)
            return output.reshape(*features.shape[:-1], self.out_features)
        return self._forward(features, offset, *self._usable())

    def with_extra(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The averaged outputs, ``[B, I]`` to ``[B, O]``, and :meth:`averaged_extra`, in one look at the parameters."""
        usable = self._usable()
        return self._forward(features, None, *usable), self._averaged_extra(*usable)

    def _forward(self, features: Tensor, offset: Tensor | None, theta: Tensor, weights: Tensor) -> Tensor:
        kernel = self._kernel if offset is None and self._is_held(theta) else None
        if kernel is not None and kernel.serves(features):
            if not torch.is_grad_enabled():
                return kernel.average(features, theta, weights).t()
            weight, bias = self._leaves[0], self._leaves[1] if self._has_bias else None
            branches = Branches.apply(features, weight, bias, weights, theta, kernel)
            return HeadwiseTensor.wrap(branches.transpose(1, 2), self._layers)
        offset = None if offset is None else offset.t()
        average = self._average(features, offset, theta, weights)
        average = average if self.kind in _LINEAR else average.t()
        if not torch.is_grad_enabled() or self._is_function():
            return average
        # Inside, the batch comes last: over rows as short as the outputs of a head torch works one at a time.
        branches = torch.cat([average.t().unsqueeze(0), self._own(features.detach(), offset)])
        return HeadwiseTensor.wrap(branches.transpose(1, 2), self._layers)

    def collapse(self) -> dict[str, Tensor | None]:
        """Weight and bias of the one ``Linear`` that computes the average of outputs, Σ_j a_j θ_j."""
        if self.kind not in _LINEAR:
            raise ValueError(f"heads of the kind {self.kind!r} average probabilities: no one layer computes that")
        theta, weights = self._usable()
        weight, bias = self._split(self._rows(weights.detach() @ theta))
        return {"weight": weight, "bias": None if bias is None else bias.squeeze(1)}

    def usable(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the average is made of, without heads that are not finite: weights, ``[J, O, I]``, biases, and a."""
        theta, weights = self._usable()
        return *self._split(self._rows(theta)), weights.detach()

    def averaged_extra(self) -> Tensor:
        """The extra parameter (a log_std), averaged as the outputs are; headwise when gradients are enabled."""
        if self._extra_shape is None:
            raise AttributeError("this output layer has no extra parameter")
        return self._averaged_extra(*self._usable())

    def _averaged_extra(self, theta: Tensor, weights: Tensor) -> Tensor:
        assert self._extra_shape is not None
        average = weights @ (self._flat_extra if self._is_held(theta) else theta[:, self._n_matrix :])
        if not torch.is_grad_enabled() or self._is_function():
            return average.view(self._extra_shape)
        return HeadwiseTensor.wrap(torch.cat([average.view(1, *self._extra_shape), self._leaves[-1]]), self._layers)

    def _average(self, x: Tensor, offset: Tensor | None, theta: Tensor, weights: Tensor) -> Tensor:
        """Φ as a function of the features and of a, the heads' parameters held.

        ``[B, I]`` to ``[B, O]`` for linear kinds, to ``[O, B]`` for others: as it is computed.
        """
        if self.kind in _LINEAR:
            # Averaging outputs is averaging parameters: one layer instead of J.
            averaged = weights @ theta
            if self._extra_shape is not None:
                averaged = averaged[: self._n_matrix]
            rows = averaged.view(self.out_features, self._columns)
            if not self._has_bias:
                output = nn.functional.linear(x, rows)
            else:
                bias = rows.select(1, self.in_features)
                output = nn.functional.linear(x, rows.narrow(1, 0, self.in_features), bias)
            return output if offset is None else output + offset.t()
        matrix = self._matrix if self._is_held(theta) else self._split(self._joint(theta))
        logits = self._outputs(x, *matrix, offset)
        if self.kind == "bernoulli":
            return mix_bernoulli(logits, weights)
        if len(self.splits) == 1:
            return mix_logits(logits, weights)
        return torch.cat([mix_logits(part, weights) for part in logits.split(self.splits, 1)])

    def _own(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """Outputs of the heads, features held: ``[B, I]`` to ``[J, O, B]``; categorical ones as log-probabilities."""
        own = self._outputs(x, self._leaves[0], self._leaves[1] if self._has_bias else None, offset)
        if self.kind != "categorical":
            return own
        if len(self.splits) == 1:
            return own.log_softmax(1)
        return torch.cat([part.log_softmax(1) for part in own.split(self.splits, 1)], 1)

    def _outputs(self, x: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor | None) -> Tensor:
        """``[B, I]`` to ``[J, O, B]`` by weight and bias of :meth:`_joint` rows, ``[J · O, …]`` or ``[J, O, …]``."""
        if weight.dim() == 3:  # with an extra parameter behind its rows a head's matrix does not touch the next one's
            inputs = x.t().expand(self.n_heads, -1, -1)
            outputs = weight @ inputs if bias is None else torch.baddbmm(bias, weight, inputs)
        else:
            outputs = weight @ x.t() if bias is None else torch.addmm(bias, weight, x.t())
            outputs = outputs.view(self.n_heads, self.out_features, x.shape[0])
        return outputs if offset is None else outputs + offset

    def _joint(self, theta: Tensor) -> Tensor:
        """View of the rows of all heads as one matrix where they are one, ``[J · O, columns]``; else ``[J, O, …]``."""
        return theta.view(-1, self._columns) if self._extra_shape is None else self._rows(theta)

    # The graph ends at aliases of the parts of θ, and of a, so that no gradient arrives in ``.grad`` of the parameters.
    # Algorithms clip the global norm over all parameters; there one diverging head would starve the trunk and the
    # others. Aliases cost nothing, where views in the graph and hooks take longer than the layer. They hold as long as
    # the memory they look at: parameters that were moved, copied or replaced get new ones.

    def _find(self) -> None:
        """Make the aliases, unless they are there."""
        theta, weights = self._parameters["theta"], self._parameters["averaging_weights"]
        place = (theta.data_ptr(), theta.requires_grad, weights.data_ptr(), theta.numel(), weights.numel())  # type: ignore[union-attr]
        if place == self._place:
            if (gradient := self._leaves[0].grad) is not None and gradient._version >= MANY_PASSES:
                self._warn_of_passes()
            return
        _make_distribution(self)
        if not self.theta.is_contiguous():
            with torch.no_grad():
                self.theta.data = self.theta.data.contiguous()
        held = self.theta.detach(), self.averaging_weights.detach()
        matrix = self._split(self._joint(held[0]))
        parts = [part for part in matrix if part is not None]
        if self._extra_shape is not None:
            parts.append(self._extra(held[0]))
        leaves = [part.detach().requires_grad_(self.theta.requires_grad) for part in parts]
        decides = held[1].detach().requires_grad_(self.rule.uses == "gains")
        kind = "linear" if self.kind in _LINEAR else self.kind
        served = kind == "linear" or (kind == "categorical" and len(self.splits) == 1)
        shape = self.out_features, self.in_features, self._has_bias
        kernel = Kernel.of(kind, *held, *shape) if served else None
        if self.theta.requires_grad and not self.theta._post_accumulate_grad_hooks:
            self.theta.register_post_accumulate_grad_hook(self._take_gradient)
        # All at once: an exception before, as where there is no memory left, has changed nothing.
        self._keep_evidence()
        self._held, self._matrix, self._leaves, self._weights, self._kernel = held, matrix, leaves, decides, kernel
        self._flat_extra, self._layers = held[0][:, self._n_matrix :], frozenset([self])
        self._place, self._finite = (self.theta.data_ptr(), *place[1:]), -1

    def _keep_evidence(self) -> None:
        """Keep what has arrived at aliases that are given up."""
        for name, value in (("gradient", self.gradient), ("gains", self._gains())):
            setattr(self._evidence, name, None if value is None else value.to(self.theta))

    def __getstate__(self) -> dict[str, Any]:
        aliases = ("_held", "_matrix", "_flat_extra", "_leaves", "_weights", "_layers", "_kernel")
        state = {key: value for key, value in self.__dict__.items() if key not in aliases}
        return state | {"_place": (), "_evidence": self.evidence}

    def _warn_of_passes(self) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{MANY_PASSES} backward passes without a step of the Alrao optimizer: output heads learn only through it "
            "(policy.optimizer, or AlraoOptimizer of alrao_rl.core), not through another torch optimizer",
            stacklevel=3,
        )

    def _is_held(self, theta: Tensor) -> bool:
        return bool(self._place) and theta is self._held[0]

    def _is_function(self) -> bool:
        """Whether this is called as a function of its parameters, by torch.func, a trace or functional_call.

        Then it is the plain average, with the derivatives of that: nothing is learned from what comes back.
        """
        if torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
            return True
        return not isinstance(self._parameters["theta"], nn.Parameter)

    def _usable(self) -> tuple[Tensor, Tensor]:
        """θ, held, and a, without heads that are not finite; a is a leaf where the loss decides on it."""
        if self._is_function():  # to which an alias would be a constant
            finite = self.theta.isfinite().all()
            theta, weights = self._without_lost(self.theta, self.averaging_weights)
            return theta, torch.where(finite, self.averaging_weights, weights)
        self._find()
        theta, weights = self._held
        decides = self.rule.uses == "gains" and torch.is_grad_enabled()
        if self._finite != theta._version:  # looking again takes as long as a small layer
            if not all_finite(theta):
                theta, weights = self._without_lost(theta, weights)
                if decides:
                    weights.requires_grad_().register_hook(lambda gradient: self._evidence.add("gains", -gradient))
                return theta, weights
            self.mark_finite()
        return theta, self._weights if decides else weights

    def known_finite(self) -> bool:
        """Whether θ is as it was when last seen finite."""
        return bool(self._place) and self._finite == self._held[0]._version

    def mark_finite(self) -> None:
        """Note that θ is finite as it is; what is written past its version counter, through ``.data``, is not seen."""
        self.__dict__["_finite"] = self._held[0]._version  # past nn.Module's search for parameters

    @staticmethod
    def _without_lost(theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Heads that are not finite as zeros, their weight shared among the others, by their weights if any.

        No weight is quite 0, which has no logarithm.
        """
        finite = theta.isfinite().all(1)
        kept = weights * finite
        kept = kept / kept.sum()
        kept = torch.where(kept.isfinite(), kept, finite.to(kept) / finite.sum().clamp_min(1).to(kept))
        return torch.where(finite[:, None], theta, 0.0), kept.clamp_min(torch.finfo(kept.dtype).tiny)

    # --- what arrives in the backward pass --------------------------------------------------------------------------

    @property
    def evidence(self) -> Evidence:
        """What has arrived since the last step."""
        return replace(self._evidence, gradient=self.gradient, gains=self._gains())

    @property
    def gradient(self) -> Tensor | None:
        """Gradient of θ, ``[J, P]``; None if none has arrived since the last step."""
        gradients = [leaf.grad for leaf in self._leaves] if self._place else []
        if all([gradient is None for gradient in gradients]):
            return self._evidence.gradient
        parts = [torch.zeros_like(x) if x.grad is None else x.grad for x in self._leaves]
        extra = [] if self._extra_shape is None else [parts.pop().flatten(1)]
        rows = torch.cat(parts, -1).view(self.n_heads, -1)
        gradient = torch.cat([rows, *extra], 1) if extra else rows
        return gradient if self._evidence.gradient is None else gradient + self._evidence.gradient

    def leaf_gradients(self) -> list[Tensor | None] | None:
        """The gradient as it has arrived, a piece for each of :meth:`parts`; None where it arrived otherwise."""
        if not self._place or self._evidence.gradient is not None:
            return None
        gradients = [leaf.grad for leaf in self._leaves]
        missing = sum([gradient is None for gradient in gradients])
        return gradients if missing in (0, len(gradients)) else None

    def parts(self, offset: int) -> list[tuple[int, ...]]:
        """Where each piece goes in a flat vector that has θ at ``offset``: see ``Part`` of ``kernels.c``."""
        n, rows, columns = self.theta.shape[1], self.out_features, self._columns
        parts: list[tuple[int, ...]] = [(offset, self.n_heads, n, rows, columns, self.in_features)]
        if self._has_bias:
            parts.append((offset + self.in_features, self.n_heads, n, rows, columns, 1))
        if self._extra_shape is not None:
            parts.append((offset + self._n_matrix, self.n_heads, n, 1, 0, n - self._n_matrix))
        return parts

    def _gains(self) -> Tensor | None:
        """−∂ℓ/∂a, ``[J]``."""
        if not self._place or self._weights.grad is None:
            return self._evidence.gains
        return -self._weights.grad if self._evidence.gains is None else self._evidence.gains - self._weights.grad

    def _take_gradient(self, theta: Tensor) -> None:
        """Take out of ``.grad`` what reaches θ itself, as from a penalty on all parameters."""
        if theta.grad is not None:
            self._evidence.add("gradient", theta.grad)
        theta.grad = None

    def watch(
        self, branches: Tensor, losses: Tensor | Callable[[Tensor], Tensor | None], is_likelihood: bool = False
    ) -> None:
        """Take ``losses``, ``[1 + J]``, as evidence once a backward pass runs through ``branches``.

        Losses, or what makes them of the gradient that arrives at ``branches``.
        """
        if not branches.requires_grad:
            return
        name = "nll" if is_likelihood else "residual"

        def take(gradient: Tensor) -> None:
            found = losses if isinstance(losses, Tensor) else losses(gradient)
            if found is not None:
                self._evidence.add(name, found.to(self.theta.dtype))

        branches.register_hook(take)

    def watch_loss(self, losses: Tensor, gradient: Tensor) -> None:
        """Take ``losses``, ``[1 + J, …]``, as they enter the final loss, as evidence if no loss function tells more."""
        self._evidence.add("loss", (losses * gradient).reshape(len(losses), -1).sum(1).to(self.theta.dtype))

    def drop_evidence(self) -> None:
        """Forget gradients and evidence that no optimizer step has used."""
        self._evidence.clear()
        if self._place:
            for leaf in (*self._leaves, self._weights):
                leaf.grad = None

    # --- updates ----------------------------------------------------------------------------------------------------

    def update_averaging(self, gradient: Tensor) -> None:
        """Move the averaging weights by the evidence of this step, judged on outputs from before the step."""
        known = self._evidence
        evidence = Evidence(known.residual, known.nll, known.loss, self._gains(), gradient)
        self.rule.update(self.averaging_weights.detach(), evidence)

    @torch.no_grad()
    def reclone(self, lost: Tensor) -> None:
        """Replace the heads where the mask ``lost``, ``[J]``, is true by the average Σ_j a_j θ_j of the finite ones.

        Without lost heads nothing changes, bit for bit.
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


@torch.no_grad()
def _make_distribution(layer: OutputHeads, *_: object) -> None:
    """Make a distribution of averaging weights that are none, as after noise on all parameters."""
    weights = layer.averaging_weights
    if not (math.isclose(weights.sum().item(), 1.0, abs_tol=1e-3) and (weights >= 0).all()):
        weights.nan_to_num_(0.0, 0.0, 0.0).clamp_(min=torch.finfo(weights.dtype).tiny)
        weights.div_(weights.sum())


def _matrix(layer: nn.Linear) -> Tensor:
    """Weight and bias of a layer side by side, ``[O, I + 1]``."""
    return layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1)


def _fresh(layer: nn.Linear, init: Callable[[nn.Linear], object] | None) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    if init is not None:
        init(copy)
    return copy.to(layer.weight)
