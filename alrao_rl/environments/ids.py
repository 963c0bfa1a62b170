"""Check of environment ids."""

from __future__ import annotations

import importlib.util

from alrao_rl.errors import UserError, first_line, suggest
from alrao_rl.recipes.files import recipe_names


def check_id(name: str) -> None:
    """Reject an id that Gymnasium does not know, or whose package is not installed, without importing the package."""
    import gymnasium as gym

    from alrao_rl.environments import register

    package, colon, env_id = name.rpartition(":")
    if colon:
        root = package.split(".")[0]
        if not root.isidentifier() or importlib.util.find_spec(root) is None:
            raise UserError(f"environment {name!r}: the package {root!r} to import it from is not installed")
        return
    register.provide(env_id)
    try:
        gym.spec(env_id)
    except gym.error.DeprecatedEnv as error:
        raise UserError(f"environment {env_id!r} is no longer available: {first_line(error)}") from None
    except gym.error.NamespaceNotFound:
        raise UserError(
            f"unknown environment {env_id!r}: name the package that registers it, such as 'ale_py:ALE/Pong-v5'"
        ) from None
    except (gym.error.Error, ValueError):
        known = [key for key in gym.registry if not key.startswith(("phys2d", "tabular"))]
        raise UserError(
            f"unknown environment {env_id!r}, expected a Gymnasium id such as 'CartPole-v1' or 'package:Id'"
            f"{suggest(env_id, [*recipe_names('envs'), *known], 0.6)}"
        ) from None
