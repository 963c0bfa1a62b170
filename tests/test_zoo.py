"""docs/rl-baselines3-zoo.md: its commands, in the zoo's own environment, on an agent that trains for a moment."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "rl-baselines3-zoo.md"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The zoo's Python, with requests, which it forgets to ask for, and the packages of ours that it lacks."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import sweep

    sweep.install_zoo()
    python, more = sweep.CACHE / "bin" / "python", tmp_path_factory.mktemp("more")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        more,
        "requests",
        "pandas",
        "safetensors",
        "pydantic",
    ]
    subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{more}", "OMP_NUM_THREADS": "1"}

    def run(command, cwd, *more):
        words = [str(python), *shlex.split(command)[1:], *more]
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.long
def test_commands_of_the_page(zoo, tmp_path):
    train, enjoy = re.findall(r"^python -m rl_zoo3\.\w+ .*$", PAGE.read_text(), re.MULTILINE)
    done = zoo(train, tmp_path, "-n", "2000", "--eval-freq", "1000", "--eval-episodes", "1")
    assert done.returncode == 0, done.stderr
    assert "('policy', 'alrao_rl.AlraoPolicy')" in done.stdout
    done = zoo(enjoy, tmp_path, "-n", "1000")  # an episode has at most 500 steps
    assert done.returncode == 0, done.stderr
    assert "Mean reward" in done.stdout


@pytest.mark.long
def test_a_search_without_a_rate(zoo, tmp_path):
    (tmp_path / "search.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    options = "--algo ppo --env CartPole-v1 -n 200 -optimize --n-trials 1 --n-evaluations 1 --no-optim-plots -params"
    done = zoo(f"python search.py {options}", tmp_path, "policy:'alrao_rl.AlraoPolicy'")
    assert done.returncode == 0, done.stderr
    chosen = done.stdout.partition("Best trial:")[2]  # what stands before it is of the zoo's configuration
    assert "n_epochs" in chosen
    assert "learning_rate" not in chosen


@pytest.mark.long
@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_a_tuned_configuration_with_the_policy_in_its_place(zoo, tmp_path, algo):
    train = f"python -m rl_zoo3.train --algo {algo} --env Pendulum-v1 -n 300 --eval-freq -1 -params learning_starts:100"
    done = zoo(train, tmp_path, "policy:'alrao_rl.AlraoPolicy'")
    assert done.returncode == 0, done.stderr
    assert "('policy', 'alrao_rl.AlraoPolicy')" in done.stdout


SMALL = """  policy_kwargs: "dict(net_arch=[16, 16])"
  batch_size: 16
"""
# As the zoo has them for most continuous environments.
ANNEALED = """  learning_rate: lin_7.3e-4
  use_sde: True
  train_freq: 8
  gradient_steps: 8
  policy_kwargs: "dict(log_std_init=-3, net_arch=[16, 16], use_expln=True)"
"""
NOISY = f"""{SMALL}  noise_type: 'normal'
  noise_std: 0.1
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("algo", "env", "policy", "more"),
    [
        ("dqn", "CartPole-v1", "AlraoPolicy", ""),
        ("ppo", "CartPole-v1", "AlraoPolicy", ""),
        ("qrdqn", "CartPole-v1", "AlraoQRDQNPolicy", '  policy_kwargs: "dict(n_quantiles=5)"\n'),
        ("ppo_lstm", "CartPoleNoVel-v1", "AlraoLstmPolicy", ""),
        ("sac", "Pendulum-v1", "AlraoPolicy", SMALL),
        ("sac", "Pendulum-v1", "AlraoPolicy", ANNEALED),
        ("td3", "Pendulum-v1", "AlraoPolicy", NOISY),
        ("ddpg", "Pendulum-v1", "AlraoPolicy", NOISY),
        ("tqc", "Pendulum-v1", "AlraoTQCPolicy", ANNEALED),
        ("crossq", "Pendulum-v1", "AlraoCrossQPolicy", f"{SMALL}  policy_delay: 2\n"),
    ],
)
def test_policies_of_the_page(zoo, tmp_path, algo, env, policy, more):
    """By a configuration of one's own."""
    (tmp_path / "my.yml").write_text(f"{env}:\n  n_timesteps: 1000\n  policy: 'alrao_rl.{policy}'\n{more}")
    train = f"python -m rl_zoo3.train --algo {algo} --env {env} --conf-file my.yml --eval-freq -1"
    done = zoo(train, tmp_path)
    assert done.returncode == 0, done.stderr
    done = zoo(f"python -m rl_zoo3.enjoy --algo {algo} --env {env} --folder logs/ --no-render -n 100", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_an_optimizer_is_refused(zoo, tmp_path):
    train = "python -m rl_zoo3.train --algo ppo --env CartPole-v1 -n 100 -params"
    options = '"dict(optimizer_kwargs=dict(eps=1e-3))"'
    done = zoo(train, tmp_path, "policy:'alrao_rl.AlraoPolicy'", f"policy_kwargs:{options}")
    assert done.returncode != 0
    assert "has no effect on an Alrao policy: choose the base update instead" in done.stderr


@pytest.mark.long
def test_an_optimizer_of_a_configuration_is_taken_back_as_the_page_says(zoo, tmp_path):
    options = "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=1e-5))"
    (tmp_path / "my.yml").write_text(f'CartPole-v1:\n  n_timesteps: 500\n  policy_kwargs: "{options}"\n')
    taken_back = re.search(r'"policy_kwargs:dict\(\)"', PAGE.read_text())[0]
    train = "python -m rl_zoo3.train --algo a2c --env CartPole-v1 --conf-file my.yml --eval-freq -1 -params"
    policy = "policy:'alrao_rl.AlraoPolicy'"
    done = zoo(train, tmp_path, policy)
    assert "optimizer_class=RMSpropTFLike" in done.stderr
    done = zoo(train, tmp_path, policy, *shlex.split(taken_back))
    assert done.returncode == 0, done.stderr
