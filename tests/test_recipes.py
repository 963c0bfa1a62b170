"""Agents and environments as TOML: found, merged, checked; every error is one line with the nearest valid choice."""

import inspect
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from alrao_rl.agents.build import algorithm, build
from alrao_rl.checks import first_value
from alrao_rl.core import AlraoConfig
from alrao_rl.environments import register
from alrao_rl.environments.make import make_env
from alrao_rl.errors import UserError, suggest, suggest_path
from alrao_rl.recipes.algorithms import ALGORITHMS
from alrao_rl.recipes.files import MAX_BYTES, load_environment, read_toml, recipe_names
from alrao_rl.recipes.overrides import parse_env_kwargs, parse_override
from alrao_rl.recipes.resolve import alrao_options, resolve, sb3_defaults
from alrao_rl.recipes.schema import Agent, AlraoOptions
from alrao_rl.recipes.validation import FALLING
from alrao_rl.sweep.plan import parse_grid
from alrao_rl.train.options import RunOptions

ROOT = Path(__file__).parent.parent
AGENT_FILES = sorted((ROOT / "agents").glob("*.toml"))
ENV_FILES = sorted((ROOT / "envs").rglob("*.toml"))
POLICIES = {
    "dqn": DQNPolicy, "qrdqn": QRDQNPolicy, "recurrent-ppo": RecurrentActorCriticPolicy,
    "maskable-ppo": MaskableActorCriticPolicy, "sac": SACPolicy, "tqc": TQCPolicy,
    "crossq": CrossQPolicy, "td3": TD3Policy, "ddpg": TD3Policy,
}  # fmt: skip
PPO = 'algo = "ppo"\npolicy = "alrao"\n'


def refused(agent="dqn", env="CartPole-v1", *overrides, **kwargs):
    with pytest.raises(UserError) as error:
        RunOptions(str(agent), str(env), overrides=overrides, **kwargs).recipe()
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


# --- the recipes that are shipped -----------------------------------------------------------------------------------


