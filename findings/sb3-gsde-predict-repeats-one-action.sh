#!/usr/bin/env bash
# With use_sde=True, predict(observation, deterministic=False) gives one observation the same action again and again:
# gSDE's noise is a matrix that only training draws anew (each rollout, or every sde_sample_freq steps), and predict
# uses the one that is there. Whoever samples a policy, plays it with noise, or has evaluate_policy with
# deterministic=False over many episodes sees one draw, until policy.reset_noise() makes another.
#
# Seen: stable_baselines3 2.9.2, PPO on Pendulum-v1; distinct actions in 50 predictions for one observation
#   use_sde=False: 50
#   use_sde=True: 1
#   use_sde=True, policy.reset_noise() before each: 50
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 stable_baselines3==2.9.2
cat > finding.py <<'EOF'
import sys

import numpy as np
import stable_baselines3
from stable_baselines3 import PPO


def distinct(use_sde, reset):
    model = PPO("MlpPolicy", "Pendulum-v1", use_sde=use_sde, policy_kwargs={"log_std_init": -2.0}, seed=0, device="cpu")
    actions = set()
    for _ in range(50):
        if reset:
            model.policy.reset_noise()
        action, _ = model.predict(np.array([0.5, 0.5, 0.1], np.float32), deterministic=False)
        actions.add(float(action[0]))
    return len(actions)


print(f"stable_baselines3 {stable_baselines3.__version__}, PPO; distinct actions in 50 predictions for one observation")
seen = {
    "use_sde=False": distinct(False, False),
    "use_sde=True": distinct(True, False),
    "use_sde=True, policy.reset_noise() before each": distinct(True, True),
}
for name, n in seen.items():
    print(f"  {name}: {n}")
sys.exit(list(seen.values()) != [50, 1, 50])
EOF
venv/bin/python -W ignore finding.py
