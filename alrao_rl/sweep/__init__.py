"""Many runs: ``python -m alrao_rl.sweep``."""
