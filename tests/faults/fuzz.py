"""Any input: the recipe parser, the reader of run folders, the loader of agents."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from common import ROOT
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

from alrao_rl import load_agent, load_results
from alrao_rl.agents.file import _digest, read_agent
from alrao_rl.errors import UserError
from alrao_rl.notation import parse_seeds
from alrao_rl.recipes.files import load_agent_recipe, load_environment
from alrao_rl.recipes.overrides import find_key, parse_env_kwargs, parse_override
from alrao_rl.recipes.schema import Environment
from alrao_rl.recipes.validation import check_agent, validate
from alrao_rl.runs.results import load_curves, load_heads
from alrao_rl.sweep import plan
from faults.damage import ALGO, ENV
from faults.harness import Fault, Missed, Result
from faults.kill import straight

HANG = 5.0
"""Seconds of processor time that one input may take."""

KEYS = st.sampled_from([
    "algo", "policy", "n_envs", "hyperparameters", "policy_options", "alrao", "gamma", "batch_size", "net_arch", "id",
    "activation_fn", "lr_range", "value_averaging", "timesteps", "kwargs", "wrappers", "name", "agents", "envs",
    "seeds", "grid", "state", "env", "agent", "seed", "type", "shape", "low", "high", "dtype", "n", "$array", "$dict",
    "floor", "reference_score", "provenance", "versions", "restarted_episodes", "sha256",
])  # fmt: skip
WORDS = st.sampled_from(
    ["dqn", "ppo", "alrao", "stock", "CartPole-v1", "tanh", "none", "finished", "Box", "Dict", "float32", ""]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 2**31, 1e308, 5e-324])
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=12)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=6), inner, max_size=4)
)


def fuzz(inputs: int, number: int, strategy: st.SearchStrategy[Any], use: Callable[[Any], object]) -> Result:
    """Give many inputs; only a UserError on one line may come of them, soon."""
    count = 0
    slowest = 0.0

    @seed(number)
    @settings(
        max_examples=inputs, database=None, deadline=None, phases=[Phase.generate], derandomize=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def one(given: Any) -> None:
        nonlocal count, slowest
        count += 1
        before = time.process_time()
        try:
            use(given)
        except UserError as error:
            if len(str(error)) > 5000:
                raise Missed(f"a message of {len(str(error))} characters for {given!r}") from None
        except Exception as error:
            raise Missed(f"{type(error).__name__}: {error} for {given!r}") from None
        slowest = max(slowest, time.process_time() - before)
        if slowest > HANG:
            raise Missed(f"{slowest:.1f} s for {given!r}")

    one()
    return Result(count, f"slowest {slowest:.3f} s")


# --- bytes that are nearly right ------------------------------------------------------------------------------------


def mutated(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of some files with pieces cut out, put in, doubled or overwritten."""
    edit = st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=8) | st.sampled_from(
        [b"nan", b"inf", b"1e999", b"[", b"{", b'"', b"\x00", b"\xff", b"\n", b"=", b".", b"-1", b"null", b"9" * 40]
    ))  # fmt: skip

    def apply(original: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
        for where, cut, put in edits:
            at = int(where * len(original))
            original = original[:at] + put + original[at + cut :]
        return original

    return st.builds(apply, st.sampled_from(originals), st.lists(edit, min_size=1, max_size=4))


# --- recipes --------------------------------------------------------------------------------------------------------


def fuzz_recipes(inputs: int, number: int, place: Path) -> Result:
    """Agent and environment files, sweeps, and what ``--set``, ``--seeds``, ``--grid``, ``--env-kwargs`` are given."""
    folders = [ROOT / "agents", ROOT / "envs"]
    files = [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.toml"))]
    sweep = b'name = "x"\nagents = ["dqn", "ppo-adam"]\nenvs = ["CartPole-v1"]\nseeds = [0, 1]\n[grid]\ngamma = [0.9]\n'
    path = place / "x.toml"

    def read(given: tuple[str, Any]) -> None:
        kind, content = given
        if kind == "file":
            path.write_bytes(content)
            for function in (load_agent_recipe, load_environment):
                with contextlib.suppress(UserError):
                    function(str(path))
            plan.checked(plan.read(path), str(path))
        elif kind == "data":
            with contextlib.suppress(UserError):
                check_agent(content, "test")
            with contextlib.suppress(UserError):
                validate(Environment, content, "test")
            if isinstance(content, dict):
                plan.checked(content, "test")
        else:
            with contextlib.suppress(UserError):
                parse_env_kwargs(content)
            with contextlib.suppress(UserError):
                parse_seeds([content], "--seeds")
            with contextlib.suppress(UserError):
                plan.parse_grid([content])
            key, _ = parse_override(content)
            find_key(key, agent)

    agent = load_agent_recipe("dqn")[1]
    agent_like = st.fixed_dictionaries({"algo": st.just("dqn"), "policy": WORDS}, optional={
        name: VALUES for name in ("n_envs", "hyperparameters", "policy_options", "alrao", "normalize_observations")
    })  # fmt: skip
    text = st.builds("{}={}".format, KEYS | st.text(max_size=8), VALUES.map(repr) | st.text(max_size=20))
    strategy = st.one_of(
        st.tuples(st.just("file"), mutated([*files, sweep]) | st.binary(max_size=80)),
        st.tuples(st.just("data"), agent_like | VALUES),
        st.tuples(st.just("text"), text | st.text(max_size=30)),
    )
    return fuzz(inputs, number, strategy, read)


# --- run folders ----------------------------------------------------------------------------------------------------


def fuzz_run_folder(inputs: int, number: int, place: Path) -> Result:
    """``load_results``, ``load_curves`` and ``load_heads`` of a run in which one file is another."""
    source = straight(ALGO, ENV)[0]
    names = ["config.json", "status.json", "episodes.csv", "heads.csv"]
    originals = {name: (source / name).read_bytes()[:1500] for name in ("episodes.csv", "heads.csv")}
    originals |= {name: (source / name).read_bytes() for name in ("config.json", "status.json")}
    run = place / "CartPole-v1" / "dqn" / "seed-0"
    run.mkdir(parents=True)

    def changed(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        content = mutated([originals[name]]) | st.binary(max_size=60)
        if name.endswith(".json"):
            data = json.loads(originals[name])
            keys = [*data, *(f"env.{key}" for key in data.get("env", {}))]
            content |= st.builds(lambda key, value: with_value(data, key, value), st.sampled_from(keys), VALUES)
        return st.tuples(st.just(name), content)

    def read(given: tuple[str, bytes]) -> None:
        for name in names:
            (run / name).write_bytes(originals[name])
        (run / given[0]).write_bytes(given[1])
        frame = load_results(place)
        load_curves(frame[frame.state == "finished"])
        load_heads(run)

    return fuzz(inputs, number, st.sampled_from(names).flatmap(changed), read)


def with_value(data: dict[str, Any], key: str, value: Any) -> bytes:
    """The JSON with another value at a dotted key."""
    data = json.loads(json.dumps(data))
    table, *_ = [data] if "." not in key else [data[key.split(".")[0]]]
    table[key.split(".")[-1]] = value
    return json.dumps(data).encode()


# --- agents ---------------------------------------------------------------------------------------------------------


@cache
def small_agent(place: Path) -> bytes:
    """A trained agent's file."""
    return (straight(ALGO, ENV)[0] / "agent.safetensors").read_bytes()


def fuzz_agents(inputs: int, number: int, place: Path) -> Result:
    """``load_agent`` of a file that was changed anywhere, or whose header was and has an intact hash."""
    path = place / "agent.safetensors"
    data = small_agent(ROOT)
    path.write_bytes(data)
    description, tensors = read_agent(path)
    keys = [*description, *(f"agent.{key}" for key in description["agent"]),
            *(f"observation_space.{key}" for key in description["observation_space"]),
            *(f"action_space.{key}" for key in description["action_space"])]  # fmt: skip
    header = 8 + int.from_bytes(data[:8], "little")
    digest = _digest(save(tensors))

    def with_header(key: str, value: Any) -> bytes:
        changed = json.loads(with_value(description, key, value))
        if key != "sha256":
            changed["sha256"] = digest
        return save(tensors, metadata={"alrao-rl": json.dumps(changed)})

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load_agent(path)

    bounded = VALUES.filter(lambda value: not isinstance(value, int) or abs(value) < 10_000)
    strategy = st.one_of(
        st.builds(with_header, st.sampled_from(keys), bounded),
        mutated([data[:header]]).map(lambda start: start + data[header:]),
        mutated([data]) | st.binary(max_size=60),
    )
    return fuzz(inputs, number, strategy, read)


def _fault(name: str, what: str, function: Callable[[int, int, Path], Result], inputs: int, asked: int) -> Fault:
    return Fault(
        f"fuzz-{name}", what, "no crash, no traceback, no hang",
        lambda number, place: function(inputs, number, place), asked=asked, total="inputs",
        short_run=lambda number, place: function(100, number, place),
    )  # fmt: skip


FAULTS = [
    _fault("recipe", "50,000 inputs to the parser of recipes, sweeps and options", fuzz_recipes, 1000, 50),
    _fault("run", "25,000 inputs to the reader of run folders", fuzz_run_folder, 500, 50),
    _fault("agent", "25,000 inputs to the loader of agents", fuzz_agents, 500, 50),
]
