"""Environments: which there are, how they are made, wrapped, normalised and recorded."""
