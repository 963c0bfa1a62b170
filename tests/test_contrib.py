"""QR-DQN, RecurrentPPO and MaskablePPO with Alrao: what they share with SB3's algorithms is tested there."""

from __future__ import annotations

import copy
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from test_identity import Sums, assert_identical, one_rate, run
from torch import nn

import alrao_rl
import alrao_rl.environments.register
from alrao_rl import AlraoPolicy, averaged, enjoy, load_agent
from alrao_rl.core import Output
from alrao_rl.fast import convert
from alrao_rl.recipes.algorithms import ALGORITHMS as ROWS
from alrao_rl.sb3.served import algorithms
from alrao_rl.train.command import main

contrib = pytest.importorskip("sb3_contrib")
QRDQN, RecurrentPPO, MaskablePPO, TRPO = contrib.QRDQN, contrib.RecurrentPPO, contrib.MaskablePPO, contrib.TRPO
PLAIN = {"qrdqn": "AlraoQRDQNPolicy", "recurrent": "AlraoLstmPolicy", "maskable": "AlraoMaskablePolicy"}
ALGORITHMS = {"qrdqn": QRDQN, "recurrent": RecurrentPPO, "maskable": MaskablePPO}
OPTIONS = {
    "qrdqn": {"learning_starts": 50, "train_freq": 4, "target_update_interval": 60, "batch_size": 32},
    "recurrent": {"n_steps": 64, "n_epochs": 4, "batch_size": 32, "ent_coef": 0.01},
    "maskable": {"n_steps": 64, "n_epochs": 4, "batch_size": 32, "ent_coef": 0.01},
}
NETWORKS = {
    "qrdqn": {"n_quantiles": 5, "activation_fn": nn.Tanh},
    "recurrent": {"lstm_hidden_size": 16},
    "maskable": {},
}


def policy_of(kind):
    return getattr(alrao_rl, PLAIN[kind])


class Masked(Sums):
    """Every third time one choice is forbidden."""

    def action_masks(self):
        space = self.action_space
        sizes = [space.n] if isinstance(space, spaces.Discrete) else list(getattr(space, "nvec", [2] * space.shape[0]))
        forbidden = [-1 if (self.steps + i) % 3 else self.steps % size for i, size in enumerate(sizes)]
        masks = [np.arange(size) != choice for size, choice in zip(sizes, forbidden, strict=True)]
        self.allowed = masks
        return np.concatenate(masks)

    def step(self, action):
        for allowed, choice in zip(self.allowed, np.atleast_1d(action), strict=True):
            assert allowed[choice]
        return super().step(np.asarray(action))


# --- identity with the stock algorithm ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("steps", [300, pytest.param(2_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["qrdqn", "recurrent"])
def test_identity(kind, steps):
    eps = 0.01 / 32 if kind == "qrdqn" else 1e-5
    arguments = (ALGORITHMS[kind], "CartPole-v1", steps, NETWORKS[kind], OPTIONS[kind])
    assert_identical(*both(*arguments, policy=policy_of(kind), eps=eps), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "actions", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=lambda space: str(space)
)
def test_identity_under_a_mask(actions):
    arguments = (MaskablePPO, lambda: Masked(actions), 300, {}, OPTIONS["maskable"])
    assert_identical(*both(*arguments, policy=policy_of("maskable"), eps=1e-5), 1e-3)


