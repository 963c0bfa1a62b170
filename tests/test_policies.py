"""AlraoPolicy under unmodified SB3: everything a stock policy does, and what Alrao adds."""

from __future__ import annotations

import copy
import math
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from alrao_rl import AlraoCallback, AlraoCnnPolicy, AlraoMultiInputPolicy, AlraoPolicy, averaged
from alrao_rl.core import AlraoConfig, HeadwiseTensor
from alrao_rl.sb3.extractors import AlraoCombinedExtractor, AlraoNatureCNN
from alrao_rl.sb3.policies import AlraoActorCriticPolicy, AlraoDQNPolicy

# --- tiny environments and models -----------------------------------------------------------------------------------

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
OBSERVATIONS = {
    "vector": VECTOR,
    "discrete": spaces.Discrete(5),
    "image": IMAGE,
    "image-first": spaces.Box(0, 255, (3, 64, 64), np.uint8),
    "dict": spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 1), np.uint8), "vector": VECTOR}),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
}
ALGORITHMS = {"dqn": DQN, "a2c": A2C, "ppo": PPO}
TINY = {
    "dqn": {"learning_starts": 4, "batch_size": 4, "buffer_size": 40, "train_freq": 2, "target_update_interval": 6},
    "a2c": {"n_steps": 4},
    "ppo": {"n_steps": 8, "batch_size": 4, "n_epochs": 2},
}


class RandomEnv(gym.Env):
    """Random observations and rewards; episodes of five steps."""

    def __init__(self, observations=VECTOR, actions=ACTIONS["discrete"]):
        self.observation_space, self.action_space = copy.deepcopy(observations), copy.deepcopy(actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.steps == 5, False, {}


def policy_for(observations):
    if isinstance(observations, spaces.Dict):
        return AlraoMultiInputPolicy
    return AlraoCnnPolicy if len(observations.shape) == 3 else AlraoPolicy


def make(algo="ppo", observations=VECTOR, actions=ACTIONS["discrete"], policy=None, alrao=None, seed=0, **kwargs):
    """A tiny model; keywords that the algorithm does not take are the policy's."""
    env = kwargs.pop("env", None) or RandomEnv(observations, actions)
    own = {name: kwargs.pop(name) for name in ("use_sde", "sde_sample_freq", "learning_rate") if name in kwargs}
    own |= {name: kwargs.pop(name) for name in TINY[algo] if name in kwargs}
    if alrao is not None:
        kwargs["alrao"] = alrao
    return ALGORITHMS[algo](
        policy or policy_for(observations), env, seed=seed, device="cpu", policy_kwargs=kwargs, **TINY[algo] | own
    )


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(left, right, skip=()):
    assert left.keys() == right.keys()
    for name in left:
        if name not in skip:
            assert torch.equal(left[name], right[name]), name


def trunk(policy):
    heads = {id(p) for layer in policy.alrao_layers().values() for p in layer.parameters()}
    return [p for p in policy.parameters() if id(p) not in heads]


def assert_trained(model, before):
    """All is finite; trunk, every head and the averaging weights have moved."""
    state = snapshot(model.policy)
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    moved = {name for name in state if not torch.equal(state[name], before[name])}
    for name, layer in model.policy.alrao_layers().items():
        prefix = f"{name}.q_net.{len(model.policy.q_net.q_net) - 1}" if name == "q_net" else name
        assert f"{prefix}.averaging_weights" in moved
        assert torch.all((layer.theta - before[f"{prefix}.theta"]).abs().sum(1) > 0)
        assert float(layer.averaging_weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert any(name.endswith("weight") and state[name].dim() in (2, 4) for name in moved)
    assert not any(name.endswith("rates") for name in moved)


# --- the matrix -----------------------------------------------------------------------------------------------------

MATRIX = [
    (algo, observations, actions)
    for algo in ALGORITHMS
    for observations in OBSERVATIONS
    for actions in (ACTIONS if algo != "dqn" else ["discrete"])
]


@pytest.mark.parametrize(("algo", "observations", "actions"), MATRIX)
def test_spaces(algo, observations, actions):
    small = {"vector": {}, "discrete": {}, "dict": {"cnn_output_dim": 8}}.get(observations, {"features_dim": 8})
    model = make(algo, OBSERVATIONS[observations], ACTIONS[actions], features_extractor_kwargs=small)
    before = snapshot(model.policy)
    model.learn(16)
    assert_trained(model, before)
    # SB3 gives a policy the image with its channels first; predict takes the environment's own order.
    for deterministic in (True, False):
        action, _ = model.predict(OBSERVATIONS[observations].sample(), deterministic=deterministic)
        assert ACTIONS[actions].contains(action if ACTIONS[actions].shape else int(action))


# --- the stock policies' options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_net_arch_and_activation(algo):
    model = make(algo, net_arch=[7, 5], activation_fn=nn.Sigmoid)
    net = model.policy.q_net.q_net if algo == "dqn" else model.policy.mlp_extractor.policy_net
    assert [m.out_features for m in net if isinstance(m, nn.Linear)][:2] == [7, 5]
    assert sum(isinstance(m, nn.Sigmoid) for m in net) == 2
    before = snapshot(model.policy)
    model.learn(16)
    assert_trained(model, before)


def test_net_arch_as_a_dict():
    policy = make("ppo", net_arch={"pi": [7], "vf": [5, 4]}).policy
    assert (policy.action_net.in_features, policy.value_net.in_features) == (7, 4)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_no_hidden_layer(algo):
    model = make(algo, net_arch=[])
    assert next(iter(model.policy.alrao_layers().values())).in_features == 3
    before = snapshot(model.policy)
    model.learn(16)
    after = snapshot(model.policy)
    assert any(not torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_default_activation_is_tanh(algo):
    modules = list(make(algo).policy.modules())
    assert any(isinstance(m, nn.Tanh) for m in modules)
    assert not any(isinstance(m, nn.ReLU) for m in modules)


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, width=6):
        super().__init__(observation_space, width)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(observation_space.shape[0], width), nn.ReLU())

    def forward(self, observations):
        return self.net(observations)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_own_features_extractor_is_left_as_it_is(algo):
    model = make(algo, features_extractor_class=OwnExtractor, features_extractor_kwargs={"width": 4})
    extractor = next(m for m in model.policy.modules() if isinstance(m, OwnExtractor))
    assert extractor.features_dim == 4
    assert isinstance(extractor.net[2], nn.ReLU)
    weight = extractor.net[1].weight.detach().clone()
    model.learn(16)
    assert not torch.equal(weight, extractor.net[1].weight)


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_unshared_features_extractor(algo, tmp_path):
    model = make(algo, features_extractor_class=OwnExtractor, share_features_extractor=False)
    pi, vf = (e.net[1].weight for e in (model.policy.pi_features_extractor, model.policy.vf_features_extractor))
    start = pi.detach().clone(), vf.detach().clone()
    assert not torch.equal(*start)
    model.learn(16)
    assert not torch.equal(pi, start[0])
    assert not torch.equal(vf, start[1])
    # SB3's policy.save forgets share_features_extractor.
    model.policy.save(tmp_path / "policy")
    loaded = AlraoActorCriticPolicy.load(tmp_path / "policy", device="cpu")
    assert loaded.share_features_extractor is False
    observation = torch.randn(4, 3)
    with torch.no_grad():
        assert torch.equal(loaded.predict_values(observation), model.policy.predict_values(observation))


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sde_sample_freq": 2},
        {"squash_output": True, "sde_sample_freq": 2},
        {"full_std": False},
        {"use_expln": True, "log_std_init": -1.0},
        {"squash_output": True, "full_std": False, "use_expln": True},
    ],
)
def test_sde(algo, options):
    model = make(algo, actions=ACTIONS["box"], use_sde=True, net_arch=[6], **options)
    heads = model.policy.action_net
    before, log_std = snapshot(model.policy), heads.extra.detach().clone()
    assert heads.extra.shape == (10, 6, 2 if options.get("full_std", True) else 1)
    assert torch.all(log_std == options.get("log_std_init", 0.0))
    model.learn(16)
    assert_trained(model, before)
    assert torch.all((heads.extra - log_std).flatten(1).abs().sum(1) > 0)
    assert model.policy.squash_output == options.get("squash_output", False)
    noise = model.policy.action_dist.exploration_mat  # of the average, and nothing to learn from
    assert type(noise) is torch.Tensor
    assert not noise.requires_grad
    assert ACTIONS["box"].contains(model.predict(VECTOR.sample())[0])


