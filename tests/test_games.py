"""Games as images: MinAtar's and Atari's, the networks for them, and what is said where they are missing."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from common import arguments, one_error
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import alrao_rl.train.callback
from alrao_rl import AlraoCnnPolicy, enjoy
from alrao_rl.agents.build import build
from alrao_rl.environments.make import make_env, make_one
from alrao_rl.environments.minatar import MinAtar
from alrao_rl.environments.recording import Origin
from alrao_rl.environments.supported import cautions
from alrao_rl.errors import UserError
from alrao_rl.recipes.files import load_environment
from alrao_rl.recipes.resolve import resolve
from alrao_rl.recipes.schema import Environment
from alrao_rl.sb3.extractors import AlraoMinAtarCNN, AlraoNatureCNN, image_extractor
from alrao_rl.train.command import main

# Kinds of objects, and actions that do something.
GAMES = {"asterix": (4, 5), "breakout": (4, 3), "freeway": (7, 3), "seaquest": (10, 6), "space_invaders": (6, 4)}


def image(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


# --- MinAtar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", GAMES)
def test_minatar_is_an_image_with_its_channels_first(game):
    env = gym.make(f"MinAtar/{game.title().replace('_', '')}-v1", render_mode="rgb_array")
    channels, actions = GAMES[game]
    assert env.observation_space == image(channels, 10, 10)
    assert env.action_space.n == actions
    observation, _ = env.reset(seed=0)
    for action in range(actions):
        state = env.unwrapped._game.state()
        assert np.array_equal(observation, 255 * state.transpose(2, 0, 1))
        assert env.observation_space.contains(observation)
        frame = env.render()
        assert (frame.shape, frame.dtype) == ((160, 160, 3), np.uint8)
        assert np.array_equal(frame[::16, ::16].any(2), state.any(2))  # nothing is black
        observation = env.step(action)[0]


def play(env, n, seed):
    """What a sequence of actions leads to."""
    actions = np.random.default_rng(seed)
    steps = []
    for _ in range(n):
        observation, reward, terminated, truncated, _ = env.step(actions.integers(env.action_space.n))
        steps.append((observation.tobytes(), reward, terminated))
        if terminated or truncated:
            env.reset()
    return steps


@pytest.mark.parametrize("game", GAMES)
def test_minatar_depends_on_its_seed_alone(game):
    one, two = MinAtar(game), MinAtar(game)
    two.reset(seed=1)
    play(two, 50, 1)  # also its last action is forgotten
    runs = []
    for env in (one, two):
        env.reset(seed=5)
        runs.append(play(env, 300, 0))
    assert runs[0] == runs[1]
    one.reset(seed=6)
    assert play(one, 300, 0) != runs[0]


def test_minatar_first_action_does_not_come_from_the_last_episode():
    env = MinAtar("breakout", sticky_action_prob=1.0)  # the first action, none, for ever
    env._game.last_action = 3
    paddle = env.reset(seed=0)[0][0]
    assert np.array_equal(env.step(1)[0][0], paddle)


def test_minatar_ends():
    """In Seaquest who stays at the surface is never hit and never out of air."""
    env = gym.make("MinAtar/Seaquest-v1", sticky_action_prob=0.0)
    env.reset(seed=0)
    steps = [env.step(0)[2:4] for _ in range(2_500)]
    assert steps == [(False, False)] * 2_499 + [(False, True)]


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (image(4, 10, 10), AlraoMinAtarCNN),
        (image(10, 10, 4), AlraoMinAtarCNN),
        (image(3, 35, 84), AlraoMinAtarCNN),
        (image(3, 36, 36), AlraoNatureCNN),
        (image(84, 84, 4), AlraoNatureCNN),
        (spaces.Box(-1.0, 1.0, (4,)), AlraoNatureCNN),  # which says what it expects
    ],
)
def test_size_decides_on_the_extractor(space, expected):
    assert image_extractor(space) is expected


@pytest.mark.parametrize("algorithm", [DQN, PPO])
def test_policy_has_the_network_of_the_paper(algorithm):
    model = algorithm(AlraoCnnPolicy, gym.make("MinAtar/Breakout-v1"), device="cpu")
    policy = model.policy.q_net if algorithm is DQN else model.policy
    network, shape = policy.features_extractor, [16, 4, 3, 3]
    assert isinstance(network, AlraoMinAtarCNN)
    assert [list(p.shape) for p in network.parameters()] == [shape, [16], [128, 1024], [128]]
    assert not any(isinstance(module, nn.ReLU) for module in model.policy.modules())
    layers = policy.q_net if algorithm is DQN else policy.mlp_extractor.policy_net
    assert len(layers) == (algorithm is DQN)  # the values directly behind it, or nothing
    ones = torch.full((1, 4, 10, 10), 255, dtype=torch.uint8)
    features = policy.extract_features(ones, network) if algorithm is DQN else policy.extract_features(ones)
    assert torch.equal(features, network(torch.ones(1, 4, 10, 10)))
    model.learn(128)
    assert model.predict(ones[0].numpy())[0] in range(3)


def test_extractor_says_what_it_takes():
    with pytest.raises(ValueError, match="expected images of at least 3 pixels a side, not of 2×10"):
        AlraoMinAtarCNN(image(4, 2, 10))
    with pytest.raises(ValueError, match="expected images, uint8 from 0 to 255 of three dimensions, not"):
        AlraoMinAtarCNN(spaces.Box(0, 1, (4, 10, 10), bool))
    assert AlraoMinAtarCNN(spaces.Box(0.0, 1.0, (4, 10, 10)), normalized_image=True).features_dim == 128


@pytest.mark.parametrize("unit", ["tanh", "relu"])
@pytest.mark.parametrize("size", [10, 40])
def test_stock_agent_has_the_same_network(size, unit):
    """Also for large images, where SB3's own has ReLU whatever the recipe says."""
    env = DummyVecEnv([lambda: FakeImageEnv(screen_height=size, screen_width=size, n_channels=4)])
    networks = []
    for name in ("dqn", "dqn-adam"):
        agent = resolve(name, "CartPole-v1", [f"activation_fn={unit}", "buffer_size=10"]).agent
        networks.append(build(agent, env, seed=0).policy.q_net.features_extractor)
    alrao, stock = networks
    assert type(alrao) is (AlraoMinAtarCNN if size == 10 else AlraoNatureCNN)
    assert type(stock) is (NatureCNN if (size, unit) == (40, "relu") else type(alrao))
    kinds = [[type(module) for module in network.modules() if not list(module.children())] for network in networks]
    assert kinds[0] == kinds[1]
    expected = {"tanh": nn.Tanh, "relu": nn.ReLU}[unit]
    assert {kind for kind in kinds[0] if kind.__module__.endswith("activation")} == {expected}
    assert all(torch.equal(one, other) for one, other in zip(alrao.parameters(), stock.parameters(), strict=True))


