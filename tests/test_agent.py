"""Agents on disk: what is loaded predicts as what was saved, and loading executes nothing."""

import copy
import json
import os
import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load, save
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from alrao_rl import load_agent, save_agent
from alrao_rl.agents.build import build
from alrao_rl.agents.file import _digest, read_agent, rebuild
from alrao_rl.agents.spaces import decode_space, encode_space
from alrao_rl.environments import normalization
from alrao_rl.environments.make import make_one
from alrao_rl.errors import UserError
from alrao_rl.recipes.files import load_agent_recipe
from alrao_rl.recipes.schema import Environment
from alrao_rl.recipes.validation import check_agent

BOX = spaces.Box(-1.0, 1.0, (3,))
DISCRETE, SCALAR, NOTHING = spaces.Discrete(2), spaces.Box(-1.0, 1.0, ()), spaces.Box(-1.0, 1.0, (0,))
MATRIX = spaces.MultiDiscrete([[2, 3], [4, 5]])
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATIONS = {
    "vector": BOX,
    "discrete": spaces.Discrete(5),
    "image": IMAGE,
    "dict": spaces.Dict({"goal": BOX, "n": spaces.Discrete(4), "image": IMAGE}),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(4),
    "box": spaces.Box(-2.0, 2.0, (2,)),
}
CONTINUOUS = ("sac", "td3", "ddpg", "tqc", "crossq")
SMALL = {
    "dqn": {"learning_starts": 4, "batch_size": 4, "train_freq": 2, "buffer_size": 100},
    "a2c": {"n_steps": 4},
    "ppo": {"n_steps": 8, "batch_size": 8, "n_epochs": 1},
}
SMALL |= {"qrdqn": SMALL["dqn"], "recurrent-ppo": SMALL["ppo"], **dict.fromkeys(CONTINUOUS, SMALL["dqn"])}


class RandomEnv(gym.Env):
    """Observations drawn from their space, five steps an episode."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 5, False, {}


def make_agent(algo, policy="alrao", **more):
    options = {"activation_fn": "tanh"} | more.pop("policy_options", {})
    alrao = {"alrao": {"n_heads": 3, "seed": 1}} if policy == "alrao" else {}
    data = {"algo": algo, "policy": policy, "n_envs": 2, "policy_options": options, "hyperparameters": SMALL[algo]}
    return check_agent(data | alrao | more, "test")


def make_model(agent, observations, actions, steps=16):
    env = DummyVecEnv([lambda: RandomEnv(observations, actions)] * agent.n_envs)
    env = normalization.normalized(env, agent, True)
    model = build(agent, env, seed=0)
    return model.learn(steps) if steps else model


def samples(space, n=5):
    space.seed(7)
    return [space.sample() for _ in range(n)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small agent on disk and its model."""
    agent = make_agent("ppo", policy_options={"net_arch": [4]})
    model = make_model(agent, BOX, ACTIONS["discrete"], steps=0)
    path = tmp_path_factory.mktemp("saved") / "agent"
    save_agent(model, agent, path, timestep=12)
    return model, path.with_suffix(".safetensors")


@pytest.mark.parametrize(("name", "value"), [("clip_obs", 0.5), ("epsilon", 1e-4)])
def test_a_normalisation_that_the_file_does_not_tell_is_refused(tmp_path, name, value):
    agent = make_agent("ppo", normalize_observations=True)
    model = make_model(agent, BOX, ACTIONS["discrete"], steps=0)
    setattr(model.get_vec_normalize_env(), name, value)
    with pytest.raises(UserError, match=f"{name} of VecNormalize is {value}, expected"):
        save_agent(model, agent, tmp_path / "agent")
    assert not list(tmp_path.iterdir())


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "observations", "actions"),
    [
        ("dqn", "vector", "discrete"),
        ("dqn", "discrete", "discrete"),
        ("dqn", "image", "discrete"),
        ("dqn", "dict", "discrete"),
        ("a2c", "vector", "box"),
        ("a2c", "discrete", "multi-binary"),
        ("ppo", "vector", "discrete"),
        ("ppo", "vector", "multi-discrete"),
        ("ppo", "discrete", "multi-discrete"),
        ("ppo", "vector", "multi-binary"),
        ("ppo", "vector", "box"),
        ("ppo", "image", "box"),
        ("ppo", "dict", "multi-discrete"),
        ("sac", "vector", "box"),
        ("sac", "image", "box"),
        ("td3", "dict", "box"),
        ("ddpg", "vector", "box"),
        ("tqc", "dict", "box"),
        ("crossq", "vector", "box"),
    ],
)
def test_round_trip(tmp_path, algo, observations, actions):
    agent = make_agent(algo, policy_options={} if observations == "image" else {"net_arch": [8]})
    model = make_model(agent, OBSERVATIONS[observations], ACTIONS[actions])
    save_agent(model, agent, tmp_path / "agent")
    loaded = load_agent(tmp_path)
    assert isinstance(loaded, type(model))
    assert loaded.action_space == model.action_space
    assert loaded.observation_space == model.observation_space
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, loaded.policy.state_dict()[name]), name
    actions_seen = []
    for observation in samples(OBSERVATIONS[observations]):
        expected, _ = model.predict(observation, deterministic=True)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
        actions_seen.append(expected.tolist())
    assert np.shape(actions_seen) == (5, *ACTIONS[actions].shape)


