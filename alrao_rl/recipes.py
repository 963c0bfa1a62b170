"""Recipes: agents/*.toml and envs/*.toml, found, read, merged and checked.

An agent file holds an algorithm, a policy and hyperparameters, the same for every environment. An environment file
holds facts only: id, wrappers, scores, timesteps. Merge order: SB3's defaults < agent < environment < ``--set``.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alrao_rl.checks import LINEAR, first_value
from alrao_rl.errors import UserError, first_line, suggest
from alrao_rl.notation import CLASSES, literal

ALGORITHMS = tuple(CLASSES)
REPLAY_ALGORITHMS = ("dqn", "qrdqn")
"""Algorithms that learn values from a replay buffer."""
TIMESTEPS_OF = {"qrdqn": "dqn", "recurrent-ppo": "ppo", "maskable-ppo": "ppo"}
"""Algorithm whose budget applies if the environment file has none for this one."""
ACTIVATIONS = ("tanh", "relu", "elu", "gelu", "leaky-relu", "sigmoid", "silu", "softplus")
MAX_BYTES = 200_000
MAX_DEPTH = 20
_LONG_KEY = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _at_least_zero(value: float | str) -> float | str:
    if not 0 <= first_value(value) < math.inf:
        raise ValueError(f'expected a number of at least 0, or "{LINEAR}0.001" for one that falls to 0')
    return value


def _above_zero(value: float | str) -> float | str:
    if not 0 < first_value(value) < math.inf:
        raise ValueError(f'expected a number greater than 0, or "{LINEAR}0.2" for one that falls to 0')
    return value


Rate = Annotated[float | str, AfterValidator(_at_least_zero)]
ClipRange = Annotated[float | str, AfterValidator(_above_zero)]
MAX_COUNT = 10**12
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Widths = Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(max_length=100)]


def plain(value: Any) -> Any:
    """Refuse what ``config.json`` could not hold: TOML's dates and times, nan and inf."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected numbers, text, true or false, lists and tables: {error}") from None
    return value


Options = Annotated[dict[str, Any], AfterValidator(plain)]


class Table(BaseModel):
    """A TOML table: no key but its own, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DqnHyperparameters(Table):
    """Keywords of ``stable_baselines3.DQN``, and of sb3-contrib's QRDQN."""

    learning_rate: Rate | None = None
    buffer_size: Count | None = None
    learning_starts: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    tau: Fraction | None = None
    gamma: Fraction | None = None
    train_freq: Count | None = None
    gradient_steps: Annotated[int, Field(ge=-1)] | None = None
    n_steps: Count | None = None
    target_update_interval: Count | None = None
    exploration_fraction: Fraction | None = None
    exploration_initial_eps: Fraction | None = None
    exploration_final_eps: Fraction | None = None
    max_grad_norm: Positive | None = None
    optimize_memory_usage: bool | None = None
    stats_window_size: Count | None = None


class _OnPolicyHyperparameters(Table):
    learning_rate: Rate | None = None
    n_steps: Count | None = None
    gamma: Fraction | None = None
    gae_lambda: Fraction | None = None
    ent_coef: Finite | None = None
    vf_coef: NotNegative | None = None
    max_grad_norm: Positive | None = None
    normalize_advantage: bool | None = None
    stats_window_size: Count | None = None


class _GaussianHyperparameters(_OnPolicyHyperparameters):
    use_sde: bool | None = None
    sde_sample_freq: Annotated[int, Field(ge=-1)] | None = None


class A2cHyperparameters(_GaussianHyperparameters):
    """Keywords of ``stable_baselines3.A2C``."""

    rms_prop_eps: Positive | None = None
    use_rms_prop: bool | None = None


class MaskablePpoHyperparameters(_OnPolicyHyperparameters):
    """Keywords of sb3-contrib's MaskablePPO, which has no Gaussian policies."""

    batch_size: Annotated[int, Field(ge=2)] | None = None
    n_epochs: Count | None = None
    clip_range: ClipRange | None = None
    clip_range_vf: ClipRange | None = None
    target_kl: Positive | None = None


