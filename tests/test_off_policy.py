"""SAC, TQC, TD3 and DDPG with Alrao: heads of actors and critics, collapsed targets, the entropy step."""

from __future__ import annotations

import copy
import csv
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from sb3_contrib.common.utils import quantile_huber_loss
from sb3_contrib.tqc import tqc
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import DummyVecEnv
from test_identity import ActionLog, Sums, assert_identical, one_rate
from torch import nn
from torch.nn import functional as F

from alrao_rl import (
    AlraoCallback,
    AlraoCnnPolicy,
    AlraoCrossQPolicy,
    AlraoMultiInputPolicy,
    AlraoPolicy,
    AlraoTQCMultiInputPolicy,
    AlraoTQCPolicy,
)
from alrao_rl.agents.build import build
from alrao_rl.core import HeadwiseTensor, OutputHeads
from alrao_rl.errors import UserError
from alrao_rl.fast.densities import squashed_by_torch as plain_squashed_gaussian
from alrao_rl.fast.densities import squashed_gaussian
from alrao_rl.recipes.files import load_agent_recipe
from alrao_rl.recipes.resolve import with_defaults
from alrao_rl.sb3.critics import follow_at_once
from alrao_rl.sb3.entropy import EntropyStep
from alrao_rl.sb3.off_policy import AlraoSACPolicy, AlraoTD3Policy

SMALL = {"learning_starts": 20, "batch_size": 16, "buffer_size": 1_000, "device": "cpu", "seed": 0}


def make(algorithm=SAC, env="Pendulum-v1", policy=AlraoPolicy, alrao=None, **kwargs):
    """A small model; keywords of the policy go to it."""
    names = (
        "net_arch",
        "n_critics",
        "n_quantiles",
        "share_features_extractor",
        "activation_fn",
        "use_expln",
        "clip_mean",
    )
    of_policy = {"net_arch": [8, 8], **{name: kwargs.pop(name) for name in names if name in kwargs}}
    of_policy["alrao"] = {"n_heads": 4, **(alrao or {})}
    return algorithm(policy, env, policy_kwargs=of_policy, **(SMALL | kwargs))


def batch(model, n=16):
    """Observations and actions."""
    generator = torch.Generator().manual_seed(3)
    low, high = model.observation_space.low, model.observation_space.high
    obs = torch.rand(n, *low.shape, generator=generator) * torch.as_tensor(high - low) + torch.as_tensor(low)
    return obs, torch.rand(n, *model.action_space.shape, generator=generator) * 2 - 1


def q_loss(model, obs, actions, target):
    """SB3's."""
    return 0.5 * sum(F.mse_loss(current, target) for current in model.critic(obs, actions))


def heads_of(critic):
    return [network[-1] for network in critic.q_networks]


# --- the actor's gradient -------------------------------------------------------------------------------------------


def actor_gradients(model, obs, alpha):
    """Of every head, by SB3's loss, and by autograd through the critic at every head's own action."""
    heads = model.actor.output
    torch.manual_seed(7)
    actions, log_prob = model.actor.action_log_prob(obs)
    q_values, _ = torch.min(torch.cat(model.critic(obs, actions), dim=1), dim=1, keepdim=True)
    (alpha * log_prob.reshape(-1, 1) - q_values).mean().backward()
    found = heads.gradient.clone()
    heads.drop_evidence()
    theta = heads.theta.detach().clone().requires_grad_()
    with torch.no_grad():
        latent = model.actor._latent(obs)
    torch.manual_seed(7)
    noise = torch.empty(len(obs), theta.shape[1] // (2 * (heads.in_features + 1))).normal_()
    rows = theta.view(heads.n_heads, heads.out_features, -1)
    expected = []
    for j in range(heads.n_heads):
        outputs = F.linear(latent, rows[j, :, :-1], rows[j, :, -1])
        action, log_prob = plain_squashed_gaussian(outputs, noise)
        x = torch.cat([obs, action], 1)
        values = torch.cat([plain(network, x) for network in model.critic.q_networks], 1).min(1).values
        expected.append(torch.autograd.grad((alpha * log_prob - values).mean(), theta, retain_graph=True)[0][j])
    return found, torch.stack(expected)


def plain(network, x):
    """The average of a critic, by the definition: Σ_j a_j Q_j."""
    *trunk, heads = network
    for module in trunk:
        x = module(x)
    outputs = torch.einsum("bi,joi->jbo", x, heads.weight.detach()) + heads.bias.detach()[:, None]
    return torch.einsum("j,jbo->bo", heads.averaging_weights.detach(), outputs)


def test_gradients_of_the_actors_heads_are_exact_where_the_critic_is_linear_in_the_action():
    model = make(net_arch={"pi": [8], "qf": []}, n_critics=1)
    found, expected = actor_gradients(model, batch(model)[0], 0.3)
    torch.testing.assert_close(found, expected)


def test_gradients_of_the_actors_heads_are_those_of_the_full_form_near_the_average():
    model = make(n_critics=2)
    theta = model.actor.output.theta.data
    theta[:] = theta[0] + 1e-4 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    found, expected = actor_gradients(model, batch(model)[0], 0.3)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)
    assert not torch.equal(found, expected)


def test_td3s_heads_learn_to_first_order_too():
    model = make(TD3, net_arch={"pi": [8], "qf": []})
    obs, _ = batch(model)
    (-model.critic.q1_forward(obs, model.actor(obs)).mean()).backward()
    heads = model.policy.alrao_layers()["actor"]
    with torch.no_grad():
        latent = model.actor.mu[:-2](obs)
        slope = model.critic.q_networks[0][0].collapse()["weight"][0, 3:]
    theta = heads.theta.detach().clone().requires_grad_()
    rows = theta.view(4, 1, -1)
    actions = torch.tanh(torch.einsum("bi,joi->jbo", latent, rows[..., :-1]) + rows[..., None, 0, -1:])
    torch.autograd.backward(-(actions * slope).sum(-1).mean(1).sum())
    torch.testing.assert_close(heads.gradient, theta.grad)


