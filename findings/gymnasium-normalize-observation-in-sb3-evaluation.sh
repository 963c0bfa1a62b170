#!/usr/bin/env bash
# gymnasium.wrappers.NormalizeObservation and Stable-Baselines3's EvalCallback do not know of each other. The callback
# synchronises VecNormalize's statistics with those of training, not this wrapper's: the evaluation environment starts
# from mean 0 and variance 1 and learns statistics of its own *while* it is evaluated (the wrapper has no training mode
# of its own accord), so an agent is judged, and "the best" chosen, on observations that it was never trained on. Nothing
# warns, and the error goes either way.
#
# Seen: stable_baselines3 2.9.2, gymnasium 1.4.0; PPO, CartPole-v1, 12,000 steps, 20 episodes each
#   seed 0: EvalCallback 107.5, the same agent with training's statistics 144.6
#   seed 1: EvalCallback 244.6, the same agent with training's statistics 444.6
#   seed 2: EvalCallback 500.0, the same agent with training's statistics 212.7
# (figures of this kind differ between processors; that they differ from each other does not)
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
import stable_baselines3
from gymnasium.wrappers import NormalizeObservation
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

print(f"stable_baselines3 {stable_baselines3.__version__}, gymnasium {gym.__version__}")


def make(seed):
    env = NormalizeObservation(Monitor(gym.make("CartPole-v1")))
    env.reset(seed=seed)
    return env


wrong = 0
for seed in range(3):
    training, evaluation = make(seed), make(100)
    callback = EvalCallback(evaluation, n_eval_episodes=20, eval_freq=12_000, verbose=0, warn=False)
    model = PPO("MlpPolicy", training, n_steps=500, batch_size=100, seed=seed, device="cpu").learn(12_000, callback)
    same = make(100)
    same.obs_rms, same.update_running_mean = training.obs_rms, False
    right = evaluate_policy(model, same, 20)[0]
    count = evaluation.obs_rms.count
    print(f"  seed {seed}: EvalCallback {callback.last_mean_reward:.1f}, the same agent with training's statistics "
          f"{right:.1f}; the evaluation's own statistics are of {count:.0f} observations, training's of "
          f"{training.obs_rms.count:.0f}")
    wrong += abs(callback.last_mean_reward - right) > 20 and count < 13_000
sys.exit(wrong < 2)
EOF
venv/bin/python -W ignore finding.py
