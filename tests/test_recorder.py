"""What an environment gives: none that is not finite, or not of its space, goes further; returns are exact sums."""

import csv
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from alrao_rl import enjoy
from alrao_rl.environments.make import make_one
from alrao_rl.environments.recording import NonFiniteError, Origin, RecordingMonitor
from alrao_rl.recipes.schema import Environment
from alrao_rl.train.command import main


class Given(gym.Env):
    """Gives the observations and rewards it was given."""

    action_space = spaces.Discrete(2)

    def __init__(self, observations, rewards, observation_space=None):
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (2,))
        self.observations, self.rewards = iter(observations), iter(rewards)

    def reset(self, *, seed=None, options=None):
        return next(self.observations), {}

    def step(self, action):
        return next(self.observations), next(self.rewards), False, False, {}


BOX = spaces.Box(-1.0, 1.0, (2,))
IMAGE = spaces.Box(0, 255, (1, 1), np.uint8)
DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
FINE = np.zeros(2, np.float32)
NAN = np.array([0.0, np.nan], np.float32)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), np.float32("-inf")])
def test_reward(reward):
    env = RecordingMonitor(Given([FINE] * 3, [1.0, reward]))
    env.reset()
    env.step(0)
    with pytest.raises(NonFiniteError, match=f"the reward is {reward} at step 2 of the environment"):
        env.step(0)


@pytest.mark.parametrize(
    ("space", "fine", "observation", "says"),
    [
        (BOX, FINE, NAN, r"the observation \(nan\) is not finite at step 1"),
        (spaces.Dict({"a": BOX, "b": BOX}), {"a": FINE, "b": FINE}, {"a": FINE, "b": NAN},
         r"the observation \(nan\) \['b'\] is not finite at step 1"),
        (spaces.Box(-1.0, 1.0, ()), np.float64(0), np.float64("inf"), r"the observation \(inf\) is not finite"),
    ],
)  # fmt: skip
def test_observation(space, fine, observation, says):
    env = RecordingMonitor(Given([fine, observation], [0.0], space))
    env.reset()
    with pytest.raises(NonFiniteError, match=says):
        env.step(0)
    with pytest.raises(NonFiniteError, match="is not finite after a reset"):
        RecordingMonitor(Given([observation], [], space)).reset()


@pytest.mark.parametrize(
    ("space", "fine", "observation", "says"),
    [
        (BOX, FINE, FINE[:1], r"is of shape \(1,\), expected \(2,\)"),  # would be fitted in, twice
        (BOX, FINE, FINE[None], r"is of shape \(1, 2\), expected \(2,\)"),
        (BOX, FINE, None, r"is of shape \(\), expected \(2,\)"),
        (BOX, FINE, np.array(["0", "1"]), "holds <U1, expected float32"),  # would be converted
        (IMAGE, np.uint8([[255]]), np.float32([[0.5]]), "holds float32, expected uint8"),  # would be cut to 0
        (DICT, {"a": FINE, "b": 1}, {"a": FINE}, "is not a dict of a, b"),
        (DICT, {"a": FINE, "b": 1}, {"a": FINE, "b": 1.5}, r"\['b'\] holds float64, expected int64"),
    ],
)
def test_observation_of_another_space(space, fine, observation, says):
    env = RecordingMonitor(Given([fine, observation], [0.0], space))
    env.reset()
    with pytest.raises(ValueError, match=f"the observation {says} at step 1 of the environment"):
        env.step(0)
    with pytest.raises(ValueError, match=f"the observation {says} after a reset"):
        RecordingMonitor(Given([observation], [], space)).reset()


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (IMAGE, np.uint8([[255]])),
        (IMAGE, np.int64([[255]])),
        (spaces.Discrete(5), 3),
        (BOX, [0.0, 1.0]),
        (BOX, np.zeros(2)),
        (BOX, np.array([1, 0])),
        (DICT, {"a": FINE, "b": np.int64(2)}),
        (spaces.Tuple([BOX, spaces.Discrete(2)]), (FINE, 1)),
    ],
)
def test_what_is_finite_passes(space, observation):
    env = RecordingMonitor(Given([observation] * 2, [np.float32(1.5)], space))
    assert env.reset()[0] is observation
    assert env.step(1)[0] is observation


# --- rewards that are no numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [np.ones(1), [1.0], None, "much"])
@pytest.mark.parametrize("layer", [RecordingMonitor, Origin])
def test_reward_that_is_no_number(layer, reward):
    env = layer(Given([FINE] * 2, [reward]))
    env.reset()
    with pytest.raises(ValueError, match=r"the reward is .*, expected a number, at step 1 of the environment"):
        env.step(0)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Humanoid-v5", "Pusher-v5", "BipedalWalker-v3"])
def test_an_episode_of_an_engine_is_replayed_to_the_bit(env_id):
    """From its random generator and its actions, by another copy of the environment; the next step too."""
    env, other = (make_one(Environment(id=env_id)) for _ in range(2))
    env.action_space.seed(0)
    env.reset(seed=3)
    for n in range(60):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated or n == 40:
            observation, _ = env.reset()
    np.testing.assert_array_equal(other.replay(env.record()), observation)
    action = env.action_space.sample()
    first, second = env.step(action), other.step(action)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("reward", [True, 2, np.float32(0.5), np.array(0.5), np.int64(3)])
def test_numbers_of_any_kind_pass(reward):
    env = RecordingMonitor(Given([FINE] * 2, [reward]))
    env.reset()
    env.step(0)
    assert env.rewards == [float(reward)]