def test_the_trunk_of_the_actor_learns_from_the_average_alone():
    model = make()
    obs, _ = batch(model)
    torch.manual_seed(7)
    actions, log_prob = model.actor.action_log_prob(obs)
    (0.3 * log_prob.reshape(-1, 1) - torch.cat(model.critic(obs, actions), 1).min(1, keepdim=True)[0]).mean().backward()
    found = [p.grad.clone() for p in model.actor.latent_pi.parameters()]
    layer = {name: value.detach() for name, value in model.actor.output.collapse().items()}
    torch.manual_seed(7)
    outputs = F.linear(model.actor.latent_pi(obs), **layer)
    action, log_prob = plain_squashed_gaussian(outputs, torch.empty(len(obs), 1).normal_())
    values = torch.cat([plain(network, torch.cat([obs, action], 1)) for network in model.critic.q_networks], 1)
    loss = (0.3 * log_prob - values.min(1).values).mean()
    expected = torch.autograd.grad(loss, list(model.actor.latent_pi.parameters()))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("branches", [(), (5,)])
@pytest.mark.parametrize("batch_last", [False, True])
def test_squashed_gaussian(branches, batch_last):
    """The compiled gradient against autograd's, where log σ is clamped as well; and one by hand."""
    outputs = torch.randn(*branches, 37, 4, generator=torch.Generator().manual_seed(0))
    outputs[..., 0, 2], outputs[..., 1, 3] = 3.0, -21.0
    noise = torch.randn(37, 2, generator=torch.Generator().manual_seed(1))
    if batch_last:
        outputs, noise = (x.mT.contiguous().mT for x in (outputs, noise))
    results = []
    for function, dtype in ((squashed_gaussian, torch.float32), (plain_squashed_gaussian, torch.float64)):
        x = outputs.to(dtype, copy=True).requires_grad_()
        actions, log_prob = function(x, noise.to(dtype))
        (actions.sin().sum() + (log_prob * torch.arange(37.0)).sum()).backward()
        results.append((actions.detach(), log_prob.detach(), x.grad))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert all(map(torch.equal, squashed_gaussian(outputs, noise), results[0]))
        outputs[..., 2, 0] = math.nan
        actions, log_prob = squashed_gaussian(outputs, noise)
    n = math.prod(branches)  # the action of the datum and its density, of every branch
    assert actions[..., 2, 0].isnan().sum() == actions.isnan().sum() == n
    assert log_prob[..., 2].isnan().sum() == log_prob.isnan().sum() == n
    actions, log_prob = plain_squashed_gaussian(torch.tensor([[0.5, math.log(2)]]), torch.tensor([[-0.25]]))
    assert actions.item() == 0.0
    expected = -0.03125 - math.log(2) - 0.5 * math.log(2 * math.pi)
    assert log_prob.item() == pytest.approx(expected, abs=2e-6)


# --- critics --------------------------------------------------------------------------------------------------------


def test_the_critic_is_a_fixed_function_in_the_actors_step():
    model = make()
    obs, _ = batch(model)
    before = copy.deepcopy(model.critic.state_dict())
    actions, log_prob = model.actor.action_log_prob(obs)
    (log_prob.reshape(-1, 1) - torch.cat(model.critic(obs, actions), 1).min(1, keepdim=True)[0]).mean().backward()
    assert all(p.grad is None for _, p in model.critic.named_parameters())
    for heads in heads_of(model.critic):
        assert heads.gradient is None
        assert heads.evidence.losses is None
        assert heads.theta.requires_grad
    assert all(p.requires_grad for network in model.critic.q_networks for p in network[:-1].parameters())
    model.critic.optimizer.step()
    after = model.critic.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_heads_of_a_critic_are_isolated():
    """From each other and from those of the other critic: a change of one changes the gradient of no other."""
    model = make()
    obs, actions = batch(model)
    target = torch.linspace(-1, 1, len(obs))[:, None]

    def gradients():
        model.critic.optimizer.zero_grad()
        q_loss(model, obs, actions, target).backward()
        return [heads.gradient.clone() for heads in heads_of(model.critic)]

    before = gradients()
    heads_of(model.critic)[0].theta.data[2] += 1
    after = gradients()
    assert torch.equal(before[1], after[1])
    assert [torch.equal(*pair) for pair in zip(before[0], after[0], strict=True)] == [True, True, False, True]


