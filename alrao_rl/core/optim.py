"""The optimizer: a first-order base update, times the learning rate of every feature.

    θ_{l,i} ← θ_{l,i} − s · η_{l,i} · u(∇ ℓ(Φ(x), y))       trunk
    θ_j     ← θ_j     − s · η_j     · u(∇ ℓ(C_j(φ(x)), y))  heads

with u the base's direction and s the ratio of the group's ``lr`` to its first non-zero value: an algorithm that writes
a constant learning rate into the groups changes nothing, a decaying one anneals. All parameters are updated as one flat
vector, trunk first, then the heads of each output layer, one head after the other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from typing_extensions import override

from alrao_rl.checks import number
from alrao_rl.core.heads import OutputHeads, all_finite
from alrao_rl.core.layout import Layout, Memory

if TYPE_CHECKING:
    from alrao_rl.core.config import AlraoConfig

State = dict[str, Tensor]

_COUNTS = ("steps", "reclones", "lost")
"""Kept of every segment: updates since it was made or last re-cloned, how often that was, how often for lack of finite
numbers; of the trunk, which is never re-cloned, how many updates were skipped for that."""


NOT_FINITE = (
    "as where advantages are normalised over a single step (normalize_advantage with n_steps=1 in one environment), or "
    "a reward, an observation or a learning rate is far too large"
)
"""What may have happened to a gradient."""


class SkippedUpdateWarning(UserWarning):
    """An update had a gradient that is not finite, and moved nothing by it."""


class Base:
    """A base update: ``direction(g, state, layout)`` turns a flat gradient ``[N]`` into a direction ``[N]``.

    ``state`` holds flat tensors ``[N]`` that start at zero, and ``steps``, the number of updates of each segment.
    """

    default_lr_range: tuple[float, float]
    buffers: tuple[str, ...] = ()
    compiled = False
    """Whether :meth:`update_memory` is there."""

    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        """Turn a flat gradient ``[N]`` into a direction ``[N]``; updates ``state`` in place."""
        raise NotImplementedError

    def update_memory(
        self, memory: Memory, present: list[bool], g: Tensor, rates: Tensor, state: State, scale: float
    ) -> float:
        """Move all parameters and count the step, by compiled code; return the sum of what was taken off.

        Parameters that are not ``present``, without a gradient, keep their place and their state.
        """
        raise NotImplementedError


class Sgd(Base):
    """u = g, or with momentum m: b ← m·b + g, u = b. Interval and base of the paper."""

    default_lr_range = (1e-5, 10.0)

    def __init__(self, momentum: float = 0.0) -> None:
        self.momentum = number("momentum", momentum, 0, 1, "[)")
        self.buffers = ("momentum_buffer",) if momentum else ()

    @override
    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        if not self.momentum:
            return g
        return state["momentum_buffer"].mul_(self.momentum).add_(g)


class Adam(Base):
    """m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², u = m̂/(√v̂ + ε), both bias-corrected (Kingma and Ba, arXiv 1412.6980)."""

    default_lr_range = (1e-6, 1e-1)
    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2 = number("beta1", beta1, 0, 1, "[)"), number("beta2", beta2, 0, 1, "[)")
        self.eps = number("eps", eps, 0, 1, "[)")

    @override
    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1 - self.beta1)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        correct1, correct2 = (layout.spread(_correction(beta, state["steps"])) for beta in (self.beta1, self.beta2))
        return (m / correct1) / ((v / correct2).sqrt_() + self.eps)


class RmsProp(Base):
    """v ← ρv + (1−ρ)g², u = g/√(v + ε), or g/(√v + ε) with ε outside the root.

    ε inside the root damps parameters with small gradients instead of amplifying them: with 1e-8, those whose root mean
    square is below 1e-4. It has to lie below what a gradient comes to in a large network, where a norm clipped to c
    leaves c/√N at most to each of N parameters, or all rates would shrink with the network. Without bias correction, as
    here by default, the first steps are larger: v starts at 0.
    """

    default_lr_range = (1e-6, 1e-1)
    buffers = ("square_avg",)
    compiled = True

    def __init__(
        self, decay: float = 0.99, eps: float = 1e-8, eps_inside: bool = True, bias_correction: bool = False
    ) -> None:
        self.decay, self.eps = number("decay", decay, 0, 1, "[)"), number("eps", eps, 0, 1, "[)")
        self.eps_inside, self.bias_correction = eps_inside, bias_correction

    @override
    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        v = state["square_avg"]
        v.mul_(self.decay).addcmul_(g, g, value=1 - self.decay)
        if self.bias_correction:
            v = v / layout.spread(_correction(self.decay, state["steps"]))
        return g / ((v + self.eps).sqrt_() if self.eps_inside else v.sqrt() + self.eps)

    @override
    def update_memory(
        self, memory: Memory, present: list[bool], g: Tensor, rates: Tensor, state: State, scale: float
    ) -> float:
        parameters = len(present), memory.moving(present), memory.sizes
        where = [x.data_ptr() for x in (g, rates, state["square_avg"], memory.segments, state["steps"])]
        options = self.decay, self.eps, self.eps_inside, self.bias_correction, scale
        return memory.library.rmsprop(*parameters, *where, *options)


class FeatureNormalized(Base):
    """u = g / r_i, with r_i the bias-corrected running root mean square of the gradient over feature i's parameters."""

    default_lr_range = (1e-6, 1e-1)
    buffers = ("square_avg",)

    def __init__(self, beta: float = 0.99, eps: float = 1e-8) -> None:
        self.beta, self.eps = number("beta", beta, 0, 1, "[)"), number("eps", eps, 0, 1, "[)")

    @override
    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        v = state["square_avg"]
        v.mul_(self.beta).addcmul_(g, g, value=1 - self.beta)
        mean = layout.feature_mean(v / layout.spread(_correction(self.beta, state["steps"])))
        return g / (mean.sqrt_() + self.eps)


