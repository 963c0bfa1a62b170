"""Write a trained agent in another format: ``python -m alrao_rl.export RUN --to sb3``.

``sb3``: Stable-Baselines3's own zip, for ``DQN.load`` and the like, in programs that do not use alrao_rl's files. If
the agent was trained on normalised observations, their statistics are written next to it in SB3's form, a pickled
``VecNormalize``.

SB3's ``load`` unpickles both, which executes what is in them. Load only files from someone you trust.

``onnx``: the averaged model as a graph for ONNX Runtime and the like, from raw observations, images with their channels
first, to ``action``, as ``predict(observation, deterministic=True)`` gives it, and ``scores``: Q-values of all actions,
their logits (log-probabilities, of Discrete and MultiDiscrete actions of an Alrao agent), or the mean. Inputs are named
after the parts of a Dict observation, others ``observation``; a part named ``action`` becomes ``action_input``.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alrao_rl.cli.console import CommandLine, print_error, say
from alrao_rl.errors import UserError, first_line
from alrao_rl.runs.atomic import write_atomically

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from alrao_rl.agents.acting import Statistics

_MARK = b"written by alrao_rl.export"
"""Marks exported files, which may be overwritten."""


def parser() -> CommandLine:
    """The command line."""
    p = CommandLine(
        prog="python -m alrao_rl.export",
        description="Write a trained agent in another format. sb3: a zip for DQN.load, A2C.load or PPO.load, and, if "
        "its observations are normalised, their statistics for VecNormalize.load next to it. Loading those executes "
        "what is in them: load only files from someone you trust. onnx: the averaged model, from raw observations to "
        "actions and their scores.",
    )
    p.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run folder, such as results/train/CartPole-v1/dqn/seed-0, or a .safetensors file",
    )
    p.add_argument("--to", required=True, choices=("sb3", "onnx"), help="the format")
    p.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: next to the agent)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for a mistake in the arguments."""
    try:
        args = parser().parse_args(argv)
        {"sb3": to_sb3, "onnx": to_onnx}[args.to](args.run, args.out)
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def to_sb3(run: Path, out: Path | None = None) -> None:
    """Write SB3's zip, and ``NAME_vecnormalize.pkl`` next to it if observations are normalised.

    Args:
        run: a run folder, whose best agent is taken, or the path of an agent's ``.safetensors`` file.
        out: where to, ending in ``.zip``; None for next to the agent. An earlier export is replaced.

    Raises:
        UserError: if there is no such agent, another file is in the place, or it cannot be written.
    """
    from alrao_rl.agents.file import agent_path, rebuild

    path = agent_path(run)
    target = out or path.with_suffix(".zip")
    if target.suffix != ".zip":
        raise UserError(f"--out is {str(target)!r}, expected a file name that ends in .zip, as SB3 expects it")
    sidecar = target.with_name(f"{target.stem}_vecnormalize.pkl")
    model, statistics = rebuild(path)
    _refuse_to_overwrite(target, sidecar)
    try:
        write_atomically(target, _zip(model))
        sidecar.unlink(missing_ok=True)  # an earlier agent's
        if statistics:
            write_atomically(sidecar, pickle.dumps(_normalizer(model, statistics)))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another file with --out") from None
    kind = type(model)
    loader = f"{kind.__module__.partition('.')[0]}.{kind.__name__}.load"
    say(f"written: {target}, for {loader}, which executes what is in it")
    if statistics:
        say(f"written: {sidecar}, for VecNormalize.load, which does too: the agent takes observations normalised by it")


