"""Alrao policies for unmodified Stable-Baselines3: SB3's own policies, converted after they are built."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from alrao_rl import fast
from alrao_rl.core import AlraoConfig, Output, OutputHeads
from alrao_rl.core.averaging import rule_name
from alrao_rl.core.bases import BASES
from alrao_rl.fast import AlraoOptimizer, convert
from alrao_rl.plain import averaged
from alrao_rl.sb3.distributions import LeanGaussian, LeanStateDependentNoise, lean
from alrao_rl.sb3.extractors import AlraoCombinedExtractor, AlraoMinAtarCNN, AlraoNatureCNN, image_extractor
from alrao_rl.sb3.log_std import log_std, write_log_std
from alrao_rl.sb3.running_average import follow
from alrao_rl.sb3.shortcuts import are_features, is_hooked, make_lean

Options = Mapping[str, Any] | AlraoConfig | None


# To a type checker the mixin is the policy that it is mixed into.
if TYPE_CHECKING:
    _ActorCritic: TypeAlias = ActorCriticPolicy
else:
    _ActorCritic = object


class _NoOptimizer:
    """In place of the Adam that SB3 makes before ours, which costs a second: with it torch loads its compiler."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class AlraoPolicyMixin:
    """What all Alrao policies share: options, optimizer, statistics."""

    training: bool
    optimizer: torch.optim.Optimizer
    serves: tuple[type[BaseAlgorithm], ...]
    stock: type
    """SB3's policy, the next class."""
    family = "Alrao{}Policy"
    """What users call it, with Cnn or MultiInput in it."""
    default_features_extractor_class: type = FlattenExtractor
    q_network: str | None = None
    """Name of the network of values that learns from replay; None where everything learns from rollouts."""

    def _take_options(self, space: spaces.Space[Any], alrao: Options, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keep the Alrao options and return the keywords for SB3's policy."""
        algorithm = _calling_algorithm()
        _refuse_algorithm(type(self), self.serves, algorithm)
        _refuse_optimizer(kwargs, algorithm)
        option = next((field.name for field in fields(AlraoConfig) if field.name in kwargs), None)
        if option is not None:
            raise TypeError(f"{option} is an option of Alrao: write policy_kwargs=dict(alrao=dict({option}=...))")
        if kwargs.get("features_extractor_class") is None:
            kwargs["features_extractor_class"] = self._extractor(space)
        if kwargs.get("normalize_images") is False and kwargs["features_extractor_class"] is AlraoMinAtarCNN:
            # As SB3 does for NatureCNN.
            images = {"normalized_image": True}
            kwargs["features_extractor_kwargs"] = images | (kwargs.get("features_extractor_kwargs") or {})
        config = AlraoConfig.from_options(alrao).resolve(replay=self.q_network is not None)
        if config.head_max_grad_norm == "auto":
            norm = getattr(algorithm, "max_grad_norm", None)
            config = replace(config, head_max_grad_norm=None if norm in (None, math.inf) else float(norm))
        if rule_name(rule := config.policy_averaging) == "exponentiated-gradient":
            options = {"rule": rule} if isinstance(rule, str) else rule
            config = replace(config, policy_averaging={"reuse": getattr(algorithm, "n_epochs", 1), **options})
        self.alrao_options = config
        kwargs["optimizer_class"] = _NoOptimizer
        kwargs.setdefault("activation_fn", nn.Tanh)
        # SB3 leaves out the fully connected layers behind exactly NatureCNN; ours have one of their own as well.
        if kwargs.get("net_arch") is None and kwargs["features_extractor_class"] in (AlraoNatureCNN, AlraoMinAtarCNN):
            kwargs["net_arch"] = []
        return kwargs

    def _extractor(self, space: spaces.Space[Any]) -> type[BaseFeaturesExtractor]:
        """That of this policy for observations of this space.

        Raises:
            ValueError: they are of another kind.
        """
        default: type[BaseFeaturesExtractor] = self.default_features_extractor_class
        # What the user wrote is AlraoPolicy, whichever of its two it stands for.
        name = re.sub("^Alrao(DQN|ActorCritic)", "Alrao", type(self).__name__)
        are_images = space.shape is not None and len(space.shape) == 3
        if isinstance(space, spaces.Dict):
            if not issubclass(default, CombinedExtractor):
                raise ValueError(f"{name} takes no Dict observations: use {self.family.format('MultiInput')}")
        elif issubclass(default, CombinedExtractor):
            form = self.family.format("Cnn" if are_images else "")
            raise ValueError(f"{name} takes Dict observations, not {space}: use {form}")
        elif default is AlraoNatureCNN:
            if not are_images:
                plain = self.family.format("")
                raise ValueError(f"{name} takes images, of three dimensions, not {space}: use {plain}")
            return image_extractor(space)
        return default

    def set_training_mode(self, mode: bool) -> None:
        """As in SB3, which goes through all modules at every prediction: only where the mode changes."""
        if mode != self.training:
            # A target network stays as it is.
            cast(nn.Module, self if self.q_network is None else getattr(self, self.q_network)).train(mode)
            self.training = mode

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As nn.Module's; SB3 asks at every update, to clip the gradient."""
        found: dict[int, nn.Parameter] = {}  # a tensor takes its time to be a key
        for module in _modules(cast(nn.Module, self)) if recurse else [cast(nn.Module, self)]:
            for parameter in module._parameters.values():
                if parameter is not None:
                    found[id(parameter)] = parameter
        return iter(found.values())

    @property
    def device(self) -> torch.device:
        """Of the first parameter; SB3, which asks at every prediction, goes by :meth:`parameters`, which finds all."""
        first = next(nn.Module.parameters(cast(nn.Module, self)), None)
        return torch.device("cpu") if first is None else first.device

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What ``policy.load`` builds the policy from: SB3's own, less the optimizer, which is not to be chosen."""
        parameters = super()._get_constructor_parameters()  # type: ignore[misc]
        own = {name: value for name, value in parameters.items() if not name.startswith("optimizer_")}
        return own | {"alrao": self.alrao_options}

    def alrao_layers(self) -> dict[str, OutputHeads]:
        """The duplicated output layers by name."""
        raise NotImplementedError

    def alrao_stats(self) -> dict[str, dict[str, Any]]:
        """How the heads of each output layer do.

        For each: averaging ``weights`` ``[J]``, the heads' ``rates`` ``[J]``, the ``entropy`` of the weights in nats,
        the ``effective_lr``, the geometric mean of the rates, weighted by the averaging weights, and how often each
        head was re-cloned in training, ``reclones`` ``[J]``, and of these because it was not finite, ``lost``. How many
        updates of the whole network had a gradient that was not finite, and moved nothing by it: ``skipped``.
        """
        optimizer = cast(AlraoOptimizer, self.optimizer)
        return {
            name: {
                **_head_stats(layer),
                "reclones": optimizer.reclones(layer).cpu().numpy(),
                "lost": optimizer.reclones(layer, "lost").cpu().numpy(),
                "skipped": optimizer.skipped,
            }
            for name, layer in self.alrao_layers().items()
        }


class QNetworkMixin(AlraoPolicyMixin):
    """DQN and its like: a network of values, called as its last part, with a target and a running average."""

    q_network: str

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Any,
        *args: Any, alrao: Options = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        refuse_start(type(_calling_algorithm() or self).__name__, observation_space, action_space)
        kwargs = self._take_options(observation_space, alrao, _named(self.stock, args, kwargs))
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
        refuse_start(type(_calling_algorithm() or self).__name__, observation_space, action_space)
        kwargs = self._take_options(observation_space, alrao, _named(self.stock, args, kwargs))
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


def _head_stats(layer: OutputHeads) -> dict[str, Any]:
    """Weights and rates ``[J]``, the entropy of the weights in nats, the effective learning rate Π_j η_j^{a_j}."""
    weights, rates = layer.averaging_weights.detach().double().cpu(), layer.rates.double().cpu()
    return {
        "weights": weights.numpy(),
        "rates": rates.numpy(),
        "entropy": float(torch.special.entr(weights).sum()),
        "effective_lr": float(torch.exp((weights * rates.log()).sum())),
    }


def _modules(root: nn.Module) -> list[nn.Module]:
    """``list(root.modules())`` without its nested generators, which cost a small policy as much as a layer."""
    found = {root: None}

    def visit(module: nn.Module) -> None:
        for child in module._modules.values():
            if child is not None and child not in found:
                found[child] = None
                visit(child)

    visit(root)
    return list(found)


def _follow(average: nn.Module, network: nn.Module, optimizer: AlraoOptimizer) -> None:
    """After every optimizer step: the running average takes the network in."""
    follow(average, network, optimizer.param_groups[0]["n_updates"], optimizer.config.iterate_window)


def _begin_anew(average: nn.Module, network: nn.Module, _: Any) -> None:
    """After weights were loaded into the network alone, as of another one: the running average is that."""
    follow(average, network, n_updates=1, window=1)


class AlraoPolicy:
    """Policy without a learning rate for SB3's DQN, A2C and PPO: ``DQN(AlraoPolicy, env)``.

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
        An :class:`AlraoDQNPolicy` or an :class:`AlraoActorCriticPolicy`, whichever the algorithm needs.

    Raises:
        ValueError, TypeError: with one line, for an algorithm that is not served, a bad option or an
            ``optimizer_class``.
    """

    dqn_class: type[AlraoDQNPolicy] = AlraoDQNPolicy
    actor_critic_class: type[AlraoActorCriticPolicy] = AlraoActorCriticPolicy

    def __new__(
        cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Make the concrete policy."""
        _refuse_algorithm(cls, cls.dqn_class.serves + cls.actor_critic_class.serves, _calling_algorithm())
        # SB3's on-policy algorithms always pass use_sde to the policy class, DQN never does.
        concrete = cls.actor_critic_class if "use_sde" in kwargs else cls.dqn_class
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

    dqn_class = AlraoDQNCnnPolicy
    actor_critic_class = AlraoActorCriticCnnPolicy


class AlraoMultiInputPolicy(AlraoPolicy):
    """:class:`AlraoPolicy` for Dict observations, with bounded units in the image branches."""

    dqn_class = AlraoDQNMultiInputPolicy
    actor_critic_class = AlraoActorCriticMultiInputPolicy


# --- checks ---------------------------------------------------------------------------------------------------------


def _calling_algorithm() -> BaseAlgorithm | None:
    """The SB3 algorithm that is building this policy, which passes neither itself nor its name; None without one."""
    frame = sys._getframe(1)
    for _ in range(10):
        caller = frame.f_locals.get("self")
        if isinstance(caller, BaseAlgorithm):
            return caller
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _refuse_algorithm(policy: type, serves: tuple[type[BaseAlgorithm], ...], algorithm: BaseAlgorithm | None) -> None:
    """Refuse an algorithm of another kind, with the policy that serves it."""
    if algorithm is None or (isinstance(algorithm, serves) and type(algorithm) in (*serves, A2C, PPO)):
        return
    # Not above: pydantic, which the table is made of, takes longer to load than all of this package.
    from alrao_rl.recipes.algorithms import ALGORITHMS

    # Algorithms whose policies have another structure than AlraoPolicy, and those that serve them.
    families = {row.cls: row.policies for row in ALGORITHMS.values() if row.policies != AlraoPolicyMixin.family}
    names = [base.__name__ for base in type(algorithm).__mro__]
    if "TRPO" in names:
        raise ValueError("TRPO has no Alrao policy: it writes the policy's parameters itself, past the learning rates")
    other = next((name for name in names if name in families), None)
    mine = [base.__name__ for base in serves]
    if isinstance(algorithm, serves) and (other is None or other in mine):
        return
    if other is not None:
        form = next((form for form in ("Cnn", "MultiInput") if form in policy.__name__), "")
        raise ValueError(
            f"{policy.__name__} does not serve {names[0]}: use {families[other].format(form)} from alrao_rl"
        )
    expected = ", ".join("A2C or PPO" if name == "OnPolicyAlgorithm" else name for name in mine)
    raise ValueError(f"{policy.__name__} does not serve {names[0]}: expected {expected}")


def _refuse_optimizer(kwargs: dict[str, Any], algorithm: BaseAlgorithm | None) -> None:
    """Refuse a user's own optimizer; drop the one that A2C and QR-DQN put into ``policy_kwargs`` by themselves.

    The user's own dict, which may be that of another model as well: of another batch size, or another algorithm.
    """
    optimizer, options = kwargs.pop("optimizer_class", None), kwargs.pop("optimizer_kwargs", None) or {}
    if optimizer is torch.optim.RMSprop and set(options) == {"alpha", "eps", "weight_decay"}:
        from_sb3 = isinstance(algorithm, A2C) or (options["alpha"], options["weight_decay"]) == (0.99, 0)
    else:
        is_qrdqn = type(algorithm).__name__ == "QRDQN" and optimizer is torch.optim.Adam and set(options) == {"eps"}
        size = 0.01 / options["eps"] if is_qrdqn else 0.0  # of a batch
        from_sb3 = size >= 1 and math.isclose(size, round(size))
    if from_sb3:
        return
    if optimizer is not None or options:
        given = f"optimizer_class={getattr(optimizer, '__name__', optimizer)} with optimizer_kwargs={options}"
        raise ValueError(
            f"{given} has no effect on an Alrao policy: choose the base update instead, "
            f"policy_kwargs=dict(alrao=dict(base='rmsprop')), one of {', '.join(BASES)}, and its base_kwargs"
        )


def refuse_start(name: str, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse spaces that do not count from 0: Stable-Baselines3 takes what it gets, and gives, for indices.

    Raises:
        ValueError: with the space; ``name`` is the algorithm's.
    """
    for what, space in {"act in": action_space, "observe": observation_space}.items():
        if not _counts_from_0(space):
            raise ValueError(
                f"{name} cannot {what} {space}: Stable-Baselines3 counts from 0; shift it by a wrapper such as "
                "gymnasium.wrappers.TransformAction or TransformObservation"
            )


def _counts_from_0(space: spaces.Space[Any]) -> bool:
    """Whether no discrete part of a space has a ``start``, past which Stable-Baselines3 looks."""
    if isinstance(space, spaces.Dict):
        return all(map(_counts_from_0, space.values()))
    return not np.any(getattr(space, "start", 0))


def _named(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments behind ``lr_schedule`` as keywords."""
    code = cls.__init__.__code__  # type: ignore[misc]
    names = code.co_varnames[4 : code.co_argcount]
    return dict(zip(names, args, strict=False)) | kwargs
