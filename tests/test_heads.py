"""Averages of every kind, gradient isolation, the policy's gain, and heads that are lost."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from alrao_rl.core import AlraoOptimizer, HeadwiseTensor, Output, OutputHeads, convert
from alrao_rl.core.mixtures import mix_bernoulli, mix_logits

pytestmark = pytest.mark.usefixtures("way")


def heads(kind="values", n_heads=3, n_out=3, rule="uniform", **options):
    torch.manual_seed(0)
    return OutputHeads(nn.Linear(4, n_out), n_heads, (1e-3, 1e-1), kind, rule, **options)


def outputs_of(layer, x):
    """Outputs of every head by J separate layers, ``[J, B, O]``."""
    return torch.stack([F.linear(x, w, b) for w, b in zip(layer.weight, layer.bias, strict=True)])


# --- averages -------------------------------------------------------------------------------------------------------


def test_mixtures_by_hand():
    logits = torch.log(torch.tensor([[[0.8], [0.2]], [[0.4], [0.6]]]))  # [J = 2, K = 2, 1]
    mixed = mix_logits(logits, torch.tensor([0.25, 0.75])).exp()
    assert mixed.flatten().tolist() == pytest.approx([0.5, 0.5])
    logits = torch.logit(torch.tensor([[[0.8]], [[0.4]]]))
    assert torch.sigmoid(mix_bernoulli(logits, torch.tensor([0.25, 0.75]))).item() == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["values", "mean", "categorical", "bernoulli"])
def test_average_of_each_kind(kind):
    layer, x, a = heads(kind), torch.randn(5, 4), torch.tensor([0.5, 0.2, 0.3])
    layer.averaging_weights.copy_(a)
    out = outputs_of(layer, x)
    with torch.no_grad():
        average = layer(x)
    if kind in ("values", "mean"):
        torch.testing.assert_close(average, torch.einsum("j,jbo->bo", a, out))
    elif kind == "categorical":
        torch.testing.assert_close(average.exp(), torch.einsum("j,jbo->bo", a, out.softmax(-1)))
    else:
        torch.testing.assert_close(average.sigmoid(), torch.einsum("j,jbo->bo", a, out.sigmoid()))


def test_multi_discrete_is_a_product_of_mixtures():
    layer, x = heads("categorical", n_out=5, splits=[2, 3]), torch.randn(6, 4)
    with torch.no_grad():
        average, out = layer(x), outputs_of(layer, x)
    torch.testing.assert_close(average[:, :2].exp(), out[..., :2].softmax(-1).mean(0))
    torch.testing.assert_close(average[:, 2:].exp(), out[..., 2:].softmax(-1).mean(0))


@pytest.mark.parametrize("kind", ["values", "mean", "categorical", "bernoulli"])
@given(batch=st.integers(1, 4), n_heads=st.integers(1, 5))
def test_output_without_gradients_is_the_average_branch_bit_for_bit(kind, batch, n_heads):
    layer, x = heads(kind, n_heads), torch.randn(batch, 4)
    with torch.no_grad():
        plain = layer(x)
    headwise = layer(x.requires_grad_())
    assert type(plain) is torch.Tensor
    assert isinstance(headwise, HeadwiseTensor)
    assert torch.equal(plain, headwise.average)
    out = outputs_of(layer, x)
    torch.testing.assert_close(headwise.branches[1:], out.log_softmax(-1) if kind == "categorical" else out)


def test_extra_parameter_is_averaged_as_the_means_are():
    layer = heads("mean", extra=torch.tensor([0.1, 0.2]), rule="exponentiated-gradient")
    with torch.no_grad():
        layer.extra[1] += 3.0
        torch.testing.assert_close(layer.averaged_extra(), torch.tensor([1.1, 1.2]))
    torch.testing.assert_close(layer.averaged_extra().branches[2], torch.tensor([3.1, 3.2]))
    with pytest.raises(AttributeError, match="no extra"):
        heads().averaged_extra()


def test_first_head_keeps_the_weights_and_the_others_are_drawn_anew():
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    layer = OutputHeads(plain, 4, (1e-3, 1e-1))
    assert torch.equal(layer.weight[0], plain.weight)
    assert torch.equal(layer.bias[0], plain.bias)
    bound = 1 / 4**0.5  # of Linear's own initialisation
    for j in range(1, 4):
        assert not torch.equal(layer.weight[j], plain.weight)
        assert layer.weight[j].abs().max() <= bound
    layer = OutputHeads(plain, 3, (1e-3, 1e-1), init=lambda fresh: nn.init.constant_(fresh.weight, 7.0))
    assert (layer.weight[1:] == 7.0).all()


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradients_are_isolated():
    """The trunk learns from the average alone, every head from itself alone."""
    layer, trunk = heads(), nn.Linear(2, 4)
    x, y = torch.randn(6, 2), torch.randn(6, 3)
    F.smooth_l1_loss(layer(trunk(x)), y).backward()
    gradient = layer.evidence.gradient
    trunk_gradient = trunk.weight.grad.clone()
    trunk.weight.grad = None
    average = F.linear(trunk(x), layer.weight.detach().mean(0), layer.bias.detach().mean(0))
    F.smooth_l1_loss(average, y).backward()
    torch.testing.assert_close(trunk_gradient, trunk.weight.grad)
    for j in range(3):
        w, b = layer.weight[j].detach().requires_grad_(), layer.bias[j].detach().requires_grad_()
        F.smooth_l1_loss(F.linear(trunk(x).detach(), w, b), y).backward()
        torch.testing.assert_close(gradient[j], torch.cat([w.grad, b.grad[:, None]], 1).flatten())


@pytest.mark.parametrize("kind", ["values", "categorical", "bernoulli"])
def test_trunk_gradient_is_that_of_the_average_for_every_kind(kind):
    layer, x = heads(kind), torch.randn(5, 4, requires_grad=True)
    target = torch.randn(5, 3)
    F.mse_loss(layer(x), target).backward()
    out = outputs_of(layer, other := x.detach().requires_grad_())
    if kind == "values":
        average = out.mean(0)
    elif kind == "categorical":
        average = out.softmax(-1).mean(0).log()
    else:
        average = torch.logit(out.sigmoid().mean(0))
    F.mse_loss(average, target).backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_log_std_of_each_head_learns_from_itself():
    layer = heads("mean", n_out=2, extra=torch.zeros(2), rule="exponentiated-gradient")
    x, actions = torch.randn(6, 4), torch.randn(6, 2)

    def loss(mean, log_std):
        return -Normal(mean, torch.ones_like(mean) * log_std.exp()).log_prob(actions).sum(1).mean()

    loss(layer(x), layer.averaged_extra()).backward()
    gradient = layer.evidence.gradient
    for j in range(3):
        log_std = torch.zeros(2, requires_grad=True)
        loss(F.linear(x, layer.weight[j], layer.bias[j]).detach(), log_std).backward()
        torch.testing.assert_close(gradient[j, -2:], log_std.grad)


def ppo_loss(distribution, actions, advantages, old):
    log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
    if log_prob.dim() > 1:
        log_prob, entropy = log_prob.sum(1), entropy.sum(1)
    ratio = torch.exp(log_prob - old)
    surrogate = torch.min(advantages * ratio, advantages * torch.clamp(ratio, 0.9, 1.1))
    return -surrogate.mean() - 0.05 * entropy.mean()


@pytest.mark.parametrize("space", ["categorical", "multi-discrete", "bernoulli", "gaussian"])
def test_the_gain_is_the_finite_difference_along_the_weights(space):
    torch.manual_seed(4)
    x, advantages = torch.randn(64, 4), torch.randn(64)
    if space == "gaussian":
        layer = heads("mean", n_out=2, rule="exponentiated-gradient", extra=torch.zeros(2)).double()
        with torch.no_grad():
            layer.extra.normal_(0, 0.3)
        actions = torch.randn(64, 2).double()
    elif space == "bernoulli":
        layer, actions = (
            heads("bernoulli", rule="exponentiated-gradient").double(),
            torch.randint(0, 2, (64, 3)).double(),
        )
    else:
        splits = [2, 3] if space == "multi-discrete" else None
        layer = heads("categorical", n_out=5, rule="exponentiated-gradient", splits=splits).double()
        actions = torch.randint(0, 2, (64,))
    with torch.no_grad():
        layer.weight.mul_(3)
    x, advantages = x.double(), advantages.double()

    def loss(average, log_std=None):
        if space == "gaussian":
            distribution = Normal(average, torch.ones_like(average) * log_std.exp())
        elif space == "bernoulli":
            distribution = Bernoulli(logits=average)
        elif space == "categorical":
            distribution = Categorical(logits=average)
        else:
            left, right = average.split([2, 3], dim=1)
            one, other = Categorical(logits=left), Categorical(logits=right)
            ratio = torch.exp(torch.stack([one.log_prob(actions), other.log_prob(actions)], dim=1).sum(dim=1) - old)
            surrogate = torch.min(advantages * ratio, advantages * torch.clamp(ratio, 0.9, 1.1))
            entropy = torch.stack([one.entropy(), other.entropy()], dim=1).sum(dim=1)
            return -surrogate.mean() - 0.05 * entropy.mean()
        return ppo_loss(distribution, actions, advantages, old)

    # The clip is active: the old log-probabilities are some way off.
    old = -torch.rand(64).double() * 3
    (loss(layer(x), layer.averaged_extra()) if space == "gaussian" else loss(layer(x))).backward()
    gain = layer.evidence.gains

    def at(a):
        out = torch.stack([F.linear(x, w, b) for w, b in zip(layer.weight, layer.bias, strict=True)]).detach()
        if space == "gaussian":
            return loss(torch.einsum("j,jbo->bo", a, out), torch.einsum("j,jo->o", a, layer.extra.detach()))
        if space == "bernoulli":
            yes, no = (torch.einsum("j,jbo->bo", a, torch.sigmoid(s * out)) for s in (1, -1))
            return loss(yes.log() - no.log())
        parts = out.split([2, 3], -1) if space == "multi-discrete" else [out]
        return loss(torch.cat([torch.einsum("j,jbo->bo", a, part.softmax(-1)).log() for part in parts], -1))

    base, step = layer.averaging_weights.detach(), 1e-6
    for j in range(3):
        change = torch.zeros(3).double()
        change[j] = step
        difference = -(at(base + change) - at(base - change)).item() / (2 * step)
        assert gain[j].item() == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_gain_of_a2c_by_hand():
    """g_j = Σ_i A_i π_j(a_i)/π(a_i) for the loss −Σ_i A_i log π(a_i)."""
    layer, x = heads("categorical", rule="exponentiated-gradient"), torch.randn(5, 4)
    actions, advantages = torch.tensor([0, 2, 1, 1, 0]), torch.randn(5)
    (-(advantages * Categorical(logits=layer(x)).log_prob(actions))).sum().backward()
    p = outputs_of(layer, x).softmax(-1)[:, torch.arange(5), actions].detach()
    expected = (advantages * p / p.mean(0)).sum(1)
    gain = layer.evidence.gains  # up to a constant: torch's Categorical normalises once more
    torch.testing.assert_close(gain - gain.mean(), expected - expected.mean(), rtol=1e-4, atol=1e-5)


# --- evidence -------------------------------------------------------------------------------------------------------


def test_residual_is_read_before_any_clipping_from_either_argument():
    for swapped in (False, True):
        layer, x, y = heads(rule="switch"), torch.randn(5, 4), torch.randn(5, 3) * 100
        out = layer(x)
        loss = F.smooth_l1_loss(y, out) if swapped else F.smooth_l1_loss(out, y)
        assert layer.evidence.residual is None  # not before the backward pass
        (0.5 * loss).backward()
        expected = (out.branches.detach() - y).square().flatten(1).mean(1)
        torch.testing.assert_close(layer.evidence.residual, expected)
        layer.drop_evidence()
        assert layer.evidence.residual is None
        assert layer.evidence.gradient is None


def test_likelihood_of_a_classifier_is_that_of_the_batch():
    layer, x, y = heads("categorical", rule="switch"), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    F.cross_entropy(layer(x), y).backward()
    expected = torch.stack([F.cross_entropy(out, y, reduction="sum") for out in outputs_of(layer, x)])
    torch.testing.assert_close(layer.evidence.nll[1:], expected)


def test_likelihood_counts_labels_not_numbers():
    """One-hot labels are one each, ignored ones none; what a categorical layer gives is log-probabilities already."""
    y = torch.tensor([0, 1, 2, 0, -100])
    for target, loss in (
        (y, F.cross_entropy),
        (y, F.nll_loss),
        (F.one_hot(y.clamp(min=0), 3).float(), F.cross_entropy),
    ):
        layer, x = heads("categorical", rule="switch"), torch.randn(5, 4)
        loss(layer(x), target).backward()
        expected = torch.stack([F.cross_entropy(out, target, reduction="sum") for out in outputs_of(layer, x)])
        torch.testing.assert_close(layer.evidence.nll[1:], expected)


def test_a_number_added_to_a_loss_is_no_more_evidence():
    """As sum() adds the first one to 0."""
    layers, x, y = [heads(rule="switch") for _ in range(2)], torch.randn(5, 4), torch.randn(5, 3)
    (0.5 * sum(F.mse_loss(layer(x), y) for layer in layers)).backward()
    for layer in layers:
        torch.testing.assert_close(layer.evidence.residual[1:], (outputs_of(layer, x) - y).square().mean((1, 2)))
        assert layer.evidence.loss is None


def test_any_other_loss_is_evidence_too():
    layer, x = heads(rule="bayes"), torch.randn(5, 4)
    (layer(x).exp().mean() * 3).backward()
    torch.testing.assert_close(layer.evidence.loss[1:], 3 * outputs_of(layer, x).exp().mean((1, 2)))
    assert layer.evidence.residual is None


def add_in_place(f, g):
    loss = f.mean()
    loss += 0.5 * g.mean()
    return loss


@pytest.mark.parametrize(
    ("total", "of_values"),
    [
        (lambda f, g: (f.mean() + 0.5 * g.mean()) * 2, 1.0),
        (lambda f, g: -(f.mean() - 0.5 * g.mean()), 0.5),
        (lambda f, g: (f + 0.5 * g).mean(), 0.5),
        (lambda f, g: (g - f).sum() / 20, 1.0),
        (lambda f, g: torch.stack([f.mean(), g.mean(), g.mean()]).sum(), 2.0),
        (lambda f, g: torch.add(input=f, other=g, alpha=0.5).mean(), 0.5),
        (lambda f, g: f.mean() + 0.1 + 0.5 * g.mean() + (g.mean() + f.mean()), 1.5),
        (lambda f, g: sum([f.mean(), 0.5 * g.mean()]), 0.5),
        (add_in_place, 0.5),
    ],
)
def test_each_layer_knows_its_own_part_of_a_sum_of_losses(total, of_values):
    """With its sign, scale and reduction; a layer named twice adds up; the gradients are those of the sum."""
    policy = heads("categorical", rule="exponentiated-gradient", n_out=2)
    values, x = heads(rule="bayes", n_out=2), torch.randn(10, 4)
    f, g = policy(x), values(x).square()
    loss = total(f, g)
    torch.testing.assert_close(
        loss.branches, torch.stack([total(a, b) for a, b in zip(f.branches, g.branches, strict=True)])
    )
    loss.backward()
    torch.testing.assert_close(values.evidence.loss, of_values * g.branches.detach().mean((1, 2)))
    assert policy.evidence.gains is not None
    assert policy.evidence.loss is values.evidence.gains is None


def test_a_loss_that_is_also_logged_counts_once():
    policy, values, x = heads("mean", rule="uniform"), heads(rule="bayes"), torch.randn(5, 4)
    f, g = policy(x).mean(), values(x).square().mean()
    (f + g).item()
    (f + g).backward()
    torch.testing.assert_close(values.evidence.loss, g.branches.detach())


def test_frozen_copy():
    target = heads().requires_grad_(False)
    x = torch.randn(5, 4)
    torch.testing.assert_close(target(x).branches[1:], outputs_of(target, x))


def test_another_optimizer_is_told_that_it_does_not_reach_the_heads():
    layer = heads()
    optimizer = torch.optim.Adam(layer.parameters())

    def train():
        for _ in range(250):
            optimizer.zero_grad()
            layer(torch.randn(5, 4)).mean().backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="AlraoOptimizer") as warned:
        train()
    assert len(warned) == 1


# --- lost heads -----------------------------------------------------------------------------------------------------


def lossy(n_heads, rule="uniform", **options):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return convert(net, {"2": "values"}, {"n_heads": n_heads, "value_averaging": rule, "seed": 1, **options})


@pytest.mark.parametrize("rule", ["uniform", "switch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lost_head_without_weight_changes_nothing(rule, value):
    """With a_j = 0 and head j not finite: Φ, trunk gradient and σ² are those of the model without it."""
    net, smaller = lossy(3, rule), lossy(2, rule)
    smaller[0].load_state_dict(net[0].state_dict())
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(smaller[2], name).copy_(getattr(net[2], name)[[0, 2]])
            getattr(net[2], name)[1] = value
        net[2].averaging_weights.copy_(torch.tensor([0.5, 0.0, 0.5]))
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    with torch.no_grad():
        torch.testing.assert_close(net(x), smaller(x))
    optimizers = AlraoOptimizer(net), AlraoOptimizer(smaller)
    for one in (net, smaller):
        F.mse_loss(one(x), y).backward()
    torch.testing.assert_close(net[0].weight.grad, smaller[0].weight.grad)
    for optimizer in optimizers:
        optimizer.step()
    if rule == "switch":
        torch.testing.assert_close(net[2].rule.scale, smaller[2].rule.scale)
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_head_that_is_not_finite_is_recloned_in_the_same_step_and_values_stay():
    net = lossy(3)
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    optimizer = AlraoOptimizer(net)
    F.mse_loss(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        net[2].weight[1] = float("nan")
        before = net(x)  # the average of the other two, by their weights
    assert before.isfinite().all()
    lost = torch.tensor([False, True, False])
    net[2].reclone(lost)
    with torch.no_grad():
        torch.testing.assert_close(net(x), before)
        net[2].weight[1] = float("nan")
    F.mse_loss(net(x), y).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert state["steps"].tolist() == [2.0, 2.0, 0.0, 2.0]  # fresh state for the new head


def test_heads_without_weight_are_recloned_from_the_average_every_interval():
    net = lossy(4, reclone_interval=3, lr_range=(1e-12, 1e-12))
    a = torch.tensor([0.5, 0.01, 0.48, 0.01])  # 0.1/J = 0.025
    net[2].averaging_weights.copy_(a)
    average = torch.einsum("j,joi->oi", a, net[2].weight.detach())
    optimizer = AlraoOptimizer(net)
    for step in range(1, 4):
        before = net[2].weight.detach().clone()
        optimizer.zero_grad()
        F.mse_loss(net(torch.randn(6, 4)), torch.randn(6, 2)).backward()
        optimizer.step()
        if step < 3:
            torch.testing.assert_close(net[2].weight.detach(), before)
    torch.testing.assert_close(net[2].weight[1].detach(), average)
    torch.testing.assert_close(net[2].weight[3].detach(), average)
    torch.testing.assert_close(net[2].weight[[0, 2]].detach(), before[[0, 2]])
    assert optimizer.reclones(net[2]).tolist() == [0, 1, 0, 1]
    assert optimizer.reclones(net[2], "lost").tolist() == [0, 0, 0, 0]
    with torch.no_grad():
        net[2].weight[2] = float("inf")
    optimizer.zero_grad()
    F.mse_loss(net(torch.randn(6, 4)), torch.randn(6, 2)).backward()
    optimizer.step()
    assert optimizer.reclones(net[2]).tolist() == [0, 1, 1, 1]
    assert optimizer.reclones(net[2], "lost").tolist() == [0, 0, 1, 0]


def test_all_heads_lost_at_once_leaves_a_finite_output():
    net = lossy(3)
    with torch.no_grad():
        net[2].weight.fill_(float("inf"))
        assert net(torch.randn(2, 4)).isfinite().all()


def test_an_exploding_head_does_no_harm_to_the_others():
    """SGD up to 10, heads clipped: the fast ones diverge again and again, the model learns."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    convert(
        net,
        {"2": "values"},
        {"base": "sgd", "lr_range": (1e-3, 10.0), "value_averaging": "switch", "head_max_grad_norm": 1.0},
    )
    net.alrao_rates.fill_(1e-2)
    optimizer, x = AlraoOptimizer(net), torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(300):
        loss = F.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert all(p.isfinite().all() for p in net.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_a_huge_gradient_of_one_head_is_set_aside():
    net = lossy(3)
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    optimizer = AlraoOptimizer(net)
    with torch.no_grad():
        net[2].bias[1] = 1e30
        net[2].averaging_weights.copy_(torch.tensor([0.5, 0.0, 0.5]))
    F.mse_loss(net(x), y).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert net[2].bias.abs().max() < 1e3


@pytest.mark.parametrize("coefficient", [1, 0.5, 2.0])
def test_a_regression_loss_tells_its_residual_once(coefficient, monkeypatch):
    """The value of the loss adds nothing to its residual, and is not computed."""
    layer, other = heads(rule="switch"), heads(rule="switch")
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    monkeypatch.setattr("alrao_rl.core.headwise._contributed", lambda *_: pytest.fail("recorded twice"))
    loss = coefficient * F.mse_loss(layer(x), y) + F.mse_loss(other(x), y) * coefficient
    loss.backward()
    for one in (layer, other):
        expected = (outputs_of(one, x) - y).square().mean((1, 2))
        torch.testing.assert_close(one.evidence.residual[1:], expected)
        assert one.evidence.loss is None


def test_learning_goes_on_after_inference_mode_and_after_a_copy_in_between():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    net = convert(net, {"2": "values"}, {"seed": 0})
    optimizer, x, y = AlraoOptimizer(net), torch.randn(5, 4), torch.randn(5, 3)
    with torch.inference_mode():  # the first to look at the layer
        net(x)
    F.mse_loss(net(x), y).backward()
    other = copy.deepcopy(net)
    before = net[2].theta.detach().clone(), net[2].averaging_weights.detach().clone()
    optimizer.step()
    assert not torch.equal(net[2].theta, before[0])
    assert not torch.equal(net[2].averaging_weights, before[1])
    assert torch.equal(other[2].theta, before[0])
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        assert not torch.equal(net(x), other(x))


def test_parameters_moved_between_backward_and_step_still_learn():
    net = convert(nn.Sequential(nn.Linear(4, 3)), {"0": "values"}, {"seed": 0})
    optimizer, x, y = AlraoOptimizer(net), torch.randn(5, 4), torch.randn(5, 3)
    F.mse_loss(net(x), y).backward()
    for p in net.parameters():
        p.data = p.data.clone()
    before = net[0].theta.detach().clone(), net[0].averaging_weights.detach().clone()
    optimizer.step()
    assert not torch.equal(net[0].theta, before[0])
    assert not torch.equal(net[0].averaging_weights, before[1])
    out = net(x)
    torch.testing.assert_close(out.branches[1], F.linear(x, net[0].weight[0], net[0].bias[0]))


def learner(kind="values", seed=0, **options):
    torch.manual_seed(seed)
    net = convert(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), {"2": Output(kind, **options)}, {"seed": 1}
    )
    return net, AlraoOptimizer(net)