def test_gaussian_log_std_is_one_copy_per_head():
    model = make("ppo", actions=ACTIONS["box"], log_std_init=-0.5)
    assert torch.equal(model.policy.action_net.extra, torch.full((10, 2), -0.5))
    assert not any(name == "log_std" for name, _ in model.policy.named_parameters())
    model.learn(16)
    layer = model.policy.action_net
    with torch.no_grad():
        torch.testing.assert_close(model.policy.log_std, layer.averaging_weights @ layer.extra)
    assert len(layer.extra[:, 0].unique()) > 5


def assign(policy, value):
    policy.log_std = value


def assign_data(policy, value):
    policy.log_std.data = value


WRITES = {
    "data.fill_": (lambda p: p.log_std.data.fill_(-3.0), -3.0),
    "data[:]": (lambda p: p.log_std.data.__setitem__(slice(None), -3.0), -3.0),
    "data[0]": (lambda p: [row.fill_(-3.0) for row in p.log_std.data], -3.0),
    "data.add_": (lambda p: p.log_std.data.add_(-2.5), -3.0),
    "data =": (lambda p: assign_data(p, p.log_std.data - 1.0), -1.5),
    "= parameter": (lambda p: assign(p, nn.Parameter(torch.full_like(p.action_net.extra[0], -3.0))), -3.0),
    "= tensor": (lambda p: assign(p, torch.full_like(p.action_net.extra[0], -3.0)), -3.0),
    "= number": (lambda p: assign(p, -3.0), -3.0),
    "= of itself": (lambda p: assign(p, p.log_std * 2), -1.0),
    "init": (lambda p: nn.init.constant_(p.log_std, -3.0), -3.0),
}
UNDER_NO_GRAD = {
    "fill_": (lambda p: p.log_std.fill_(-3.0), -3.0),
    "clamp_": (lambda p: p.log_std.clamp_(max=-0.75), -0.75),
    "copy_": (lambda p: p.log_std.copy_(p.log_std * 2), -1.0),
    "[:]": (lambda p: p.log_std.__setitem__(slice(None), -3.0), -3.0),
    "-= 1": (lambda p: assign(p, p.log_std.__isub__(1)), -1.5),
    "out": (lambda p: torch.add(p.log_std, -1.0, out=p.log_std), -1.5),
}


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("name", WRITES | UNDER_NO_GRAD)
def test_log_std_can_be_written(name, use_sde):
    """Every head has it then, and the noise is that of it."""
    policy = make("a2c", actions=ACTIONS["box"], log_std_init=-0.5, use_sde=use_sde).policy
    with torch.no_grad():
        policy.action_net.extra[0] -= 0.2
        policy.action_net.extra[1] += 0.2  # the average is as it was
    write, expected = (WRITES | UNDER_NO_GRAD)[name]
    with torch.set_grad_enabled(name in WRITES):
        write(policy)
    torch.testing.assert_close(policy.action_net.extra, torch.full_like(policy.action_net.extra, expected))
    torch.testing.assert_close(policy.log_std.detach().average, policy.action_net.extra[0])
    with torch.no_grad():
        torch.testing.assert_close(policy.log_std.exp(), policy.action_net.extra[0].exp())
        assert type(policy.log_std.exp()) is torch.Tensor
        std = policy.get_distribution(torch.zeros(1, 3)).distribution.stddev
    assert use_sde or std.tolist() == [pytest.approx([math.exp(expected)] * 2)]


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: p.log_std.fill_(-3.0), "fill_() cannot change a parameter in place while"),
        (lambda p: p.log_std.detach().fill_(-3.0), "under torch.no_grad(), or write to its .data"),
        (lambda p: p.log_std.__setitem__(0, -3.0), "__setitem__() cannot change a parameter"),
        (lambda p: p.log_std.requires_grad_(False), "requires_grad of log_std cannot be set: every output"),
        (lambda p: assign(p, torch.zeros(3)), "log_std is of shape (3,), expected (2,)"),
    ],
)
def test_a_write_into_log_std_that_cannot_be_is_refused(write, says):
    policy = make("a2c", actions=ACTIONS["box"]).policy
    with pytest.raises((RuntimeError, AttributeError, ValueError), match=re.escape(says)):
        write(policy)
    assert (policy.action_net.extra == 0).all()


@pytest.mark.parametrize("options", [{}, {"actions": ACTIONS["box"]}, {"actions": ACTIONS["box"], "use_sde": True}])
@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_a_policy_is_copied_right_after_learning(algo, options):
    """It keeps the distribution of the last update, which has a graph behind it."""
    model, x = make(algo, **options).learn(16), np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    copies = averaged(model.policy), copy.deepcopy(model.policy)
    expected = model.policy.predict(x, deterministic=True)[0]
    for copied in copies:
        np.testing.assert_allclose(copied.predict(x, deterministic=True)[0], expected, rtol=1e-5, atol=1e-6)
        if "actions" in options:
            with torch.no_grad():
                torch.testing.assert_close(copied.log_std, model.policy.log_std)


