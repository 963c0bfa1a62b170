"""Schemas of agent files and environment files, and the recipe made from one of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from alrao_rl.recipes.algorithms import ALGORITHMS, Algorithm
from alrao_rl.recipes.fields import Count, Finite, Options, Table


class AlraoOptions(Table):
    """Types of Alrao's options. :class:`~alrao_rl.core.AlraoConfig` has the defaults and checks the rest."""

    n_heads: Annotated[int, Field(ge=1, le=10_000)] | None = None
    lr_range: list[float] | None = None
    base: str | None = None
    base_kwargs: dict[str, float | bool] | None = None
    value_averaging: str | dict[str, str | float | bool] | None = None
    policy_averaging: str | dict[str, str | float | bool] | None = None
    head_max_grad_norm: float | str | None = None
    reclone_interval: Annotated[int, Field(ge=0)] | None = None
    iterate_window: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None


class Agent(Table):
    """An agent file. Its hyperparameters and policy options are checked by the tables of its algorithm.

    ``normalize_observations`` applies to Box observations: true for mean 0 and standard deviation 1, "scale" for root
    mean square 1; images and discrete ones are left as they are. ``normalize_rewards`` divides rewards by the standard
    deviation of the discounted return, in training only. "continuous" means true if the actions are a Box and false
    otherwise, see :func:`alrao_rl.environments.make.settle`.
    """

    algo: Literal[tuple(ALGORITHMS)]  # type: ignore[valid-type]
    policy: Literal["alrao", "stock"]
    n_envs: Annotated[int, Field(ge=1, le=10_000)] = 1
    normalize_observations: Literal[True, False, "scale", "continuous"] = False
    normalize_rewards: Literal[True, False, "continuous"] | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    policy_options: dict[str, Any] = Field(default_factory=dict)
    alrao: AlraoOptions = AlraoOptions()

    @property
    def algorithm(self) -> Algorithm:
        """The row of its algorithm."""
        return ALGORITHMS[self.algo]

    @field_validator("normalize_rewards")
    @classmethod
    def _false_is_absent(cls, value: bool | str | None) -> bool | str | None:
        """Omit the key unless it does something, so that configurations from before the key existed still match."""
        return value or None


SCORES = ("random_score", "reference_score", "floor")
"""Valid for an environment with the arguments of its file; unknown for others."""


class Environment(Table):
    """An environment file."""

    id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:/-]+$")]
    random_score: Finite | None = None
    reference_score: Finite | None = None
    floor: Finite | None = None
    timesteps: dict[Literal[tuple(ALGORITHMS)], Count] = Field(default_factory=dict)  # type: ignore[valid-type]
    wrappers: list[Options] = Field(default_factory=list)
    kwargs: Options = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_scores(self) -> Environment:
        low, high = self.random_score, self.reference_score
        if low is not None and high is not None and low >= high:
            raise ValueError(f"reference_score is {high:g}, expected more than random_score, {low:g}")
        if low is not None and self.floor is not None and self.floor > low:
            raise ValueError(f"floor is {self.floor:g}, expected at most random_score, {low:g}")
        return self


NORMALIZATIONS = ("normalize_observations", "normalize_rewards")
CONTINUOUS = "continuous"
"""Value of a normalisation that means true if the actions are a Box."""


@dataclass(frozen=True)
class Recipe:
    """A resolved run: agent and environment, and where every value came from."""

    agent_name: str
    agent: Agent
    environment: Environment
    timesteps: int
    origins: dict[str, tuple[Any, str]]

    @property
    def is_settled(self) -> bool:
        """Whether no value depends on the environment's actions, see :func:`alrao_rl.environments.make.settle`."""
        return not any(getattr(self.agent, name) == CONTINUOUS for name in NORMALIZATIONS)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the seed that determines the result of the run, for ``config.json``."""
        return {
            "agent": self.agent_name,
            **self.agent.model_dump(exclude_none=True),
            "env": self.environment.model_dump(exclude_none=True, exclude={"timesteps"}),
            "timesteps": self.timesteps,
        }
