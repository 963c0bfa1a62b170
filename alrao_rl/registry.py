"""Importing this module registers this package's environments, MinAtar's among them, with Gymnasium."""

from alrao_rl.environments.register import provide

__all__ = ["provide"]
