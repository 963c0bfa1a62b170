#!/usr/bin/env bash
# The Arcade Learning Environment's v5 games skip 4 frames themselves and repeat the last action with probability 0.25.
# Stable-Baselines3's AtariWrapper skips 4 again and says nothing: an action lasts 16 frames, of which the agent sees two,
# and it is not always the agent's action. Gymnasium's AtariPreprocessing refuses the same environment. What papers report
# is 4 frames: frameskip=1, and repeat_action_probability=0.0 for NoFrameskip-v4's settings.
#
# Seen: ale-py 0.12.1, gymnasium 1.4.0, stable_baselines3 2.9.2
#   ALE/Breakout-v5:                16 frames a step, actions repeated with probability 0.25
#   ALE/Breakout-v5, frameskip=1:    4 frames a step, actions repeated with probability 0.25
#   BreakoutNoFrameskip-v4:          4 frames a step, actions repeated with probability 0.0
#   Gymnasium's AtariPreprocessing of the first: ValueError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2 ale-py==0.12.1 opencv-python-headless==5.0.0.93
cat > finding.py <<'EOF'
import importlib.metadata
import sys

import ale_py
import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper

gym.register_envs(ale_py)
print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ale-py", "gymnasium", "stable_baselines3")))
seen = {}
for name, kwargs in (("ALE/Breakout-v5", {}), ("ALE/Breakout-v5", {"frameskip": 1}), ("BreakoutNoFrameskip-v4", {})):
    env = AtariWrapper(gym.make(name, **kwargs))
    env.reset(seed=0)
    ale = env.unwrapped.ale
    before = ale.getEpisodeFrameNumber()
    env.step(0)
    label = name + "".join(f", {key}={value}" for key, value in kwargs.items())
    seen[label] = ale.getEpisodeFrameNumber() - before, ale.getFloat("repeat_action_probability")
    print(f"  {label + ':':<31}{seen[label][0]:>3} frames a step, actions repeated with probability {seen[label][1]}")
try:
    gym.wrappers.AtariPreprocessing(gym.make("ALE/Breakout-v5"))
except ValueError as error:
    print(f"  Gymnasium's AtariPreprocessing of the first: ValueError: {error}")
else:
    sys.exit("Gymnasium takes it")
sys.exit(list(seen.values()) != [(16, 0.25), (4, 0.25), (4, 0.0)])
EOF
venv/bin/python -W ignore finding.py
