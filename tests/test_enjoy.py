"""``python -m alrao_rl.enjoy``: returns, videos, errors."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from common import one_error
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from alrao_rl import load_agent, save_agent
from alrao_rl.agents.build import build
from alrao_rl.enjoy import main
from alrao_rl.environments import rendering
from alrao_rl.numbers import significant
from alrao_rl.recipes.validation import check_agent

ROOT = Path(__file__).parent.parent
CARTPOLE = {"id": "CartPole-v1"}


def save_run(folder, environment, algo="ppo", name="agent", n_heads=3, **more):
    """An untrained agent as a run folder holds it."""
    folder.mkdir(exist_ok=True)
    small = {"buffer_size": 10} if algo == "dqn" else {"n_steps": 8, "batch_size": 8}
    data = {"algo": algo, "policy": "alrao", "hyperparameters": small, "alrao": {"n_heads": n_heads, "seed": 0}} | more
    agent = check_agent(data | {"policy_options": {"net_arch": [4]}}, "test")
    env = DummyVecEnv([lambda: gym.make(environment["id"])])
    if agent.normalize_observations:
        env = VecNormalize(env, norm_reward=False)
        env.obs_rms.mean[:] = 100.0
    model = build(agent, env, seed=0)
    save_agent(model, agent, folder / name, environment=environment)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("enjoy") / "run", CARTPOLE)


@pytest.fixture(autouse=True)
def _environ(monkeypatch):
    """As on a machine without a display, and forgotten after each test: a video sets some of these."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def refused(capfd, *args, status=2):
    return one_error(main, capfd, *args, status=status)


def played(out):
    return [float(value) for value in re.findall(r"^episode \d+: return (\S+)$", out, re.M)]


