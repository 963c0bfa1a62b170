"""Numbers that are none, or far too large: from the environment, and from learning rates that no head survives."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, command

from alrao_rl import load_agent
from alrao_rl.agents.file import read_agent
from faults import faulty
from faults.harness import Fault, Missed, Result, check
from faults.processes import done, finish

ALGOS = ("dqn", "a2c", "ppo")
CONTINUOUS = ("sac", "td3", "tqc", "crossq", "ddpg")
ENVS_OF = {"a2c": 4, "ppo": 4}
NON_FINITE = ("nan-reward", "inf-reward", "minus-inf-reward", "nan-observation", "inf-observation")
REASONS = {"raises": "ValueError: broken at last"}
STEPS = 1600


def faulty_run(algo: str, happens: str, at: int, place: Path) -> list[object]:
    (place / "kept").mkdir(exist_ok=True)
    continuous = str(algo in CONTINUOUS).lower()
    kwargs = f'happens="{happens}", at={at}, keep="{place / "kept"}", out="{place / "run"}", continuous={continuous}'
    args = arguments(algo, "faults.faulty:Faulty-v0", STEPS)
    return command(*args, "--env-kwargs", kwargs, "--out", place / "run")


def moment(algo: str, number: int) -> int:
    """A step of an environment; off policy an agent has learned by then."""
    first = 200 if algo in CONTINUOUS else 40
    return int(np.random.default_rng(number).integers(first, STEPS // ENVS_OF.get(algo, 1) - 40))


def not_finite(algos: tuple[str, ...], kinds: tuple[str, ...], number: int, place: Path) -> Result:
    """The run ends at that step, says which and what, and leaves the best agent as it was."""
    algo, happens = algos[number % len(algos)], kinds[number % len(kinds)]
    n_envs, at = ENVS_OF.get(algo, 1), moment(algo, number)
    end = done(faulty_run(algo, happens, at, place))
    check(end.returncode == 1, f"exit status {end.returncode}: {end.stderr}")
    status = json.loads((place / "run" / "status.json").read_text())
    check(status["state"] == "failed", f"status {status['state']}")
    value = happens.split("-reward")[0].split("-observation")[0].replace("minus-", "-")
    says = (REASONS[happens],) if happens in REASONS else (value, f"at step {at} ")
    check(all(part in status["reason"] for part in says), f"reason {status['reason']!r}")
    late = status["timestep"] - at * n_envs
    check(-n_envs <= late <= 0, f"{late} steps too late")
    for path in (place / "kept").iterdir():
        check(path.read_bytes() == (place / "run" / path.name).read_bytes(), f"{path.name} is not as it was")
    had = len(list((place / "kept").iterdir()))
    check(had == 2, f"the best agent at that moment: {had} files")
    load_agent(place / "run")
    return Result(float(late), f"{algo}: {status['reason']}")


def stock_not_finite(number: int, place: Path) -> Result:
    """``learn`` on an environment with one such reward."""
    return stock_learns(number, NON_FINITE[number % 3])


def stock_learns(number: int, happens: str) -> Result:
    from stable_baselines3 import A2C, DQN, PPO

    algo = (DQN, A2C, PPO)[number % 3]
    kwargs = {"n_steps": 64, "batch_size": 64} if algo is PPO else {"learning_starts": 50} if algo is DQN else {}
    model = algo("MlpPolicy", faulty.Faulty(happens, at=300), seed=number, **kwargs)
    try:
        model.learn(1000)
    except Exception as error:
        raise Missed(f"{algo.__name__}, {happens}: {type(error).__name__} after {model.num_timesteps} steps") from None
    tensors = [value for value in model.policy.state_dict().values()]
    bad = sum(not torch.isfinite(one).all() for one in tensors)
    check(not bad, f"{algo.__name__}, {happens}: finished without a word, {bad} of {len(tensors)} tensors not finite")
    return Result(detail=f"{algo.__name__}: finished, weights are finite")


def greatest(folder: Path) -> float:
    """Greatest weight of the last agent; misses the figure unless all are finite and it acts."""
    _, tensors = read_agent(folder / "last.safetensors")
    for name, tensor in tensors.items():
        check(tensor.isfinite().all(), f"{name} is not finite")
    model = load_agent(folder, "last")
    for observation in np.random.default_rng(0).uniform(-1, 1, (50, *model.observation_space.shape)):
        observation = observation.astype(np.float32)
        action, _ = model.predict(observation, deterministic=True)
        check(model.action_space.contains(action), f"action {action}")
        with torch.no_grad():
            outputs = values_of(model.policy, model.policy.obs_to_tensor(observation)[0])
        check(outputs.isfinite().all(), f"outputs {outputs}")
    return max(float(tensor.abs().max()) for name, tensor in tensors.items() if name.endswith(("weight", "theta")))


def values_of(policy: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Whatever values a policy has, of its own actions where they are of observations and actions."""
    if hasattr(policy, "critic"):
        return torch.cat([values.flatten() for values in policy.critic(inputs, policy.actor(inputs))])
    return policy.q_net(inputs) if hasattr(policy, "q_net") else policy.predict_values(inputs)


