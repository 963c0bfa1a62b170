"""The outputs of heads and their average as one node of the graph.

:class:`Branches` gives ``[1 + J, O, B]``, the average first, of inputs ``x``, ``[B, I]``. The average's gradient
reaches ``x`` and the averaging weights a, a head's its own parameters. It is compiled code, for the CPU, float32 and
small layers, for which torch takes longer to start a dozen operations than to compute them; ``OutputHeads`` has these
operations for the rest.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alrao_rl.core.mixtures import mix_logits
from alrao_rl.fast import kernels
from alrao_rl.fast.memory import can_read, differentiate, is_plain

MOST_WORK = {"linear": 2**20, "categorical": 2**24}
"""Number of multiplications up to which C is faster: torch starts a product slowly, but computes it well.

Categorical heads need exponentials as well, which torch computes slowly.
"""


class Kernel:
    """The compiled code for heads of one shape.

    Args:
        library: see ``kernels.py``.
        kind: ``"linear"``, where the average is that of the outputs, or ``"categorical"``, where it is that of
            probabilities and all outputs are log-probabilities.
        theta: the heads' parameters ``[J, P]``: rows of I weights and maybe a bias, and then others.
        outputs: O.
        inputs: I.
        bias: whether there is one.
    """

    def __init__(self, library: ctypes.CDLL, kind: str, theta: Tensor, outputs: int, inputs: int, bias: int) -> None:
        self.kind, self.is_categorical = kind, kind == "categorical"
        self.n_heads, self.outputs, self.inputs = len(theta), outputs, inputs
        self._shape = (ctypes.c_int64 * 5)(*theta.shape, outputs, inputs, bias)
        self._branches = getattr(library, f"{kind}_branches")
        self._gradient = getattr(library, f"{kind}_gradient")

    @classmethod
    def of(cls, kind: str, theta: Tensor, weights: Tensor, *shape: int) -> Kernel | None:
        """The kernel for these parameters, or None."""
        # C does not check: shapes that do not belong together, as after a load of other parameters, read past the end.
        outputs, inputs, bias = shape
        fits = len(theta) == len(weights) and theta.shape[1] >= outputs * (inputs + bias)
        if kernels.library is None or not fits or not can_read(theta, weights):
            return None
        return cls(kernels.library, kind, theta, *shape)

    def serves(self, x: Tensor) -> bool:
        """Whether the kernel can compute with these inputs, ``[B, I]``, and is quicker than torch."""
        # Under autocast torch would compute in bfloat16, and the results would differ.
        return (
            x.shape[1] == self.inputs
            and x.shape[0] * self.inputs * self.outputs * (1 + self.n_heads) <= MOST_WORK[self.kind]
            and is_plain(x)
            and not torch.is_autocast_enabled("cpu")
        )

    def average(self, x: Tensor, theta: Tensor, weights: Tensor) -> Tensor:
        """The average alone, ``[O, B]``, bit for bit that of :meth:`branches`."""
        average = x.new_empty((self.outputs, len(x)))
        self._call(x, theta, weights, 0, average)
        return average

    def branches(self, x: Tensor, theta: Tensor, weights: Tensor) -> Tensor:
        """Average and heads, ``[1 + J, O, B]``."""
        branches = x.new_empty((1 + self.n_heads, self.outputs, len(x)))
        self._call(x, theta, weights, 1, branches)
        return branches

    def _call(self, x: Tensor, theta: Tensor, weights: Tensor, heads: int, out: Tensor) -> None:
        # Features may be a slice of a larger tensor, as those of a batch are.
        x = x.contiguous()
        place = theta.data_ptr(), weights.data_ptr(), x.data_ptr()
        self._branches(self._shape, len(x), *place, heads, out.data_ptr())

    def gradients(
        self, x: Tensor, rows: torch.Size, theta: Tensor, weights: Tensor, branches: Tensor | None, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From the gradient of the branches those of x, of the heads' weights, ``rows``, and biases, and of a.

        Without linear ``branches`` the last is 0.
        """
        x, gradient = x.contiguous(), gradient.contiguous()
        # Also where a gradient is not needed: the loops are over the same data, and one function is simpler than eight.
        of_x, of_rows, of_biases = torch.empty_like(x), x.new_empty(rows), x.new_empty((*rows[:-1], 1))
        of_weights = torch.empty_like(weights)
        tensors = theta, weights, x, branches, gradient, of_x, of_rows, of_biases, of_weights
        self._gradient(self._shape, len(x), *[None if tensor is None else tensor.data_ptr() for tensor in tensors])
        return of_x, of_rows, of_biases, of_weights


class Branches(torch.autograd.Function):
    """``Branches.apply(x, weight, bias, weights, theta, kernel)``.

    ``weight`` and ``bias``, J·O times I and J·O numbers, are the leaves that the heads' gradients go to: parts of
    ``theta``, ``[J, P]``, which is what is computed with. ``weights`` is a, ``[J]``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, theta: Tensor, kernel: Kernel
    ) -> Tensor:
        """Compute the branches."""
        branches = kernel.branches(x, theta, weights)  # [1 + J, O, B]
        # Linear branches are needed for the gradient of a alone, ⟨∂ℓ/∂Φ, C_j⟩, categorical ones for all gradients.
        # The leaf is saved so that autograd notices when parameters have changed; it has the memory of theta.
        ctx.save_for_backward(x, weight, branches if kernel.is_categorical or ctx.needs_input_grad[3] else None)
        ctx.rest = bias, weights, theta, kernel
        return branches

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of x, weight, bias and a."""
        x, weight, branches = ctx.saved_tensors
        bias, weights, theta, kernel = ctx.rest
        needed = ctx.needs_input_grad[:4]
        # With create_graph this will be differentiated once more, which compiled code cannot be.
        if torch.is_grad_enabled() or not is_plain(gradient):
            inputs = x, weight, torch.zeros(()) if bias is None else bias, weights
            return *differentiate(partial(_by_torch, kernel.is_categorical), inputs, needed, gradient), None, None
        of_x, of_weight, of_bias, of_weights = kernel.gradients(x, weight.shape, theta, weights, branches, gradient)
        return (
            of_x if needed[0] else None,
            of_weight if needed[1] else None,
            of_bias if needed[2] else None,
            of_weights if needed[3] else None,
            None,
            None,
        )


def _by_torch(is_categorical: bool, x: Tensor, weight: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
    """The branches by operations that have gradients themselves; no bias is one of 0."""

    def outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        product = weight.flatten(0, -2) @ x.t() + (bias.flatten(0, -2) if bias.dim() else bias)
        return product.view(len(weights), -1, len(x))

    # As OutputHeads._forward does it: the average's branch without the heads' gradients, the heads' without that of x.
    held = outputs(x, weight.detach(), bias.detach())
    own = outputs(x.detach(), weight, bias)
    if is_categorical:
        return torch.cat([mix_logits(held, weights).unsqueeze(0), own.log_softmax(1)])
    return torch.cat([(weights.view(-1, 1, 1) * held).sum(0, keepdim=True), own])
