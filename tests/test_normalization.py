"""Observations and rewards that are normalised, for continuous actions by the recipes."""

import csv
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from common import arguments, bits
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage

from alrao_rl import load_agent
from alrao_rl.agents.build import build
from alrao_rl.environments.make import make_env, settle
from alrao_rl.environments.normalization import RunningMeanSquare
from alrao_rl.recipes.files import load_agent_recipe
from alrao_rl.recipes.resolve import resolve
from alrao_rl.recipes.schema import NORMALIZATIONS
from alrao_rl.sweep import plan
from alrao_rl.train import state as snapshot
from alrao_rl.train.command import main
from alrao_rl.train.evaluation import Evaluator

CONTINUOUS = ["ppo", "ppo-adam", "a2c", "a2c-rmsprop", "recurrent-ppo", "recurrent-ppo-adam"]
STEADY = """
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Steady(gym.Env):
    '''Four steps an episode, 1,000 a step; the observation counts them.'''

    metadata = {"render_modes": []}
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, image=False):
        self.observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8) if image else spaces.Box(-9.0, 9.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self):
        return np.full(self.observation_space.shape, self.steps, self.observation_space.dtype)

    def step(self, action):
        self.steps += 1
        return self.observe(), 1000.0, self.steps == 4, False, {}

gym.register("Steady-v0", Steady)
"""


@pytest.fixture
def steady(install):
    install("steady", STEADY)
    return "steady:Steady-v0"


def config(args):
    recipe = settle(resolve(*args))
    return {key: recipe.as_dict().get(key) for key in NORMALIZATIONS}


@pytest.mark.parametrize("agent", CONTINUOUS)
def test_continuous_is_settled_by_the_actions(agent):
    both = {"normalize_observations": True, "normalize_rewards": True}
    assert config((agent, "Pendulum-v1")) == both
    # As before there was such a key: not there where it does nothing.
    discrete = settle(resolve(agent, "CartPole-v1"))
    assert discrete.as_dict()["normalize_observations"] is False
    assert "normalize_rewards" not in discrete.as_dict()
    assert discrete.is_settled


def test_paper_and_replay_recipes_are_as_they_were():
    assert load_agent_recipe("a2c-paper")[1].normalize_observations is False
    assert load_agent_recipe("dqn")[1].normalize_observations == "scale"
    assert resolve("dqn", "CartPole-v1").is_settled


@pytest.mark.skipif(not hasattr(gym.wrappers, "DiscretizeAction"), reason="this Gymnasium has no such wrapper")
def test_wrappers_decide_too(tmp_path):
    file = tmp_path / "discrete.toml"
    file.write_text('id = "Pendulum-v1"\n[[wrappers]]\nname = "DiscretizeAction"\nbins = 3\n')
    assert config(("ppo", str(file))) == {"normalize_observations": False, "normalize_rewards": None}


@pytest.mark.parametrize(
    ("override", "observations", "rewards"),
    [
        ("normalize_rewards=false", True, None),
        ("normalize_observations=false", False, True),
        ("normalize_observations=scale", "scale", True),
    ],
)
def test_overridden(override, observations, rewards):
    found = config(("ppo", "Pendulum-v1", [override]))
    assert found == {"normalize_observations": observations, "normalize_rewards": rewards}


def test_dry_run_says_why(capfd):
    assert main(["--algo", "ppo", "--env", "Pendulum-v1", "--set", "normalize_observations=true", "--dry-run"]) == 0
    lines = [line.split(maxsplit=3) for line in capfd.readouterr().out.splitlines() if line.startswith("normalize")]
    assert [line[:3] for line in lines] == [["normalize_observations", "=", "True"], ["normalize_rewards", "=", "True"]]
    assert lines[0][3] == "--set normalize_observations=true"
    assert lines[1][3].endswith('ppo.toml: "continuous", and the actions are Box(-2.0, 2.0, (1,), float32)')


def test_no_other_word(capfd):
    assert main(["--algo", "ppo", "--env", "Pendulum-v1", "--set", "normalize_rewards=scale", "--dry-run"]) == 2
    said = capfd.readouterr().err
    assert said == "error: --set: normalize_rewards is 'scale': expected true, false or 'continuous'\n"


def test_a_sweep_plans_the_same():
    data = {"name": "x", "agents": ["ppo", "dqn"], "envs": ["CartPole-v1"], "seeds": [0], "timesteps": 10}
    cells = plan.cells(plan.checked(data, "test"))
    assert [cell.config["normalize_observations"] for cell in cells] == [False, "scale"]
    data |= {"agents": ["ppo"], "envs": ["Pendulum-v1"]}
    assert plan.cells(plan.checked(data, "test"))[0].config["normalize_rewards"] is True


