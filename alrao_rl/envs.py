"""Where agents exported for Stable-Baselines3 look for the class of their statistics."""

from alrao_rl.environments.normalization import RunningMeanSquare

__all__ = ["RunningMeanSquare"]
