"""Running statistics of observations and rewards: SB3's VecNormalize, as an agent asks for it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from alrao_rl.recipes.schema import Agent


def normalized(env: VecEnv, agent: Agent, training: bool) -> VecEnv:
    """The environments under SB3's VecNormalize as the agent asks for it; unchanged if there is nothing to normalise.

    Only Box observations have a mean and a variance to normalise, except images, which SB3 scales itself. Rewards are
    normalised in training only; the returns of episodes are summed below, from the original rewards.
    """
    how, space = agent.normalize_observations, env.observation_space
    keys = None
    if isinstance(space, spaces.Dict):
        keys = [key for key, inner in space.spaces.items() if _has_statistics(inner)]
    norm_obs = bool(how and (keys or _has_statistics(space)))
    norm_reward = bool(training and agent.normalize_rewards)
    if not (norm_obs or norm_reward):
        return env
    if any(map(_has_channels_last, space.values() if isinstance(space, spaces.Dict) else [space])):
        # Below the normalisation: SB3 would do it above, and store untransposed observations for replay.
        env = VecTransposeImage(env)
    gamma = agent.hyperparameters.get("gamma", 0.99)  # SB3's default
    normalizer = VecNormalize(
        env, training=training, norm_obs=norm_obs, norm_reward=norm_reward, gamma=gamma,
        norm_obs_keys=keys if norm_obs else None,
    )  # fmt: skip
    if norm_obs and how == "scale":
        normalizer.obs_rms = _uncentred(normalizer.obs_rms)
    return normalizer


class RunningMeanSquare(RunningMeanStd):
    """Statistics that make VecNormalize divide by the running root mean square, without subtracting the mean.

    An observation that hardly moves at first, such as the cosine of an angle near 0, would be blown up by its tiny
    variance.
    """

    def update_from_moments(self, batch_mean: Any, batch_var: Any, batch_count: float) -> None:
        """Add a batch: the mean stays 0, the variance is the mean square."""
        super().update_from_moments(np.zeros_like(batch_mean), batch_var + np.square(batch_mean), batch_count)


def _uncentred(statistics: RunningMeanStd | dict[str, RunningMeanStd]) -> Any:
    if isinstance(statistics, dict):
        return {key: _uncentred(inner) for key, inner in statistics.items()}
    return RunningMeanSquare(shape=statistics.mean.shape)


def _has_channels_last(space: spaces.Space[Any]) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(cast(spaces.Box, space))


def _has_statistics(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and not is_image_space(space)
