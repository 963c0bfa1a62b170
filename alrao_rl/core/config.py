"""The options of Alrao, their one default and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from alrao_rl.checks import construct, interval, known_options, number, one_of, whole
from alrao_rl.core.averaging import RULES, make_rule
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
            values learned from replay (DQN), switch otherwise. Replayed batches are drawn independently, so that the
            correlation of successive gradients depends on the rate alone, but their labels are the network's own
            guesses, which flatter slow heads. With fresh data (A2C, PPO) it is the other way round: labels are
            returns, and successive rollouts resemble each other at any rate.
        policy_averaging: averaging rule of policies, given in the same way. A policy has no label, so rules that
            judge by losses (``switch``, ``bayes``) do not serve it.
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
            checked["lr_range"] = interval("alrao.lr_range", self.lr_range)
        if self.head_max_grad_norm is not None and self.head_max_grad_norm != "auto":
            name, also = "alrao.head_max_grad_norm", "None (in TOML 'none'), 'auto' or "
            checked["head_max_grad_norm"] = number(name, self.head_max_grad_norm, 0, also=also)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        # Made here and thrown away, so that a mistake in their options shows before any training.
        self.make_base()
        make_rule(self.resolve(replay=False).value_averaging, torch.ones(1), "alrao.value_averaging")
        policy_rule = make_rule(self.policy_averaging, torch.ones(1), "alrao.policy_averaging")
        if policy_rule.uses == "losses":
            serve = " or ".join(repr(name) for name, rule in RULES.items() if rule.uses != "losses")
            raise ValueError(
                f"alrao.policy_averaging is {self.policy_averaging!r}, which needs labels that a policy does not have: "
                f"expected {serve}"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | AlraoConfig | None) -> AlraoConfig:
        """Make a configuration of a dict of options; an unknown one is an error that names the nearest."""
        if isinstance(options, AlraoConfig):
            return options
        return cls(**known_options("alrao", options, [option.name for option in fields(cls)]))

    def resolve(self, replay: bool) -> AlraoConfig:
        """The same with ``value_averaging`` decided, for values learned from replay or not."""
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