def both(algorithm, env, steps, network, options, policy, eps):
    def make():
        return env if isinstance(env, str) else env()

    stock_policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    stock = run(algorithm, stock_policy, make(), steps, network, learning_rate=1e-3, **options)
    return run(algorithm, policy, make(), steps, network | one_rate(1e-3, eps=eps), **options), stock


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [[3], [2, 3]])
def test_every_head_is_masked_before_mixing(splits):
    """Slowly: softmax of every head over the allowed classes, then the average, and each head's own loss."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, sum(splits)))
    convert(net, {"2": Output("categorical", rule="bayes", splits=splits)}, {"n_heads": 3, "lr_range": (1e-3, 1e-1)})
    layer, x = net[2], torch.randn(6, 4)
    layer.averaging_weights.data.copy_(torch.tensor([0.5, 0.3, 0.2]))
    allowed = torch.rand(6, sum(splits)) > 0.4
    start = 0
    for size in splits:
        allowed[:, start] |= ~allowed[:, start : start + size].any(1)
        start += size
    offset = torch.zeros(6, sum(splits)).masked_fill_(~allowed, -1e8)
    features = net[1](net[0](x))
    logits = torch.einsum("bi,joi->jbo", features, layer.weight) + layer.bias[:, None]
    own = [
        part.masked_fill(~mask, -torch.inf).softmax(-1)
        for part, mask in zip(logits.split(splits, -1), allowed.split(splits, -1), strict=True)
    ]
    heads = torch.cat(own, -1)
    average = torch.einsum("j,jbo->bo", torch.tensor([0.5, 0.3, 0.2]), heads)
    with torch.no_grad():
        torch.testing.assert_close(layer(features, offset).exp(), average)
    output = layer(features, offset)
    torch.testing.assert_close(output.branches[0].exp(), average)
    torch.testing.assert_close(output.branches[1:].exp(), heads)
    assert (output.branches.exp() * ~allowed == 0).all()
    # A head that loves what is forbidden has no weight for that reason: mixing first would let it count less.
    output.logsumexp(-1).sum().backward()
    assert all(p.grad.isfinite().all() for p in net[0].parameters())


def test_masks_are_kept_and_refused_actions_never_drawn():
    model = MaskablePPO(policy_of("maskable"), Masked(spaces.Discrete(5)), seed=0, **OPTIONS["maskable"])
    model.learn(500)  # the environment asserts
    observations, masks = np.zeros((7, 3), np.float32), np.eye(5, dtype=bool)[[0, 1, 2, 3, 4, 0, 1]]
    for deterministic in (True, False):
        actions, _ = model.predict(observations, action_masks=masks, deterministic=deterministic)
        assert actions.tolist() == [0, 1, 2, 3, 4, 0, 1]
    distribution = model.policy.get_distribution(torch.as_tensor(observations), masks)
    assert distribution.entropy().abs().max() < 1e-5


# --- padding --------------------------------------------------------------------------------------------------------


def test_padding_is_no_evidence():
    """The evidence of the value heads is that of the steps that are there: each one's masked mean squared error."""
    options = {"alrao": {"n_heads": 3, "value_averaging": "switch"}}
    model = RecurrentPPO(
        policy_of("recurrent"), "CartPole-v1", seed=0, n_steps=48, batch_size=48, n_epochs=1, policy_kwargs=options
    )
    layer, seen = model.policy.value_net, []
    update, get = layer.update_averaging, model.rollout_buffer.get

    def watch(gradient):
        seen.append((layer.evidence.losses.clone(), *padded))
        update(gradient)

    def keep(batch_size):
        for data in get(batch_size):
            mask = data.mask > 0.5
            with torch.enable_grad():
                found, _, _ = model.policy.evaluate_actions(
                    data.observations, data.actions.long().flatten(), data.lstm_states, data.episode_starts
                )
            errors = (data.returns - found.flatten().branches.detach()) ** 2
            padded[:] = [errors[:, mask].mean(1), mask]
            yield data

    padded = []
    layer.update_averaging, model.rollout_buffer.get = watch, keep
    model.learn(48)
    ((losses, expected, mask),) = seen
    assert not mask.all()
    torch.testing.assert_close(losses / losses[0], expected / expected[0])