# --- Atari ----------------------------------------------------------------------------------------------------------


def atari(training, game="Breakout"):
    env = make_one(load_environment(f"ALE/{game}-v5")[0], training)
    env.reset(seed=0)
    env.action_space.seed(0)
    return env


@pytest.mark.parametrize("game", ["Breakout", "Pong"])
def test_atari_images(game):
    env = atari(training=True, game=game)
    assert env.observation_space == image(4, 84, 84)
    first, _ = env.reset()
    assert not first[:3].any()  # the stack begins empty
    assert first[3].any()
    second = env.step(0)[0]
    assert np.array_equal(second[2], first[3])


def test_atari_training_ends_with_a_life_and_scores_whole_games():
    env = atari(training=True)
    lives, rewards, steps, episodes = [], [], 0, []
    while len(episodes) < 2:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        rewards.append(reward)
        steps += 1
        if terminated:
            lives.append(info["lives"])
            if "episode" in info:
                episodes.append((info["episode"]["l"], steps, info["episode"]["r"]))
                assert info["episode"]["r"] == sum(unwrap_wrapper(env.env, Origin).rewards)  # the game's own points
                steps = 0
            env.reset()
    assert lives == [4, 3, 2, 1, 0] * 2
    assert all(length == steps for length, steps, _ in episodes)
    assert set(rewards) <= {0.0, 1.0}
    assert sum(score for *_, score in episodes) >= sum(rewards)


def test_atari_evaluation_is_of_whole_games():
    env = atari(training=False)
    terminated, lives = False, []
    while not terminated:
        _, _, terminated, _, info = env.step(0)  # the ball comes into play without the agent
        lives.append(info["lives"])
    assert sorted(set(lives)) == [0, 1, 2, 3, 4, 5]
    assert info["episode"]["l"] == len(lives)
    for _ in range(3):  # wherever the game is
        env.reset()
        assert env.step(0)[4]["lives"] == 5
        while env.step(0)[4]["lives"] > 3:
            pass