def test_critics_are_judged_by_switch_each_for_itself():
    model = make()
    obs, actions = batch(model)
    first, second = heads_of(model.critic)
    with torch.no_grad():
        target = torch.cat([model.critic.qf0[:-1](torch.cat([obs, actions], 1))]) @ first.weight[1, 0] + first.bias[1]
    for _ in range(3):
        model.critic.optimizer.zero_grad()
        q_loss(model, obs, actions, target[:, None]).backward()
        residuals = first.evidence.residual
        model.critic.optimizer.step()
        first.theta.data[1] = first.theta.data[1]
    assert type(first.rule).__name__ == "Switch"
    assert first.rule.n == 1.0
    assert residuals.shape == (5,)
    assert first.averaging_weights.argmax() == 1
    assert not torch.equal(first.averaging_weights, second.averaging_weights)


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG, TQC])
def test_a_target_is_a_plain_copy_of_the_average(algorithm):
    """After a hard sync, also of heads that were re-cloned; its output layer is one Linear."""
    model = make(algorithm)
    obs, actions = batch(model)
    pairs = [(model.critic, model.critic_target)]
    has_actor = issubclass(algorithm, TD3)
    pairs += [(model.actor, model.actor_target)] if has_actor else []
    layers = list(model.policy.alrao_layers().values())
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125])
    for lost in (None, [True, False, False, True]):
        for heads in layers:
            heads.averaging_weights.data[:] = weights
            if lost is not None:
                heads.reclone(torch.tensor(lost))
        for network, target in pairs:
            polyak_update(network.parameters(), target.parameters(), 1.0)
            assert not any(isinstance(module, OutputHeads) for module in target.modules())
        with torch.no_grad():
            for mine, other in zip(model.critic(obs, actions), model.critic_target(obs, actions), strict=True):
                torch.testing.assert_close(mine, other)
            x = torch.cat([obs, actions], 1)
            torch.testing.assert_close(model.critic_target.qf0(x), plain(model.critic.qf0, x))
            if has_actor:
                torch.testing.assert_close(model.actor(obs), model.actor_target(obs))


def test_a_target_follows_the_average_by_tau():
    """w̄ ← (1 − τ) w̄ + τ Σ_j a_j θ_j: not the averages of weights and heads apart."""
    model = make()
    heads, target = heads_of(model.critic)[0], model.critic_target.qf0[-1]
    before = target.weight.detach().clone()
    heads.averaging_weights.data[:] = torch.tensor([0.5, 0.25, 0.125, 0.125])
    polyak_update(model.critic.parameters(), model.critic_target.parameters(), 0.25)
    average = torch.einsum("j,joi->oi", heads.averaging_weights.data, heads.weight.data)
    torch.testing.assert_close(target.weight.data, 0.75 * before + 0.25 * average)


@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC, CrossQ])
def test_a_head_without_weight_that_is_not_finite_changes_nothing(algorithm):
    model = make(algorithm)
    model.policy.set_training_mode(False)  # CrossQ's statistics of a batch would differ
    obs, actions = batch(model)
    results = []
    for value in (0.5, math.nan):
        for heads in model.policy.alrao_layers().values():
            heads.averaging_weights.data[:] = torch.tensor([0.5, 0.5, 0.0, 0.0])
            with torch.no_grad():
                heads.theta[2] = value
        critics = [model.critic]
        if algorithm is not CrossQ:  # which has no target
            follow_at_once(model.critic_target, model.critic)
            critics.append(model.critic_target)
        model.critic.optimizer.zero_grad()
        if algorithm is TQC:
            quantiles = torch.linspace(-1, 1, 7).expand(len(obs), 1, 7)
            tqc.quantile_huber_loss(model.critic(obs, actions), quantiles, sum_over_quantiles=False).backward()
        elif algorithm is CrossQ:
            current = torch.cat(model.critic(obs, actions), dim=1).T[..., None]
            sum(F.mse_loss(one, torch.ones(len(obs), 1)) for one in current).backward()
        else:
            q_loss(model, obs, actions, torch.ones(len(obs), 1)).backward()
        with torch.no_grad():
            torch.manual_seed(0)
            found = [model.policy._predict(obs), *(q for critic in critics for q in critic(obs, actions))]
        found += [p.grad for network in model.critic.q_networks for p in network[:-1].parameters()]
        model.actor.optimizer.zero_grad()
        torch.manual_seed(0)
        values = model.critic(obs, model.policy.actor.forward(obs))
        (-(values if algorithm is TQC else torch.cat(values, 1)).mean()).backward()
        found += [p.grad for name, p in model.actor.named_parameters() if p.grad is not None]
        results.append([x.clone() for x in found])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_rewards_times_a_power_of_two_leave_the_weights_of_the_critics():
    """Bit for bit, with the entropy term off: with values of the same scale the residuals are so, too."""
    found = []
    for scale in (1.0, 2.0**20, 2.0**-20):
        model = make(ent_coef=0.0)
        obs, actions = batch(model)
        rewards = torch.linspace(-1, 1, len(obs))[:, None] * scale
        start = copy.deepcopy(model.critic.state_dict())
        for k in range(5):
            for name, value in start.items():
                if name.endswith("theta"):
                    model.critic.get_parameter(name).data.copy_(value * scale * (1 + k / 4))
                elif "rule" not in name and "averaging" not in name:
                    model.critic.state_dict()[name].copy_(value)
            follow_at_once(model.critic_target, model.critic)
            with torch.no_grad():
                q_values = torch.cat(model.critic_target(obs, actions.flip(0)), dim=1)
                target = rewards + 0.5 * q_values.min(1, keepdim=True).values
            model.critic.optimizer.zero_grad()
            q_loss(model, obs, actions, target).backward()
            model.critic.optimizer.step()
        found.append([heads.averaging_weights.detach().clone() for heads in heads_of(model.critic)])
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))
    assert not torch.equal(found[0][0], torch.full((4,), 0.25))


