"""``faults.faulty:Faulty-v0``: an environment of ten steps an episode in which something happens at a step."""

import os
import shutil
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

EVALUATION = 1_000_000
"""Seeds of evaluation environments begin here; nothing happens in them."""


class Faulty(gym.Env):
    """Observations are random, the reward is the action, one of two or a number between −1 and 1.

    Args:
        happens: a key of ``FAULTS``; empty for nothing.
        at: the step of this environment at which.
        keep: a folder into which the run's agent is copied at that moment.
        out: the run folder.
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, happens="", at=150, keep="", out="", pause=0.0, continuous=False):
        self.action_space = spaces.Box(-1.0, 1.0, (1,)) if continuous else spaces.Discrete(2)
        self.happens, self.at, self.keep, self.out, self.pause = happens, at, keep, out, pause
        self.total = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None and seed >= EVALUATION:
            self.happens, self.pause = "", 0.0
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.total += 1
        time.sleep(self.pause)
        result = [self.observe(), float(np.sum(action)), self.steps == 10, False, {}]
        if self.happens and self.total == self.at:
            if self.keep:
                for path in Path(self.out).glob("agent.*"):
                    shutil.copy(path, self.keep)
            FAULTS[self.happens](result)
        return tuple(result)

    def observe(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def fail(_):
    raise ValueError("broken at last")


def put(place, value):
    def act(result):
        result[place] = value

    return act


FAULTS = {
    "raises": fail,
    "hangs": lambda _: time.sleep(3600),
    "exits": lambda _: os._exit(7),
    "shape": put(0, np.zeros(3, np.float32)),
    "one-number": put(0, np.zeros(1, np.float32)),
    "dtype": put(0, np.array(["a", "b"])),
    "complex": put(0, np.array([1j, 0])),
    "no-observation": put(0, None),
    "word-reward": put(1, "one"),
    "rewards": put(1, np.ones(3)),
    "nan-reward": put(1, float("nan")),
    "inf-reward": put(1, float("inf")),
    "minus-inf-reward": put(1, float("-inf")),
    "huge-reward": put(1, 1e30),
    "nan-observation": put(0, np.array([np.nan, 0], np.float32)),
    "inf-observation": put(0, np.array([0, np.inf], np.float32)),
}

gym.register("Faulty-v0", Faulty)
gym.register("Good-v0", Faulty, kwargs={"pause": 0.001})
for name in FAULTS:
    gym.register(f"{name.title()}-v0", Faulty, kwargs={"happens": name})