def test_recipe_folders_hold_nothing_but_toml():
    files = [path for folder in ("agents", "envs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert sorted(files) == AGENT_FILES + ENV_FILES
    assert {"dqn", "a2c", "ppo", "dqn-adam", "a2c-rmsprop", "ppo-adam"} <= set(recipe_names("agents"))
    assert len(ENV_FILES) >= 6


@pytest.mark.parametrize("path", AGENT_FILES, ids=lambda path: path.stem)
def test_agent_file_is_valid_and_every_hyperparameter_is_a_keyword_of_sb3(path):
    recipe = resolve(path.stem, "CartPole-v1")
    policy = POLICIES.get(recipe.agent.algo, ActorCriticPolicy)
    assert recipe.agent.hyperparameters
    assert recipe.agent.hyperparameters.keys() <= inspect.signature(algorithm(recipe.agent)).parameters.keys()
    assert recipe.agent.policy_options.keys() <= inspect.signature(policy).parameters.keys()


@pytest.mark.parametrize("path", AGENT_FILES, ids=lambda path: path.stem)
def test_every_value_of_an_agent_names_its_source(path):
    lines = [line for line in path.read_text().splitlines() if re.match(r"(?!algo|policy|base|lr_|value_)\w+ =", line)]
    values = [line for line in lines if not line.startswith("policy_averaging")]
    assert len(values) > 3
    assert [line for line in values if "#" not in line] == []


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_key_that_a_recipe_may_hold_is_a_keyword_of_sb3(algo):
    takes = inspect.signature(algorithm(Agent(algo=algo, policy="stock"))).parameters
    assert ALGORITHMS[algo].hyperparameters.model_fields.keys() <= takes.keys()
    policy = POLICIES.get(algo, ActorCriticPolicy)
    assert ALGORITHMS[algo].policy_options.model_fields.keys() <= inspect.signature(policy).parameters.keys()


def test_every_alrao_key_that_a_recipe_may_hold_is_one_of_the_code():
    assert list(AlraoOptions.model_fields) == list(inspect.signature(AlraoConfig).parameters)


@pytest.mark.parametrize(("alrao", "stock"), [
    ("dqn", "dqn-adam"), ("a2c", "a2c-rmsprop"), ("ppo", "ppo-adam"), ("qrdqn", "qrdqn-adam"),
    ("recurrent-ppo", "recurrent-ppo-adam"), ("maskable-ppo", "maskable-ppo-adam"),
    ("sac", "sac-adam"), ("tqc", "tqc-adam"), ("crossq", "crossq-adam"), ("td3", "td3-adam"), ("ddpg", "ddpg-adam"),
])  # fmt: skip
def test_stock_recipe_differs_by_policy_and_learning_rate_only(alrao, stock):
    ours, theirs = (tomllib.loads((ROOT / "agents" / f"{name}.toml").read_text()) for name in (alrao, stock))
    assert (ours.pop("policy"), theirs.pop("policy")) == ("alrao", "stock")
    assert first_value(theirs["hyperparameters"].pop("learning_rate")) > 0
    assert ours["hyperparameters"].pop("learning_rate", FALLING) == FALLING
    assert ours == theirs
    assert "alrao" not in ours  # the code's default is the only one


@pytest.mark.parametrize("path", ENV_FILES, ids=lambda path: path.stem)
def test_environment_file_is_valid(path):
    name = path.relative_to(ROOT / "envs").with_suffix("").as_posix()
    environment, origin = load_environment(name)
    assert environment.id == name
    assert name in recipe_names("envs")
    assert origin == str(path)
    register.provide(environment.id)
    assert gym.spec(environment.id)
    assert environment.floor <= environment.random_score
    known = environment.reference_score is not None
    assert known or name.startswith("MinAtar/")  # whose paper has curves only
    assert not known or environment.random_score < environment.reference_score
    discrete = isinstance(gym.make(environment.id).action_space, gym.spaces.Discrete)
    assert set(environment.timesteps) == ({"dqn", "a2c", "ppo"} if discrete else {"a2c", "ppo", "sac"})


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path):
    """An agent with two hyperparameters and an environment with a budget."""
    agent, env = tmp_path / "mine.toml", tmp_path / "short.toml"
    agent.write_text('algo = "dqn"\npolicy = "alrao"\n[hyperparameters]\ngamma = 0.5\nbatch_size = 8\n')
    env.write_text('id = "CartPole-v1"\n[timesteps]\ndqn = 123\n[kwargs]\nsutton_barto_reward = true\n')
    return str(agent), str(env)


def test_merge_order_sb3_agent_environment_set(mine):
    recipe = resolve(*mine, ["batch_size=16"])
    origins = sb3_defaults(algorithm(recipe.agent), recipe.agent) | recipe.origins
    assert origins["hyperparameters.tau"] == (1.0, "SB3's default")
    assert origins["hyperparameters.gamma"] == (0.5, mine[0])
    assert origins["timesteps"] == (123, mine[1])
    assert origins["hyperparameters.batch_size"] == (16, "--set batch_size=16")
    assert origins["alrao.n_heads"] == (AlraoConfig().n_heads, "Alrao's default")
    assert "hyperparameters.learning_rate" not in origins
    assert recipe.agent.hyperparameters == {"gamma": 0.5, "batch_size": 16}
    assert recipe.agent_name == "mine"


def test_the_last_of_two_overrides_wins():
    assert resolve("dqn", "CartPole-v1", ["gamma=0.1", "gamma=0.2"]).agent.hyperparameters["gamma"] == 0.2


def test_timesteps_and_env_kwargs_of_the_command_line_come_last(mine):
    recipe = resolve(*mine, timesteps=7, env_kwargs={"render_mode": "rgb_array"})
    assert recipe.timesteps == 7
    assert recipe.environment.kwargs == {"sutton_barto_reward": True, "render_mode": "rgb_array"}
    assert recipe.origins["env.kwargs.render_mode"] == ("rgb_array", "--env-kwargs")
    assert recipe.origins["env.kwargs.sutton_barto_reward"] == (True, mine[1])


def test_environment_without_a_file_has_a_stated_budget():
    recipe = resolve("a2c", "FrozenLake-v1")
    assert recipe.environment.id == "FrozenLake-v1"
    assert recipe.origins["timesteps"] == (ALGORITHMS["a2c"].timesteps, "default")


@pytest.mark.parametrize("algo", ["sac", "tqc", "crossq", "td3", "ddpg"])
def test_continuous_control_from_replay_has_the_budget_of_sac(algo):
    assert resolve(algo, "Humanoid-v5").timesteps == 2_000_000
    assert resolve(algo, "LunarLanderContinuous-v3").timesteps == 500_000


def test_alrao_options_are_written_out():
    """A run on disk says all of its options, also those that a later version may choose otherwise."""
    options = resolve("dqn", "CartPole-v1", ["alrao.base=sgd", "alrao.head_max_grad_norm=none"]).as_dict()["alrao"]
    config = AlraoConfig(base="sgd")
    assert options["n_heads"] == config.n_heads
    assert tuple(options["lr_range"]) == config.interval
    assert options["value_averaging"] == "whiteness"
    assert options["head_max_grad_norm"] == "none"


def test_head_max_grad_norm_none_reaches_the_code_as_none():
    agent = resolve("dqn", "CartPole-v1", ["alrao.head_max_grad_norm=none"]).agent
    assert alrao_options(agent)["head_max_grad_norm"] is None


def test_a_table_that_is_set_leaves_no_trace_of_the_old_one(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(PPO + '[alrao.value_averaging]\nrule = "whiteness"\nwindow = 20\n')
    recipe = resolve(str(path), "CartPole-v1", ['alrao.value_averaging={rule="switch"}'])
    traced = {key: value for key, (value, _) in recipe.origins.items() if key.startswith("alrao.value_averaging")}
    assert traced == {"alrao.value_averaging.rule": "switch"}
    assert recipe.agent.alrao.value_averaging == {"rule": "switch"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_size=64", ("batch_size", 64)),
        ("gamma = 1e-4", ("gamma", 1e-4)),
        ("alrao.base=sgd", ("alrao.base", "sgd")),
        ('alrao.base="sgd"', ("alrao.base", "sgd")),
        ("policy_averaging=exponentiated-gradient", ("policy_averaging", "exponentiated-gradient")),
        ("net_arch=[64, 64]", ("net_arch", [64, 64])),
        ("use_sde=true", ("use_sde", True)),
        ("x={a = 1}", ("x", {"a": 1})),
    ],
)
def test_parse_override(text, expected):
    key, value = parse_override(text)
    assert (key, value) == expected
    assert type(value) is type(expected[1])


def test_parse_env_kwargs():
    assert parse_env_kwargs(None) == {}
    assert parse_env_kwargs("{gravity = -5.0}") == {"gravity": -5.0}
    assert parse_env_kwargs('map_name="8x8", is_slippery=false') == {"map_name": "8x8", "is_slippery": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind=word", {"kind": "word"}),
        ("map_name=8x8,is_slippery=false", {"map_name": "8x8", "is_slippery": False}),
        ("{kind = a-b, inner = {c=d}, n=[1, 2]}", {"kind": "a-b", "inner": {"c": "d"}, "n": [1, 2]}),
        (r"""a="=x, \"=y", b='=z',c=w""", {"a": '=x, "=y', "b": "=z", "c": "w"}),
        ("a=1_000, b=0x1F, c=1e-4", {"a": 1000, "b": 31, "c": 1e-4}),
        ("a=False, b={c=True}, d='False', e=none", {"a": False, "b": {"c": True}, "d": "False", "e": "none"}),
    ],
)
def test_env_kwargs_take_bare_words(text, expected):
    """As --set does."""
    assert parse_env_kwargs(text) == expected


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ("random_score = -20\nreference_score = -20", "reference_score is -20, expected more than random_score, -20"),
        ("random_score = 5\nreference_score = 1", "reference_score is 1, expected more than random_score, 5"),
        ("random_score = 5\nfloor = 6", "floor is 6, expected at most random_score, 5"),
    ],
)
def test_scores_that_are_no_scale(tmp_path, scores, says):
    path = tmp_path / "own.toml"
    path.write_text(f'id = "CartPole-v1"\n{scores}\n')
    with pytest.raises(UserError, match=re.escape(f"{path}: {says}")):
        load_environment(str(path))