@pytest.mark.parametrize("algo", ["dqn", "a2c", "ppo"])
def test_round_trip_of_a_stock_agent(tmp_path, algo):
    agent = make_agent(algo, policy="stock")
    model = make_model(agent, BOX, ACTIONS["discrete"])
    save_agent(model, agent, tmp_path / "agent")
    loaded = load_agent(tmp_path)
    for observation in samples(BOX, 20):
        assert loaded.predict(observation, deterministic=True) == model.predict(observation, deterministic=True)


@pytest.mark.parametrize("policy", ["stock", "alrao"])
@pytest.mark.parametrize("algo", ["a2c", "ppo", "recurrent-ppo"])
def test_gsde_has_the_noise_that_was_learned(tmp_path, algo, policy):
    agent = make_agent(algo, policy, hyperparameters=SMALL[algo] | {"use_sde": True})
    model = make_model(agent, BOX, ACTIONS["box"], steps=0)
    with torch.no_grad():
        model.policy.log_std.fill_(-30.0)  # no noise at all; an untrained network's is about 1
    save_agent(model, agent, tmp_path / "agent")
    loaded = load_agent(tmp_path)
    assert loaded.policy.action_dist.exploration_mat.abs().max() < 10 * np.exp(-30)
    for observation in samples(BOX, 5):
        sampled, expected = (loaded.predict(observation, deterministic=how)[0] for how in (False, True))
        np.testing.assert_allclose(sampled, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def normalized(tmp_path_factory):
    """Two loaded agents, one with its statistics and one whose SB3 model takes observations as they are."""
    path = tmp_path_factory.mktemp("normalized") / "agent"
    agent = make_agent("ppo", normalize_observations=True)
    save_agent(make_model(agent, spaces.Box(100.0, 140.0, (3,)), ACTIONS["box"]), agent, path)
    return load_agent(path.parent), rebuild(path.with_suffix(".safetensors"))[0]


@pytest.mark.parametrize("shape", [(3, 1), (1,), (), (4,), (1, 4), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("make", [np.ones, torch.ones, lambda shape: np.ones(shape).tolist()])
def test_observations_of_another_shape_are_refused_as_by_sb3(normalized, shape, make):
    errors = []
    for model in normalized:
        with pytest.raises(ValueError, match=r"Unexpected observation shape .* for Box environment, please") as error:
            model.predict(make(shape))
        errors.append(str(error.value))
    assert f"shape {shape} for Box environment, please use (3,) or (n_env, 3)" in errors[0]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("make", [torch.as_tensor, np.ndarray.tolist, lambda x: x.astype(np.float64)])
def test_observations_in_another_form_are_taken_as_by_sb3(normalized, make):
    loaded, _ = normalized
    for observation in (np.array([100.0, 120.0, 139.0], np.float32), np.full((2, 3), 110.0, np.float32)):
        expected = loaded.predict(observation, deterministic=True)[0]
        assert expected.shape == (*observation.shape[:-1], 2)
        np.testing.assert_allclose(loaded.predict(make(observation), deterministic=True)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_a_loaded_agent_acts_in_any_number_of_environments(normalized, n_envs):
    loaded, _ = normalized
    loaded.set_env(DummyVecEnv([lambda: RandomEnv(loaded.observation_space, ACTIONS["box"])] * n_envs))
    assert loaded.predict(loaded.get_env().reset())[0].shape == (n_envs, 2)
    assert evaluate_policy(loaded, loaded.get_env(), 2, warn=False)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        loaded.set_env(DummyVecEnv([lambda: RandomEnv(BOX, ACTIONS["box"])]))


def test_a_loaded_agent_has_the_names_of_its_classes(normalized):
    loaded, model = normalized
    assert [type(x).__name__ for x in (loaded, loaded.policy)] == ["PPO", "AlraoActorCriticPolicy"]
    assert type(loaded) is not type(model)


@pytest.mark.parametrize("how", [True, "scale"])
@pytest.mark.parametrize("observations", ["vector", "dict"])
def test_normalized_agent_takes_raw_observations(tmp_path, observations, how):
    space = spaces.Box(100.0, 140.0, (3,)) if observations == "vector" else spaces.Dict(
        {"goal": spaces.Box(100.0, 140.0, (3,)), "n": spaces.Discrete(4), "image": IMAGE}
    )  # fmt: skip
    # Slow units: actions at their bounds would not differ.
    agent = make_agent("ppo", normalize_observations=how, alrao={"n_heads": 3, "seed": 1, "lr_range": [1e-6, 1e-3]})
    model = make_model(agent, space, ACTIONS["box"], steps=32)
    save_agent(model, agent, tmp_path / "agent")
    loaded = load_agent(tmp_path)
    twin, other = copy.deepcopy(loaded), copy.deepcopy(loaded)
    other.policy.action_net.theta.data.zero_()
    normalizer = model.get_vec_normalize_env()
    outputs = []
    for observation in samples(space):
        batch = {k: v[None] for k, v in observation.items()} if isinstance(observation, dict) else observation
        normalized = normalizer.normalize_obs(batch)
        expected = model.predict(normalized, deterministic=True)[0].reshape(2)
        for one in (loaded, twin, loaded.policy):
            np.testing.assert_array_equal(one.predict(observation, deterministic=True)[0], expected)
        assert (other.predict(observation, deterministic=True)[0] != expected).all()  # a copy has its own network
        outputs.append(expected)
        if observations == "dict":
            np.testing.assert_array_equal(normalized["image"], batch["image"])
            assert abs(normalized["goal"]).max() < 10
    # The raw observation would saturate the units: the outputs could not differ.
    assert how == "scale" or np.ptp(outputs, axis=0).min() > 1e-4
    for thing in (loaded, loaded.policy):
        with pytest.raises(RuntimeError, match=r"m\.zip would lose the statistics"):
            thing.save(tmp_path / "m.zip")
    save_agent(loaded, agent, tmp_path / "again")
    again = load_agent(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("normalization..var"), "normalization..var"),
        (lambda t: t.update({"normalization..mean": torch.zeros(7)}), "normalization..mean is of shape (7,)"),
    ],
)
def test_statistics_that_do_not_fit(tmp_path, change, expected):
    agent = make_agent("ppo", normalize_observations=True)
    save_agent(make_model(agent, BOX, ACTIONS["box"], steps=0), agent, tmp_path / "agent")
    description, tensors = read_agent(tmp_path / "agent.safetensors")
    change(tensors)
    description["sha256"] = _digest(save(tensors))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(save(tensors, metadata={"alrao-rl": json.dumps(description)}))
    assert expected in refused(path)


def test_a_loaded_agent_acts_and_does_not_learn(saved, tmp_path):
    loaded = load_agent(saved[1])
    with pytest.raises(RuntimeError, match="makes an agent that acts"):
        loaded.learn(10)
    loaded.save(tmp_path / "m.zip")
    again = PPO.load(tmp_path / "m.zip")
    observation = np.zeros(3, np.float32)
    assert again.predict(observation, deterministic=True)[0] == loaded.predict(observation, deterministic=True)[0]


def test_bad_choices_of_what_to_load(saved):
    with pytest.raises(UserError, match="which is 'best', expected 'agent'"):
        load_agent(saved[1].parent, "best")
    with pytest.raises(UserError, match="device is 'nonsense', expected cpu"):
        load_agent(saved[1], device="nonsense")


def test_scaled_observations_by_hand():
    """Divided by the root mean square, the centre left where it is: a cosine near 1 stays near 1."""
    agent = make_agent("dqn", normalize_observations="scale")
    model = make_model(agent, spaces.Box(0.97, 1.0, (3,)), ACTIONS["discrete"], steps=0)
    normalizer = model.get_vec_normalize_env()
    seen = normalizer.venv.observation_space.sample() * np.ones((64, 1), np.float32)
    for batch in (seen, 3 * seen):
        normalizer.obs_rms.update(batch)
    scaled = normalizer.normalize_obs(seen)
    np.testing.assert_allclose(scaled, seen / np.sqrt((seen**2 + 9 * seen**2) / 2), rtol=2e-2)
    assert (normalizer.obs_rms.mean == 0).all()


@pytest.mark.parametrize("observations", ["image", "discrete"])
def test_normalize_observations_leaves_what_has_no_mean(tmp_path, observations):
    agent = make_agent("ppo", normalize_observations=True)
    model = make_model(agent, OBSERVATIONS[observations], ACTIONS["discrete"], steps=0)
    assert model.get_vec_normalize_env() is None
    save_agent(model, agent, tmp_path / "agent")
    observation = samples(OBSERVATIONS[observations], 1)[0]
    assert load_agent(tmp_path).predict(observation, deterministic=True)[0] == model.predict(
        observation, deterministic=True
    )[0]  # fmt: skip


def test_loaded_agent_says_what_it_is(saved):
    model, path = saved
    description, tensors = read_agent(path)
    assert json.loads(path.with_suffix(".json").read_text()) == description
    assert description["timestep"] == 12
    assert description["agent"]["algo"] == "ppo"
    assert {f"policy.{name}" for name in model.policy.state_dict()} == tensors.keys()


def test_options_are_written_out(saved):
    """The file is read under other defaults than those it was written under."""
    options = read_agent(saved[1])[0]["agent"]["alrao"]
    assert options["n_heads"] == 3
    assert options.keys() >= {"lr_range", "base", "value_averaging", "policy_averaging", "reclone_interval"}


def test_same_agent_same_bytes(saved, tmp_path):
    model, path = saved
    agent = make_agent("ppo", policy_options={"net_arch": [4]})
    save_agent(model, agent, tmp_path / "agent", timestep=12)
    assert (tmp_path / "agent.safetensors").read_bytes() == path.read_bytes()


def test_an_agent_that_only_trains_with_several_environments_loads(tmp_path):
    agent = make_agent("ppo", n_envs=4, hyperparameters={"n_steps": 1, "batch_size": 4, "n_epochs": 1})
    save_agent(make_model(agent, BOX, ACTIONS["discrete"], steps=0), agent, tmp_path / "agent")
    assert load_agent(tmp_path).n_envs == 4


def test_loaded_dqn_explores_as_at_the_end_of_training_and_does_not_learn(tmp_path):
    agent = make_agent("dqn", hyperparameters=SMALL["dqn"] | {"exploration_final_eps": 0.25, "buffer_size": 10**9})
    small = agent.model_copy(update={"hyperparameters": SMALL["dqn"]})
    save_agent(make_model(small, BOX, ACTIONS["discrete"], steps=0), agent, tmp_path / "agent")
    loaded = load_agent(tmp_path)
    assert loaded.exploration_rate == 0.25
    with pytest.raises(RuntimeError, match="load_agent makes an agent that acts"):
        loaded.learn(10)
    loaded.set_env(DummyVecEnv([lambda: RandomEnv(BOX, ACTIONS["discrete"])] * 2))
    with pytest.raises(RuntimeError, match="load_agent makes an agent that acts"):
        loaded.learn(10)


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        IMAGE,
        spaces.Box(np.array([-np.inf, 0.0, -1.5]), np.array([np.inf, 1.0, 2.5]), dtype=np.float64),
        spaces.Box(-np.inf, np.inf, (2, 2)),
        spaces.Box(0, 9, (), np.int64),
        spaces.Box(0, 2**63 - 1, (2,), np.int64),
        spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64),
        spaces.Box(0, 2**64 - 1, (1,), np.uint64),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiBinary(3),
        spaces.MultiBinary([2, 3]),
        OBSERVATIONS["dict"],
    ],
    ids=str,
)
def test_space_round_trip(space):
    decoded = decode_space(json.loads(json.dumps(encode_space(space), allow_nan=False)))
    assert decoded == space
    assert decoded.dtype == space.dtype


