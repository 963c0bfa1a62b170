"""Which units for convolutions whose rates may be far too large? Bounded ones, a normalisation, both, neither.

    python results/minatar/units.py

trains DQN with Alrao (dqn.toml) on MinAtar Breakout for its first 30,000 steps at ten seeds, appends one row per run
to units.csv beside this file and skips the rows that are there, so it goes on where it was cut off. What a row says of
the run: the return averaged over its steps and over the last fifth of them; the median norms of the gradients of the
convolution and of the layer behind it; the share of those two layers' units that pass (almost) no gradient on at its
end; how many heads were lost because they were not finite. At the end it prints the table of README.md.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from alrao_rl import AlraoCnnPolicy, stats
from alrao_rl.agents.build import policy_kwargs
from alrao_rl.environments.make import make_env
from alrao_rl.recipes.resolve import resolve
from alrao_rl.sb3.extractors import AlraoMinAtarCNN

HERE = Path(__file__).parent
RUNS = HERE / "units.csv"
ENV, TIMESTEPS, SEEDS = "MinAtar/Breakout-v1", 30_000, range(10)


class Normalised(AlraoMinAtarCNN):
    """A normalisation of each image's units, by layer, before their activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cnn.insert(1, nn.GroupNorm(1, 16))
        self.linear.insert(1, nn.LayerNorm(self.features_dim))


VARIANTS: Mapping[str, tuple[type[AlraoMinAtarCNN], type[nn.Module]]] = {
    "tanh": (AlraoMinAtarCNN, nn.Tanh),
    "relu": (AlraoMinAtarCNN, nn.ReLU),
    "tanh, normalised": (Normalised, nn.Tanh),
    "relu, normalised": (Normalised, nn.ReLU),
}


class Watch(BaseCallback):
    """Collects episodes, and the gradients that the last update before a rollout has left."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []
        self.norms: list[tuple[float, float]] = []

    def _on_step(self) -> bool:
        infos = [info["episode"] for info in self.locals["infos"] if "episode" in info]
        self.episodes += [(self.num_timesteps, episode["r"]) for episode in infos]
        return True

    def _on_rollout_start(self) -> None:
        network = self.model.policy.q_net.features_extractor
        gradients = [layer[0].weight.grad for layer in (network.cnn, network.linear)]
        if all(gradient is not None for gradient in gradients):
            self.norms.append(tuple(float(gradient.norm()) for gradient in gradients))


def idle_units(model: DQN, n: int = 1_000) -> list[float]:
    """Share of the units of both layers whose slope is below 1 % on observations of the replay buffer."""
    shares = []
    images = torch.as_tensor(model.replay_buffer.sample(n).observations).float() / 255
    for layer in (model.policy.q_net.features_extractor.cnn, model.policy.q_net.features_extractor.linear):
        *before, unit = [module for module in layer if not isinstance(module, nn.Flatten)]
        inputs = nn.Sequential(*before)(images).detach().requires_grad_()
        outputs = unit(inputs)
        (slopes,) = torch.autograd.grad(outputs.sum(), inputs)
        shares.append(float((slopes.abs() < 0.01).float().mean()))
        images = outputs.detach().flatten(1)
    return shares


def run(variant: str, seed: int) -> dict[str, Any]:
    """Train once and return the row."""
    extractor, unit = VARIANTS[variant]
    recipe = resolve(str(HERE / "dqn.toml"), ENV, timesteps=TIMESTEPS)
    env = make_env(recipe, seed, training=True)
    kwargs = policy_kwargs(recipe.agent, env.observation_space) | {
        "features_extractor_class": extractor,
        "features_extractor_kwargs": {"activation_fn": unit},
    }
    watch, started = Watch(), time.perf_counter()
    model = DQN(AlraoCnnPolicy, env, seed=seed, device="cpu", policy_kwargs=kwargs, **recipe.agent.hyperparameters)
    model.learn(TIMESTEPS, callback=watch)
    scored = (*np.array(watch.episodes).T, TIMESTEPS, recipe.environment.floor)
    norms, idle = np.median(watch.norms, axis=0), idle_units(model)
    return {
        "variant": variant,
        "seed": seed,
        "timesteps": TIMESTEPS,
        "auc": round(stats.auc(*scored), 3),
        "final": round(stats.final_return(*scored), 3),
        "gradient_convolution": f"{norms[0]:.2e}",
        "gradient_linear": f"{norms[1]:.2e}",
        "idle_convolution": round(idle[0], 3),
        "idle_linear": round(idle[1], 3),
        "lost": int(model.policy.alrao_stats()["q_net"]["lost"].sum()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(runs: pd.DataFrame) -> str:
    """A row a variant, as Markdown: means with 95 % intervals, medians of norms and times."""
    of_tanh = runs[runs.variant == "tanh"].set_index("seed").auc
    lines = [
        "| units | over training | last fifth | less tanh, by seed | gradient of convolution, of linear | "
        "idle in convolution, linear | heads lost | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        rows = runs[runs.variant == name].set_index("seed")
        idle = [f"{100 * rows[column].mean():.0f} %" for column in ("idle_convolution", "idle_linear")]
        norms = [f"{rows[column].median():.3f}" for column in ("gradient_convolution", "gradient_linear")]
        less = "" if name == "tanh" else interval(rows.auc - of_tanh)
        cells = [interval(rows.auc), interval(rows.final), less, ", ".join(norms), ", ".join(idle), rows.lost.sum()]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {rows.seconds.median():.0f} |")
    return "\n".join(lines)


def interval(values: pd.Series) -> str:
    """Mean and half width of its 95 % interval (Student's t)."""
    return stats.mean_interval(values).plus_minus(2)


def main() -> None:
    torch.set_num_threads(1)
    done = set()
    if RUNS.exists():
        with RUNS.open() as file:
            done = {(row["variant"], int(row["seed"])) for row in csv.DictReader(file)}
    for seed, variant in product(SEEDS, VARIANTS):
        if (variant, seed) in done:
            continue
        row = run(variant, seed)
        new = not RUNS.exists()
        with RUNS.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
    print(table(pd.read_csv(RUNS)))


if __name__ == "__main__":
    main()