class PpoHyperparameters(_GaussianHyperparameters, MaskablePpoHyperparameters):
    """Keywords of ``stable_baselines3.PPO`` and sb3-contrib's RecurrentPPO."""


HYPERPARAMETERS: dict[str, type[Table]] = {
    "dqn": DqnHyperparameters,
    "a2c": A2cHyperparameters,
    "ppo": PpoHyperparameters,
    "qrdqn": DqnHyperparameters,
    "recurrent-ppo": PpoHyperparameters,
    "maskable-ppo": MaskablePpoHyperparameters,
}


class DqnPolicyOptions(Table):
    """Keywords of DQN's policy that both stock and Alrao policies take."""

    net_arch: Widths | None = None
    activation_fn: Literal[ACTIVATIONS] | None = None  # type: ignore[valid-type]
    normalize_images: bool | None = None


class MaskableOptions(Table):
    """Keywords of MaskablePPO's policy that both stock and Alrao policies take."""

    net_arch: Widths | dict[Literal["pi", "vf"], Widths] | None = None
    activation_fn: Literal[ACTIVATIONS] | None = None  # type: ignore[valid-type]
    ortho_init: bool | None = None
    share_features_extractor: bool | None = None
    normalize_images: bool | None = None


class OnPolicyOptions(MaskableOptions):
    """Keywords of A2C's and PPO's policy."""

    log_std_init: Finite | None = None


class QrdqnPolicyOptions(DqnPolicyOptions):
    """Keywords of QR-DQN's policy."""

    n_quantiles: Annotated[int, Field(ge=1, le=10_000)] | None = None


class RecurrentOptions(OnPolicyOptions):
    """Keywords of RecurrentPPO's policy."""

    lstm_hidden_size: Annotated[int, Field(ge=1, le=10**5)] | None = None
    n_lstm_layers: Annotated[int, Field(ge=1, le=100)] | None = None
    shared_lstm: bool | None = None
    enable_critic_lstm: bool | None = None


POLICY_OPTIONS: dict[str, type[Table]] = {
    "dqn": DqnPolicyOptions,
    "a2c": OnPolicyOptions,
    "ppo": OnPolicyOptions,
    "qrdqn": QrdqnPolicyOptions,
    "recurrent-ppo": RecurrentOptions,
    "maskable-ppo": MaskableOptions,
}


class AlraoOptions(Table):
    """Options of Alrao: their types. :class:`~alrao_rl.core.AlraoConfig` has the defaults and checks the rest."""

    n_heads: Annotated[int, Field(ge=1, le=10_000)] | None = None
    lr_range: list[float] | None = None
    base: str | None = None
    base_kwargs: dict[str, float | bool] | None = None
    value_averaging: str | dict[str, str | float | bool] | None = None
    policy_averaging: str | dict[str, str | float | bool] | None = None
    head_max_grad_norm: float | str | None = None
    reclone_interval: Annotated[int, Field(ge=0)] | None = None
    iterate_window: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None


class Agent(Table):
    """An agent file. Its hyperparameters and policy options are checked by the tables of its algorithm.

    ``normalize_observations`` concerns Box observations: true for mean 0 and standard deviation 1, "scale" for root
    mean square 1; images and discrete ones are left as they are. ``normalize_rewards`` divides rewards by the standard
    deviation of the discounted return, in training only. "continuous" stands for true where the actions are a Box and
    for false elsewhere, see :func:`alrao_rl.envs.settle`.
    """

    algo: Literal[ALGORITHMS]  # type: ignore[valid-type]
    policy: Literal["alrao", "stock"]
    n_envs: Annotated[int, Field(ge=1, le=10_000)] = 1
    normalize_observations: Literal[True, False, "scale", "continuous"] = False
    normalize_rewards: Literal[True, False, "continuous"] | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    policy_options: dict[str, Any] = Field(default_factory=dict)
    alrao: AlraoOptions = AlraoOptions()

    @field_validator("normalize_rewards")
    @classmethod
    def _false_is_absent(cls, value: bool | str | None) -> bool | str | None:
        """A run's configuration has the key only where it does something, so that it is the one of before the key."""
        return value or None


