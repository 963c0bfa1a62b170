"""Alrao policies for sb3-contrib's algorithms: QR-DQN, TQC, CrossQ, RecurrentPPO and MaskablePPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces

try:
    from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
except ImportError:
    raise ImportError("policies for sb3-contrib's algorithms need pip install 'alrao-rl[contrib]'") from None
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.utils import quantile_huber_loss
from sb3_contrib.crossq.policies import Actor as CrossQActor
from sb3_contrib.crossq.policies import CrossQCritic, CrossQPolicy
from sb3_contrib.qrdqn import qrdqn
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from sb3_contrib.tqc import tqc
from sb3_contrib.tqc.policies import Critic as TQCCritic
from sb3_contrib.tqc.policies import TQCPolicy
from torch import Tensor
from torch.overrides import wrap_torch_function

from alrao_rl.checks import whole
from alrao_rl.core import HeadwiseTensor, OutputHeads
from alrao_rl.fast import HeadwiseTensor as FastHeadwiseTensor
from alrao_rl.fast.losses import quantile_losses, quantiles_by_torch
from alrao_rl.sb3.actors import SquashedActor
from alrao_rl.sb3.base import Options
from alrao_rl.sb3.critics import LeadingCritic
from alrao_rl.sb3.distributions import LeanCategorical, LeanMultiCategorical
from alrao_rl.sb3.entropy import take_adams_place
from alrao_rl.sb3.extractors import AlraoCombinedExtractor, AlraoNatureCNN
from alrao_rl.sb3.off_policy import MaximumEntropyMixin
from alrao_rl.sb3.policies import ActorCriticMixin, QNetworkMixin

_MASKED = -1e8
"""Added to the logit of an action that is not allowed: no probability, and a finite gradient.