def test_keys_keep_their_order():
    """SB3 puts features together in it, and a Dict space that is made of a dict would sort them."""
    space = spaces.Dict([("velocity", BOX), ("angle", BOX)])
    decoded = decode_space(json.loads(json.dumps(encode_space(space))))
    assert list(decoded) == list(space) == ["velocity", "angle"]


@pytest.mark.parametrize(
    ("observation", "action", "says"),
    [
        (BOX, spaces.Discrete(3, start=-1), r"PPO cannot act in Discrete\(3, start=-1\): Stable-Baselines3 counts"),
        (BOX, spaces.MultiDiscrete([2, 2], start=[0, 1]), "PPO cannot act in MultiDiscrete"),
        (spaces.Dict(x=spaces.Discrete(3, start=1)), spaces.Discrete(2), r"PPO cannot observe Dict\('x'"),
    ],
)
def test_counts_from_0(observation, action, says):
    env = DummyVecEnv([lambda: RandomEnv(observation, action)])
    with pytest.raises(UserError, match=says):
        build(load_agent_recipe("ppo")[1], env, seed=0)


@pytest.mark.parametrize(
    ("observation", "action", "says"),
    [
        (BOX, spaces.Tuple([BOX]), r"acts in Tuple\(Box.*, expected Box, Discrete.*ActionWrapper"),
        (BOX, MATRIX, r"acts in MultiDiscrete\(\[\[2 3\]\n \[4 5\]\]\), expected one dimension"),
        (BOX, NOTHING, r"acts in Box\(.*\(0,\), float32\), expected at least one number"),
        (spaces.Tuple([BOX]), DISCRETE, r"observes Tuple\(Box.*, expected Box, Discrete.*FlattenObservation"),
        (spaces.Text(3), DISCRETE, r"observes Text\(.*FlattenObservation"),
        (MATRIX, DISCRETE, r"observes MultiDiscrete\(.*\n.*, expected one dimension; .*FlattenObservation"),
        (SCALAR, DISCRETE, r"observes Box\(.*\(\), float32\), expected at least one dimension; .*FlattenObservation"),
        (NOTHING, DISCRETE, r"observes Box\(.*\(0,\), float32\), expected at least one number; no wrapper"),
        (spaces.Sequence(BOX), DISCRETE, r"observes Sequence\(Box.*, expected Box, Discrete.*; no wrapper"),
        (spaces.Dict(), DISCRETE, r"observes Dict\(\), expected at least one part"),
        (spaces.Dict(x=spaces.Dict(y=BOX)), DISCRETE, r"observes Dict\('y': Box.* as 'x', .*FlattenObservation"),
        (spaces.Dict(x=BOX, y=SCALAR), DISCRETE, r"observes Box\(.*\) as 'y', expected at least.*FlattenObservation"),
        (spaces.Dict(x=BOX, y=spaces.Sequence(BOX)), DISCRETE, r"observes Sequence\(.* as 'y', .*leave out 'y' with"),
        (spaces.Dict(x=BOX, y=NOTHING), DISCRETE, r"observes Box\(.* as 'y', .*leave out 'y' with"),
        (
            spaces.Dict(direction=DISCRETE, image=BOX, mission=spaces.Text(9)), DISCRETE,
            r"observes Text\(.* as 'mission', expected Box, .*, or a Dict of these; leave out 'mission' with the "
            r'wrapper { name = "FilterObservation", filter_keys = \["direction", "image"\] }',
        ),
    ],
)  # fmt: skip
def test_an_environment_without_a_policy_for_its_spaces(monkeypatch, observation, action, says):
    monkeypatch.setattr(gym, "make", lambda _: RandomEnv(observation, action))
    with pytest.raises(UserError, match=f"Odd-v0 {says}"):
        make_one(Environment(id="Odd-v0"))


