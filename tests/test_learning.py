"""Learning, last and least: with the shipped recipes, no learning rate given, every algorithm solves CartPole.

Those for continuous actions solve Pendulum. And DQN learns from images, the recurrent agent from what it remembers, the
masked one among actions that change.
"""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

from alrao_rl.agents.build import build
from alrao_rl.environments.make import make_env
from alrao_rl.recipes.resolve import resolve
from alrao_rl.sb3.base import AlraoPolicyMixin

GOAL = 400.0
# Steps between evaluations, and the budget; training stops at the goal.
PLANS = {"dqn": (2_500, 50_000), "a2c": (10_000, 150_000), "ppo": (10_000, 100_000)}


class StopAtGoal(BaseCallback):
    """Evaluate every so many timesteps, between rollouts; stop once the mean return is above the goal."""

    def __init__(self, env, interval, goal=GOAL, n_episodes=10):
        super().__init__()
        self.env, self.interval, self.goal, self.n_episodes, self.returns = env, interval, goal, n_episodes, []

    def _on_step(self):
        return not self.returns or self.returns[-1] < self.goal

    def _on_rollout_start(self):
        if self.num_timesteps >= self.interval * (len(self.returns) + 1):
            if isinstance(self.env, VecNormalize):
                sync_envs_normalization(self.training_env, self.env)
            self.returns.append(evaluate_policy(self.model, self.env, self.n_episodes)[0])


@pytest.mark.slow
@pytest.mark.parametrize("algo", PLANS)
def test_cartpole(algo):
    recipe = resolve(algo, "CartPole-v1")
    interval, budget = PLANS[algo]
    model = build(recipe.agent, make_env(recipe, seed=0, training=True), seed=0)
    assert isinstance(model.policy, AlraoPolicyMixin)
    stop = StopAtGoal(make_env(recipe, seed=1_000, training=False, n_envs=1), interval)
    model.learn(budget, callback=stop)
    assert max(stop.returns) >= GOAL, stop.returns


@pytest.mark.long
@pytest.mark.parametrize(
    ("algo", "env", "interval", "budget"),
    [("qrdqn", "CartPole-v1", 2_500, 50_000), ("recurrent-ppo", "CartPoleNoVel-v1", 10_000, 100_000)],
)
def test_contrib(algo, env, interval, budget):
    pytest.importorskip("sb3_contrib")
    recipe = resolve(algo, env)
    model = build(recipe.agent, make_env(recipe, seed=0, training=True), seed=0)
    stop = StopAtGoal(make_env(recipe, seed=1_000, training=False, n_envs=1), interval)
    model.learn(budget, callback=stop)
    assert max(stop.returns) >= GOAL, stop.returns


@pytest.mark.long
@pytest.mark.timeout(3600)  # CrossQ has critics of 1,024 units
@pytest.mark.parametrize("algo", ["sac", "tqc", "crossq", "td3"])
def test_pendulum(algo):
    """Random actions have −1,231, stock agents at their best rate −150 to −170 after 20,000 steps."""
    recipe = resolve(algo, "Pendulum-v1")
    model = build(recipe.agent, make_env(recipe, seed=0, training=True), seed=0)
    assert isinstance(model.policy, AlraoPolicyMixin)
    env = make_env(recipe, seed=1_000, training=False, n_envs=1)
    stop = StopAtGoal(env, interval=2_500, goal=-200.0, n_episodes=20)
    model.learn(10_001, callback=stop)  # one more, before which the last evaluation is made
    print(algo, *(f"{mean:.1f}" for mean in stop.returns))
    assert max(stop.returns) >= stop.goal, stop.returns


@pytest.mark.long
def test_masked_actions():
    """Name the state, one of 20, where 15 that change at every step cannot be named: 100 is perfect, by chance 20."""
    pytest.importorskip("sb3_contrib")
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.envs import InvalidActionEnvDiscrete
    from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked

    from alrao_rl import AlraoMaskablePolicy

    np.random.seed(0)  # the environment's masks
    env = InvalidActionEnvDiscrete(dim=20, n_invalid_actions=15)
    model = MaskablePPO(AlraoMaskablePolicy, env, gamma=0.4, seed=0, device="cpu").learn(8_000)
    assert evaluate_masked(model, env, n_eval_episodes=20, warn=False)[0] >= 90


@pytest.mark.long
def test_minatar_breakout():
    """From images: four times the score of random actions, with some margin; it was there after 6,000 steps."""
    recipe = resolve("dqn", "MinAtar/Breakout-v1")
    model = build(recipe.agent, make_env(recipe, seed=0, training=True), seed=0)
    env = make_env(recipe, seed=1_000, training=False, n_envs=10)
    stop = StopAtGoal(env, interval=2_000, goal=4 * recipe.environment.random_score, n_episodes=50)
    model.learn(20_000, callback=stop)
    assert max(stop.returns) >= stop.goal, stop.returns
