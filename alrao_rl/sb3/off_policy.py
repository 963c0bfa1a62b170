"""Alrao policies for SB3's SAC, TD3 and DDPG: actor and critics with heads, each with an optimizer of its own.

Critics are averaged by *switch*, each of them with weights of its own, and one label for all heads: that of SB3's loop,
from the averaged targets. The actor is averaged by exponentiated gradient. ``critics.py`` has how they meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from alrao_rl.checks import AUTO, entropy_coefficient, target_entropy
from alrao_rl.core import AlraoConfig, Output, OutputHeads
from alrao_rl.core.config import Learns
from alrao_rl.fast import AlraoOptimizer, convert
from alrao_rl.sb3.actors import AlraoActor
from alrao_rl.sb3.base import AlraoPolicyMixin, Options, calling_algorithm, named, refuse_start
from alrao_rl.sb3.critics import AlraoContinuousCritic, Collapsing, follow_at_once
from alrao_rl.sb3.entropy import learned_ent_coef, take_adams_place
from alrao_rl.sb3.extractors import AlraoCombinedExtractor, AlraoNatureCNN
from alrao_rl.sb3.shortcuts import make_lean, set_mode

if TYPE_CHECKING:
    _Policy: TypeAlias = BasePolicy
else:
    _Policy = object


class OffPolicyMixin(AlraoPolicyMixin, _Policy):
    """An ``actor``, a ``critic`` that is several, and plain targets: what SAC, TD3 and their like have in common."""

    learns: Learns = "critics"
    actor: Any
    critic: Any
    critic_target: Any
    share_features_extractor: bool
    critic_kwargs: dict[str, Any]
    critic_class: type[Any] = AlraoContinuousCritic

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Any,
        *args: Any, alrao: Options = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        algorithm = calling_algorithm()
        name = type(algorithm).__name__ if algorithm is not None else self.serves[0].__name__
        refuse_start(name, observation_space, action_space)
        _refuse_actions(name, action_space)
        kwargs = self._take_options(observation_space, alrao, named(self.stock, args, kwargs))
        self._attend(algorithm)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _attend(self, algorithm: BaseAlgorithm | None) -> None:
        """See who builds this policy."""

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """SB3's critics, the last layer of each duplicated."""
        critic = self.critic_class(**self._update_features_extractor(self.critic_kwargs, features_extractor))
        last = {f"qf{i}.{len(network) - 1}": "values" for i, network in enumerate(critic.q_networks)}
        # Rates of their own, apart from the actor's.
        convert(critic, last, _with_seed(self.alrao_options, 1))
        make_lean(critic, wide=True)
        return critic.to(self.device)

    def _make_target(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """A plain copy of the critics' average."""
        target = self.critic_class(**self._update_features_extractor(self.critic_kwargs, features_extractor))
        make_lean(target, wide=True)
        target = target.to(self.device)
        follow_at_once(target, self.critic)
        return target

    def set_training_mode(self, mode: bool) -> None:
        """As in SB3, which goes through all modules at every prediction: only where the mode changes."""
        if mode != self.training:
            set_mode(self.actor, mode)
            set_mode(self.critic, mode)
            self.training = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 forgets this one in SAC.
        return super()._get_constructor_parameters() | {"share_features_extractor": self.share_features_extractor}

    def optimizers(self) -> dict[str, AlraoOptimizer]:
        """The actor's and the critics'."""
        return {"actor": self.actor.optimizer, "critic": self.critic.optimizer}

    def alrao_layers(self) -> dict[str, OutputHeads]:
        """``actor``, and ``qf0``, ``qf1`` … for each of the critics."""
        critics = {f"qf{i}": network[-1] for i, network in enumerate(self.critic.q_networks)}
        return {"actor": self._actor_heads(), **critics}

    def _actor_heads(self) -> OutputHeads:
        raise NotImplementedError


class MaximumEntropyMixin(OffPolicyMixin):
    """SAC and its like: a squashed Gaussian actor, and an entropy coefficient that may be learned."""

    actor_class: type[Any] = AlraoActor
    actor_kwargs: dict[str, Any]

    def _attend(self, algorithm: BaseAlgorithm | None) -> None:
        for name, check in {"ent_coef": entropy_coefficient, "target_entropy": target_entropy}.items():
            value = getattr(algorithm, name, AUTO)
            try:
                check(value)
            except ValueError as error:
                raise ValueError(f"{name} is {value!r}, {error}") from None

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """SB3's actor, its two last layers one, and duplicated."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return self.actor_class(self.alrao_options, **kwargs).to(self.device)

    def _build(self, lr_schedule: Any) -> None:
        self.actor = self.make_actor()
        # As in SB3 the actor alone trains a shared extractor.
        shared = self.actor.features_extractor if self.share_features_extractor else None
        self.critic = self.make_critic(shared)
        self.actor.optimizer = AlraoOptimizer(self.actor, lr_schedule(1))
        self.critic.optimizer = AlraoOptimizer(self.critic, lr_schedule(1), skip=shared)
        self._build_target()

    def _build_target(self) -> None:
        self.critic_target = self._make_target()
        self.critic_target.set_training_mode(False)

    def _actor_heads(self) -> OutputHeads:
        return cast(OutputHeads, self.actor.output)

    def alrao_stats(self) -> dict[str, dict[str, Any]]:
        """As of all policies; the ``actor`` has ``ent_coef`` as well, the entropy coefficient, where it is learned."""
        stats = super().alrao_stats()
        if (ent_coef := learned_ent_coef(self)) is not None:
            stats["actor"]["ent_coef"] = ent_coef
        return stats


class AlraoSACPolicy(MaximumEntropyMixin, SACPolicy):
    """SAC's policy with Alrao; see :class:`AlraoPolicy`.

    The entropy coefficient, where SAC learns one, takes a normalised step in place of the Adam that SB3 makes:
    see :class:`~alrao_rl.sb3.entropy.EntropyStep`.
    """

    serves = (SAC,)
    stock = SACPolicy


take_adams_place(SAC, AlraoSACPolicy)


class AlraoTD3Actor(Collapsing, TD3Actor):
    """SB3's actor of TD3, its last layer duplicated."""


class AlraoTD3Policy(OffPolicyMixin, TD3Policy):
    """TD3's and DDPG's policy with Alrao; see :class:`AlraoPolicy`."""

    serves = (TD3,)
    stock = TD3Policy
    actor_class: type[Any] = AlraoTD3Actor

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> AlraoTD3Actor:
        """SB3's actor, its last layer duplicated."""
        actor = self.actor_class(**self._update_features_extractor(self.actor_kwargs, features_extractor))
        last = max(i for i, module in enumerate(actor.mu) if isinstance(module, nn.Linear))
        convert(actor, {f"mu.{last}": Output("mean")}, self.alrao_options)
        make_lean(actor, wide=True)
        return cast(AlraoTD3Actor, actor.to(self.device))

    def _build(self, lr_schedule: Any) -> None:
        self.actor = self.make_actor()
        self.actor_target = self.actor_class(**self._update_features_extractor(self.actor_kwargs)).to(self.device)
        make_lean(self.actor_target, wide=True)
        follow_at_once(self.actor_target, self.actor)
        is_shared = self.share_features_extractor
        shared = self.actor.features_extractor if is_shared else None
        of_target = self.actor_target.features_extractor if is_shared else None
        self.critic = self.make_critic(shared)
        self.critic_target = self._make_target(of_target)
        self.actor.optimizer = AlraoOptimizer(self.actor, lr_schedule(1))
        self.critic.optimizer = AlraoOptimizer(self.critic, lr_schedule(1), skip=shared)
        self.actor_target.set_training_mode(False)
        self.critic_target.set_training_mode(False)

    def _actor_heads(self) -> OutputHeads:
        return next(module for module in self.actor.mu if isinstance(module, OutputHeads))


class AlraoSACCnnPolicy(AlraoSACPolicy):
    """:class:`AlraoSACPolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoSACMultiInputPolicy(AlraoSACPolicy):
    """:class:`AlraoSACPolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class AlraoTD3CnnPolicy(AlraoTD3Policy):
    """:class:`AlraoTD3Policy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoTD3MultiInputPolicy(AlraoTD3Policy):
    """:class:`AlraoTD3Policy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


def _with_seed(config: AlraoConfig, offset: int) -> AlraoConfig:
    return config if config.seed is None else replace(config, seed=config.seed + offset)


def _refuse_actions(name: str, space: spaces.Space[Any]) -> None:
    """Refuse actions that are no bounded vectors of numbers.

    Raises:
        ValueError: with the space.
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{name} has no actions of the kind {space}: expected a Box; PPO and DQN take Discrete ones")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"{name} cannot act in {space}: its actions go from low to high, expected finite bounds; see "
            "gymnasium.wrappers.RescaleAction"
        )