@pytest.mark.parametrize("n_critics", [1, 3])
@pytest.mark.parametrize("summed", [True, False])
def test_losses_of_tqc_are_those_of_sb3_contrib(n_critics, summed):
    """Of the average of all critics, and of the j-th heads of all; evidence is each critic's own, by its heads."""
    model = make(TQC, policy=AlraoTQCPolicy, n_critics=n_critics, n_quantiles=5)
    obs, actions = batch(model)
    target = torch.randn(len(obs), 1, 7, generator=torch.Generator().manual_seed(0))
    current = model.critic(obs, actions)
    assert current.shape == (len(obs), n_critics, 5)
    loss = tqc.quantile_huber_loss(current, target, sum_over_quantiles=summed)
    for branch in range(5):
        expected = quantile_huber_loss(current.branches[branch].detach(), target, sum_over_quantiles=summed)
        torch.testing.assert_close(loss.branches[branch].detach(), expected)
    loss.backward()
    for i, heads in enumerate(heads_of(model.critic)):
        one = current.branches[:, :, i : i + 1].detach()
        own = torch.stack([quantile_huber_loss(q, target, sum_over_quantiles=summed) for q in one])
        torch.testing.assert_close(heads.evidence.losses, own / n_critics)


def test_batch_renormalisation_has_a_rate_for_every_unit():
    """Its scale and bias are one feature, as those of batch normalisation."""
    from sb3_contrib.common.torch_layers import BatchRenorm1d

    from alrao_rl.core.rates import FeatureMap

    layer = BatchRenorm1d(3)
    features = FeatureMap(nn.Sequential(nn.Linear(2, 3), layer))
    assert features.index[layer.scale].tolist() == features.index[layer.bias].tolist() == [3, 4, 5]
    assert features.whole == []


def test_critics_of_crossq_are_judged_each_by_its_own_residuals():
    model = make(CrossQ, policy=AlraoCrossQPolicy, n_critics=2)
    obs, actions = batch(model)
    values = torch.cat(model.critic(obs, actions), dim=1)
    current, following = torch.split(values, 8, dim=0)
    with torch.no_grad():
        assert type(following.detach()) is torch.Tensor
    current = current.T[..., None]
    assert current.shape == (2, 8, 1)
    target = torch.linspace(-1, 1, 8)[:, None]
    (0.5 * sum(F.mse_loss(one, target) for one in current)).backward()
    for i, heads in enumerate(heads_of(model.critic)):
        residuals = (values.branches[:, :8, i].detach() - target[:, 0]).square().mean(1)
        torch.testing.assert_close(heads.evidence.losses, residuals)


# --- the entropy coefficient ----------------------------------------------------------------------------------------


def test_entropy_step_by_hand():
    value = torch.tensor([0.5], requires_grad=True)
    optimizer = EntropyStep([value], lr=2.0)
    expected, v = 0.5, 0.0
    for gradient, lr in ((3.0, 2.0), (-1.0, 2.0), (4.0, 0.5)):
        optimizer.param_groups[0]["lr"] = lr  # a schedule that falls to a quarter
        value.grad = torch.tensor([gradient])
        optimizer.step()
        v = 0.99 * v + 0.01 * gradient**2
        expected -= lr / 2.0 * 3e-3 * gradient / math.sqrt(v + 1e-8)
        assert value.item() == pytest.approx(expected, rel=1e-6)
    for wrong in (math.nan, math.inf):
        value.grad = torch.tensor([wrong])
        optimizer.step()
        assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("algorithm", [SAC, TQC, CrossQ])
def test_there_is_no_adam_at_any_time(algorithm):
    """Nor in a copy of a model, which then learns as the model does."""
    model = make(algorithm)
    assert type(model.ent_coef_optimizer) is EntropyStep
    other = copy.deepcopy(model)
    for one in (model, other):
        assert type(one.ent_coef_optimizer) is EntropyStep
        assert one.ent_coef_optimizer.param_groups[0]["params"][0] is one.log_ent_coef
        one.set_random_seed(1)
        one.learn(40)
    assert model.log_ent_coef.item() == other.log_ent_coef.item() != 0
    alpha = math.exp(other.log_ent_coef.item())
    assert other.policy.alrao_stats()["actor"]["ent_coef"] == pytest.approx(alpha)
    state = model.ent_coef_optimizer.state[model.log_ent_coef]
    assert set(state) == {"step", "square_avg"}


def test_stock_agents_have_their_own_optimizer_of_the_entropy_coefficient():
    kwargs = {"policy_kwargs": {"net_arch": [8]}, **SMALL}
    model = SAC("MlpPolicy", "Pendulum-v1", **kwargs)
    assert type(model.ent_coef_optimizer) is torch.optim.Adam
    assert SAC("MlpPolicy", "Pendulum-v1", ent_coef=0.1, **kwargs).ent_coef_optimizer is None
    assert not hasattr(SAC("MlpPolicy", "Pendulum-v1", _init_setup_model=False).policy_class, "ent_coef_optimizer")
    mine = make()
    mine.ent_coef_optimizer = torch.optim.Adam([mine.log_ent_coef], lr=1e-3)  # what a user puts there is theirs
    assert type(mine.ent_coef_optimizer) is torch.optim.Adam


def test_the_entropy_coefficient_is_in_the_statistics(tmp_path):
    model = make(ent_coef="auto_0.5")
    assert model.policy.alrao_stats()["actor"]["ent_coef"] == pytest.approx(0.5)
    model.learn(30)
    alpha = model.policy.alrao_stats()["actor"]["ent_coef"]
    assert alpha == pytest.approx(math.exp(model.log_ent_coef.item()))
    assert alpha < 0.5
    assert "ent_coef" not in model.policy.alrao_stats()["qf0"]
    model.save(tmp_path / "model")
    assert SAC.load(tmp_path / "model").policy.alrao_stats()["actor"]["ent_coef"] == alpha
    for fixed in (make(ent_coef=0.5), make(TD3)):
        assert "ent_coef" not in fixed.policy.alrao_stats()["actor"]