SCORES = ("random_score", "reference_score", "floor")
"""Of an environment as its file makes it; with other arguments they are not known."""


class Environment(Table):
    """An environment file."""

    id: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:/-]+$")]
    random_score: Finite | None = None
    reference_score: Finite | None = None
    floor: Finite | None = None
    timesteps: dict[Literal[ALGORITHMS], Count] = Field(default_factory=dict)  # type: ignore[valid-type]
    wrappers: list[Options] = Field(default_factory=list)
    kwargs: Options = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_scores(self) -> Environment:
        low, high = self.random_score, self.reference_score
        if low is not None and high is not None and low >= high:
            raise ValueError(f"reference_score is {high:g}, expected more than random_score, {low:g}")
        if low is not None and self.floor is not None and self.floor > low:
            raise ValueError(f"floor is {self.floor:g}, expected at most random_score, {low:g}")
        return self


NORMALIZATIONS = ("normalize_observations", "normalize_rewards")
CONTINUOUS = "continuous"
"""Of a normalisation: true where the actions are a Box."""

DEFAULT_TIMESTEPS = {"dqn": 100_000, "a2c": 500_000, "ppo": 500_000}
"""Budgets for an environment without a file."""


@dataclass(frozen=True)
class Recipe:
    """A resolved run: agent and environment, and where every value came from."""

    agent_name: str
    agent: Agent
    environment: Environment
    timesteps: int
    origins: dict[str, tuple[Any, str]]

    @property
    def is_settled(self) -> bool:
        """Whether no value depends on the environment's actions, see :func:`alrao_rl.envs.settle`."""
        return not any(getattr(self.agent, name) == CONTINUOUS for name in NORMALIZATIONS)

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides on the result of the run but the seed, for ``config.json``."""
        return {
            "agent": self.agent_name,
            **self.agent.model_dump(exclude_none=True),
            "env": self.environment.model_dump(exclude_none=True, exclude={"timesteps"}),
            "timesteps": self.timesteps,
        }


# --- finding --------------------------------------------------------------------------------------------------------


@cache
def recipe_folder() -> Path:
    """The folder that holds ``agents/`` and ``envs/``: inside the installed package, else the checkout's root."""
    package = Path(__file__).parent
    if (package / "_recipes").is_dir():
        return package / "_recipes"
    root = package.parent
    project = root / "pyproject.toml"
    if project.is_file() and 'name = "alrao-rl"' in project.read_text():
        return root
    raise UserError(f"no recipes beside {package}: the installation is not complete; install alrao-rl again")


def names(kind: str) -> list[str]:
    """Names of the recipes that are shipped; ``kind`` is ``agents`` or ``envs``."""
    folder = recipe_folder() / kind
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: it cannot be read, is no TOML, or is far too large.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UserError(f"cannot read {path}: it is no file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes, expected a recipe of a few lines")
        return _loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a recipe: expected TOML text") from None
    except RecursionError:
        raise UserError(f"{path} is not a recipe: it is nested more than {MAX_DEPTH} tables deep") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _loads(text: str) -> dict[str, Any]:
    """TOML, without what would take minutes to read or the whole stack to go through.

    Raises:
        TOMLDecodeError: it is none.
        RecursionError: it is nested too deeply.
    """
    if _LONG_KEY.search(text):  # of which the library's time grows with the square
        raise RecursionError
    data = tomllib.loads(text)
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        tables = [value for value in level if isinstance(value, (dict, list))]
        level = [inner for table in tables for inner in (table.values() if isinstance(table, dict) else table)]
        if not level:
            return data
    raise RecursionError