def test_rewards_are_scaled_by_the_return_of_the_agents_gamma(steady):
    recipe = settle(resolve("ppo-adam", steady, ["gamma=0.5", "n_envs=1"]))
    env = make_env(recipe, 0, training=True)
    env.reset()
    returns = [1000, 1500, 1750, 1875] * 3  # discounted by 0.5, anew with each episode
    for _ in returns:
        _, rewards, _, infos = env.step(np.zeros((1, 1)))
        assert env.get_original_reward().tolist() == [1000.0]
    assert infos[0]["episode"]["r"] == 4000.0
    # SB3 begins with variance 1, at a weight of 1e-4.
    assert float(rewards[0]) == pytest.approx(1000 / np.std(returns), rel=1e-3)


def test_returns_in_the_logs_and_evaluations_are_not_scaled(steady, tmp_path):
    out = tmp_path / "run"
    assert main([*arguments("ppo", steady, 1500), "--eval-budget", "1", "--out", str(out)]) == 0
    written = json.loads((out / "config.json").read_text())
    assert (written["normalize_observations"], written["normalize_rewards"]) == (True, True)
    for name, column in (("episodes.csv", "return"), ("evaluations.csv", "mean_return")):
        with (out / name).open(newline="") as file:
            found = {row[column] for row in csv.DictReader(file)}
        assert {float(value) for value in found} == {4000.0}
    agent = load_agent(out)
    assert agent.policy.statistics[""].mean == pytest.approx([1.5], abs=0.1)  # of 0, 1, 2, 3: raw observations go in
    assert json.loads((out / "agent.json").read_text())["agent"]["normalize_rewards"] is True


def test_evaluations_take_the_statistics_of_observations_only(steady):
    recipe = settle(resolve("ppo-adam", steady, [], 64))
    model = build(recipe.agent, make_env(recipe, 0, training=True), 0)
    model.env.reset()
    evaluations = Evaluator(recipe, 0)
    env = evaluations._vectorized(model, 2, None)
    assert isinstance(env, VecNormalize)
    assert (env.training, env.norm_obs, env.norm_reward) == (False, True, False)
    assert env.obs_rms is model.env.obs_rms
    evaluations.close()


def test_rewards_alone_beside_images(steady):
    """Images are scaled by SB3; they are transposed below the normalisation, as what replay keeps has to be."""
    recipe = settle(resolve("ppo-adam", steady, [], 64, {"image": True}))
    env = make_env(recipe, 0, training=True)
    assert isinstance(env, VecNormalize)
    assert (env.norm_obs, env.norm_reward) == (False, True)
    assert isinstance(env.venv, VecTransposeImage)
    assert env.reset().shape == (8, 1, 36, 36)
    assert not isinstance(make_env(recipe, 0, training=False), VecNormalize)


@pytest.mark.parametrize("is_old", [False, True])
def test_statistics_of_rewards_are_part_of_a_checkpoint(is_old):
    recipe = settle(resolve("ppo", "Pendulum-v1", ["n_steps=32", "n_envs=4", "batch_size=32"], 256))
    model = build(recipe.agent, make_env(recipe, 0, training=True), 0).learn(128)
    state = snapshot.take(model)
    other = build(recipe.agent, make_env(recipe, 0, training=True), 0)
    other._setup_learn(128)
    # A checkpoint from before an algorithm could have several optimizers has the policy's under another key.
    old = {**state, "optimizer": state["optimizers"]["policy.optimizer"]}
    assert snapshot.put_back({key: old[key] for key in old if key != "optimizers"} if is_old else state, other) == {}
    one, two = model.get_vec_normalize_env(), other.get_vec_normalize_env()
    assert (one.ret_rms.mean, one.ret_rms.var, one.ret_rms.count) == (
        two.ret_rms.mean, two.ret_rms.var, two.ret_rms.count,
    )  # fmt: skip
    assert one.returns.tolist() == two.returns.tolist()
    assert one.returns.any()
    assert dict(bits(snapshot.take(other))) == dict(bits(state))


def test_the_class_of_statistics_is_where_exported_agents_look_for_it():
    """Pickles name it by the module it was in when it was written."""
    assert pickle.loads(b"calrao_rl.envs\nRunningMeanSquare\n.") is RunningMeanSquare
