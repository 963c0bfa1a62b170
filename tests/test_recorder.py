"""A reward or an observation that is not finite, or none of its space, ends a run within the step."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from alrao_rl.recorder import NonFiniteError, RecordingMonitor


class Given(gym.Env):
    """Gives the observations and rewards it was given."""

    action_space = spaces.Discrete(2)

    def __init__(self, observations, rewards, observation_space=None):
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (2,))
        self.observations, self.rewards = iter(observations), iter(rewards)

    def reset(self, *, seed=None, options=None):
        return next(self.observations), {}

    def step(self, action):
        return next(self.observations), next(self.rewards), False, False, {}


BOX = spaces.Box(-1.0, 1.0, (2,))
IMAGE = spaces.Box(0, 255, (1, 1), np.uint8)
DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
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
    ("space", "fine", "observation", "says"),
    [
        (BOX, FINE, NAN, r"the observation \(nan\) is not finite at step 1"),
        (spaces.Dict({"a": BOX, "b": BOX}), {"a": FINE, "b": FINE}, {"a": FINE, "b": NAN},
         r"the observation \(nan\) \['b'\] is not finite at step 1"),
        (spaces.Box(-1.0, 1.0, ()), np.float64(0), np.float64("inf"), r"the observation \(inf\) is not finite"),
    ],
)  # fmt: skip
def test_observation(space, fine, observation, says):
    env = RecordingMonitor(Given([fine, observation], [0.0], space))
    env.reset()
    with pytest.raises(NonFiniteError, match=says):
        env.step(0)
    with pytest.raises(NonFiniteError, match="is not finite after a reset"):
        RecordingMonitor(Given([observation], [], space)).reset()


@pytest.mark.parametrize(
    ("space", "fine", "observation", "says"),
    [
        (BOX, FINE, FINE[:1], r"is of shape \(1,\), expected \(2,\)"),  # would be fitted in, twice
        (BOX, FINE, FINE[None], r"is of shape \(1, 2\), expected \(2,\)"),
        (BOX, FINE, None, r"is of shape \(\), expected \(2,\)"),
        (BOX, FINE, np.array(["0", "1"]), "holds <U1, expected float32"),  # would be converted
        (IMAGE, np.uint8([[255]]), np.float32([[0.5]]), "holds float32, expected uint8"),  # would be cut to 0
        (DICT, {"a": FINE, "b": 1}, {"a": FINE}, "is not a dict of a, b"),
        (DICT, {"a": FINE, "b": 1}, {"a": FINE, "b": 1.5}, r"\['b'\] holds float64, expected int64"),
    ],
)
def test_observation_of_another_space(space, fine, observation, says):
    env = RecordingMonitor(Given([fine, observation], [0.0], space))
    env.reset()
    with pytest.raises(ValueError, match=f"the observation {says} at step 1 of the environment"):
        env.step(0)
    with pytest.raises(ValueError, match=f"the observation {says} after a reset"):
        RecordingMonitor(Given([observation], [], space)).reset()


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (IMAGE, np.uint8([[255]])),
        (IMAGE, np.int64([[255]])),
        (spaces.Discrete(5), 3),
        (BOX, [0.0, 1.0]),
        (BOX, np.zeros(2)),
        (BOX, np.array([1, 0])),
        (DICT, {"a": FINE, "b": np.int64(2)}),
        (spaces.Tuple([BOX, spaces.Discrete(2)]), (FINE, 1)),
    ],
)
def test_what_is_finite_passes(space, observation):
    env = RecordingMonitor(Given([observation] * 2, [np.float32(1.5)], space))
    assert env.reset()[0] is observation
    assert env.step(1)[0] is observation
