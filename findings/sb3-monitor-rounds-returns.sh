#!/usr/bin/env bash
# Stable-Baselines3's Monitor rounds every episode's return to six decimals, and evaluate_policy takes the rounded one.
# Rewards of 1e-8 (a probability, a price, a normalised error) therefore have a return of exactly 0.0 whatever the agent
# does: of two agents, one of which earns nothing and the other everything, EvalCallback keeps the first it sees as the
# best. The same environment without Monitor, or under VecMonitor, has the true return.
#
# Seen: stable_baselines3 2.9.2, gymnasium 1.4.0
#   Monitor:      idle agent 0.0, working agent 0.0
#   no Monitor:   idle agent 0.0, working agent 1e-07
#   VecMonitor:   idle agent 0.0, working agent 1e-07
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
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor


class Small(gym.Env):
    """Ten steps; action 1 earns 1e-8."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1e-8 * int(action), False, self.steps == 10, {}


class Always:
    def __init__(self, action):
        self.action = action

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.full(len(observation), self.action), None


def returns(make):
    return [float(f"{evaluate_policy(Always(action), make(), 3, warn=False)[0]:.6g}") for action in (0, 1)]


print(f"stable_baselines3 {stable_baselines3.__version__}, gymnasium {gym.__version__}")
seen = {
    "Monitor": returns(lambda: DummyVecEnv([lambda: Monitor(Small())])),
    "no Monitor": returns(lambda: DummyVecEnv([Small])),
    "VecMonitor": returns(lambda: VecMonitor(DummyVecEnv([Small]))),
}
for name, (idle, working) in seen.items():
    print(f"  {name + ':':<13} idle agent {idle}, working agent {working}")
expected = {"Monitor": [0.0, 0.0], "no Monitor": [0.0, 1e-7], "VecMonitor": [0.0, 1e-7]}
sys.exit(seen != expected)
EOF
venv/bin/python -W ignore finding.py