@pytest.mark.parametrize("actions", ACTIONS)
def test_averaged_policy_by_hand(actions):
    """Mixtures of probabilities, component by component; a Gaussian with averaged mean and averaged log_std."""
    model = make("ppo", actions=ACTIONS[actions], net_arch=[6], ortho_init=False, alrao={"n_heads": 3})
    heads, weights = model.policy.action_net, torch.tensor([0.2, 0.3, 0.5])
    heads.averaging_weights.data.copy_(weights)
    if heads.extra is not None:
        heads.extra.data.normal_()
    observation = torch.randn(4, 3)
    with torch.no_grad():
        latent, _ = model.policy.mlp_extractor(observation)
        outputs = torch.einsum("bi,joi->bjo", latent, heads.weight) + heads.bias  # [batch, head, output]
        got = model.policy.get_distribution(observation).distribution

    def mixture(probabilities):
        return (probabilities * weights[:, None]).sum(1)

    if actions == "discrete":
        torch.testing.assert_close(got.probs, mixture(outputs.softmax(-1)))
    elif actions == "multi-discrete":
        for component, part in zip(got, outputs.split([2, 3], -1), strict=True):
            torch.testing.assert_close(component.probs, mixture(part.softmax(-1)))
    elif actions == "multi-binary":
        torch.testing.assert_close(got.probs, mixture(outputs.sigmoid()))
    else:
        torch.testing.assert_close(got.mean, mixture(outputs))
        torch.testing.assert_close(got.stddev, (weights @ heads.extra).exp().expand(4, -1))


def test_policy_without_log_std_says_so():
    with pytest.raises(AttributeError, match="no attribute 'log_std'"):
        _ = make("ppo").policy.log_std
    assert not hasattr(make("a2c").policy, "log_std")


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_image_policy_has_natures_shape_and_no_relu(algo):
    policy = make(algo, IMAGE).policy
    extractor = next(m for m in policy.modules() if isinstance(m, AlraoNatureCNN))
    stock = NatureCNN(extractor._observation_space)
    assert [tuple(p.shape) for p in extractor.parameters()] == [tuple(p.shape) for p in stock.parameters()]
    assert not any(isinstance(m, nn.ReLU) for m in policy.modules())
    assert sum(isinstance(m, nn.Tanh) for m in extractor.modules()) == 4
    # As in stock: no fully connected layer behind exactly this extractor.
    assert policy.net_arch == []
    assert make(algo, IMAGE, net_arch=[8]).policy.net_arch == [8]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_combined_extractor_has_no_relu(algo):
    policy = make(algo, OBSERVATIONS["dict"]).policy
    extractor = next(m for m in policy.modules() if isinstance(m, AlraoCombinedExtractor))
    assert sum(isinstance(m, nn.Tanh) for m in extractor.modules()) == 4
    assert not any(isinstance(m, nn.ReLU) for m in policy.modules())


def test_users_nature_cnn_keeps_its_relu():
    policy = make("ppo", IMAGE, features_extractor_class=NatureCNN).policy
    assert any(isinstance(m, nn.ReLU) for m in policy.features_extractor.modules())
    assert policy.net_arch == []


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_normalize_images(algo):
    floats = spaces.Box(0, 1, (1, 36, 36), np.float32)
    with pytest.raises(AssertionError, match="NatureCNN only with images"):
        make(algo, floats)
    # normalize_images=False switches NatureCNN's check off by itself, and the image arrives as it is.
    policy = make(algo, floats, normalize_images=False, features_extractor_kwargs={"features_dim": 8}).policy
    with pytest.raises(AssertionError, match="NatureCNN only with images"):
        make(algo, floats, features_extractor_kwargs={"normalized_image": False})
    assert make(algo, floats, features_extractor_kwargs={"normalized_image": True}).policy.normalize_images
    extractor = next(m for m in policy.modules() if isinstance(m, AlraoNatureCNN))
    seen = []
    extractor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = floats.sample()
    policy.predict(image)
    assert torch.equal(seen[0][0], torch.as_tensor(image))


def test_images_are_scaled_by_default():
    policy = make("ppo", OBSERVATIONS["image-first"]).policy
    seen = []
    policy.features_extractor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = policy.observation_space.sample()
    policy.predict(image)
    assert torch.equal(seen[0][0], torch.as_tensor(image).float() / 255)


def test_dict_of_float_images():
    observations = spaces.Dict({"image": spaces.Box(0, 1, (1, 36, 36), np.float32), "vector": VECTOR})
    policy = make("a2c", observations, normalize_images=False).policy
    assert any(isinstance(m, AlraoNatureCNN) or type(m) is NatureCNN for m in policy.modules())


# --- save and load --------------------------------------------------------------------------------------------------

OPTIONS = {"n_heads": 4, "lr_range": (1e-5, 1e-2), "reclone_interval": 7, "value_averaging": {"rule": "switch"}}


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("observations", ["vector", "dict"])
def test_save_and_load(algo, observations, tmp_path):
    space = OBSERVATIONS[observations]
    model = make(algo, space, alrao=OPTIONS, net_arch=[8])
    model.learn(16)
    model.save(tmp_path / "model")
    loaded = ALGORITHMS[algo].load(tmp_path / "model", env=RandomEnv(space), device="cpu")
    assert_same(snapshot(loaded.policy), snapshot(model.policy))
    assert loaded.policy.alrao_options == model.policy.alrao_options
    assert loaded.policy.alrao_options.n_heads == 4
    assert_same_optimizer(loaded, model)
    observation = space.sample()
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    before = snapshot(loaded.policy)
    loaded.learn(16)
    assert_trained(loaded, before)


def assert_same_optimizer(left, right):
    one, two = (model.policy.optimizer.state_dict() for model in (left, right))
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    assert one["state"]
    for key, state in one["state"].items():
        assert_same(state, two["state"][key])