def test_scores_are_of_the_file_s_own_arguments():
    recipe = resolve("dqn", "CartPole-v1", env_kwargs={"sutton_barto_reward": True})
    assert (recipe.environment.random_score, recipe.environment.reference_score, recipe.environment.floor) == (
        None,
    ) * 3
    assert not any("score" in key or "floor" in key for key in recipe.origins)
    assert resolve("dqn", "CartPole-v1").environment.random_score == 22.2


def test_words_of_python():
    """As text they would be true to whoever takes them."""
    assert parse_override("normalize_advantage=False") == ("normalize_advantage", False)
    assert parse_override("alrao.head_max_grad_norm=none") == ("alrao.head_max_grad_norm", "none")
    assert parse_grid(["normalize_observations=True,False"]) == {"normalize_observations": [True, False]}
    for word in ("None", "null"):
        with pytest.raises(UserError, match=f"--set target_kl={word}: TOML has no {word}: leave the key out"):
            parse_override(f"target_kl={word}")
        with pytest.raises(UserError, match=f"TOML has no {word}"):
            parse_env_kwargs(f"a=1, b={word}")
    with pytest.raises(UserError, match="is 'maybe': expected true, false, 'scale' or 'continuous'"):
        resolve("dqn", "CartPole-v1", ["normalize_observations=maybe"])


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "learning_rate"), ("discount", "gamma"), ("nsteps", "n_steps"), ("ent_coeff", "ent_coef"),
        ("entropy_coef", "ent_coef"), ("clip", "clip_range"), ("epochs", "n_epochs"), ("hidden_sizes", "net_arch"),
    ],
)  # fmt: skip
def test_a_key_by_its_name_elsewhere(key, meant):
    assert (
        refused("ppo-adam", "CartPole-v1", f"{key}=1") == f"--set {key}: no such key for ppo; did you mean {meant!r}?"
    )