# --- whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_trains_saves_loads_and_copies(kind, tmp_path):
    def make():
        return Masked(spaces.Discrete(3)) if kind == "maskable" else gym.make("CartPole-v1")

    kwargs = NETWORKS[kind] | {"alrao": {"n_heads": 4, "reclone_interval": 3}}
    model = ALGORITHMS[kind](policy_of(kind), make(), seed=0, policy_kwargs=kwargs, **OPTIONS[kind])
    start = copy.deepcopy(model.policy.state_dict())
    model.learn(200)
    right_after = [copy.deepcopy(model.policy)]  # which keeps the distribution of the last update
    if kind != "qrdqn":
        right_after.append(averaged(model.policy))
    after = model.policy.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    trained = {name for name, value in after.items() if not torch.equal(value, start[name])}
    assert {name for name, _ in model.policy.named_parameters()} <= trained
    assert all(stats["weights"].sum() == pytest.approx(1) for stats in model.policy.alrao_stats().values())
    model.save(tmp_path / "model.zip")
    loaded = ALGORITHMS[kind].load(tmp_path / "model.zip", env=make())
    assert loaded.policy.alrao_options == model.policy.alrao_options
    for name, value in loaded.policy.state_dict().items():
        assert torch.equal(value, after[name]), name
    observation = model.observation_space.sample()
    for one in (loaded, *right_after):
        assert one.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
    loaded.learn(100)
    twin = copy.deepcopy(model.policy)
    assert twin.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]


@pytest.mark.parametrize("actions", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1, 1, (2,))])
def test_an_lstm_learns_every_kind_of_action(actions):
    model = RecurrentPPO(policy_of("recurrent"), Sums(actions), seed=0, n_steps=64, batch_size=32)
    start = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    after = model.policy.state_dict()
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    trained = {name for name, value in after.items() if not torch.equal(value, start[name])}
    assert {name for name, _ in model.policy.named_parameters()} <= trained


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("space", ["image", "dict"])
def test_images_and_dicts(kind, space):
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    observations = image if space == "image" else spaces.Dict({"image": image, "vector": spaces.Box(-1, 1, (2,))})
    name = PLAIN[kind].replace("Alrao", "").replace("Policy", "")
    name = {"image": f"{name}CnnPolicy", "dict": f"{name}MultiInputPolicy"}[space]
    name = "Alrao" + {"LstmCnnPolicy": "CnnLstmPolicy", "LstmMultiInputPolicy": "MultiInputLstmPolicy"}.get(name, name)

    class Seeing(Masked if kind == "maskable" else Sums):
        def __init__(self):
            super().__init__(spaces.Discrete(2))
            self.observation_space = observations

        def _observe(self):
            return observations.sample()

    options = OPTIONS[kind] | ({"buffer_size": 500} if kind == "qrdqn" else {})
    network = NETWORKS[kind] | {"alrao": {"n_heads": 2}}
    model = ALGORITHMS[kind](getattr(alrao_rl, name), Seeing(), policy_kwargs=network, seed=0, **options)
    model.learn(100)
    modules = list(model.policy.modules())
    assert any(isinstance(module, nn.Conv2d) for module in modules)
    assert not any(isinstance(module, nn.ReLU) for module in modules)


@pytest.mark.parametrize("actions", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3])], ids=str)
def test_probabilities_under_a_mask_are_there_to_be_read(actions):
    policy = MaskablePPO(policy_of("maskable"), Masked(actions), **OPTIONS["maskable"]).policy
    n = sum(policy.action_net.splits)
    masks = np.ones((1, n), bool)
    masks[0, 0] = False
    with torch.no_grad():
        found = policy.get_distribution(torch.zeros(1, *policy.observation_space.shape), masks)
        parts = [found.distribution] if isinstance(actions, spaces.Discrete) else found.distributions
    assert parts[0].probs[0, 0] == 0
    assert sum(part.probs.shape[1] for part in parts) == n
    assert found.mode().shape == found.sample().shape
    assert not hasattr(found, "nonsense")


