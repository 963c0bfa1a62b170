#!/usr/bin/env bash
# Where MUJOCO_GL is not set, Gymnasium tries GLFW, EGL and OSMesa in this order and draws its MuJoCo environments with
# the first that raises no error. On a machine without a display GLFW raises none: it warns, and its context is an object
# like any other, so only its use fails, after the choice. EGL, which needs no display, is never tried; with MUJOCO_GL=egl
# the same program draws.
#
# Seen: gymnasium 1.4.0, mujoco 4.0.0, no display, libegl1 and libgl1-mesa-dri of Debian 12
#   MUJOCO_GL unset    FatalError: an OpenGL platform library has not been loaded into this process, ...
#   MUJOCO_GL=egl      an image of 480 x 480
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet gymnasium==1.4.0 numpy==2.4.6 imageio==2.38.1 packaging==26.3 mujoco==4.0.0
cat > finding.py <<'EOF'
import os
import sys

import gymnasium as gym
import mujoco

env = gym.make("Reacher-v5", render_mode="rgb_array")
env.reset(seed=0)
try:
    image = env.render()
    seen = f"an image of {image.shape[0]} x {image.shape[1]}"
except Exception as error:
    seen = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
print(f"gymnasium {gym.__version__}, mujoco {mujoco.__version__}, MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {seen}")
sys.stdout.flush()
# Not by way of the interpreter's own end: a viewer that was not set up complains when it is collected.
os._exit(0 if seen.startswith(sys.argv[1]) else 1)
EOF
unset DISPLAY WAYLAND_DISPLAY PYOPENGL_PLATFORM MUJOCO_GL
if ! MUJOCO_GL=egl venv/bin/python -W ignore finding.py "an image" 2>/dev/null; then
    echo "EGL does not draw here, so there is nothing to see: apt-get install libegl1 libgl1-mesa-dri"
    exit 1
fi
venv/bin/python -W ignore finding.py "FatalError: an OpenGL platform library" 2>/dev/null
