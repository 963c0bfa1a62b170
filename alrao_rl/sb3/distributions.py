"""Action distributions that compute what acting and learning need and no more.

SB3's own build a ``torch.distributions`` object, with its broadcasting and its checks, for every call; with many heads
and small networks that is a good part of an update. These give the same numbers and draw from the same generator.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from alrao_rl.core import on_branches
from alrao_rl.core.mixtures import importance_weighted
from alrao_rl.fast.densities import gaussian_log_prob


def lean(distribution: Distribution) -> Distribution:
    """The lean version of an SB3 distribution where there is one, otherwise the same."""
    if type(distribution) is CategoricalDistribution:
        return LeanCategorical(distribution.action_dim)
    if type(distribution) is MultiCategoricalDistribution:
        return LeanMultiCategorical(distribution.action_dims)
    if type(distribution) is BernoulliDistribution:
        return LeanBernoulli(distribution.action_dims)
    if type(distribution) is DiagGaussianDistribution:
        return LeanGaussian(distribution.action_dim)
    if type(distribution) is StateDependentNoiseDistribution:
        distribution.__class__ = LeanStateDependentNoise  # it has drawn its noise already
    return distribution


def without_graph(distribution: Distribution) -> dict[str, Any]:
    """What a copy holds: the parameters of the last call without the graph behind them, which cannot be copied."""
    state = vars(distribution).items()
    return {name: x.detach() if isinstance(x, Tensor) and x.requires_grad else x for name, x in state}


class LeanCategorical(CategoricalDistribution):
    """One of K actions: log-probabilities ``[B, K]``."""

    log_probs: Tensor
    __getstate__ = without_graph

    @property
    def distribution(self) -> Categorical:  # type: ignore[override]
        """As a torch distribution."""
        return Categorical(logits=self.log_probs)

    def proba_distribution(self, action_logits: Tensor) -> LeanCategorical:
        """Take what heads of the kind ``"categorical"`` give: log-probabilities, ``[B, K]``."""
        self.log_probs = action_logits
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities of actions: ``[B]`` to ``[B]``."""
        index = actions.long().unsqueeze(-1)
        if type(index) is not Tensor:
            return self.log_probs.gather(-1, index).squeeze(-1)
        return on_branches(lambda x: x.gather(-1, index.expand(*x.shape[:-1], 1)).squeeze(-1), self.log_probs)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[B]``; an impossible action adds nothing."""
        return on_branches(_entropy, self.log_probs)

    def sample(self) -> Tensor:
        """Draw actions, ``[B]``."""
        return torch.multinomial(self.log_probs.exp(), 1).squeeze(-1)

    def mode(self) -> Tensor:
        """Most likely actions, ``[B]``."""
        return self.log_probs.argmax(dim=1)


def _entropy(log_probs: Tensor) -> Tensor:
    return (log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1).neg()


class LeanMultiCategorical(MultiCategoricalDistribution):
    """One of K_i actions for each of n parts: log-probabilities ``[B, ΣK_i]``."""

    log_probs: Tensor
    __getstate__ = without_graph

    def __init__(self, action_dims: list[int]) -> None:
        super().__init__(action_dims)
        self._first = torch.tensor(list(accumulate([0, *self.action_dims[:-1]])))

    @property
    def distribution(self) -> list[Categorical]:  # type: ignore[override]
        """As torch distributions."""
        return [Categorical(logits=part) for part in self._parts()]

    def proba_distribution(self, action_logits: Tensor) -> LeanMultiCategorical:
        """Take what heads of the kind ``"categorical"`` give: log-probabilities of every part, ``[B, ΣK_i]``."""
        self.log_probs = action_logits
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities of actions: ``[B, n]`` to ``[B]``."""
        if type(actions) is not Tensor:
            return super().log_prob(actions)
        self._first = self._first.to(actions.device)
        index = actions.long() + self._first
        return on_branches(lambda x: x.gather(-1, index.expand(*x.shape[:-1], -1)).sum(-1), self.log_probs)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[B]``: the sum of those of the parts."""
        return on_branches(_entropy, self.log_probs)

    def sample(self) -> Tensor:
        """Draw actions, ``[B, n]``."""
        return torch.cat([torch.multinomial(part.exp(), 1) for part in self._parts()], 1)

    def mode(self) -> Tensor:
        """Most likely actions, ``[B, n]``."""
        return torch.stack([part.argmax(1) for part in self._parts()], 1)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.log_probs.split(list(self.action_dims), 1)


class LeanBernoulli(BernoulliDistribution):
    """n independent actions of 0 or 1: logits ``[B, n]``."""

    logits: Tensor
    __getstate__ = without_graph

    @property
    def distribution(self) -> Bernoulli:  # type: ignore[override]
        """As a torch distribution."""
        return Bernoulli(logits=self.logits)

    def proba_distribution(self, action_logits: Tensor) -> LeanBernoulli:
        """Take the logits, ``[B, n]``."""
        self.logits = action_logits
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities of actions: ``[B, n]`` to ``[B]``."""
        if type(actions) is not Tensor or actions.requires_grad:
            return super().log_prob(actions)
        # sb3-contrib's rollouts keep them as the space does, in one byte each.
        return on_branches(lambda x: _cross_entropy(x, actions.expand_as(x).to(x.dtype)).neg(), self.logits)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[B]``."""
        return on_branches(lambda x: _cross_entropy(x, x.sigmoid()), self.logits)

    def sample(self) -> Tensor:
        """Draw actions, ``[B, n]``."""
        return torch.bernoulli(self.logits.sigmoid())

    def mode(self) -> Tensor:
        """Most likely actions, ``[B, n]``."""
        return self.logits.sigmoid().round()


def _cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, probabilities, reduction="none").sum(-1)


class LeanGaussian(DiagGaussianDistribution):
    """K independent Gaussians: mean ``[B, K]``, log σ ``[K]``."""

    mean: Tensor
    log_std: Tensor
    __getstate__ = without_graph

    @property
    def distribution(self) -> Normal:  # type: ignore[override]
        """As a torch distribution."""
        return Normal(self.mean, torch.ones_like(self.mean) * self.log_std.exp())

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor) -> LeanGaussian:
        """Take the mean, ``[B, K]``, and log σ, ``[K]``."""
        self.mean, self.log_std = mean_actions, log_std
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-densities of actions: ``[B, K]`` to ``[B]``."""
        if type(actions) is not Tensor or actions.requires_grad:  # not mere labels, the same for all branches
            constant = 0.5 * math.log(2 * math.pi) * self.action_dim
            z = (actions - self.mean) * (-self.log_std).exp()
            return z.square().sum(-1) * -0.5 - (self.log_std.sum() + constant)
        return on_branches(lambda mean, log_std: gaussian_log_prob(mean, log_std, actions), self.mean, self.log_std)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[B]``."""
        n, constant = self.mean.shape[0], (0.5 + 0.5 * math.log(2 * math.pi)) * self.action_dim

        def entropy(log_std: Tensor) -> Tensor:
            one = log_std.sum(-1, keepdim=True) + constant
            return one.expand(*one.shape[:-1], n)

        return on_branches(entropy, self.log_std)

    def sample(self) -> Tensor:
        """Draw actions, ``[B, K]``."""
        return self.mean + self.log_std.exp() * torch.empty_like(self.mean).normal_()

    def mode(self) -> Tensor:
        """Most likely actions, ``[B, K]``."""
        return self.mean


class LeanStateDependentNoise(StateDependentNoiseDistribution):
    """Gaussians whose σ follows from the features, as the noise does (gSDE): mean and σ, ``[B, K]``."""

    mean: Tensor
    std: Tensor
    __getstate__ = without_graph

    @property
    def distribution(self) -> Normal:  # type: ignore[override]
        """As a torch distribution."""
        return Normal(self.mean, self.std)

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor, latent_sde: Tensor) -> LeanStateDependentNoise:
        """Take the mean, ``[B, K]``, log σ of the weights, ``[I, K]`` or ``[I, 1]``, and ``[B, I]`` features."""
        latent = latent_sde if self.learn_features else latent_sde.detach()
        self.mean, self._latent_sde = mean_actions, latent

        def std(log_std: Tensor) -> Tensor:
            return (torch.matmul(latent.square(), self.get_std(log_std).square()) + self.epsilon).sqrt()

        # What features receive a gradient for, the average alone may tell them.
        self.std = std(log_std) if latent.requires_grad else on_branches(std, log_std)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-densities of actions: ``[B, K]`` to ``[B]``; importance weights for the heads, see ``densities.py``."""
        is_label = type(actions) is Tensor and not actions.requires_grad
        if self.bijector is not None or not is_label or type(self.mean) is not type(self.std):
            return on_branches(importance_weighted, super().log_prob(actions))

        def log_prob(mean: Tensor, std: Tensor) -> Tensor:
            z = (actions - mean) / std
            return importance_weighted((z.square() * -0.5 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1))

        return on_branches(log_prob, self.mean, self.std)

    def entropy(self) -> Tensor | None:
        """Entropy in nats, ``[B]``; None where actions are squashed: it has no formula."""
        if self.bijector is not None:
            return None
        return on_branches(lambda std: (std.log() + (0.5 + 0.5 * math.log(2 * math.pi))).sum(-1), self.std)
