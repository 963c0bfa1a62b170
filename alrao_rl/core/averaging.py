"""Model averaging: the weights a_j of the output heads, from how well each head has been doing.

Every rule is a small module: ``step(weights, evidence)`` returns the weights after one update, ``update`` writes them
in place, ``forget(lost)`` clears what it knows of re-cloned heads. Shapes: J heads, P parameters a head. Weights are
``[J]``, not negative, of sum 1. Any dimensions may stand in front of all these (``…``): the heads of S networks are
``[S, J]``, and what happens to each of them is what would happen to it alone, bit for bit.

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

A new rule is a subclass of :class:`AveragingRule` with a :meth:`~AveragingRule.move`, and a line in :data:`RULES`.
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
"""Heads that are alike differ by as much, and what is divided by its own spread makes a choice of it."""
LARGEST = 2.0**62
"""What is larger counts as this: squares of it, and of differences, are finite in 32 bits, and so their means."""


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
        """What the heads lost, ``[…, 1 + J]``, by the most telling measure there is."""
        return next((losses for losses in (self.nll, self.residual, self.loss) if losses is not None), None)

    def clear(self) -> None:
        """Forget everything."""
        self.residual = self.nll = self.loss = self.gains = self.gradient = None

    def add(self, name: str, value: Tensor) -> None:
        """Add to what is known: several losses, or backward passes, before one step."""
        before = getattr(self, name)
        setattr(self, name, value if before is None else before + value)


class AveragingRule(nn.Module):
    """What all rules share; by itself it never moves a weight.

    Args:
        rates: learning rates of the heads, ascending, ``[…, J]``. Its statistics have the same dimensions in front.
    """

    uses = "nothing"
    """The field of :class:`Evidence` that it decides by."""

    def __init__(self, rates: Tensor) -> None:
        super().__init__()
        self.n_heads, self.batch = rates.shape[-1], rates.shape[:-1]

    def step(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """Return the weights after one update, ``[…, J]``."""
        updated = weights.detach().clone()
        self.update(updated, evidence)
        return updated

    def update(self, weights: Tensor, evidence: Evidence) -> None:
        """:meth:`step` in place; without evidence nothing happens."""
        if getattr(evidence, self.uses, None) is not None:
            weights.copy_(self.move(weights, evidence))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """The rule: weights to weights, ``[…, J]``, by evidence that is there. Statistics are updated in place."""
        return weights

    def prepare(self, n_parameters: int) -> None:
        """Make room for what the rule keeps of each of a head's ``n_parameters``."""

    def forget(self, lost: Tensor) -> None:
        """Clear the statistics of the heads where the mask ``lost``, ``[…, J]``, is true."""


class Uniform(AveragingRule):
    """a_j = 1/J for ever."""


class Likelihood(AveragingRule):
    """Evidence from losses: log p_j of the new data under head j.

    Regression: log p_j = −n/2 · r_j/σ², with r_j the mean squared residual of head j over the batch and σ² the
    bias-corrected running mean of the *averaged* output's squared residual: a diverged head cannot inflate it, and the
    scale of the values does not matter. ``n`` counts new data, not the batch: replay and epochs show a datum many
    times. Classification: log p_j is the log-likelihood itself. Any other loss: −n · L_j / running mean of the
    average branch's loss.
    """

    uses = "losses"
    scale: Tensor
    correction: Tensor

    def __init__(self, rates: Tensor, n: float = 1.0, decay: float = 0.99) -> None:
        super().__init__(rates)
        self.n, self.decay = number("n", n, 0), number("decay", decay, 0, 1)
        self.register_buffer("scale", torch.zeros(self.batch))
        self.register_buffer("correction", torch.ones(self.batch))

    def likelihood(self, evidence: Evidence) -> Tensor:
        """p_j up to a common factor, ``[…, J]``.

        0 for a head whose loss is not finite; the same for all if no head has a finite one.
        """
        losses = cast(Tensor, evidence.losses)
        if losses is evidence.nll:
            log_p = -losses[..., 1:]
        else:
            self.scale.lerp_(losses[..., 0].abs().nan_to_num_(0.0, 0.0), 1 - self.decay)
            self.correction.mul_(self.decay)
            factor = self.n / 2 if losses is evidence.residual else self.n
            log_p = losses[..., 1:] * (self.correction - 1).div_(self.scale).mul_(factor).unsqueeze(-1)
        # Finite, so that a softmax over nothing else is uniform.
        never = torch.finfo(log_p.dtype).min
        return log_p.nan_to_num_(never, never, never).softmax(-1)


