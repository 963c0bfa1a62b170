"""Alrao for Stable-Baselines3."""
