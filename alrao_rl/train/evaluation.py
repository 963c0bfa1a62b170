"""Episodes of the current agent, on separate environments, within a number of environment steps.

Training continues as if nothing had been played: the environments are separate, and the global random generators,
which an environment may use, are restored.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from alrao_rl.environments.make import EVALUATION_SEED_OFFSET, close, make_one
from alrao_rl.environments.normalization import normalized
from alrao_rl.environments.recording import generator_state, set_generator_state
from alrao_rl.errors import first_line
from alrao_rl.recipes.schema import Recipe

Returns = np.ndarray[Any, np.dtype[np.float64]]
RECENT = 20
"""Training episodes by which an agent is judged before it is evaluated."""
KEPT = 0.2
"""Share of the budget that is reserved for the network at the end."""
MOST_ENVIRONMENTS = 100
"""Evaluation environments at a time; each plays its share of the episodes."""


class Budget:
    """How many steps evaluations may take, and when they are worth it.

    What training itself shows costs nothing: an agent is evaluated if its recent training episodes were, apart from
    noise, as good as any before. It gets as many episodes as the budget covers, judging by the longest of those
    training episodes at first, and by its own later. A share of the budget is reserved for the network at the end.

    Args:
        fraction: most steps of evaluation per timestep of training.
        timesteps: of the run.
    """

    def __init__(self, fraction: float, timesteps: int) -> None:
        self._fraction, self._timesteps = fraction, timesteps
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._peak = -math.inf
        """Best mean return of recent episodes so far."""
        self._length = 0.0
        """Steps per episode in the latest evaluation."""
        self.spent = 0

    def note(self, episodes: Iterable[tuple[float, float]]) -> None:
        """Record training episodes: returns and lengths."""
        self._recent.extend(episodes)

    def is_promising(self) -> bool:
        """Whether the recent episodes of training were as good as any before, within a standard error."""
        if not self._recent:
            return False
        returns = np.array(self._recent)[:, 0]
        mean, error = float(returns.mean()), float(returns.std()) / math.sqrt(len(returns))
        self._peak = max(self._peak, mean)
        return mean + error >= self._peak

    def share(self, wanted: int, timestep: int, last: bool, begun: bool = False) -> tuple[int, int]:
        """What the budget allows for an evaluation.

        Args:
            wanted: episodes.
            timestep: of training.
            last: whether training is over.
            begun: whether the network has played some episodes already.

        Returns:
            Episodes, 0 to ``wanted``, and the steps they may take.
        """
        if not self._recent:
            return 0, 0
        earned = self._fraction * (self._timesteps if last else min(timestep, (1 - KEPT) * self._timesteps))
        steps = max(int(earned) - self.spent, 0)
        length = max(self._length, 1.0 if begun else max(length for _, length in self._recent))
        return min(wanted, int(steps / length)), steps

    def spend(self, steps: int, episodes: int) -> None:
        """Record an evaluation."""
        self.spent += steps
        self._length = steps / episodes

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"recent": list(self._recent), "peak": self._peak, "length": self._length, "spent": self.spent}

    def put_back(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._recent.extend(state["recent"])
        self._peak, self._length, self.spent = state["peak"], state["length"], state["spent"]


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
        if recipe.agent.algorithm.masks_actions:
            from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_under_masks

            self._evaluate_policy = evaluate_under_masks

    def play(self, model: BaseAlgorithm, episodes: int, most_steps: int) -> tuple[Returns | None, int]:
        """Play episodes side by side, with one environment for each.

        Args:
            model: the agent.
            episodes: how many, at least 1.
            most_steps: of all environments together.

        Returns:
            The returns ``[episodes]``, and the steps they took. None instead of returns if the steps did not suffice:
            only short episodes would have ended by then.
        """
        steps = _Steps(most_steps)
        policy = model.policy
        policy.set_training_mode(False)
        # SB3's ``predict`` calls it at every step, and walking through all modules is a sixth of an evaluation.
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
        """Generators of the environments; since every episode begins with a reset, nothing else matters."""
        return [generator_state(env.unwrapped) for env in self._environments]

    def put_back(self, state: list[dict[str, Any] | None]) -> None:
        """Restore what :meth:`state` returned."""
        with _generators_put_back():
            self._make(len(state))
        for env, generator in zip(self._environments, state, strict=True):
            set_generator_state(env.unwrapped, generator)

    def close(self) -> None:
        """Close the environments; an error of the first of them is only a warning."""
        if self._environments:
            close(DummyVecEnv(list(map(_factory, self._environments))))

    def _make(self, n: int) -> None:
        """Make environments until there are ``n``, each with its own seed.

        Raises:
            RuntimeError: if no more can be made, as with a simulator that allows only one at a time.
        """
        for number in range(len(self._environments), n):
            try:
                env = make_one(self._recipe.environment)
                env.reset(seed=self._seed + number)
            except Exception as error:
                raise RuntimeError(
                    f"evaluations need environments in addition to those of training: {first_line(error)}; "
                    "--eval-episodes 0 trains without evaluations"
                ) from error
            self._environments.append(env)

    def _vectorized(self, model: BaseAlgorithm, episodes: int, steps: _Steps) -> Any:
        n = min(episodes, MOST_ENVIRONMENTS)
        self._make(n)
        # As evaluate_policy distributes them.
        shares = [_Share(env, (episodes + i) // n, steps) for i, env in enumerate(self._environments[:n])]
        env = normalized(DummyVecEnv(list(map(_factory, shares))), self._recipe.agent, training=False)
        trained = model.get_vec_normalize_env()
        if isinstance(env, VecNormalize) and trained is not None:
            env.obs_rms = trained.obs_rms
        return env


def _factory(env: gym.Env[Any, Any]) -> Callable[[], gym.Env[Any, Any]]:
    """The function that SB3 expects, for an environment that exists already."""
    return lambda: env


class _NoStepsLeftError(Exception):
    """The limit of steps is reached."""


class _Steps:
    """Counts steps, up to a limit."""

    def __init__(self, most: int) -> None:
        self._most, self.taken = most, 0

    def take(self) -> None:
        if self.taken >= self._most:
            raise _NoStepsLeftError
        self.taken += 1


class _Share(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that plays ``episodes`` episodes and then stands still."""

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
        self._left -= "episode" in info  # losing a life does not end the game
        return observation, reward, terminated, truncated, info


@contextlib.contextmanager
def _generators_put_back() -> Iterator[None]:
    """Restore the global generators afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
