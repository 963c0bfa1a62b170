"""The fast subclasses do what the plain method does: both train side by side and are compared after every step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alrao_rl import core, fast
from alrao_rl.core.averaging import RULES
from alrao_rl.core.bases import BASES
from alrao_rl.core.heads import KINDS

STEPS = 12
pytestmark = pytest.mark.usefixtures("backend")


def learner(way, kind, base, rule, extra=False, **options):
    """A converted network and its optimizer; the same numbers for both ways."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
    output = core.Output(kind, rule=rule, extra=torch.zeros(2) if extra else None)
    options = {"seed": 1, "n_heads": 4, "base": base, "reclone_interval": 5, "head_max_grad_norm": 0.5} | options
    way.convert(network, {"2": output}, options)
    return network, way.AlraoOptimizer(network)


def loss_of(network, kind, extra=False):
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(16, 5, generator=generator), torch.arange(16) % 4
    out = network(x)
    if kind == "categorical":
        loss = F.cross_entropy(out, y)
    elif kind == "bernoulli":
        loss = F.binary_cross_entropy_with_logits(out, F.one_hot(y, 4).float())
    else:
        loss = F.mse_loss(out, F.one_hot(y, 4).float())
    return loss + (network[2].averaged_extra().exp() - 2).square().sum() if extra else loss


def compare_step_by_step(kind, base, rule, steps=STEPS, before=lambda *_: None, extra=False, rtol=1e-3, **options):
    """Train both ways; after each step the whole state is the same, to rounding.

    Args:
        kind, base, rule: what is trained.
        steps: how many.
        before: called with the network, its optimizer and the number of the step before it.
        extra: whether there is an extra parameter.
        rtol: what rounding may amount to, relative to a number.
        options: of Alrao.
    """
    learners = [learner(way, kind, base, rule, extra, **options) for way in (core, fast)]
    assert [type(network[2]) for network, _ in learners] == [core.OutputHeads, fast.OutputHeads]
    for step in range(steps):
        for network, optimizer in learners:
            before(network, optimizer, step)
            optimizer.zero_grad()
            loss_of(network, kind, extra).backward()
            optimizer.step()
        plain, quick = learners
        torch.testing.assert_close(quick[0].state_dict(), plain[0].state_dict(), rtol=rtol, atol=1e-5)
        states = [optimizer.state_dict()["state"] for _, optimizer in learners]
        torch.testing.assert_close(*states, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_every_base_kind_and_rule(base, kind, rule):
    # An ε that is not small: with a small one a gradient that is all rounding makes a whole step.
    options = {} if base == "sgd" else {"base_kwargs": {"eps": 1e-3}}
    compare_step_by_step(kind, base, rule, lr_range=(1e-4, 1e-2), **options)


@pytest.mark.parametrize("options", [{"momentum": 0.9}], ids=str)
def test_momentum(options):
    compare_step_by_step("values", "sgd", "switch", base_kwargs=options, lr_range=(1e-4, 1e-2))


@pytest.mark.parametrize("options", [{"bias_correction": True}, {"eps_inside": False}], ids=str)
def test_options_of_rmsprop(options):
    compare_step_by_step("values", "rmsprop", "switch", base_kwargs={"eps": 1e-3} | options, lr_range=(1e-4, 1e-2))


def test_an_extra_parameter():
    compare_step_by_step("mean", "rmsprop", "exponentiated-gradient", extra=True, base_kwargs={"eps": 1e-3})


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_breaks_and_one_without_weight(kind):
    def damage(network, optimizer, step):
        if step == 4:
            with torch.no_grad():
                network[2].theta[1, 0] = float("nan")
        if step == 8:
            with torch.no_grad():
                network[2].averaging_weights.copy_(torch.tensor([0.5, 0.5 - 1e-3, 1e-3, 0.0]))

    compare_step_by_step(kind, "rmsprop", "uniform", before=damage, base_kwargs={"eps": 1e-3}, lr_range=(1e-4, 1e-2))


def test_a_frozen_layer_a_decaying_rate_and_a_copy():
    def change(network, optimizer, step):
        network[0].requires_grad_(not 3 < step < 7)
        optimizer.param_groups[0]["lr"] = 0.8**step

    compare_step_by_step("values", "adam", "whiteness", before=change, base_kwargs={"eps": 1e-3})


def test_either_optimizer_takes_either_network():
    found = []
    for network_way in (core, fast):
        for optimizer_way in (core, fast):
            network, _ = learner(network_way, "values", "rmsprop", "switch", base_kwargs={"eps": 1e-3})
            optimizer = optimizer_way.AlraoOptimizer(network)
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss_of(network, "values").backward()
                optimizer.step()
            found.append(network.state_dict())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5)


def test_a_state_goes_from_one_to_the_other():
    (plain, of_plain), (quick, of_quick) = (
        learner(way, "values", "adam", "whiteness", lr_range=(1e-4, 1e-2), base_kwargs={"eps": 1e-3})
        for way in (core, fast)
    )
    loss_of(plain, "values").backward()
    of_plain.step()
    quick.load_state_dict(plain.state_dict())
    of_quick.load_state_dict(of_plain.state_dict())
    for network, optimizer in ((plain, of_plain), (quick, of_quick)):
        optimizer.zero_grad()
        loss_of(network, "values").backward()
        optimizer.step()
    torch.testing.assert_close(quick.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-5)
