"""What a run leaves on disk: names of its files, their columns, and what ``config.json`` and ``status.json`` hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from alrao_rl.checks import is_number
from alrao_rl.errors import UserError

COLUMNS = {
    "episodes.csv": ("timestep", "return", "length"),
    "evaluations.csv": ("timestep", "episodes", "mean_return", "std_return", "min_return", "max_return"),
    "heads.csv": ("timestep", "layer", "head", "learning_rate", "weight", "reclones"),
    "entropy.csv": ("timestep", "ent_coef"),
    "timing.csv": ("timestep", "wall_seconds", "steps_per_second"),
}
AGENTS = tuple(f"{name}.{suffix}" for name in ("agent", "last") for suffix in ("safetensors", "json"))
State = Literal["queued", "running", "interrupted", "finished", "failed"]
STATES = get_args(State)
"""Of a run folder."""
TRACEBACK = "traceback.txt"
CHECKPOINT = "checkpoint"
MANIFEST = "sha256.json"
LOCK = ".lock"
KEPT = ("config.json", "status.json", MANIFEST, TRACEBACK, *COLUMNS)
"""What a study keeps of a run: everything but agents and checkpoints."""
TRACKING, TENSORBOARD = "tracking.json", "tensorboard"
"""Of a run with ``--track``: what it is called at the trackers, and a folder that is one's own."""


# --- config.json and status.json ------------------------------------------------------------------------------------


def _with_interval(alrao: dict[str, Any]) -> dict[str, Any]:
    interval = alrao.get("lr_range", [0, 0])
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))):
        raise ValueError("lr_range is no interval")
    return alrao


Count = Annotated[int, Field(ge=0, lt=2**62)]


class _Record(BaseModel):
    """A JSON object as a run writes it; what else stands there is kept and not looked at."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @classmethod
    def of(cls, data: Mapping[str, Any], where: object) -> Self:
        """The data, checked.

        Raises:
            UserError: a key is missing or holds something else; one line that begins with ``where``.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            keys, value = [], data
            for key in error.errors(include_url=False)[0]["loc"]:
                if not isinstance(value, Mapping):
                    break  # an index, or the member of a union
                keys.append(str(key))
                value = value.get(str(key), None)
            raise UserError(f"{where} is not as a run writes it: {'.'.join(keys)} is {value!r}") from None


class EnvironmentRecord(_Record):
    """``env`` in ``config.json``: the environment's id, how it is made, and the constants of its scores."""

    id: str
    random_score: float | None = None
    reference_score: float | None = None
    floor: float | None = None


class RunConfig(_Record):
    """``config.json``: all that decides on a run, its recipe first, and what it was made with."""

    agent: str
    algo: str
    policy: str
    env: EnvironmentRecord
    hyperparameters: dict[str, Any]
    timesteps: Annotated[Count, Field(gt=0)]
    seed: Count
    alrao: Annotated[dict[str, Any], AfterValidator(_with_interval)] = Field(default_factory=dict)
    provenance: Any = None


class RunStatus(_Record):
    """``status.json``: how far a run is, why it failed, and once it is finished its evaluations.

    Attributes:
        pid: process that writes the run, while it is running.
        timestep: how far one came that did not finish.
        timesteps: of a finished one, which may be a few more than were asked for; ``best_timestep`` is that of its best
            evaluation.
        evaluation_steps: environment steps of all evaluations; ``seconds_evaluating`` are their wall seconds.
        restarted_episodes: where an environment could not be replayed from a checkpoint and began a new episode: each
            with its ``timestep``, ``environment`` and ``reason``.
        skipped_updates: updates without a finite gradient.
    """

    state: State
    pid: int | None = None
    reason: str = ""
    timestep: Count | None = None
    timesteps: Count | None = None
    best_return: float | None = None
    best_timestep: int | None = None
    last_return: float | None = None
    evaluation_steps: int | None = None
    wall_seconds: float | None = None
    seconds_evaluating: float | None = None
    restarted_episodes: list[dict[str, Any]] | None = None
    skipped_updates: int | None = None