def test_returns_are_those_of_the_agent(run, capfd):
    assert main([str(run), "--episodes", "3", "--seed", "5"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    model, env, expected = load_agent(run), gym.make("CartPole-v1"), []
    for episode in range(3):
        observation, _ = env.reset(seed=5 if episode == 0 else None)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
            total += reward
            done = terminated or truncated
        expected.append(total)
    assert played(printed.out) == expected
    assert printed.out.splitlines()[-1] == f"mean return over 3 episodes: {significant(np.mean(expected))}"


@pytest.mark.slow
def test_the_real_command(run, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "alrao_rl.enjoy", str(run), "--episodes", "2"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(played(done.stdout)) == 2


def test_help_imports_no_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = sys.modules['gymnasium'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "alrao_rl.enjoy", "--help"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "--video" in done.stdout


def test_last_agent_and_path_of_a_file(run, tmp_path, capfd):
    assert f"cannot read the agent {run / 'last.safetensors'}" in refused(capfd, run, "--last")
    folder = save_run(tmp_path / "run", CARTPOLE, name="last", n_heads=2)
    assert main([str(folder), "--last", "--episodes", "1"]) == 0
    by_name = capfd.readouterr().out
    assert main([str(folder / "last.safetensors"), "--episodes", "1"]) == 0
    assert capfd.readouterr().out == by_name


def test_stochastic_dqn_explores(tmp_path, capfd):
    folder = save_run(tmp_path / "run", CARTPOLE, "dqn", hyperparameters={"exploration_final_eps": 1.0})
    np.random.seed(0)
    assert main([str(folder), "--episodes", "5", "--stochastic"]) == 0
    random = played(capfd.readouterr().out)
    assert main([str(folder), "--episodes", "5"]) == 0
    greedy = played(capfd.readouterr().out)
    assert max(greedy) <= 12  # untrained, it always pushes the cart to the same side
    assert max(random) > 12


@pytest.mark.parametrize(("every", "matrices"), [(-1, 1), (4, 3)])
def test_gsde_draws_its_noise_as_in_training(tmp_path, monkeypatch, every, matrices):
    environment = {"id": "Pendulum-v1", "wrappers": [{"name": "TimeLimit", "max_episode_steps": 10}]}
    sde = {"n_steps": 8, "batch_size": 8, "use_sde": True, "sde_sample_freq": every}
    folder, seen = save_run(tmp_path / "run", environment, hyperparameters=sde), []
    predict = PPO.predict

    def spied(self, *args, **kwargs):
        seen.append(float(self.policy.action_dist.exploration_mat.sum()))
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(PPO, "predict", spied)
    assert main([str(folder), "--episodes", "3", "--stochastic"]) == 0
    episodes = [seen[i : i + 10] for i in (0, 10, 20)]
    assert len(seen) == 30
    assert len(set(seen)) == 3 * matrices  # steps 0 to 3, 4 to 7, 8 and 9 of each, or all of them
    for episode in episodes:
        assert [a != b for a, b in itertools.pairwise(episode)] == [every > 0 and i % every == 0 for i in range(1, 10)]
    seen.clear()
    assert main([str(folder), "--episodes", "3"]) == 0
    assert len(set(seen)) == 1  # of no use to the most likely action


def test_normalized_agent_is_given_raw_observations(tmp_path, capfd, monkeypatch):
    folder = save_run(tmp_path / "run", CARTPOLE, normalize_observations=True)
    assert main([str(folder), "--episodes", "2"]) == 0
    assert len(played(capfd.readouterr().out)) == 2
    # With a mean of 100 every observation of CartPole is clipped to -10: the action can never change.
    model = load_agent(folder)
    actions = {int(model.predict(np.array(x, np.float32), deterministic=True)[0]) for x in np.eye(4) * 5}
    assert len(actions) == 1


def test_wrappers_and_kwargs_of_the_environment_are_kept(tmp_path, capfd):
    environment = {
        "id": "Pendulum-v1",
        "wrappers": [{"name": "TimeLimit", "max_episode_steps": 2}],
        "kwargs": {"g": 0.0},
    }
    assert main([str(save_run(tmp_path / "run", environment)), "--episodes", "1"]) == 0
    # Two steps cost at most 2 · 16.3.
    assert -33 < played(capfd.readouterr().out)[0] < 0


def test_a_video_shows_how_an_episode_ends(run, tmp_path, monkeypatch, capfd):
    """One picture after the reset and one after every step."""
    shown = []
    monkeypatch.setattr("alrao_rl.enjoy._write_video", lambda path, frames, fps: shown.extend(frames))
    monkeypatch.setattr("alrao_rl.enjoy._import_moviepy", lambda: None)
    assert main([str(run), "--episodes", "1", "--video", str(tmp_path / "play.mp4")]) == 0
    (length,) = played(capfd.readouterr().out)  # a reward of 1 a step
    assert len(shown) == length + 1


@pytest.mark.slow
def test_video(run, tmp_path, capfd):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    video = tmp_path / "play.mp4"
    assert main([str(run), "--episodes", "1", "--video", str(video)]) == 0
    assert f"video: {video}" in capfd.readouterr().out
    assert video.read_bytes()[4:8] == b"ftyp"
    assert list(tmp_path.iterdir()) == [video]


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["Reacher-v5", "HalfCheetah-v5", "LunarLanderContinuous-v3", "BipedalWalker-v3"])
def test_video_without_a_display(tmp_path, env_id):
    """In a process of its own, as which library draws is settled once; three pictures, not all of one colour."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")  # of moviepy
    if env_id.endswith("-v5") and not any(map(rendering._draws, ("egl", "osmesa"))):
        pytest.skip("neither EGL nor OSMesa is installed here")
    folder = save_run(tmp_path / "run", {"id": env_id, "wrappers": [{"name": "TimeLimit", "max_episode_steps": 2}]})
    video = tmp_path / "play.mp4"
    done = subprocess.run(
        [sys.executable, "-m", "alrao_rl.enjoy", str(folder), "--episodes", "1", "--video", str(video)],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["play.mp4", "run"]
    small = ["-vf", "scale=64:64", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    done = subprocess.run([ffmpeg.get_ffmpeg_exe(), "-i", str(video), *small], capture_output=True, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 64 * 64)
    assert len(frames) == 3
    assert frames.std(axis=1).min() > 10


@pytest.mark.parametrize(
    ("drawing", "chosen", "expected"),
    [
        ({"egl", "osmesa", "glfw"}, None, "egl"),
        ({"osmesa", "glfw"}, None, "osmesa"),
        ({"glfw"}, None, "glfw"),
        ({"egl", "glfw"}, "glfw", "glfw"),
        (set(), None, "error: Reacher-v5 cannot be drawn: MuJoCo needs EGL or OSMesa where there is no display; on "
         "Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri\n"),
        ({"egl"}, "osmesa", "error: Reacher-v5 cannot be drawn with MUJOCO_GL=osmesa on this machine, expected "
         "MUJOCO_GL=egl\n"),
        (set(), "elg", "error: Reacher-v5 cannot be drawn with MUJOCO_GL=elg on this machine, expected a library that "
         "is installed\n"),
    ],
)  # fmt: skip
def test_what_mujoco_draws_with(tmp_path, monkeypatch, capfd, drawing, chosen, expected):
    monkeypatch.setattr(rendering, "_draws", lambda backend: backend in drawing)
    if chosen:
        monkeypatch.setenv("MUJOCO_GL", chosen)
    if drawing and expected in drawing:
        rendering.draw_without_display("Reacher-v5")
        assert os.environ["MUJOCO_GL"] == expected
    else:
        folder = save_run(tmp_path / "run", {"id": "Reacher-v5"})
        assert refused(capfd, folder, "--video", tmp_path / "x.mp4") == expected
        assert os.environ.get("MUJOCO_GL") == chosen
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_what_may_be_mujocos_is_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(rendering, "_draws", tried.append)
    rendering.draw_without_display("CartPole-v1")
    assert tried == []
    rendering.draw_without_display("package:Own-v0")  # what it draws with is not known: this is no error
    assert tried == ["egl", "osmesa", "glfw"]
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rendering.draw_without_display("package:Own-v0")
    assert len(tried) == 3


def test_a_backend_that_is_none():
    assert not rendering._draws("foo")


def test_video_without_pygame(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("alrao_rl.enjoy._import_moviepy", lambda: None)
    monkeypatch.setitem(sys.modules, "pygame", None)
    message = refused(capfd, run, "--video", tmp_path / "x.mp4")
    assert message.startswith("error: CartPole-v1 cannot be drawn: pygame is not installed, run `pip install")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--episodes", "0"], "--episodes is 0, expected a whole number of at least 1"),
        (["--seed", "-1"], "--seed is -1, expected a whole number of at least 0"),
        (["--render", "--video", "x.mp4"], "--render and --video exclude each other"),
        (["--video", "x.gif"], "--video is 'x.gif', expected a file name that ends in .mp4"),
        (["--video", "nowhere/x.mp4"], "--video is 'nowhere/x.mp4': the folder"),
        (["--vidoe", "x.mp4"], "did you mean '--video'?"),
    ],
)
def test_bad_input(run, capfd, args, expected):
    assert expected in refused(capfd, run, *args)


def test_video_that_cannot_be_written_is_refused_before_playing(run, tmp_path, capfd):
    (tmp_path / "x.mp4").mkdir()
    assert "x.mp4', which cannot be written: it is a folder" in refused(capfd, run, "--video", tmp_path / "x.mp4")


def test_a_file_of_sb3s_own(tmp_path, capfd):
    assert "m.zip is Stable-Baselines3's own format" in refused(capfd, tmp_path / "m.zip")


def test_video_without_moviepy(run, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    expected = "error: --video needs moviepy; install it with: pip install moviepy pygame-ce\n"
    assert refused(capfd, run, "--video", tmp_path / "x.mp4") == expected


def test_package_that_an_agent_names(tmp_path, capfd):
    """Not imported, unless it is trusted."""
    folder = save_run(tmp_path / "run", CARTPOLE)
    data = (folder / "agent.safetensors").read_bytes()
    # As long, so that the header still is.
    (folder / "agent.safetensors").write_bytes(data.replace(b"CartPole-v1", b"nowhere:X-1"))
    assert "names the environment 'nowhere:X-1', for which the package 'nowhere' would be" in refused(capfd, folder)
    assert "nowhere:X-1 cannot be made: " in refused(capfd, folder, "--trust")


def test_environment_that_cannot_be_recorded(tmp_path, capfd):
    gym.register("Blind-v0", Blind)
    try:
        folder = save_run(tmp_path / "run", {"id": "Blind-v0"})
        assert "Blind-v0" in refused(capfd, folder, "--video", tmp_path / "x.mp4")
        assert refused(capfd, folder, status=1) == "error: Blind-v0 failed: ValueError: no more\n"
    finally:
        gym.registry.pop("Blind-v0")


class Blind(gym.Env):
    """Nothing to see; the second step raises."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return 0, {}

    def step(self, action):
        self.steps += 1
        if self.steps == 2:
            raise ValueError("no more\nof this")
        return 1, 0.0, False, False, {}


def test_no_run_and_an_unfinished_one(tmp_path, capfd):
    assert f"cannot read the agent {tmp_path / 'no' / 'agent.safetensors'}" in refused(capfd, tmp_path / "no")
    (tmp_path / "status.json").write_text(json.dumps({"state": "failed"}))
    assert "the run's state is 'failed'" in refused(capfd, tmp_path)


def test_a_run_that_may_have_been_meant(run, tmp_path, capfd):
    folder = tmp_path / "results" / "mine" / "CartPole-v1" / "dqn" / "seed-0"
    shutil.copytree(run, folder)
    hint = f"; did you mean '{folder}'?"
    assert refused(capfd, tmp_path / "results" / "mnie" / "CartPole-v1" / "dqn" / "seed-0").endswith(f"{hint}\n")
    assert refused(capfd, tmp_path / "results" / "mine").endswith(f"{hint}\n")
    assert refused(capfd, folder / "agnet.safetensors").endswith(f"did you mean '{folder / 'agent.safetensors'}'?\n")
    study = tmp_path / "results" / "study"
    study.mkdir()
    (study / "logs.jsonl.xz").touch()
    assert "a sweep has kept the logs of its runs there, for their report, and no agents" in refused(capfd, study)


def test_one_episode_is_singular(run, capfd):
    assert main([str(run), "--episodes", "1"]) == 0
    assert "mean return over 1 episode: " in capfd.readouterr().out


def test_truncated_agent(run, tmp_path, capfd):
    (tmp_path / "agent.safetensors").write_bytes((run / "agent.safetensors").read_bytes()[:500])
    assert "is not an agent of alrao-rl, or it is damaged" in refused(capfd, tmp_path)


@pytest.mark.parametrize("environment", [None, {}, {"id": 3}, {"id": "CartPole-v1", "foo": 1}])
def test_agent_without_an_environment(run, tmp_path, capfd, environment):
    agent = check_agent({"algo": "ppo", "policy": "stock", "hyperparameters": {"n_steps": 8, "batch_size": 8}}, "test")
    model = build(agent, DummyVecEnv([lambda: gym.make("CartPole-v1")]), seed=0)
    save_agent(model, agent, tmp_path / "agent", **({} if environment is None else {"environment": environment}))
    assert "does not say which environment it plays" in refused(capfd, tmp_path)
