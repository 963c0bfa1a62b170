#!/usr/bin/env bash
# gymnasium.wrappers.FlattenObservation takes every space of Gymnasium, a Dict with a Text in it too. MiniGrid's "mission"
# is a text, but a space of MiniGrid's own (MissionSpace, not a Text), for which nothing says how to flatten it: the
# wrapper raises a NotImplementedError without any message, and Stable-Baselines3, given the environment as it is, a
# TypeError about None (the space has no shape). Neither names the mission. Without it, by FilterObservation, both work.
#
# Seen: minigrid 3.2.0, gymnasium 1.4.0, stable_baselines3 2.9.2
#   FlattenObservation: NotImplementedError()
#   PPO("MultiInputPolicy"): TypeError("'NoneType' object is not iterable")
#   Dict(mission=Text(8)) is flattened to 8 numbers
#   FilterObservation(["image", "direction"]), then flattened: 151 numbers
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2 minigrid==3.2.0
cat > finding.py <<'EOF'
import importlib.metadata
import sys

import gymnasium as gym
import minigrid  # noqa: F401
from gymnasium.wrappers import FilterObservation, FlattenObservation
from stable_baselines3 import PPO

print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("minigrid", "gymnasium", "stable_baselines3")))
env = gym.make("MiniGrid-Empty-5x5-v0")


def raised(make):
    try:
        make(env)
    except Exception as error:
        return error
    return None


flattening, training = raised(FlattenObservation), raised(lambda env: PPO("MultiInputPolicy", env, device="cpu"))
text = gym.spaces.flatdim(gym.spaces.Dict(mission=gym.spaces.Text(8)))
filtered = FlattenObservation(FilterObservation(env, ["image", "direction"])).observation_space.shape[0]
print(f"  FlattenObservation: {flattening!r}")
print(f'  PPO("MultiInputPolicy"): {training!r}')
print(f"  Dict(mission=Text(8)) is flattened to {text} numbers; without the mission MiniGrid's to {filtered}")
sys.exit(not isinstance(flattening, NotImplementedError) or str(flattening) != "" or not isinstance(training, TypeError)
         or "mission" in str(training) or text != 8 or filtered != 151)
EOF
venv/bin/python -W ignore finding.py
