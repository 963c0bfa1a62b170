"""Files by a stranger that would like to be executed: for every loader, as the real commands load them."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import command
from safetensors.torch import save

from alrao_rl.agents.file import _digest, read_agent
from alrao_rl.runs.checkpoint import FORMAT
from faults.damage import ALGO, ENV, interrupted
from faults.harness import Fault, Missed, Result, check
from faults.kill import STEPS, straight
from faults.processes import done

Command = list[object]
PAYLOADS: dict[str, Callable[[Path], Command]] = {}


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.target = place / "executed"

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def payload(prepare: Callable[[Path], Command]) -> Callable[[Path], Command]:
    """Puts files into an empty folder, which will be the current one; gives the command that a victim would use."""
    PAYLOADS[prepare.__name__.replace("_", "-")] = prepare
    return prepare


def evil_package(place: Path) -> None:
    """A package beside the file that names it."""
    (place / "evil.py").write_text(f"import os\nos.mkdir({str(place / 'executed')!r})\n")


def module(name: str, *args: object) -> Command:
    return [sys.executable, "-m", f"alrao_rl.{name}", *args]


# --- agents ---------------------------------------------------------------------------------------------------------


def agent(place: Path, change: Callable[[dict], object]) -> Path:
    """A trained agent with another header and an intact hash."""
    description, tensors = read_agent(straight(ALGO, ENV)[0] / "agent.safetensors")
    description = json.loads(json.dumps(description))
    change(description)
    description["sha256"] = _digest(save(tensors))
    path = place / "agent.safetensors"
    path.write_bytes(save(tensors, metadata={"alrao-rl": json.dumps(description)}))
    return path


@payload
def agent_that_is_a_pickle(place: Path) -> Command:
    (place / "agent.safetensors").write_bytes(pickle.dumps(Payload(place)))
    return module("enjoy", ".")


@payload
def agent_that_is_a_torch_file(place: Path) -> Command:
    torch.save({"policy": Payload(place)}, place / "agent.safetensors")
    return module("enjoy", "agent.safetensors")


@payload
def agent_that_is_a_zip_of_sb3(place: Path) -> Command:
    stock_zip(place)
    return module("enjoy", "model.zip")


@payload
def agent_with_a_serialized_option(place: Path) -> Command:
    import base64

    text = base64.b64encode(pickle.dumps(Payload(place))).decode()
    odd = {":type:": "<class 'function'>", ":serialized:": text}
    return module("enjoy", agent(place, lambda it: it["agent"]["policy_options"].update(activation_fn=odd)))


@payload
def agent_with_code_for_a_name(place: Path) -> Command:
    code = f"__import__('os').mkdir('{place / 'executed'}')"
    return module("enjoy", agent(place, lambda it: it["agent"]["policy_options"].update(activation_fn=code)))


@payload
def agent_that_names_a_package(place: Path) -> Command:
    evil_package(place)
    return module("enjoy", agent(place, lambda it: it["environment"].update(id="evil:Evil-v0")), "--episodes", 1)


@payload
def agent_that_names_a_wrapper(place: Path) -> Command:
    evil_package(place)
    wrappers = [{"name": "evil.Wrapper"}]
    return module("enjoy", agent(place, lambda it: it["environment"].update(wrappers=wrappers)), "--episodes", 1)


@payload
def pickle_beside_an_agent(place: Path) -> Command:
    agent(place, lambda _: None)
    for name in ("agent.json", "agent.pkl", "vecnormalize.pkl", "replay_buffer.pkl"):
        (place / name).write_bytes(pickle.dumps(Payload(place)))
    return module("enjoy", ".", "--episodes", 1)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def checkpoint(place: Path, change: Callable[[Path], object]) -> Command:
    """A run that goes on from checkpoints that were changed and whose manifests vouch for it."""
    shutil.copytree(interrupted(), place / "run")
    for folder in (place / "run" / "checkpoint").glob("step-*"):
        change(folder)
        files = [path for path in folder.iterdir() if path.name != "manifest.json"]
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}))
    from common import arguments

    return command(*arguments(ALGO, ENV, STEPS[ALGO]), "--out", "run")


@payload
def checkpoint_of_pickled_arrays(place: Path) -> Command:
    return checkpoint(place, lambda it: (it / "arrays.safetensors").write_bytes(pickle.dumps(Payload(place))))


@payload
def checkpoint_with_calls_in_its_state(place: Path) -> Command:
    call = {"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [str(place / "executed")]}]}

    def change(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        state["training"] |= {"policy": call, "torch": {"$call": ["os.mkdir", str(place / "executed")]}}
        (folder / "state.json").write_text(json.dumps(state))

    return checkpoint(place, change)


@payload
def replay_buffer_that_is_a_pickle(place: Path) -> Command:
    def change(folder: Path) -> None:
        np.save(folder / "replay_buffer.npy", np.array([Payload(place)], dtype=object), allow_pickle=True)
        (folder / "replay_buffer.pkl").write_bytes(pickle.dumps(Payload(place)))
        state = json.loads((folder / "state.json").read_text())
        state["training"]["replay_buffer"]["rows"]["observations"] = {"$array": "replay_buffer.npy"}
        (folder / "state.json").write_text(json.dumps(state))

    return checkpoint(place, change)


# --- recipes and sweeps ---------------------------------------------------------------------------------------------

AGENT = 'algo = "dqn"\npolicy = "stock"\n[policy_options]\n'


@payload
def recipe_with_code(place: Path) -> Command:
    code = f"__import__('os').mkdir('{place / 'executed'}')"
    (place / "a.toml").write_text(f"{AGENT}activation_fn = {json.dumps(code)}\n")
    return module("train", "--agent", "a.toml", "--env", ENV, "--timesteps", 10)


@payload
def recipe_with_a_class(place: Path) -> Command:
    evil_package(place)
    (place / "a.toml").write_text(f'{AGENT}features_extractor_class = "evil.Evil"\n')
    return module("train", "--agent", "a.toml", "--env", ENV, "--timesteps", 10)


@payload
def recipe_that_is_yaml(place: Path) -> Command:
    (place / "a.toml").write_text(f"algo: !!python/object/apply:os.mkdir ['{place / 'executed'}']\n")
    return module("train", "--agent", "a.toml", "--env", ENV, "--timesteps", 10)


@payload
def environment_file_that_names_a_package(place: Path) -> Command:
    evil_package(place)
    (place / "e.toml").write_text('id = "evil:Evil-v0"\n')
    return module("train", "--algo", "dqn", "--env", "e.toml", "--timesteps", 10)


@payload
def environment_file_that_names_a_wrapper(place: Path) -> Command:
    evil_package(place)
    (place / "e.toml").write_text(f'id = "{ENV}"\nwrappers = [{{name = "evil.Wrapper"}}]\n')
    return module("train", "--algo", "dqn", "--env", "e.toml", "--timesteps", 10)


SWEEP = 'name = "x"\nagents = ["dqn"]\nseeds = [0]\ntimesteps = 10\n'


@payload
def sweep_that_names_a_package(place: Path) -> Command:
    evil_package(place)
    (place / "s.toml").write_text(f'{SWEEP}envs = ["evil:Evil-v0"]\n')
    return module("sweep", "s.toml", "-j", 1)


@payload
def sweep_that_names_a_file_that_names_a_package(place: Path) -> Command:
    evil_package(place)
    (place / "e.toml").write_text('id = "evil:Evil-v0"\n')
    (place / "s.toml").write_text(f'{SWEEP}envs = ["e.toml"]\n')
    return module("sweep", "s.toml", "-j", 1)


@payload
def results_folder_with_a_sweep(place: Path) -> Command:
    evil_package(place)
    (place / "results" / "x").mkdir(parents=True)
    (place / "results" / "x" / "sweep.toml").write_text(f'{SWEEP}envs = ["evil:Evil-v0"]\n')
    return module("sweep", "--name", "x", "-j", 1)


# --- results --------------------------------------------------------------------------------------------------------


@payload
def results_folder_of_pickles(place: Path) -> Command:
    good = place / "results" / ENV / "dqn" / "seed-0"
    shutil.copytree(straight(ALGO, ENV)[0], good)
    (good / "sha256.json").unlink()
    (good / "heads.csv").write_bytes(pickle.dumps(Payload(place)))
    bad = good.with_name("seed-1")
    bad.mkdir()
    for name in ("config.json", "status.json", "episodes.csv", "evaluations.csv", "sha256.json"):
        (bad / name).write_bytes(pickle.dumps(Payload(place)))
    with zipfile.ZipFile(good.with_name("seed-2.zip"), "w") as file:
        for name in ("config.json", "../../../../executed", "/executed"):
            file.writestr(name, pickle.dumps(Payload(place)))
    (place / "results" / "runs.csv").write_bytes(pickle.dumps(Payload(place)))
    (place / "results" / "logs.jsonl.xz").write_bytes(lzma.compress(pickle.dumps(Payload(place))))
    return module("report", "results")


@payload
def results_folder_with_a_script(place: Path) -> Command:
    """For the browser of who reads the report."""
    good = place / "results" / ENV / "dqn" / "seed-0"
    shutil.copytree(straight(ALGO, ENV)[0], good)
    (good / "sha256.json").unlink()
    config = json.loads((good / "config.json").read_text())
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    config |= {"agent": evil, "env": config["env"] | {"id": evil}}
    config["provenance"]["command"] = config["provenance"]["versions"]["torch"] = evil
    (good / "config.json").write_text(json.dumps(config))
    return module("report", "results")


def execute(number: int, place: Path) -> Result:
    """Nothing is executed, and where it is refused, on one line."""
    name, prepare = list(PAYLOADS.items())[number]
    # The payload is a live one.
    control = place / "control"
    control.mkdir()
    pickle.loads(pickle.dumps(Payload(control)))
    check((control / "executed").exists(), "the payload does nothing")
    there = place / "there"
    there.mkdir()
    line = prepare(there)
    end = done(line, cwd=there)
    check(not (there / "executed").exists(), f"{name}: executed")
    check("Traceback" not in end.stderr, f"{name}: {end.stderr}")
    for path in there.rglob("report.html"):
        text = path.read_text().lower()
        check("<script>alert" not in text and "<img src=x" not in text, f"{name}: a script in the report")
    errors = [one for one in end.stderr.splitlines() if one.startswith("error: ")]
    check(end.returncode == 0 or len(errors) == 1, f"{name}: said {end.stderr!r}")
    return Result(detail=f"{name}: {errors[0] if errors else 'loaded, nothing executed'}")


# --- stock ----------------------------------------------------------------------------------------------------------


def stock_zip(place: Path) -> Path:
    """An SB3 model with a payload in its data."""
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    model.odd = Payload(place)
    model.save(place / "model.zip")
    shutil.rmtree(place / "executed", ignore_errors=True)
    return place / "model.zip"


def stock(number: int, place: Path) -> Result:
    """SB3's own loaders: model, replay buffer, statistics."""
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    what = ("model", "replay buffer", "VecNormalize")[number]
    path = place / "file.pkl"
    path.write_bytes(pickle.dumps(Payload(place)))
    try:
        if what == "model":
            PPO.load(stock_zip(place))
        elif what == "replay buffer":
            DQN("MlpPolicy", "CartPole-v1", buffer_size=10).load_replay_buffer(path)
        else:
            import gymnasium as gym

            VecNormalize.load(str(path), DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    except Exception as error:
        if not (place / "executed").exists():
            return Result(detail=f"{what}: {error}")
    if (place / "executed").exists():
        raise Missed(f"{what}: executed")
    return Result(detail=f"{what}: not executed")


FAULTS = [
    Fault(
        "payload",
        "agent, checkpoint, replay buffer, recipe, sweep file, results folder by a stranger",
        "nothing executed (no pickle is loaded at all; what a file names is imported with --trust only)",
        execute, asked=len(PAYLOADS), stock=stock, stock_asked=3,
    ),
]  # fmt: skip