# --- what is not served ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_policy_that_serves_is_named(kind):
    expected = rf"^{PLAIN[kind]} does not serve PPO: expected {ALGORITHMS[kind].__name__}; PPO takes AlraoPolicy$"
    with pytest.raises(ValueError, match=expected):
        PPO(policy_of(kind), "CartPole-v1")


def test_the_form_for_images_is_named():
    with pytest.raises(ValueError, match=r"AlraoQRDQNCnnPolicy does not serve PPO: .*; PPO takes AlraoCnnPolicy$"):
        PPO(alrao_rl.AlraoQRDQNCnnPolicy, "CartPole-v1")
    with pytest.raises(ValueError, match=r"AlraoCnnLstmPolicy takes images.*: use AlraoPolicy$"):
        RecurrentPPO(alrao_rl.AlraoCnnLstmPolicy, "CartPole-v1")


@pytest.mark.parametrize("option", [{"proj_size": 4}, {"bidirectional": True}, {"batch_first": True}])
def test_an_lstm_whose_states_cannot_be_kept_is_refused(option):
    with pytest.raises(ValueError, match=f"lstm_kwargs has {next(iter(option))}, with which"):
        RecurrentPPO(policy_of("recurrent"), "CartPole-v1", policy_kwargs={"lstm_kwargs": option})


def test_trpo_is_refused():
    with pytest.raises(ValueError, match="TRPO has no Alrao policy: it writes the policy's parameters itself"):
        TRPO(AlraoPolicy, "CartPole-v1")


def test_a_users_optimizer_for_qrdqn_is_refused():
    kwargs = {"optimizer_class": torch.optim.SGD}
    with pytest.raises(ValueError, match=r"optimizer_class=SGD .* has no effect on an Alrao policy"):
        QRDQN(policy_of("qrdqn"), "CartPole-v1", policy_kwargs=kwargs)
    QRDQN(policy_of("qrdqn"), "CartPole-v1")


def test_recurrent_ppo_explores_by_gsde():
    kwargs = {"lstm_hidden_size": 8, "net_arch": [6]}
    model = RecurrentPPO(policy_of("recurrent"), "Pendulum-v1", n_steps=16, batch_size=16, use_sde=True, seed=0,
                         policy_kwargs=kwargs)  # fmt: skip
    before = model.policy.action_net.theta.detach().clone()
    model.learn(48)
    assert (model.policy.action_net.theta != before).any()
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    observation = model.env.reset()
    first, state = model.predict(observation, deterministic=True)
    again, _ = model.predict(observation, state=None, deterministic=True)
    np.testing.assert_array_equal(first, again)
    assert len(state) == 2


@pytest.mark.parametrize("number", [0, 2.5, "a"])
def test_a_number_of_quantiles_that_is_none(number):
    with pytest.raises(ValueError, match=f"n_quantiles is {number!r}, expected a whole number of at least 1"):
        QRDQN(policy_of("qrdqn"), "CartPole-v1", policy_kwargs={"n_quantiles": number})


def test_qrdqns_own_optimizer_of_another_batch_size(tmp_path):
    kwargs = {"n_quantiles": 5}
    QRDQN(policy_of("qrdqn"), "CartPole-v1", batch_size=32, policy_kwargs=kwargs).save(tmp_path / "model")
    assert kwargs["optimizer_kwargs"] == {"eps": 0.01 / 32}  # sb3-contrib writes into the user's dict
    QRDQN(policy_of("qrdqn"), "CartPole-v1", batch_size=48, policy_kwargs=kwargs)
    assert QRDQN.load(tmp_path / "model", batch_size=64).batch_size == 64


@pytest.mark.parametrize(
    "options",
    [
        {"lstm_hidden_size": 16},
        {"lstm_hidden_size": 8, "enable_critic_lstm": False},
        {"shared_lstm": True, "enable_critic_lstm": False, "n_lstm_layers": 2, "lstm_kwargs": {"dropout": 0.1}},
    ],
)
def test_policy_of_an_lstm_comes_back_from_its_own_file(options, tmp_path):
    policy = RecurrentPPO(policy_of("recurrent"), "CartPole-v1", policy_kwargs=options).policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in policy.state_dict().items())