# --- what is used again, and exact sums -----------------------------------------------------------------------------


class Walk(gym.Env):
    """Five steps along a line; one array and one dict for all of them, with an entry ``episode`` of its own.

    The last step of an odd episode is a time limit, as ``TimeLimit.truncated`` says.
    """

    observation_space, action_space = spaces.Box(0.0, 9.0, (1,)), spaces.Discrete(2)

    def __init__(self, rewards=(1.0,) * 5):
        self.given, self.number = rewards, -1
        self.place, self.info = np.zeros(1, np.float32), {"episode": 3}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place[:], self.number = 0, self.number + 1
        self.info.clear()
        self.info["episode"] = 3
        return self.place, self.info

    def step(self, action):
        assert self.info["episode"] == 3  # it is its own
        self.place += 1
        at_end, odd = self.place[0] == 5, self.number % 2 == 1
        return self.place, self.given[int(self.place[0]) - 1], bool(at_end and not odd), bool(at_end and odd), self.info


@pytest.fixture
def walk():
    gym.register("Walk-v0", Walk)
    with warnings.catch_warnings():  # Gymnasium's own, that something is shared
        warnings.simplefilter("ignore")
        yield "Walk-v0"
    gym.registry.pop("Walk-v0")


TIME_LIMIT = {"name": "TimeLimit", "max_episode_steps": 4}
STACK = {"name": "FrameStackObservation", "stack_size": 2}


@pytest.mark.parametrize(
    ("wrappers", "n", "final"),
    [([], 5, [5.0]), ([STACK], 5, [[4.0], [5.0]]), ([TIME_LIMIT], 4, [4.0]), ([TIME_LIMIT, STACK], 4, [[3.0], [4.0]])],
)
def test_one_info_and_one_observation_for_all_steps(walk, wrappers, n, final):
    env = DummyVecEnv([lambda: make_one(Environment(id=walk, wrappers=wrappers), training=True)])
    env.reset()
    for number in range(3):
        for step in range(1, n + 1):
            observation, _, done, (info,) = env.step([0])
            ends = step == n
            assert done[0] == ends
            assert observation.ravel()[-1] == (0 if ends else step)
            assert info.keys() - {"TimeLimit.truncated"} == ({"episode", "terminal_observation"} if ends else set())
            assert info["TimeLimit.truncated"] == (ends and (n == 4 or number % 2 == 1))
        assert (info["episode"]["r"], info["episode"]["l"]) == (n, n)
        assert info["terminal_observation"].tolist() == final


TINY = (1e-8, 2e-8, -5e-9, 0.0, 1e-9)
HUGE = (1e9, 1.0, -1e9, 0.125, 1e-7)
TENTHS = (0.1,) * 5


@pytest.mark.parametrize(("rewards", "total"), [(TINY, 2.6e-8), (HUGE, 1.1250001), (TENTHS, 0.5)])
@pytest.mark.parametrize("wrappers", [[], [{"name": "ClipReward", "min_reward": -1.0, "max_reward": 0.0}]])
def test_returns_are_exact_sums_of_the_environments_own_rewards(walk, rewards, total, wrappers):
    env = make_one(Environment(id=walk, wrappers=wrappers, kwargs={"rewards": list(rewards)}))
    env.reset()
    steps = [env.step(0) for _ in range(5)]
    assert steps[-1][4]["episode"]["r"] == total
    assert [step[1] for step in steps] == [min(max(reward, -1), 0) for reward in rewards] if wrappers else [*rewards]


def test_a_monitor_within_the_environment_has_the_say():
    """As for environments that come with one, below rewards that are shaped."""
    env = RecordingMonitor(Origin(gym.wrappers.TransformReward(Monitor(Walk()), lambda reward: 100 * reward)))
    env.reset()
    steps = [env.step(0) for _ in range(5)]
    assert [step[1] for step in steps] == [100] * 5
    assert steps[-1][4]["episode"]["r"] == 5


def rows(path):
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("wrappers", ["", 'wrappers = [{name = "ClipReward", min_reward = -1.0, max_reward = 0.0}]\n'])
def test_a_run_and_its_agent_have_the_same_returns(walk, tmp_path, capsys, wrappers):
    """Training, evaluations and ``enjoy``: every episode once, with all digits."""
    (tmp_path / "env.toml").write_text(f'id = "{walk}"\n{wrappers}[kwargs]\nrewards = {[*TINY]}\n')
    out = tmp_path / "run"
    sets = ["n_steps=16", "n_epochs=1", "n_envs=2", "batch_size=16", "net_arch=[8]", "alrao.n_heads=2"]
    args = ["--algo", "ppo", "--env", str(tmp_path / "env.toml"), "--timesteps", "96", "--out", str(out)]
    assert main([*args, "--eval-episodes", "2", "--set", *sets]) == 0
    printed = capsys.readouterr().out
    assert "return 2.6e-08, evaluation 2.6e-08" in printed
    assert "best evaluation 2.6e-08" in printed
    episodes = [(10.0 * number, 2.6e-8, 5) for number in range(1, 10) for _ in range(2)]
    assert [tuple(row.values()) for row in rows(out / "episodes.csv")] == episodes
    assert {(row["mean_return"], row["min_return"]) for row in rows(out / "evaluations.csv")} == {(2.6e-8, 2.6e-8)}
    assert enjoy.main([str(out), "--episodes", "2"]) == 0
    expected = ["episode 1: return 2.6e-08", "episode 2: return 2.6e-08", "mean return over 2 episodes: 2.6e-08"]
    assert capsys.readouterr().out.splitlines() == expected