class Still(gym.Env):
    """Always the same observation, and a reward that depends on the action alone: nothing of it needs to be saved."""

    observation_space, action_space = VECTOR, ACTIONS["discrete"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(3, 0.5, np.float32), {}

    def step(self, action):
        return np.full(3, 0.5, np.float32), float(action), True, False, {}


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_continuing_a_loaded_model_equals_not_having_saved(algo, tmp_path):
    model = make(algo, env=Still())
    model.learn(16)
    model.save(tmp_path / "model")
    loaded = ALGORITHMS[algo].load(tmp_path / "model", env=Still(), device="cpu")
    for one in (model, loaded):
        one.set_random_seed(5)
        one.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == loaded.num_timesteps
    assert_same(snapshot(loaded.policy), snapshot(model.policy))
    assert_same_optimizer(loaded, model)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_set_parameters(algo):
    model, other = make(algo), make(algo, seed=1)
    model.learn(16)
    other.set_parameters(copy.deepcopy(model.get_parameters()))
    assert_same(snapshot(other.policy), snapshot(model.policy))
    assert_same_optimizer(other, model)
    before = snapshot(other.policy)
    other.learn(16)
    assert_trained(other, before)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_parameters_and_training_mode_are_as_torchs(algo):
    policy = make(algo).policy
    policy.extra = nn.Sequential(nn.Dropout(), policy.alrao_layers().popitem()[1])  # a shared module
    assert list(map(id, policy.parameters())) == list(map(id, nn.Module.parameters(policy)))
    assert list(policy.parameters(recurse=False)) == list(nn.Module.parameters(policy, recurse=False))
    for mode in (True, False):
        policy.set_training_mode(mode)
        trained = policy.q_net if algo == "dqn" else policy
        assert {policy.training, *(module.training for module in trained.modules())} == {mode}
        if algo == "dqn":
            others = [*policy.q_net_target.modules(), *policy.q_net_average.modules()]
            assert not any(module.training for module in others)


class Frozen(BaseFeaturesExtractor):
    """With a normalisation whose statistics stay, by the usual way to do so."""

    def __init__(self, space):
        super().__init__(space, 3)
        self.norm = nn.BatchNorm1d(3)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_training_mode_that_a_module_decides_on(algo):
    policy = make(algo, features_extractor_class=Frozen).learn(32).policy
    norms = [module for module in policy.modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms
    assert not any(norm.training or norm.running_mean.any() for norm in norms)
    policy.train()
    assert policy.training
    assert not any(norm.training for norm in norms)
    if algo == "dqn":
        assert not any(module.training for module in policy.q_net_average.modules())


def test_weights_loaded_into_the_network_of_values_alone():
    """As a warm start: what plays is they."""
    one, other = make("dqn").learn(40), make("dqn", seed=1).learn(40)
    other.q_net.load_state_dict(one.q_net.state_dict())
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    tensor = torch.from_numpy(observations)
    with torch.no_grad():
        torch.testing.assert_close(other.policy.q_net_average(tensor), one.q_net(tensor), rtol=1e-4, atol=1e-5)
    whole = make("dqn", seed=2)
    whole.policy.load_state_dict(one.policy.state_dict())
    assert_same(snapshot(whole.policy), snapshot(one.policy))


@pytest.mark.parametrize("how", ["load_state_dict", "load_from_vector"])
def test_noise_on_all_parameters(how):
    """As in SB3's example of evolution: averaging weights stay a distribution."""
    for seed in range(5):
        policy = make("a2c", seed=seed).policy
        torch.manual_seed(seed)
        if how == "load_state_dict":
            noisy = {
                key: value + torch.randn_like(value) for key, value in policy.state_dict().items() if "action" in key
            }
            policy.load_state_dict(noisy, strict=False)
        else:
            vector = policy.parameters_to_vector()
            policy.load_from_vector(vector + np.random.default_rng(seed).normal(size=vector.shape))
        with torch.no_grad():
            probabilities = policy.get_distribution(torch.randn(20, 3)).distribution.probs
            assert policy.predict_values(torch.randn(20, 3)).isfinite().all()
        torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
        for layer in policy.alrao_layers().values():
            weights = layer.averaging_weights
            assert (weights >= 0).all()
            assert weights.sum().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_of_which_no_copy_can_be_made():
    class Old(BaseFeaturesExtractor):
        def __init__(self, space):
            super().__init__(space, 3)
            self.layer = nn.utils.weight_norm(nn.Linear(3, 3))

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(ValueError, match=r"cannot be copied.*use torch\.nn\.utils\.parametrizations\.weight_norm"):
        make("dqn", features_extractor_class=Old)


def test_parameters_of_another_base_are_refused():
    model, other = make("ppo", alrao={"base": "adam"}), make("ppo")
    model.learn(16)
    with pytest.raises(ValueError, match=r"exp_avg.*expected.*another base update than 'rmsprop'"):
        other.set_parameters(model.get_parameters())


@pytest.mark.parametrize("other", [{"alrao": {"n_heads": 4}}, {"net_arch": [8]}])
def test_a_state_of_other_sizes_is_refused(other):
    """At once, not at the next step."""
    model, other = make("ppo").policy.optimizer, make("ppo", **other)
    other.learn(16)
    with pytest.raises(ValueError, match="of another network or of another number of heads"):
        model.load_state_dict(other.policy.optimizer.state_dict())


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("by", ["concrete", "AlraoPolicy"])
def test_policy_save_and_load(algo, by, tmp_path):
    model = make(algo, alrao=OPTIONS, net_arch=[8], activation_fn=nn.Sigmoid)
    model.learn(16)
    model.policy.save(tmp_path / "policy")
    concrete = AlraoDQNPolicy if algo == "dqn" else AlraoActorCriticPolicy
    loaded = (concrete if by == "concrete" else AlraoPolicy).load(tmp_path / "policy", device="cpu")
    assert type(loaded) is concrete
    assert_same(snapshot(loaded), snapshot(model.policy))
    assert loaded.alrao_options == model.policy.alrao_options
    observation = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(outputs(loaded, observation), outputs(model.policy, observation))


def outputs(policy, observation):
    if isinstance(policy, AlraoDQNPolicy):
        return policy.q_net(observation)
    distribution = policy.get_distribution(observation).distribution
    return torch.cat([distribution.logits, policy.predict_values(observation)], 1)


# --- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_same_seed_is_the_same_run(algo):
    one, two, other = (make(algo, seed=seed).learn(24) for seed in (3, 3, 4))
    assert_same(snapshot(one.policy), snapshot(two.policy))
    name = "q_net.alrao_rates" if algo == "dqn" else "alrao_rates"
    assert not torch.equal(one.policy.state_dict()[name], other.policy.state_dict()[name])


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_seed_of_the_rates_alone(algo):
    one, two, three = (make(algo, seed=seed, alrao={"seed": rates}).policy for seed, rates in ((0, 5), (1, 5), (0, 6)))
    rates = [(policy.q_net if algo == "dqn" else policy).alrao_rates for policy in (one, two, three)]
    assert torch.equal(rates[0], rates[1])
    assert not torch.equal(rates[0], rates[2])
    assert not torch.equal(trunk(one)[0], trunk(two)[0])


STOCK = {"dqn": {"activation_fn": nn.Tanh}, "a2c": {}, "ppo": {}}


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_torchs_generator_and_head_1_are_as_in_stock(algo, actions):
    if algo == "dqn" and actions == "box":
        pytest.skip("DQN has no continuous actions")
    stock = make(algo, actions=ACTIONS[actions], policy="MlpPolicy", seed=11, **STOCK[algo])
    state = torch.get_rng_state()
    model = make(algo, actions=ACTIONS[actions], seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    layers = {"q_net": stock.q_net.q_net[-1]} if algo == "dqn" else {
        "action_net": stock.policy.action_net, "value_net": stock.policy.value_net
    }  # fmt: skip
    for name, layer in model.policy.alrao_layers().items():
        assert torch.equal(layer.weight[0], layers[name].weight)
        assert torch.equal(layer.bias[0], layers[name].bias)
        assert not torch.equal(layer.weight[1], layer.weight[0])
    mine, theirs = snapshot(model.policy), snapshot(stock.policy)
    shared = {name for name in theirs if name in mine and mine[name].shape == theirs[name].shape}
    assert len(shared) >= 8
    assert all(torch.equal(mine[name], theirs[name]) for name in shared)


def test_other_heads_have_the_gain_of_their_layer():
    policy = make("ppo", net_arch=[32, 32]).policy
    for layer, gain in ((policy.action_net, 0.01), (policy.value_net, 1.0)):
        rows = layer.weight.detach()
        torch.testing.assert_close(rows @ rows.mT, gain**2 * torch.eye(rows.shape[1]).expand(10, -1, -1))
    free = make("ppo", net_arch=[32, 32], ortho_init=False).policy.action_net.weight[1].detach()
    assert float(free.norm(dim=1).min()) > 0.1


# --- learning rates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_constant_learning_rate_does_nothing(algo):
    one, two = (make(algo, learning_rate=rate).learn(24) for rate in (1e-4, 1e-2))
    assert_same(snapshot(one.policy), snapshot(two.policy))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_schedule_anneals(algo):
    """A linear schedule gives another run; when the rate is at zero no parameter moves."""
    constant, linear = (make(algo, learning_rate=rate) for rate in (1.0, lambda left: left))
    assert not torch.equal(*(learn_flat(model) for model in (constant, linear)))
    late = make(algo, learning_rate=lambda left: float(left > 0.5))
    before = snapshot(late.policy)
    late.learn(32, callback=(keep := Keep(16 + TINY[algo].get("n_steps", 2))))
    learned = {name for name in before if name.endswith((".weight", ".bias", ".theta"))}
    learned -= {name for name in learned if name.startswith(("q_net_target", "q_net_average"))}
    assert_same(keep.kept, snapshot(late.policy), skip=before.keys() - learned)
    assert not any(torch.equal(keep.kept[name], before[name]) for name in learned)


def learn_flat(model):
    return torch.cat([p.detach().flatten() for p in trunk(model.learn(24).policy)])


class Keep(BaseCallback):
    """Keep the parameters as they are at one timestep."""

    def __init__(self, timestep):
        super().__init__()
        self.timestep, self.kept = timestep, None

    def _on_step(self):
        if self.num_timesteps == self.timestep:
            self.kept = snapshot(self.model.policy)
        return True


# --- around the policy: VecNormalize, callbacks, logger -------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_vec_normalize(algo):
    env = VecNormalize(DummyVecEnv([RandomEnv]))
    model = make(algo, env=env)
    before = snapshot(model.policy)
    model.learn(16)
    assert_trained(model, before)
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count > 10


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_callbacks(algo, tmp_path):
    model = make(algo)
    callbacks = CallbackList([
        EvalCallback(
            Monitor(RandomEnv()), n_eval_episodes=1, eval_freq=8, best_model_save_path=str(tmp_path),
            log_path=str(tmp_path), verbose=0,
        ),
        CheckpointCallback(8, str(tmp_path), "checkpoint"),
    ])  # fmt: skip
    model.learn(24, callback=callbacks)
    assert {"best_model.zip", "evaluations.npz", "checkpoint_16_steps.zip"} <= {p.name for p in tmp_path.iterdir()}
    assert ALGORITHMS[algo].load(tmp_path / "best_model.zip").policy.alrao_options.n_heads == 10


class Recorder(KVWriter):
    def __init__(self):
        self.rows, self.excluded = [], {}

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))
        self.excluded.update(key_excluded)

    def close(self):
        pass


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_callback_logs_the_heads(algo):
    model, recorder = make(algo, alrao={"n_heads": 3}), Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(40, callback=AlraoCallback(), log_interval=1)
    row = recorder.rows[-1]
    for layer in model.policy.alrao_layers():
        weights = [row[f"alrao/{layer}/weight_{j}"] for j in (1, 2, 3)]
        assert sum(weights) == pytest.approx(1.0, abs=1e-5)
        assert row[f"alrao/{layer}/entropy"] == pytest.approx(-sum(a * math.log(a) for a in weights if a), rel=1e-5)
        assert 1e-6 < row[f"alrao/{layer}/effective_lr"] < 0.1
        assert row[f"alrao/{layer}/reclones"] == model.policy.alrao_stats()[layer]["reclones"].sum()
        assert f"alrao/{layer}/weight_4" not in row
        assert "stdout" in recorder.excluded[f"alrao/{layer}/weight_1"]


def test_callback_does_nothing_under_a_stock_policy():
    model, recorder = make("ppo", policy="MlpPolicy"), Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(16, callback=AlraoCallback(), log_interval=1)
    assert recorder.rows
    assert not any(key.startswith("alrao") for row in recorder.rows for key in row)


def test_alrao_stats_by_hand():
    """η = 1e-4, 1e-3, 1e-2 and a = 1/2, 1/4, 1/4: log10 of the effective rate is −(4/2 + 3/4 + 2/4) = −3.25."""
    policy = make("ppo", alrao={"n_heads": 3, "lr_range": (1e-4, 1e-2)}).policy
    policy.value_net.averaging_weights.data.copy_(torch.tensor([0.5, 0.25, 0.25]))
    stats = policy.alrao_stats()
    assert stats.keys() == {"action_net", "value_net"}
    assert np.allclose(stats["value_net"]["rates"], [1e-4, 1e-3, 1e-2])
    assert stats["value_net"]["weights"].tolist() == [0.5, 0.25, 0.25]
    assert stats["value_net"]["entropy"] == pytest.approx(1.5 * math.log(2))
    assert stats["value_net"]["effective_lr"] == pytest.approx(10**-3.25)
    assert stats["action_net"]["weights"].sum() == pytest.approx(1.0)
    assert stats["action_net"]["entropy"] == pytest.approx(math.log(3))
    assert stats["action_net"]["effective_lr"] == pytest.approx(1e-3)
    assert stats["action_net"]["reclones"].tolist() == [0, 0, 0]


# --- copies ---------------------------------------------------------------------------------------------------------


def values_of(policy, observation):
    return policy.q_net(observation) if isinstance(policy, AlraoDQNPolicy) else policy.predict_values(observation)


def one_update(policy, observation):
    """An update of the values with the policy's own optimizer."""
    loss = (values_of(policy, observation) - 1.0).square().mean()
    policy.optimizer.zero_grad()
    loss.backward()
    policy.optimizer.step()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_deepcopy_then_training_on(algo):
    policy = make(algo).policy
    observation = torch.randn(4, 3)
    one_update(policy, observation)
    twin = copy.deepcopy(policy)
    assert_same(snapshot(twin), snapshot(policy))
    before = snapshot(policy)
    one_update(twin, observation)
    assert_same(snapshot(policy), before)  # nothing is shared
    one_update(policy, observation)
    assert_same(snapshot(twin), snapshot(policy))
    assert any(not torch.equal(before[name], value) for name, value in snapshot(twin).items())
    layer = next(reversed(twin.alrao_layers().values()))
    values_of(twin, observation).sum().backward()
    assert all(p.grad is None for p in layer.parameters())  # hooks are dropped by deepcopy, and come back


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_deepcopy_of_a_trained_policy(algo):
    model = make(algo).learn(16)
    model.predict(VECTOR.sample())
    twin = copy.deepcopy(model.policy)
    observation = torch.randn(4, 3)
    one_update(twin, observation)
    one_update(model.policy, observation)
    assert_same(snapshot(twin), snapshot(model.policy))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_vectors_of_parameters_then_training_on(algo):
    model, other = make(algo).learn(16), make(algo, seed=1)
    vector = model.policy.parameters_to_vector()
    assert vector.dtype == np.float32
    other.policy.load_from_vector(vector)
    assert np.array_equal(other.policy.parameters_to_vector(), vector)
    before = snapshot(other.policy)
    other.learn(24)
    assert_trained(other, before)


# --- Alrao inside SB3 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_no_grad_output_is_the_average_branch_bitwise(algo, actions):
    if algo == "dqn" and actions != "discrete":
        pytest.skip("DQN has Discrete actions only")
    model = make(algo, actions=ACTIONS[actions]).learn(16)
    for layer in model.policy.alrao_layers().values():
        features = torch.randn(9, layer.in_features)
        with torch.no_grad():
            plain = layer(features)
        assert type(plain) is torch.Tensor
        headwise = layer(features)
        assert isinstance(headwise, HeadwiseTensor)
        assert torch.equal(headwise.average, plain)
        if layer.extra is not None:
            with torch.no_grad():
                plain = layer.averaged_extra()
            assert torch.equal(layer.averaged_extra().average, plain)


class FirstMinibatch(BaseCallback):
    """Compare the log-probabilities of the rollout with those of the training pass before any update."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        data = next(self.model.rollout_buffer.get(4))
        actions = data.actions.long().flatten() if self.model.action_space.shape == () else data.actions
        values, log_prob, _ = self.model.policy.evaluate_actions(data.observations, actions)
        self.ratio = (log_prob.detach().average - data.old_log_prob).exp()
        self.values = values.flatten().detach().average - data.old_values


@pytest.mark.parametrize("actions", ACTIONS)
def test_first_minibatch_of_ppo_has_ratio_1(actions):
    callback, recorder = FirstMinibatch(), Recorder()
    model = make("ppo", actions=ACTIONS[actions], n_epochs=1, batch_size=8)
    model.set_logger(Logger(None, [recorder]))
    model.learn(40, callback=callback, log_interval=1)
    torch.testing.assert_close(callback.ratio, torch.ones(4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(callback.values, torch.zeros(4), rtol=1e-5, atol=1e-5)
    # One minibatch a rollout: what SB3 logs is that of the first.
    rows = [row for row in recorder.rows if "train/clip_fraction" in row]
    assert len(rows) >= 3
    assert all(row["train/clip_fraction"] == 0 for row in rows)
    assert all(abs(row["train/approx_kl"]) < 1e-6 for row in rows)


def parameters_of(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_hard_sync_makes_the_target_equal():
    model = make("dqn", alrao={"reclone_interval": 5})
    observation = torch.randn(6, 3)
    model.learn(30)  # syncs every 6 steps, trains every 2
    for _ in range(12):  # more than one re-clone
        model.train(gradient_steps=1, batch_size=4)
        polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), 1.0)
        assert_same(parameters_of(model.q_net), parameters_of(model.q_net_target))
        with torch.no_grad():
            assert torch.equal(model.q_net(observation), model.q_net_target(observation))


def test_deterministic_actions_are_the_running_averages():
    """Exploration, and so training, is the current network's."""
    model = make("dqn")
    model.learn(40)
    observations = torch.randn(50, 3)
    with torch.no_grad():
        average, current = model.policy.q_net_average(observations), model.policy.q_net(observations)
    assert not torch.allclose(average, current)
    for values, deterministic in ((average, True), (current, False)):
        actions, _ = model.policy.predict(observations.numpy(), deterministic=deterministic)
        assert (actions == values.argmax(1).numpy()).all()


@pytest.mark.parametrize("through", ["save", "deepcopy", "cut off"])
def test_the_running_average_goes_on(through, tmp_path):
    """A loaded or copied model's average is the one that was saved, and keeps following its own network."""
    model = make("dqn").learn(40)
    other = copy.deepcopy(model.policy) if through == "deepcopy" else None
    if through == "save":
        model.save(tmp_path / "model")
        other = DQN.load(tmp_path / "model", device="cpu").policy
    elif through == "cut off":
        other = make("dqn").policy
        other.load_state_dict(model.policy.state_dict())
    assert_same(parameters_of(model.policy.q_net_average), parameters_of(other.q_net_average))
    before, mine = parameters_of(other.q_net_average), parameters_of(model.policy.q_net_average)
    other.q_net(torch.randn(4, 3)).sum().backward()
    other.optimizer.step()
    assert not any(torch.equal(new, before[name]) for name, new in parameters_of(other.q_net_average).items())
    assert_same(mine, parameters_of(model.policy.q_net_average))


def test_a_window_of_one_plays_the_current_network():
    model = make("dqn", alrao={"iterate_window": 1}).learn(40)
    observations = torch.randn(50, 3)
    with torch.no_grad():
        torch.testing.assert_close(model.policy.q_net_average(observations), model.policy.q_net(observations))


def test_reclone_happens_and_the_target_follows():
    model = make("dqn", alrao={"reclone_interval": 1, "value_averaging": "whiteness"})
    model.learn(8)
    layer = model.q_net.q_net[-1]
    layer.averaging_weights.data.copy_(torch.tensor([0.0] + [1 / 9] * 9))
    before = layer.weight[0].detach().clone()
    model.train(gradient_steps=1, batch_size=4)
    average = (layer.averaging_weights[:, None, None] * layer.weight).sum(0)
    assert not torch.allclose(layer.weight[0], before)
    torch.testing.assert_close(layer.weight[0], average, rtol=0.2, atol=1e-2)
    polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), 1.0)
    observation = torch.randn(6, 3)
    with torch.no_grad():
        assert torch.equal(model.q_net(observation), model.q_net_target(observation))


