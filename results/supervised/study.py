"""Alrao as it was published, in supervised learning: beside SGD at powers of ten and Adam; 10 seeds.

    python results/supervised/study.py [-j 2]       (needs '.[supervised]', which is scikit-learn)

appends one row per finished run to runs.csv beside this file and skips the rows that are there, so it goes on where it
was cut off. Data come with scikit-learn and with Python. Same network, data order and number of epochs for all; the
score is the loss on held-out data, the mean of ten moments of the last epoch, in the unit of report.py. Where it is not
finite it is that of a guess that knows nothing, and the run is counted as diverged.
"""

from __future__ import annotations

import argparse
import csv
import math
import pydoc_data.topics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from torch import Tensor, nn

from alrao_rl import AlraoOptimizer, Output, convert
from alrao_rl.fast import kernels
from alrao_rl.runs import provenance

HERE = Path(__file__).parent
RUNS = HERE / "runs.csv"
COLUMNS = [
    "task", "method", "seed", "state", "loss", "last", "error", "largest", "seconds", "torch", "loops", "git_commit",
]  # fmt: skip
SEEDS = range(10)
MOMENTS = 10
"""Of the last epoch, at which the held-out loss is taken: a step that happens to be bad counts as often as such are."""
WIDE, RECURRENT = (-5, 1), (-3, 2)
"""Powers of ten that the rates lie between: the paper's interval, and its interval for LSTMs."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,:;()[]{}'`\"_=*+-/<>|#@%\n"


class CharacterLstm(nn.Module):
    """Logits of the next character after every character."""

    def __init__(self, n_characters: int, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_characters, 16)
        self.lstm = nn.LSTM(16, hidden, batch_first=True)
        self.output = nn.Linear(hidden, n_characters)

    def forward(self, characters: Tensor) -> Tensor:
        """``[B, T]`` to ``[B · T, n_characters]``."""
        return self.output(self.lstm(self.embedding(characters))[0].flatten(0, 1))


@dataclass(frozen=True)
class Task:
    """Data, network and length of one problem.

    Args:
        data: gives ``x_train, y_train, x_test, y_test`` for a seed, which also splits them.
        network: makes the network.
        output: name and kind of its output layer.
        epochs: passes through the training data.
        batch: examples a step.
        interval: powers of ten between which the rates lie, of SGD and of Alrao.
        only: the methods that are compared; all if there are none.
    """

    data: Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]
    network: Callable[[], nn.Module]
    output: tuple[str, str]
    epochs: int
    batch: int
    interval: tuple[int, int] = WIDE
    only: tuple[str, ...] = ()


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,797 images of 8 × 8, a quarter held out."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    return split(x, torch.tensor(labels), 0.25, seed)


def diabetes(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """442 patients, ten measurements each; targets of mean 0 and variance 1 in training."""
    measured, progression = load_diabetes(return_X_y=True)
    x = torch.tensor(measured, dtype=torch.float32) * math.sqrt(len(measured))
    return standardised(*split(x, torch.tensor(progression, dtype=torch.float32)[:, None], 0.25, seed))


def friedman(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Friedman's function of five of ten inputs with noise, 2,000 points, a quarter held out; targets as above."""
    inputs, outputs = make_friedman1(2_000, noise=1.0, random_state=seed)
    x, y = torch.tensor(inputs, dtype=torch.float32) * 2 - 1, torch.tensor(outputs, dtype=torch.float32)[:, None]
    return standardised(*split(x, y, 0.25, seed))


def text(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Python's help texts in stretches of 32 characters, each to be continued; 2,000 to learn from, 500 held out."""
    whole = "\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items())).lower()
    codes = torch.tensor([CHARACTERS.find(c) for c in whole if c in CHARACTERS])
    parts = codes[: len(codes) // 33 * 33].view(-1, 33)
    parts = parts[torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))[:2_500]]
    x, y = parts[:, :-1], parts[:, 1:]
    return x[500:], y[500:], x[:500], y[:500]