class Bayes(Likelihood):
    """a_j ← a_j^discount · p_j, normalised. A discount of 1 never comes back once it has decided."""

    posterior: Tensor

    def __init__(self, rates: Tensor, discount: float = 0.99, n: float = 1.0, decay: float = 0.99) -> None:
        super().__init__(rates, n, decay)
        self.discount = number("discount", discount, 0, 1, "(]")
        self.register_buffer("posterior", torch.full(rates.shape, 1 / self.n_heads))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        # Not pow, which rounds the last of many numbers otherwise than the others.
        prior = self.posterior.log().mul_(self.discount).exp_()
        return _normalise(self.posterior, prior.mul_(self.likelihood(evidence)), 1).clone()


class Switch(Likelihood):
    """A Bayesian mixture over *sequences* of heads, so that weight moves quickly when another head becomes the best.

    Prior over switching times π(t) = 1/(t(t+1)), whose hazard is h_t = 1/(t+1); θ = 0.9999. Start with
    w^a_j = θ/J, w^b_j = (1−θ)/J. At step t multiply both by p_j; pool = h_t Σ_j w^a_j;
    w^a_j ← (1−h_t) w^a_j + θ·pool/J; w^b_j ← w^b_j + (1−θ)·pool/J; normalise; a_j = w^a_j + w^b_j.

    The pool leaves every head some 1/(J t), which does no harm among probabilities. An average of outputs it ruins: a
    head whose rate is far too large grows faster than that share falls, and the trunk learns from the average. So where
    losses are no log-likelihoods a_j is what step t said of head j, (w^a_j + w^b_j) p_j before the pool, normalised.
    """

    mixture: Tensor
    prior: Tensor
    t: Tensor

    def __init__(
        self, rates: Tensor, theta: float = 0.9999, hazard: bool = True, n: float = 1.0, decay: float = 0.99
    ) -> None:
        super().__init__(rates, n, decay)
        theta, self.hazard = number("theta", theta, 0, 1), hazard
        # Rows w^a and w^b.
        self.register_buffer("prior", torch.tensor([[theta], [1 - theta]]) / self.n_heads)
        self.register_buffer("mixture", self.prior.repeat(*self.batch, 1, self.n_heads))
        self.register_buffer("t", torch.zeros(self.batch))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        mixture = self.mixture * self.likelihood(evidence).unsqueeze(-2)
        posterior = mixture.sum(-2)
        if self.hazard:
            t = self.t.add_(1).unsqueeze(-1)
            switching = mixture[..., 0, :].div_(t + 1)  # times the hazard
            pool = switching.sum(-1)[..., None, None]
            switching.mul_(t)  # times one minus the hazard
            mixture.addcmul_(self.prior, pool)
        updated = _normalise(self.mixture, mixture, 2).sum(-2)
        return updated if evidence.losses is evidence.nll else posterior.div_(posterior.sum(-1, keepdim=True))