def test_suggest_is_silent_when_nothing_is_near():
    assert suggest("cartpole-v1", ["Acrobot-v1", "CartPole-v1"]) == "; did you mean 'CartPole-v1'?"
    assert suggest("xyz", ["CartPole-v1"]) == ""


def test_suggestions_for_paths(tmp_path, monkeypatch):
    """Part by part, as they were written; no hidden file, and nothing where a part resembles none there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "first-sweep").mkdir(parents=True)
    (tmp_path / "results" / "first-sweep" / "sweep.toml").touch()
    (tmp_path / "results" / ".lock").touch()
    assert suggest_path(Path("resluts/frist-sweep")) == "; did you mean 'results/first-sweep'?"
    whole = tmp_path / "results" / "first-sweep" / "sweep.toml"
    assert suggest_path(tmp_path / "results" / "first-swep" / "swep.toml") == f"; did you mean '{whole}'?"
    assert suggest_path(whole) == ""
    assert suggest_path(Path("results/lock")) == ""
    assert suggest_path(Path("results/xyz/sweep.toml")) == ""
    assert suggest_path(Path("results/first-sweep/sweep.toml/x")) == ""
    assert suggest_path(Path("a" * 1000)) == ""


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "algo is missing"),
        (
            'algo = "pp0"\npolicy = "alrao"',
            "or 'ddpg'; did you mean 'ppo'?",
        ),
        (PPO + "n_env = 3", "did you mean 'n_envs'?"),
        (PPO + 'n_envs = "3"', "n_envs is '3': expected a valid integer"),
        (PPO + "[hyperparameters]\nbatchsize = 3", "unknown key hyperparameters.batchsize, SB3's PPO takes"),
        (PPO + "[hyperparameters]\nbatchsize = 3", "; did you mean 'batch_size'?"),
        (PPO + "[hyperparameters]\nbuffer_size = 3", "unknown key hyperparameters.buffer_size, SB3's PPO takes"),
        (PPO + "[hyperparameters]\nbatch_size = 1", "hyperparameters.batch_size is 1: expected greater than or equal"),
        (PPO + "[hyperparameters]\ngamma = nan", "hyperparameters.gamma is nan: expected a finite number"),
        (PPO + "[hyperparameters]\ngamma = true", "hyperparameters.gamma is True: expected a valid number"),
        (PPO + "[hyperparameters]\nlearning_rate = 0.1", "an Alrao agent has no learning rate to set"),
        (PPO + '[hyperparameters]\nlearning_rate = "lin_0.1"', "let all rates fall to 0 over the run with"),
        (PPO + "[hyperparameters]\nclip_range = 0", 'clip_range is 0: expected a number greater than 0, or "lin_0.2"'),
        (
            PPO + '[hyperparameters]\nclip_range = "lin_nan"',
            "clip_range is 'lin_nan': expected a number greater than 0",
        ),
        (
            PPO + '[hyperparameters]\nclip_range_vf = "cos_1"',
            "clip_range_vf is 'cos_1': expected a number greater than",
        ),
        (PPO + "[policy_options]\nnet_ach = [5]", "unknown key policy_options.net_ach"),
        (PPO + '[policy_options]\nactivation_fn = "tahn"', "; did you mean 'tanh'?"),
        (PPO + "[alrao]\nn_head = 3", "unknown key alrao.n_head, expected n_heads"),
        (PPO + "[alrao]\nn_heads = 0", "alrao.n_heads is 0: expected greater than or equal to 1"),
        (PPO + "[alrao]\nlr_range = [0.1, 1e-3]", "(did you mean (0.001, 0.1)?)"),
        (PPO + '[alrao]\nbase = "adm"', "; did you mean 'adam'?"),
        (PPO + '[alrao]\nvalue_averaging = "swtch"', "; did you mean 'switch'?"),
        (PPO + '[alrao.base_kwargs]\neps = "a"', "alrao.base_kwargs.eps is 'a': expected a valid number"),
        (PPO + "oops", "is not valid TOML"),
        ('algo = "dqn"\npolicy = "stock"\n[alrao]\nn_heads = 3', "a stock agent has no Alrao options"),
        (
            'algo = "dqn"\npolicy = "alrao"\n[policy_options]\northo_init = true',
            "unknown key policy_options.ortho_init",
        ),
    ],
)
def test_malformed_agent_file(tmp_path, text, expected):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(str(path))
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "id is missing"),
        ('id = "CartPole-v1"\nfloors = 1.0', "unknown key floors, expected id"),
        ('id = "CartPole-v1"\nlearning_rate = 1.0', "unknown key learning_rate"),
        ('id = "CartPole-v1"\nfloor = inf', "floor is inf: expected a finite number"),
        ('id = "CartPole-v1"\n[timesteps]\ndqm = 3', "timesteps.dqm is 'dqm': expected 'dqn', 'a2c', 'ppo'"),
        ('id = "CartPole-v1"\n[timesteps]\ndqn = 0', "timesteps.dqn is 0: expected greater than or equal to 1"),
        ('id = "CartPole-v1"\n[kwargs]\nx = nan', "expected numbers, text, true or false, lists and tables"),
        ('id = "CartPole-v1"\nwrappers = [{when = 1979-05-27}]', "expected numbers, text, true or false"),
        ("id = 3", "id is 3: expected a valid string"),
    ],
)
def test_malformed_environment_file(tmp_path, text, expected):
    path = tmp_path / "env.toml"
    path.write_text(text)
    message = refused("dqn", path)
    assert message.startswith(str(path))
    assert expected in message


def test_environment_file_of_an_unknown_id(tmp_path):
    path = tmp_path / "env.toml"
    path.write_text('id = "CartPol-v1"')
    assert refused("dqn", path).endswith("did you mean 'CartPole-v1'?")


def test_file_that_is_not_there_or_no_text(tmp_path):
    assert refused(tmp_path / "no.toml") == f"cannot read {tmp_path / 'no.toml'}: No such file or directory"
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert refused(tmp_path / "binary.toml").endswith("is not a recipe: expected TOML text")
    (tmp_path / "folder.toml").mkdir()
    assert refused(tmp_path / "folder.toml").startswith("cannot read")
    (tmp_path / "large.toml").write_text("#" * (MAX_BYTES + 1))
    assert "is larger than" in refused(tmp_path / "large.toml")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("endless.toml", "pipe.toml"):
        assert refused(tmp_path / name) == f"cannot read {tmp_path / name}: it is not a file"


@pytest.mark.parametrize(
    "text",
    [
        f"x = {'[' * 21}{']' * 21}",
        "a" + ".a" * 30 + " = 1",
        '"a b" . ' * 30 + "a = 1",
        "[x]\na" + ".a" * 90_000 + " = 1",
    ],
    ids=["lists", "keys", "quoted", "long"],
)
def test_file_that_is_nested_too_deeply(tmp_path, text):
    """Of a long key the time to read it grows with the square of its length."""
    path = tmp_path / "deep.toml"
    path.write_text(text)
    assert refused(path) == f"{path} is not a recipe: it is nested more than 20 tables deep"
    numbers = ", ".join(["0.5"] * 30)
    path.write_text(f"# 0.1.2, see a.b.c...\nx = [{numbers}]\n[a.b.c.d]\ne.f = 1\n")
    assert read_toml(path)["a"]["b"]["c"]["d"] == {"e": {"f": 1}}


@pytest.mark.parametrize("name", ["a\x1b[31m.toml", "a\nb.toml", "..toml"])
def test_file_name_that_no_folder_should_have(tmp_path, name):
    (tmp_path / name).write_text(PPO)
    assert "expected a file name of printable characters" in refused(tmp_path / name)


def test_package_that_a_file_names(tmp_path):
    """A stranger's file may come with a package of that name; who types its name knows it."""
    path = tmp_path / "e.toml"
    path.write_text('id = "json:X-v0"\n')
    assert refused("dqn", path) == (
        f"{path} names the environment 'json:X-v0', for which the package 'json' would be imported: if you trust it, "
        "add --trust"
    )
    assert resolve("dqn", str(path), trust=True).environment.id == "json:X-v0"
    assert resolve("dqn", "json:X-v0").environment.id == "json:X-v0"


