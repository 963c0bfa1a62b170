"""Your own environment, from Python and from the command line.

From the command line, in this folder: ``python -m alrao_rl.train --algo ppo --env own_environment:Corridor-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from alrao_rl import AlraoPolicy


class Corridor(gym.Env[np.ndarray, np.int64]):
    """Go right to the end; every step costs 1."""

    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.observation_space = spaces.Box(0.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start somewhere in the left half."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(self.length // 2))
        return self._observe(), {}

    def step(self, action: np.int64) -> Any:
        """Left is 0, right is 1."""
        self.place = max(self.place + 2 * int(action) - 1, 0)
        return self._observe(), -1.0, self.place == self.length, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.place / self.length], np.float32)


# On import, so that OWN_MODULE:Corridor-v0 is enough to find it.
gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=100)


def main(timesteps: int = 20_000) -> float:
    """Train, and return the mean return of ten episodes."""
    model = PPO(AlraoPolicy, gym.make("Corridor-v0"), seed=0).learn(timesteps)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=10)
    return float(mean)


if __name__ == "__main__":
    print(f"mean return {main():.1f}, at best about -8")
