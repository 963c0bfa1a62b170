"""SAC's actor with heads: mean and log σ are one output layer, of 2A outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.sac.policies import Actor
from torch import Tensor, nn

from alrao_rl.core import AlraoConfig, HeadwiseTensor, Output, OutputHeads, on_branches
from alrao_rl.core.headwise import average_of
from alrao_rl.fast import convert
from alrao_rl.fast.densities import LOG_STD_RANGE, squashed_gaussian
from alrao_rl.sb3.distributions import without_graph
from alrao_rl.sb3.shortcuts import are_features, make_lean

if TYPE_CHECKING:
    _Actor: TypeAlias = Actor
else:
    _Actor = object


class SquashedActor(_Actor):
    """Actors of SAC's form: squashed Gaussians of averaged mean and averaged log σ.

    With gradients enabled actions and log-densities are headwise: every head has an action of its own, drawn with the
    same noise. With gSDE the output layer has A outputs, and log σ, of the noise of its weights, is part of each head.

    Args:
        config: options of Alrao.
        kwargs: of the stock actor.
    """

    output: OutputHeads

    def __init__(self, config: AlraoConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        log_std: Any = self.log_std
        mean: Any = self.mu[0] if isinstance(self.mu, nn.Sequential) else self.mu
        del self.mu, self.log_std
        if self.use_sde:
            self.action_dist.__class__ = _ReparametrizedNoise  # it has drawn its noise already
            layer, extra = mean, log_std
        else:
            layer, extra = _one_layer(mean, log_std), None
        self.output = layer
        convert(self, {"output": Output("mean", extra=extra, detach_average_only=True)}, config)
        make_lean(self, wide=True)

    def extract_features(self, obs: Any, features_extractor: Any) -> Any:
        """Features ``[B, F]`` of observations."""
        if are_features(obs, self.observation_space, features_extractor):
            return obs
        return super().extract_features(obs, features_extractor)

    def _latent(self, obs: Any) -> Tensor:
        latent: Tensor = self.latent_pi(self.extract_features(obs, self.features_extractor))
        return latent

    def get_action_dist_params(self, obs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean and log σ, ``[B, A]`` each; with gSDE log σ is that of the weights, ``[I, A]``, of ``latent_sde``."""
        latent = self._latent(obs)
        outputs = self.output(latent)
        if self.use_sde:
            return self.mean_of(outputs), self.output.averaged_extra(), {"latent_sde": latent}
        return self.mean_of(outputs), outputs[:, outputs.shape[1] // 2 :].clamp(*LOG_STD_RANGE), {}

    def forward(self, obs: Any, deterministic: bool = False) -> Tensor:
        """Actions ``[B, A]`` between −1 and 1."""
        if deterministic:
            return self.get_action_dist_params(obs)[0].tanh()
        return self.action_log_prob(obs)[0]

    def action_log_prob(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Actions ``[B, A]`` that are drawn, and their log-densities ``[B]``."""
        if self.use_sde:
            mean, log_std, rest = self.get_action_dist_params(obs)
            actions, log_prob = self.action_dist.log_prob_from_params(mean, log_std, **rest)
            return actions, log_prob
        outputs = self.output(self._latent(obs))
        average = average_of(outputs)
        noise = torch.empty_like(average[:, : average.shape[1] // 2]).normal_()
        if not isinstance(outputs, HeadwiseTensor):
            return squashed_gaussian(outputs, noise)
        actions, log_prob = squashed_gaussian(outputs.branches, noise)
        return outputs.like(actions), outputs.like(log_prob)

    def mean_of(self, outputs: Tensor) -> Tensor:
        """The mean, ``[B, A]``, before it is squashed, of what the output layer gives."""
        if not self.use_sde:
            return outputs[:, : outputs.shape[1] // 2]
        return outputs.clamp(-self.clip_mean, self.clip_mean) if self.clip_mean > 0 else outputs

    @torch.no_grad()
    def get_std(self) -> Tensor:
        """σ of the noise's weights, ``[I, A]`` (gSDE)."""
        return self._noise.get_std(self.output.averaged_extra())

    @torch.no_grad()
    def reset_noise(self, batch_size: int = 1) -> None:
        """Draw new weights of the noise (gSDE)."""
        self._noise.sample_weights(self.output.averaged_extra(), batch_size=batch_size)

    @property
    def _noise(self) -> StateDependentNoiseDistribution:
        if not isinstance(self.action_dist, StateDependentNoiseDistribution):
            raise AssertionError("get_std() and reset_noise() are only available when using gSDE")
        return self.action_dist


class AlraoActor(SquashedActor, Actor):
    """SB3's actor of SAC, and TQC's, which is the same."""


def _one_layer(mean: nn.Linear, log_std: nn.Linear) -> nn.Linear:
    """Both side by side, in one layer of 2A outputs."""
    with torch.random.fork_rng(devices=()):
        layer = nn.Linear(mean.in_features, 2 * mean.out_features)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([mean.weight, log_std.weight]))
        layer.bias.copy_(torch.cat([mean.bias, log_std.bias]))
    return layer


class _ReparametrizedNoise(StateDependentNoiseDistribution):
    """gSDE where gradients pass through the noise: its weights W = σ ε have the σ of each head, and the same ε."""

    _standard: Tensor
    __getstate__ = without_graph

    def sample_weights(self, log_std: Tensor, batch_size: int = 1) -> None:
        """Draw ε, of which the average's weights are made at once and those of the heads as they are needed."""
        std = self.get_std(log_std)
        self._standard = torch.empty_like(std).normal_()
        self.exploration_mat = std * self._standard
        self.exploration_matrices = std * std.new_empty((batch_size, *std.shape)).normal_()

    def proba_distribution(self, mean_actions: Tensor, log_std: Tensor, latent_sde: Tensor) -> _ReparametrizedNoise:
        """Take mean, ``[B, A]``, log σ of the weights, ``[I, A]``, and features, ``[B, I]``."""
        self._mean, self._latent_sde = mean_actions, latent_sde
        self._weights_std = on_branches(self.get_std, log_std)
        variance = torch.matmul(latent_sde.square(), self._weights_std.square())
        self._std = (variance + self.epsilon).sqrt()
        return self

    def mode(self) -> Tensor:
        """Most likely actions, ``[B, A]``."""
        return self._mean.tanh()

    def sample(self) -> Tensor:
        """Draw actions, ``[B, A]``."""
        return self._gaussian().tanh()

    def _gaussian(self) -> Tensor:
        if isinstance(self._weights_std, HeadwiseTensor):
            return self._mean + torch.matmul(self._latent_sde, self._weights_std * self._standard)
        return self._mean + self.get_noise(self._latent_sde)

    def log_prob_from_params(self, mean_actions: Tensor, log_std: Tensor, latent_sde: Tensor) -> tuple[Tensor, Tensor]:
        """Actions that are drawn, ``[B, A]``, and their log-densities, ``[B]``."""
        self.proba_distribution(mean_actions, log_std, latent_sde)
        gaussian = self._gaussian()
        actions = gaussian.tanh()
        z = (gaussian - self._mean) / self._std
        log_prob = z.square() * -0.5 - self._std.log() - 0.9189385332046727
        return actions, (log_prob - (1 - actions.square() + self.epsilon).log()).sum(-1)
