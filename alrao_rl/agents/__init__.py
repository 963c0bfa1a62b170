"""Agents: an SB3 model made from a recipe, and its file."""