@pytest.mark.parametrize(
    ("options", "kwargs", "says"),
    [
        ("", "", "AtariWrapper: the game itself skips frames (frameskip 4), and the wrapper would skip 4 of the rest; "
         "give it frameskip = 1, and repeat_action_probability = 0.0 for no sticky actions (it is 0.25)"),
        (", frame_skip = 2", "frameskip = 3\nrepeat_action_probability = 0.0", "AtariWrapper with {'frame_skip': 2}: "
         "the game itself skips frames (frameskip 3), and the wrapper would skip 2 of the rest"),
        (", action_repeat_probability = 0.1", "frameskip = 1", "the game itself has sticky actions "
         "(repeat_action_probability 0.25), and so would the wrapper; give it repeat_action_probability = 0.0"),
    ],
)  # fmt: skip
def test_atari_frames_are_not_skipped_twice(tmp_path, capfd, options, kwargs, says):
    (tmp_path / "env.toml").write_text(
        f'id = "ALE/Breakout-v5"\nwrappers = [{{ name = "AtariWrapper"{options} }}]\n[kwargs]\n{kwargs}\n'
    )
    assert says in one_error(main, capfd, "--algo", "dqn", "--env", tmp_path / "env.toml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kwargs", "frame_skip", "warned"),
    [
        ({"frameskip": 1}, 4, True),
        ({}, 1, True),  # the game's own four
        ({"frameskip": 1, "repeat_action_probability": 0.25}, 4, False),
        ({"frameskip": 1, "repeat_action_probability": 0.0}, 4, False),
    ],
)
def test_atari_actions_that_stick_are_said(capfd, kwargs, frame_skip, warned):
    wrappers = [{"name": "AtariWrapper", "frame_skip": frame_skip}]
    environment = Environment(id="ALE/Breakout-v5", wrappers=wrappers, kwargs=kwargs)
    env = make_env(replace(resolve("ppo", "CartPole-v1", ["n_envs=2"]), environment=environment), 0, training=True)
    printed = capfd.readouterr().err
    assert printed.count("\n") == warned
    assert printed.startswith(
        "warning: ALE/Breakout-v5 repeats the last action with probability 0.25" if warned else ""
    )
    frames = env.envs[0].unwrapped.ale.getEpisodeFrameNumber
    env.reset()
    before = frames()
    env.step([0, 0])
    assert frames() - before == 4


@pytest.mark.parametrize(
    ("space", "what"),
    [
        (image(4, 60, 60, 3), "Box(0, 255, (4, 60, 60, 3), uint8), of 4 dimensions, and only three make an image"),
        (image(60, 60), "Box(0, 255, (60, 60), uint8), of 2 dimensions"),
        (
            spaces.Dict(eye=image(2, 9, 9, 3), x=image(128)),
            "Box(0, 255, (2, 9, 9, 3), uint8) as 'eye', of 4 dimensions",
        ),
        (image(4, 60, 60), ""),
        (image(4, 128), ""),
        (image(128), ""),
        (spaces.Box(0, 7, (12, 12, 2, 2), np.uint8), ""),
        (spaces.Box(0.0, 1.0, (4, 60, 60, 3)), ""),
    ],
)
def test_frames_that_are_taken_for_no_image_are_said(space, what):
    said = list(cautions(SimpleNamespace(observation_space=space, action_space=spaces.Discrete(2))))
    assert len(said) == bool(what)
    assert "".join(said).startswith(f"observes {what}" if what else "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "game", ["ALE/Pong-v5", pytest.param("ALE/Breakout-v5", marks=pytest.mark.long), "MinAtar/Seaquest-v1"]
)
def test_training_and_playing_a_game(tmp_path, capfd, monkeypatch, game):
    monkeypatch.setattr(alrao_rl.train.callback, "N_EVALUATIONS", 2)  # of whole games, which take most of the time
    monkeypatch.setattr(alrao_rl.train.callback, "CONFIRMATION", 1)
    args = arguments("dqn", game, 300, "train_freq=16", "gradient_steps=1")
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    assert capfd.readouterr() == ("", "")
    assert enjoy.main([str(tmp_path / "run"), "--episodes", "1"]) == 0
    played = capfd.readouterr()
    assert played.err == ""
    assert played.out.startswith("episode 1: return ")


# --- without the extra ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "missing", "says"),
    [
        ("MinAtar/Breakout-v1", ["minatar"], "minatar"),
        ("ALE/Pong-v5", ["ale_py", "cv2"], "ale_py and cv2"),
        ("ALE/Pong-v5", ["cv2"], "cv2"),
    ],
)
def test_missing_package(monkeypatch, capfd, env, missing, says):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name in missing else find(name, *args))
    error = one_error(main, capfd, "--algo", "dqn", "--env", env)
    assert error == f"error: {env} needs {says}: pip install 'alrao-rl[envs]'\n"
    with pytest.raises(UserError, match="alrao-rl"):
        make_one(load_environment(env)[0])