class ExponentiatedGradient(AveragingRule):
    """Follow the gain of the averaged loss, g_j = −∂ℓ/∂a_j: what the average would gain from more of head j.

    d_j = g_j − Σ_k a_k g_k, 0 where it is mere rounding of gains of their usual size;
    v = bias-corrected running mean of Σ_j a_j d_j²;
    a_j ← (1−α) a_j exp(clip(β/m · d_j/√v, ±c))/Z + α/J. For policies, which have no label and so no likelihood.

    m, ``reuse``, is how often the algorithm shows every datum, as PPO does in its epochs: β counts *new* data.
    Otherwise the noise of one rollout adds up m times, and decides.
    """

    uses = "gains"
    moments: Tensor
    """Running means of Σ a g² and of Σ a d², and what their beginning at 0 leaves of them, β^t."""

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
        # e^80 is all but everything, e^89 is infinite.
        self.beta, self.clip = number("beta", beta, 0), min(number("clip", clip, 0), 80.0)
        self.alpha, self.decay = number("alpha", alpha, 0, 1), number("decay", decay, 0, 1)
        self.register_buffer("moments", torch.tensor([0.0, 0.0, 1.0]).repeat(*self.batch, 1))

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        gain = cast(Tensor, evidence.gains).nan_to_num(0.0, 0.0, 0.0).clamp_(-LARGEST, LARGEST)
        square, variance, correction = self.moments.split(1, -1)
        correction.mul_(self.decay)
        square.lerp_(self.mean(weights, gain.square()), 1 - self.decay)
        rounding = (square / (1 - correction)).sqrt_().mul_(ROUNDING)
        advantage = gain - self.mean(weights, gain)
        advantage.masked_fill_(advantage.abs() <= rounding, 0.0)
        variance.lerp_(self.mean(weights, advantage.square()), 1 - self.decay)
        # Of gains whose squares are beneath what 32 bits hold nothing is known.
        advantage.masked_fill_(variance < torch.finfo(variance.dtype).tiny, 0.0)
        spread = (variance / (1 - correction)).sqrt_()
        exponent = advantage.div_(spread).mul_(self.beta / self.reuse).nan_to_num_(0.0).clamp_(-self.clip, self.clip)
        updated = exponent.exp_().mul_(weights)
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
    does not care who made the labels.
    """

    uses = "gradient"
    previous: Tensor
    product: Tensor
    norm: Tensor
    faster: Tensor

    def __init__(self, rates: Tensor, window: float = 100.0, kappa: float = 0.25, max_flow: float = 0.3) -> None:
        super().__init__(rates)
        self.kappa, self.max_flow = number("kappa", kappa, 0), number("max_flow", max_flow, 0, 1)
        self.decay = 1 - 1 / max(number("window", window, 0), 1.0)
        self.register_buffer("previous", torch.zeros(*rates.shape, 0))
        self.register_buffer("product", torch.zeros(rates.shape))
        self.register_buffer("norm", torch.zeros(rates.shape))
        # Row k takes weight from head k to head k + 1; between heads of one rate there is no direction to flow in.
        steps = torch.eye(self.n_heads)[1:] - torch.eye(self.n_heads)[:-1]
        self.register_buffer("faster", steps * (rates[..., 1:] > rates[..., :-1]).unsqueeze(-1))

    def prepare(self, n_parameters: int) -> None:
        """Make room for the last gradient."""
        self.previous = torch.zeros(*self.batch, self.n_heads, n_parameters)

    def largest(self) -> float:
        """Of one number of a gradient, so that the square of all of them is finite."""
        return LARGEST / math.sqrt(max(self.previous.shape[-1], 1))

    def correlation(self) -> Tensor:
        """ρ_j, ``[…, J]``: how much each gradient resembles the one before it; 0 before any gradient."""
        return (self.product / self.norm).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)

    def move(self, weights: Tensor, evidence: Evidence) -> Tensor:
        """See :meth:`AveragingRule.move`."""
        largest = self.largest()
        gradient = cast(Tensor, evidence.gradient).clamp(-largest, largest)
        self.product.lerp_(torch.linalg.vecdot(gradient, self.previous), 1 - self.decay)
        self.norm.lerp_(torch.linalg.vecdot(gradient, gradient), 1 - self.decay)
        self.previous.copy_(gradient)
        rho = self.correlation()
        excess = rho - rho[..., :1].clamp(max=0.0)
        flow = excess.mul_(self.kappa).clamp_(-self.max_flow, self.max_flow).mul_(weights)
        # Up from head k, and down, which is negative, from head k + 1.
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


RULES: dict[str, type[AveragingRule]] = {
    "switch": Switch,
    "bayes": Bayes,
    "exponentiated-gradient": ExponentiatedGradient,
    "whiteness": Whiteness,
    "uniform": Uniform,
}


def rule_name(spec: str | Mapping[str, Any]) -> str:
    """The name of an averaging rule given as a name or as a dict."""
    return spec if isinstance(spec, str) else str(spec["rule"])


def make_rule(
    spec: str | Mapping[str, Any],
    rates: Tensor,
    what: str = "averaging rule",
    rules: Mapping[str, type[AveragingRule]] = RULES,
) -> AveragingRule:
    """Make an averaging rule for heads with the given ``rates``, ``[…, J]``.

    Args:
        spec: a name of :data:`RULES`, or a dict with the name under ``rule`` and the rule's options beside it.
        rates: learning rates of the heads, ascending.
        what: what to call it in errors.
        rules: the classes by their names.
    """
    if not isinstance(spec, str) and not (isinstance(spec, Mapping) and isinstance(spec.get("rule"), str)):
        raise TypeError(f"{what} is {spec!r}, expected the name of a rule or a dict with one under 'rule'")
    options = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "rule"}
    rule: AveragingRule = construct(what, rules, rule_name(spec), options, rates)
    return rule


def _normalise(state: Tensor, mixture: Tensor, dims: int) -> Tensor:
    """Write ``mixture``, of sum 1 over its last dimensions, into ``state``.

    It becomes 0 nowhere: what is 0 would never come back.
    """
    total = mixture.sum(tuple(range(-dims, 0)), keepdim=True)
    return torch.div(mixture, total, out=state).clamp_(min=torch.finfo(state.dtype).tiny)
