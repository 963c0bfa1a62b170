"""Evaluations on the way: within their budget, and without a trace in training."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from common import arguments

from alrao_rl import load_agent
from alrao_rl.agents.build import build
from alrao_rl.enjoy import main as enjoy
from alrao_rl.environments.make import make_env
from alrao_rl.recipes.resolve import resolve
from alrao_rl.runs.configuration import identity
from alrao_rl.sweep import plan
from alrao_rl.train import evaluation
from alrao_rl.train.command import main
from alrao_rl.train.evaluation import Budget, Evaluator

ODD = """
import random
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Odd(gym.Env):
    '''Draws its observations and the length of its episodes from NumPy's and Python's global generators.'''

    metadata = {"render_modes": []}
    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)

    def __init__(self, constant=False):
        self.constant = constant

    def observe(self):
        return np.random.uniform(-1, 1, 2).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5 if self.constant else random.randint(3, 9)
        return self.observe(), {}

    def step(self, action):
        self.left -= 1
        return self.observe(), 1.0 if self.constant else float(action), self.left == 0, False, {}

gym.register("Odd-v0", Odd)
"""


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def status(out):
    return json.loads((out / "status.json").read_text())


@pytest.fixture
def odd(install):
    install("odd", ODD)
    return "odd:Odd-v0"


# --- the budget -----------------------------------------------------------------------------------------------------


def test_budget_by_hand():
    budget = Budget(0.1, 1000)
    assert budget.share(20, 500, last=False) == (0, 0)  # nobody knows how long an episode is
    assert not budget.is_promising()
    budget.note([(3.0, 4), (5.0, 6)])
    assert budget.is_promising()
    assert budget.share(20, 400, last=False) == (6, 40)  # 0.1 * 400 steps, 6 at most an episode
    assert budget.share(3, 400, last=False) == (3, 40)
    budget.spend(15, 3)
    assert budget.share(20, 400, last=False) == (4, 25)
    assert budget.share(20, 400, last=False, begun=True) == (5, 25)  # this network's take 5
    budget.spend(15, 1)
    assert budget.share(20, 400, last=False) == (0, 10)  # and now 15
    assert budget.share(20, 990, last=False) == (3, 50)  # 0.8 * 100 - 30: the rest is for the end
    assert budget.share(20, 1000, last=True) == (4, 70)
    budget.spend(70, 7)
    assert budget.share(20, 1000, last=True) == (0, 0)


def test_promising_is_as_good_as_ever_but_for_noise():
    budget = Budget(0.1, 1000)
    for returns, promising in [([1, 1], True), ([5, 5], True), ([1, 1], False)]:
        budget.note([(one, 1) for one in returns * 10])
        assert budget.is_promising() is promising
    budget.note([(one, 1) for one in [-5, 14] * 10])  # 4.5 with a standard error of 9.5 / sqrt(20) = 2.1
    assert budget.is_promising()


def test_state_of_a_budget():
    one, two = Budget(0.1, 1000), Budget(0.1, 1000)
    one.note([(3.0, 4), (5.0, 6)])
    one.is_promising()
    one.spend(30, 3)
    two.put_back(json.loads(json.dumps(one.state())))
    assert two.share(20, 700, last=False) == one.share(20, 700, last=False) == (4, 40)


# --- playing --------------------------------------------------------------------------------------------------------


def evaluator(env, *sets):
    recipe = resolve("ppo-adam", env, sets, 100)
    model = build(recipe.agent, make_env(recipe, 0, training=True), 0)
    return Evaluator(recipe, 0), model


@pytest.mark.parametrize(("episodes", "at_a_time", "environments"), [(3, 100, 3), (7, 3, 3)])
def test_as_many_environments_as_episodes_and_every_step_counts(odd, monkeypatch, episodes, at_a_time, environments):
    monkeypatch.setattr(evaluation, "MOST_ENVIRONMENTS", at_a_time)
    kwargs = resolve("ppo-adam", odd, [], 100, {"constant": True})
    model = build(kwargs.agent, make_env(kwargs, 0, training=True), 0)
    evaluations = Evaluator(kwargs, 0)
    returns, steps = evaluations.play(model, episodes, 10**6)
    assert returns.tolist() == [5.0] * episodes
    assert steps == 5 * episodes
    assert len(evaluations._environments) == environments
    assert sum(env.total_steps for env in evaluations._environments) == steps
    assert evaluations.play(model, 1, 5)[1] == 5
    assert evaluations.play(model, 3, 14) == (None, 14)  # the third one lacks a step
    assert evaluations.play(model, 3, 15)[0].tolist() == [5.0] * 3
    evaluations.close()


def test_global_generators_are_left_alone(odd):
    evaluations, model = evaluator(odd)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    evaluations.play(model, 4, 1000)
    assert (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()) == before
    evaluations.close()


def test_every_episode_is_another_and_goes_on_from_a_state():
    evaluations, model = evaluator("CartPole-v1")
    first = evaluations.play(model, 6, 10**6)[0]
    assert len(set(first)) > 1
    state = evaluations.state()
    second = evaluations.play(model, 6, 10**6)[0]
    assert first.tolist() != second.tolist()
    again, _ = evaluator("CartPole-v1")
    again.put_back(state)
    assert again.play(model, 6, 10**6)[0].tolist() == second.tolist()


# --- in a run -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["dqn", "a2c", "ppo"])
def test_training_does_not_depend_on_evaluations(odd, tmp_path, agent):
    """Not even where the environment draws from the generators that everybody has."""
    ways = [
        ["--eval-episodes", "0"],
        ["--eval-budget", "0"],
        ["--eval-episodes", "20", "--eval-budget", "0.1"],
        ["--eval-budget", "50", "--eval-freq", "7", "--eval-episodes", "3"],
    ]
    outs = [tmp_path / str(number) for number in range(len(ways))]
    for way, out in zip(ways, outs, strict=True):
        random.seed(1)  # it takes its first draw from here, before the run has a seed
        assert main([*arguments(agent, odd, 600), *way, "--out", str(out)]) == 0
        weights = [json.loads((one / "last.json").read_text())["sha256"] for one in (outs[0], out)]
        assert weights[0] == weights[1]
        for name in ("episodes.csv", "heads.csv"):
            assert (out / name).read_bytes() == (outs[0] / name).read_bytes()
    evaluated = [len(rows(out / "evaluations.csv")) for out in outs]
    assert evaluated[:2] == [0, 0]
    assert 0 < evaluated[2] <= evaluated[3]
    spent = [status(out)["evaluation_steps"] for out in outs]
    assert spent[:2] == [0, 0]
    assert 0 < spent[2] <= 60 < spent[3]


def test_where_nothing_is_evaluated_the_best_agent_is_the_last(tmp_path, capfd):
    out = tmp_path / "run"
    args = [*arguments("dqn", "CartPole-v1", 300), "--out", str(out)]
    args.remove("--quiet")
    assert main([*args, "--eval-episodes", "0"]) == 0
    said = capfd.readouterr().out
    assert "dqn on CartPole-v1: not evaluated" in said
    assert "agent.safetensors is the last agent" in said
    assert "evaluation " not in said
    assert (out / "agent.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()
    assert json.loads((out / "agent.json").read_text())["mean_return"] is None
    facts = status(out)
    assert [facts[key] for key in ("state", "best_return", "best_timestep", "last_return")] == [
        "finished", None, 300, None,
    ]  # fmt: skip
    assert len(rows(out / "timing.csv")) == 50
    assert enjoy([str(out), "--episodes", "1"]) == 0
    assert load_agent(out).predict(np.zeros(4, np.float32))[0].shape == ()
    capfd.readouterr()
    # The same run, and it is finished, however it is to be evaluated.
    assert main([*args, "--eval-episodes", "5"]) == 0
    printed = capfd.readouterr()
    assert f"{out} is finished" in printed.out
    said = "warning: the run is finished and was evaluated differently (eval_episodes: 0 -> 5): another --out "
    assert printed.err.startswith(said)


def test_the_untrained_network_is_not_evaluated(tmp_path):
    args = arguments("dqn", "CartPole-v1", 300, "learning_starts=200")
    assert main([*args, "--eval-budget", "100", "--out", str(tmp_path)]) == 0
    steps = [int(row["timestep"]) for row in rows(tmp_path / "evaluations.csv")]
    assert min(steps) > 200
    assert steps[-1] == 300


def test_ties_go_to_the_later(odd, tmp_path):
    """Every episode there is worth 5."""
    out = tmp_path / "run"
    args = [*arguments("a2c", odd, 300), "--env-kwargs", "constant=true", "--eval-budget", "9", "--out", str(out)]
    assert main(args) == 0
    assert len(rows(out / "evaluations.csv")) > 2
    facts = status(out)
    assert (facts["best_return"], facts["best_timestep"], facts["last_return"]) == (5.0, 300, 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.1, 0.3, 1.0])
def test_the_budget_is_never_exceeded(tmp_path, budget):
    args = [*arguments("ppo", "CartPole-v1", 3000), "--eval-budget", str(budget), "--out", str(tmp_path)]
    assert main([*args, "--eval-episodes", "20"]) == 0
    assert 0 < status(tmp_path)["evaluation_steps"] <= budget * 3000
    assert len(rows(tmp_path / "evaluations.csv")) > 0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--eval-episodes", "-1", "--eval-episodes is -1, expected a whole number from 1, or 0 for none"),
        ("--eval-freq", "0", "--eval-freq is 0, expected a whole number of timesteps, at least 1"),
        ("--eval-budget", "-0.5", "--eval-budget is -0.5, expected a number of at least 0"),
        ("--eval-budget", "nan", "--eval-budget is nan, expected a number of at least 0"),
    ],
)
def test_refused(capfd, option, value, says):
    assert main(["--algo", "dqn", "--env", "CartPole-v1", option, value]) == 2
    assert says in capfd.readouterr().err


# --- identity -------------------------------------------------------------------------------------------------------


def test_evaluations_make_no_other_run():
    def run(**evaluation):
        data = {"name": "x", "agents": ["dqn"], "envs": ["CartPole-v1"], "seeds": [0], **evaluation}
        sweep = plan.checked(data, "test")
        return plan.runs(sweep, plan.cells(sweep))[0]

    default, other = run(), run(eval_episodes=0, eval_freq=10, eval_budget=0.5)
    assert "eval_freq" not in default.config
    assert "eval_budget" not in default.config
    assert default.config["eval_episodes"] == 20
    assert [other.config[key] for key in ("eval_episodes", "eval_freq", "eval_budget")] == [0, 10, 0.5]
    assert identity(default.config) == identity(other.config)
    assert default.digests[0] == other.digests[0]
    assert other.options.arguments()[-10:-4] == (
        "--eval-episodes", "0", "--eval-freq", "10", "--eval-budget", "0.5",
    )  # fmt: skip