def to_onnx(run: Path, out: Path | None = None) -> None:
    """Write the averaged model as an ONNX graph.

    Args:
        run: a run folder, whose best agent is taken, or the path of an agent's ``.safetensors`` file.
        out: where to, ending in ``.onnx``; None for next to the agent. An earlier export is replaced.

    Raises:
        UserError: if there is no such agent, its algorithm cannot be exported, onnx is not installed, another file is
            in the place, or it cannot be written.
    """
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import is_image_space

    from alrao_rl.agents.file import agent_path, rebuild
    from alrao_rl.recipes.algorithms import ALGORITHMS

    path = agent_path(run)
    target = out or path.with_suffix(".onnx")
    if target.suffix != ".onnx":
        raise UserError(f"--out is {str(target)!r}, expected a file name that ends in .onnx")
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise UserError("--to onnx needs onnx and onnxscript; install them with: pip install 'alrao-rl[export]'")
    model, statistics = rebuild(path)
    served = [row.cls for row in ALGORITHMS.values() if row.exports_onnx]
    if (name := type(model).__name__) not in served:
        raise UserError(f"--to onnx does not support {name}, expected {', '.join(served)}; --to sb3 does")
    if target.exists() and (not target.is_file() or _MARK not in target.read_bytes()[:200]):
        raise UserError(f"{target} exists already and is not an export of alrao-rl: choose another file with --out")
    data, inputs = _graph(model, statistics)
    try:
        write_atomically(target, data)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another file with --out") from None
    say(f"written: {target}, from {', '.join(inputs)} to action, scores")
    space = model.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    images = [
        f"{name} (batch, {', '.join(map(str, part.shape or ()))})"
        for name, part in zip(inputs, parts, strict=True)
        if is_image_space(part)
    ]
    if images:
        say(f"images have their channels first, whatever the environment's order: {', '.join(images)}")


def _graph(model: BaseAlgorithm, statistics: Statistics) -> tuple[bytes, list[str]]:
    """The ONNX file, and the names of its inputs."""
    import numpy as np
    import torch
    from gymnasium import spaces

    from alrao_rl.sb3.inference import Acting

    space = model.observation_space
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
    examples = tuple(torch.as_tensor(np.stack([part.sample(), part.sample()])) for part in parts.values())
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    outputs = ["action", "scores"]
    inputs = [f"{name}_input" if name in outputs else name for name in parts]
    if len(set(inputs)) < len(inputs):
        raise UserError(f"--to onnx cannot name its inputs {', '.join(inputs)}: rename a part of the observations")
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)  # it warns about torchvision, which is not needed here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Acting(model.policy, statistics), examples, dynamo=True, verbose=False, dynamic_shapes=(batch,),
                input_names=inputs, output_names=outputs,
            )  # fmt: skip
    except Exception as error:  # a user's own extractor may hold anything
        raise UserError(f"--to onnx cannot follow the network: {first_line(error)}; --to sb3 can") from None
    finally:
        logger.setLevel(level)
    graph: Any = cast(Any, program).model_proto
    graph.producer_name = _MARK.decode()
    return graph.SerializeToString(), inputs


def _refuse_to_overwrite(target: Path, sidecar: Path) -> None:
    """Refuse to replace anything but an earlier export.

    Raises:
        UserError: if one of the files exists and is not an export.
    """
    try:
        with zipfile.ZipFile(target) as file:
            zip_is_ours = file.comment == _MARK
    except (OSError, zipfile.BadZipFile):
        zip_is_ours = False
    statistics_are_ours = sidecar.is_file() and _MARK in sidecar.read_bytes()
    for path, ours in ((target, zip_is_ours), (sidecar, statistics_are_ours)):
        if path.exists() and not ours:
            raise UserError(f"{path} exists already and is not an export of alrao-rl: choose another file with --out")


def _zip(model: BaseAlgorithm) -> bytes:
    """The file that SB3's ``save`` writes."""
    data = io.BytesIO()
    model.save(data)
    with zipfile.ZipFile(data, "a") as file:
        file.comment = _MARK
    return data.getvalue()


def _normalizer(model: BaseAlgorithm, statistics: Statistics) -> Any:
    """SB3's ``VecNormalize`` with these statistics, which stay as they are until its ``training`` is true.

    Images in Dict observations have their channels first, as in the agent's file: if the environment's are last,
    ``VecTransposeImage`` goes below it.
    """
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    keys = None if "" in statistics else list(statistics)
    env = VecNormalize(cast(VecEnv, model.env).unwrapped, training=False, norm_reward=False, norm_obs_keys=keys)
    env.obs_rms = cast(Any, statistics if keys else statistics[""])
    env.origin = _MARK.decode()  # type: ignore[attr-defined]
    return env


if __name__ == "__main__":
    sys.exit(main())
