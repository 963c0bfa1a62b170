"""Alrao policies for unmodified Stable-Baselines3: SB3's own policies, converted after they are built."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from alrao_rl import fast
from alrao_rl.core import Output, OutputHeads
from alrao_rl.fast import AlraoOptimizer, convert
from alrao_rl.plain import averaged
from alrao_rl.sb3.base import (
    GENERAL,
    AlraoPolicyMixin,
    Options,
    calling_algorithm,
    named,
    refuse_start,
)
from alrao_rl.sb3.distributions import LeanGaussian, LeanStateDependentNoise, lean
from alrao_rl.sb3.extractors import AlraoCombinedExtractor, AlraoNatureCNN
from alrao_rl.sb3.log_std import log_std, write_log_std
from alrao_rl.sb3.running_average import follow
from alrao_rl.sb3.served import algorithms, of_keywords, served
from alrao_rl.sb3.shortcuts import are_features, is_hooked, make_lean

# To a type checker the mixin is the policy that it is mixed into.
if TYPE_CHECKING:
    _ActorCritic: TypeAlias = ActorCriticPolicy
else:
    _ActorCritic = object


class QNetworkMixin(AlraoPolicyMixin):
    """DQN and its like: a network of values, called as its last part, with a target and a running average."""

    learns = "q-values"
    q_network: str

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Any,
        *args: Any, alrao: Options = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        refuse_start(type(calling_algorithm() or self).__name__, observation_space, action_space)
        kwargs = self._take_options(observation_space, alrao, named(self.stock, args, kwargs))
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(
                f"{self.serves[0].__name__} has no actions of the kind {action_space}: expected Discrete; PPO and A2C "
                "take all kinds"
            )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)  # type: ignore[call-arg]

    def _converted(self, network: Any) -> Any:
        """SB3's network, its last layer duplicated."""
        last = len(getattr(network, self.q_network)) - 1
        convert(network, {f"{self.q_network}.{last}": "values"}, self.alrao_options)
        make_lean(network)
        return network

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        network = getattr(self, self.q_network)
        average = averaged(network)
        setattr(self, f"{self.q_network}_average", average)
        self.optimizer = optimizer = AlraoOptimizer(network, lr=lr_schedule(1))
        optimizer.after_step = partial(_follow, average, network)
        network.register_load_state_dict_post_hook(partial(_begin_anew, average))

    def train(self, mode: bool = True) -> Any:
        """As nn.Module's; the running average only ever acts."""
        super().train(mode)  # type: ignore[misc]
        getattr(self, f"{self.q_network}_average").eval()
        return self

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        """Deterministic actions are the running average's; exploration, and so the data, is the current network's."""
        network = getattr(self, f"{self.q_network}_average" if deterministic else self.q_network)
        return cast(Tensor, network._predict(obs, deterministic))

    def alrao_layers(self) -> dict[str, OutputHeads]:
        """One, called as the network."""
        return {self.q_network: getattr(getattr(self, self.q_network), self.q_network)[-1]}


class AlraoDQNPolicy(QNetworkMixin, DQNPolicy):
    """DQN's policy with Alrao; see :class:`AlraoPolicy`."""

    serves = (DQN,)
    stock = DQNPolicy
    q_network = "q_net"

    def make_q_net(self) -> QNetwork:
        """SB3's Q-network, its last layer duplicated."""
        return cast(QNetwork, self._converted(super().make_q_net()))


