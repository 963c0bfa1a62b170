"""Everything that determines how training continues, taken and restored where SB3 starts a rollout.

Nothing is half done there: no rollout in the buffer, no gradient, no step of an environment whose outcome only a local
variable of SB3's holds. Taking the state draws no random number and changes nothing.

Left out, because they are written before they are read again: rollout buffers, gradients, and the infos, rewards and
dones that DummyVecEnv keeps from its last step.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage

from alrao_rl.environments.recording import RecordingMonitor, ReplayError, generator_state, set_generator_state
from alrao_rl.runs.buffer_chunks import LARGE, Ring, StoredRing

_COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "_current_progress_remaining",
    "exploration_rate",
)
_LAST = ("_last_obs", "_last_episode_starts", "_last_original_obs")
_LSTM_STATES = "_last_lstm_states"
_EPISODES = ("ep_info_buffer", "ep_success_buffer")
_NOISE = ("exploration_mat", "exploration_matrices")


def take(model: BaseAlgorithm) -> dict[str, Any]:
    """The state of training as a tree of plain values and arrays, most of them the model's own, not copies.

    Args:
        model: an SB3 algorithm that is about to collect a rollout, on environments of
            :func:`~alrao_rl.environments.make.make_env`.
    """
    noise = _noise(model)
    return {
        "policy": dict(model.policy.state_dict()),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in _optimizers(model).items()},
        "variables": {name: variable.detach() for name, variable in _variables(model).items()},
        "noise": {name: getattr(noise, name) for name in _NOISE if hasattr(noise, name)},
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "last": {name: getattr(model, name) for name in _LAST if hasattr(model, name)},
        "lstm_states": getattr(model, _LSTM_STATES, None),
        "episodes": {name: list(getattr(model, name)) for name in _EPISODES},
        "replay_buffer": _take_buffer(_buffer(model), model.num_timesteps),
        "environments": _take_environments(_environments(model)),
        "normalizer": _take_normalizer(model.get_vec_normalize_env()),
        "action_space": generator_state(model.action_space),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if model.device.type == "cuda" else [],
    }


def put_back(state: dict[str, Any], model: BaseAlgorithm) -> dict[int, str]:
    """Restore what :func:`take` returned, in a model built the same way that is about to collect its first rollout.

    Returns:
        The environments that could not be replayed, by number, with the reason; they start a new episode.
    """
    model.policy.load_state_dict(state["policy"])
    # A checkpoint from before there were several has that of the policy alone.
    optimizers = state["optimizers"] if "optimizers" in state else {"policy.optimizer": state["optimizer"]}
    for name, optimizer in _optimizers(model).items():
        optimizer.load_state_dict(optimizers[name])
    for name, variable in _variables(model).items():
        variable.data.copy_(state["variables"][name])
    for name in _NOISE:
        if name in state["noise"]:
            setattr(_noise(model), name, state["noise"][name].to(model.device))
    for name in (*_COUNTERS, *_LAST):
        if hasattr(model, name):
            setattr(model, name, (state["counters"] | state["last"])[name])
    if (states := getattr(model, _LSTM_STATES, None)) is not None:
        to_device = [tuple(part.to(model.device) for part in parts) for parts in state["lstm_states"]]
        setattr(model, _LSTM_STATES, type(states)(*to_device))
    for name in _EPISODES:
        episodes: deque[Any] = getattr(model, name)
        episodes.clear()
        episodes.extend(state["episodes"][name])
    _put_buffer(_buffer(model), state["replay_buffer"])
    _put_normalizer(model.get_vec_normalize_env(), state["normalizer"])
    lost = _put_environments(_environments(model), state["environments"])
    _start_episodes(model, lost)
    # Last, because an environment may have drawn from them during its replay.
    set_generator_state(model.action_space, state["action_space"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and model.device.type == "cuda":
        torch.cuda.set_rng_state_all(state["cuda"])
    return lost


def _noise(model: BaseAlgorithm) -> Any:
    """What holds the noise of gSDE."""
    return getattr(getattr(model.policy, "actor", model.policy), "action_dist", None)


def _optimizers(model: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    """By SB3's names: ``policy.optimizer``, or those of actor, critics and entropy coefficient."""
    names = model._get_torch_save_params()[0]
    return {name: attrgetter(name)(model) for name in names if name != "policy"}


