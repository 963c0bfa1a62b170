"""A Sequential that calls its layers' functions directly.

A module that is called looks for hooks, and a layer looks for its parameters, for about as long as a small layer takes
to compute; an action costs ten such calls. What is computed is the same, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_ACTIVATIONS = {nn.Tanh: torch.tanh, nn.ReLU: torch.relu, nn.Sigmoid: torch.sigmoid}


class LeanSequential(nn.Sequential):
    """``nn.Sequential`` with less around its linear layers and activations. Hooks are called as ever."""

    def forward(self, input: Tensor) -> Tensor:
        """Pass ``input`` through all modules."""
        if _has_any_global_hook():
            return super().forward(input)
        for module in self._modules.values():
            kind = type(module)
            if (
                module._forward_hooks
                or module._forward_pre_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
            ):
                input = module(input)
            elif kind is nn.Linear:
                own: dict[str, Any] = module._parameters
                input = nn.functional.linear(input, own["weight"], own["bias"])
            elif kind in _ACTIVATIONS:
                input = _ACTIVATIONS[kind](input)
            else:
                input = module.forward(input)
        return input


def use_lean_sequentials(network: nn.Module) -> None:
    """Turn every plain ``nn.Sequential`` in ``network`` into a :class:`LeanSequential`, in place."""
    for module in network.modules():
        if type(module) is nn.Sequential:
            module.__class__ = LeanSequential
