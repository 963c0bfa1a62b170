"""Model averaging: the weights a_j of the output heads, from how well each head has been doing.

Every rule is a small module: :meth:`~AveragingRule.move` maps weights to weights, ``update`` does so in place,
``step`` out of place, and ``forget(lost)`` clears the statistics of re-cloned heads. Shapes: J heads, P parameters per
head. Weights are ``[J]``, non-negative, and sum to 1. Any dimensions may stand in front of all these (``…``): the heads
of S networks are ``[S, J]``, and each network gets, bit for bit, what it would get alone.

==========================  ==============  ===========================================================================
rule                        evidence        source
==========================  ==============  ===========================================================================
``switch``                  losses          van Erven, Grünwald, de Rooij, "Catching up faster by switching sooner"
                                            (2012), https://doi.org/10.1111/j.1467-9868.2011.01025.x
``bayes``                   losses          the posterior of a mixture, with a discount for moving targets
``exponentiated-gradient``  gains           Kivinen, Warmuth (1997), https://doi.org/10.1006/inco.1996.2612, with the
                                            gain of the averaged loss, −∂ℓ/∂a_j, and a scale-free step
``whiteness``               gradient        ours, for bootstrapped values: see :class:`Whiteness`
``uniform``                 none            a_j = 1/J
==========================  ==============  ===========================================================================

A new rule is a subclass of :class:`AveragingRule` with a :meth:`~AveragingRule.move`, and an entry in :data:`RULES`.
docs/method.md, "Averaging rules", derives those that are here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from alrao_rl.checks import construct, number

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Gains of identical heads differ by rounding, relative to their size, by up to this much."""
LARGEST = 2.0**62
"""Magnitudes are clamped to this, so that squares, squared differences and their means stay finite in float32."""


@dataclass(slots=True)
class Evidence:
    """What one optimizer step knows of the heads of a layer; branches are ``[average, head_1 … head_J]``."""

    residual: Tensor | None = None
    """``[…, 1 + J]``: mean squared residual over the batch, before any clipping."""
    nll: Tensor | None = None
    """``[…, 1 + J]``: negative log-likelihood of the batch, summed over it."""
    loss: Tensor | None = None
    """``[…, 1 + J]``: any other loss."""
    gains: Tensor | None = None
    """``[…, J]``: −∂ℓ/∂a_j of the average branch."""
    gradient: Tensor | None = None
    """``[…, J, P]``: gradient of every head."""

    @property
    def losses(self) -> Tensor | None:
        """The loss of every branch, ``[…, 1 + J]``: a likelihood if known, else residuals, else any other loss."""
        return next((losses for losses in (self.nll, self.residual, self.loss) if losses is not None), None)

    def clear(self) -> None:
        """Forget everything."""
        self.residual = self.nll = self.loss = self.gains = self.gradient = None

    def add(self, name: str, value: Tensor) -> None:
        """Add ``value`` to the field ``name``: one step may follow several losses, or several backward passes."""
        before = getattr(self, name)
        setattr(self, name, value if before is None else before + value)


