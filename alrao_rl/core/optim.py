"""The optimizer: a first-order base update, times the learning rate of every feature.

    θ_{l,i} ← θ_{l,i} − s · η_{l,i} · u(∇ ℓ(Φ(x), y))       trunk
    θ_j     ← θ_j     − s · η_j     · u(∇ ℓ(C_j(φ(x)), y))  heads

with u the base's direction (bases.py) and s the ratio of the group's ``lr`` to its first non-zero value: an algorithm
that writes a constant learning rate into the groups changes nothing, a decaying one anneals. All parameters are updated
as one flat vector of N numbers (layout.py), in S segments: the trunk, and each head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alrao_rl import checks
from alrao_rl.core.bases import BaseUpdate, State
from alrao_rl.core.config import AlraoConfig
from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.layout import Layout

COUNTS = ("steps", "reclones", "lost")
"""Numbers for each segment, ``[S]``: updates since it was made or last re-cloned; how often it was re-cloned; how often
because it was not finite. For the trunk, which is never re-cloned, ``lost`` counts skipped updates."""


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
        ValueError: ``network`` is not converted, its parameters are float16, or ``lr`` is not a number of at least 0.

    The heads' gradients are not in ``.grad``, where one that diverges would decide on the clipping of all. So what
    works on ``.grad`` of all parameters, such as a gradient scaler, does not reach them, nor does
    ``network.zero_grad()``: use the optimizer's.
    """

    # Makes a gradient scaler set found_inf before a step: it would unscale the trunk's gradients and not the heads'.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None
    """Set by a gradient scaler."""

    def __init__(self, network: nn.Module, lr: float = 1.0, skip: nn.Module | None = None) -> None:
        if not hasattr(network, "alrao_config"):
            raise ValueError(f"{type(network).__name__} is not an Alrao network: pass it through convert() first")
        self._network = network
        self.config: AlraoConfig = network.alrao_config  # type: ignore[assignment]
        self.layers = [module for module in network.modules() if isinstance(module, OutputHeads)]
        """The output layers of the network."""
        self._skip = skip
        self._layout = Layout(network, self.layers, skip)
        self._base: BaseUpdate = self.config.make_base()
        checks.refuse_float16(self.config.base, self._base, self._layout.parameters)
        self.after_step: Callable[[AlraoOptimizer], None] | None = None
        lr = checks.number("lr", lr, 0, ends="[)")
        super().__init__(self._layout.parameters, {"lr": lr, "first_lr": lr, "n_updates": 0})

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)  # torch's own keeps only its own three attributes, and a copy would do nothing

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a second group: the optimizer is that of a network."""
        if self.param_groups:
            raise ValueError("an AlraoOptimizer has one parameter group, that of its network: convert a larger network")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of what ``state_dict()`` gave; ValueError if it is of another base update or network."""
        checks.optimizer_state(state_dict, self._lengths(), self.config.base)
        super().load_state_dict(state_dict)
        # Torch's own shares the tensors with the optimizer they come from, and rounds them to the parameters' dtype.
        for mine, given in zip(self.state.values(), state_dict["state"].values(), strict=True):
            mine.update({name: values.to(mine[name].device, copy=True) for name, values in given.items()})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and the evidence that no step has used."""
        super().zero_grad(set_to_none)
        for layer in self.layers:
            layer.drop_evidence()

    def reclones(self, layer: OutputHeads, which: Literal["reclones", "lost"] = "reclones") -> Tensor:
        """How often each head of an output layer was re-cloned, ``[J]``; or of these, because it was not finite."""
        return self._layout.segments(self._count(which))[self.layers.index(layer)]

    @property
    def skipped(self) -> int:
        """How many updates were skipped, wholly or in part: the trunk's gradient, or that of all heads, not finite."""
        return int(self._count("lost")[0])

    def _count(self, name: str) -> Tensor:
        state = self.state.get(self.param_groups[0]["params"][0])  # get: looking must not make an entry
        return state[name] if state else torch.zeros(len(self._layout.sizes))

    # --- one step ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of averaging weights, then of trunk and heads.

        In this order, because evidence is about the outputs from before the step. A ``closure`` computes the loss anew,
        as torch's optimizers take it; its result is returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self.found_inf is not None:
            checks.refuse_grad_scaler()
        if any(parameter.requires_grad for parameter in self._layout.frozen):
            self._thaw()
        self.param_groups[0]["n_updates"] += 1
        state, scale = self._prepare(), self._scale()
        # Gather: g is [N], of_heads are its views, [J, P] for each output layer.
        g, present, of_heads, broken = self._gather(state)
        # Judge and clip. The rules see the gradient before it is clipped: whiteness compares norms.
        for layer, given, gradient in zip(self.layers, present[len(self._layout.trunk) :], of_heads, strict=True):
            if given:
                layer.update_averaging(gradient)
                self._clip(gradient)
        # Direction × rate, then re-clone what diverged by it.
        self._move(g, present, state, scale)
        interval = self.config.reclone_interval
        self._reclone(state, broken, bool(interval) and self.param_groups[0]["n_updates"] % interval == 0)
        for layer in self.layers:
            layer.drop_evidence()
        if self.after_step is not None:
            self.after_step(self)
        return result

    def _prepare(self) -> State:
        """Return the state, and make the rates of all entries, ``[N]``: anew, as a network may have moved."""
        checks.refuse_float16(self.config.base, self._base, self._layout.parameters)
        self._rates = self._layout.rates(self._network.get_buffer("alrao_rates"))
        state: State = self.state[self.param_groups[0]["params"][0]]
        if not state:
            state.update(self._new_state())
        return state

    def _new_state(self) -> State:
        """Zeros: the base's vectors in the precision of the rates, the counts in float32."""
        new, lengths = self._rates.new_zeros, self._lengths()
        return {name: new(n, dtype=torch.float32 if name in COUNTS else None) for name, n in lengths.items()}

    def _lengths(self) -> dict[str, int]:
        """Names and lengths of the state's vectors: N for what the base keeps of every entry, S for the counts."""
        n, n_segments = self._layout.numel, len(self._layout.sizes)
        return dict.fromkeys(self._base.buffers, n) | dict.fromkeys(COUNTS, n_segments)

    def _scale(self) -> float:
        """s, the ratio of ``lr`` to its first non-zero value; 1 before there is one."""
        group = self.param_groups[0]
        lr = float(group["lr"])
        # A warm-up may start at 0, which has no ratio to anything.
        first = group["first_lr"] = group["first_lr"] or lr
        if lr != first:
            checks.warn_of_learning_rate(group, first)
        return lr / first if first else 1.0

    def _gather(self, state: State) -> tuple[Tensor, list[bool], list[Tensor], list[Tensor] | None]:
        """All gradients as one vector ``[N]``; which parameters have one; its views of heads, ``[J, P]`` for each
        layer; which heads are broken, a mask ``[J]`` for each layer, or None if none are.
        """
        dense, present = self._dense_gradients()
        g = torch.cat([gradient.reshape(-1) for gradient in dense]).to(self._rates.dtype)
        return g, present, *self._without_lost(g, state)

    def _dense_gradients(self) -> tuple[list[Tensor], list[bool]]:
        """The gradient of every parameter, zeros where it received none; which of them received one."""
        layout = self._layout
        given = [*(parameter.grad for parameter in layout.trunk), *(layer.gradient for layer in self.layers)]
        dense = [
            torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
            for g, p in zip(given, layout.parameters, strict=True)
        ]
        return dense, [gradient is not None for gradient in given]

    def _without_lost(self, g: Tensor, state: State) -> tuple[list[Tensor], list[Tensor]]:
        """Set numbers in ``g`` that are not finite to 0, and all of a head with one: they move nothing, and no state.

        Returns the views of heads and which are broken, as :meth:`_gather` does.
        """
        # The square counts, which the bases take: 1e20 is finite in float32, its square is not, and a running mean that
        # is infinite once stays so.
        of_heads, wrong, broken = self._layout.heads(g), ~g.square().isfinite(), []
        skipped = wrong[: self._layout.n_trunk].any()
        for gradient in of_heads:
            lost = ~gradient.norm(dim=1).isfinite()
            gradient.masked_fill_(lost[:, None], 0.0)
            # If no head has a finite gradient the fault is in the data: the heads are as good as before.
            broken.append(lost & ~lost.all())
            skipped = skipped | lost.all()
        g.masked_fill_(wrong, 0.0)
        state["lost"][0] += skipped  # [0] is the trunk
        if skipped and state["lost"][0] == 1:
            checks.warn_of_skipped_update(self.param_groups[0]["n_updates"])
        return of_heads, broken

    def _clip(self, gradient: Tensor) -> None:
        """Clip the gradient of every head, ``[J, P]``, to a norm of its own."""
        # Not to one norm of all: a head that diverges would starve the others.
        if isinstance(limit := self.config.head_max_grad_norm, float):
            gradient.renorm_(2, 0, limit)

    def _move(self, g: Tensor, present: list[bool], state: State, scale: float) -> None:
        """Count the step; subtract direction × rate from every parameter that received a gradient."""
        state["steps"] += 1
        before = {name: state[name].clone() for name in self._base.buffers}
        update = self._base.direction(g, state, self._layout) * self._rates * scale
        self._keep_absent(update, before, present, state)
        for parameter, part in zip(self._layout.parameters, self._layout.views(update), strict=True):
            parameter.sub_(part)

    def _keep_absent(self, update: Tensor, before: State, present: list[bool], state: State) -> None:
        """Undo update and state of parameters that received no gradient, which torch's optimizers skip, too."""
        pairs = zip(self._layout.parameters, present, strict=True)
        absent = torch.cat([torch.full_like(p, not given, dtype=torch.bool).reshape(-1) for p, given in pairs])
        update.masked_fill_(absent, 0.0)
        for name, old in before.items():
            state[name].copy_(torch.where(absent, old, state[name]))

    def _reclone(self, state: State, broken: list[Tensor] | None, due: bool) -> None:
        """Replace heads that broke in this step, and if ``due`` those without weight."""
        # In the same step: a target network that copies a number that is not finite keeps it, as mixing (Polyak
        # averages) does not remove it. Without weight, because the best head early may be the worst one late: all must
        # be fit to come back (docs/method.md, "What is averaged").
        buffers = [self._layout.heads(state[name]) for name in self._base.buffers]
        steps, reclones, losses = (self._layout.segments(state[name]) for name in COUNTS)
        for k, layer in enumerate(self.layers):
            lost = ~layer.theta.isfinite().all(1)
            if broken is not None:
                lost |= broken[k]
            losses[k].add_(lost)
            if due:
                lost |= layer.averaging_weights < 0.1 / layer.n_heads
            layer.reclone(lost)
            # Momentum and step count were those of the parameters that are gone.
            for matrices in buffers:
                matrices[k].masked_fill_(lost[:, None], 0.0)
            steps[k].masked_fill_(lost, 0.0)
            reclones[k].add_(lost)

    def _thaw(self) -> None:
        """Take in parameters that were frozen before, so that they have rates and a state; the trunk's begins anew."""
        state, n_trunk = self.state.pop(self.param_groups[0]["params"][0], {}), self._layout.n_trunk
        self._layout = Layout(self._network, self.layers, self._skip)
        self.param_groups[0]["params"] = self._layout.parameters
        if state:
            # The trunk's vector has another length now. The heads, behind it, keep their state.
            for name in self._base.buffers:
                trunk = state[name].new_zeros(self._layout.n_trunk)
                state[name] = torch.cat([trunk, state[name][n_trunk:]])
            state["steps"][0] = 0
            self.state[self._layout.parameters[0]] = state
