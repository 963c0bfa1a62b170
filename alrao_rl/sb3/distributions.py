"""Action distributions that compute what acting and learning need and no more.

SB3's own build a ``torch.distributions`` object, with its broadcasting and its checks, for every call; with many heads
and small networks that is a good part of an update. These give the same numbers and draw from the same generator.
"""

from __future__ import annotations

import math

import torch
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor
from torch.distributions import Categorical, Normal

from alrao_rl.compiled.densities import gaussian_log_prob, importance_weighted
from alrao_rl.core import on_branches


def lean(distribution: Distribution) -> Distribution:
    """The lean version of an SB3 distribution where there is one, otherwise the same."""
    if type(distribution) is CategoricalDistribution:
        return LeanCategorical(distribution.action_dim)
    if type(distribution) is DiagGaussianDistribution:
        return LeanGaussian(distribution.action_dim)
    if type(distribution) is StateDependentNoiseDistribution:
        distribution.__class__ = WeightedStateDependentNoise
    return distribution


class LeanCategorical(CategoricalDistribution):
    """One of K actions: log-probabilities ``[B, K]``."""

    log_probs: Tensor

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
        return on_branches(lambda x: (x.exp() * x.clamp(min=torch.finfo(x.dtype).min)).sum(-1).neg(), self.log_probs)

    def sample(self) -> Tensor:
        """Draw actions, ``[B]``."""
        return torch.multinomial(self.log_probs.exp(), 1).squeeze(-1)

    def mode(self) -> Tensor:
        """Most likely actions, ``[B]``."""
        return self.log_probs.argmax(dim=1)


class LeanGaussian(DiagGaussianDistribution):
    """K independent Gaussians: mean ``[B, K]``, log σ ``[K]``."""

    mean: Tensor
    log_std: Tensor

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


class WeightedStateDependentNoise(StateDependentNoiseDistribution):
    """SB3's own, heads :func:`~alrao_rl.compiled.densities.importance_weighted`."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-densities of actions: ``[B, K]`` to ``[B]``."""
        return on_branches(importance_weighted, super().log_prob(actions))
