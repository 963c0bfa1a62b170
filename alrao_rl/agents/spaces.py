"""Gymnasium's spaces as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from alrao_rl.errors import UserError


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A Gymnasium space as JSON."""
    if isinstance(space, spaces.Box):
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **_bounds(space)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": np.asarray(space.n).tolist()}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: encode_space(inner) for key, inner in space.spaces.items()}}
    raise UserError(f"cannot save an agent with a {type(space).__name__} space")


def _bounds(space: spaces.Box) -> dict[str, Any]:
    """Bounds of a Box; one number if all are equal. Infinities as JSON strings."""

    def encode(bound: np.ndarray[Any, Any]) -> Any:
        values = bound.reshape(-1).tolist()
        values = [value if np.isfinite(value) else str(value) for value in values]
        return values[0] if values and all(value == values[0] for value in values) else values

    return {"low": encode(space.low), "high": encode(space.high)}


def decode_space(data: dict[str, Any]) -> spaces.Space[Any]:
    """The Gymnasium space that :func:`encode_space` wrote."""
    kind = data["type"]
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bound(data[end], shape, dtype) for end in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        # As pairs: it would sort the keys of a dict, and features are made in the order of the keys.
        return spaces.Dict([(key, decode_space(inner)) for key, inner in data["spaces"].items()])
    raise ValueError(f"unknown space {kind!r}")


def _bound(data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    # Not by way of floating point for whole numbers, since it cannot hold the largest ones.
    flat = np.asarray(data, dtype=dtype if np.issubdtype(dtype, np.integer) else np.float64).reshape(-1)
    return np.broadcast_to(flat, (int(np.prod(shape)),)).reshape(shape).astype(dtype)