def load_agent_recipe(name: str) -> tuple[str, Agent, str]:
    """Read an agent by name or by the path of a TOML file; return its name, its content and its origin."""
    path = _locate(name, "agents", "agent")
    return path.stem, check_agent(read_toml(path), str(path)), str(path)


def check_agent(data: Any, where: str) -> Agent:
    """Make an agent of plain data.

    Args:
        data: what an agent file holds.
        where: the file or flag that an error names.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range.
    """
    agent: Agent = validate(Agent, data, where)
    takes = f"SB3's {CLASSES[agent.algo]} takes"
    validate(HYPERPARAMETERS[agent.algo], agent.hyperparameters, where, "hyperparameters.", takes)
    validate(POLICY_OPTIONS[agent.algo], agent.policy_options, where, "policy_options.", f"{takes} for its policy")
    if agent.policy == "alrao" and agent.hyperparameters.get("learning_rate", FALLING) != FALLING:
        raise UserError(f"{where}: hyperparameters.learning_rate: {_NO_LEARNING_RATE}")
    if agent.policy == "stock" and agent.alrao != AlraoOptions():
        raise UserError(f"{where}: alrao: {_NO_ALRAO}")
    return agent


FALLING = f"{LINEAR}1"
"""The one learning rate that an Alrao agent may have: all of its rates fall together."""
_NO_LEARNING_RATE = (
    "an Alrao agent has no learning rate to set: leave it out, set the interval with alrao.lr_range=[1e-6, 0.1], "
    f"let all rates fall to 0 over the run with learning_rate={FALLING}, "
    "or take a stock agent (dqn-adam, a2c-rmsprop, ppo-adam)"
)
_NO_ALRAO = 'a stock agent has no Alrao options: leave them out, or take policy = "alrao" (dqn, a2c, ppo)'


def _locate(name: str, kind: str, what: str) -> Path:
    if name.endswith(".toml"):
        # Its name goes into folders' names and messages.
        if Path(name).stem.startswith(".") or not Path(name).stem.isprintable():
            raise UserError(f"{what} {name!r}: expected a file name of printable characters that begins with no dot")
        return Path(name)
    choices = names(kind)
    if name not in choices:
        raise UserError(
            f"unknown {what} {name!r}, expected one of {', '.join(choices)} or the path of a .toml file"
            f"{suggest(name, choices)}"
        )
    return recipe_folder() / kind / f"{name}.toml"


def load_environment(name: str) -> tuple[Environment, str]:
    """Find an environment: a recipe's name, the path of a TOML file, or any Gymnasium id (``package:Id`` too)."""
    if name.endswith(".toml") or name in names("envs"):
        path = _locate(name, "envs", "environment")
        return validate(Environment, read_toml(path), str(path)), str(path)
    return Environment.model_construct(id=name), "--env"


def check_trust(env_id: object, where: str, trust: bool) -> None:
    """Refuse an environment of a package that a file names: a stranger's file may come with a package of that name.

    Raises:
        UserError: it does, and nobody said that it may be imported.
    """
    package, colon, _ = str(env_id).rpartition(":")
    if colon and not trust:
        raise UserError(
            f"{where} names the environment {env_id!r}, for which the package {package!r} would be imported: "
            "if you trust it, add --trust"
        )


def _check_id(name: str) -> None:
    """Refuse an id that Gymnasium does not know, or whose package is not installed; imports no such package."""
    import gymnasium as gym

    from alrao_rl import registry

    package, colon, env_id = name.rpartition(":")
    if colon:
        root = package.split(".")[0]
        if not root.isidentifier() or importlib.util.find_spec(root) is None:
            raise UserError(f"environment {name!r}: there is no installed package {root!r} to import it from")
        return
    registry.provide(env_id)
    try:
        gym.spec(env_id)
    except gym.error.DeprecatedEnv as error:
        raise UserError(f"environment {env_id!r} is gone: {first_line(error)}") from None
    except gym.error.NamespaceNotFound:
        raise UserError(
            f"unknown environment {env_id!r}: name the package that registers it, such as 'ale_py:ALE/Pong-v5'"
        ) from None
    except (gym.error.Error, ValueError):
        known = [key for key in gym.registry if not key.startswith(("phys2d", "tabular"))]
        raise UserError(
            f"unknown environment {env_id!r}, expected a Gymnasium id such as 'CartPole-v1' or 'package:Id'"
            f"{suggest(env_id, [*names('envs'), *known], 0.6)}"
        ) from None


