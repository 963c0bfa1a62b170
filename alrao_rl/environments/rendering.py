"""Drawing environments into arrays on machines without a display, for videos."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import gymnasium as gym

from alrao_rl.errors import UserError

_BACKENDS = ("egl", "osmesa", "glfw")
"""In order of preference: the first two need no display, and Gymnasium has no others."""
_SECONDS = 60
"""A driver that has not answered by then does not work."""
_OTHERS = ("gymnasium.envs.", "alrao_rl.", "ale_py.")
"""Modules of environments that MuJoCo does not draw, but for its own among Gymnasium's."""
_DRAWS = """
import mujoco
from mujoco.{0} import GLContext
context = GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


def draw_without_display(env_id: str) -> None:
    """Have an environment that is made next draw without a display, by environment variables that the user left unset.

    pygame draws into memory with ``SDL_VIDEODRIVER=dummy``. MuJoCo needs a library, in ``MUJOCO_GL``: left alone,
    Gymnasium takes GLFW also where there is no display, and fails.

    Raises:
        UserError: if MuJoCo cannot draw one of Gymnasium's own environments, with what to install.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    spec = gym.registry.get(env_id)  # None of what its package has yet to register
    module = str(spec.entry_point) if spec else ""
    certain = module.startswith("gymnasium.envs.mujoco")
    if (module.startswith(_OTHERS) and not certain) or importlib.util.find_spec("mujoco") is None:
        return
    chosen = os.environ.get("MUJOCO_GL")
    working = next(filter(_draws, [chosen] if chosen else _BACKENDS), None)
    if working:
        os.environ["MUJOCO_GL"] = working
    elif certain and chosen:
        others = [f"MUJOCO_GL={name}" for name in filter(_draws, _BACKENDS)]
        raise UserError(
            f"{env_id} cannot be drawn with MUJOCO_GL={chosen} on this machine, "
            f"expected {' or '.join(others) or 'a library that is installed'}"
        )
    elif certain:
        raise UserError(
            f"{env_id} cannot be drawn: MuJoCo needs EGL or OSMesa where there is no display; on Debian or Ubuntu: "
            "apt-get install libegl1 libgl1-mesa-dri"
        )


def _draws(backend: str) -> bool:
    """Whether MuJoCo can draw with a backend; in another process, as one that was tried cannot be exchanged."""
    if backend not in _BACKENDS:
        return False
    program, environ = _DRAWS.format(backend), os.environ | {"MUJOCO_GL": backend}
    try:
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