sb3-contrib puts it in the logit's place, which is the same unless all are forbidden.
"""


# Torch's own functions ask their operands who they are, and now this one does: a headwise loss is computed in one go,
# not by twenty operations on a number for every pair of quantiles. For other tensors it is what it was.
_asks = wrap_torch_function(lambda current, target, *_, **__: (current, target))
qrdqn.quantile_huber_loss = _asks(quantile_huber_loss)  # type: ignore[attr-defined, arg-type, assignment]


class AlraoQRDQNPolicy(QNetworkMixin, QRDQNPolicy):
    """QR-DQN's policy with Alrao: every head gives all quantiles of all actions. See :class:`AlraoPolicy`.

    "Distributional Reinforcement Learning with Quantile Regression" (https://arxiv.org/abs/1710.10044).
    """

    serves = (QRDQN,)
    stock = QRDQNPolicy
    q_network = "quantile_net"

    def _take_options(self, space: spaces.Space[Any], alrao: Options, kwargs: dict[str, Any]) -> dict[str, Any]:
        whole("n_quantiles", kwargs.get("n_quantiles", 1), 1)
        return super()._take_options(space, alrao, kwargs)

    def make_quantile_net(self) -> QuantileNetwork:
        """sb3-contrib's quantile network, its last layer duplicated."""
        return cast(QuantileNetwork, self._converted(super().make_quantile_net()))


class AlraoQRDQNCnnPolicy(AlraoQRDQNPolicy):
    """:class:`AlraoQRDQNPolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoQRDQNMultiInputPolicy(AlraoQRDQNPolicy):
    """:class:`AlraoQRDQNPolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class AlraoTQCCritic(LeadingCritic, TQCCritic):
    """sb3-contrib's critics of TQC: each gives all quantiles."""

    def forward(self, obs: Any, action: Tensor) -> Tensor:
        """Quantiles of all critics, ``[B, n_critics, Q]``."""
        if not torch.is_grad_enabled():
            return super().forward(obs, action)
        if isinstance(action, HeadwiseTensor):
            return torch.stack(self.lead(obs, action, self.n_critics), 1)
        with torch.set_grad_enabled(not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        x = torch.cat([features, action], 1)
        quantiles = cast("list[HeadwiseTensor]", [network(x) for network in self.q_networks])
        # Not torch.stack, to which they are losses that are joined: :func:`_quantile_huber_loss` makes these.
        together = _Quantiles.wrap(
            torch.stack([one.branches for one in quantiles], 2), frozenset().union(*(one.layers for one in quantiles))
        )
        together.of_critics = quantiles
        return together


class _Quantiles(HeadwiseTensor):
    """Quantiles of several critics, ``[B, n_critics, Q]``."""

    of_critics: list[HeadwiseTensor]
    """Those of each, ``[B, Q]``."""


def _quantile_huber_loss(
    current: Tensor, target: Tensor, cum_prob: Tensor | None = None, sum_over_quantiles: bool = True
) -> Tensor:
    """sb3-contrib's, of TQC's critics: the mean of their losses, each of which is the evidence of its own heads."""
    if not isinstance(current, _Quantiles):
        return quantile_huber_loss(current, target, cum_prob, sum_over_quantiles)
    n_critics, n_quantiles = len(current.of_critics), current.shape[-1]
    scale = 1 / n_critics if sum_over_quantiles else 1 / (n_critics * n_quantiles)
    samples = target.reshape(len(target), -1)
    losses: list[HeadwiseTensor] = []
    for one in current.of_critics:
        found = quantile_losses(one.branches, samples)
        branches = quantiles_by_torch(one.branches, samples) if found is None else found
        losses.append(type(one).wrap(branches * scale, one.layers))
    return cast(Tensor, sum(losses[1:], losses[0]))


tqc.quantile_huber_loss = _quantile_huber_loss  # type: ignore[attr-defined, assignment]


class AlraoTQCPolicy(MaximumEntropyMixin, TQCPolicy):
    """TQC's policy with Alrao: every head of a critic gives all of its quantiles. See :class:`AlraoPolicy`.

    "Controlling Overestimation Bias with Truncated Mixture of Continuous Distributional Quantile Critics"
    (https://arxiv.org/abs/2005.04269).
    """

    serves = (TQC,)
    stock = TQCPolicy
    critic_class = AlraoTQCCritic


take_adams_place(TQC, AlraoTQCPolicy)


class AlraoTQCCnnPolicy(AlraoTQCPolicy):
    """:class:`AlraoTQCPolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoTQCMultiInputPolicy(AlraoTQCPolicy):
    """:class:`AlraoTQCPolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class AlraoCrossQActor(SquashedActor, CrossQActor):
    """sb3-contrib's actor of CrossQ."""


class AlraoCrossQCritic(LeadingCritic, CrossQCritic):
    """sb3-contrib's critics of CrossQ, which are asked for current and next values in one batch."""

    def forward(self, obs: Any, actions: Tensor) -> tuple[Tensor, ...]:
        """Values of all critics, ``[B, 1]`` each, or in one tensor, ``[B, n_critics]``, where they learn."""
        if not torch.is_grad_enabled():
            return super().forward(obs, actions)
        if isinstance(actions, HeadwiseTensor):
            return tuple(self.lead(obs, actions, self.n_critics))
        with torch.set_grad_enabled(not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        x = torch.cat([features, actions], 1)
        values = cast("list[HeadwiseTensor]", [network(x) for network in self.q_networks])
        together = _Values.wrap(
            torch.cat([one.branches for one in values], 2), frozenset().union(*(one.layers for one in values))
        )
        together.of_critics = [one.layers for one in values]
        return (together,)


class _Values(HeadwiseTensor):
    """Values of several critics, ``[B, n_critics]``, of which CrossQ takes parts, and at last each critic's."""

    of_critics: list[frozenset[Any]]
    """The output layer of each."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cat and len(args[0]) == 1:
            return args[0][0]
        return super().__torch_function__(func, types, args, kwargs)

    def like(self, branches: Tensor) -> Any:
        """See :meth:`HeadwiseTensor.like`."""
        result = super().like(branches)
        result.of_critics = self.of_critics
        return result

    def __iter__(self) -> Iterator[HeadwiseTensor]:
        for i, layers in enumerate(self.of_critics):
            yield FastHeadwiseTensor.of(self.branches[:, i], cast(Any, layers))


class AlraoCrossQPolicy(MaximumEntropyMixin, CrossQPolicy):
    """CrossQ's policy with Alrao: scale and bias of a unit's batch renormalisation are a feature.

    See :class:`AlraoPolicy`.

    "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and Simplicity"
    (https://arxiv.org/abs/1902.05605).
    """

    serves = (CrossQ,)
    learns = "online critics"
    stock = CrossQPolicy
    actor_class = AlraoCrossQActor
    critic_class = AlraoCrossQCritic

    def _build_target(self) -> None:
        """There is none."""


take_adams_place(CrossQ, AlraoCrossQPolicy)


class AlraoLstmPolicy(ActorCriticMixin, RecurrentActorCriticPolicy):
    """RecurrentPPO's policy with Alrao: one learning rate for a hidden unit, across all gates.

    Padding is masked out of the losses, and so of what the heads are judged by. See :class:`AlraoPolicy`.
    """

    serves = (RecurrentPPO,)
    stock = RecurrentActorCriticPolicy

    def _take_options(self, space: spaces.Space[Any], alrao: Options, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = super()._take_options(space, alrao, kwargs)
        for name in ("batch_first", "bidirectional", "proj_size"):
            if (kwargs.get("lstm_kwargs") or {}).get(name):
                raise ValueError(
                    f"lstm_kwargs has {name}, with which states have a shape that RecurrentPPO cannot keep"
                )
        return kwargs

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # sb3-contrib forgets these.
        n_layers, _, size = self.lstm_hidden_state_shape
        own = {"lstm_hidden_size": size, "n_lstm_layers": n_layers, "lstm_kwargs": self.lstm_kwargs or None}
        shared = {"shared_lstm": self.shared_lstm, "enable_critic_lstm": self.enable_critic_lstm}
        return super()._get_constructor_parameters() | own | shared


class AlraoCnnLstmPolicy(AlraoLstmPolicy):
    """:class:`AlraoLstmPolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoMultiInputLstmPolicy(AlraoLstmPolicy):
    """:class:`AlraoLstmPolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class AlraoMaskablePolicy(ActorCriticMixin, MaskableActorCriticPolicy):  # type: ignore[misc]
    """MaskablePPO's policy with Alrao. Every head is masked before their probabilities are averaged.

    See :class:`AlraoPolicy`.
    """

    serves = (MaskablePPO,)
    stock = MaskableActorCriticPolicy

    def _policy_output(self) -> dict[str, Any]:
        """As in sb3-contrib a binary action is one of two."""
        if isinstance(self.action_space, spaces.MultiBinary):
            return {"kind": "categorical", "splits": [2] * int(np.prod(self.action_space.n))}
        return super()._policy_output()

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        heads = cast(OutputHeads, self.action_net)
        return _Masked(heads, latent_pi, None if isinstance(self.action_space, spaces.Discrete) else heads.splits)


class AlraoMaskableCnnPolicy(AlraoMaskablePolicy):
    """:class:`AlraoMaskablePolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoMaskableMultiInputPolicy(AlraoMaskablePolicy):
    """:class:`AlraoMaskablePolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class _Masked:
    """The distribution of allowed actions, which the mask decides on: it arrives after the output layer was called.

    Args:
        layer: the output layer of the policy.
        latent: what it is to be called with, ``[B, I]``.
        splits: numbers of choices of a MultiDiscrete space; None for one Discrete action.
    """

    def __init__(self, layer: OutputHeads, latent: Tensor, splits: list[int] | None) -> None:
        self._layer, self._latent = layer, latent
        self._inner = LeanCategorical(layer.out_features) if splits is None else LeanMultiCategorical(splits)
        self._is_set = False

    def apply_masking(self, masks: Any) -> None:
        """Allow the actions where ``masks``, ``[B, O]`` or of as many numbers, is true; all if it is None."""
        offset = None
        if masks is not None:
            allowed = torch.as_tensor(masks, dtype=torch.bool, device=self._latent.device)
            if allowed.numel() != len(self._latent) * self._layer.out_features:
                expected = (len(self._latent), int(self._layer.out_features))
                raise ValueError(f"action_masks is of shape {tuple(allowed.shape)}, expected {expected}")
            allowed = allowed.reshape(-1, self._layer.out_features)
            offset = torch.zeros_like(allowed, dtype=self._latent.dtype).masked_fill_(~allowed, _MASKED)
        self._inner.proba_distribution(self._layer(self._latent, offset))
        self._is_set = True

    @property
    def _distribution(self) -> Any:
        if not self._is_set:
            self.apply_masking(None)
        return self._inner

    def __getattr__(self, name: str) -> Any:
        """What else a distribution has: ``mode``, ``sample``, ``distribution``, as sb3-contrib's ``distributions``."""
        if name.startswith("_"):  # asked for by copies that have nothing yet
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._distribution, "distribution" if name == "distributions" else name)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities of actions, ``[B]``."""
        return cast(Tensor, self._distribution.log_prob(actions))

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[B]``."""
        return cast(Tensor, self._distribution.entropy())

    def get_actions(self, deterministic: bool = False) -> Tensor:
        """Draw actions, or the most likely ones, ``[B]`` or ``[B, number of choices]``."""
        return cast(Tensor, self._distribution.get_actions(deterministic))
