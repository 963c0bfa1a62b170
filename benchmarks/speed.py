"""What Alrao costs beside stock Stable-Baselines3: ``python benchmarks/speed.py [--pairs 41] [--only NAME]``.

Stock and Alrao train in turn, A B A B …, in one process with one torch thread, after a warm-up of each. The ratio of a
pair is that of its process times; the tables give medians with their 95 % interval (of the median, by the binomial
distribution of its rank). Everything goes to results/speed.md, every pair to results/speed.csv.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import io
import os
import platform
import pstats
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import update
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from scipy import stats
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from alrao_rl import AlraoCnnPolicy, AlraoMaskablePolicy, AlraoPolicy
from alrao_rl.agents.build import build
from alrao_rl.core import OutputHeads
from alrao_rl.environments.make import make_env
from alrao_rl.fast import AlraoOptimizer, convert
from alrao_rl.recipes.resolve import resolve
from alrao_rl.sb3.extractors import AlraoNatureCNN

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
STOCK = {"dqn": "dqn-adam", "a2c": "a2c-rmsprop", "ppo": "ppo-adam"}
PLAYED = {"dqn": "CartPole-v1", "a2c": "CartPole-v1", "ppo": "CartPole-v1", "sac": "Pendulum-v1", "td3": "Pendulum-v1"}
# Short: what else a machine does changes within seconds, and a ratio is that of neighbours in time.
STEPS = {"dqn": 400, "a2c": 4_000, "ppo": 2_048}
WIDE = "net_arch=[256, 256]"
DEVICE = "cpu"

Pair = tuple[Callable[[], object], Callable[[], object]]
Models = tuple[BaseAlgorithm, BaseAlgorithm]


# --- cases ----------------------------------------------------------------------------------------------------------


def make(agent: str, env_id: str, *overrides: str) -> BaseAlgorithm:
    """A model that has begun to learn: DQN's running average takes in every update of the first 200, then fewer."""
    recipe = resolve(agent, env_id, overrides, 1, {})
    model = build(recipe.agent, make_env(recipe, 0, training=True), seed=0, device=DEVICE)
    if isinstance(model, OffPolicyAlgorithm):
        model.learn(model.learning_starts + (1_000 if hasattr(model, "exploration_rate") else 200))
    return model


def training(algo: str, env_id: str, *overrides: str, alrao: tuple[str, ...] = ()) -> Models:
    """The stock model and Alrao's."""
    return make(STOCK.get(algo, f"{algo}-adam"), env_id, *overrides), make(algo, env_id, *overrides, *alrao)


def spaces(make_one: Callable[[], gym.Env], algorithm: Any = PPO, alrao: Any = AlraoPolicy) -> Models:
    """On an environment that takes no time, with as many steps a rollout as the recipes of PPO."""
    env = DummyVecEnv([make_one] * 8)
    stock, ours = (algorithm(policy, env, n_steps=256, device=DEVICE) for policy in ("MlpPolicy", alrao))
    return stock, ours


def quantiles(n: int) -> Models:
    """QR-DQN, whose output layer, and so every one of its copies, has n numbers for each action."""
    return training("qrdqn", "CartPole-v1", f"n_quantiles={n}")


def images() -> Models:
    """A2C on synthetic frames, 84×84×4, with the layers of NatureCNN; tanh in both, as in all comparisons."""
    env = DummyVecEnv([lambda: FakeImageEnv(n_channels=4, discrete=True, channel_first=True)] * 8)
    bounded = {"features_extractor_class": AlraoNatureCNN, "net_arch": []}
    return A2C("CnnPolicy", env, device=DEVICE, policy_kwargs=bounded), A2C(AlraoCnnPolicy, env, device=DEVICE)


