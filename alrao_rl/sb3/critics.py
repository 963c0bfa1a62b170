"""Critics with heads, and what off-policy algorithms do with them: sync a target, and lead an actor.

**Target.** Averaging is linear, so the target of a critic is a plain copy of its average: trunk θ̄ and one output layer
w̄ ← (1 − τ) w̄ + τ Σ_j a_j θ_j. SB3 goes through ``parameters()`` of a network and its target side by side;
:class:`Collapsing` gives it the average of every output layer there.

**Actor's step.** The actor learns from Q(s, a₀) at the average's action a₀. Its head j, with an action a_j of its own,
learns to first order, from ⟨∇_a Q(s, a₀), a_j⟩: the critic is asked once, as in stock SAC, and its gradient arrives at
the actions of all heads. The critic is a fixed function there: no evidence is gathered and no gradient kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from torch import Tensor, nn

from alrao_rl.core import HeadwiseTensor, OutputHeads
from alrao_rl.sb3.base import all_modules
from alrao_rl.sb3.shortcuts import LeanSequential, are_features

if TYPE_CHECKING:
    _Model: TypeAlias = BaseModel
else:
    _Model = object


class Collapsing(_Model):
    """A network whose ``parameters()`` are those of its average, for a target to follow."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Of every output layer weight and bias of its average, as plain tensors; others as they are.

        ``named_parameters()`` has what learns.
        """
        found: set[int] = set()  # a tensor takes its time to be a key
        for module in all_modules(self) if recurse else [cast(nn.Module, self)]:
            if isinstance(module, OutputHeads):
                yield from cast(Any, filter(lambda one: one is not None, module.collapse().values()))
                continue
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in found:
                    found.add(id(parameter))
                    yield parameter


@torch.no_grad()
def follow_at_once(target: nn.Module, network: nn.Module) -> None:
    """Make a plain target the average of its network."""
    for mine, average in zip(target.parameters(), network.parameters(), strict=True):
        mine.copy_(average)


class _ForAll(torch.autograd.Function):
    """The average's action, whose gradient is that of every head's action as well: ``[1 + J, B, A]`` to ``[B, A]``."""

    @staticmethod
    def forward(ctx: Any, branches: Tensor) -> Tensor:
        """Take the average's."""
        ctx.n_branches = len(branches)
        return branches[0].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Give it to all."""
        return gradient.expand(ctx.n_branches, *gradient.shape)


@contextmanager
def _held(networks: list[nn.Sequential]) -> Iterator[None]:
    """The parameters of trunks as constants."""
    modules = [module for network in networks for module in all_modules(network) if not isinstance(module, OutputHeads)]
    found = [parameter for module in modules for parameter in module._parameters.values()]
    learning = [parameter for parameter in found if parameter is not None and parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad = True


class LeadingCritic(Collapsing):
    """Critics of SB3's form, ``q_networks`` behind an extractor, that an Alrao actor learns from."""

    q_networks: Any

    def extract_features(self, obs: Any, features_extractor: Any) -> Any:
        """Features ``[B, F]`` of observations."""
        if are_features(obs, self.observation_space, features_extractor):
            return obs
        return super().extract_features(obs, features_extractor)

    def lead(self, obs: Any, actions: HeadwiseTensor, n_critics: int) -> list[Tensor]:
        """Q(s, a₀) of the first critics, ``[B, O]`` each, plain tensors: see above.

        Args:
            obs: s.
            actions: of the actor and its heads, ``[B, A]``.
            n_critics: how many to ask.
        """
        with torch.no_grad():
            features = self.extract_features(obs, self.features_extractor)
        networks = [cast(nn.Sequential, network) for network in self.q_networks[:n_critics]]
        x = torch.cat([features, _ForAll.apply(actions.branches)], 1)
        with _held(networks):
            return [_averaged(network, x) for network in networks]


def _averaged(network: nn.Sequential, x: Tensor) -> Tensor:
    """The averaged output of a network that ends with heads, as a function of x alone."""
    x = cast(LeanSequential, network).up_to(len(network) - 1, x)
    layer = cast(OutputHeads, network[-1]).collapse()
    return nn.functional.linear(x, cast(Tensor, layer["weight"]), layer["bias"])


class AlraoContinuousCritic(LeadingCritic, ContinuousCritic):
    """SB3's critics of SAC, TD3 and DDPG."""

    def forward(self, obs: Any, actions: Tensor) -> tuple[Tensor, ...]:
        """Values of all critics, ``[B, 1]`` each."""
        if isinstance(actions, HeadwiseTensor) and torch.is_grad_enabled():
            return tuple(self.lead(obs, actions, self.n_critics))
        return super().forward(obs, actions)

    def q1_forward(self, obs: Any, actions: Tensor) -> Tensor:
        """Values of the first critic, ``[B, 1]``."""
        if isinstance(actions, HeadwiseTensor) and torch.is_grad_enabled():
            return self.lead(obs, actions, 1)[0]
        return super().q1_forward(obs, actions)
