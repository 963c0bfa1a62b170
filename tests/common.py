"""What several tests need: real commands, small runs, and whether two of them are the same."""

import importlib.util
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from alrao_rl.runs import logs
from alrao_rl.runs.buffer_chunks import Ring, StoredRing
from alrao_rl.runs.folder import RunFolder
from alrao_rl.runs.names import RunName

ROOT = Path(__file__).parent.parent
ENVIRON = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
CONFIG = {
    "agent": "dqn", "algo": "dqn", "policy": "alrao", "env": {"id": "CartPole-v1"}, "hyperparameters": {},
    "timesteps": 1000, "seed": 0,
}  # fmt: skip
"""The least that a run's config.json holds."""
SAME = [f"{name}.{suffix}" for name in ("agent", "last") for suffix in ("json", "safetensors")]
SAME += ["episodes.csv", "evaluations.csv", "heads.csv", "entropy.csv"]
SMALL = """
algo = "dqn"
policy = "stock"
[hyperparameters]
learning_rate = 1e-3
learning_starts = 20
batch_size = 8
[policy_options]
net_arch = [8]
"""
"""An agent file whose runs take seconds."""
# What a cheap run needs; every part of an algorithm still has its turn.
FAST = ["--eval-episodes", "1", "--eval-budget", "5", "--quiet", "--set", "net_arch=[8]"]
HEADS = ["--set", "alrao.n_heads=3"]
DQN = ["learning_starts=100", "batch_size=8", "target_update_interval=50", "buffer_size=300", "gradient_steps=2"]
PPO = ["n_steps=32", "n_epochs=2", "n_envs=4", "batch_size=32"]
SAC = ["learning_starts=100", "batch_size=8", "buffer_size=300"]
SETTINGS = {
    "dqn": DQN, "ppo": PPO, "a2c": ["n_envs=4"], "qrdqn": [*DQN, "n_quantiles=3"],
    "recurrent-ppo": [*PPO, "lstm_hidden_size=4"],
    "sac": SAC, "tqc": [*SAC, "n_quantiles=5"], "crossq": SAC, "td3": SAC, "ddpg": SAC,
}  # fmt: skip


def arguments(agent, env, steps, *sets):
    """Of a run that is small but for its timesteps."""
    algo = agent.removesuffix("-adam").removesuffix("-rmsprop")
    args = ["--agent", agent, "--env", env, "--timesteps", str(steps), *FAST]
    if agent == algo:
        args += HEADS
    return args + [part for one in [*SETTINGS[algo], *sets] for part in ("--set", one)]


def command(*args):
    """The real one."""
    return [sys.executable, "-m", "alrao_rl.train", *map(str, args)]


def script(path):
    """A script that lies in no package, as a module."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bits(tree, path=""):
    """Every leaf of a tree with its path; clocks left out."""
    if isinstance(tree, dict):
        tree = tree.items()
    elif isinstance(tree, (list, tuple)):
        tree = enumerate(tree)
    elif isinstance(tree, Ring):
        yield path, tree.rows.tobytes()
        return
    elif isinstance(tree, StoredRing):
        array = np.empty(tree.shape, tree.dtype)
        tree.read_into(array)
        yield path, array.tobytes()
        return
    else:
        leaf = tree.detach().cpu().numpy() if isinstance(tree, torch.Tensor) else tree
        yield path, leaf.tobytes() if isinstance(leaf, (np.ndarray, np.generic)) else leaf
        return
    for key, value in tree:
        if not ("/episodes/ep_info_buffer" in path and key == "t"):
            yield from bits(value, f"{path}/{key}")


def logged(path):
    """Keep a run as a sweep does, in the study's logs, and remove its folder; the folder's path."""
    logs.append(path.parents[2], [(RunName.parse(path), RunFolder(path).kept())])
    shutil.rmtree(path)
    return path


def zipped(path):
    """The same as earlier versions did it, in a zip beside the folder; the zip's path."""
    packed = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in RunFolder(path).kept().items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    shutil.rmtree(path)
    return packed


def differing(one, two):
    """Keys in which two dicts differ."""
    return [key for key in one | two if one.get(key) != two.get(key)]


def same_files(one, two):
    """Two runs left the same files, ``timing.csv`` apart."""
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def flip(path, bit=12345):
    """Flip a bit of a file; a number beyond its end counts on from its beginning."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def one_error(main, capfd, *args, status=2):
    """Run a command in this process; all it prints is the one line of an error, which is returned."""
    assert main([*map(str, args)]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def dying(function, left, error):
    """The function, which raises the error once it, and others with the same list, were called ``left[0]`` times."""

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return function(*args, **kwargs)

    return call