def test_the_entropy_step_takes_the_place_of_adam(tmp_path):
    model = make().learn(30)
    assert type(model.ent_coef_optimizer) is EntropyStep
    model.save(tmp_path / "model")
    loaded = SAC.load(tmp_path / "model")
    assert type(loaded.ent_coef_optimizer) is EntropyStep
    mine, other = model.ent_coef_optimizer.state[model.log_ent_coef], loaded.ent_coef_optimizer.state_dict()["state"][0]
    assert {name: x.item() for name, x in mine.items()} == {name: x.item() for name, x in other.items()}
    assert loaded.log_ent_coef.item() == model.log_ent_coef.item() < 0
    assert make(ent_coef=0.2).learn(30).ent_coef_optimizer is None


@pytest.mark.parametrize("older", [False, True])
def test_a_model_saved_before_its_first_update_learns_when_loaded(older, tmp_path):
    model = make()
    if older:  # when SB3's Adam was there up to the first rollout
        model.ent_coef_optimizer = torch.optim.Adam([model.log_ent_coef], lr=3e-4)
    model.save(tmp_path / "model")
    loaded = SAC.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    loaded.learn(130)
    assert loaded.ent_coef_optimizer.state[loaded.log_ent_coef]["step"] > 0


# --- identity with the stock algorithms -----------------------------------------------------------------------------


def parameters(model):
    """By the stock policy's names."""
    found = {}
    for name, p in model.policy.named_parameters():
        parent, prefix = model.policy.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[0]
        if name == "actor.output.theta":
            if parent.extra is not None:
                mean = "actor.mu.0" if model.actor.clip_mean > 0 else "actor.mu"
                found |= {f"{mean}.weight": parent.weight[0], f"{mean}.bias": parent.bias[0]}
                found["actor.log_std"] = parent.extra[0]
            else:
                for kind, value in (("weight", parent.weight[0]), ("bias", parent.bias[0])):
                    found[f"actor.mu.{kind}"], found[f"actor.log_std.{kind}"] = value.chunk(2)
        elif name.endswith("theta"):
            found |= {f"{prefix}.weight": parent.weight[0], f"{prefix}.bias": parent.bias[0]}
        elif not name.endswith("averaging_weights"):
            found[name] = p
    return {name: p.detach().clone() for name, p in found.items()}


def run(algorithm, policy, env, steps, policy_kwargs, **kwargs):
    """Train; return the actions, and parameters after every update, as ``test_identity.run`` does."""
    env = ActionLog(gym.make(env) if isinstance(env, str) else env)
    kwargs = {"learning_starts": 50, "batch_size": 32, **kwargs}
    noise = {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))} if issubclass(algorithm, TD3) else {}
    model = algorithm(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **noise, **kwargs)
    if getattr(model, "ent_coef_optimizer", None) is not None:
        model.ent_coef_optimizer = torch.optim.Adam([model.log_ent_coef], lr=kwargs.get("learning_rate", 1e-3))
    updates, optimize = [], model.actor.optimizer.step

    def record(*args, **options):
        result = optimize(*args, **options)
        updates.append((len(env.actions), parameters(model)))
        return result

    model.actor.optimizer.step = record
    model.learn(steps)
    return env.actions, updates


@pytest.mark.parametrize("steps", [150, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (SAC, {}),
        (SAC, {"ent_coef": 0.1, "use_sde": True}),
        (SAC, {"share": True, "gradient_steps": 2}),
        (TQC, {}),
        (CrossQ, {"policy_delay": 1}),
        (TD3, {}),
        (DDPG, {}),
    ],
)
def test_one_head_of_one_rate_is_the_stock_algorithm(algorithm, options, steps):
    options, env = dict(options), Sums(spaces.Box(-1, 1, (1,)))
    network = {"activation_fn": nn.Tanh, "net_arch": [32, 32]}
    if options.pop("share", False):
        network["share_features_extractor"] = True
    stock = run(algorithm, "MlpPolicy", env, steps, network, learning_rate=1e-3, **options)
    policy = {TQC: AlraoTQCPolicy, CrossQ: AlraoCrossQPolicy}.get(algorithm, AlraoPolicy)
    adam = {"beta1": 0.5} if algorithm is CrossQ else {}  # as sb3-contrib's
    mine = network | one_rate(1e-3, eps=1e-8, **adam)
    alrao = run(algorithm, policy, env, steps, mine, learning_rate=1e-3, **options)
    # Stock gSDE takes the Gaussian action from tanh(u) by atanh, which rounds more.
    assert_identical(alrao, stock, 1e-2 if options.get("use_sde") else 1e-3)


# --- what is not finite --------------------------------------------------------------------------------------------


