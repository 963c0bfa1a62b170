"""Make the SB3 model of an agent on its environments."""

from __future__ import annotations

import importlib
import math
from typing import Any, cast

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

import alrao_rl
from alrao_rl.checks import first_value
from alrao_rl.errors import UserError, first_line, suggest
from alrao_rl.notation import plural
from alrao_rl.recipes.resolve import alrao_options
from alrao_rl.recipes.schema import Agent
from alrao_rl.sb3.base import GENERAL, refuse_start
from alrao_rl.sb3.extractors import AlraoNatureCNN, image_extractor

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky-relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def algorithm(agent: Agent) -> type[BaseAlgorithm]:
    """The class of an agent's algorithm.

    Raises:
        UserError: if it is one of sb3-contrib's, which is not installed.
    """
    name = agent.algorithm.cls
    if hasattr(stable_baselines3, name):
        return cast(type[BaseAlgorithm], getattr(stable_baselines3, name))
    try:
        return cast(type[BaseAlgorithm], getattr(importlib.import_module("sb3_contrib"), name))
    except ImportError:
        raise UserError(f"{agent.algo} needs sb3-contrib; install it with: pip install 'alrao-rl[contrib]'") from None


def policy_class(agent: Agent, observation_space: spaces.Space[Any]) -> Any:
    """The policy for an agent on these observations: plain, image or Dict; Alrao's class or the name of SB3's.

    Raises:
        UserError: the algorithm has none for them.
    """
    form = "MultiInput" if isinstance(observation_space, spaces.Dict) else ""
    form = "Cnn" if is_image_space(observation_space) else form
    stock = agent.algorithm.stock_policies.format(form or "Mlp")
    if stock not in algorithm(agent).policy_aliases:
        what = "images" if form == "Cnn" else "Dict observations"
        raise UserError(f"{agent.algorithm.cls} takes no {what}, only vectors: use sac or tqc")
    return getattr(alrao_rl, GENERAL.format(form)) if agent.policy == "alrao" else stock


def policy_kwargs(agent: Agent, observation_space: spaces.Space[Any]) -> dict[str, Any]:
    """Keywords of the policy on these observations, in the form SB3 takes."""
    kwargs = dict(agent.policy_options)
    if "activation_fn" in kwargs:
        kwargs["activation_fn"] = ACTIVATIONS[kwargs["activation_fn"]]
    if is_image_space(observation_space):
        # SB3's own extractor has ReLU whatever the agent's activation is, and does not take small images.
        units = kwargs.get("activation_fn", nn.Tanh if agent.policy == "alrao" else nn.ReLU)
        extractor = image_extractor(observation_space)
        if agent.policy == "alrao" or extractor is not AlraoNatureCNN or units is not nn.ReLU:
            kwargs |= {"features_extractor_class": extractor, "features_extractor_kwargs": {"activation_fn": units}}
    if agent.policy == "alrao":
        kwargs["alrao"] = alrao_options(agent)
    return kwargs