def test_a_penalty_on_all_parameters_reaches_the_heads_and_not_grad():
    net, _ = learner()
    penalty = sum(p.square().sum() for p in net.parameters() if p.requires_grad)
    (F.mse_loss(net(torch.randn(6, 4)), torch.zeros(6, 3)) + penalty).backward()
    with_penalty = net[2].evidence.gradient
    assert net[2].theta.grad is None
    net[2].drop_evidence()
    torch.manual_seed(5)
    penalty = sum(p.square().sum() for p in net.parameters() if p.requires_grad)
    penalty.backward()
    torch.testing.assert_close(net[2].evidence.gradient, 2 * net[2].theta.detach())
    assert not torch.equal(with_penalty, net[2].evidence.gradient)


@pytest.mark.parametrize("change", ["vector", "freeze", "deepcopy"])
def test_evidence_outlives_the_memory_of_the_parameters(change):
    moved = []
    for changed in (False, True):
        net, optimizer = learner("categorical", rule="exponentiated-gradient")
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        (-net(x)[:, 0].mean()).backward()
        if changed and change == "vector":
            parameters = list(net.parameters())
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters), parameters)
        elif changed and change == "freeze":
            net[2].theta.requires_grad_(False)
            net(x)
            net[2].theta.requires_grad_(True)
        elif changed:
            net, optimizer = copy.deepcopy((net, optimizer))
        net(x)
        optimizer.step()
        moved.append((net[2].theta.detach(), net[2].averaging_weights.detach()))
    assert torch.equal(moved[0][0], moved[1][0])
    assert torch.equal(moved[0][1], moved[1][1])


