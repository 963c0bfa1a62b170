"""The policies of every algorithm that is served, by names: sb3-contrib is loaded for those alone who use it."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Served:
    """An algorithm and its policies.

    Args:
        algorithm: name of its class, or of one that it inherits from.
        policies: names of its policies; the braces stand for "", "Cnn" or "MultiInput".
        module: where they are.
        keywords: which a policy's own file has if it is of this algorithm and of none above it.
    """

    algorithm: str
    policies: str
    module: str
    keywords: frozenset[str]

    def policy(self, form: str) -> Any:
        """The class of a form; None where the algorithm has none."""
        return getattr(importlib.import_module(f"alrao_rl.sb3.{self.module}"), self.policies.format(form), None)


SERVED = tuple(
    Served(algorithm, policies, module, frozenset(keywords.split()))
    for algorithm, policies, module, keywords in (
        ("RecurrentPPO", "Alrao{}LstmPolicy", "contrib", "lstm_hidden_size"),
        ("CrossQ", "AlraoCrossQ{}Policy", "contrib", "renorm_warmup_steps"),
        ("TQC", "AlraoTQC{}Policy", "contrib", "n_critics n_quantiles"),
        ("QRDQN", "AlraoQRDQN{}Policy", "contrib", "n_quantiles"),
        ("SAC", "AlraoSAC{}Policy", "off_policy", "n_critics use_sde"),
        ("TD3", "AlraoTD3{}Policy", "off_policy", "n_critics"),
        ("OnPolicyAlgorithm", "AlraoActorCritic{}Policy", "policies", "use_sde"),
        ("MaskablePPO", "AlraoMaskable{}Policy", "contrib", "ortho_init"),
        ("DQN", "AlraoDQN{}Policy", "policies", ""),
    )
)


def served(algorithm: type) -> Served | None:
    """What serves an algorithm, or that which it inherits from first; None if nothing does."""
    rows = {row.algorithm: row for row in SERVED}
    return next((rows[base.__name__] for base in algorithm.__mro__ if base.__name__ in rows), None)


def algorithms() -> list[str]:
    """Names of those that are served."""
    inherit = {"OnPolicyAlgorithm": "A2C, PPO", "TD3": "TD3, DDPG"}
    return [inherit.get(row.algorithm, row.algorithm) for row in reversed(SERVED)]


def of_keywords(names: Collection[str]) -> Served:
    """What a policy is that has these keywords in its own file."""
    return next(row for row in SERVED if row.keywords <= set(names))
