"""A reward or an observation that is not finite ends a run within the step."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from alrao_rl.recorder import NonFiniteError, RecordingMonitor


class Given(gym.Env):
    """Gives the observations and rewards it was given."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, observations, rewards):
        self.observations, self.rewards = iter(observations), iter(rewards)

    def reset(self, *, seed=None, options=None):
        return next(self.observations), {}

    def step(self, action):
        return next(self.observations), next(self.rewards), False, False, {}


FINE = np.zeros(2, np.float32)
NAN = np.array([0.0, np.nan], np.float32)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), np.float32("-inf")])
def test_reward(reward):
    env = RecordingMonitor(Given([FINE] * 3, [1.0, reward]))
    env.reset()
    env.step(0)
    with pytest.raises(NonFiniteError, match=f"the reward is {reward} at step 2 of the environment"):
        env.step(0)


@pytest.mark.parametrize(
    ("observation", "says"),
    [
        (NAN, r"the observation \(nan\) is not finite at step 1"),
        ({"a": FINE, "b": NAN}, r"the observation \(nan\) \['b'\] is not finite at step 1"),
        (np.float64("inf"), r"the observation \(inf\) is not finite"),
    ],
)
def test_observation(observation, says):
    env = RecordingMonitor(Given([FINE, observation], [0.0]))
    env.reset()
    with pytest.raises(NonFiniteError, match=says):
        env.step(0)
    with pytest.raises(NonFiniteError, match="is not finite after a reset"):
        RecordingMonitor(Given([observation], [])).reset()


@pytest.mark.parametrize("observation", [np.uint8([[255]]), 3, {"a": FINE, "b": np.int64(2)}, (FINE, 1)])
def test_what_is_finite_passes(observation):
    env = RecordingMonitor(Given([observation] * 2, [np.float32(1.5)]))
    assert env.reset()[0] is observation
    assert env.step(1)[0] is observation