@pytest.mark.parametrize("kind", ["values", "mean", "categorical", "bernoulli"])
def test_gains_without_a_lost_head_are_by_the_weights_that_are_used(kind, monkeypatch):
    """The same whether somebody looked for lost heads or, as on a GPU, they are masked unseen."""
    found = []
    for looks in (True, False):
        net, _ = learner(kind, rule="exponentiated-gradient")
        if not looks:
            monkeypatch.setattr("alrao_rl.fast.heads.all_finite", lambda tensor: False)
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        (-net(x)[:, 0].mean()).backward()
        found.append(net[2].evidence.gains)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["values", "categorical", "bernoulli"])
def test_gains_beside_a_lost_head_are_finite_and_without_any_head_something_is_played(kind):
    net, _ = learner(kind, rule="exponentiated-gradient")
    with torch.no_grad():
        net[2].theta[0] = float("inf")
    x = torch.randn(6, 4)
    (-net(x)[:, 0].mean()).backward()
    assert net[2].evidence.gains[1:].isfinite().all()
    assert (net[2].evidence.gains[1:] != 0).any()
    with torch.no_grad():
        net[2].theta.fill_(float("nan"))
        assert net(x).isfinite().all()


def test_tracing_knows_the_parameters():
    net, _ = learner()
    x = torch.randn(2, 4)
    with torch.no_grad():
        traced = torch.jit.trace(net, x)
        torch.testing.assert_close(traced(x), net(x))
        net[2].theta.add_(1.0)
        torch.testing.assert_close(traced(x), net(x))


def test_theta_that_is_not_contiguous():
    net, _ = learner()
    x = torch.randn(2, 4)
    expected = net(x).branches
    net[2].theta.data = net[2].theta.data.t().contiguous().t()
    torch.testing.assert_close(net(x).branches, expected)
