"""Base class of TOML tables, and types of values with their limits."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from alrao_rl.checks import LINEAR, entropy_coefficient, first_value, target_entropy

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _at_least_zero(value: float | str) -> float | str:
    if not 0 <= first_value(value) < math.inf:
        raise ValueError(f'expected a number of at least 0, or "{LINEAR}0.001" for one that falls to 0')
    return value


def _above_zero(value: float | str) -> float | str:
    if not 0 < first_value(value) < math.inf:
        raise ValueError(f'expected a number greater than 0, or "{LINEAR}0.2" for one that falls to 0')
    return value


Rate = Annotated[float | str, AfterValidator(_at_least_zero)]
ClipRange = Annotated[float | str, AfterValidator(_above_zero)]
EntropyCoefficient = Annotated[float | str, AfterValidator(entropy_coefficient)]
TargetEntropy = Annotated[float | str, AfterValidator(target_entropy)]
MAX_COUNT = 10**12
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


def _train_freq(value: Any) -> Any:
    number, unit = value if isinstance(value, list) and len(value) == 2 else (value, "step")
    if type(number) is not int or not 1 <= number <= MAX_COUNT or unit not in ("step", "episode"):
        raise ValueError('expected a whole number of steps of at least 1, or [1, "episode"]')
    return value


TrainFreq = Annotated[Any, AfterValidator(_train_freq)]
Widths = Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(max_length=100)]


def json_value(value: Any) -> Any:
    """Reject what ``config.json`` could not hold: TOML's dates and times, nan and inf."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, text, true or false, lists and tables: {error}") from None
    return value


Options = Annotated[dict[str, Any], AfterValidator(json_value)]


class Table(BaseModel):
    """A TOML table; unknown keys and values of another type are rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