@pytest.mark.parametrize("tau", [1.0, 0.01])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_head_leaves_the_average_and_never_reaches_the_target(tau, broken):
    model = make("dqn").learn(8)
    model.tau = tau
    layer = model.q_net.q_net[-1]
    weights = torch.arange(10.0)
    layer.averaging_weights.data.copy_(weights / weights.sum())  # none for head 1
    observation = torch.randn(6, 3)
    with torch.no_grad():
        before = model.q_net(observation)
        layer.weight[0] = broken
        torch.testing.assert_close(model.q_net(observation), before, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.q_net(observation).average, before, rtol=1e-6, atol=1e-7)
    model.train(gradient_steps=1, batch_size=4)
    polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), tau)
    for network in (model.q_net, model.q_net_target):
        assert all(value.isfinite().all() for value in snapshot(network).values())


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_broken_head_of_an_actor_critic_is_replaced(actions):
    model = make("a2c", actions=ACTIONS[actions]).learn(8)
    with torch.no_grad():
        model.policy.action_net.weight[3] = math.nan
        model.policy.value_net.weight[5] = math.inf
    model.learn(8, reset_num_timesteps=False)
    assert all(v.isfinite().all() for v in snapshot(model.policy).values() if v.is_floating_point())


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_gradient_clipping_never_sees_the_heads(algo, monkeypatch):
    model = make(algo, actions=ACTIONS["discrete" if algo == "dqn" else "box"]).learn(16)
    followers = (model.policy.q_net_target, model.policy.q_net_average) if algo == "dqn" else ()
    seen, followed = [], {id(p) for network in followers for p in network.parameters()}
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, *args, **kwargs):
        parameters = [p for p in parameters if id(p) not in followed]
        heads = {id(p) for layer in model.policy.alrao_layers().values() for p in layer.parameters()}
        seen.append(
            (
                [p.grad is None for p in parameters if id(p) in heads],
                [p.grad is not None for p in parameters if id(p) not in heads],
            )
        )
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    model.learn(16, reset_num_timesteps=False)
    assert seen
    for heads, others in seen:
        assert len(heads) >= 2
        assert all(heads)
        assert all(others)


