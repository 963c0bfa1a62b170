#!/usr/bin/env bash
# An environment may hand out one info dict at every step. Stable-Baselines3's Monitor writes the finished episode into
# the dict that it is given, so after the first end "episode" stands in all later infos, and the algorithms, which look
# for that key and not for the end of an episode, count the last episode again at every step. ep_rew_mean, which is
# printed and logged, is then another number: an episode has the weight of the length of the next one.
#
# Seen: stable_baselines3 2.9.2, gymnasium 1.4.0
#   a new info each step: 20 episodes counted, mean return 10.0
#   one info for all:     100 episodes counted (the buffer holds no more), mean return 6.4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2
cat > finding.py <<'EOF'
import sys

import gymnasium as gym
import numpy as np
import stable_baselines3
from stable_baselines3 import A2C
from stable_baselines3.common.monitor import Monitor


class Lengths(gym.Env):
    """Episodes of 4 and 16 steps in turn; every step earns 1."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, shared):
        self.info = {} if shared else None
        self.length = 16

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, 20 - self.length
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        info = {} if self.info is None else self.info
        return np.zeros(1, np.float32), 1.0, self.steps == self.length, False, info


print(f"stable_baselines3 {stable_baselines3.__version__}, gymnasium {gym.__version__}")
seen = {}
for shared in (False, True):
    model = A2C("MlpPolicy", Monitor(Lengths(shared)), device="cpu").learn(200)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    seen[shared] = len(returns), round(float(np.mean(returns)), 1)
    print(f"  {'one info for all' if shared else 'a new info each step'}: {seen[shared][0]} episodes counted, "
          f"mean return {seen[shared][1]}")
sys.exit(seen[False] != (20, 10.0) or seen[True] != (100, 6.4))
EOF
venv/bin/python -W ignore finding.py
