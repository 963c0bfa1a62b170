"""The optimizer in less time: one call of C gathers the gradients, and one makes the default base update.

The step is that of :class:`alrao_rl.core.optim.AlraoOptimizer`; only the parts of it that cost time are overridden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from alrao_rl.checks import refuse_float16
from alrao_rl.core import optim as core
from alrao_rl.core.bases import Adam, RmsProp, State
from alrao_rl.fast.addresses import Addresses
from alrao_rl.fast.heads import OutputHeads
from alrao_rl.fast.memory import all_finite


class AlraoOptimizer(core.AlraoOptimizer):
    """See :class:`alrao_rl.core.optim.AlraoOptimizer`."""

    def __init__(self, network: nn.Module, lr: float = 1.0, skip: nn.Module | None = None) -> None:
        # [N] each: the rates, and a buffer that holds the gradient first and then the update.
        self._rates = self._flat = torch.empty(0)
        self._views: list[Tensor] = []
        # What the rates were made of, and the addresses: where either has changed, they are made anew.
        self._version: list[tuple[int, int]] = []
        self._addresses: Addresses | None = None
        self._places: list[tuple[int, int, bool]] = []
        # Layers whose θ was finite before the step, and whether the whole update was: then it is finite after it.
        self._finite: list[OutputHeads] = []
        self._all_well = False
        super().__init__(network, lr, skip)

    def __getstate__(self) -> dict[str, Any]:
        # Views and addresses are of this object's memory: a copy makes its own.
        own = {"_rates": torch.empty(0), "_flat": torch.empty(0), "_views": [], "_addresses": None, "_places": []}
        return super().__getstate__() | own | {"_finite": []}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See :meth:`alrao_rl.core.optim.AlraoOptimizer.add_param_group`."""
        if self.param_groups:
            super().add_param_group(param_group)
        # Past the guard against torch's compiler around it, which loads the compiler: a second of every start.
        add = torch.optim.Optimizer.add_param_group
        getattr(add, "__wrapped__", add)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and the evidence that no step has used."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        # Torch's own does this with as much around it as an update of a small network.
        for parameter in self._layout.parameters:
            parameter.grad = None
        for layer in self.layers:
            layer.drop_evidence()

    _plain_step = core.AlraoOptimizer.step
    _hooked_step = torch.optim.Optimizer.profile_hook_step(_plain_step)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """See :meth:`alrao_rl.core.optim.AlraoOptimizer.step`."""
        return (self._hooked_step if _hooks_or_profiler(self) else self._plain_step)(closure)

    # Torch wraps every optimizer's step for these two, which costs as much as a quarter of the step of a small network.
    step.hooked = True  # type: ignore[attr-defined]

    def _prepare(self) -> State:
        """Make the flat buffers on first use and whenever the rates are others: moved to a device, or loaded."""
        feature_rates: Tensor = self._network._buffers["alrao_rates"]  # type: ignore[assignment]
        # Loading writes in place, which changes the version; a move to a device changes the memory.
        version = [(feature_rates.data_ptr(), feature_rates._version)]
        for layer in self.layers:
            rates: Tensor = layer._buffers["rates"]  # type: ignore[assignment]
            version.append((rates.data_ptr(), rates._version))
        if version != self._version or not self._rates.numel():
            refuse_float16(self.config.base, self._base, self._layout.parameters)
            self._version = version
            self._rates = self._layout.rates(feature_rates)
            self._flat = torch.empty_like(self._rates)
            self._views = self._layout.views(self._flat)
        state: State = self.state[self.param_groups[0]["params"][0]]
        if not state:
            state.update(self._new_state())
        # Exactly: a subclass may have another direction.
        if type(self._base) in (RmsProp, Adam):
            flat = [self._rates, *[state[name] for name in self._base.buffers]]
            places = [(x.data_ptr(), x.numel(), x.is_contiguous()) for x in (*self._layout.parameters, *flat)]
            if places != self._places:
                self._places, self._addresses = places, Addresses.of(self._layout, flat)
        return state

    def _gather(self, state: State) -> tuple[Tensor, list[bool], list[Tensor], list[Tensor] | None]:
        """See :meth:`alrao_rl.core.optim.AlraoOptimizer._gather`; no heads are broken where all numbers are finite."""
        # Before the backward pass the forward pass has looked at every θ; what was written since has another version.
        self._finite = [layer for layer in self.layers if isinstance(layer, OutputHeads) and layer.known_finite()]
        if self._addresses is not None and (present := self._addresses.gather(self._flat)) is not None:
            return self._flat, present, self._views[len(self._layout.trunk) :], None
        dense, present = self._dense_gradients()
        g = _flatten_dense_tensors(dense).to(self._flat.dtype)
        # One number for all: it is infinite wherever the norm of a head is.
        if all_finite(torch.dot(g, g)):
            return g, present, self._layout.heads(g), None
        return g, present, *self._without_lost(g, state)

    def _clip(self, gradient: Tensor) -> None:
        limit = self.config.head_max_grad_norm
        if self._addresses is not None and isinstance(limit, float):
            self._addresses.library.clip_rows(*gradient.shape, gradient.data_ptr(), limit)
        else:
            super()._clip(gradient)

    def _move(self, g: Tensor, present: list[bool], state: State, scale: float) -> None:
        """See :meth:`alrao_rl.core.optim.AlraoOptimizer._move`; notes whether all that was taken off is finite."""
        parameters = self.param_groups[0]["params"]
        if self._addresses is not None:
            self._all_well = math.isfinite(self._compiled(self._addresses, g, present, state, scale))
            # Autograd has to notice a write, or backward through an older graph would be wrong without an error.
            for parameter in parameters:
                torch.autograd.graph.increment_version(parameter)
            return
        # As the plain optimizer's, past what is not needed: copies of the state, and a new tensor for the update.
        state["steps"] += 1
        everything = all(present)
        before = {} if everything else {name: state[name].clone() for name in self._base.buffers}
        torch.mul(self._base.direction(g, state, self._layout), self._rates, out=self._flat)
        if not everything:
            self._keep_absent(self._flat, before, present, state)
        if scale != 1.0:
            self._flat.mul_(scale)
        torch._foreach_sub_(parameters, self._views)
        self._all_well = all_finite(self._flat)

    def _compiled(self, addresses: Addresses, g: Tensor, present: list[bool], state: State, scale: float) -> float:
        """Move all parameters and count the step; return the sum of what was taken off."""
        base, loops = self._base, addresses.library
        vectors = [g, self._rates, *[state[name] for name in base.buffers], addresses.segments, state["steps"]]
        where = len(present), addresses.moving(present), addresses.sizes, *[x.data_ptr() for x in vectors]
        moved: float
        if isinstance(base, Adam):
            moved = loops.adam(*where, base.beta1, base.beta2, base.eps, scale)
        else:
            assert isinstance(base, RmsProp)
            moved = loops.rmsprop(*where, base.decay, base.eps, base.eps_inside, base.bias_correction, scale)
        return moved

    def _reclone(self, state: State, broken: list[Tensor] | None, due: bool) -> None:
        """See :meth:`alrao_rl.core.optim.AlraoOptimizer._reclone`; skipped if there is nothing to find."""
        # θ was finite and something finite was subtracted, so there is no need to look.
        if self._all_well and broken is None and not due and len(self._finite) == len(self.layers):
            for layer in self._finite:
                layer.mark_finite()
        else:
            super()._reclone(state, broken, due)

    def _thaw(self) -> None:
        self._rates = torch.empty(0)  # of another N
        super()._thaw()


def _hooks_or_profiler(optimizer: torch.optim.Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )
