#!/usr/bin/env bash
# model.learning_rate looks like the learning rate of a Stable-Baselines3 model. Assigning to it between two calls of
# learn() changes nothing in this process, as training reads a schedule that was made from it when the model was built,
# and neither does writing to the optimizer's param_groups, which every update overwrites. But the attribute is saved:
# the same model after save and load trains at the new rate. A run that is continued in place and one that is continued
# from disk are then two different runs.
#
# Seen: stable_baselines3 2.9.2, PPO built with learning_rate=1e-3; the rate that the optimizer stepped with
#   model.learning_rate = 1e-5, learn:               0.001
#   optimizer.param_groups[0]["lr"] = 1e-5, learn:   0.001
#   save, load, learn:                               1e-05
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2
cat > finding.py <<'EOF'
import sys

import stable_baselines3
from stable_baselines3 import PPO


def trained(model):
    model.learn(64, reset_num_timesteps=False)
    return model.policy.optimizer.param_groups[0]["lr"]


model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, learning_rate=1e-3, device="cpu").learn(64)
model.learning_rate = 1e-5
seen = {"model.learning_rate = 1e-5, learn": trained(model)}
for group in model.policy.optimizer.param_groups:
    group["lr"] = 1e-5
seen['optimizer.param_groups[0]["lr"] = 1e-5, learn'] = trained(model)
model.save("model.zip")
seen["save, load, learn"] = trained(PPO.load("model.zip", env=model.get_env(), device="cpu"))
print(f"stable_baselines3 {stable_baselines3.__version__}, PPO built with learning_rate=1e-3")
for name, rate in seen.items():
    print(f"  {name + ':':<48} {rate}")
sys.exit(list(seen.values()) != [1e-3, 1e-3, 1e-5])
EOF
venv/bin/python -W ignore finding.py
