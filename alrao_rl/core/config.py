"""The options of Alrao, their one default and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from alrao_rl.checks import construct, is_number, number, one_of, whole
from alrao_rl.core.averaging import make_rule, rule_name
from alrao_rl.core.bases import BASES, BaseUpdate


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
            ``uniform``, or a dict with the name under ``rule`` and its options beside it. ``"auto"`` is whiteness for
            values of discrete actions learned from replay (DQN), switch otherwise. Replayed batches are drawn
            independently, so that the correlation of successive gradients tells of the rate alone, but their labels are
            the network's own guesses, which flatter slow heads. With fresh data (A2C, PPO) it is the other way round:
            labels are returns, and successive rollouts resemble each other at any rate. Critics that lead an actor
            (SAC, TD3) are best by switch, too: their gradients are mostly noise, in which every slow head looks white.
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
    value_averaging: str | Mapping[str, Any] = "auto"
    policy_averaging: str | Mapping[str, Any] = "exponentiated-gradient"
    head_max_grad_norm: float | str | None = "auto"
    reclone_interval: int = 100
    iterate_window: int = 1000
    seed: int | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: whole(f"alrao.{name}", getattr(self, name), low)
            for name, low in {"n_heads": 1, "reclone_interval": 0, "iterate_window": 1, "seed": 0}.items()
            if name != "seed" or self.seed is not None
        }
        if self.lr_range is not None:
            checked["lr_range"] = _interval(self.lr_range)
        if self.head_max_grad_norm is not None and self.head_max_grad_norm != "auto":
            name = "alrao.head_max_grad_norm"
            checked["head_max_grad_norm"] = number(
                name, self.head_max_grad_norm, 0, also="None (in TOML 'none'), 'auto' or "
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self.make_base()
        make_rule(self.resolve(replay=False).value_averaging, torch.ones(1), "alrao.value_averaging")
        make_rule(self.policy_averaging, torch.ones(1), "alrao.policy_averaging")
        if (name := rule_name(self.policy_averaging)) in ("switch", "bayes"):
            raise ValueError(
                f"alrao.policy_averaging is {name!r}, which needs labels that a policy has not: expected "
                "'exponentiated-gradient', 'whiteness' or 'uniform'"
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
            one_of("alrao option", name, [f.name for f in fields(cls)])
        return cls(**options)

    def resolve(self, replay: bool) -> AlraoConfig:
        """The same with ``value_averaging`` decided, for values of actions learned from replay or not."""
        if self.value_averaging != "auto":
            return self
        return replace(self, value_averaging="whiteness" if replay else "switch")

    @property
    def interval(self) -> tuple[float, float]:
        """(η_min, η_max) in force: the given one or the base's own."""
        return self.lr_range or BASES[self.base].default_lr_range

    def make_base(self) -> BaseUpdate:
        """Make the base update."""
        one_of("alrao.base", self.base, BASES)
        base: BaseUpdate = construct("alrao.base_kwargs of", BASES, self.base, self.base_kwargs)
        return base


def _interval(value: Any) -> tuple[float, float]:
    expected = "expected two numbers 0 < lr_min <= lr_max, such as (1e-6, 0.1)"
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(is_number, value)):
        raise ValueError(f"alrao.lr_range is {value!r}, {expected}")
    low, high = map(float, value)
    if not 0 < low <= high:
        hint = f" (did you mean {(high, low)}?)" if 0 < high < low else ""
        raise ValueError(f"alrao.lr_range is {value!r}, {expected}{hint}")
    if low < 1e-30 or high > 1e30:
        raise ValueError(f"alrao.lr_range is {value!r}, expected rates from 1e-30 to 1e30, which 32 bits can hold")
    return low, high