class Phrase(spaces.Space[str]):
    """Of an environment's own, as MiniGrid's: Gymnasium does not know how to flatten it."""

    is_np_flattenable = False


def test_a_space_is_no_option_of_a_wrapper(monkeypatch):
    monkeypatch.setattr(gym, "make", lambda _: RandomEnv(spaces.Dict(image=BOX, mission=Phrase()), DISCRETE))
    says = r"Odd-v0 observes .*Phrase.* as 'mission', expected Box, .* filter_keys = \[\"image\"\]"
    with pytest.raises(UserError, match=says):
        make_one(Environment(id="Odd-v0", wrappers=[{"name": "FlattenObservation"}]))


def test_space_that_cannot_be_saved():
    with pytest.raises(UserError, match="cannot save an agent with a Text space"):
        encode_space(spaces.Text(3))


# --- refused --------------------------------------------------------------------------------------------------------


def refused(path):
    with pytest.raises(UserError) as error:
        load_agent(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_loading_executes_nothing(tmp_path):
    target = tmp_path / "executed"
    path = tmp_path / "agent.safetensors"
    for data in (pickle.dumps(Payload(target)), b"\x80\x04" + pickle.dumps(Payload(target))):
        path.write_bytes(data)
        assert "is not an agent of alrao-rl, or it is damaged" in refused(path)
    torch.save({"policy": Payload(target)}, path)
    assert "is not an agent of alrao-rl, or it is damaged" in refused(path)
    assert not target.exists()
    # The payload is a live one.
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.exists()


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1, -1000])
def test_truncated(saved, tmp_path, length):
    path = tmp_path / "agent.safetensors"
    path.write_bytes(saved[1].read_bytes()[:length])
    assert "is not an agent of alrao-rl, or it is damaged" in refused(path)