BASES: dict[str, type[Base]] = {
    "rmsprop": RmsProp,
    "adam": Adam,
    "sgd": Sgd,
    "feature-normalized": FeatureNormalized,
}


class AlraoOptimizer(torch.optim.Optimizer):
    """The optimizer of a network made by :func:`~alrao_rl.core.convert.convert`.

    ``lr`` of the parameter group acts only by its ratio to the first non-zero value it had. ``step()`` also moves the
    averaging weights, by the evidence gathered since ``zero_grad()``, and re-clones lost heads. Its state is tensors
    and primitives.

    Args:
        network: a converted network.
        lr: see above; 1 unless an algorithm writes its own.

    Raises:
        ValueError: ``network`` is not a converted one, or of float16, or ``lr`` is no rate.

    The heads' gradients are not in ``.grad``, where one that diverges would decide on the clipping of all: what works
    on ``.grad`` of all parameters, such as a gradient scaler, does not reach them, nor does ``network.zero_grad()``:
    use the optimizer's.
    """

    # A gradient scaler would else keep from us that it is there, and scale nothing back in the heads.
    _step_supports_amp_scaling = True

    def __init__(self, network: nn.Module, lr: float = 1.0) -> None:
        if not hasattr(network, "alrao_config"):
            raise ValueError(f"{type(network).__name__} is not an Alrao network: pass it through convert() first")
        self._network = network
        self.config: AlraoConfig = network.alrao_config  # type: ignore[assignment]
        self._layers = [module for module in network.modules() if isinstance(module, OutputHeads)]
        self._layout = Layout(network, self._layers)
        self._base: Base = self.config.make_base()
        self._refuse_half()
        self._rates = self._flat = torch.empty(0)
        self._views: list[Tensor] = []
        self._version: list[tuple[int, int]] = []
        self._memory: Memory | None = None
        self._places: list[tuple[int, int, bool]] = []
        self.after_step: Callable[[AlraoOptimizer], None] | None = None
        lr = number("lr", lr, 0, ends="[)")
        super().__init__(self._layout.parameters, {"lr": lr, "first_lr": lr, "n_updates": 0})

    def _refuse_half(self) -> None:
        if hasattr(self._base, "eps") and any(p.dtype is torch.float16 for p in self._layout.parameters):
            raise ValueError(f"{self.config.base!r} divides by squares, 0 in float16: expected float32 or bfloat16")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a second group: the optimizer is that of a network."""
        if self.param_groups:
            raise ValueError("an AlraoOptimizer has one parameter group, that of its network: convert a larger network")
        # Past the guard against torch's compiler around it, which loads the compiler: a second of every start.
        add = torch.optim.Optimizer.add_param_group
        getattr(add, "__wrapped__", add)(self, param_group)

    def __getstate__(self) -> dict[str, Any]:
        # Torch's own keeps only its own three attributes, and a copy would do nothing. Buffers are made anew.
        own = {"_rates": torch.empty(0), "_flat": torch.empty(0), "_views": [], "_memory": None, "_places": []}
        return self.__dict__ | own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict()`` gave; ValueError if it is the state of another base update or network."""
        numbers = dict.fromkeys(self._base.buffers, self._layout.numel)
        expected = numbers | dict.fromkeys(_COUNTS, len(self._layout.sizes))
        for held in state_dict["state"].values():
            if (given := {name: len(values) for name, values in held.items()}) != expected:
                raise ValueError(
                    f"the state holds {given}, expected {expected}: it is of another base update than "
                    f"{self.config.base!r}, of another network or of another number of heads"
                )
        super().load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and the evidence that no step has used."""
        if set_to_none:  # torch's own does this with as much around it as an update of a small network
            for parameter in self._layout.parameters:
                parameter.grad = None
        else:
            super().zero_grad(set_to_none)
        for layer in self._layers:
            layer.drop_evidence()

    def reclones(self, layer: OutputHeads, which: Literal["reclones", "lost"] = "reclones") -> Tensor:
        """How often each head of an output layer was re-cloned, ``[J]``; or of these, because it was not finite."""
        state = self.state.get(self.param_groups[0]["params"][0])  # looking must not make an entry
        first = 1 + sum(before.n_heads for before in self._layers[: self._layers.index(layer)])
        counts = state[which] if state else torch.zeros(len(self._layout.sizes))
        return counts[first : first + layer.n_heads]

    @property
    def skipped(self) -> int:
        """How many updates were skipped, wholly or in part: the trunk's gradient, or that of all heads, not finite."""
        state = self.state.get(self.param_groups[0]["params"][0])
        return int(state["lost"][0]) if state else 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of averaging weights, trunk and heads, in this order: weights judge the outputs from before."""
        if _hooks_or_profiler(self):
            return self._hooked_step(closure)
        return self._step(closure)

    # Torch wraps every optimizer's step for these two, which costs as much as a quarter of the step of a small network.
    step.hooked = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if "found_inf" in self.__dict__:
            raise RuntimeError(
                "an AlraoOptimizer takes no GradScaler, which does not reach the heads' gradients: call "
                "loss.backward() and optimizer.step() without it; autocast to bfloat16 needs none"
            )
        if any([parameter.requires_grad for parameter in self._layout.frozen]):
            self._thaw()
        group = self.param_groups[0]
        group["n_updates"] += 1
        state, scale = self._prepare(group), self._scale(group)
        finite = [layer for layer in self._layers if layer.known_finite()]
        memory, broken = self._memory, None
        present = None if memory is None else memory.gather(self._flat)
        if present is not None:
            g, of_heads = self._flat, self._views[len(self._layout.trunk) :]
        else:
            g, present, broken = self._gather(state)
            of_heads = self._layout.heads(g)
        for layer, given, gradient in zip(self._layers, present[len(self._layout.trunk) :], of_heads, strict=True):
            if given:
                self._judge(layer, gradient)
        if memory is not None:
            moved = self._base.update_memory(memory, present, g, self._rates, state, scale)
            for parameter in group["params"]:
                torch.autograd.graph.increment_version(parameter)
            all_well = math.isfinite(moved)
        else:
            state["steps"] += 1
            self._update_tensors(g, present, state, scale)
            torch._foreach_sub_(group["params"], self._views)
            all_well = all_finite(self._flat)
        if not self._reclone(state, broken, all_well, group["n_updates"]):
            for layer in finite:
                layer.mark_finite()
        for layer in self._layers:
            layer.drop_evidence()
        if self.after_step is not None:
            self.after_step(self)
        return result

    def _thaw(self) -> None:
        """Take in parameters that were frozen before, so that they have rates and a state; the trunk's begins anew."""
        old, state, group = self._layout, self.state.pop(self.param_groups[0]["params"][0], {}), self.param_groups[0]
        self._layout, self._rates = Layout(self._network, self._layers), torch.empty(0)
        group["params"] = self._layout.parameters
        if state:
            for name in self._base.buffers:
                trunk = state[name].new_zeros(self._layout.n_trunk)
                state[name] = torch.cat([trunk, state[name][old.n_trunk :]])
            state["steps"][0] = 0
            self.state[group["params"][0]] = state

    def _update_tensors(self, g: Tensor, present: list[bool], state: State, scale: float) -> None:
        """Compute, in ``self._flat``, what is taken off every parameter."""
        everything = all(present)
        before = {} if everything else {name: state[name].clone() for name in self._base.buffers}
        torch.mul(self._base.direction(g, state, self._layout), self._rates, out=self._flat)
        if not everything:  # what received no gradient does not move and keeps its state
            pairs = zip(self._layout.parameters, present, strict=True)
            absent = torch.cat([torch.full_like(p, not given, dtype=torch.bool).reshape(-1) for p, given in pairs])
            self._flat.masked_fill_(absent, 0.0)
            for name, old in before.items():
                state[name].copy_(torch.where(absent, old, state[name]))
        if scale != 1.0:
            self._flat.mul_(scale)

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _prepare(self, group: dict[str, Any]) -> State:
        """Make the flat buffers on first use and whenever the rates are others: moved to a device, or loaded."""
        feature_rates: Tensor = self._network._buffers["alrao_rates"]  # type: ignore[assignment]
        version = [(feature_rates.data_ptr(), feature_rates._version)]
        for layer in self._layers:
            rates: Tensor = layer._buffers["rates"]  # type: ignore[assignment]
            version.append((rates.data_ptr(), rates._version))
        if version != self._version or not self._rates.numel():
            self._refuse_half()
            self._version = version
            self._rates = self._layout.rates(feature_rates)
            self._flat = torch.empty_like(self._rates)
            self._views = self._layout.views(self._flat)
        state: State = self.state[group["params"][0]]
        if not state:
            for name in self._base.buffers:
                state[name] = torch.zeros_like(self._rates)
            for name in _COUNTS:
                state[name] = torch.zeros(len(self._layout.sizes), device=feature_rates.device)
        if self._base.compiled:
            flat = [self._rates, *[state[name] for name in self._base.buffers]]
            places = [(x.data_ptr(), x.numel(), x.is_contiguous()) for x in (*self._layout.parameters, *flat)]
            if places != self._places:
                self._places, self._memory = places, Memory.of(self._layout, flat)
        return state

    @staticmethod
    def _scale(group: dict[str, Any]) -> float:
        """Ratio of ``lr`` to its first non-zero value; 1 before there is one."""
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

    def _gather(self, state: State) -> tuple[Tensor, list[bool], list[Tensor] | None]:
        """All gradients as one vector ``[N]``; which parameters have one; which heads of a layer are broken, or None.

        A number that is not finite, or has no finite square, becomes 0, with all of its head: it moves nothing and
        reaches no state.
        """
        layout = self._layout
        given = [*(parameter.grad for parameter in layout.trunk), *(layer.gradient for layer in self._layers)]
        present = [gradient is not None for gradient in given]
        given = [
            torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
            for g, p in zip(given, layout.parameters, strict=True)
        ]
        g = _flatten_dense_tensors(given).to(self._flat.dtype)
        if all_finite(torch.dot(g, g)):  # infinite, too, where a norm is
            return g, present, None
        wrong, broken = ~g.square().isfinite(), []
        skipped = wrong[: layout.n_trunk].any()
        for gradient in layout.heads(g):
            lost = ~gradient.norm(dim=1).isfinite()
            gradient.masked_fill_(lost[:, None], 0.0)
            # Where no head has a finite gradient the fault is in the data: the heads are as good as they were.
            broken.append(lost & ~lost.all())
            skipped = skipped | lost.all()
        state["lost"][0] += skipped
        if skipped and state["lost"][0] == 1:
            warnings.warn(
                f"update {self.param_groups[0]['n_updates']} was skipped: its loss or the gradient is nan or infinite, "
                f"{NOT_FINITE}; later ones are only counted",
                SkippedUpdateWarning,
                stacklevel=5,
            )
        return g.masked_fill_(wrong, 0.0), present, broken

    def _judge(self, layer: OutputHeads, gradient: Tensor) -> None:
        """Let a layer's evidence move its weights, then clip the gradient ``[J, P]`` of every head by itself."""
        layer.update_averaging(gradient)
        if isinstance(limit := self.config.head_max_grad_norm, float):
            if self._memory is not None:
                self._memory.library.clip_rows(*gradient.shape, gradient.data_ptr(), limit)
            else:
                gradient.renorm_(2, 0, limit)

    def _reclone(self, state: State, broken: list[Tensor] | None, all_well: bool, n_updates: int) -> bool:
        """Replace heads that broke in this step, and every ``reclone_interval`` steps those without weight.

        False if there was nothing to look for: all that was added is finite.

        In the same step: a target network that copied a number that is not finite would keep it for ever.
        """
        interval = self.config.reclone_interval
        due = bool(interval) and n_updates % interval == 0
        if all_well and broken is None and not due:
            return False
        buffers = [self._layout.heads(state[name]) for name in self._base.buffers]
        first = 1
        for k, layer in enumerate(self._layers):
            lost = ~layer.theta.isfinite().all(1)
            if broken is not None:
                lost |= broken[k]
            state["lost"][first : first + layer.n_heads] += lost
            if due:
                lost |= layer.averaging_weights < 0.1 / layer.n_heads
            layer.reclone(lost)
            for matrices in buffers:
                matrices[k].masked_fill_(lost[:, None], 0.0)
            state["steps"][first : first + layer.n_heads].masked_fill_(lost, 0.0)
            state["reclones"][first : first + layer.n_heads] += lost
            first += layer.n_heads
        return True


def _hooks_or_profiler(optimizer: torch.optim.Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )


def _correction(beta: float, steps: Tensor) -> Tensor:
    """1 − β^t without cancellation."""
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)
