"""The running average of a network over its own training: what is left when the noise of the rates is taken out.

Rates that never decay leave every iterate noisy for ever, the units with large rates most of all. Averaging over time
removes that noise without a schedule (Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992,
https://doi.org/10.1137/0330046). The network learns as it would without; the average is for playing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alrao_rl.core.heads import OutputHeads


def follow(average: nn.Module, network: nn.Module, n_updates: int, window: int) -> None:
    """Move a plain copy towards its network: average ← average + w (network − average) at every s-th update.

    With m = min(n, window) and s = max(1, ⌊m/100⌋), so that some hundred iterates make the average,
    w = max(10 s/(n + 9 s), s/window): it spans the last tenth of the updates until that is ``window`` of them, so that
    nothing of the beginning stays in it (polynomial-decay averaging, Shamir, Zhang 2013,
    https://proceedings.mlr.press/v28/shamir13.html). The first update copies the network. What is not a floating-point
    number is copied.

    Args:
        average: ``network``, :func:`~alrao_rl.plain.averaged`.
        network: the converted network, after its update.
        n_updates: n, number of updates so far, this one included.
        window: in updates; 1 copies the network every time.
    """
    stride = max(1, min(n_updates, window) // 100)
    if n_updates % stride:
        return
    _move(average, network, max(10 * stride / (n_updates + 9 * stride), stride / window))


@torch.no_grad()
def _move(average: nn.Module, network: nn.Module, weight: float) -> None:
    mine: list[Tensor] = []
    theirs: list[Tensor] = []
    for name, module in average.named_modules():
        other = network.get_submodule(name)
        current = other.collapse() if isinstance(other, OutputHeads) else {**other._parameters, **other._buffers}
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            new = current[key]
            if tensor is None or new is None:
                continue
            if tensor.is_floating_point():
                mine.append(tensor)
                theirs.append(new)
            else:
                tensor.copy_(new)
    if weight == 1:  # also where the average holds anything, a number that is not finite included
        torch._foreach_copy_(mine, theirs)
    else:
        torch._foreach_lerp_(mine, theirs, weight)