def test_unknown_agent():
    assert refused("dqm").endswith("did you mean 'dqn'?")
    assert "ppo-adam" in refused("dqm")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("cartpol-v1", "did you mean 'CartPole-v1'?"),
        ("CartPole", "did you mean 'CartPole-v1'?"),
        ("LunarLander-v2", "Please use `LunarLander-v3` instead"),
        ("Nowhere/Pong-v5", "name the package that registers it"),
        ("nopackage:X-v0", "the package 'nopackage' to import it from is not installed"),
        ("../x:X-v0", "the package '' to import it from is not installed"),
        ("", "unknown environment ''"),
    ],
)
def test_unknown_environment(env, expected):
    assert expected in refused("dqn", env)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batchsize=3", "--set batchsize: no such key for dqn; did you mean 'batch_size'?"),
        ("n_heads=3", "did you mean 'alrao.n_heads'?"),
        ("alrao.n_head=3", "did you mean 'alrao.n_heads'?"),
        ("clip_range=0.2", "no such key for dqn"),
        ("zzz=1", "expected one of n_envs, normalize_observations, normalize_rewards, alrao.n_heads"),
        ("algo=ppo", "--set algo: no such key"),
        ("batch_size=lots", "hyperparameters.batch_size is 'lots': expected a valid integer"),
        ("batch_size=1.5", "hyperparameters.batch_size is 1.5: expected a valid integer"),
        ("batch_size=true", "hyperparameters.batch_size is True: expected a valid integer"),
        ("gamma=1.5", "hyperparameters.gamma is 1.5: expected less than or equal to 1"),
        ("gamma=nan", "hyperparameters.gamma is nan: expected a finite number"),
        ("n_envs=0", "n_envs is 0: expected greater than or equal to 1"),
        ("batch_size", "--set 'batch_size': expected KEY=VALUE"),
        ("batch_size=", "expected a TOML value"),
        ("batch_size=1 2", "expected a TOML value"),
        ("batch_size=1\ngamma=0.5", "expected a TOML value"),
        ("learning_rate=0.1", "an Alrao agent has no learning rate to set"),
        ("learning_rate=lin_2", "an Alrao agent has no learning rate to set"),
        ("hyperparameters.learning_rate=0.1", "an Alrao agent has no learning rate to set"),
        ("net_arch=[0]", "policy_options.net_arch is 0: expected greater than or equal to 1"),
        ("net_arch={pi=[1], vf=[1]}", "expected a valid list"),
        ("alrao.n_heads=0", "alrao.n_heads is 0: expected greater than or equal to 1"),
        ("alrao.n_heads=2.0", "alrao.n_heads is 2.0: expected a valid integer"),
        ("alrao.lr_range=[1, 1e-3]", "(did you mean (0.001, 1.0)?)"),
        ("alrao.lr_range=[0, 1e-3]", "alrao.lr_range is [0.0, 0.001], expected two numbers 0 < lr_min"),
        ("alrao.lr_range=[-1, 1e-3]", "alrao.lr_range is [-1.0, 0.001], expected two numbers"),
        ("alrao.lr_range=[nan, 1e-3]", "alrao.lr_range is [nan, 0.001], expected two numbers"),
        ("alrao.lr_range=[1e-3, inf]", "alrao.lr_range is [0.001, inf], expected two numbers"),
        ("alrao.lr_range=[1e-3]", "alrao.lr_range is [0.001]"),
        ("alrao.base=adm", "did you mean 'adam'?"),
        ("alrao.base_kwargs.beta=1.0", "base_kwargs"),
        ("alrao.base.eps=1.0", "no such key"),
    ],
)
def test_override_that_is_refused(override, expected):
    with pytest.raises(UserError) as error:
        resolve("dqn", "CartPole-v1", [override])
    assert expected in str(error.value)