# --- merging --------------------------------------------------------------------------------------------------------


def resolve(
    agent: str,
    env: str,
    overrides: Iterable[str] = (),
    timesteps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Recipe:
    """Merge an agent, an environment and ``KEY=TOML`` overrides into one checked recipe.

    With ``trust`` the environment may be one of a package that a file names, which is imported where it is made.

    Raises:
        UserError: one line with the file or flag, the key and the nearest valid choice.
    """
    name, recipe, agent_origin = load_agent_recipe(agent)
    environment, env_origin = load_environment(env)
    if env_origin != "--env" and not Path(env_origin).is_relative_to(recipe_folder() / "envs"):
        check_trust(environment.id, env_origin, trust)
    _check_id(environment.id)
    data = recipe.model_dump(exclude_none=True)
    origins: dict[str, tuple[Any, str]] = {}
    with_defaults(recipe, agent_origin)
    _trace(origins, data, agent_origin)
    _trace(origins, {"env": environment.model_dump(exclude_none=True, exclude={"timesteps"})}, env_origin)
    for override in overrides:
        key, value = parse_override(override)
        path = place(key, recipe, value)
        _insert(data, path, value, f"--set {override}")
        # What is set replaces a whole table, if there was one.
        origins = {old: origin for old, origin in origins.items() if not old.startswith(f"{'.'.join(path)}.")}
        _trace(origins, _nest(path, value), f"--set {override}")
    recipe = with_defaults(check_agent(data, "--set"), "--set")
    for option, value in recipe.alrao.model_dump(exclude_none=True).items():
        if not any(key == f"alrao.{option}" or key.startswith(f"alrao.{option}.") for key in origins):
            _trace(origins, {"alrao": {option: value}}, "Alrao's default")
    if env_kwargs:
        validate(Environment, {"id": environment.id, "kwargs": dict(env_kwargs)}, "--env-kwargs")
        kwargs = {**environment.kwargs, **env_kwargs}
        if kwargs != environment.kwargs:  # its scores are those of another variant
            environment = environment.model_copy(update={"kwargs": kwargs, **dict.fromkeys(SCORES)})
            origins = {key: origin for key, origin in origins.items() if key.removeprefix("env.") not in SCORES}
        _trace(origins, {"env": {"kwargs": dict(env_kwargs)}}, "--env-kwargs")
    budget, origin = timesteps, "--timesteps"
    if budget is None:
        like = TIMESTEPS_OF.get(recipe.algo, recipe.algo)
        known = environment.timesteps.get(recipe.algo, environment.timesteps.get(like))
        budget, origin = (known, env_origin) if known else (DEFAULT_TIMESTEPS[like], "default")
    if budget < 1:
        raise UserError(f"--timesteps is {budget}, expected a whole number of at least 1")
    origins["timesteps"] = (budget, origin)
    return Recipe(name, recipe, environment, budget, origins)


def alrao_options(agent: Agent) -> dict[str, Any]:
    """The options that an Alrao policy is given; TOML has no None, its word is "none"."""
    options = agent.alrao.model_dump(exclude_none=True)
    return {name: None if value == "none" else value for name, value in options.items()}


def with_defaults(agent: Agent, where: str = "alrao") -> Agent:
    """The agent with all of Alrao's options, checked: a run on disk outlives the defaults of the code that made it.

    Raises:
        UserError: an option that :class:`~alrao_rl.core.AlraoConfig` refuses, after the file or flag ``where``.
    """
    if agent.policy == "stock":
        return agent
    # Here, not above: torch is for those who train.
    from alrao_rl.core import AlraoConfig
    from alrao_rl.core.bases import BASES

    try:
        config = AlraoConfig.from_options(alrao_options(agent)).resolve(replay=agent.algo in REPLAY_ALGORITHMS)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {first_line(error)}") from None
    base = {name: one.default for name, one in inspect.signature(BASES[config.base]).parameters.items()}
    options = {name: value for name, value in asdict(config).items() if value is not None}
    options = {"head_max_grad_norm": "none", **options, "lr_range": list(config.interval)}
    options["base_kwargs"] = base | options["base_kwargs"]
    return agent.model_copy(update={"alrao": AlraoOptions.model_validate(options)})


def defaults(algorithm: type, agent: Agent) -> dict[str, tuple[Any, str]]:
    """SB3's defaults of the keywords that the agent's algorithm takes."""
    parameters = inspect.signature(algorithm).parameters
    fields = HYPERPARAMETERS[agent.algo].model_fields
    skip = ("learning_rate",) if agent.policy == "alrao" else ()
    return {
        f"hyperparameters.{name}": (parameters[name].default, "SB3's default") for name in fields if name not in skip
    }


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``KEY=TOML``; what is no TOML value and a bare word is a string."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {text!r}: expected KEY=VALUE, such as batch_size=64 or alrao.n_heads=20")
    return key, parse_value(value.strip(), f"--set {key}")