class ActorCriticMixin(AlraoPolicyMixin, _ActorCritic):
    """A2C, PPO and their like: an ``action_net`` and a ``value_net`` behind whatever lies before them."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Any,
        *args: Any, alrao: Options = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        refuse_start(type(calling_algorithm() or self).__name__, observation_space, action_space)
        kwargs = self._take_options(observation_space, alrao, named(self.stock, args, kwargs))
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.action_dist = lean(self.action_dist)
        log_std = self._parameters.pop("log_std", None)
        policy = Output(**self._policy_output(), init=self._init(0.01), extra=log_std)
        value = Output("values", init=self._init(1.0), clamp_average_only=True)
        convert(self, {"action_net": policy, "value_net": value}, self.alrao_options)
        make_lean(self)
        self.optimizer = AlraoOptimizer(self, lr=lr_schedule(1))

    def _policy_output(self) -> dict[str, Any]:
        """How the output layer of the policy is averaged."""
        if isinstance(self.action_space, spaces.Discrete):
            return {"kind": "categorical"}
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return {"kind": "categorical", "splits": [int(n) for n in self.action_space.nvec]}
        return {"kind": "bernoulli" if isinstance(self.action_space, spaces.MultiBinary) else "mean"}

    @property  # type: ignore[override]
    def log_std(self) -> Tensor:
        """log σ of a Gaussian policy: every head has its own copy, averaged as the means are.

        What is written, by assignment, to its ``data`` or under ``torch.no_grad()`` to it, every head has then;
        ``action_net.extra`` is a view of the heads' own.
        """
        heads = self._modules.get("action_net")
        if isinstance(heads, OutputHeads):
            return log_std(heads)
        if heads is not None and "extra" in heads._buffers:  # of an averaged copy
            return cast(Tensor, heads.extra)
        return cast(Tensor, nn.Module.__getattr__(self, "log_std"))  # the stock one, not converted yet, or an error

    @log_std.setter
    def log_std(self, value: Any) -> None:
        write_log_std(cast(OutputHeads, self.action_net), value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's, which assigns parameters; ``log_std`` is one that the heads share."""
        if name == "log_std" and isinstance(self._modules.get("action_net"), OutputHeads):
            write_log_std(cast(OutputHeads, self.action_net), param)
        else:
            super().register_parameter(name, param)

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Features ``[B, F]``, two of them where policy and values have an extractor each."""
        if self.share_features_extractor and are_features(
            obs, self.observation_space, features_extractor or self.features_extractor
        ):
            return obs
        return super().extract_features(obs, features_extractor)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        """As in SB3; a Gaussian's mean and log σ in one go."""
        heads = self._modules.get("action_net")
        if type(self.action_dist) is LeanStateDependentNoise and isinstance(heads, OutputHeads):
            return self.action_dist.proba_distribution(heads(latent_pi), heads.averaged_extra(), latent_pi)
        if (
            type(self.action_dist) is not LeanGaussian
            or type(heads) is not fast.OutputHeads
            or is_hooked(heads)
            or _has_any_global_hook()
        ):
            return super()._get_action_dist_from_latent(latent_pi)
        return self.action_dist.proba_distribution(*heads.with_extra(latent_pi))

    def _init(self, gain: float) -> Any:
        return partial(self.init_weights, gain=gain) if self.ortho_init else None

    def reset_noise(self, n_envs: int = 1) -> None:
        """Draw a new exploration matrix (gSDE); it is noise of the average, no gradient passes through it."""
        with torch.no_grad():
            super().reset_noise(n_envs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # SB3 forgets this one: a policy loaded from its own file would share its extractor.
        return super()._get_constructor_parameters() | {"share_features_extractor": self.share_features_extractor}

    def alrao_layers(self) -> dict[str, OutputHeads]:
        """``action_net`` and ``value_net``."""
        return {name: cast(OutputHeads, getattr(self, name)) for name in ("action_net", "value_net")}


class AlraoActorCriticPolicy(ActorCriticMixin, ActorCriticPolicy):
    """A2C's and PPO's policy with Alrao; see :class:`AlraoPolicy`."""

    serves = (OnPolicyAlgorithm,)
    stock = ActorCriticPolicy


def _follow(average: nn.Module, network: nn.Module, optimizer: AlraoOptimizer) -> None:
    """After every optimizer step: the running average takes the network in."""
    follow(average, network, optimizer.param_groups[0]["n_updates"], optimizer.config.iterate_window)


def _begin_anew(average: nn.Module, network: nn.Module, _: Any) -> None:
    """After weights were loaded into the network alone, as of another one: the running average is that."""
    follow(average, network, n_updates=1, window=1)


class AlraoPolicy:
    """Policy without a learning rate for every algorithm that is served: ``DQN(AlraoPolicy, env)``.

    These are SB3's DQN, A2C, PPO, SAC, TD3 and DDPG, and sb3-contrib's QR-DQN, RecurrentPPO, MaskablePPO, TQC and
    CrossQ.

    Every unit has its own random learning rate, the output layer is duplicated once per learning rate and the copies
    are averaged by how well they do ("Learning with Random Learning Rates", https://arxiv.org/abs/1810.01322). The
    algorithm's ``learning_rate`` acts only by its ratio to its first non-zero value: a constant does nothing, a
    decaying schedule anneals.

    All of the stock policy's keywords work. The default ``activation_fn`` is tanh, also for DQN: a unit whose learning
    rate is far too large must saturate, not explode and take the units behind it along. Unbounded units (ReLU) are best
    put behind a normalisation, and left to bases whose steps are bounded: all but ``sgd``.

    Args:
        alrao: options as a dict, see :class:`~alrao_rl.core.AlraoConfig`:
            ``DQN(AlraoPolicy, env, policy_kwargs=dict(alrao=dict(n_heads=20)))``.

    Returns:
        Whichever policy the algorithm needs: an :class:`AlraoDQNPolicy`, an :class:`AlraoActorCriticPolicy`, an
        :class:`~alrao_rl.sb3.off_policy.AlraoSACPolicy` …

    Raises:
        ValueError, TypeError: with one line, for an algorithm that is not served, a bad option or an
            ``optimizer_class``.
    """

    form = ""

    def __new__(
        cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Make the concrete policy."""
        algorithm = calling_algorithm()
        # From a file: the keywords are those that each of SB3's policies keeps.
        row = of_keywords(kwargs) if algorithm is None else served(type(algorithm))
        if row is None:
            known = ", ".join(algorithms())
            raise ValueError(f"{cls.__name__} does not serve {type(algorithm).__name__}: expected {known}")
        concrete = row.policy(cls.form)
        if concrete is None:
            what = "images" if cls.form == "Cnn" else "Dict observations"
            raise ValueError(
                f"{cls.__name__} does not serve {row.algorithm}, which has no policy for {what}: expected vectors, and "
                f"{GENERAL.format('')}; SAC and TQC take {what}"
            )
        return concrete(observation_space, action_space, *args, **kwargs)

    @classmethod
    def load(cls, path: str, device: torch.device | str = "auto") -> Any:
        """Load what ``policy.save`` wrote. As in SB3 this unpickles: it executes what it is given."""
        return BaseModel.load.__func__(cls, path, device)  # type: ignore[attr-defined]


class AlraoDQNCnnPolicy(AlraoDQNPolicy):
    """:class:`AlraoDQNPolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoDQNMultiInputPolicy(AlraoDQNPolicy):
    """:class:`AlraoDQNPolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class AlraoActorCriticCnnPolicy(AlraoActorCriticPolicy):
    """:class:`AlraoActorCriticPolicy` for images."""

    default_features_extractor_class = AlraoNatureCNN


class AlraoActorCriticMultiInputPolicy(AlraoActorCriticPolicy):
    """:class:`AlraoActorCriticPolicy` for Dict observations."""

    default_features_extractor_class = AlraoCombinedExtractor


class AlraoCnnPolicy(AlraoPolicy):
    """:class:`AlraoPolicy` for images.

    With :class:`~alrao_rl.sb3.extractors.AlraoNatureCNN`, below 36 pixels a side with
    :class:`~alrao_rl.sb3.extractors.AlraoMinAtarCNN`.
    """

    form = "Cnn"


class AlraoMultiInputPolicy(AlraoPolicy):
    """:class:`AlraoPolicy` for Dict observations, with bounded units in the image branches."""

    form = "MultiInput"
