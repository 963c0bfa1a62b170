"""Recipes: agents/*.toml and envs/*.toml, read, checked and merged.

An agent file holds an algorithm, a policy and hyperparameters, the same for every environment. An environment file
holds facts only: id, wrappers, scores, timesteps.
"""
