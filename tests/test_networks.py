"""Units and normalisations that users choose for SAC and its like: ReLU, LayerNorm, batch renormalisation."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from test_identity import Sums
from test_off_policy import SMALL
from torch import nn

from alrao_rl import AlraoCrossQPolicy, AlraoPolicy, AlraoTQCPolicy
from alrao_rl.sb3.critics import AlraoContinuousCritic
from alrao_rl.sb3.off_policy import AlraoSACPolicy, AlraoTD3Policy

ALGORITHMS = [(SAC, AlraoPolicy), (TD3, AlraoPolicy), (TQC, AlraoTQCPolicy), (CrossQ, AlraoCrossQPolicy)]


class Normed(BaseFeaturesExtractor):
    """A layer of the user's own in front of actor and critics."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 6) -> None:
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(
            nn.Linear(observation_space.shape[0], features_dim), nn.LayerNorm(features_dim), nn.Tanh()
        )

    def forward(self, observations):
        return self.net(observations)


class NormedCritic(AlraoContinuousCritic):
    """Critics with a LayerNorm behind every hidden layer."""

    def __init__(self, observation_space, action_space, net_arch, features_extractor, features_dim, **kwargs):
        super().__init__(observation_space, action_space, net_arch, features_extractor, features_dim, **kwargs)
        size, units = features_dim + action_space.shape[0], kwargs["activation_fn"]
        for i in range(self.n_critics):
            layers = create_mlp(size, 1, net_arch, units, post_linear_modules=[nn.LayerNorm])
            self.q_networks[i] = nn.Sequential(*layers)
            setattr(self, f"qf{i}", self.q_networks[i])


class NormedSAC(AlraoSACPolicy):
    critic_class = NormedCritic


class NormedTD3(AlraoTD3Policy):
    critic_class = NormedCritic


def train(algorithm, policy, **of_policy):
    """A model that has learned for a moment, and all it has learned from the start."""
    kwargs = {"net_arch": [8, 8], "alrao": {"n_heads": 4, "lr_range": (1e-3, 1e-2)}, **of_policy}
    model = algorithm(policy, Sums(spaces.Box(-2, 2, (2,))), policy_kwargs=kwargs, **SMALL)
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    model.learn(60)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    action, _ = model.predict(model.observation_space.sample(), deterministic=True)
    assert model.action_space.contains(action)
    after = dict(model.policy.named_parameters())
    return model, {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(("algorithm", "policy"), ALGORITHMS)
@pytest.mark.parametrize("units", [nn.ReLU, nn.Tanh])
def test_units(algorithm, policy, units):
    """Every unit's weights learn but those that are never active."""
    model, learned = train(algorithm, policy, activation_fn=units)
    assert any(type(module) is units for module in model.actor.modules())
    names = [name for name, _ in model.actor.named_parameters() if not name.endswith("averaging_weights")]
    assert {f"actor.{name}" for name in names} <= learned


@pytest.mark.parametrize(("algorithm", "policy"), ALGORITHMS)
@pytest.mark.parametrize("share", [False, True])
def test_an_extractor_with_a_normalisation(algorithm, policy, share):
    """Scale and bias of each of its features are trained, by the actor alone where it is shared."""
    model, learned = train(algorithm, policy, features_extractor_class=Normed, share_features_extractor=share)
    for name in ("weight", "bias"):
        assert f"actor.features_extractor.net.1.{name}" in learned
        assert (f"critic.features_extractor.net.1.{name}" in learned) == (not share)
    norm = model.actor.features_extractor.net[1]
    features = model.actor.optimizer._layout.features.index
    assert len(features[norm.weight].unique()) == 6
    assert torch.equal(features[norm.weight], features[norm.bias])


@pytest.mark.parametrize(("algorithm", "policy"), [(SAC, NormedSAC), (TD3, NormedTD3)])
def test_critics_of_ones_own_with_normalisations(algorithm, policy):
    """They train, and so do their targets, which are plain averages of them."""
    model, learned = train(algorithm, policy)
    names = [f"qf{i}.{layer}.{what}" for i in range(2) for layer in (1, 4) for what in ("weight", "bias")]
    assert {f"critic.{name}" for name in names} <= learned
    assert {f"critic_target.{name}" for name in names} <= learned
    norms = [module for module in model.critic.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 4
