"""The duplicated output layer in less time: compiled branches, and gradients that arrive without views and hooks.

Every formula is one of :mod:`alrao_rl.core.heads`: the class is a subclass, and tests step both side by side. What it
saves is the start of operations, which on small networks takes longer than the arithmetic.

The graph ends at *leaves*, aliases of the parts of θ and of the averaging weights, so that no gradient arrives in
``.grad`` of the parameters: views in the graph and a hook take longer than the layer. Leaves are valid as long as the
memory that they share: parameters that were moved, copied or replaced get new ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alrao_rl.checks import MANY_PASSES, warn_of_unused_passes
from alrao_rl.core import heads as core
from alrao_rl.core.averaging import Evidence
from alrao_rl.core.heads import LINEAR, make_distribution, without_lost
from alrao_rl.core.mixtures import by_component, mix_bernoulli, mix_logits
from alrao_rl.fast.averaging import make_rule
from alrao_rl.fast.branches import Branches, Kernel
from alrao_rl.fast.headwise import HeadwiseTensor
from alrao_rl.fast.memory import all_finite


class OutputHeads(core.OutputHeads):
    """See :class:`alrao_rl.core.heads.OutputHeads`."""

    tensor = HeadwiseTensor
    make_rule = staticmethod(make_rule)
    # All of these share the memory of the parameters; _refresh_leaves makes them.
    _flat_extra: Tensor
    """Extra parameters of the heads, ``[J, …]``, without a graph."""
    _held: tuple[Tensor, Tensor]
    """θ, ``[J, P]``, and a, ``[J]``, without a graph."""
    _kernel: Kernel | None = None
    _leaves: list[Tensor]
    """Where the heads' gradients arrive: weights, then biases and extra parameters if there are any."""
    _matrix: tuple[Tensor, Tensor | None]
    """Weights and biases of all heads without a graph, as :meth:`_products` takes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What the leaves were made of; empty before there are any.
        self._place: tuple[Any, ...] = ()
        # The version of θ that was last seen finite.
        self._finite = -1
        self._warned = False

    @staticmethod
    def _mean(theta: Tensor, weights: Tensor) -> Tensor:
        # As a product it allocates no [J, P].
        return weights @ theta

    # --- forward ----------------------------------------------------------------------------------------------------

    def with_extra(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The averaged outputs, ``[B, I]`` to ``[B, O]``, and :meth:`averaged_extra`, checking parameters once."""
        parameters = self._finite_heads()
        return self._forward(features, None, *parameters), self._averaged_extra(*parameters)

    def _forward(self, features: Tensor, offset: Tensor | None, theta: Tensor, weights: Tensor) -> Tensor:
        # A mask of classes, and heads some of which are left out, are for torch: both are rare.
        kernel = self._kernel if offset is None and self._is_held(theta) else None
        if kernel is not None and kernel.serves(features):
            if not torch.is_grad_enabled():
                return kernel.average(features, theta, weights).t()
            weight, bias = self._leaves[0], self._leaves[1] if self._has_bias else None
            branches = Branches.apply(features, weight, bias, weights, theta, kernel)
            return HeadwiseTensor.of(branches.transpose(1, 2), self._layers)
        offset = None if offset is None else offset.t()
        average = self._average(features, offset, theta, weights)
        average = average if self.kind in LINEAR else average.t()
        if not torch.is_grad_enabled() or self._is_function():
            return average
        # Inside, the batch comes last: over rows as short as the outputs of a head torch works one at a time.
        branches = torch.cat([average.t().unsqueeze(0), self._own(features.detach(), offset)])
        return HeadwiseTensor.of(branches.transpose(1, 2), self._layers)

    def _averaged_extra(self, theta: Tensor, weights: Tensor) -> Tensor:
        assert self._extra_shape is not None
        # Masked parameters are a new tensor, which the alias of the extra part does not belong to.
        average = weights @ (self._flat_extra if self._is_held(theta) else theta[:, self._n_matrix :])
        if not torch.is_grad_enabled() or self._is_function():
            return average.view(self._extra_shape)
        return HeadwiseTensor.of(torch.cat([average.view(1, *self._extra_shape), self._leaves[-1]]), self._layers)

    def _average(self, x: Tensor, offset: Tensor | None, theta: Tensor, weights: Tensor) -> Tensor:
        """Φ as a function of the features and of a, the heads' parameters held.

        ``[B, I]`` to ``[B, O]`` for linear kinds, to ``[O, B]`` for others: as it is computed.
        """
        if self.kind in LINEAR:
            # Averaging outputs is averaging parameters: one layer instead of J.
            averaged = weights @ theta  # [P]
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
        logits = self._products(x, *matrix, offset)
        if self.kind == "bernoulli":
            return mix_bernoulli(logits, weights)
        return by_component(mix_logits, self.splits, logits, weights)

    def _own(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """Outputs of the heads, features held: ``[B, I]`` to ``[J, O, B]``; categorical ones as log-probabilities."""
        own = self._products(x, self._leaves[0], self._leaves[1] if self._has_bias else None, offset)
        if self.kind != "categorical":
            return own
        return by_component(lambda part: part.log_softmax(-2), self.splits, own)

    def _products(self, x: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor | None) -> Tensor:
        """``[B, I]`` to ``[J, O, B]`` by weight and bias of :meth:`_joint` rows, ``[J · O, …]`` or ``[J, O, …]``."""
        # One product of a tall matrix is quicker than a batch of J. But with an extra parameter behind its rows, the
        # matrix of a head does not touch that of the next one.
        if weight.dim() == 3:
            inputs = x.t().expand(self.n_heads, -1, -1)
            outputs = weight @ inputs if bias is None else torch.baddbmm(bias, weight, inputs)
        else:
            outputs = weight @ x.t() if bias is None else torch.addmm(bias, weight, x.t())
            outputs = outputs.view(self.n_heads, self.out_features, x.shape[0])
        return outputs if offset is None else outputs + offset

    def _joint(self, theta: Tensor) -> Tensor:
        """View of the rows of all heads as one matrix where they are one, ``[J · O, columns]``; else ``[J, O, …]``."""
        return theta.view(-1, self._columns) if self._extra_shape is None else self._rows(theta)

    def _refresh_leaves(self) -> None:
        """Create gradient leaves that share memory with θ, if θ has moved since."""
        theta, weights = self._parameters["theta"], self._parameters["averaging_weights"]
        place = (theta.data_ptr(), theta.requires_grad, weights.data_ptr(), theta.numel(), weights.numel())  # type: ignore[union-attr]
        # Memory alone, not values: what an update writes into the parameters the leaves see as well.
        if place == self._place:
            # Autograd adds each backward pass to the gradient in place, and so counts them for us.
            gradient = self._leaves[0].grad
            if gradient is not None and gradient._version >= MANY_PASSES and not self._warned:
                self._warned = True
                warn_of_unused_passes(MANY_PASSES)
            return
        # Other memory, so maybe other values: of a checkpoint, or with noise on all parameters.
        make_distribution(self)
        if not self.theta.is_contiguous():
            with torch.no_grad():
                self.theta.data = self.theta.data.contiguous()
        held = self.theta.detach(), self.averaging_weights.detach()
        matrix = self._split(self._joint(held[0]))
        parts = [part for part in matrix if part is not None]
        if self._extra_shape is not None:
            parts.append(self._extra(held[0]))
        # detach() and not a view: a leaf has to have no history.
        leaves = [part.detach().requires_grad_(self.theta.requires_grad) for part in parts]
        decides = held[1].detach().requires_grad_(self.rule.uses == "gains")
        kind = "linear" if self.kind in LINEAR else self.kind
        served = kind == "linear" or (kind == "categorical" and len(self.splits) == 1)
        shape = self.out_features, self.in_features, self._has_bias
        kernel = Kernel.of(kind, *held, *shape) if served else None
        # A penalty on all parameters reaches θ itself, past the leaves. Copies of a network lose their hooks.
        if self.theta.requires_grad and not self.theta._post_accumulate_grad_hooks:
            self.theta.register_post_accumulate_grad_hook(self._take_gradient)
        # All at once and last: an exception before, such as being out of memory, leaves the old state whole.
        self._keep_evidence()
        self._held, self._matrix, self._leaves, self._weights, self._kernel = held, matrix, leaves, decides, kernel
        self._flat_extra, self._layers = held[0][:, self._n_matrix :], frozenset([self])
        self._place, self._finite = (self.theta.data_ptr(), *place[1:]), -1

    def _keep_evidence(self) -> None:
        """Move what has arrived at leaves that are given up to the evidence."""
        for name, value in (("gradient", self.gradient), ("gains", self._gains())):
            setattr(self._evidence, name, None if value is None else value.to(self.theta))

    def __getstate__(self) -> dict[str, Any]:
        # A copied alias would share memory with nothing.
        aliases = ("_held", "_matrix", "_flat_extra", "_leaves", "_weights", "_layers", "_kernel")
        state = {key: value for key, value in self.__dict__.items() if key not in aliases}
        return state | {"_place": (), "_evidence": self.evidence}

    def _is_held(self, theta: Tensor) -> bool:
        return bool(self._place) and theta is self._held[0]

    def _is_function(self) -> bool:
        """See :meth:`alrao_rl.core.heads.OutputHeads._is_function`."""
        if torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
            return True
        return not isinstance(self._parameters["theta"], nn.Parameter)

    def _finite_heads(self) -> tuple[Tensor, Tensor]:
        """θ, held, and averaging weights, heads that are not finite masked out; a leaf if the rule needs ∂ℓ/∂a."""
        if self._is_function():  # of θ: a leaf would be a constant to it
            return super()._finite_heads()
        self._refresh_leaves()
        theta, weights = self._held
        decides = self.rule.uses == "gains" and torch.is_grad_enabled()
        # Looked at once per version: it takes as long as a small layer.
        if self._finite != theta._version:
            if not all_finite(theta):
                theta, weights = without_lost(theta, weights)
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
        # Weight and bias side by side in each row, [J · O, columns], then the extra parameter: the order of θ.
        parts = [torch.zeros_like(x) if x.grad is None else x.grad for x in self._leaves]
        extra = [] if self._extra_shape is None else [parts.pop().flatten(1)]
        rows = torch.cat(parts, -1).view(self.n_heads, -1)
        gradient = torch.cat([rows, *extra], 1) if extra else rows
        return gradient if self._evidence.gradient is None else gradient + self._evidence.gradient

    def leaf_gradients(self) -> list[Tensor | None] | None:
        """The gradient as it has arrived, a piece for each of :meth:`parts`; None if it did not arrive in pieces."""
        # Partly, or at leaves that are given up: then `gradient` puts it together.
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

    def drop_evidence(self) -> None:
        """Forget gradients and evidence that no optimizer step has used."""
        self._evidence.clear()
        if self._place:
            for leaf in (*self._leaves, self._weights):
                leaf.grad = None

    def update_averaging(self, gradient: Tensor) -> None:
        """See :meth:`alrao_rl.core.heads.OutputHeads.update_averaging`."""
        # Not by the property `evidence`, which would put the gradient together once more.
        evidence = replace(self._evidence, gains=self._gains(), gradient=gradient)
        self.rule.update(self.averaging_weights.detach(), evidence)