def standardised(
    x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets in units of their deviation in training."""
    mean, std = y_train.mean(), y_train.std()
    return x_train, (y_train - mean) / std, x_test, (y_test - mean) / std


def split(x: Tensor, y: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hold a share out at random."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = order[: int(share * len(x))], order[int(share * len(x)) :]
    return x[train], y[train], x[test], y[test]


def convolutional(unit: type[nn.Module] = nn.Tanh, normalised: bool = False, times: int = 1) -> nn.Module:
    """Two convolutions and two layers, of so many times their units, which are normalised before their activation."""

    def units(layer: nn.Conv2d | nn.Linear) -> list[nn.Module]:
        if not normalised:
            return [layer, unit()]
        n = layer.weight.shape[0]
        return [layer, nn.LayerNorm(n) if isinstance(layer, nn.Linear) else nn.GroupNorm(1, n), unit()]

    n, m, k = 16 * times, 32 * times, 64 * times
    return nn.Sequential(
        *units(nn.Conv2d(1, n, 3, padding=1)), nn.MaxPool2d(2), *units(nn.Conv2d(n, m, 3, padding=1)),
        nn.MaxPool2d(2), nn.Flatten(), *units(nn.Linear(4 * m, k)), nn.Linear(k, 10),
    )  # fmt: skip


def perceptron(n_inputs: int, n_outputs: int) -> nn.Module:
    """Two hidden layers of 64 units."""
    layers = [nn.Linear(n_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_outputs)]
    return nn.Sequential(nn.Flatten(), *layers)


TASKS = {
    "digits, MLP": Task(digits, lambda: perceptron(64, 10), ("5", "categorical"), 30, 32),
    "digits, ConvNet": Task(digits, convolutional, ("9", "categorical"), 15, 32),
    "help texts, LSTM": Task(text, lambda: CharacterLstm(len(CHARACTERS)), ("output", "categorical"), 6, 20, RECURRENT),
    "Friedman, MLP": Task(friedman, lambda: perceptron(10, 1), ("5", "values"), 30, 16),
    "diabetes, MLP": Task(diabetes, lambda: perceptron(10, 1), ("5", "values"), 60, 16),
}
for _name, _layer, _network in [
    ("ReLU", "9", partial(convolutional, nn.ReLU)),
    ("tanh, normalised", "12", partial(convolutional, nn.Tanh, normalised=True)),
    ("ReLU, normalised", "12", partial(convolutional, nn.ReLU, normalised=True)),
    ("four times the units", "9", partial(convolutional, times=4)),
]:
    _only = ("Alrao", "SGD 0.01", "SGD 0.1", "SGD 1")
    TASKS[f"digits, ConvNet with {_name}"] = Task(digits, _network, (_layer, "categorical"), 15, 32, only=_only)


def methods(task: Task) -> list[str]:
    """Names of what is compared."""
    low, high = task.interval
    return list(task.only) or ["Alrao", "Adam 1e-3", *(f"SGD {10.0**k:g}" for k in range(low, high + 1))]


def run(name: str, method: str, seed: int) -> dict[str, Any]:
    """Train once and return the row."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task, started = TASKS[name], time.perf_counter()
    x, y, x_test, y_test = task.data(seed)
    network = task.network()
    layer, kind = task.output
    guess = 1.0 if kind == "values" else math.log(network.get_submodule(layer).out_features)
    if method == "Alrao":
        low, high = task.interval
        options = {"base": "sgd", "lr_range": (10.0**low, 10.0**high), "seed": seed}
        convert(network, {layer: Output(kind, rule="switch")}, options)
        optimizer: Any = AlraoOptimizer(network)
    elif method.startswith("Adam"):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=float(method.split()[1]))

    def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets) if kind == "values" else F.cross_entropy(outputs, targets.flatten())

    def held_out() -> tuple[float, float]:
        """Loss, and share that is classified wrongly."""
        with torch.no_grad():
            outputs = network(x_test)
            loss = loss_of(outputs, y_test).item()
        wrong = math.nan if kind == "values" else (outputs.argmax(1) != y_test.flatten()).float().mean().item()
        return loss, wrong

    shuffle, scores = torch.Generator().manual_seed(seed), []
    for epoch in range(1, task.epochs + 1):
        batches = torch.randperm(len(x), generator=shuffle).split(task.batch)
        moments = {round(len(batches) * k / MOMENTS) for k in range(1, MOMENTS + 1)} if epoch == task.epochs else ()
        for step, batch in enumerate(batches, start=1):
            optimizer.zero_grad()
            loss = loss_of(network(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            if step in moments:
                scores.append(held_out())
    losses, wrong = np.array(scores).T
    finite = np.isfinite(losses)
    losses[~finite] = guess
    return {
        "task": name, "method": method, "seed": seed, "state": "finished" if finite.all() else "diverged",
        "loss": f"{losses.mean():.6g}", "last": f"{losses[-1]:.6g}",
        "error": "" if kind == "values" else f"{wrong.mean():.4f}", "largest": largest_unit(network, layer, x_test),
        "seconds": f"{time.perf_counter() - started:.1f}",
    }  # fmt: skip


@torch.no_grad()
def largest_unit(network: nn.Module, layer: str, x: Tensor) -> str:
    """The largest share of one unit in the mean square of what a chain's last hidden layer says."""
    if not isinstance(network, nn.Sequential):
        return ""
    squares = network[: int(layer)](x).square().mean(0)
    return f"{squares.max() / squares.sum():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-j", type=int, default=2, help="runs at a time")
    jobs = parser.parse_args().j
    facts = provenance.current("", "cpu", kernels.LOOPS)
    made_with = {"torch": facts["versions"]["torch"], "loops": facts["loops"], "git_commit": facts["git_commit"]}
    rows = list(csv.DictReader(RUNS.read_text().splitlines())) if RUNS.exists() else []
    done = {(row["task"], row["method"], int(row["seed"])) for row in rows}
    todo = [(t, m, s) for s in SEEDS for t in TASKS for m in methods(TASKS[t]) if (t, m, s) not in done]
    started = time.perf_counter()
    with ProcessPoolExecutor(jobs) as pool, RUNS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not rows and not file.tell():
            writer.writeheader()
        for n, future in enumerate(as_completed([pool.submit(run, *one) for one in todo]), start=1):
            row = future.result()
            writer.writerow(row | made_with)
            file.flush()
            left = (time.perf_counter() - started) / n * (len(todo) - n) / 60
            key = f"{row['task']} / {row['method']} / {row['seed']}"
            print(f"{n}/{len(todo)} {key}: {row['loss']} {row['state']} ({left:.0f} min left)", flush=True)


if __name__ == "__main__":
    main()
