#!/usr/bin/env bash
# Gymnasium's environments keep their version (HalfCheetah-v5) whatever MuJoCo is installed, and MuJoCo's steps are not
# those of another release: from 3.3.7 to 4.0.0 the same environment, seed and actions give other trajectories, after a
# thousand chaotic steps quite others. Reacher and the pendulums are the same to the last bit, so a test on one of those
# notices nothing. A checkpoint that is continued, or a return that is compared, needs the version of mujoco beside that
# of gymnasium.
#
# Seen: gymnasium 1.4.0; return of at most 1,000 random actions, seed 0      mujoco 3.3.7     4.0.0
#   Reacher-v5, InvertedPendulum-v5, InvertedDoublePendulum-v5                  same bits
#   Pusher-v5, Swimmer-v5, Walker2d-v5                                          differ in the last digits
#   Hopper-v5                                                                   18.455    18.441
#   HalfCheetah-v5                                                              -202.9    -265.7
#   Ant-v5 (29 steps, 45 steps)                                                  3.511     8.072
#   Humanoid-v5                                                                 98.806    98.791
#   HumanoidStandup-v5                                                         33569.1   30820.7
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv old
old/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 imageio==2.38.1 packaging==26.3 mujoco==3.3.7
python3 -m venv new
new/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 imageio==2.38.1 packaging==26.3 mujoco==4.0.0
cat > finding.py <<'EOF'
import json
import sys

import gymnasium as gym
import mujoco

NAMES = """Reacher InvertedPendulum InvertedDoublePendulum Pusher Swimmer Walker2d Hopper HalfCheetah Ant Humanoid
HumanoidStandup""".split()


def play(name):
    env = gym.make(f"{name}-v5")
    env.action_space.seed(0)
    env.reset(seed=0)
    total, steps, over = 0.0, 0, False
    while not over:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return [total, steps]


if sys.argv[1] == "play":
    print(json.dumps({"mujoco": mujoco.__version__, **{name: play(name) for name in NAMES}}))
    sys.exit()
old, new = (json.load(open(path)) for path in sys.argv[2:])
print(f"gymnasium {gym.__version__}, mujoco {old['mujoco']} and {new['mujoco']}")
for name in NAMES:
    print(f"  {name + '-v5':<28} {old[name][0]!r:>22} ({old[name][1]} steps) {new[name][0]!r:>22} ({new[name][1]} steps)")
same = [name for name in NAMES if old[name] == new[name]]
far = [name for name in NAMES if abs(old[name][0] - new[name][0]) > 1e-2]
print("same bits:", ", ".join(same), "| more than 0.01 apart:", ", ".join(far))
sys.exit("Reacher" not in same or not {"HalfCheetah", "HumanoidStandup", "Ant"} <= set(far))
EOF
old/bin/python -W ignore finding.py play 2>/dev/null | tail -n 1 > old.json
new/bin/python -W ignore finding.py play 2>/dev/null | tail -n 1 > new.json
new/bin/python -W ignore finding.py compare old.json new.json
