"""Agents on disk: weights as safetensors, everything else as JSON. Loading executes nothing from the files.

``NAME.safetensors`` is the whole agent: the policy's state, the running statistics if observations are normalised,
and in its header the algorithm, the spaces, the options and a hash of the weights. ``NAME.json`` is a copy of that
header for people. One file, replaced atomically, cannot be half of one agent and half of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, cast

import torch
from gymnasium import spaces
from safetensors.torch import load, save
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv

from alrao_rl.agents.acting import SpacesOnly, Statistics, acting, normalizing
from alrao_rl.agents.build import build, check_device, with_small_buffer
from alrao_rl.agents.spaces import decode_space, encode_space
from alrao_rl.environments.normalization import RunningMeanSquare
from alrao_rl.errors import UserError, first_line, suggest_path
from alrao_rl.recipes.resolve import with_defaults
from alrao_rl.recipes.schema import Agent
from alrao_rl.recipes.validation import check_agent
from alrao_rl.runs import logs
from alrao_rl.runs.atomic import write_atomically
from alrao_rl.runs.folder import is_given_up
from alrao_rl.runs.reading import check_manifest, read_json, read_run_file

FORMAT = "alrao-rl agent 2"
_HEADER = "alrao-rl"


def save_agent(model: BaseAlgorithm, agent: Agent, path: Path, **facts: Any) -> None:
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
        "agent": with_defaults(agent).model_dump(exclude_none=True),
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
        It can only act: the file holds no optimizer state and no replay buffer. With gSDE (``use_sde``) sampled
        actions follow one noise matrix, as in SB3, until ``model.policy.reset_noise()`` draws another.

    Raises:
        UserError: if there is no such agent, or the file is damaged or not an agent of alrao-rl.
    """
    path = agent_path(run, which)
    check_device(device)
    model, statistics = rebuild(path, device)
    if hasattr(model, "replay_buffer"):
        # No buffer is better than one of size 1, from which a model with a new environment would learn nonsense.
        model.replay_buffer = None
    model.__class__ = acting(type(model))
    if statistics:
        model.policy.__class__ = normalizing(type(model.policy))
        model.policy.statistics = statistics  # type: ignore[assignment]
    return model


def rebuild(path: Path, device: str = "cpu") -> tuple[BaseAlgorithm, Statistics]:
    """The SB3 model of an agent's file, on environments with spaces and nothing else, and its statistics.

    The model takes observations as in training: normalised by the statistics, if there are any.

    Raises:
        UserError: if there is no such agent, or the file is damaged or not an agent of alrao-rl.
    """
    description, tensors = read_agent(path)
    try:
        agent = check_agent(description["agent"], "its header")
        observations = decode_space(description["observation_space"])
        actions = decode_space(description["action_space"])
        # As many environments as in training, or SB3 would complain about a rollout shorter than a minibatch.
        env = DummyVecEnv([lambda: SpacesOnly(observations, actions)] * agent.n_envs)
        model = build(with_small_buffer(agent), env, seed=None, device=device)
        policy = {name.removeprefix("policy."): value for name, value in tensors.items() if name.startswith("policy.")}
        _set_weights(model, policy)
        if model.use_sde:
            # The noise drawn so far has the standard deviation of an untrained network.
            cast(Any, model.policy).reset_noise()
        statistics = _read_statistics(tensors, observations, description)
    except Exception as error:  # a foreign file may hold anything
        raise UserError(f"{path} is not a complete agent: {first_line(error)}") from None
    model.policy.set_training_mode(False)
    vars(model.policy).pop("log_ent_coef", None)  # the file does not have what was learned
    if agent.algorithm.learns_from_replay:
        learner = cast(OffPolicyAlgorithm, model)
        if isinstance(learner, DQN):
            learner.exploration_rate = learner.exploration_final_eps
        default = inspect.signature(type(model)).parameters["buffer_size"].default
        learner.buffer_size = agent.hyperparameters.get("buffer_size", default)  # as in training, in case it is saved
    return model, statistics


def _holds_logs(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return all(read_run_file(path, name) is not None for name in ("config.json", "episodes.csv"))
    return False


def agent_path(run: str | Path, which: str = "agent") -> Path:
    """The file of an agent; arguments as for :func:`load_agent`."""
    path = Path(run)
    if not path.is_dir() and path.suffix != ".safetensors" and _holds_logs(path):
        raise UserError(f"{path}: a sweep has kept the logs of this run, for its report, and no agent")
    if path.suffix == ".zip":
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
        UserError: if there is no such file, or it is damaged or not an agent of alrao-rl.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the agent {path}: {error.strerror}{_instead(path)}") from None
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
    # The hash does not cover the header; in the folder of a finished run the manifest does.
    check_manifest(path.parent, path.name)
    return description, tensors


def _instead(path: Path) -> str:
    """Why an agent is not there, or which one may have been meant."""
    folder = path.parent
    if not folder.is_dir():
        return suggest_path(folder if path.stem in ("agent", "last") else path)
    with contextlib.suppress(UserError):
        state = read_json(folder / "status.json").get("state")
        state = "interrupted" if is_given_up(folder, state) else state
        return f"; the run's state is {state!r}"
    # The folder of a study, or one in it.
    for depth in range(1, 5):
        if run := next((one.parent for one in sorted(folder.glob(f"{'*/' * depth}{path.name}"))), None):
            return f"; did you mean {str(run)!r}?"
    if (folder / logs.FILE).exists():
        return "; a sweep has kept the logs of its runs there, for their report, and no agents"
    return suggest_path(path)


def _set_weights(model: BaseAlgorithm, weights: dict[str, torch.Tensor]) -> None:
    try:
        model.policy.load_state_dict(weights)
    except RuntimeError:
        # torch's message lists every tensor, one per line.
        raise ValueError("its weights do not fit its spaces and options") from None


def _digest(data: bytes) -> str:
    """Hash of the tensors in a safetensors file: what follows its header."""
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _refuse_to_forget(model: BaseAlgorithm) -> None:
    """Refuse a normalisation with settings that the file does not record.

    Raises:
        UserError: if it does not have ``VecNormalize``'s default limit for clipping and its default ε.
    """
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        for name, expected in {"clip_obs": 10.0, "epsilon": 1e-8}.items():
            if (value := getattr(normalizer, name)) != expected:
                raise UserError(f"{name} of VecNormalize is {value}, expected {expected:g} in an agent to be saved")


def _statistics(model: BaseAlgorithm) -> Statistics:
    """What normalises each part of the observations: the statistics of training, or of a loaded agent."""
    normalizer = model.get_vec_normalize_env()
    if normalizer is None or not normalizer.norm_obs:
        return dict(getattr(model.policy, "statistics", {}))
    return normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}


def _read_statistics(
    tensors: dict[str, torch.Tensor], space: spaces.Space[Any], description: dict[str, Any]
) -> Statistics:
    """Statistics of each normalised part of the observations, from an agent's file."""
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
        # Older files have only the timestep; there is one observation per timestep.
        rms.count = float(tensors.get(f"normalization.{key}.count", description.get("timestep", rms.count)))
    return statistics