def test_one_flipped_bit(saved, tmp_path):
    data = bytearray(saved[1].read_bytes())
    data[-10] ^= 1
    path = tmp_path / "agent.safetensors"
    path.write_bytes(data)
    assert "is damaged" in refused(path)


def test_safetensors_file_of_somebody_else(tmp_path):
    path = tmp_path / "agent.safetensors"
    path.write_bytes(save({"weight": torch.zeros(2)}))
    assert "is not an agent of alrao-rl" in refused(path)


def rewritten(saved, tmp_path, change):
    """The saved agent with another header and an intact hash."""
    data = saved[1].read_bytes()
    description, _ = read_agent(saved[1])
    change(description)
    path = tmp_path / "agent.safetensors"
    path.write_bytes(save(load(data), metadata={"alrao-rl": json.dumps(description)}))
    return path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.update(format="alrao-rl agent 9"), "is not an agent of this version"),
        (lambda d: d.pop("agent"), "is not a complete agent"),
        (lambda d: d.pop("action_space"), "is not a complete agent"),
        (lambda d: d["agent"].update(algo="sarsa"), "is not a complete agent: its header: algo is 'sarsa'"),
        (
            lambda d: d["agent"]["hyperparameters"].update(tensorboard_log="/tmp/x"),
            "unknown key hyperparameters.tensor",
        ),
        (lambda d: d["agent"]["policy_options"].update(net_arch=[5]), "is not a complete agent"),
        (lambda d: d["agent"].update(policy="stock", alrao={}), "its weights do not fit its spaces and options"),
        (lambda d: d["action_space"].update(type="os.system"), "unknown space 'os.system'"),
        (lambda d: d["action_space"].update(n=7), "its weights do not fit its spaces and options"),
        (lambda d: d["observation_space"].update(shape="x"), "is not a complete agent"),
    ],
)
def test_header_that_does_not_fit(saved, tmp_path, change, expected):
    assert expected in refused(rewritten(saved, tmp_path, change))


