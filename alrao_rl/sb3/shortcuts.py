"""Ways through a network with less Python around them.

A module that is called looks for hooks, and a layer looks for its parameters, for about as long as a small layer takes
to compute; an action costs a dozen such calls. What is computed is the same, bit for bit, and hooks are called as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeGuard

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from alrao_rl.fast.activations import tanh


class LeanSequential(nn.Sequential):
    """``nn.Sequential`` that calls the functions of its linear layers and activations directly."""

    activations: ClassVar[Mapping[type[nn.Module], Callable[[Tensor], Tensor]]] = {
        nn.Tanh: torch.tanh,
        nn.ReLU: torch.relu,
        nn.Sigmoid: torch.sigmoid,
    }

    def forward(self, input: Tensor) -> Tensor:
        """Pass ``input`` through all modules."""
        return self.up_to(len(self), input)

    def up_to(self, n: int, input: Tensor) -> Tensor:
        """Pass ``input`` through the first ``n`` modules."""
        modules = list(self._modules.values())[:n]
        if _has_any_global_hook():
            for module in modules:
                input = module(input)
            return input
        for module in modules:
            kind = type(module)
            if is_hooked(module):
                input = module(input)
            elif kind is nn.Linear and (weight := module._parameters.get("weight")) is not None:
                input = nn.functional.linear(input, weight, module._parameters.get("bias"))
            elif kind in self.activations:
                input = self.activations[kind](input)
            else:
                input = module.forward(input)
        return input


class LeanQNetwork(QNetwork):
    """SB3's Q-network, past the preprocessing of observations that need none."""

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Tensor:
        """Features ``[B, F]`` of observations."""
        if are_features(obs, self.observation_space, features_extractor):
            return obs
        return super().extract_features(obs, features_extractor)


def are_features(obs: PyTorchObs, space: spaces.Space[Any], extractor: BaseFeaturesExtractor) -> TypeGuard[Tensor]:
    """Whether preprocessing and the extractor would give back the observations: vectors of floats, to be flattened."""
    return (
        type(extractor) is FlattenExtractor
        and type(space) is spaces.Box
        and isinstance(obs, Tensor)
        and obs.dim() == 2
        and obs.dtype is torch.float32
        and len(space.shape) == 1
        and not is_hooked(extractor)
        and not is_hooked(extractor.flatten)
        and not _has_any_global_hook()
    )


class WideSequential(LeanSequential):
    """A :class:`LeanSequential` of many units and large batches, whose tanh rounds otherwise than torch's."""

    activations: ClassVar = {**LeanSequential.activations, nn.Tanh: tanh}


def make_lean(network: nn.Module, wide: bool = False) -> None:
    """Turn every plain ``nn.Sequential`` and ``QNetwork`` in ``network`` into its lean version, in place.

    Args:
        network: it.
        wide: make it a :class:`WideSequential`.
    """
    for module in network.modules():
        if type(module) in _LEAN:
            module.__class__ = WideSequential if wide and type(module) is nn.Sequential else _LEAN[type(module)]


_LEAN: dict[type, type] = {nn.Sequential: LeanSequential, QNetwork: LeanQNetwork}


def set_mode(module: nn.Module, mode: bool) -> None:
    """``module.train(mode)``, past the search for parameters that comes with every attribute of a module."""
    # A class may have its own, or keep the mode elsewhere, as a scripted one does.
    if type(module).train is not nn.Module.train or "training" not in module.__dict__:
        module.train(mode)
        return
    module.__dict__["training"] = mode
    for child in module._modules.values():
        if child is not None:
            set_mode(child, mode)


def is_hooked(module: Any) -> bool:
    """Whether somebody hooked into this module, or gave it another ``forward``, by hand or by ``compile()``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )
