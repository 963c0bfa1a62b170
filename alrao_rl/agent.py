"""Agents on disk: weights as safetensors, everything else as JSON. Loading executes nothing from the files.

``NAME.safetensors`` is the whole agent: the policy's state, where observations are normalised their running
statistics, and in its header the algorithm, the spaces, the options and a hash of the weights. ``NAME.json`` is a copy
of that header for people. One file, replaced at once, cannot be half of one agent and half of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import math
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from safetensors.torch import load, save
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import alrao_rl
from alrao_rl import recipes
from alrao_rl.checks import first_value
from alrao_rl.envs import RunningMeanSquare
from alrao_rl.errors import UserError, first_line, suggest
from alrao_rl.notation import CLASSES
from alrao_rl.runs import check_manifest, read_json, read_run_file, write_atomically
from alrao_rl.sb3.extractors import AlraoNatureCNN, image_extractor
from alrao_rl.sb3.policies import refuse_start

FORMAT = "alrao-rl agent 2"
_HEADER = "alrao-rl"
Statistics = dict[str, RunningMeanStd]
"""Running mean and variance of observations: of each normalised key of a Dict space, or of ``""``, the whole."""
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


# --- building -------------------------------------------------------------------------------------------------------


def algorithm(agent: recipes.Agent) -> type[BaseAlgorithm]:
    """The class of an agent's algorithm.

    Raises:
        UserError: it is one of sb3-contrib's, which is not installed.
    """
    name = CLASSES[agent.algo]
    if hasattr(stable_baselines3, name):
        return cast(type[BaseAlgorithm], getattr(stable_baselines3, name))
    try:
        return cast(type[BaseAlgorithm], getattr(importlib.import_module("sb3_contrib"), name))
    except ImportError:
        raise UserError(f"{agent.algo} needs sb3-contrib; install it with: pip install 'alrao-rl[contrib]'") from None


def policy_class(agent: recipes.Agent, observation_space: spaces.Space[Any]) -> Any:
    """The policy for an agent on these observations: plain, image or Dict; Alrao's class or the name of SB3's."""
    stock, alrao = {
        "qrdqn": ("{}Policy", "AlraoQRDQN{}Policy"),
        "recurrent-ppo": ("{}LstmPolicy", "Alrao{}LstmPolicy"),
        "maskable-ppo": ("{}Policy", "AlraoMaskable{}Policy"),
    }.get(agent.algo, ("{}Policy", "Alrao{}Policy"))
    kind = "MultiInput" if isinstance(observation_space, spaces.Dict) else ""
    kind = "Cnn" if is_image_space(observation_space) else kind
    return getattr(alrao_rl, alrao.format(kind)) if agent.policy == "alrao" else stock.format(kind or "Mlp")


def policy_kwargs(agent: recipes.Agent, observation_space: spaces.Space[Any]) -> dict[str, Any]:
    """Keywords of the policy on these observations, in the form SB3 takes."""
    kwargs = dict(agent.policy_options)
    if "activation_fn" in kwargs:
        kwargs["activation_fn"] = ACTIVATIONS[kwargs["activation_fn"]]
    if is_image_space(observation_space):
        # SB3's own extractor has ReLU whatever the agent's units are, and takes no small images.
        units = kwargs.get("activation_fn", nn.Tanh if agent.policy == "alrao" else nn.ReLU)
        extractor = image_extractor(observation_space)
        if agent.policy == "alrao" or extractor is not AlraoNatureCNN or units is not nn.ReLU:
            kwargs |= {"features_extractor_class": extractor, "features_extractor_kwargs": {"activation_fn": units}}
    if agent.policy == "alrao":
        kwargs["alrao"] = recipes.alrao_options(agent)
    return kwargs


def build(agent: recipes.Agent, env: Any, seed: int | None, device: str = "cpu") -> BaseAlgorithm:
    """Make the SB3 algorithm of an agent on a vectorised environment.

    Raises:
        UserError: SB3 or Alrao refuses a value or the environment's spaces, with their reason on one line.
    """
    name = CLASSES[agent.algo]
    if agent.algo in recipes.REPLAY_ALGORITHMS and not isinstance(env.action_space, spaces.Discrete):
        raise UserError(f"{name} cannot act in {env.action_space}: it takes Discrete actions only; use ppo or a2c")
    try:
        refuse_start(name, env.observation_space, env.action_space)
    except ValueError as error:
        raise UserError(str(error)) from None
    kind = algorithm(agent)
    if agent.algo == "maskable-ppo" and not env.has_attr("action_masks"):
        raise UserError("maskable-ppo takes environments with a method action_masks(), and this one has none; use ppo")
    hyperparameters = dict(agent.hyperparameters)
    for key in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(value := hyperparameters.get(key), str):
            hyperparameters[key] = LinearSchedule(first_value(value), 0.0, 1.0)
    if hyperparameters.get("optimize_memory_usage"):
        # SB3 cannot do both: the end of an episode by a time limit then counts as any other, of which ``train`` warns.
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
    """How many timesteps ``learn(timesteps)`` takes: Stable-Baselines3 ends between two rollouts only."""
    learner = cast(Any, model)
    steps = learner.n_steps if isinstance(model, OnPolicyAlgorithm) else learner.train_freq.frequency
    rollout = steps * model.n_envs
    return math.ceil(timesteps / rollout) * rollout


def refuse_no_update(model: BaseAlgorithm, timesteps: int) -> None:
    """Refuse what would end without a single update.

    Raises:
        UserError: an algorithm with a replay buffer that ends before it starts to learn, or has no gradient steps.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        return
    steps, name = timesteps_of(model, timesteps), type(model).__name__
    if steps <= model.learning_starts:
        raise UserError(
            f"{name} learns after {model.learning_starts:,} steps (learning_starts), and these are {steps:,}: give it "
            f"more timesteps, or a smaller number such as --set learning_starts={steps // 10}"
        )
    if model.gradient_steps == 0:
        raise UserError(f"gradient_steps of {name} is 0, expected at least 1, or -1 for one a step: nothing is learned")


