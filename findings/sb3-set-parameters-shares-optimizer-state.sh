#!/usr/bin/env bash
# model_b.set_parameters(model_a.get_parameters()) copies the weights and shares the optimizer: torch's load_state_dict
# keeps the tensors it is given, and Stable-Baselines3 hands it those of the other model. From then on every update of
# one model moves the moments, and counts the steps, of both. Weights are independent, so nothing looks wrong; a deep
# copy of get_parameters(), or a way through save and load, does what one expects.
#
# Seen: stable_baselines3 2.9.2, torch 2.13.0, PPO
#   as it is: 36 of 36 tensors of optimizer state shared; steps counted by the second model's Adam 3
#   a deep copy: 0 of 36 tensors of optimizer state shared; steps counted by the second model's Adam 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2
cat > finding.py <<'EOF'
import copy
import sys

import stable_baselines3
import torch
from stable_baselines3 import PPO


def model():
    return PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")


def tensors(model):
    states = model.policy.optimizer.state.values()
    return {tensor.data_ptr() for state in states for tensor in state.values()}


def seen(take):
    first, second = model().learn(64), model()
    second.set_parameters(take(first.get_parameters()))
    shared, n = len(tensors(first) & tensors(second)), len(tensors(first))
    first.learn(64)
    second.learn(64)
    steps = {int(state["step"]) for state in second.policy.optimizer.state.values()}
    return shared, n, steps.pop()


print(f"stable_baselines3 {stable_baselines3.__version__}, torch {torch.__version__}, PPO")
as_it_is, copied = seen(lambda parameters: parameters), seen(copy.deepcopy)
for name, (shared, n, steps) in {"as it is": as_it_is, "a deep copy": copied}.items():
    print(f"  {name}: {shared} of {n} tensors of optimizer state shared; steps counted by the second model's Adam {steps}")
sys.exit(as_it_is != (as_it_is[1], as_it_is[1], 3) or copied != (0, copied[1], 2))
EOF
venv/bin/python -W ignore finding.py
