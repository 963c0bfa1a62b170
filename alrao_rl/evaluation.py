"""Episodes of the agent as it is, on environments of their own, within a number of environment steps.

Training goes on as if nothing had been played: the environments are others, and the global random generators, from
which an environment may draw, are put back.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from alrao_rl.envs import EVALUATION_SEED_OFFSET, make_one, normalized
from alrao_rl.errors import first_line, print_warning
from alrao_rl.recipes import Recipe
from alrao_rl.recorder import generator_state, set_generator_state

Returns = np.ndarray[Any, np.dtype[np.float64]]
MOST_ENVIRONMENTS = 100
"""At a time; each plays its share of the episodes."""


class Evaluator:
    """Plays episodes with the most likely actions, and counts their steps.

    Args:
        recipe: of the run.
        seed: of the run.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._recipe, self._seed = recipe, seed + EVALUATION_SEED_OFFSET
        self._environments: list[gym.Env[Any, Any]] = []
        self._evaluate_policy: Callable[..., Any] = evaluate_policy
        if recipe.agent.algo == "maskable-ppo":
            from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_under_masks

            self._evaluate_policy = evaluate_under_masks

    def play(self, model: BaseAlgorithm, episodes: int, most_steps: int) -> tuple[Returns | None, int]:
        """Play episodes side by side, an environment for each.

        Args:
            model: the agent.
            episodes: how many, at least 1.
            most_steps: of all environments together.

        Returns:
            The returns ``[episodes]``, and the steps that they took. None in place of returns where there were not
            steps enough: those of the episodes that had ended by then would be those of short ones.
        """
        steps = _Steps(most_steps)
        policy = model.policy
        policy.set_training_mode(False)
        # SB3's ``predict`` does it again at every step: a walk through all modules, a sixth of an evaluation.
        policy.set_training_mode = lambda mode: None  # type: ignore[method-assign]
        try:
            with _generators_put_back():
                env = self._vectorized(model, episodes, steps)
                returns, _ = self._evaluate_policy(
                    model, env, episodes, deterministic=True, return_episode_rewards=True
                )
        except _NoStepsLeftError:
            return None, steps.taken
        finally:
            del policy.set_training_mode
        return np.asarray(returns, dtype=np.float64), steps.taken

    def state(self) -> list[dict[str, Any] | None]:
        """Generators of the environments: every episode begins with a reset, and nothing else is left of it."""
        return [generator_state(env.unwrapped) for env in self._environments]

    def put_back(self, state: list[dict[str, Any] | None]) -> None:
        """Go on from what :meth:`state` gave."""
        with _generators_put_back():
            self._make(len(state))
        for env, one in zip(self._environments, state, strict=True):
            set_generator_state(env.unwrapped, one)

    def close(self) -> None:
        """Close the environments; what they raise then is a warning."""
        for env in self._environments:
            try:
                env.close()
            except Exception as error:
                print_warning(f"the environment could not be closed: {type(error).__name__}: {first_line(error)}")

    def _make(self, n: int) -> None:
        """Have so many environments, each with a seed of its own."""
        for number in range(len(self._environments), n):
            env = make_one(self._recipe.environment)
            env.reset(seed=self._seed + number)
            self._environments.append(env)

    def _vectorized(self, model: BaseAlgorithm, episodes: int, steps: _Steps) -> Any:
        n = min(episodes, MOST_ENVIRONMENTS)
        self._make(n)
        # As evaluate_policy shares them out.
        shares = [_Share(env, (episodes + i) // n, steps) for i, env in enumerate(self._environments[:n])]
        env = normalized(DummyVecEnv([lambda one=one: one for one in shares]), self._recipe.agent, training=False)
        trained = model.get_vec_normalize_env()
        if isinstance(env, VecNormalize) and trained is not None:
            env.obs_rms = trained.obs_rms
        return env


class _NoStepsLeftError(Exception):
    """More steps would be too many."""


class _Steps:
    """Steps that were taken, of at most so many."""

    def __init__(self, most: int) -> None:
        self._most, self.taken = most, 0

    def take(self) -> None:
        if self.taken >= self._most:
            raise _NoStepsLeftError
        self.taken += 1


class _Share(gym.Wrapper[Any, Any, Any, Any]):
    """An environment for so many episodes, which then stands still."""

    def __init__(self, env: gym.Env[Any, Any], episodes: int, steps: _Steps) -> None:
        super().__init__(env)
        self._left, self._steps, self._last = episodes, steps, None

    def reset(self, **kwargs: Any) -> Any:
        self._last, info = self.env.reset(**kwargs)
        return self._last, info

    def step(self, action: Any) -> Any:
        if not self._left:
            return self._last, 0.0, False, False, {}
        self._steps.take()
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._left -= "episode" in info  # an end may be that of a life, and the game goes on
        return observation, reward, terminated, truncated, info


@contextlib.contextmanager
def _generators_put_back() -> Iterator[None]:
    """Leave the global generators as they were found."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
