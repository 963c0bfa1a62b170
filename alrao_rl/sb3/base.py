"""What all Alrao policies for SB3 share: options, what is refused, statistics."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from torch import nn

from alrao_rl.core import AlraoConfig, OutputHeads
from alrao_rl.core.averaging import rule_name
from alrao_rl.core.bases import BASES
from alrao_rl.core.config import Learns
from alrao_rl.fast import AlraoOptimizer
from alrao_rl.sb3.extractors import AlraoMinAtarCNN, AlraoNatureCNN, image_extractor
from alrao_rl.sb3.served import served
from alrao_rl.sb3.shortcuts import set_mode

Options: TypeAlias = Mapping[str, Any] | AlraoConfig | None
GENERAL = "Alrao{}Policy"
"""The name that stands for the policies of all algorithms, with Cnn or MultiInput in it."""


class NoOptimizer:
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
    default_features_extractor_class: type = FlattenExtractor
    learns: Learns = "rollouts"
    q_network: str | None = None
    """Name of the network of values that learns from replay; None where everything learns from rollouts."""

    def _take_options(self, space: spaces.Space[Any], alrao: Options, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keep the Alrao options and return the keywords for SB3's policy."""
        algorithm = calling_algorithm()
        refuse_algorithm(type(self), self.serves, algorithm)
        refuse_optimizer(kwargs, algorithm)
        option = next((field.name for field in fields(AlraoConfig) if field.name in kwargs), None)
        if option is not None:
            raise TypeError(f"{option} is an option of Alrao: write policy_kwargs=dict(alrao=dict({option}=...))")
        if kwargs.get("features_extractor_class") is None:
            kwargs["features_extractor_class"] = self._extractor(space)
        if kwargs.get("normalize_images") is False and kwargs["features_extractor_class"] is AlraoMinAtarCNN:
            # As SB3 does for NatureCNN.
            images = {"normalized_image": True}
            kwargs["features_extractor_kwargs"] = images | (kwargs.get("features_extractor_kwargs") or {})
        config = AlraoConfig.from_options(alrao).resolve(self.learns)
        if config.head_max_grad_norm == "auto":
            norm = getattr(algorithm, "max_grad_norm", None)
            config = replace(config, head_max_grad_norm=None if norm in (None, math.inf) else float(norm))
        if rule_name(rule := config.policy_averaging) == "exponentiated-gradient":
            options = {"rule": rule} if isinstance(rule, str) else rule
            config = replace(config, policy_averaging={"reuse": getattr(algorithm, "n_epochs", 1), **options})
        self.alrao_options = config
        kwargs["optimizer_class"] = NoOptimizer
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
        algorithm = calling_algorithm()
        # What the user wrote may be AlraoPolicy, whichever of its classes it stands for.
        name = type(self).__name__ if algorithm is None else algorithm.policy_class.__name__
        are_images = space.shape is not None and len(space.shape) == 3
        if isinstance(space, spaces.Dict):
            if not issubclass(default, CombinedExtractor):
                row = served(self.serves[0])
                other = GENERAL.format("MultiInput") if row is not None and row.policy("MultiInput") else None
                hint = f"use {other}" if other else f"{self.serves[0].__name__} has no policy that does"
                raise ValueError(f"{name} takes no Dict observations: {hint}")
        elif issubclass(default, CombinedExtractor):
            form = "Cnn" if are_images else ""
            raise ValueError(f"{name} takes Dict observations, not {space}: use {GENERAL.format(form)}")
        elif default is AlraoNatureCNN:
            if not are_images:
                raise ValueError(f"{name} takes images, of three dimensions, not {space}: use {GENERAL.format('')}")
            return image_extractor(space)
        return default

    def set_training_mode(self, mode: bool) -> None:
        """As in SB3, which goes through all modules at every prediction: only where the mode changes."""
        if mode != self.training:
            # A target network stays as it is.
            set_mode(cast(nn.Module, self if self.q_network is None else getattr(self, self.q_network)), mode)
            self.training = mode

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As nn.Module's; SB3 asks at every update, to clip the gradient."""
        found: dict[int, nn.Parameter] = {}  # a tensor takes its time to be a key
        for module in all_modules(cast(nn.Module, self)) if recurse else [cast(nn.Module, self)]:
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

    def optimizers(self) -> dict[str, AlraoOptimizer]:
        """All of them, by the name of what each updates; one for everything is called ``policy``."""
        return {"policy": cast(AlraoOptimizer, self.optimizer)}

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
        optimizers = list(self.optimizers().values())
        stats = {}
        for name, layer in self.alrao_layers().items():
            optimizer = next(one for one in optimizers if layer in one.layers)
            stats[name] = {
                **_head_stats(layer),
                "reclones": optimizer.reclones(layer).cpu().numpy(),
                "lost": optimizer.reclones(layer, "lost").cpu().numpy(),
                "skipped": optimizer.skipped,
            }
        return stats


def _head_stats(layer: OutputHeads) -> dict[str, Any]:
    """Weights and rates ``[J]``, the entropy of the weights in nats, the effective learning rate Π_j η_j^{a_j}."""
    weights, rates = layer.averaging_weights.detach().double().cpu(), layer.rates.double().cpu()
    return {
        "weights": weights.numpy(),
        "rates": rates.numpy(),
        "entropy": float(torch.special.entr(weights).sum()),
        "effective_lr": float(torch.exp((weights * rates.log()).sum())),
    }


def all_modules(root: nn.Module) -> list[nn.Module]:
    """``list(root.modules())`` without its nested generators, which cost a small policy as much as a layer."""
    found = {root: None}

    def visit(module: nn.Module) -> None:
        for child in module._modules.values():
            if child is not None and child not in found:
                found[child] = None
                visit(child)

    visit(root)
    return list(found)


# --- checks ---------------------------------------------------------------------------------------------------------


def calling_algorithm() -> BaseAlgorithm | None:
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


def refuse_algorithm(policy: type, serves: tuple[type[BaseAlgorithm], ...], algorithm: BaseAlgorithm | None) -> None:
    """Refuse an algorithm of another kind, with the policy that serves it.

    Raises:
        ValueError: with the names of both.
    """
    if algorithm is None:
        return
    kind = type(algorithm)
    if any(base.__name__ == "TRPO" for base in kind.__mro__):
        raise ValueError("TRPO has no Alrao policy: it writes the policy's parameters itself, past the learning rates")
    mine, other = [base.__name__ for base in serves], served(kind)
    if isinstance(algorithm, serves) and (other is None or other.algorithm in mine):
        return
    expected = ", ".join("A2C or PPO" if name == "OnPolicyAlgorithm" else name for name in mine)
    if other is None:
        hint = ""
    elif other.algorithm in mine:  # another class of the same name
        hint = f" of {serves[0].__module__.partition('.')[0]}"
    else:
        hint = f"; {kind.__name__} takes {GENERAL.format(_form(policy))}"
    raise ValueError(f"{policy.__name__} does not serve {kind.__name__}: expected {expected}{hint}")


def _form(policy: type) -> str:
    return next((form for form in ("Cnn", "MultiInput") if form in policy.__name__), "")


def refuse_optimizer(kwargs: dict[str, Any], algorithm: BaseAlgorithm | None) -> None:
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


def named(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments behind ``lr_schedule`` as keywords."""
    code = cls.__init__.__code__  # type: ignore[misc]
    names = code.co_varnames[4 : code.co_argcount]
    return dict(zip(names, args, strict=False)) | kwargs
