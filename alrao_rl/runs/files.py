"""What a run leaves on disk: the names of its files, their columns, the states of a run."""

from __future__ import annotations

COLUMNS = {
    "episodes.csv": ("timestep", "return", "length"),
    "evaluations.csv": ("timestep", "episodes", "mean_return", "std_return", "min_return", "max_return"),
    "heads.csv": ("timestep", "layer", "head", "learning_rate", "weight", "reclones"),
    "timing.csv": ("timestep", "wall_seconds", "steps_per_second"),
}


AGENTS = tuple(f"{name}.{suffix}" for name in ("agent", "last") for suffix in ("safetensors", "json"))


STATES = ("queued", "running", "interrupted", "finished", "failed")
"""Of a run folder."""


TRACEBACK = "traceback.txt"


CHECKPOINT = "checkpoint"


MANIFEST = "sha256.json"


KEPT = ("config.json", "status.json", MANIFEST, TRACEBACK, *COLUMNS)
"""What a study keeps of a run: everything but agents and checkpoints."""


TRACKING, TENSORBOARD = "tracking.json", "tensorboard"
"""Of a run with ``--track``: what it is called at the trackers, and a folder that is one's own."""