def recurrent() -> Pair:
    """Regression with an LSTM on sequences of 32, batch 64: torch alone."""
    x, y = torch.randn(32, 64, 16), torch.randn(32, 64, 4)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(16, 64), nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.lstm(x)[0])

    def trainer(network: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        def train() -> None:
            for _ in range(20):
                optimizer.zero_grad()
                F.mse_loss(network(x), y).backward()
                optimizer.step()

        return train

    stock, alrao = Network(), convert(Network(), {"out": "values"})
    return trainer(stock, torch.optim.Adam(stock.parameters())), trainer(alrao, AlraoOptimizer(alrao))


CASES: dict[str, tuple[Callable[[], Models], int]] = {
    "DQN, CartPole-v1, 64×64": (lambda: training("dqn", "CartPole-v1"), STEPS["dqn"]),
    "A2C, CartPole-v1, 64×64": (lambda: training("a2c", "CartPole-v1"), STEPS["a2c"]),
    "PPO, CartPole-v1, 64×64": (lambda: training("ppo", "CartPole-v1"), STEPS["ppo"]),
    "DQN, CartPole-v1, 256×256": (lambda: training("dqn", "CartPole-v1", WIDE), 200),
    "A2C, CartPole-v1, 256×256": (lambda: training("a2c", "CartPole-v1", WIDE), 2_000),
    "PPO, CartPole-v1, 256×256": (lambda: training("ppo", "CartPole-v1", WIDE), 2_048),
    "DQN, LunarLander-v3": (lambda: training("dqn", "LunarLander-v3"), STEPS["dqn"]),
    "A2C, LunarLander-v3": (lambda: training("a2c", "LunarLander-v3"), 2_000),
    "PPO, LunarLander-v3": (lambda: training("ppo", "LunarLander-v3"), STEPS["ppo"]),
    "A2C, Pendulum-v1": (lambda: training("a2c", "Pendulum-v1"), STEPS["a2c"]),
    "PPO, Pendulum-v1": (lambda: training("ppo", "Pendulum-v1"), STEPS["ppo"]),
    "A2C, images 84×84×4": (images, 80),
    "PPO, Pendulum-v1, gSDE": (lambda: training("ppo", "Pendulum-v1", "use_sde=true"), STEPS["ppo"]),
    "PPO, MultiDiscrete([4, 4])": (lambda: spaces(lambda: IdentityEnvMultiDiscrete(4)), STEPS["ppo"]),
    "PPO, MultiBinary(4)": (lambda: spaces(lambda: IdentityEnvMultiBinary(4)), STEPS["ppo"]),
    "PPO, Discrete(200)": (lambda: spaces(lambda: IdentityEnv(200)), STEPS["ppo"]),
    "MaskablePPO, Discrete(4)": (
        lambda: spaces(lambda: InvalidActionEnvDiscrete(4, n_invalid_actions=1), MaskablePPO, AlraoMaskablePolicy),
        STEPS["ppo"],
    ),
    **{
        f"QR-DQN, CartPole-v1, {n} quantiles": (partial(quantiles, n), steps)
        for n, steps in {25: 200, 50: 200, 100: 100, 200: 40}.items()
    },
    "RecurrentPPO, CartPoleNoVel-v1": (lambda: training("recurrent-ppo", "CartPoleNoVel-v1"), 1_024),
    **{
        f"{name}, Pendulum-v1, 256×256": (partial(training, name.lower(), "Pendulum-v1", WIDE), 80)
        for name in ("SAC", "TD3", "DDPG", "TQC", "CrossQ")
    },
    "SAC, Pendulum-v1, 256×256, ReLU": (lambda: training("sac", "Pendulum-v1", WIDE, "activation_fn=relu"), 80),
    "SAC, Pendulum-v1, 64×64": (lambda: training("sac", "Pendulum-v1", "net_arch=[64, 64]"), 200),
}
BROKEN_DOWN = ("DQN, CartPole-v1, 64×64", "A2C, CartPole-v1, 64×64", "PPO, CartPole-v1, 64×64")


# --- measuring ------------------------------------------------------------------------------------------------------


def median(values: np.ndarray) -> str:
    """Median with its 95 % interval from order statistics."""
    ordered, n = np.sort(values), len(values)
    low = int(stats.binom.ppf(0.025, n, 0.5))
    return f"{np.median(ordered):.2f} ({ordered[max(low - 1, 0)]:.2f} to {ordered[min(n - low, n - 1)]:.2f})"


def learn(model: BaseAlgorithm, steps: int) -> Callable[[], object]:
    """A function that trains for ``steps`` more steps."""
    return lambda: model.learn(steps, reset_num_timesteps=False)


class Pairs:
    """Runs pairs and keeps their times: process and wall seconds of stock and Alrao."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.rows: list[tuple[str, int, float, float, float, float]] = []

    def run(self, name: str, pair: Pair) -> np.ndarray:
        """Times ``[n, 4]`` of a case after a warm-up: process seconds of stock and Alrao, wall seconds of both."""

        def times(function: Callable[[], object]) -> tuple[float, float]:
            wall, process = time.perf_counter(), time.process_time()
            function()
            if DEVICE != "cpu":
                torch.cuda.synchronize()
            return time.process_time() - process, time.perf_counter() - wall

        for function in pair:
            function()
        found = []
        for k in range(self.n):
            (stock, stock_wall), (alrao, alrao_wall) = (times(function) for function in pair)
            found.append((stock, alrao, stock_wall, alrao_wall))
            self.rows.append((name, k, *(round(value, 5) for value in found[-1])))
        return np.array(found)


@contextmanager
def stopwatch(model: BaseAlgorithm) -> Iterator[dict[str, float]]:
    """Seconds of each part of training while it is open; the averaging is part of the optimizer's."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - started

        return call

    def batches(function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
            iterator = function(*args, **kwargs)
            while True:
                started = time.perf_counter()
                batch = next(iterator, None)
                seconds["sampling"] += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

        return call

    policy = model.policy
    places = [
        (model.env, "step", "environment"),
        (policy.optimizer, "step", "optimizer"),
        (torch.nn.utils, "clip_grad_norm_", "clipping"),
        (torch.Tensor, "backward", "backward"),
        *[
            (layer, "update_averaging", "of which averaging")
            for layer in policy.modules()
            if type(layer) is OutputHeads
        ],
    ]
    replay = getattr(model, "replay_buffer", None)
    places.append((model, "predict", "acting") if replay is not None else (policy, "forward", "acting"))
    if replay is not None:
        places.append((replay, "sample", "sampling"))
    patches = [mock.patch.object(thing, name, timed(part, getattr(thing, name))) for thing, name, part in places]
    if replay is None:
        patches.append(mock.patch.object(model.rollout_buffer, "get", batches(model.rollout_buffer.get)))
    started = time.perf_counter()
    for patch in patches:
        patch.start()
    try:
        yield seconds
    finally:
        for patch in patches:
            patch.stop()
        total = time.perf_counter() - started
        known = sum(value for part, value in seconds.items() if not part.startswith("of which"))
        seconds["forward, loss, the rest"] = total - known


def breakdown(models: Models, steps: int) -> str:
    """Table of µs a step by part: the least of five runs of each, stock and Alrao in turn."""
    found: list[dict[str, float]] = [{}, {}]
    for _ in range(5):
        for model, least in zip(models, found, strict=True):
            with stopwatch(model) as seconds:
                model.learn(steps, reset_num_timesteps=False)
            for part, value in seconds.items():
                least[part] = min(least.get(part, np.inf), value / steps * 1e6)
    parts = ["acting", "environment", "sampling", "forward, loss, the rest", "backward", "clipping", "optimizer"]
    lines = ["| µs a step | stock | Alrao | difference |", "|---|---|---|---|"]
    for part in [*parts, "of which averaging"]:
        stock, alrao = (one.get(part, 0.0) for one in found)
        lines.append(f"| {part} | {stock:.1f} | {alrao:.1f} | {alrao - stock:+.1f} |")
    return "\n".join(lines)


def profile(model: BaseAlgorithm, steps: int) -> str:
    """The ten heaviest rows by own time."""
    profiler = cProfile.Profile()
    profiler.runcall(model.learn, steps, reset_num_timesteps=False)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(10)
    lines = [line for line in text.getvalue().splitlines() if line.strip()]
    start = next(i for i, line in enumerate(lines) if "ncalls" in line)
    rows = [re.sub(r"\S*/(site-packages|lib/python[\d.]+|alrao_rl)/", "", line) for line in lines[start:]]
    return "```\n" + "\n".join(rows) + "\n```"


def predict(models: Models) -> Pair:
    """A thousand predictions for one observation."""
    observation = np.zeros(models[0].observation_space.shape, np.float32)

    def calls(model: BaseAlgorithm) -> Callable[[], object]:
        return lambda: [model.predict(observation, deterministic=True) for _ in range(1_000)]

    return calls(models[0]), calls(models[1])


def optimizers(policy: Any) -> list[torch.optim.Optimizer]:
    """Of the whole policy, or of actor and critics."""
    one = getattr(policy, "optimizer", None)
    return [policy.actor.optimizer, policy.critic.optimizer] if one is None else [one]


MEMORY = """
import pathlib, sys, torch
sys.path.insert(0, {folder!r})
import speed
torch.set_num_threads(1)
model = speed.make({agent!r}, {env_id!r}, {width!r})
model.learn(2000, reset_num_timesteps=False)
policy = model.policy
size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
state = [t for one in speed.optimizers(policy) for values in one.state.values() for t in values.values()]
heads = [m.theta for m in policy.modules() if isinstance(m, speed.OutputHeads)]
more = size(heads) * (1 - 1 / heads[0].shape[0]) if heads else 0
# Not getrusage, which counts what the parent process had at the fork.
peak = pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]
print(int(peak) / 1024, size(policy.parameters()), size(state), more)
"""


def memory() -> str:
    """Peak memory of a process that trains, and the bytes of parameters and of the optimizer's state."""
    lines = [
        "| case | | peak RSS, MB | parameters, kB | optimizer state, kB | of the parameters, further heads, kB |",
        "|---|---|---|---|---|---|",
    ]
    for algo, env_id in PLAYED.items():
        for name, agent in (("stock", STOCK.get(algo, f"{algo}-adam")), ("Alrao", algo)):
            script = MEMORY.format(folder=str(Path(__file__).parent), agent=agent, env_id=env_id, width=WIDE)
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            rss, parameters, state, more = map(float, done.stdout.split())
            numbers = f"{rss:.0f} | {parameters / 1e3:.0f} | {state / 1e3:.0f} | {more / 1e3:.0f}"
            lines.append(f"| {algo.upper()}, {env_id}, 256×256 | {name} | {numbers} |")
    return "\n".join(lines)


def start_up() -> str:
    """Seconds until a command answers, and what the import adds to torch and SB3: medians of seven processes."""
    train = [sys.executable, "-m", "alrao_rl.train"]
    imports = "import time, torch, stable_baselines3; t = time.perf_counter(); import alrao_rl; alrao_rl.AlraoPolicy; "
    commands = {
        "`import alrao_rl` and AlraoPolicy, beyond torch and SB3": [
            sys.executable, "-c", imports + "print(time.perf_counter() - t)",
        ],
        "`--help`": [*train, "--help"],
        "`--list`": [*train, "--list"],
        "`--dry-run`": [*train, "--algo", "dqn", "--env", "CartPole-v1", "--dry-run"],
    }  # fmt: skip
    lines = ["| start-up | seconds |", "|---|---|"]
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for name, command in commands.items():
        found = []
        for _ in range(7):
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=usual)
            found.append(float(done.stdout) if "import" in name else time.perf_counter() - started)
        lines.append(f"| {name} | {np.median(found):.2f} |")
    return "\n".join(lines)


# --- report ---------------------------------------------------------------------------------------------------------


def main() -> None:
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=41, help="pairs a case (default 41)")
    parser.add_argument("--only", default="", help="training cases whose name contains this, and no report")
    parser.add_argument("--device", default=DEVICE, help="of training cases, such as cuda, and no report")
    args = parser.parse_args()
    DEVICE = args.device
    partial_run = bool(args.only) or DEVICE != "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    pairs = Pairs(args.pairs)
    sections: list[str] = []

    def tell(text: str) -> None:
        print(text, flush=True)
        sections.append(text)

    tell("| case | stock µs/step | Alrao µs/step | ratio, process time | ratio, wall time |\n|---|---|---|---|---|")
    details = []
    for name, (models_of, steps) in CASES.items():
        if args.only not in name:
            continue
        models = models_of()
        times = pairs.run(name, (learn(models[0], steps), learn(models[1], steps)))
        micro = np.median(times, axis=0) / steps * 1e6
        ratios = f"{median(times[:, 1] / times[:, 0])} | {median(times[:, 3] / times[:, 2])}"
        tell(f"| {name} | {micro[0]:.0f} | {micro[1]:.0f} | {ratios} |")
        if not partial_run:
            parts = breakdown(models, steps) + "\n\n" if name in BROKEN_DOWN else ""
            details.append(f"### {name}\n\n{parts}Ten heaviest functions of Alrao:\n\n{profile(models[1], steps)}")
    if partial_run:
        return
    times = pairs.run("LSTM, sequences of 32, core alone", recurrent())
    micro = np.median(times, axis=0) / 20 * 1e6
    ratios = f"{median(times[:, 1] / times[:, 0])} | {median(times[:, 3] / times[:, 2])}"
    tell(f"| LSTM, sequences of 32, core alone (µs/update) | {micro[0]:.0f} | {micro[1]:.0f} | {ratios} |")

    tell("\n## Number of heads\n\nPPO on CartPole-v1, 64×64; ratio to one head.\n")
    tell("| heads | µs/step with one | µs/step | ratio, process time |\n|---|---|---|---|")
    one = make("ppo", "CartPole-v1", "alrao.n_heads=1")
    for n in (10, 30, 100):
        many = make("ppo", "CartPole-v1", f"alrao.n_heads={n}")
        times = pairs.run(f"PPO, {n} heads against 1", (learn(one, 2_048), learn(many, 2_048)))
        micro = np.median(times, axis=0) / 2_048 * 1e6
        tell(f"| {n} | {micro[0]:.0f} | {micro[1]:.0f} | {median(times[:, 1] / times[:, 0])} |")

    tell("\n## One prediction\n\n`predict(observation, deterministic=True)`, networks of the recipes.\n")
    tell("| case | stock µs | Alrao µs | ratio, process time |\n|---|---|---|---|")
    for algo, env_id in PLAYED.items():
        times = pairs.run(f"{algo.upper()}, predict", predict(training(algo, env_id)))
        micro = np.median(times, axis=0) * 1e3
        tell(f"| {algo.upper()}, {env_id} | {micro[0]:.0f} | {micro[1]:.0f} | {median(times[:, 1] / times[:, 0])} |")
    tell(f"\n## Memory\n\n{memory()}")
    tell(f"\n## Start-up\n\n{start_up()}")
    tell("\n## One update, line by line\n\nTenth percentiles of 1,500 updates (`benchmarks/update.py`).")
    for algo, one_update, env_id in update.UPDATES:
        models = training(algo, env_id, "net_arch=[64, 64]")
        for model in models:
            model.learn(2_048, reset_num_timesteps=False)
        tell(f"\n### {algo.upper()}, {env_id}, 64×64\n\n{update.table(one_update, *models)}")
    tell("\n## Where the time goes\n\n" + "\n\n".join(details))

    with (RESULTS / "speed.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("case", "pair", "stock_seconds", "alrao_seconds", "stock_wall_seconds", "alrao_wall_seconds"))
        writer.writerows(pairs.rows)
    notes = (Path(__file__).parent / "notes.md").read_text()
    (RESULTS / "speed.md").write_text(
        "# Time and memory against stock Stable-Baselines3\n\n"
        "Process time per environment step, ten heads, one torch thread; stock (Adam; RMSprop for A2C) and Alrao in "
        f"turn in one process; medians of {args.pairs} pairs with 95 % intervals. Torch {torch.__version__}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores. Remake: `make bench`. Raw pairs: `speed.csv`.\n\n"
        + "\n".join(sections) + "\n\n" + notes
    )  # fmt: skip


if __name__ == "__main__":
    main()
