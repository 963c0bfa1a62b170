"""The options of Alrao, their one default and their checks."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from alrao_rl.core.averaging import RULES, make_rule
from alrao_rl.core.optim import BASES, Base


@dataclass(frozen=True)
class AlraoConfig:
    """Everything about Alrao that can be set. The defaults serve every algorithm and environment.

    Args:
        n_heads: J, number of copies of every output layer.
        lr_range: (η_min, η_max), the interval of learning rates; None takes the base's own.
        base: base update, one of ``rmsprop``, ``adam``, ``sgd``, ``feature-normalized``.
        base_kwargs: options of the base (``momentum``; ``beta1``, ``beta2``, ``eps``; ``decay``, ``eps``,
            ``eps_inside``, ``bias_correction``; ``beta``, ``eps``).
        value_averaging: averaging rule of values: ``switch``, ``whiteness``, ``bayes``, ``exponentiated-gradient``,
            ``uniform``, or a dict with the name under ``rule`` and its options beside it.
        policy_averaging: averaging rule of policies, given in the same way. A policy has no label, so ``switch`` and
            ``bayes`` do not serve it.
        head_max_grad_norm: every head's gradient is clipped to this norm by itself; None leaves it. ``"auto"`` is the
            algorithm's own ``max_grad_norm``, as if each head alone were the output (None outside of SB3).
        reclone_interval: every so many updates, heads with a weight below 0.1/J are re-cloned from the average; 0
            re-clones only heads that are not finite.
        iterate_window: DQN's deterministic actions are those of a running average of the Q-network over this many
            updates (a tenth of them at first); 1 plays the current network.
        seed: seed of rates and heads; None derives it from torch's global generator, without advancing that.

    Raises:
        ValueError, TypeError: with one line that names the option, its value and what was expected.
    """

    n_heads: int = 10
    lr_range: tuple[float, float] | None = None
    base: str = "rmsprop"
    base_kwargs: Mapping[str, Any] = field(default_factory=dict)
    value_averaging: str | Mapping[str, Any] = "switch"
    policy_averaging: str | Mapping[str, Any] = "exponentiated-gradient"
    head_max_grad_norm: float | str | None = "auto"
    reclone_interval: int = 100
    iterate_window: int = 1000
    seed: int | None = None

    def __post_init__(self) -> None:
        _integer("n_heads", self.n_heads, 1)
        _integer("reclone_interval", self.reclone_interval, 0)
        _integer("iterate_window", self.iterate_window, 1)
        if self.seed is not None:
            _integer("seed", self.seed, 0)
        if self.lr_range is not None:
            object.__setattr__(self, "lr_range", _interval(self.lr_range))
        norm = self.head_max_grad_norm
        if norm not in (None, "auto") and not (_is_number(norm) and float(norm) > 0):
            raise ValueError(f"alrao.head_max_grad_norm is {norm!r}, expected a positive number, None or 'auto'")
        if _is_number(norm):
            object.__setattr__(self, "head_max_grad_norm", float(norm))  # type: ignore[arg-type]
        _one_of("alrao.base", self.base, BASES)
        _options(f"alrao.base_kwargs of {self.base!r}", BASES[self.base], self.base_kwargs)
        self.make_base()
        for name in ("value_averaging", "policy_averaging"):
            self._check_rule(f"alrao.{name}", getattr(self, name))
        if rule_name(self.policy_averaging) in ("switch", "bayes"):
            raise ValueError(
                f"alrao.policy_averaging is {rule_name(self.policy_averaging)!r}, which needs labels that a policy has "
                "not: expected 'exponentiated-gradient' or 'uniform'"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | AlraoConfig | None) -> AlraoConfig:
        """Make a configuration of a dict of options; an unknown one is an error that names the nearest."""
        if isinstance(options, AlraoConfig):
            return options
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"alrao is {options!r}, expected a dict of options such as dict(n_heads=20)")
        options = dict(options or {})
        for name in options:
            _one_of("alrao option", name, [f.name for f in fields(cls)])
        return cls(**options)

    @property
    def interval(self) -> tuple[float, float]:
        """(η_min, η_max) in force: the given one or the base's own."""
        return self.lr_range or BASES[self.base].default_lr_range

    def make_base(self) -> Base:
        """Make the base update."""
        return BASES[self.base](**self.base_kwargs)

    @staticmethod
    def _check_rule(name: str, spec: Any) -> None:
        if not isinstance(spec, str) and not (isinstance(spec, Mapping) and isinstance(spec.get("rule"), str)):
            raise TypeError(f"{name} is {spec!r}, expected the name of a rule or a dict with one under 'rule'")
        _one_of(name, rule_name(spec), RULES)
        if not isinstance(spec, str):
            rest = {key: value for key, value in spec.items() if key != "rule"}
            _options(f"{name} {rule_name(spec)!r}", RULES[rule_name(spec)], rest, skip=("rates",))
            make_rule(dict(spec), torch.ones(1))


def rule_name(spec: str | Mapping[str, Any]) -> str:
    """The name of an averaging rule given as a name or as a dict."""
    return spec if isinstance(spec, str) else str(spec["rule"])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _integer(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"alrao.{name} is {value!r}, expected a whole number of at least {low}")


def _interval(value: Any) -> tuple[float, float]:
    expected = "expected two numbers 0 < lr_min <= lr_max, such as (1e-6, 0.1)"
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(_is_number(end) for end in value):
        raise ValueError(f"alrao.lr_range is {value!r}, {expected}")
    low, high = map(float, value)
    if not 0 < low <= high:
        hint = f" (did you mean {(high, low)}?)" if 0 < high < low else ""
        raise ValueError(f"alrao.lr_range is {value!r}, {expected}{hint}")
    return low, high


def _one_of(what: str, value: object, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(choices)}{hint}")


def _options(what: str, cls: type, options: Any, skip: tuple[str, ...] = ()) -> None:
    """Check keyword options against the constructor of ``cls``: known names, right types."""
    if not isinstance(options, Mapping):
        raise TypeError(f"{what} is {options!r}, expected a dict")
    known = {name: p for name, p in inspect.signature(cls).parameters.items() if name not in skip}
    for name, value in options.items():
        if not known:
            raise ValueError(f"{what} takes no options, {name!r} was given")
        _one_of(f"option of {what}", name, known)
        wants_bool = isinstance(known[name].default, bool)
        if wants_bool != isinstance(value, bool) or not (wants_bool or _is_number(value)):
            raise TypeError(f"{what}: {name} is {value!r}, expected {'true or false' if wants_bool else 'a number'}")