@pytest.mark.parametrize(("algo", "norm"), [("dqn", 10.0), ("a2c", 0.5), ("ppo", 0.5)])
def test_heads_are_clipped_at_the_algorithms_own_norm(algo, norm):
    assert make(algo).policy.alrao_options.head_max_grad_norm == norm
    assert make(algo, alrao={"head_max_grad_norm": None}).policy.alrao_options.head_max_grad_norm is None
    assert make(algo, alrao={"head_max_grad_norm": 3}).policy.alrao_options.head_max_grad_norm == 3.0


@pytest.mark.parametrize("algorithm", [DQN, A2C, PPO])
def test_clipping_switched_off(algorithm):
    """``max_grad_norm=inf`` is SB3's way to say it."""
    model = algorithm(AlraoPolicy, RandomEnv(), max_grad_norm=math.inf, device="cpu")
    assert model.policy.alrao_options.head_max_grad_norm is None


@pytest.mark.parametrize("options", [{"clip_range_vf": 0.2}, {"target_kl": 0.5}, {"normalize_advantage": False}])
def test_options_of_ppo(options):
    model = PPO(AlraoPolicy, RandomEnv(), seed=0, device="cpu", **TINY["ppo"], **options)
    before = snapshot(model.policy)
    assert_trained(model.learn(16), before)