class AveragingRule(nn.Module):
    """The base of all rules: a function of weights and evidence, with statistics as its buffers.

    Args:
        rates: learning rates of the heads, ascending, ``[…, J]``. The statistics have the same dimensions in front.
    """

    uses = "nothing"
    """The field of :class:`Evidence` that the rule needs; without it, the weights stay as they are."""

    def __init__(self, rates: Tensor) -> None:
        super().__init__()
        self.n_heads, self.batch = rates.shape[-1], rates.shape[:-1]

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """The rule itself: new weights ``[…, J]`` from old ones; updates the statistics in place.

        Called only if the evidence that the rule :attr:`uses` is there.
        """
        return weights

    def update(self, weights: Tensor, evidence: Evidence) -> None:
        """Move ``weights``, ``[…, J]``, in place."""
        if getattr(evidence, self.uses, None) is not None:
            weights.copy_(self.move(weights, evidence))

    def step(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """Return the weights after one update, ``[…, J]``."""
        updated = weights.detach().clone()
        self.update(updated, evidence)
        return updated

    def prepare(self, n_parameters: int) -> None:
        """Allocate statistics that need P, the number of parameters per head."""

    def forget(self, lost: Tensor) -> None:
        """Clear the statistics of the heads where the mask ``lost``, ``[…, J]``, is true."""


class Uniform(AveragingRule):
    """a_j = 1/J forever."""


class Likelihood(AveragingRule):
    """Evidence from losses: log p_j of the new data under head j.

    Regression: log p_j = −n/2 · r_j/σ², with r_j the mean squared residual of head j over the batch and σ² the
    bias-corrected running mean of the *averaged* output's squared residual. ``n`` counts new data, not the batch:
    replay and epochs show each datum many times. Classification: log p_j is the log-likelihood itself. Any other loss:
    −n · L_j / running mean of the average branch's loss.
    """

    uses = "losses"
    scale: Tensor
    """``[…]``: running mean of the average branch's loss, from 0."""
    correction: Tensor
    """``[…]``: decay^t, the part of that mean still due to its start at 0."""

    def __init__(self, rates: Tensor, n: float = 1.0, decay: float = 0.99) -> None:
        super().__init__(rates)
        self.n, self.decay = number("n", n, 0), number("decay", decay, 0, 1)
        self.register_buffer("scale", torch.zeros(self.batch))
        self.register_buffer("correction", torch.ones(self.batch))

    def likelihood(self, evidence: Evidence) -> Tensor:
        """p_j up to a common factor, ``[…, J]``.

        0 for a head whose loss is not finite; equal for all if no head has a finite loss.
        """
        losses = cast(Tensor, evidence.losses)
        if losses is evidence.nll:
            log_p = -losses[..., 1:]
        else:
            # σ² comes from the average branch alone: a diverging head cannot inflate it and so hide among the others,
            # and dividing by it makes the rule independent of the scale of the values.
            self.scale.lerp_(losses[..., 0].abs().nan_to_num_(0.0, 0.0), 1 - self.decay)
            self.correction.mul_(self.decay)
            factor = self.n / 2 if losses is evidence.residual else self.n
            # −factor · L_j / (scale / (1 − correction)), the bias-corrected mean.
            log_p = losses[..., 1:] * (self.correction - 1).div_(self.scale).mul_(factor).unsqueeze(-1)
        # The lowest finite number instead of −∞: where all heads have it, the softmax is uniform and not NaN.
        never = torch.finfo(log_p.dtype).min
        return log_p.nan_to_num_(never, never, never).softmax(-1)


class Bayes(Likelihood):
    """a_j ← a_j^discount · p_j, normalised. With a discount of 1 it never changes its mind once it has decided."""

    posterior: Tensor

    def __init__(self, rates: Tensor, discount: float = 0.99, n: float = 1.0, decay: float = 0.99) -> None:
        super().__init__(rates, n, decay)
        self.discount = number("discount", discount, 0, 1, "(]")
        self.register_buffer("posterior", torch.full(rates.shape, 1 / self.n_heads))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        # Not pow: its vectorised loop and its remainder round differently, so that results would depend on how many
        # networks stand side by side.
        prior = self.posterior.log().mul_(self.discount).exp_()
        return _normalise(self.posterior, prior.mul_(self.likelihood(evidence)), 1).clone()


class Switch(Likelihood):
    """A Bayesian mixture over *sequences* of heads, so that weight moves quickly when another head becomes the best.

    Prior over switching times π(t) = 1/(t(t+1)), whose hazard is h_t = 1/(t+1); θ = 0.9999. Start with
    w^a_j = θ/J, w^b_j = (1−θ)/J. At step t multiply both by p_j; pool = h_t Σ_j w^a_j;
    w^a_j ← (1−h_t) w^a_j + θ·pool/J; w^b_j ← w^b_j + (1−θ)·pool/J; normalise; a_j = w^a_j + w^b_j.

    Where losses are not log-likelihoods, a_j is the posterior of step t, (w^a_j + w^b_j) p_j before the pool,
    normalised.
    """

    mixture: Tensor
    """``[…, 2, J]``: w^a and w^b."""
    prior: Tensor
    """``[2, 1]``: θ/J and (1−θ)/J."""
    t: Tensor
    """``[…]``: steps so far."""

    def __init__(
        self, rates: Tensor, theta: float = 0.9999, hazard: bool = True, n: float = 1.0, decay: float = 0.99
    ) -> None:
        super().__init__(rates, n, decay)
        theta, self.hazard = number("theta", theta, 0, 1), hazard
        self.register_buffer("prior", torch.tensor([[theta], [1 - theta]]) / self.n_heads)
        self.register_buffer("mixture", self.prior.repeat(*self.batch, 1, self.n_heads))
        self.register_buffer("t", torch.zeros(self.batch))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        mixture = self.mixture * self.likelihood(evidence).unsqueeze(-2)
        posterior = mixture.sum(-2)
        if self.hazard:
            t = self.t.add_(1).unsqueeze(-1)
            # h_t w^a_j, in place in its row, then (1−h_t) w^a_j = t · h_t w^a_j.
            switching = mixture[..., 0, :].div_(t + 1)
            pool = switching.sum(-1)[..., None, None]
            switching.mul_(t)
            mixture.addcmul_(self.prior, pool)
        updated = _normalise(self.mixture, mixture, 2).sum(-2)
        if evidence.losses is evidence.nll:
            return updated
        # The pool leaves every head about 1/(J t), which does no harm among probabilities but ruins an average of
        # outputs: a head whose rate is far too large grows faster than that share shrinks, and the trunk learns from
        # the average.
        return posterior.div_(posterior.sum(-1, keepdim=True))


class ExponentiatedGradient(AveragingRule):
    """Follow the gain of the averaged loss, g_j = −∂ℓ/∂a_j: what the average would gain from more of head j.

    d_j = g_j − Σ_k a_k g_k, 0 where it is mere rounding of gains of their usual size;
    v = bias-corrected running mean of Σ_j a_j d_j²;
    a_j ← (1−α) a_j exp(clip(β/m · d_j/√v, ±c))/Z + α/J. For policies, which have no label and so no likelihood.

    m, ``reuse``, is how often the algorithm shows each datum, as PPO does in its epochs: β counts *new* data.
    Otherwise the noise of one rollout would add up m times and decide.
    """

    uses = "gains"
    moments: Tensor
    """``[…, 3]``: running means of Σ a g² and of Σ a d², both from 0, and what is left of that start, decay^t."""

    def __init__(
        self,
        rates: Tensor,
        beta: float = 0.3,
        alpha: float = 1e-3,
        clip: float = 1.0,
        decay: float = 0.99,
        reuse: float = 1.0,
    ) -> None:
        super().__init__(rates)
        self.reuse = number("reuse", reuse, 1, ends="[)")
        # exp(89) overflows float32; a clip at 80 already gives everything to one head.
        self.beta, self.clip = number("beta", beta, 0), min(number("clip", clip, 0), 80.0)
        self.alpha, self.decay = number("alpha", alpha, 0, 1), number("decay", decay, 0, 1)
        self.register_buffer("moments", torch.tensor([0.0, 0.0, 1.0]).repeat(*self.batch, 1))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        # One infinite gain would make the running means infinite, and a decayed infinity never comes back.
        gain = cast(Tensor, evidence.gains).nan_to_num(0.0, 0.0, 0.0).clamp_(-LARGEST, LARGEST)
        square, variance, correction = self.moments.split(1, -1)
        correction.mul_(self.decay)
        square.lerp_(self.mean(weights, gain.square()), 1 - self.decay)
        # d_j is divided by its own spread: where all heads agree, that would blow rounding errors up to a decision.
        rounding = (square / (1 - correction)).sqrt_().mul_(ROUNDING)
        advantage = gain - self.mean(weights, gain)
        advantage.masked_fill_(advantage.abs() <= rounding, 0.0)
        variance.lerp_(self.mean(weights, advantage.square()), 1 - self.decay)
        # Squares of gains below 1e-19 underflow: their variance is unknown, and d_j/√v would be too large.
        advantage.masked_fill_(variance < torch.finfo(variance.dtype).tiny, 0.0)
        spread = (variance / (1 - correction)).sqrt_()
        exponent = advantage.div_(spread).mul_(self.beta / self.reuse).nan_to_num_(0.0).clamp_(-self.clip, self.clip)
        updated = exponent.exp_().mul_(weights)
        # The share α/J keeps every head able to come back.
        return updated.mul_((1 - self.alpha) / updated.sum(-1, keepdim=True)).add_(self.alpha / self.n_heads)

    def mean(self, weights: Tensor, values: Tensor) -> Tensor:
        """Σ_j a_j x_j, ``[…, J]`` to ``[…, 1]``."""
        return (weights * values).sum(-1, keepdim=True)


class Whiteness(AveragingRule):
    """Weight flows along the grid of rates to the head whose gradients are uncorrelated in time.

    A tracker at its best rate has uncorrelated innovations. Per head,
    ρ_j = running mean ⟨g_t, g_{t−1}⟩ / running mean ‖g_t‖² of the head's own gradient: near +1 for a head that is too
    slow (it keeps asking for the same change), near −1 for one that overshoots, monotone in the rate between them.
    κ a_j max(ρ_j − ρ*, 0) flows from j to j+1 and κ a_j max(ρ* − ρ_j, 0) from j to j−1, at most ``max_flow`` a_j a
    step; ρ* = 0, or the slowest head's ρ where that is negative. It needs no likelihood, no variance and no scale, and
    it does not matter where the labels come from.
    """

    uses = "gradient"
    previous: Tensor
    """``[…, J, P]``: g_{t−1}."""
    product: Tensor
    """``[…, J]``: running mean of ⟨g_t, g_{t−1}⟩."""
    norm: Tensor
    """``[…, J]``: running mean of ‖g_t‖²."""
    faster: Tensor
    """``[…, J − 1, J]``: row k moves weight from head k to head k + 1, so −1 at k and +1 at k + 1."""

    def __init__(self, rates: Tensor, window: float = 100.0, kappa: float = 0.25, max_flow: float = 0.3) -> None:
        super().__init__(rates)
        self.kappa, self.max_flow = number("kappa", kappa, 0), number("max_flow", max_flow, 0, 1)
        self.decay = 1 - 1 / max(number("window", window, 0), 1.0)
        self.register_buffer("previous", torch.zeros(*rates.shape, 0))
        self.register_buffer("product", torch.zeros(rates.shape))
        self.register_buffer("norm", torch.zeros(rates.shape))
        # Between heads of equal rates there is no direction to flow in: such rows are 0.
        steps = torch.eye(self.n_heads)[1:] - torch.eye(self.n_heads)[:-1]
        self.register_buffer("faster", steps * (rates[..., 1:] > rates[..., :-1]).unsqueeze(-1))

    def prepare(self, n_parameters: int) -> None:
        """Allocate the last gradient, ``[…, J, P]``."""
        self.previous = torch.zeros(*self.batch, self.n_heads, n_parameters)

    def largest(self) -> float:
        """Bound on each entry of a gradient, so that the sum of the squares of all P of them is finite."""
        return LARGEST / math.sqrt(max(self.previous.shape[-1], 1))

    def correlation(self) -> Tensor:
        """ρ_j, ``[…, J]``: how much each gradient resembles the one before it; 0 before any gradient."""
        return (self.product / self.norm).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        largest = self.largest()
        gradient = cast(Tensor, evidence.gradient).clamp(-largest, largest)
        # Both means start at 0 with the same decay, so no bias correction: it would cancel in their ratio.
        self.product.lerp_(torch.linalg.vecdot(gradient, self.previous), 1 - self.decay)
        self.norm.lerp_(torch.linalg.vecdot(gradient, gradient), 1 - self.decay)
        self.previous.copy_(gradient)
        rho = self.correlation()
        # A slow head cannot overshoot: if even the slowest has ρ < 0, gradients alternate whatever the rate, and only
        # what goes beyond that counts as overshooting.
        excess = rho - rho[..., :1].clamp(max=0.0)
        flow = excess.mul_(self.kappa).clamp_(-self.max_flow, self.max_flow).mul_(weights)
        # […, J − 1], across each edge of the grid: up from head k, and (negative) down from head k + 1.
        moved = flow[..., :-1].clamp(min=0).add_(flow[..., 1:].clamp(max=0))
        moved.mul_(self.faster.diagonal(1, -2, -1))
        updated = weights.clone()
        updated[..., 1:].add_(moved)
        updated[..., :-1].sub_(moved)
        return updated.clamp_(min=0).div_(updated.sum(-1, keepdim=True))

    def forget(self, lost: Tensor) -> None:
        """Clear the gradients of lost heads."""
        self.product.masked_fill_(lost, 0.0)
        self.norm.masked_fill_(lost, 0.0)
        self.previous.masked_fill_(lost.unsqueeze(-1), 0.0)


Spec = str | Mapping[str, Any]
"""A name of :data:`RULES`, or a dict with the name under ``rule`` and the rule's options beside it."""
RULES: dict[str, type[AveragingRule]] = {
    "switch": Switch,
    "bayes": Bayes,
    "exponentiated-gradient": ExponentiatedGradient,
    "whiteness": Whiteness,
    "uniform": Uniform,
}


def rule_name(spec: Spec) -> str:
    """The name of an averaging rule given as a name or as a dict."""
    return spec if isinstance(spec, str) else str(spec["rule"])


def make_rule(
    spec: Spec, rates: Tensor, what: str = "averaging rule", rules: Mapping[str, type[AveragingRule]] = RULES
) -> AveragingRule:
    """Make an averaging rule for heads with the given ``rates``, ``[…, J]``.

    Args:
        spec: which rule, with which options, see :data:`Spec`.
        rates: learning rates of the heads, ascending.
        what: what to call it in errors.
        rules: the classes by name.

    Raises:
        ValueError, TypeError: for an unknown rule, or an option that it does not take, with the nearest choice.
    """
    if not isinstance(spec, str) and not (isinstance(spec, Mapping) and isinstance(spec.get("rule"), str)):
        raise TypeError(f"{what} is {spec!r}, expected the name of a rule or a dict with one under 'rule'")
    options = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "rule"}
    rule: AveragingRule = construct(what, rules, rule_name(spec), options, rates)
    return rule


def _normalise(state: Tensor, mixture: Tensor, dims: int) -> Tensor:
    """Write ``mixture``, divided by its sum over the last ``dims`` dimensions, into ``state``."""
    total = mixture.sum(tuple(range(-dims, 0)), keepdim=True)
    # Products of likelihoods underflow; a head at exactly 0 would stay there whatever it does later.
    return torch.div(mixture, total, out=state).clamp_(min=torch.finfo(state.dtype).tiny)