def build(agent: Agent, env: Any, seed: int | None, device: str = "cpu") -> BaseAlgorithm:
    """Make the SB3 algorithm of an agent on a vectorised environment.

    Raises:
        UserError: if SB3 or Alrao rejects a value or the environment's spaces, with the reason on one line.
    """
    name = agent.algorithm.cls
    only = agent.algorithm.actions
    if only and type(env.action_space).__name__ != only:
        others = "ppo or a2c" if only == "Discrete" else "ppo, a2c or dqn"
        raise UserError(f"{name} cannot act in {env.action_space}: it takes {only} actions only; use {others}")
    if only == "Box" and not (np.isfinite(env.action_space.low).all() and np.isfinite(env.action_space.high).all()):
        raise UserError(
            f"{name} cannot act in {env.action_space}: its actions go from low to high, expected finite bounds; set "
            "those of the environment's action_space, or use ppo or a2c"
        )
    try:
        refuse_start(name, env.observation_space, env.action_space)
    except ValueError as error:
        raise UserError(str(error)) from None
    kind = algorithm(agent)
    if agent.algorithm.masks_actions and not env.has_attr("action_masks"):
        raise UserError(f"{agent.algo} takes environments with a method action_masks(), and this one has none; use ppo")
    hyperparameters = dict(agent.hyperparameters)
    for key in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(value := hyperparameters.get(key), str):
            hyperparameters[key] = LinearSchedule(first_value(value), 0.0, 1.0)
    if (deviation := hyperparameters.get("action_noise")) is not None:
        shape = env.action_space.shape
        hyperparameters["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, deviation))
    if isinstance(train_freq := hyperparameters.get("train_freq"), list):
        if train_freq[1] == "episode" and env.num_envs > 1:
            raise UserError(
                f"train_freq of {name} is {train_freq}: episodes take one environment, expected n_envs=1 or steps"
            )
        hyperparameters["train_freq"] = tuple(train_freq)
    if hyperparameters.get("optimize_memory_usage"):
        # SB3 cannot do both: a time limit then counts as any other end of an episode, of which ``train`` warns.
        hyperparameters["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
    try:
        return kind(
            policy_class(agent, env.observation_space),
            env,
            seed=seed,
            device=device,
            policy_kwargs=policy_kwargs(agent, env.observation_space),
            **hyperparameters,
        )
    except (ValueError, TypeError, LookupError, AssertionError, RuntimeError, MemoryError) as error:
        raise UserError(f"cannot build {name}: {first_line(error)}") from error


def timesteps_of(model: BaseAlgorithm, timesteps: int) -> int:
    """How many timesteps ``learn(timesteps)`` takes, at least: Stable-Baselines3 stops only between two rollouts."""
    learner = cast(Any, model)
    if isinstance(model, OnPolicyAlgorithm):
        steps = learner.n_steps
    elif learner.train_freq.unit is TrainFrequencyUnit.STEP:
        steps = learner.train_freq.frequency
    else:  # as long as the last episode lasts
        return timesteps
    rollout = steps * model.n_envs
    return math.ceil(timesteps / rollout) * rollout


def refuse_no_update(model: BaseAlgorithm, timesteps: int) -> None:
    """Reject a run that would end without a single update.

    Raises:
        UserError: if an algorithm with a replay buffer would end before it learns, or has no gradient steps.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        return
    steps, name = timesteps_of(model, timesteps), type(model).__name__
    if steps <= model.learning_starts:
        raise UserError(
            f"{name} learns after {plural(model.learning_starts, 'step')} (learning_starts), but the run has {steps:,}"
            f": give it more timesteps, or a smaller number such as --set learning_starts={steps // 10}"
        )
    if model.gradient_steps == 0:
        raise UserError(
            f"gradient_steps of {name} is 0, expected at least 1, or -1 for one per step: it learns nothing"
        )


def check_device(device: str, what: str = "device") -> None:
    """Reject a string that is not a torch device, or a device this machine lacks; ``what`` names it in the error."""
    try:
        if torch.empty(0, device="cpu" if device == "auto" else torch.device(device)).is_meta:
            raise RuntimeError("meta tensors hold no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        known = str(device).startswith(("cpu", "cuda"))
        hint = suggest("cuda" if device == "gpu" else str(device), () if known else ("cpu", "cuda", "auto"))
        raise UserError(
            f"{what} is {device!r}, expected cpu, auto, or cuda or cuda:N on a machine that has it{hint} "
            f"({first_line(error)})"
        ) from None


def with_small_buffer(agent: Agent) -> Agent:
    """The same agent with the smallest replay buffer, for loading it to act."""
    if not agent.algorithm.learns_from_replay:
        return agent
    return agent.model_copy(update={"hyperparameters": {**agent.hyperparameters, "buffer_size": 1}})
