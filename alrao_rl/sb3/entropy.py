"""SAC's entropy coefficient without a learning rate: a normalised step in place of the Adam that SB3 makes.

    v ← ρ v + (1 − ρ) g²,    log α ← log α − s η g/√(v + ε)        η = 3e-3, ρ = 0.99, ε = 1e-8

with g the gradient of SB3's loss and s the ratio of the group's ``lr`` to its first non-zero value, as for all of
Alrao's rates. log α is one number whose gradient is the same for every copy of it: no heads, no averaging. η is how
fast it may fall, by three per mille a step; at a tenth of that it takes 7,500 steps from 1 to 0.1, longer than small
tasks last.
"""

from __future__ import annotations

import weakref
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
        # A model that was saved before its first update has SB3's Adam in its file, which knows no first one.
        group["first_lr"] = group.get("first_lr") or group["lr"]
        scale = group["lr"] / group["first_lr"] if group["first_lr"] else 1.0
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or not gradient.square().isfinite().all():
                continue
            state = self.state[parameter]
            if not state:
                # SB3 may load this into the Adam that it makes, which asks for a step.
                state["step"], state["square_avg"] = torch.zeros(()), torch.zeros_like(parameter)
            state["step"] += 1
            mean_square = state["square_avg"].lerp_(gradient.square(), 1 - DECAY)
            parameter.sub_(gradient / (mean_square + EPS).sqrt(), alpha=scale * STEP)


class EntropyHook:
    """Puts an :class:`EntropyStep` in the place of the Adam that SB3's SAC makes once its policy is there.

    Args:
        algorithm: who builds the policy, if anybody.
    """

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = None if algorithm is None else weakref.ref(algorithm)

    def __getstate__(self) -> dict[str, Any]:
        return {"_algorithm": None}  # a copy of the policy is nobody's

    def __call__(self, *_: Any) -> None:
        """Replace it, at the first call where there is one; later it is the algorithm's."""
        algorithm = None if self._algorithm is None else self._algorithm()
        made = getattr(algorithm, "ent_coef_optimizer", None)
        if algorithm is None or made is None:
            return
        self._algorithm = None
        ours = EntropyStep([algorithm.log_ent_coef], lr=made.param_groups[0]["lr"])
        if any("square_avg" in state for state in made.state.values()):  # of ours, loaded into SB3's
            ours.load_state_dict(made.state_dict())
        algorithm.ent_coef_optimizer = ours