class Broken(Sums):
    """One reward that is none."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.n = getattr(self, "n", 0) + 1
        return observation, math.nan if self.n == 30 else reward, *rest


@pytest.mark.filterwarnings("ignore:update .* was skipped")
@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [(SAC, AlraoPolicy), (TD3, AlraoPolicy), (TQC, AlraoTQCPolicy), (CrossQ, AlraoCrossQPolicy)],
)
def test_a_reward_that_is_not_finite_skips_updates_of_the_critics_and_spoils_nothing(algorithm, policy):
    model = make(algorithm, Broken(spaces.Box(-1, 1, (2,))), policy, batch_size=32).learn(100)
    assert all(x.isfinite().all() for x in model.policy.state_dict().values())
    assert 0 < model.critic.optimizer.skipped < model.critic.optimizer.param_groups[0]["n_updates"]
    assert model.policy.alrao_stats()["qf0"]["skipped"] == model.critic.optimizer.skipped
    assert model.policy.alrao_stats()["actor"]["skipped"] == 0


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_heads_that_diverge_are_lost_and_harm_nobody(algorithm):
    """One of the actor and one of a critic, in the middle of training: they are re-cloned before a target follows."""
    model = make(algorithm, alrao={"reclone_interval": 0}).learn(40)
    for heads in model.policy.alrao_layers().values():
        with torch.no_grad():
            heads.theta[3] = math.inf
    model.train(2, batch_size=8)
    assert all(x.isfinite().all() for x in model.policy.state_dict().values())
    assert all(one["lost"].tolist() == [0, 0, 0, 1] for one in model.policy.alrao_stats().values())


# --- what users do --------------------------------------------------------------------------------------------------


class Images(gym.Env):
    """Small images, one at every step."""

    observation_space, action_space = spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return self._observe(), {}

    def step(self, action):
        self.n += 1
        return self._observe(), float(action[0]), self.n == 5, False, {}

    def _observe(self):
        return self.np_random.integers(0, 255, (3, 36, 36)).astype(np.uint8)


class Parts(Images):
    """Observations of two parts."""

    observation_space = spaces.Dict({"image": Images.observation_space, "vector": spaces.Box(-1, 1, (2,))})

    def _observe(self):
        return {"image": super()._observe(), "vector": np.zeros(2, np.float32)}


SDE = {"use_sde": True, "sde_sample_freq": 4}
VARIANTS = [
    (SAC, AlraoPolicy, Sums, {}),
    (SAC, AlraoPolicy, Sums, SDE),
    (SAC, AlraoPolicy, Sums, {**SDE, "use_expln": True, "clip_mean": 0.0}),
    (SAC, AlraoPolicy, Sums, {"n_critics": 1}),
    (SAC, AlraoPolicy, Sums, {"n_critics": 5}),
    (SAC, AlraoPolicy, Sums, {"share_features_extractor": True}),
    (SAC, AlraoPolicy, Sums, {"train_freq": (1, "episode"), "gradient_steps": -1}),
    (SAC, AlraoPolicy, Sums, {"ent_coef": "auto_0.1"}),
    (SAC, AlraoPolicy, Sums, {"n_steps": 3}),
    (SAC, AlraoPolicy, Sums, {"net_arch": []}),
    (SAC, AlraoCnnPolicy, Images, {}),
    (SAC, AlraoCnnPolicy, Images, {"share_features_extractor": True}),
    (SAC, AlraoMultiInputPolicy, Parts, {}),
    (TQC, AlraoTQCPolicy, Sums, {"n_quantiles": 5}),
    (TQC, AlraoTQCPolicy, Sums, {"n_quantiles": 5, "n_critics": 5, **SDE, "share_features_extractor": True}),
    (TQC, AlraoPolicy, Sums, {"n_critics": 1, "n_steps": 3, "train_freq": (1, "episode"), "gradient_steps": -1}),
    (TQC, AlraoTQCMultiInputPolicy, Parts, {}),
    (CrossQ, AlraoPolicy, Sums, {}),
    (CrossQ, AlraoPolicy, Sums, {"n_steps": 3, "train_freq": (1, "episode"), "gradient_steps": -1}),
    (CrossQ, AlraoCrossQPolicy, Sums, {"n_critics": 3, **SDE}),
    (CrossQ, AlraoCrossQPolicy, Sums, {"n_critics": 1, "share_features_extractor": True}),
    (TD3, AlraoPolicy, Sums, {}),
    (TD3, AlraoPolicy, Sums, {"policy_delay": 3, "target_policy_noise": 0.5, "n_critics": 3}),
    (TD3, AlraoCnnPolicy, Images, {"share_features_extractor": True}),
    (TD3, AlraoMultiInputPolicy, Parts, {}),
    (TD3, AlraoPolicy, Sums, {"n_steps": 3, "train_freq": (1, "episode"), "gradient_steps": -1}),
    (DDPG, AlraoPolicy, Sums, {}),
]


# SB3 says so of every such model that it loads, whose buffer has them all the same.
@pytest.mark.filterwarnings("ignore:`n_steps=3` is ignored")
@pytest.mark.parametrize(("algorithm", "policy", "env", "options"), VARIANTS)
def test_variants_learn_are_saved_and_go_on_as_before(algorithm, policy, env, options, tmp_path):
    """What learns is what is loaded: after updates by the same data and noise both are the same, bit for bit."""
    model = make(algorithm, env() if env is not Sums else Sums(spaces.Box(-2, 2, (2,))), policy, **options)
    model.learn(40)
    assert all(x.isfinite().all() for x in model.policy.state_dict().values())
    obs = model.observation_space.sample()
    action, _ = model.predict(obs, deterministic=True)
    assert model.action_space.contains(action)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.env)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], action)
    assert getattr(loaded.replay_buffer, "n_steps", 1) == options.get("n_steps", 1)
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    loaded._logger = model.logger
    for one in (model, loaded):
        one.set_random_seed(5)
        one.train(4, batch_size=8)
    mine, other = model.policy.state_dict(), loaded.policy.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    stats = model.policy.alrao_stats()
    assert list(stats) == ["actor", *(f"qf{i}" for i in range(len(model.critic.q_networks)))]
    assert all(one["weights"].sum() == pytest.approx(1) for one in stats.values())


@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC, CrossQ])
def test_a_constant_learning_rate_does_nothing(algorithm):
    one, other = (make(algorithm, learning_rate=rate).learn(40) for rate in (1e-4, 1e-1))
    states = one.policy.state_dict(), other.policy.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    if algorithm is not TD3:
        assert one.log_ent_coef.item() == other.log_ent_coef.item() != 0


class Observing(gym.Env):
    """Random observations of a space."""

    def __init__(self, observations, actions):
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), float(action.sum()), self.np_random.random() < 0.1, False, {}


IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (3,)),
    "number": spaces.Box(-np.inf, np.inf, (1,), np.float64),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "image": IMAGE,
    "small image": spaces.Box(0, 255, (10, 10, 4), np.uint8),
    "dict": spaces.Dict(image=IMAGE, vector=spaces.Box(-1, 1, (2,)), one=spaces.Discrete(3)),
}
ACTIONS = {
    "vector": spaces.Box(-1, 1, (2,)),
    "bounds of their own": spaces.Box(np.array([-3, 0], np.float32), np.array([1, 0.5], np.float32)),
    "matrix": spaces.Box(-2, 2, (2, 2)),
    "double": spaces.Box(-1, 1, (1,), np.float64),
}
MATRIX = [(observations, "vector") for observations in OBSERVATIONS] + [("vector", actions) for actions in ACTIONS]


@pytest.mark.slow
@pytest.mark.parametrize(("observations", "actions"), MATRIX)
@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG, TQC, CrossQ])
def test_spaces(algorithm, observations, actions, tmp_path):
    form = "Cnn" if "image" in observations else "MultiInput" if observations == "dict" else ""
    if algorithm is CrossQ and form:
        pytest.skip("CrossQ takes vectors")
    policy = {"": AlraoPolicy, "Cnn": AlraoCnnPolicy, "MultiInput": AlraoMultiInputPolicy}[form]
    env = Observing(OBSERVATIONS[observations], ACTIONS[actions])
    model = make(algorithm, env, policy).learn(40)
    before = model.policy.state_dict()
    assert all(x.isfinite().all() for x in before.values())
    obs = env.observation_space.sample()
    action = model.predict(obs, deterministic=True)[0]
    assert action.shape == env.action_space.shape
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], action)
    loaded.learn(30, reset_num_timesteps=False)
    after = loaded.policy.state_dict()
    assert all(x.isfinite().all() for x in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before if name.endswith("theta"))


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG, TQC, CrossQ])
def test_same_seed_same_bits(algorithm):
    one, other = (make(algorithm).learn(60).policy.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_several_environments():
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 3)
    for algorithm in (SAC, TD3, DDPG, TQC, CrossQ):
        model = make(algorithm, env, gradient_steps=-1).learn(60)
        assert model._n_updates > 30


class Goal(gym.Env):
    """Go to a point of the line: a reward of 0 there, else of −1."""

    observation_space = spaces.Dict({
        name: spaces.Box(-5, 5, (1,)) for name in ("observation", "achieved_goal", "desired_goal")
    })  # fmt: skip
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n, self.at, self.goal = 0, 0.0, self.np_random.uniform(-2, 2)
        return self._observe(), {}

    def step(self, action):
        self.n, self.at = self.n + 1, float(np.clip(self.at + action[0], -5, 5))
        observation = self._observe()
        reward = self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})
        return observation, float(reward), False, self.n == 8, {}

    def compute_reward(self, achieved, desired, info):
        return -(np.abs(achieved - desired) > 0.3)[..., 0].astype(np.float32)

    def _observe(self):
        parts = {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}
        return {name: np.array([value], np.float32) for name, value in parts.items()}


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG, TQC])
def test_hindsight_experience_replay(algorithm, tmp_path):
    from stable_baselines3 import HerReplayBuffer

    her = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}
    model = make(algorithm, Goal(), AlraoMultiInputPolicy, **her).learn(60)
    assert type(model.replay_buffer) is HerReplayBuffer
    obs = model.observation_space.sample()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=Goal())
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    loaded._logger = model.logger
    for one in (model, loaded):
        one.set_random_seed(5)
        one.train(4, batch_size=8)
    mine, other = model.policy.state_dict(), loaded.policy.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    np.testing.assert_array_equal(*(one.predict(obs, deterministic=True)[0] for one in (model, loaded)))
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 90
    assert all(x.isfinite().all() for x in loaded.policy.state_dict().values())


@pytest.mark.parametrize(("algorithm", "policy"), [(SAC, AlraoSACPolicy), (TD3, AlraoTD3Policy)])
@pytest.mark.parametrize("name", [AlraoPolicy, None])
def test_policies_are_saved_alone(algorithm, policy, name, tmp_path):
    model = make(algorithm, n_critics=3, share_features_extractor=True).learn(30)
    assert type(model.policy) is policy
    model.policy.save(tmp_path / "policy")
    loaded = (name or policy).load(tmp_path / "policy")
    assert type(loaded) is policy
    assert loaded.share_features_extractor
    obs = np.zeros(3, np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("algorithm", [SAC, TD3, CrossQ])
def test_the_callback_logs_every_layer_once_an_episode(algorithm, tmp_path, monkeypatch):
    model = make(algorithm, gym.make("Pendulum-v1", max_episode_steps=20))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    stats, asked = model.policy.alrao_stats, []

    def alrao_stats():
        asked.append(model.num_timesteps)
        return stats()

    monkeypatch.setattr(model.policy, "alrao_stats", alrao_stats)
    model.learn(70, callback=AlraoCallback(), log_interval=1)
    model.logger.close()
    assert asked == [20, 40, 60]
    with (tmp_path / "progress.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    for layer in ("actor", "qf0", "qf1"):
        weights = [float(last[f"alrao/{layer}/weight_{j}"]) for j in range(1, 5)]
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        entropy = -sum(a * math.log(a) for a in weights if a)
        assert float(last[f"alrao/{layer}/entropy"]) == pytest.approx(entropy, abs=1e-4)
        assert 1e-6 < float(last[f"alrao/{layer}/effective_lr"]) < 0.1001
        assert (last[f"alrao/{layer}/reclones"], last[f"alrao/{layer}/skipped"]) == ("0", "0")
    assert ("train/ent_coef" in last) is (algorithm is not TD3)  # SB3's own


def test_rates_of_actor_and_critics_are_drawn_apart():
    for alrao in ({}, {"seed": 4}):
        policy = make(alrao=alrao).policy
        n = len(policy.actor.alrao_rates)
        assert n == 16
        first, second = policy.critic.alrao_rates[:n], policy.critic.alrao_rates[n:]
        for one, other in ((first, second), (policy.actor.alrao_rates, first), (policy.actor.alrao_rates, second)):
            assert not torch.isin(one, other).any()


def test_actions_under_gradients_are_headwise_and_plain_without():
    model = make()
    obs, _ = batch(model)
    assert isinstance(model.actor(obs), HeadwiseTensor)
    with torch.no_grad():
        assert type(model.actor(obs)) is torch.Tensor
        assert all(type(q) is torch.Tensor for q in model.critic(obs, model.actor(obs)))


def test_copies_of_a_policy_act_alike():
    policy = make().learn(30).policy
    obs = np.zeros(3, np.float32)
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        alike = other.predict(obs, deterministic=True)[0]
        np.testing.assert_array_equal(alike, policy.predict(obs, deterministic=True)[0])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ent_coef": "automatic"}, "ent_coef is 'automatic', expected a number of at least 0, 'auto', or 'auto_0.1'"),
        ({"ent_coef": "auto_x"}, "ent_coef is 'auto_x'"),
        ({"ent_coef": "auto_0"}, "ent_coef is 'auto_0'"),
        ({"ent_coef": -1.0}, "ent_coef is -1.0"),
        ({"ent_coef": math.nan}, "ent_coef is nan"),
        ({"target_entropy": "low"}, "target_entropy is 'low', expected a number or 'auto'"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**kwargs)


def test_unbounded_actions_are_refused():
    """SB3 does so before it builds a policy; the policy alone does it, too."""
    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        make(SAC, Sums(spaces.Box(-np.inf, np.inf, (2,))))
    with pytest.raises(ValueError, match=r"expected finite bounds; see gymnasium\.wrappers\.RescaleAction"):
        AlraoTD3Policy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, np.inf, (1,)), lambda _: 1.0)


def test_discrete_actions_are_refused():
    """SB3 does so before it builds a policy; the policy alone does it, too."""
    with pytest.raises(AssertionError, match="Discrete"):
        make(SAC, "CartPole-v1")
    space = spaces.Box(-1, 1, (3,))
    with pytest.raises(ValueError, match=r"SAC has no actions of the kind Discrete\(2\): expected a Box; PPO and DQN"):
        AlraoSACPolicy(space, spaces.Discrete(2), lambda _: 1.0)


@pytest.mark.parametrize("name", ["sac", "td3", "tqc-adam"])
def test_recipes_of_actions_without_bounds_are_one_line(name):
    agent = load_agent_recipe(name)[1]
    env = DummyVecEnv([lambda: Sums(spaces.Box(-np.inf, np.inf, (2,)))])
    with pytest.raises(UserError, match=r"^\w+ cannot act in Box\(-inf, inf.*expected finite bounds;[^\n]*$"):
        build(agent, env, seed=0)


@pytest.mark.parametrize("name", ["crossq", "crossq-adam"])
@pytest.mark.parametrize(("env", "what"), [(Parts, "Dict observations"), (Images, "images")])
def test_recipes_of_crossq_for_other_than_vectors_are_one_line(name, env, what):
    agent = load_agent_recipe(name)[1]
    with pytest.raises(UserError, match=f"^CrossQ takes no {what}, only vectors: use sac or tqc$"):
        build(agent, DummyVecEnv([env]), seed=0)


def test_crossq_takes_no_dict():
    for policy in (AlraoPolicy, AlraoCrossQPolicy):
        expected = f"^{policy.__name__} takes no Dict observations: CrossQ has no policy that does$"
        with pytest.raises(ValueError, match=expected):
            make(CrossQ, Parts(), policy)


def test_another_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"^AlraoTD3Policy does not serve SAC: expected TD3; SAC takes AlraoPolicy$"):
        make(SAC, policy=AlraoTD3Policy)
    with pytest.raises(ValueError, match=r"^AlraoTQCMultiInputPolicy does not .*; SAC takes AlraoMultiInputPolicy$"):
        make(SAC, policy=AlraoTQCMultiInputPolicy)
    with pytest.raises(ValueError, match=r"optimizer_class=Adam .* has no effect on an Alrao policy"):
        SAC(AlraoPolicy, "Pendulum-v1", policy_kwargs={"optimizer_class": torch.optim.Adam})


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sac_learns_pendulum():
    """A stock agent at its best rate has −150 to −170 after 20,000 steps."""
    from stable_baselines3.common.evaluation import evaluate_policy

    env = gym.make("Pendulum-v1")
    model = SAC(AlraoPolicy, env, seed=0, device="cpu", policy_kwargs={"net_arch": [64, 64]}, batch_size=128)
    model.learn(10_000)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=20)
    assert mean > -200


@pytest.mark.parametrize("name", ["sac", "tqc", "td3", "ddpg", "crossq"])
def test_the_base_is_adam_where_critics_have_targets(name):
    recipe = load_agent_recipe(name)[1]
    model = build(
        recipe.model_copy(update={"policy_options": {"net_arch": [4]}}),
        DummyVecEnv([lambda: Sums(spaces.Box(-1, 1, (1,)))]),
        seed=0,
    )
    expected = "rmsprop" if name == "crossq" else "adam"
    assert with_defaults(recipe).alrao.base == model.policy.alrao_options.base == expected
