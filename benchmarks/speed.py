"""Training time of Alrao against stock Stable-Baselines3, as a ratio: ``python benchmarks/speed.py [--pairs 15]``.

Stock and Alrao train in turn, A B A B …, in one process with one torch thread, after a warm-up of each; the ratio of a
pair is that of its process times, and the table gives the median with its 95 % interval (of the median, by the binomial
distribution of its rank). The table goes to results/speed.md, every pair to results/speed.csv.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from alrao_rl import recipes
from alrao_rl.agent import build
from alrao_rl.envs import make_env

RESULTS = Path(__file__).parent.parent / "results"
STOCK = {"dqn": "dqn-adam", "a2c": "a2c-rmsprop", "ppo": "ppo-adam"}
STEPS = {"dqn": 3_000, "a2c": 8_000, "ppo": 4_096}
CASES = {
    "DQN, CartPole-v1, 64×64": ("dqn", "CartPole-v1", []),
    "A2C, CartPole-v1, 64×64": ("a2c", "CartPole-v1", []),
    "PPO, CartPole-v1, 64×64": ("ppo", "CartPole-v1", []),
    "DQN, CartPole-v1, 256×256": ("dqn", "CartPole-v1", ["net_arch=[256, 256]"]),
    "PPO, Pendulum-v1, 64×64": ("ppo", "Pendulum-v1", []),
}


def trainer(agent: str, env_id: str, overrides: list[str], steps: int):
    """A function that trains for ``steps`` more steps and returns the process seconds it took."""
    recipe = recipes.resolve(agent, env_id, overrides, steps, {})
    model = build(recipe.agent, make_env(recipe, 0, training=True), seed=0)
    if recipe.agent.algo == "dqn":
        model.learn(model.learning_starts + 100)  # nothing is learnt before

    def train() -> float:
        started = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        return time.process_time() - started

    return train


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median with its 95 % interval from order statistics."""
    ordered, n = np.sort(values), len(values)
    low = int(stats.binom.ppf(0.025, n, 0.5))
    return float(np.median(ordered)), float(ordered[max(low - 1, 0)]), float(ordered[min(n - low, n - 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| case | stock µs/step | Alrao µs/step | ratio (95 % interval) |", "|---|---|---|---|"]
    print(*lines, sep="\n", flush=True)
    rows = []
    for name, (algo, env_id, overrides) in CASES.items():
        if args.only not in name:
            continue
        steps = STEPS[algo]
        stock, alrao = (trainer(agent, env_id, overrides, steps) for agent in (STOCK[algo], algo))
        stock(), alrao()
        pairs = np.array([(stock(), alrao()) for _ in range(args.pairs)])
        rows += [(name, k, steps, *np.round(pair, 4)) for k, pair in enumerate(pairs)]
        middle, low, high = median_interval(pairs[:, 1] / pairs[:, 0])
        micro = np.median(pairs, axis=0) / steps * 1e6
        lines.append(f"| {name} | {micro[0]:.0f} | {micro[1]:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
        print(lines[-1], flush=True)
    if args.only:
        return
    with (RESULTS / "speed.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("case", "pair", "steps", "stock_seconds", "alrao_seconds"), *rows])
    (RESULTS / "speed.md").write_text(
        "# Training time against stock Stable-Baselines3\n\n"
        "Process time per environment step, ten heads, one torch thread; stock and Alrao in turn in one process; "
        f"medians of {args.pairs} pairs. Torch {torch.__version__}. Remake: `make bench`. Raw pairs: `speed.csv`.\n\n"
        + "\n".join(lines) + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
