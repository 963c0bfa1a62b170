"""The optimizer: a first-order base update, times the learning rate of every feature.

    θ_{l,i} ← θ_{l,i} − s · η_{l,i} · u(∇ ℓ(Φ(x), y))       trunk
    θ_j     ← θ_j     − s · η_j     · u(∇ ℓ(C_j(φ(x)), y))  heads

with u the base's direction (bases.py) and s the ratio of the group's ``lr`` to its first non-zero value: an algorithm
that writes a constant learning rate into the groups changes nothing, a decaying one anneals. All parameters are updated
as one flat vector of N numbers (layout.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from alrao_rl.checks import number
from alrao_rl.core.bases import BaseUpdate, State
from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.layout import Layout

if TYPE_CHECKING:
    from alrao_rl.core.config import AlraoConfig

COUNTS = ("steps", "reclones", "lost")
"""Kept of every segment: updates since it was made or last re-cloned, how often that was, how often for lack of finite
numbers; of the trunk, which is never re-cloned, how many updates were skipped for that."""
NOT_FINITE = (
    "as where advantages are normalised over a single step (normalize_advantage with n_steps=1 in one environment), or "
    "a reward, an observation or a learning rate is far too large"
)
"""What may have happened to a gradient."""


class SkippedUpdateWarning(UserWarning):
    """An update had a gradient that is not finite, and moved nothing by it."""


class AlraoOptimizer(torch.optim.Optimizer):
    """The optimizer of a network made by :func:`~alrao_rl.core.convert.convert`.

    ``lr`` of the parameter group acts only by its ratio to the first non-zero value it had. ``step()`` also moves the
    averaging weights, by the evidence gathered since ``zero_grad()``, and re-clones lost heads. Its state is tensors
    and primitives.

    Args:
        network: a converted network.
        lr: see above; 1 unless an algorithm writes its own.
        skip: a part of the network that another optimizer trains, such as a shared features extractor.

    Raises:
        ValueError: ``network`` is not a converted one, or of float16, or ``lr`` is no rate.

    The heads' gradients are not in ``.grad``, where one that diverges would decide on the clipping of all: what works
    on ``.grad`` of all parameters, such as a gradient scaler, does not reach them, nor does ``network.zero_grad()``:
    use the optimizer's.
    """

    # A gradient scaler would else keep from us that it is there, and scale nothing back in the heads.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    """Set by a gradient scaler."""

    def __init__(self, network: nn.Module, lr: float = 1.0, skip: nn.Module | None = None) -> None:
        if not hasattr(network, "alrao_config"):
            raise ValueError(f"{type(network).__name__} is not an Alrao network: pass it through convert() first")
        self._network = network
        self.config: AlraoConfig = network.alrao_config  # type: ignore[assignment]
        self._layers = [module for module in network.modules() if isinstance(module, OutputHeads)]
        self._skip = skip
        self._layout = Layout(network, self._layers, skip)
        self._base: BaseUpdate = self.config.make_base()
        self._refuse_half()
        self.after_step: Callable[[AlraoOptimizer], None] | None = None
        lr = number("lr", lr, 0, ends="[)")
        super().__init__(self._layout.parameters, {"lr": lr, "first_lr": lr, "n_updates": 0})

    def _refuse_half(self) -> None:
        if hasattr(self._base, "eps") and any(p.dtype is torch.float16 for p in self._layout.parameters):
            raise ValueError(f"{self.config.base!r} divides by squares, 0 in float16: expected float32 or bfloat16")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)  # torch's own keeps only its own three attributes, and a copy would do nothing

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a second group: the optimizer is that of a network."""
        if self.param_groups:
            raise ValueError("an AlraoOptimizer has one parameter group, that of its network: convert a larger network")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of what ``state_dict()`` gave; ValueError if it is of another base update or network."""
        numbers = dict.fromkeys(self._base.buffers, self._layout.numel)
        expected = numbers | dict.fromkeys(COUNTS, len(self._layout.sizes))
        for held in state_dict["state"].values():
            if (given := {name: len(values) for name, values in held.items()}) != expected:
                raise ValueError(
                    f"the state holds {given}, expected {expected}: it is of another base update than "
                    f"{self.config.base!r}, of another network or of another number of heads"
                )
        super().load_state_dict(state_dict)
        # torch's own would share the tensors with the optimizer they are of, and round them to the parameters' dtype.
        for mine, given in zip(self.state.values(), state_dict["state"].values(), strict=True):
            mine.update({name: values.to(mine[name].device, copy=True) for name, values in given.items()})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and the evidence that no step has used."""
        super().zero_grad(set_to_none)
        for layer in self._layers:
            layer.drop_evidence()

    def updates(self, layer: OutputHeads) -> bool:
        """Whether an output layer is one of its network."""
        return layer in self._layers

    def reclones(self, layer: OutputHeads, which: Literal["reclones", "lost"] = "reclones") -> Tensor:
        """How often each head of an output layer was re-cloned, ``[J]``; or of these, because it was not finite."""
        state = self.state.get(self.param_groups[0]["params"][0])  # looking must not make an entry
        counts = state[which] if state else torch.zeros(len(self._layout.sizes))
        return self._layout.segments(counts)[self._layers.index(layer)]

    @property
    def skipped(self) -> int:
        """How many updates were skipped, wholly or in part: the trunk's gradient, or that of all heads, not finite."""
        state = self.state.get(self.param_groups[0]["params"][0])
        return int(state["lost"][0]) if state else 0

    # --- one step ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of averaging weights, trunk and heads, in this order: weights judge the outputs from before."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self.found_inf is not None:
            raise RuntimeError(
                "an AlraoOptimizer takes no GradScaler, which does not reach the heads' gradients: call "
                "loss.backward() and optimizer.step() without it; autocast to bfloat16 needs none"
            )
        if any(parameter.requires_grad for parameter in self._layout.frozen):
            self._thaw()
        self.param_groups[0]["n_updates"] += 1
        state, scale = self._prepare(), self._scale()
        g, of_heads, present, broken = self._gather(state)
        for layer, given, gradient in zip(self._layers, present[len(self._layout.trunk) :], of_heads, strict=True):
            if given:
                layer.update_averaging(gradient)
                self._clip(gradient)
        self._move(g, present, state, scale)
        self._reclone(state, broken)
        for layer in self._layers:
            layer.drop_evidence()
        if self.after_step is not None:
            self.after_step(self)
        return result

    def _prepare(self) -> State:
        """The state, made on first use."""
        self._refuse_half()
        state: State = self.state[self.param_groups[0]["params"][0]]
        if not state:
            device = self._layers[0].rates.device
            for name in self._base.buffers:
                state[name] = torch.zeros(self._layout.numel, device=device)
            for name in COUNTS:
                state[name] = torch.zeros(len(self._layout.sizes), device=device)
        return state

    def _scale(self) -> float:
        """Ratio of ``lr`` to its first non-zero value; 1 before there is one."""
        group = self.param_groups[0]
        lr, first = float(group["lr"]), group["first_lr"]
        if not first:
            group["first_lr"] = lr
            return 1.0
        if lr == first:
            return 1.0
        changed = ""
        if lr > 1.01 * first:  # more than what a ramp up to it is off by rounding
            changed = (
                f"rose to {lr / first:.3g} times its first value: a schedule may decay, a warm-up is not needed; one "
                f"that rises to {lr:g} takes AlraoOptimizer(network, lr={lr:g})"
            )
        elif 0 < lr < 0.05 * first and group["n_updates"] == 1:
            changed = (
                f"is {lr / first:.3g} times that of the optimizer at its first step already: a warm-up may rise from "
                f"there, but if it is to fall from {lr:g} make that AlraoOptimizer(network, lr={lr:g})"
            )
        if changed and not group.get("warned"):
            group["warned"] = True
            warnings.warn(f"all of Alrao's rates follow the learning rate, and that {changed}", stacklevel=4)
        return lr / first

    def _gather(self, state: State) -> tuple[Tensor, list[Tensor], list[bool], list[Tensor] | None]:
        """All gradients as one vector ``[N]``, its views of heads ``[J, P]``; which parameters have a gradient; which
        heads of each layer are broken, None for none.
        """
        dense, present = self._dense_gradients()
        g = torch.cat([gradient.reshape(-1) for gradient in dense]).float()
        return g, *self._without_lost(g, present, state)

    def _dense_gradients(self) -> tuple[list[Tensor], list[bool]]:
        """The gradient of every parameter, zeros where it received none; which of them received one."""
        layout = self._layout
        given = [*(parameter.grad for parameter in layout.trunk), *(layer.gradient for layer in self._layers)]
        dense = [
            torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
            for g, p in zip(given, layout.parameters, strict=True)
        ]
        return dense, [gradient is not None for gradient in given]

    def _without_lost(
        self, g: Tensor, present: list[bool], state: State
    ) -> tuple[list[Tensor], list[bool], list[Tensor]]:
        """Make a number in ``g`` that is not finite, or has no finite square, 0, with all of its head.

        It moves nothing and reaches no state.
        """
        of_heads, wrong, broken = self._layout.heads(g), ~g.square().isfinite(), []
        skipped = wrong[: self._layout.n_trunk].any()
        for gradient in of_heads:
            lost = ~gradient.norm(dim=1).isfinite()
            gradient.masked_fill_(lost[:, None], 0.0)
            # Where no head has a finite gradient the fault is in the data: the heads are as good as they were.
            broken.append(lost & ~lost.all())
            skipped = skipped | lost.all()
        g.masked_fill_(wrong, 0.0)
        state["lost"][0] += skipped
        if skipped and state["lost"][0] == 1:
            warnings.warn(
                f"update {self.param_groups[0]['n_updates']} was skipped: its loss or the gradient is nan or "
                f"infinite, {NOT_FINITE}; later ones are only counted",
                SkippedUpdateWarning,
                stacklevel=6,
            )
        return of_heads, present, broken

    def _clip(self, gradient: Tensor) -> None:
        """Clip the gradient of every head, ``[J, P]``, by itself: one that diverges must not starve the others."""
        if isinstance(limit := self.config.head_max_grad_norm, float):
            gradient.renorm_(2, 0, limit)

    def _move(self, g: Tensor, present: list[bool], state: State, scale: float) -> None:
        """Count the step; take direction × rate off every parameter that received a gradient."""
        state["steps"] += 1
        before = {name: state[name].clone() for name in self._base.buffers}
        rates = self._layout.rates(self._network.get_buffer("alrao_rates"))
        update = self._base.direction(g, state, self._layout) * rates * scale
        self._keep_absent(update, before, present, state)
        for parameter, part in zip(self._layout.parameters, self._layout.views(update), strict=True):
            parameter.sub_(part)

    def _keep_absent(self, update: Tensor, before: State, present: list[bool], state: State) -> None:
        """What received no gradient does not move, and keeps its state."""
        pairs = zip(self._layout.parameters, present, strict=True)
        absent = torch.cat([torch.full_like(p, not given, dtype=torch.bool).reshape(-1) for p, given in pairs])
        update.masked_fill_(absent, 0.0)
        for name, old in before.items():
            state[name].copy_(torch.where(absent, old, state[name]))

    def _is_due(self) -> bool:
        """Whether heads without weight are looked for in this step."""
        interval = self.config.reclone_interval
        return bool(interval) and self.param_groups[0]["n_updates"] % interval == 0

    def _reclone(self, state: State, broken: list[Tensor] | None) -> None:
        """Replace heads that broke in this step, and every ``reclone_interval`` steps those without weight.

        In the same step: a target network that copied a number that is not finite would keep it for ever.
        """
        due = self._is_due()
        buffers = [self._layout.heads(state[name]) for name in self._base.buffers]
        steps, reclones, losses = (self._layout.segments(state[name]) for name in COUNTS)
        for k, layer in enumerate(self._layers):
            lost = ~layer.theta.isfinite().all(1)
            if broken is not None:
                lost |= broken[k]
            losses[k].add_(lost)
            if due:
                lost |= layer.averaging_weights < 0.1 / layer.n_heads
            layer.reclone(lost)
            for matrices in buffers:
                matrices[k].masked_fill_(lost[:, None], 0.0)
            steps[k].masked_fill_(lost, 0.0)
            reclones[k].add_(lost)

    def _thaw(self) -> None:
        """Take in parameters that were frozen before, so that they have rates and a state; the trunk's begins anew."""
        old, state, group = self._layout, self.state.pop(self.param_groups[0]["params"][0], {}), self.param_groups[0]
        self._layout = Layout(self._network, self._layers, self._skip)
        group["params"] = self._layout.parameters
        if state:
            for name in self._base.buffers:
                trunk = state[name].new_zeros(self._layout.n_trunk)
                state[name] = torch.cat([trunk, state[name][old.n_trunk :]])
            state["steps"][0] = 0
            self.state[group["params"][0]] = state