def _variables(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Tensors beside the policy: the entropy coefficient."""
    return {name: attrgetter(name)(model) for name in model._get_torch_save_params()[1]}


# --- replay buffer --------------------------------------------------------------------------------------------------


def _buffer(model: BaseAlgorithm) -> ReplayBuffer | None:
    return getattr(model, "replay_buffer", None)


def _rows(buffer: ReplayBuffer) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
    """Its arrays by name, those of Dict observations as ``observations/KEY``."""
    for name, value in vars(buffer).items():
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items() if isinstance(inner, np.ndarray))


def _take_buffer(buffer: ReplayBuffer | None, num_timesteps: int) -> dict[str, Any] | None:
    """Only the filled part; large arrays as rings, of which a checkpoint writes only what has changed."""
    if buffer is None:
        return None
    # With optimize_memory_usage the row after the last one holds the newest observation.
    n_rows = min(buffer.size() + buffer.optimize_memory_usage, buffer.buffer_size)
    n_added = num_timesteps // buffer.n_envs
    rows = {
        name: Ring(array[:n_rows], buffer.buffer_size, n_added) if array.nbytes > LARGE else array[:n_rows]
        for name, array in _rows(buffer)
    }
    return {"pos": buffer.pos, "full": buffer.full, "rows": rows}


def _put_buffer(buffer: ReplayBuffer | None, state: dict[str, Any] | None) -> None:
    if buffer is None or state is None:
        return
    buffer.pos, buffer.full = state["pos"], state["full"]
    for name, array in _rows(buffer):
        rows = state["rows"][name]
        if isinstance(rows, StoredRing):
            rows.read_into(array)
        else:
            array[: len(rows)] = rows


# --- environments ---------------------------------------------------------------------------------------------------


def _environments(model: BaseAlgorithm) -> DummyVecEnv:
    return cast(DummyVecEnv, cast(VecEnv, model.env).unwrapped)


def _take_environments(venv: DummyVecEnv) -> dict[str, Any]:
    observations = {"" if key is None else key: value for key, value in venv.buf_obs.items()}
    return {"observations": observations, "records": [cast(RecordingMonitor, env).record() for env in venv.envs]}


def _put_environments(venv: DummyVecEnv, state: dict[str, Any]) -> dict[int, str]:
    """Replay every environment; if that fails, begin a new episode. Returns the reasons, by number."""
    lost = {}
    for i, (env, record) in enumerate(zip(venv.envs, state["records"], strict=True)):
        try:
            venv._save_obs(i, cast(RecordingMonitor, env).replay(record))
            for key, rows in venv.buf_obs.items():
                if rows[i].tobytes() != state["observations"][key or ""][i].tobytes():
                    raise ReplayError("its observation came out differently")
        except ReplayError as reason:
            lost[i] = str(reason)
            if generator_state(env.unwrapped) is not None:
                set_generator_state(env.unwrapped, record["after"])
            cast(RecordingMonitor, env).end_game()
            venv._save_obs(i, env.reset()[0])
    return lost


def _start_episodes(model: BaseAlgorithm, numbers: Collection[int]) -> None:
    """Tell the algorithm that these environments have begun a new episode, and the last one was cut off."""
    if not numbers:
        return
    venv, wrappers = cast(VecEnv, model.env), []
    while isinstance(venv, VecEnvWrapper):
        wrappers.append(venv)
        venv = venv.venv
    original = observations = cast(DummyVecEnv, venv)._obs_from_buf()
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, VecNormalize):
            original = observations
            observations = wrapper.normalize_obs(cast(Any, observations))
        elif isinstance(wrapper, VecTransposeImage):
            observations = wrapper.transpose_observations(cast(Any, observations))
    normalizer, buffer = model.get_vec_normalize_env(), _buffer(model)
    for i in numbers:
        _set_row(model._last_obs, observations, i)
        cast(Any, model._last_episode_starts)[i] = True
        _set_row(model._last_original_obs, observations if normalizer is None else original, i)
        if normalizer is not None:
            _set_row(normalizer.old_obs, original, i)
            normalizer.returns[i] = 0
        if buffer is not None and buffer.size() and not buffer.dones[buffer.pos - 1, i]:
            # Cut off as by a time limit: n-step returns must not continue into the new episode.
            buffer.dones[buffer.pos - 1, i] = 1
            # With optimize_memory_usage SB3 has no time limits: the next observation is not kept, so nothing follows.
            buffer.timeouts[buffer.pos - 1, i] = buffer.handle_timeout_termination


def _set_row(target: Any, source: Any, i: int) -> None:
    if isinstance(target, dict):
        for key, rows in target.items():
            rows[i] = source[key][i]
    elif target is not None:
        target[i] = source[i]


# --- normalisation --------------------------------------------------------------------------------------------------


def _statistics(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    """Its running statistics: of the observations, or of each of their keys, and of the return."""
    rms = getattr(normalizer, "obs_rms", {})
    named = (
        {f"observations/{key}": part for key, part in rms.items()} if isinstance(rms, dict) else {"observations": rms}
    )
    return {**named, "return": normalizer.ret_rms}


def _take_normalizer(normalizer: VecNormalize | None) -> dict[str, Any] | None:
    if normalizer is None:
        return None
    return {
        "statistics": {key: [rms.mean, rms.var, rms.count] for key, rms in _statistics(normalizer).items()},
        "returns": normalizer.returns,
        "old_obs": normalizer.old_obs,
        "old_reward": normalizer.old_reward,
    }


def _put_normalizer(normalizer: VecNormalize | None, state: dict[str, Any] | None) -> None:
    if normalizer is None or state is None:
        return
    for key, rms in _statistics(normalizer).items():
        rms.mean, rms.var, rms.count = state["statistics"][key]
    normalizer.returns, normalizer.old_obs, normalizer.old_reward = (
        state["returns"], state["old_obs"], state["old_reward"],
    )  # fmt: skip