# --- bad input ------------------------------------------------------------------------------------------------------


def assert_one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_algorithm_that_is_not_served():
    with pytest.raises(ValueError) as error:
        ARS(AlraoPolicy, RandomEnv(actions=ACTIONS["box"]))
    assert_one_line(error, "AlraoPolicy does not serve ARS", "expected DQN, ", "A2C, PPO", "TD3, DDPG", "RecurrentPPO")


def test_an_option_of_alrao_among_those_of_the_policy():
    with pytest.raises(TypeError) as error:
        PPO(AlraoPolicy, RandomEnv(), policy_kwargs={"n_heads": 10})
    assert_one_line(error, "n_heads is an option of Alrao", "policy_kwargs=dict(alrao=dict(n_heads=...))")


def test_concrete_policy_under_the_other_kind():
    with pytest.raises(ValueError, match="AlraoDQNPolicy does not serve SAC: expected DQN"):
        SAC(AlraoDQNPolicy, RandomEnv(actions=ACTIONS["box"]), buffer_size=10)
    with pytest.raises(ValueError) as error:
        PPO(AlraoDQNPolicy, RandomEnv())
    assert_one_line(error, "AlraoDQNPolicy does not serve PPO", "expected DQN")
    with pytest.raises(ValueError) as error:
        DQN(AlraoActorCriticPolicy, RandomEnv(), buffer_size=10)
    assert_one_line(error, "AlraoActorCriticPolicy does not serve DQN", "expected A2C or PPO")


def test_on_policy_algorithm_of_another_structure_is_refused_by_name():
    class RecurrentPPO(PPO):
        pass

    class MyPPO(PPO):
        pass

    with pytest.raises(ValueError, match="does not serve RecurrentPPO"):
        RecurrentPPO(AlraoPolicy, RandomEnv())
    assert isinstance(MyPPO(AlraoPolicy, RandomEnv(), device="cpu").policy, AlraoActorCriticPolicy)


def test_dqn_on_continuous_actions():
    with pytest.raises(AssertionError) as error:  # SB3's own, before any policy is made
        make("dqn", actions=ACTIONS["box"])
    assert_one_line(error, "Discrete", "Box")
    with pytest.raises(ValueError) as error:
        AlraoDQNPolicy(VECTOR, ACTIONS["box"], lambda _: 1.0)
    assert_one_line(error, "DQN", "Box", "expected Discrete")


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"optimizer_class": torch.optim.SGD},
        {"optimizer_class": torch.optim.Adam},
        {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}},
        {"optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"eps": 1e-5}},
    ],
)
def test_optimizer_of_the_user_is_refused(algo, kwargs):
    with pytest.raises(ValueError) as error:
        make(algo, **kwargs)
    assert_one_line(error, kwargs["optimizer_class"].__name__, "alrao=dict(base=", "rmsprop", "adam", "sgd")


def test_a2cs_own_rmsprop_is_accepted():
    model = make("a2c")
    assert model.policy_kwargs["optimizer_class"] is torch.optim.RMSprop
    assert type(model.policy.optimizer).__name__ == "AlraoOptimizer"
    assert A2C(AlraoPolicy, RandomEnv(), use_rms_prop=False, device="cpu").policy.alrao_options.base == "rmsprop"
    kwargs = {"net_arch": [8]}
    A2C(AlraoPolicy, RandomEnv(), device="cpu", policy_kwargs=kwargs)  # SB3 writes into the user's dict
    assert "optimizer_class" in kwargs
    PPO(AlraoPolicy, RandomEnv(), device="cpu", policy_kwargs=kwargs, **TINY["ppo"])


