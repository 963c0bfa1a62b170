"""The base update: a first-order rule that turns a gradient g into a direction u, which the learning rates scale.

A new one is a subclass of :class:`BaseUpdate` and an entry in :data:`BASES`. The default interval of learning rates
belongs to the base, as the size of its directions does (docs/method.md, "The base update").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from alrao_rl.checks import number
from alrao_rl.core.layout import Layout

State = dict[str, Tensor]


class BaseUpdate:
    """A base update: ``direction(g, state, layout)`` turns a flat gradient ``[…, N]`` into a direction ``[…, N]``.

    ``state`` holds the flat tensors ``[…, N]`` that ``buffers`` names, which start at zero, and ``steps``, ``[…, S]``,
    the number of updates of each of the S segments (:mod:`alrao_rl.core.layout`).
    """

    default_lr_range: tuple[float, float]
    buffers: tuple[str, ...] = ()

    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        """Turn a flat gradient ``[…, N]`` into a direction ``[…, N]``; updates ``state`` in place."""
        raise NotImplementedError


class Sgd(BaseUpdate):
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


class Adam(BaseUpdate):
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
        # By segment: a head that was re-cloned has fewer steps behind it than the others.
        correct1, correct2 = (layout.spread(_correction(beta, state["steps"])) for beta in (self.beta1, self.beta2))
        return (m / correct1) / ((v / correct2).sqrt_() + self.eps)


class RmsProp(BaseUpdate):
    """v ← ρv + (1−ρ)g², u = g/√(v + ε), or g/(√v + ε) with ε outside the root.

    ε inside the root damps parameters with small gradients instead of amplifying them: with 1e-8, those whose root mean
    square is below 1e-4. It has to lie below what a gradient comes to in a large network, where a norm clipped to c
    leaves c/√N at most to each of N parameters, or all rates would shrink with the network. Without bias correction, as
    here by default, the first steps are larger: v starts at 0.
    """

    default_lr_range = (1e-6, 1e-1)
    buffers = ("square_avg",)

    def __init__(
        self, decay: float = 0.99, eps: float = 1e-8, eps_inside: bool = True, bias_correction: bool = False
    ) -> None:
        self.decay, self.eps = number("decay", decay, 0, 1, "[)"), number("eps", eps, 0, 1, "[)")
        self.eps_inside, self.bias_correction = eps_inside, bias_correction

    @override
    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        v = state["square_avg"]
        v.mul_(self.decay).addcmul_(g, g, value=1 - self.decay)
        if self.bias_correction:  # not in place: v is the state
            v = v / layout.spread(_correction(self.decay, state["steps"]))
        return g / ((v + self.eps).sqrt_() if self.eps_inside else v.sqrt() + self.eps)


class FeatureNormalized(BaseUpdate):
    """u = g / r_i, with r_i the bias-corrected running root mean square of the gradient over feature i's parameters."""

    default_lr_range = (1e-6, 1e-1)
    buffers = ("square_avg",)

    def __init__(self, beta: float = 0.99, eps: float = 1e-8) -> None:
        self.beta, self.eps = number("beta", beta, 0, 1, "[)"), number("eps", eps, 0, 1, "[)")

    @override
    def direction(self, g: Tensor, state: State, layout: Layout) -> Tensor:
        v = state["square_avg"]
        v.mul_(self.beta).addcmul_(g, g, value=1 - self.beta)
        # One scale for all incoming parameters of a feature, as they have one rate. The ratios among them are the
        # gradient's own, where RMSprop would equalise them.
        mean = layout.feature_mean(v / layout.spread(_correction(self.beta, state["steps"])))
        return g / (mean.sqrt_() + self.eps)


BASES: dict[str, type[BaseUpdate]] = {
    "rmsprop": RmsProp,
    "adam": Adam,
    "sgd": Sgd,
    "feature-normalized": FeatureNormalized,
}


def _correction(beta: float, steps: Tensor) -> Tensor:
    """1 − β^t, ``[…, S]``."""
    # expm1, because 1 − β^t cancels for β near 1 and small t.
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)
