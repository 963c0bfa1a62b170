"""Runs on disk: folders, checkpoints, and tables of their results."""
