"""Importing this registers our environments with Gymnasium, and MinAtar's."""

from alrao_rl.environments.register import provide

__all__ = ["provide"]
