"""The options of Alrao, their one default and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import torch

from alrao_rl.checks import alrao_numbers, construct, known_options, one_of, policy_rule
from alrao_rl.core.averaging import RULES, Spec, make_rule
from alrao_rl.core.bases import BASES, BaseUpdate, RmsProp

Learns: TypeAlias = Literal["rollouts", "q-values", "critics", "online critics"]
"""What a network learns: from rollouts, or from replay values of discrete actions, or critics that lead an actor, with
target networks or without them."""


@dataclass(frozen=True)
class AlraoConfig:
    """Everything about Alrao that can be set. The defaults serve every algorithm and environment.

    Args:
        n_heads: J, number of copies of every output layer.
        lr_range: (η_min, η_max), the interval of learning rates; None takes the base's own.
        base: base update, one of ``rmsprop``, ``adam``, ``sgd``, ``feature-normalized``. ``"auto"`` is adam for critics
            with targets and the actor that they lead (SAC, TD3), rmsprop otherwise: CrossQ has no targets.
        base_kwargs: options of the base (``momentum``; ``beta1``, ``beta2``, ``eps``; ``decay``, ``eps``,
            ``eps_inside``, ``bias_correction``; ``beta``, ``eps``).
        value_averaging: averaging rule of values: ``switch``, ``whiteness``, ``bayes``, ``exponentiated-gradient``,
            ``uniform``, or a dict with the name under ``rule`` and its options beside it. ``"auto"`` is whiteness for
            values of discrete actions learned from replay (DQN), switch otherwise. Replayed batches are drawn
            independently, so that the correlation of successive gradients depends on the rate alone, but their labels
            are the network's own guesses, which flatter slow heads. With fresh data (A2C, PPO) it is the other way
            round: labels are returns, and successive rollouts resemble each other at any rate. Critics that lead an
            actor (SAC, TD3) do best by switch, too: their gradients are mostly noise, in which every slow head looks
            white.
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
    base: str = "auto"
    base_kwargs: Mapping[str, Any] = field(default_factory=dict)
    value_averaging: Spec = "auto"
    policy_averaging: Spec = "exponentiated-gradient"
    head_max_grad_norm: float | str | None = "auto"
    reclone_interval: int = 100
    iterate_window: int = 1000
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in alrao_numbers(self).items():
            object.__setattr__(self, name, value)
        # Made here and thrown away, so that a mistake in their options shows before any training.
        if self.base != "auto":
            self.make_base()
        if self.value_averaging != "auto":
            make_rule(self.value_averaging, torch.ones(1), "alrao.value_averaging")
        make_rule(self.policy_averaging, torch.ones(1), "alrao.policy_averaging")
        policy_rule(self.policy_averaging, {name: rule.uses for name, rule in RULES.items()})

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | AlraoConfig | None) -> AlraoConfig:
        """Make a configuration of a dict of options; an unknown one is an error that names the nearest."""
        if isinstance(options, AlraoConfig):
            return options
        return cls(**known_options("alrao", options, [option.name for option in fields(cls)]))

    def resolve(self, learns: Learns) -> AlraoConfig:
        """The same with ``base`` and ``value_averaging`` decided, for what the network learns."""
        auto: dict[str, Any] = {"base": "adam" if learns == "critics" else "rmsprop"}
        # Q-values: labels are the network's own guesses, which flatter slow heads; rollouts: labels are returns.
        auto["value_averaging"] = "whiteness" if learns == "q-values" else "switch"
        found = {name: value for name, value in auto.items() if getattr(self, name) == "auto"}
        return replace(self, **found) if found else self

    @property
    def interval(self) -> tuple[float, float]:
        """(η_min, η_max) in force: the given one or the base's own."""
        return self.lr_range or BASES.get(self.base, RmsProp).default_lr_range

    def make_base(self) -> BaseUpdate:
        """Make the base update."""
        one_of("alrao.base", self.base, ["auto", *BASES])
        base: BaseUpdate = construct("alrao.base_kwargs of", BASES, self.base, self.base_kwargs)
        return base