_PYTHON_BOOLEANS = {"True": True, "False": False}
"""As a word, "False" would be true to an environment."""


def parse_value(text: str, where: str) -> Any:
    """A TOML literal, Python's True and False, or a bare word as a string."""
    if text in _PYTHON_BOOLEANS:
        return _PYTHON_BOOLEANS[text]
    if text in ("None", "null"):
        raise UserError(
            f'{where}={text}: there is no {text} in TOML: leave the key out, or write "{text}" for the text'
        )
    try:
        table = _loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        table = {}
        if text and all(char.isalnum() or char in "-_." for char in text):
            return text
    # A line end in the text would begin another key.
    if table.keys() != {"value"}:
        raise UserError(f'{where}={text}: expected a TOML value: a number, true, "text", [1, 2] or a word')
    return table["value"]


def parse_env_kwargs(text: str | None) -> dict[str, Any]:
    """``--env-kwargs``: a TOML inline table ``{g = 9.8}`` or bare ``g=9.8`` pairs separated by commas.

    A bare word is a string, as for ``--set``.
    """
    if not text:
        return {}
    table = _TEXT_OR_WORD.sub(_as_toml, text.strip())
    table = table if table.startswith("{") else f"{{{table}}}"
    try:
        return dict(parse_value(table, "--env-kwargs"))
    except UserError:
        raise UserError(f"--env-kwargs is {text!r}, expected TOML such as '{{gravity = -5.0}}'") from None