def test_actions_that_are_not_discrete():
    with pytest.raises(ValueError, match=r"QRDQN has no actions of the kind .*: expected Discrete"):
        alrao_rl.AlraoQRDQNPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1.0)


@pytest.mark.slow
def test_without_sb3_contrib_a_line_says_what_to_install():
    script = "import sys, alrao_rl; sys.modules['sb3_contrib'] = None; alrao_rl.AlraoPolicy; alrao_rl.AlraoLstmPolicy"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == (
        "ImportError: policies for sb3-contrib's algorithms need pip install 'alrao-rl[contrib]'"
    )


# --- by the command line --------------------------------------------------------------------------------------------

GAME = '''
import gymnasium as gym, numpy as np
from gymnasium import spaces

class Game(gym.Env):
    """Twenty steps; whoever takes the forbidden action is out. Observations do not tell which that is."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.forbidden = 0, 0
        return np.zeros(2, np.float32), {}

    def action_masks(self):
        return np.arange(3) != self.forbidden

    def step(self, action):
        if action == self.forbidden:
            raise RuntimeError("a forbidden action")
        self.steps, self.forbidden = self.steps + 1, int(self.np_random.integers(3))
        return np.zeros(2, np.float32), 1.0, self.steps == 20, False, {}

gym.register("Game-v0", Game)
'''
SMALL = {
    "qrdqn": ["learning_starts=50", "n_quantiles=5"],
    "recurrent-ppo": ["n_steps=16", "lstm_hidden_size=8"],
    "maskable-ppo": ["n_steps=16"],
}


@pytest.mark.parametrize("algo", SMALL)
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", "-adam"])
def test_train_and_enjoy(algo, suffix, install, tmp_path, capsys):
    install("game", GAME)
    out, sets = tmp_path / "run", [part for one in SMALL[algo] for part in ("--set", one)]
    args = ["--agent", algo + suffix, "--env", "game:Game-v0", "--timesteps", "300", "--eval-episodes", "1", *sets]
    if algo != "maskable-ppo":
        args[3] = "CartPole-v1"
    assert main([*args, "--out", str(out), "--quiet"]) == 0
    assert enjoy.main([str(out), "--episodes", "2", "--trust"]) == 0
    printed, error = capsys.readouterr()
    assert printed.count("return") == 3
    assert error == ""
    if algo == "maskable-ppo":
        assert "mean return over 2 episodes: 20\n" in printed


def test_a_loaded_recurrent_agent_remembers(tmp_path):
    out, sets = tmp_path / "run", [part for one in SMALL["recurrent-ppo"] for part in ("--set", one)]
    args = ["--algo", "recurrent-ppo", "--env", "CartPoleNoVel-v1", "--timesteps", "300", "--eval-episodes", "1", *sets]
    assert main([*args, "--out", str(out), "--quiet"]) == 0
    model = load_agent(out)
    observation = np.array([0.1, 0.02], np.float32)
    action, state = model.predict(observation, deterministic=True)
    again, other = model.predict(observation, state, deterministic=True)
    assert action.shape == again.shape == ()
    assert not np.array_equal(state[0], other[0])


def test_masks_are_asked_for_before_anything_is_written(tmp_path, capsys):
    args = ["--algo", "maskable-ppo", "--env", "CartPole-v1", "--out", str(tmp_path / "run")]
    assert main(args) == 2
    assert "maskable-ppo takes environments with a method action_masks(), and this one has none" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_cartpole_without_velocities():
    env, whole = gym.make("CartPoleNoVel-v1"), gym.make("CartPole-v1")
    assert env.observation_space.shape == (2,)
    assert env.spec.max_episode_steps == 500
    for seed in range(3):
        seen, known = env.reset(seed=seed)[0], whole.reset(seed=seed)[0]
        assert seen.tolist() == known[[0, 2]].tolist()
        assert seen in env.observation_space
        for action in (0, 1, 1):
            seen, known = env.step(action)[0], whole.step(action)[0]
            assert seen.tolist() == known[[0, 2]].tolist()


