#!/usr/bin/env bash
# MaxAndSkipObservation repeats an action and returns the maximum over the last two frames. Where an episode ends before
# the last frame of a skip its buffer is not filled: the terminal observation is the maximum over what lies there, from
# the skip before or, in an episode that ends within its first one, from another episode. The observation of the end
# itself is never seen. With rewards at the end, and with time limits, whose last state is valued, it matters.
#
# Seen: gymnasium 1.4.0, skip=4; the observation is 100 * episode + step
#   observed 104.0, the last frame was 104.0
#   observed 108.0, the last frame was 108.0
#   observed 108.0, the last frame was 109.0     the end of an episode of 9 steps
#   observed 108.0, the last frame was 201.0     an episode of one step
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6
cat > finding.py <<'EOF'
import sys

import gymnasium as gym
import numpy as np


class Count(gym.Env):
    """The observation is 100 * episode + step; the first episode has nine steps, the others one."""

    observation_space, action_space = gym.spaces.Box(0, 1000, (1,), np.float32), gym.spaces.Discrete(2)
    episode = 0

    def observation(self):
        return np.array([100 * self.episode + self.step_number], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.step_number = self.episode + 1, 0
        return self.observation(), {}

    def step(self, action):
        self.step_number += 1
        return self.observation(), 1.0, self.step_number >= (9 if self.episode == 1 else 1), False, {}


env = gym.wrappers.MaxAndSkipObservation(Count(), skip=4)
print(f"gymnasium {gym.__version__}, skip=4; the observation is 100 * episode + step")
seen = []
for episode in (1, 2):
    env.reset()
    ended = False
    while not ended:
        observation, _, ended, _, _ = env.step(0)
        seen.append((float(observation[0]), float(env.unwrapped.observation()[0])))
        print("  observed {}, the last frame was {}".format(*seen[-1]))
sys.exit(seen != [(104.0, 104.0), (108.0, 108.0), (108.0, 109.0), (108.0, 201.0)])
EOF
venv/bin/python -W ignore finding.py
