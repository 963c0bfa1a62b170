#!/usr/bin/env bash
# safetensors writes the state_dict of Stable-Baselines3's MlpPolicy and refuses that of CnnPolicy. Actor and critic share
# the features extractor, which the policy holds under three names; state_dict lists its tensors three times, and
# save_file refuses tensors that share memory. With MlpPolicy the extractor is a Flatten without tensors, so code that was
# tested on vectors fails on the first images. DQN's policies, which share nothing, are written either way.
#
# Seen: stable_baselines3 2.9.2, torch 2.13.0, safetensors 0.8.0
#   PPO MlpPolicy: written
#   PPO CnnPolicy: RuntimeError, 24 tensors under 8 addresses in the extractor
#   DQN CnnPolicy: written
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2 safetensors==0.8.0
cat > finding.py <<'EOF'
import sys

import gymnasium as gym
import numpy as np
import safetensors
import stable_baselines3
import torch
from safetensors.torch import save_file
from stable_baselines3 import DQN, PPO


class Images(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)
    action_space = gym.spaces.Discrete(2)


def written(policy):
    try:
        save_file(policy.state_dict(), "policy.safetensors")
    except RuntimeError as error:
        assert "share memory" in str(error)
        tensors = [tensor for name, tensor in policy.state_dict().items() if "features_extractor." in name]
        addresses = {tensor.data_ptr() for tensor in tensors}
        return f"RuntimeError, {len(tensors)} tensors under {len(addresses)} addresses in the extractor"
    return "written"


print(f"stable_baselines3 {stable_baselines3.__version__}, torch {torch.__version__}, safetensors {safetensors.__version__}")
seen = {
    "PPO MlpPolicy": written(PPO("MlpPolicy", "CartPole-v1", device="cpu").policy),
    "PPO CnnPolicy": written(PPO("CnnPolicy", Images(), n_steps=8, batch_size=8, device="cpu").policy),
    "DQN CnnPolicy": written(DQN("CnnPolicy", Images(), buffer_size=10, device="cpu").policy),
}
for name, result in seen.items():
    print(f"  {name}: {result}")
sys.exit([result[:7] for result in seen.values()] != ["written", "Runtime", "written"])
EOF
venv/bin/python -W ignore finding.py
