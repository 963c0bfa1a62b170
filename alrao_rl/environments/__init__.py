"""Environments: registering, checking, making, wrapping, normalising and recording them."""