@pytest.mark.parametrize("policy", ["AlraoPolicy", "AlraoQRDQNPolicy", "AlraoLstmPolicy", "AlraoMaskablePolicy"])
def test_dict_observations_need_the_form_for_them(policy):
    algorithm = {"AlraoLstmPolicy": RecurrentPPO, "AlraoMaskablePolicy": MaskablePPO}.get(policy, QRDQN)
    env = gym.Env()
    env.observation_space, env.action_space = spaces.Dict(x=spaces.Box(-1, 1, (2,))), spaces.Discrete(2)
    env.action_masks = lambda: np.ones(2, dtype=bool)
    with pytest.raises(ValueError, match=f"^{policy} takes no Dict observations: use AlraoMultiInputPolicy$"):
        algorithm(getattr(alrao_rl, policy), env)


# --- one name for all -----------------------------------------------------------------------------------------------


def test_all_algorithms_of_recipes_are_served():
    assert sorted(", ".join(algorithms()).split(", ")) == sorted(row.cls for row in ROWS.values())


FORMS = {"": spaces.Box(-1, 1, (3,)), "Cnn": spaces.Box(0, 255, (3, 36, 36), np.uint8)}
FORMS["MultiInput"] = spaces.Dict(image=FORMS["Cnn"], vector=FORMS[""])
OWN = {"QRDQN": "AlraoQRDQN{}Policy", "RecurrentPPO": "Alrao{}LstmPolicy", "MaskablePPO": "AlraoMaskable{}Policy",
       "TQC": "AlraoTQC{}Policy", "CrossQ": "AlraoCrossQ{}Policy"}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OWN)
def test_one_name_serves_every_algorithm(name, form, tmp_path):
    """And is what SB3's files and the policy's own are loaded by."""
    algorithm, policy = getattr(contrib, name), getattr(alrao_rl, f"Alrao{form}Policy")
    env = gym.Env()
    env.observation_space, env.action_space = FORMS[form], spaces.Discrete(2)
    env.action_masks = lambda: np.ones(2, dtype=bool)
    options = {"n_steps": 8, "batch_size": 8}
    if not name.endswith("PPO"):
        options = {"buffer_size": 10}
    if name in ("TQC", "CrossQ"):
        env.action_space = spaces.Box(-1, 1, (1,))
    small = {"alrao": {"n_heads": 2}, "net_arch": [8]}
    if name == "CrossQ" and form:
        with pytest.raises(ValueError, match=rf"^Alrao{form}Policy does not serve CrossQ, .*and AlraoPolicy; SAC"):
            algorithm(policy, env)
        return
    model = algorithm(policy, env, device="cpu", policy_kwargs=small, **options)
    assert type(model.policy).__name__ == OWN[name].format(form)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    obs = env.observation_space.sample()
    for loaded in (algorithm.load(tmp_path / "model"), policy.load(tmp_path / "policy")):
        assert type(getattr(loaded, "policy", loaded)) is type(model.policy)
        assert loaded.predict(obs, deterministic=True)[0] == pytest.approx(model.predict(obs, deterministic=True)[0])


@pytest.mark.slow
def test_who_does_not_use_sb3_contrib_does_not_load_it():
    code = """
import sys
from stable_baselines3 import DDPG, DQN, PPO, SAC
from alrao_rl import AlraoPolicy
for algorithm, env in ((DQN, "CartPole-v1"), (PPO, "CartPole-v1"), (SAC, "Pendulum-v1"), (DDPG, "Pendulum-v1")):
    algorithm(AlraoPolicy, env, device="cpu")
sys.exit("sb3_contrib" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