@pytest.mark.parametrize(
    ("alrao", "words"),
    [
        ({"n_head": 5}, ["n_head", "did you mean 'n_heads'"]),
        ({"lr_range": (0.1, 0.001)}, ["lr_range", "0.1", "0 < lr_min <= lr_max", "did you mean (0.001, 0.1)"]),
        ({"lr_range": (0.0, 0.1)}, ["lr_range", "0.0", "0 < lr_min"]),
        ({"lr_range": (-1e-3, 0.1)}, ["lr_range", "-0.001", "0 < lr_min"]),
        ({"lr_range": (math.nan, 0.1)}, ["lr_range", "nan", "0 < lr_min"]),
        ({"lr_range": 0.1}, ["lr_range", "0.1", "two numbers"]),
        ({"n_heads": 0}, ["n_heads", "0", "at least 1"]),
        ({"n_heads": 2.5}, ["n_heads", "2.5", "whole number"]),
        ({"base": "rmsprob"}, ["rmsprob", "did you mean 'rmsprop'"]),
        ({"base_kwargs": {"epsilon": 1.0}}, ["epsilon", "expected one of"]),
        ({"value_averaging": "swich"}, ["swich", "did you mean 'switch'"]),
        ({"policy_averaging": "switch"}, ["policy_averaging", "switch", "labels"]),
        ({"head_max_grad_norm": -1}, ["head_max_grad_norm", "-1", "positive"]),
    ],
)
@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_bad_options(algo, alrao, words):
    with pytest.raises((ValueError, TypeError)) as error:
        make(algo, alrao=alrao)
    assert_one_line(error, *words)


def test_options_as_a_configuration():
    assert make("ppo", alrao=AlraoConfig(n_heads=3)).policy.action_net.n_heads == 3


def test_dict_observations_need_the_policy_for_them():
    with pytest.raises(ValueError, match="use AlraoMultiInputPolicy"):
        AlraoPolicy(spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), spaces.Discrete(2), lambda _: 1e-3, use_sde=False)


def test_log_prob_of_actions_that_come_from_the_policy():
    """Not labels: every branch has its own, and a plain tensor that requires a gradient receives one."""
    policy = PPO(AlraoPolicy, "Pendulum-v1", seed=0, device="cpu").policy
    distribution = policy.get_distribution(torch.randn(5, 3))
    log_prob = distribution.log_prob(distribution.mode())
    assert type(log_prob.branches) is torch.Tensor
    constant = -0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob.branches, constant - distribution.log_std.branches.expand(-1, 5))
    actions = torch.randn(5, 1, requires_grad=True)
    distribution.log_prob(actions).sum().backward()
    mean, log_std = distribution.mean.average, distribution.log_std.average
    torch.testing.assert_close(actions.grad, -(actions - mean) * (-2 * log_std).exp())


@pytest.mark.parametrize("use_sde", [False, True])
def test_densities_of_heads_are_importance_weighted(use_sde):
    """The gradient of Σ_j log π_j is, in the heads, that of Σ_j min(π_j/π, 10) log π_j with the ratio held."""
    policy = make("a2c", actions=ACTIONS["box"], use_sde=use_sde, net_arch=[6]).policy
    policy.action_net.extra.data.normal_(0, 3)
    observations, actions = torch.randn(10, 3), torch.logspace(-3, 1, 10).unsqueeze(1).expand(10, 2)

    def gradient(weights):
        _, log_prob, _ = policy.evaluate_actions(observations, actions)
        log_prob.branches.backward(weights(log_prob.branches.detach()))
        found = policy.action_net.gradient.clone()
        policy.optimizer.zero_grad()
        return found

    def ratio(log_prob):
        weights = (log_prob - log_prob[0]).exp().clamp(max=10)
        assert weights.max() == 10
        assert weights.min() < 0.5
        return weights * (1 + 1e-6)  # not the average's own, which would be weighted

    torch.testing.assert_close(gradient(torch.ones_like), gradient(ratio), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a2c_keeps_its_standard_deviation():
    """Without importance weights log σ of all heads fell below −16 within these steps, and heads were lost."""
    model = A2C(AlraoPolicy, "Pendulum-v1", seed=0, device="cpu").learn(4000)
    assert model.policy.action_net.extra.abs().max() < 4
    assert not any(stats["lost"].any() for stats in model.policy.alrao_stats().values())


class Observing(gym.Env):
    """Random observations of a space."""

    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, self.np_random.random() < 0.1, {}


def images(size, high=255, dtype=np.uint8):
    return spaces.Box(0, high, (4, size, size), dtype)


@pytest.mark.parametrize("size", [10, 40])
@pytest.mark.parametrize("kind", ["dict", "float"])
def test_images_of_any_size(kind, size):
    """Also in a Dict, and where they are normalised already."""
    if kind == "dict":
        space = spaces.Dict(image=images(size), vector=spaces.Box(-1, 1, (3,)))
        model = A2C(AlraoMultiInputPolicy, Observing(space), seed=0)
    else:
        space = images(size, 1.0, np.float32)
        model = A2C(AlraoCnnPolicy, Observing(space), policy_kwargs={"normalize_images": False}, seed=0)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(10)
    assert all((p != q).any() for p, q in zip(model.policy.parameters(), before, strict=True))


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(
    ("observations", "actions", "says"),
    [
        (VECTOR, spaces.Discrete(2, start=1), "act in Discrete(2, start=1)"),
        (spaces.Discrete(3, start=-1), spaces.Discrete(2), "observe Discrete(3, start=-1)"),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), spaces.Discrete(2), "observe MultiDiscrete([2 3]"),
        (spaces.Dict(x=spaces.Discrete(2, start=1)), spaces.Discrete(2), "observe Dict('x': Discrete(2, start=1))"),
    ],
)
def test_spaces_that_do_not_count_from_0(algo, observations, actions, says):
    """Their numbers would be taken for indices, without a word."""
    policy = AlraoMultiInputPolicy if isinstance(observations, spaces.Dict) else AlraoPolicy
    with pytest.raises(ValueError) as error:
        make(algo, observations=observations, actions=actions, policy=policy)
    assert_one_line(error, f"{algo.upper()} cannot {says}", "counts from 0", "TransformAction")


def test_multi_discrete_actions_that_do_not_count_from_0():
    for actions in (spaces.MultiDiscrete([2, 2], start=[0, 1]), spaces.MultiDiscrete([2, 2], start=[1, 1])):
        with pytest.raises(ValueError, match=r"PPO cannot act in MultiDiscrete\(\[2 2\], start=.*counts from 0"):
            make("ppo", actions=actions)


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        (AlraoMultiInputPolicy, VECTOR, r"AlraoMultiInputPolicy takes Dict observations, not Box.*: use AlraoPolicy$"),
        (AlraoMultiInputPolicy, IMAGE, r"AlraoMultiInputPolicy takes Dict .*: use AlraoCnnPolicy$"),
        (AlraoCnnPolicy, VECTOR, r"AlraoCnnPolicy takes images, of three dimensions, not Box.*: use AlraoPolicy$"),
        (AlraoCnnPolicy, OBSERVATIONS["dict"], "AlraoCnnPolicy takes no Dict observations: use AlraoMultiInputPolicy$"),
        (AlraoActorCriticPolicy, spaces.Dict(x=spaces.Discrete(2)), "use AlraoMultiInputPolicy$"),
    ],
)
def test_observations_of_another_kind_are_one_line(policy, space, message):
    with pytest.raises(ValueError, match=message) as error:
        A2C(policy, Observing(space))
    assert "\n" not in str(error.value)