def test_rewritten_header_that_fits_is_loaded(saved, tmp_path):
    path = rewritten(saved, tmp_path, lambda d: d.update(timestep=13))
    assert read_agent(path)[0]["timestep"] == 13
    load_agent(path)


def test_missing_agent_says_the_state_of_the_run(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"cannot read the agent {tmp_path / 'agent.safetensors'}")):
        load_agent(tmp_path)
    (tmp_path / "status.json").write_text('{"state": "running"}')
    with pytest.raises(UserError, match="the run's state is 'running'"):
        load_agent(tmp_path)


def test_a_file_of_sb3s_own(tmp_path):
    with pytest.raises(UserError, match=r"m.zip is Stable-Baselines3's own format: .* DQN.load\("):
        load_agent(tmp_path / "m.zip")


def test_last_agent(saved, tmp_path):
    (tmp_path / "last.safetensors").write_bytes(saved[1].read_bytes())
    assert load_agent(tmp_path, "last").predict(np.zeros(3, np.float32))[0].shape == ()


@pytest.mark.parametrize(
    ("observations", "expected"),
    [
        (spaces.Dict({"a.b": BOX}), "got: a.b"),
        (spaces.Box(0, 255, (2, 2, 3), np.uint8), "cannot build PPO: expected images of at least 3 pixels a side"),
        (spaces.Tuple([BOX]), "cannot build PPO: "),
    ],
)
def test_observations_that_sb3_refuses(observations, expected):
    with pytest.raises(UserError) as error:
        make_model(make_agent("ppo"), observations, ACTIONS["discrete"], steps=0)
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1
