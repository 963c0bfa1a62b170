#!/usr/bin/env bash
# A2C with normalize_advantage=True, one environment and n_steps=1 divides the only advantage by its standard deviation,
# which of one number is nan. The first update makes every parameter nan; what is raised comes a step later and speaks of
# a distribution's logits. PPO looks at the number of advantages first and trains in the same case.
#
# Seen: stable_baselines3 2.9.2, torch 2.13.0
#   A2C, n_steps=1: after step 1 tensors with nan: 12 of 12; step 2 raises ValueError (parameter logits)
#   PPO, n_steps=65, batch_size=64 (the last batch has one advantage): no tensor is nan
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2
cat > finding.py <<'EOF'
import sys
import warnings

import stable_baselines3
import torch
from stable_baselines3 import A2C, PPO

warnings.simplefilter("ignore")


def with_nan(model):
    tensors = list(model.policy.state_dict().values())
    return sum(bool(tensor.isnan().any()) for tensor in tensors), len(tensors)


print(f"stable_baselines3 {stable_baselines3.__version__}, torch {torch.__version__}")
model = A2C("MlpPolicy", "CartPole-v1", n_steps=1, normalize_advantage=True, seed=0, device="cpu")
model.learn(1)
nan, n = with_nan(model)
try:
    model.learn(1)
    raised = "nothing"
except ValueError as error:
    raised = f"ValueError: {str(error).splitlines()[0][:60]}..."
print(f"  A2C, n_steps=1: after step 1 tensors with nan: {nan} of {n}; step 2 raises {raised}")
model = PPO("MlpPolicy", "CartPole-v1", n_steps=65, batch_size=64, seed=0, device="cpu").learn(65)
ppo = with_nan(model)
print(f"  PPO, n_steps=65, batch_size=64: tensors with nan: {ppo[0]} of {ppo[1]}")
sys.exit(nan != n or not raised.startswith("ValueError") or ppo[0] != 0)
EOF
venv/bin/python -W ignore finding.py