_ACTS_ONLY = "load_agent makes an agent that acts: its file holds no optimizer state and no data to learn on with"
_LOSES_STATISTICS = "{} would lose the statistics that normalise observations: keep the run's files, or use save_agent"

# Methods of a class made for the object, not set on the object: a copy of it has them too, on its own network.


def _acting(algorithm: type[Any]) -> type[Any]:
    """The algorithm without what it cannot do when it was loaded to act."""

    class Acting(algorithm):
        def learn(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(_ACTS_ONLY)

        def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
            if hasattr(self.policy, "statistics"):
                raise RuntimeError(_LOSES_STATISTICS.format(path))
            super().save(path, *args, **kwargs)

        def set_env(self, env: Any, force_reset: bool = True) -> None:
            env = self._wrap_env(env, self.verbose)
            self.n_envs = env.num_envs  # that of training matters to who learns
            super().set_env(env, force_reset)

    Acting.__name__ = Acting.__qualname__ = algorithm.__name__  # as SB3's messages call it
    return Acting


def _normalizing(policy: type[Any]) -> type[Any]:
    """The policy, taking raw observations where it was trained on normalised ones.

    ``statistics`` are those of each normalised key of a Dict space, or of ``""``.
    """

    class Normalizing(policy):
        statistics: Statistics

        def obs_to_tensor(self, observation: Any) -> Any:
            tensor, vectorized = super().obs_to_tensor(observation)  # first: it refuses what has another shape
            if isinstance(tensor, dict):
                return {key: self._normalize(value, key) for key, value in tensor.items()}, vectorized
            return self._normalize(tensor, ""), vectorized

        def save(self, path: str) -> None:
            raise RuntimeError(_LOSES_STATISTICS.format(path))

        def _normalize(self, value: torch.Tensor, key: str) -> torch.Tensor:
            """As VecNormalize does."""
            if key not in self.statistics:
                return value
            rms = self.statistics[key]
            normal = np.clip((value.cpu().numpy() - rms.mean) / np.sqrt(rms.var + 1e-8), -10.0, 10.0)
            return torch.as_tensor(normal.astype(np.float32), device=value.device)

    Normalizing.__name__ = Normalizing.__qualname__ = policy.__name__
    return Normalizing


class _SpacesOnly(gym.Env[Any, Any]):
    """An environment that has spaces and nothing else, to build a model on that only predicts."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def action_masks(self) -> Any:
        """Refuse likewise; that it has them lets an algorithm that asks for masks be built."""
        raise RuntimeError(_ACTS_ONLY)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Refuse: there is nothing to learn on."""
        raise RuntimeError(_ACTS_ONLY)


# --- saving and loading ---------------------------------------------------------------------------------------------


def save_agent(model: BaseAlgorithm, agent: recipes.Agent, path: Path, **facts: Any) -> None:
    """Write ``path``.safetensors and ``path``.json; ``facts`` (scores, timestep) go into both headers."""
    _refuse_to_forget(model)
    tensors = {f"policy.{name}": tensor.contiguous() for name, tensor in model.policy.state_dict().items()}
    for key, rms in _statistics(model).items():
        tensors[f"normalization.{key}.mean"] = torch.as_tensor(rms.mean)
        tensors[f"normalization.{key}.var"] = torch.as_tensor(rms.var)
        tensors[f"normalization.{key}.count"] = torch.tensor(rms.count, dtype=torch.float64)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    description = {
        "format": FORMAT,
        "sha256": _digest(save(tensors)),
        "agent": recipes.with_defaults(agent).model_dump(exclude_none=True),
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        **facts,
    }
    data = save(tensors, metadata={_HEADER: json.dumps(description)})
    write_atomically(path.with_suffix(".safetensors"), data)
    write_atomically(path.with_suffix(".json"), json.dumps(description, indent=2) + "\n")


def load_agent(run: str | Path, which: str = "agent", device: str = "cpu") -> BaseAlgorithm:
    """Load a trained agent as an SB3 model. Nothing from the files is executed.

    Args:
        run: a run folder, or the path of an agent's ``.safetensors`` file.
        which: ``"agent"``, the best one of the run, or ``"last"``.
        device: torch device, such as ``"cpu"`` or ``"cuda:0"``.

    Returns:
        An SB3 model for ``predict``, which takes raw observations even if the agent was trained on normalised ones.
        It is there to act: the file holds no optimizer state and no replay buffer. With gSDE (``use_sde``) sampled
        actions follow one noise matrix, as in SB3, until ``model.policy.reset_noise()`` draws another.

    Raises:
        UserError: there is no such agent, or the file is damaged or not ours.
    """
    path = agent_path(run, which)
    check_device(device)
    model, statistics = rebuild(path, device)
    if hasattr(model, "replay_buffer"):
        # No buffer is better than one of size 1, on which a model that is given an environment would learn nonsense.
        model.replay_buffer = None
    model.__class__ = _acting(type(model))
    if statistics:
        model.policy.__class__ = _normalizing(type(model.policy))
        model.policy.statistics = statistics  # type: ignore[assignment]
    return model


def rebuild(path: Path, device: str = "cpu") -> tuple[BaseAlgorithm, Statistics]:
    """The SB3 model of an agent's file, on environments that have spaces and nothing else, and its statistics.

    The model takes observations as they were in training: normalised by the statistics, if there are any.

    Raises:
        UserError: there is no such agent, or the file is damaged or not ours.
    """
    description, tensors = read_agent(path)
    try:
        agent = recipes.check_agent(description["agent"], "its header")
        observations = decode_space(description["observation_space"])
        actions = decode_space(description["action_space"])
        # As many environments as in training, or SB3 would complain of a rollout shorter than a minibatch.
        env = DummyVecEnv([lambda: _SpacesOnly(observations, actions)] * agent.n_envs)
        model = build(with_small_buffer(agent), env, seed=None, device=device)
        policy = {name.removeprefix("policy."): value for name, value in tensors.items() if name.startswith("policy.")}
        _set_weights(model, policy)
        if model.use_sde:
            # What was drawn before has the deviation of a network that is untrained.
            cast(Any, model.policy).reset_noise()
        statistics = _read_statistics(tensors, observations, description)
    except Exception as error:  # whatever a foreign file may hold
        raise UserError(f"{path} is not a complete agent: {first_line(error)}") from None
    model.policy.set_training_mode(False)
    if agent.algo in recipes.REPLAY_ALGORITHMS:
        learner = cast(DQN, model)
        learner.exploration_rate = learner.exploration_final_eps
        default = inspect.signature(type(model)).parameters["buffer_size"].default
        learner.buffer_size = agent.hyperparameters.get("buffer_size", default)  # that of training, for who saves it
    return model, statistics


def check_device(device: str, what: str = "device") -> None:
    """Reject a string that is not a torch device, or a device this machine lacks; ``what`` names it in the error."""
    try:
        if torch.empty(0, device="cpu" if device == "auto" else torch.device(device)).is_meta:
            raise RuntimeError("meta holds no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        known = str(device).startswith(("cpu", "cuda"))
        hint = suggest("cuda" if device == "gpu" else str(device), () if known else ("cpu", "cuda", "auto"))
        raise UserError(
            f"{what} is {device!r}, expected cpu, auto, or cuda or cuda:N on a machine that has it{hint} "
            f"({first_line(error)})"
        ) from None


def _holds_logs(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return all(read_run_file(path, name) is not None for name in ("config.json", "episodes.csv"))
    return False


def agent_path(run: str | Path, which: str = "agent") -> Path:
    """The file of an agent; arguments as for :func:`load_agent`."""
    path = Path(run)
    if path.suffix == ".zip":
        if _holds_logs(path):
            raise UserError(f"{path} holds the logs of a run of a sweep, for its report, and no agent")
        raise UserError(
            f"{path} is Stable-Baselines3's own format: load it with the algorithm, as in DQN.load({str(path)!r})"
        )
    if path.suffix == ".safetensors":
        return path
    if which not in ("agent", "last"):
        raise UserError(f"which is {which!r}, expected 'agent' (the best one of the run) or 'last'")
    return path / f"{which}.safetensors"


def read_agent(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description and the tensors of an agent's file, checked against their hash.

    Raises:
        UserError: no such file, damaged or not ours.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        state = ""
        with contextlib.suppress(UserError):
            state = f"; the run's state is {read_json(path.parent / 'status.json').get('state')!r}"
        raise UserError(f"cannot read the agent {path}: {error.strerror}{state}") from None
    try:
        length = int.from_bytes(data[:8], "little")
        description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER])
        tensors = load(data)
    except Exception:
        raise UserError(f"{path} is not an agent of alrao-rl, or it is damaged") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{path} is not an agent of this version: expected the format {FORMAT!r}")
    if _digest(data) != description.get("sha256"):
        raise UserError(f"{path} is damaged: the hash of its weights is not the one it was saved with")
    # The header has no hash of its own, but in the folder of a finished run.
    check_manifest(path.parent, path.name)
    return description, tensors


def _set_weights(model: BaseAlgorithm, weights: dict[str, torch.Tensor]) -> None:
    try:
        model.policy.load_state_dict(weights)
    except RuntimeError:
        # torch names every tensor, on as many lines.
        raise ValueError("its weights do not fit its spaces and options") from None


def _digest(data: bytes) -> str:
    """Hash of the tensors in a safetensors file: what follows its header."""
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def with_small_buffer(agent: recipes.Agent) -> recipes.Agent:
    """The same agent without a replay buffer of its training size: it is loaded to act."""
    if agent.algo not in recipes.REPLAY_ALGORITHMS:
        return agent
    return agent.model_copy(update={"hyperparameters": {**agent.hyperparameters, "buffer_size": 1}})


def _refuse_to_forget(model: BaseAlgorithm) -> None:
    """Refuse a normalisation that the file says nothing of.

    Raises:
        UserError: it clips elsewhere than ``VecNormalize`` does by default, or has another ε.
    """
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        for name, expected in {"clip_obs": 10.0, "epsilon": 1e-8}.items():
            if (given := getattr(normalizer, name)) != expected:
                raise UserError(f"{name} of VecNormalize is {given}, expected {expected:g} in an agent that is saved")


def _statistics(model: BaseAlgorithm) -> Statistics:
    """What normalises each part of the observations: the statistics of training, or of a loaded agent."""
    normalizer = model.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs:
        return dict(getattr(model.policy, "statistics", {}))
    return normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}


def _read_statistics(
    tensors: dict[str, torch.Tensor], space: spaces.Space[Any], description: dict[str, Any]
) -> Statistics:
    """Those of each normalised part of the observations, from an agent's file."""
    centred = description["agent"].get("normalize_observations") is True
    statistics: Statistics = {}
    for name in tensors:
        if not (name.startswith("normalization.") and name.endswith(".mean")):
            continue
        key = name.removeprefix("normalization.").removesuffix(".mean")
        part = space[key] if isinstance(space, spaces.Dict) else space
        mean, variance = (tensors[f"normalization.{key}.{what}"].numpy() for what in ("mean", "var"))
        if mean.shape != part.shape or variance.shape != part.shape:
            raise ValueError(f"its {name} is of shape {mean.shape}, expected {part.shape}")
        kind = RunningMeanStd if centred or mean.any() else RunningMeanSquare
        rms = statistics[key] = kind(shape=mean.shape)
        rms.mean, rms.var = mean, variance
        # Older files say the timestep alone, at each of which there is an observation.
        rms.count = float(tensors.get(f"normalization.{key}.count", description.get("timestep", rms.count)))
    return statistics


# --- spaces ---------------------------------------------------------------------------------------------------------


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A Gymnasium space as JSON."""
    if isinstance(space, spaces.Box):
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **_bounds(space)}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": np.asarray(space.n).tolist()}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: encode_space(inner) for key, inner in space.spaces.items()}}
    raise UserError(f"cannot save an agent with a {type(space).__name__} space")


def _bounds(space: spaces.Box) -> dict[str, Any]:
    """Bounds of a Box; one number where all are equal. Infinities as JSON strings."""

    def encode(bound: np.ndarray[Any, Any]) -> Any:
        values = bound.reshape(-1).tolist()
        values = [value if np.isfinite(value) else str(value) for value in values]
        return values[0] if values and all(value == values[0] for value in values) else values

    return {"low": encode(space.low), "high": encode(space.high)}


def decode_space(data: dict[str, Any]) -> spaces.Space[Any]:
    """The Gymnasium space that :func:`encode_space` wrote."""
    kind = data["type"]
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bound(data[end], shape, dtype) for end in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        # As pairs: of a dict it would sort the keys, and features are made in their order.
        return spaces.Dict([(key, decode_space(inner)) for key, inner in data["spaces"].items()])
    raise ValueError(f"unknown space {kind!r}")


def _bound(data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    # Whole numbers past floating point, which does not hold the greatest ones.
    flat = np.asarray(data, dtype=dtype if np.issubdtype(dtype, np.integer) else np.float64).reshape(-1)
    return np.broadcast_to(flat, (int(np.prod(shape)),)).reshape(shape).astype(dtype)