def test_alrao_option_of_a_stock_agent():
    assert "a stock agent has no Alrao options" in refused("dqn-adam", "CartPole-v1", "alrao.n_heads=3")
    assert resolve("dqn-adam", "CartPole-v1", ["learning_rate=1"]).agent.hyperparameters["learning_rate"] == 1


@pytest.mark.parametrize(("agent", "rate"), [("ppo", "1"), ("ppo-adam", "3e-3"), ("dqn", "1"), ("dqn-adam", "1e-4")])
def test_linear_schedules(agent, rate):
    """``lin_X`` falls from X to 0 over the run; Alrao's rates, by its ratio, all alike."""
    ppo = ["clip_range=lin_0.4", "clip_range_vf=lin_0.2", "n_steps=128", "n_envs=1"] if "ppo" in agent else []
    sets = [f"learning_rate=lin_{rate}", *ppo]
    recipe = resolve(agent, "CartPole-v1", sets)
    model = build(recipe.agent, make_env(recipe, 0, training=True), seed=0)
    for left in (1.0, 0.5, 0.0):
        assert model.lr_schedule(left) == pytest.approx(left * float(rate))
        if ppo:
            assert model.clip_range(left) == pytest.approx(left * 0.4)
            assert model.clip_range_vf(left) == pytest.approx(left * 0.2)
    model.learning_starts = 0
    model.learn(256 if ppo else 400)
    lr = model.policy.optimizer.param_groups[0]["lr"]
    assert 0 <= lr <= 0.51 * float(rate)  # of the last rollout's end, of two