_TEXT_OR_WORD = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|=\s*(?P<word>[\w.-]+)(?=\s*(?:[,}]|$))""")


def _as_toml(found: re.Match[str]) -> str:
    """A text as it is, the value of a word as TOML."""
    word = found["word"]
    value = parse_value(word, "--env-kwargs") if word else None
    return f"={literal(value)}" if isinstance(value, (str, bool)) else found[0]


def place(key: str, agent: Agent, value: Any = None) -> list[str]:
    """Where a key of ``--set`` belongs: hyperparameters and policy options may be given without their table.

    Of Alrao's ``learning_rate`` it depends on the value whether there is such a key.

    Raises:
        UserError: such an agent has no such key, with the nearest one.
    """
    hyperparameters = list(HYPERPARAMETERS[agent.algo].model_fields)
    options, alrao = list(POLICY_OPTIONS[agent.algo].model_fields), list(AlraoOptions.model_fields)
    top = ["n_envs", *NORMALIZATIONS]
    path = key.split(".")
    if len(path) == 1 and key in hyperparameters:
        path = ["hyperparameters", key]
    elif len(path) == 1 and key in options:
        path = ["policy_options", key]
    valid = [*top, *(f"alrao.{name}" for name in alrao), *hyperparameters, *options]
    if key in ("alrao", "hyperparameters", "policy_options"):
        raise UserError(f"--set {key}: it is a table, set one of its keys, such as alrao.n_heads=20 or batch_size=64")
    known = {"hyperparameters": hyperparameters, "policy_options": options, "alrao": alrao}
    nested = len(path) == 3 and path[0] == "alrao" and path[1] in ("base_kwargs", "value_averaging", "policy_averaging")
    if not (key in top or (len(path) == 2 and path[1] in known.get(path[0], ())) or nested):
        hint = suggest(key, valid, 0.6) or suggest(path[-1], valid, 0.6) or f", expected one of {', '.join(valid)}"
        raise UserError(f"--set {key}: no such key for {agent.algo}{hint}")
    if path[-1] == "learning_rate" and agent.policy == "alrao" and value != FALLING:
        raise UserError(f"--set learning_rate: {_NO_LEARNING_RATE}")
    if path[0] == "alrao" and agent.policy == "stock":
        raise UserError(f"--set {key}: {_NO_ALRAO}")
    return path


def _insert(data: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"{where}: {part} is not a table")
    data[path[-1]] = value


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nest(path[1:], value)}


def _trace(origins: dict[str, tuple[Any, str]], data: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    for key, value in data.items():
        if isinstance(value, Mapping):
            # A table takes the place of a plain value.
            origins.pop(f"{prefix}{key}", None)
            _trace(origins, value, origin, f"{prefix}{key}.")
        else:
            origins[f"{prefix}{key}"] = (value, origin)


# --- checking -------------------------------------------------------------------------------------------------------


def validate(model: type[Table], data: Any, where: str, prefix: str = "", takes: str = "expected") -> Any:
    """The data as such a table.

    Args:
        model: what is expected.
        data: what a file or a flag holds.
        where: the file or flag, for an error.
        prefix: what stands before the keys there, for an error.
        takes: words before the list of keys, for an error.

    Raises:
        UserError: one line with the key, its value and the nearest valid choice.
    """
    try:
        # Strict, but a float may be written without its point and a tuple as a list.
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(model, error, prefix, takes)}") from None


def _explain(model: type[Table], error: ValidationError, prefix: str, takes: str) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"] and first["type"] == "value_error":
        return str(first["msg"]).removeprefix("Value error, ")  # of the whole, which is no news
    path = [str(part) for part in first["loc"]]
    table: Any = model
    for part in path[:-1]:
        inner = table.model_fields.get(part) if hasattr(table, "model_fields") else None
        inner_type = getattr(inner, "annotation", None)
        if not (isinstance(inner_type, type) and issubclass(inner_type, BaseModel)):
            break
        table = inner_type
    known = list(getattr(table, "model_fields", {}))
    if first["type"] == "extra_forbidden":
        return f"unknown key {prefix}{'.'.join(path)}, {takes} {', '.join(known)}{suggest(path[-1], known)}"
    # What else is in the path is no key: an index, or the tag of a union, of which only the first member is quoted.
    free = ("timesteps", "base_kwargs")
    keys = [part for before, part in zip(["", *path], path, strict=False) if part in known or before in ("", *free)]
    value = first.get("input")
    words = (*ALGORITHMS, *ACTIVATIONS, "scale", CONTINUOUS)
    hint = suggest(str(value), words) if first["type"] == "literal_error" and value not in words else ""
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = (message[0].lower() + message[1:]).replace("True, False", "true, false")
    if first["type"] == "missing":
        return f"{prefix}{'.'.join(path)} is missing"
    shown = repr(value)
    return f"{prefix}{'.'.join(keys)} is {shown if len(shown) < 80 else shown[:77] + '...'}: {message}{hint}"
