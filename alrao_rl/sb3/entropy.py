"""SAC's entropy coefficient without a learning rate: a normalised step in place of the Adam that SB3 makes.

    v ← ρ v + (1 − ρ) g²,    log α ← log α − s η g/√(v + ε)        η = 3e-3, ρ = 0.99, ε = 1e-8

with g the gradient of SB3's loss and s the ratio of the group's ``lr`` to its first non-zero value, as for all of
Alrao's rates. log α is one number whose gradient is the same for every copy of it: no heads, no averaging. η is how
fast it may fall, by three per mille a step; at a tenth of that it takes 7,500 steps from 1 to 0.1, longer than small
tasks last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STEP = 3e-3
"""η."""
DECAY = 0.99
"""ρ."""
EPS = 1e-8
"""ε."""
NAME = "ent_coef_optimizer"
"""What SB3 calls it."""


class EntropyStep(torch.optim.Optimizer):
    """See above.

    Args:
        parameters: log α.
        lr: acts by its ratio to the first non-zero value it had.
    """

    def __init__(self, parameters: list[Tensor], lr: float = 1.0) -> None:
        super().__init__(parameters, {"lr": lr, "first_lr": lr})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradient."""
        # Torch's own has as much around it as a step of this one number.
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move log α by its gradient; one that is not finite moves nothing."""
        group = self.param_groups[0]
        # An older file of a model that had not learned yet has SB3's Adam in it, which knows no first one.
        group["first_lr"] = group.get("first_lr") or group["lr"]
        scale = group["lr"] / group["first_lr"] if group["first_lr"] else 1.0
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or not gradient.square().isfinite().all():
                continue
            state = self.state[parameter]
            if not state:
                state["step"], state["square_avg"] = torch.zeros(()), torch.zeros_like(parameter)
            state["step"] += 1
            mean_square = state["square_avg"].lerp_(gradient.square(), 1 - DECAY)
            parameter.sub_(gradient / (mean_square + EPS).sqrt(), alpha=scale * STEP)


def learned_ent_coef(owner: Any) -> float | None:
    """α of an algorithm, or of an Alrao policy, that learns it; else None."""
    log_ent_coef: Tensor | None = getattr(owner, "log_ent_coef", None)
    return None if log_ent_coef is None else float(log_ent_coef.detach().exp())


class _EntropyOptimizer:
    """``ent_coef_optimizer`` of an algorithm: the Adam that SB3 makes is an :class:`EntropyStep` at once.

    Under a policy of Alrao alone, and only the first: what users put there later is theirs.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __set__(self, algorithm: Any, optimizer: Any) -> None:
        is_first, policy = algorithm.__dict__.get(NAME) is None, getattr(algorithm, "policy", None)
        if is_first and optimizer is not None and isinstance(policy, self._policy):
            optimizer = EntropyStep([algorithm.log_ent_coef], lr=optimizer.param_groups[0]["lr"])
            policy.log_ent_coef = algorithm.log_ent_coef
        algorithm.__dict__[NAME] = optimizer


def take_adams_place(algorithm: type, policy: type) -> None:
    """Have an algorithm, of SAC's form, learn its entropy coefficient by :class:`EntropyStep` under a kind of policies.

    SB3 makes its Adam after the policy, past which a policy cannot see: so this is a property of the class. Under other
    policies it is what it was.
    """
    setattr(algorithm, NAME, _EntropyOptimizer(policy))
