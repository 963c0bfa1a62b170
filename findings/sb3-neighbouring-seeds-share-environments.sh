#!/usr/bin/env bash
# Stable-Baselines3 seeds environment i of a model with seed s by s + i. Models with several environments and seeds next
# to each other, as in "ten seeds, 0 to 9", therefore share most of their environments' random streams: with four
# environments seeds 0 and 1 begin from three common start states, and go on to draw the same ones in the same order.
# Means over such seeds vary less than their intervals take for granted. Seeds at least n_envs apart share none.
#
# Seen: stable_baselines3 2.9.2, gymnasium 1.4.0, PPO on CartPole-v1 in 4 environments
#   start states of the first three episodes, seeds 0 and 1: those of 3 of 4 environments are the same
#   start states of the first three episodes, seeds 0 and 4: those of 0 of 4 environments are the same
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
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env


def starts(seed):
    """The first three start states of each environment."""
    env = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=4), seed=seed, device="cpu").get_env()
    episodes = [env.reset() for _ in range(3)]
    return {tuple(float(x) for states in episodes for x in states[i]) for i in range(4)}


shared = {seeds: len(starts(seeds[0]) & starts(seeds[1])) for seeds in ((0, 1), (0, 4))}
print(f"stable_baselines3 {stable_baselines3.__version__}, gymnasium {gym.__version__}, PPO in 4 environments")
for (one, other), n in shared.items():
    print(f"  start states of the first three episodes, seeds {one} and {other}: those of {n} of 4 environments are the same")
sys.exit(shared != {(0, 1): 3, (0, 4): 0})
EOF
venv/bin/python -W ignore finding.py
