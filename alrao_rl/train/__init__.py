"""One run: ``python -m alrao_rl.train``."""
