#!/usr/bin/env bash
# An environment that fills one array and returns it again and again is copied everywhere in Stable-Baselines3 but in one
# place: DummyVecEnv puts the last observation of an episode into infos["terminal_observation"] as it is, and then resets
# the environment, which overwrites it. The value of the state where a time limit cut the episode off, and the replay
# buffer's next observation, are then those of the start of another episode. check_env has no objection.
#
# Seen: stable_baselines3 2.9.2, gymnasium 1.4.0; the observation counts steps, the episode is cut off after 4
#   terminal_observation 0.0 (a new array each step: 4.0)
#   DQN's replay buffer: next_observations 1.0 2.0 3.0 0.0 (a new array each step: 1.0 2.0 3.0 4.0), a timeout at the last
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
from stable_baselines3 import DQN
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv


class Count(gym.Env):
    """The observation is the number of steps, four of them an episode."""

    observation_space = gym.spaces.Box(0, 4, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, reused):
        self.reused, self.array = reused, np.zeros(1, np.float32)

    def observation(self):
        return self.array if self.reused else self.array.copy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.array[:] = 0
        return self.observation(), {}

    def step(self, action):
        self.array += 1
        return self.observation(), 1.0, False, bool(self.array[0] == 4), {}


print(f"stable_baselines3 {stable_baselines3.__version__}, gymnasium {gym.__version__}")
check_env(Count(reused=True))
seen = {}
for reused in (False, True):
    env = DummyVecEnv([lambda: Count(reused)])
    env.reset()
    for _ in range(4):
        info = env.step([0])[3][0]
    model = DQN("MlpPolicy", env, learning_starts=100, buffer_size=100, device="cpu").learn(4)
    rows = model.replay_buffer.next_observations[:4, 0, 0].tolist()
    seen[reused] = float(info["terminal_observation"][0]), rows
    assert model.replay_buffer.timeouts[3, 0] == 1
    print(f"  {'one array' if reused else 'a new array'}: terminal_observation {seen[reused][0]}, next_observations {rows}")
sys.exit(seen != {False: (4.0, [1.0, 2.0, 3.0, 4.0]), True: (0.0, [1.0, 2.0, 3.0, 0.0])})
EOF
venv/bin/python -W ignore finding.py