def test_first_value():
    values = [0.1, 3, "lin_0.5", "lin_1e-3", "lin_", "lin_x", "0.1", None, True, [1]]
    found = [first_value(value) for value in values]
    assert found[:4] == [0.1, 3.0, 0.5, 1e-3]
    assert all(math.isnan(value) for value in found[4:])


def test_part_of_a_rule_that_is_a_word(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(PPO + '[alrao]\nvalue_averaging = "switch"\n')
    assert "value_averaging is not a table" in refused(path, "CartPole-v1", "alrao.value_averaging.window=3")


@pytest.mark.parametrize("timesteps", [0, -5])
def test_timesteps_that_are_refused(timesteps):
    assert refused(timesteps=timesteps) == f"--timesteps is {timesteps}, expected a whole number of at least 1"


@pytest.mark.parametrize("text", ["gravity", "{", "gravity=", "a=1}, {b=2", "a=x y", "a=word\nb=3"])
def test_env_kwargs_that_are_no_table(text):
    with pytest.raises(UserError, match=r"^--env-kwargs is .*, expected TOML such as"):
        parse_env_kwargs(text)


def test_env_kwargs_that_no_json_holds():
    assert refused(env_kwargs={"x": float("nan")}).startswith("--env-kwargs: kwargs is {'x': nan}")


def test_reading_recipes_imports_no_torch():
    code = (
        "import sys; from alrao_rl.recipes.files import load_agent_recipe, load_environment; load_agent_recipe('dqn'); "
        "load_environment('CartPole-v1'); assert not {'torch', 'stable_baselines3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, mark):
    """Windows editors begin a text with one."""
    (tmp_path / "env.toml").write_bytes(mark + b'id = "CartPole-v1"\r\nkwargs = {sutton_barto_reward = true}\r\n')
    (tmp_path / "agent.toml").write_bytes(mark + b'algo = "ppo"\npolicy = "stock"\nn_envs = 3\n')
    recipe = resolve(str(tmp_path / "agent.toml"), str(tmp_path / "env.toml"))
    assert (recipe.environment.id, recipe.environment.kwargs) == ("CartPole-v1", {"sutton_barto_reward": True})
    assert (recipe.agent.algo, recipe.agent.n_envs) == ("ppo", 3)
    (tmp_path / "bad.toml").write_bytes(mark + b"a b")
    with pytest.raises(UserError, match=r"is not valid TOML: .*line 1, column 3"):
        read_toml(tmp_path / "bad.toml")
