"""The averaging rules in less time: those of the defaults in C, one call each in place of forty operations.

They are subclasses of those in :mod:`alrao_rl.core.averaging`, which take over where memory is not what C expects: on a
GPU, in another precision, for several networks at once, or without the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from alrao_rl.core import averaging as core
from alrao_rl.core.averaging import Evidence
from alrao_rl.fast import kernels
from alrao_rl.fast.memory import can_read


class _Compiled(core.AveragingRule):
    """A rule whose :meth:`update` is a function of the library."""

    def update(self, weights: Tensor, evidence: Evidence) -> None:
        """See :meth:`alrao_rl.core.averaging.AveragingRule.update`."""
        # A rule without evidence is left to the plain class as well, which does nothing then.
        known: Tensor | None = getattr(evidence, self.uses, None)
        if known is not None and kernels.library is not None and self._can_read(weights, known):
            self._call(weights, evidence)
        else:
            super().update(weights, evidence)

    def _call(self, weights: Tensor, evidence: Evidence) -> None:
        raise NotImplementedError

    def _can_read(self, weights: Tensor, known: Tensor) -> bool:
        """Whether the library can read these and all buffers, and they are those of one network."""
        # The sizes are checked because C takes n_heads for the length of everything: stacked networks have more. By
        # _buffers, past nn.Module's search for attributes, which takes longer than the check.
        buffers = cast("dict[str, Tensor]", self._buffers)
        sizes = {"losses": 1 + self.n_heads, "gains": self.n_heads}
        size = buffers["previous"].numel() if self.uses == "gradient" else sizes[self.uses]
        fits = weights.numel() == self.n_heads and known.numel() == size
        return fits and can_read(weights, known, *buffers.values())

    def _address(self, buffer: str) -> int:
        return cast(Tensor, self._buffers[buffer]).data_ptr()


class Switch(_Compiled, core.Switch):
    """See :class:`alrao_rl.core.averaging.Switch`."""

    def _call(self, weights: Tensor, evidence: Evidence) -> None:
        losses = cast(Tensor, evidence.losses)
        # The factor of log p_j as in Likelihood.likelihood; 0 says that losses are log-likelihoods.
        n = 0.0 if losses is evidence.nll else self.n / 2 if losses is evidence.residual else self.n
        place = self._address
        kernels.library.switching(  # type: ignore[union-attr]
            self.n_heads, weights.data_ptr(), losses.data_ptr(), n, self.decay, place("scale"), place("correction"),
            self.hazard, place("t"), place("prior"), place("mixture"),
        )  # fmt: skip


class ExponentiatedGradient(_Compiled, core.ExponentiatedGradient):
    """See :class:`alrao_rl.core.averaging.ExponentiatedGradient`."""

    def _call(self, weights: Tensor, evidence: Evidence) -> None:
        gains = cast(Tensor, evidence.gains)
        kernels.library.exponentiated_gradient(  # type: ignore[union-attr]
            self.n_heads, weights.data_ptr(), gains.data_ptr(), self.beta / self.reuse, self.alpha, self.clip,
            self.decay, core.ROUNDING, core.LARGEST, self._address("moments"),
        )  # fmt: skip

    def mean(self, weights: Tensor, values: Tensor) -> Tensor:
        """Σ_j a_j x_j, for one network by one operation in place of two."""
        # dot takes vectors only: stacked networks are left to the plain sum.
        return weights.dot(values).unsqueeze(0) if weights.dim() == 1 else super().mean(weights, values)


class Whiteness(_Compiled, core.Whiteness):
    """See :class:`alrao_rl.core.averaging.Whiteness`."""

    def _call(self, weights: Tensor, evidence: Evidence) -> None:
        gradient = cast(Tensor, evidence.gradient)
        place = self._address
        kernels.library.whiteness(  # type: ignore[union-attr]
            *gradient.shape, weights.data_ptr(), gradient.data_ptr(), self.kappa, self.max_flow, self.decay,
            self.largest(), place("faster"), place("previous"), place("product"), place("norm"),
        )  # fmt: skip


# A rule that has no fast version is the plain one.
RULES: dict[str, type[core.AveragingRule]] = core.RULES | {
    "switch": Switch,
    "exponentiated-gradient": ExponentiatedGradient,
    "whiteness": Whiteness,
}


def make_rule(spec: str | Mapping[str, Any], rates: Tensor, what: str = "averaging rule") -> core.AveragingRule:
    """See :func:`alrao_rl.core.averaging.make_rule`."""
    return core.make_rule(spec, rates, what, RULES)