def huge_reward(algos: tuple[str, ...], number: int, place: Path) -> Result:
    """One reward of 1e30: the run goes on to its end with finite weights."""
    algo = algos[number % len(algos)]
    at = moment(algo, number)
    finish(faulty_run(algo, "huge-reward", at, place))
    return Result(greatest(place / "run"), f"{algo}, step {at}")


LOWEST = (1e-6, 1.0, 1e3)


def every_head_diverges(algos: tuple[str, ...], envs: tuple[str, ...], number: int, place: Path) -> Result:
    """Learning rates up to a million, at the worst from a thousand."""
    algo, low = algos[number % len(algos)], LOWEST[number // len(algos) % 3]
    env = envs[number % len(envs)]
    run = arguments(algo, env, 2000, f"alrao.lr_range=[{low}, 1e6]")
    finish(command(*run, "--seed", number, "--out", place / "run"))
    size = greatest(place / "run")
    with (place / "run" / "heads.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["timestep"] == rows[-1]["timestep"]]
    weights = [float(row["weight"]) for row in last]
    check(np.isfinite(weights).all(), f"averaging weights {weights}")
    reclones = sum(int(row["reclones"]) for row in last)
    return Result(size, f"{algo} on {env}, rates from {low:g}: {reclones} re-clones in heads.csv")


FAULTS = [
    Fault(
        "not-finite", "a reward or an observation that is nan or infinite at a random step, DQN, A2C, PPO",
        "stops within one update, status failed with step and value, best agent untouched",
        partial(not_finite, ALGOS, NON_FINITE), asked=60, short=2, value="steps from the value to the end of the run",
        stock=stock_not_finite, stock_asked=12,
    ),
    Fault(
        "not-finite-continuous", "the same, or an environment that raises, SAC, TD3, TQC, CrossQ, DDPG", "the same",
        partial(not_finite, CONTINUOUS, (*NON_FINITE, *REASONS)), asked=30, short=2,
        value="steps from the value to the end of the run",
    ),
    Fault(
        "huge", "one reward of 1e30", "all weights and outputs of the averaged model finite",
        partial(huge_reward, ALGOS), asked=30, value="greatest weight",
        stock=lambda number, _: stock_learns(number, "huge-reward"), stock_asked=12,
    ),
    Fault(
        "huge-continuous", "the same, SAC, TD3, TQC, CrossQ, DDPG", "the same", partial(huge_reward, CONTINUOUS),
        asked=15, value="greatest weight",
    ),
    Fault(
        "diverge", "learning rates up to 1e6, from 1e-6, 1 and 1000",
        "all weights and outputs of the averaged model finite, the agent acts, reported in heads.csv",
        partial(every_head_diverges, ALGOS, ("CartPole-v1", "LunarLander-v3")), asked=36, value="greatest weight",
    ),
    Fault(
        "diverge-continuous", "the same, SAC, TD3, TQC, CrossQ, DDPG: heads of actor and critics", "the same",
        partial(every_head_diverges, CONTINUOUS, ("Pendulum-v1", "MountainCarContinuous-v0")), asked=30,
        value="greatest weight",
    ),
]  # fmt: skip
