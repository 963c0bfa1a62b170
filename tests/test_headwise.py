"""Every operation on a headwise tensor against the same computation on the average and on each head separately."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from alrao_rl.core import HeadwiseError, HeadwiseTensor, OutputHeads

pytestmark = pytest.mark.usefixtures("way")

LAYER = OutputHeads(nn.Linear(2, 3), 3, (1e-3, 1e-1), kind="mean", rule="uniform")
VALUES = OutputHeads(nn.Linear(2, 3), 3, (1e-3, 1e-1), kind="values", rule="uniform")


def headwise(*shape, n_heads=3, layer=LAYER, requires_grad=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    branches = torch.randn(1 + n_heads, *shape, generator=generator)
    return HeadwiseTensor.wrap(branches.requires_grad_(requires_grad), [layer])


def check(function, *values):
    """``function`` of headwise tensors is, in every branch, ``function`` of that branch."""
    result = function(*values)
    n_branches = next(v.branches.shape[0] for v in values if isinstance(v, HeadwiseTensor))
    for i in range(n_branches):
        plain = [v.branches[i] if isinstance(v, HeadwiseTensor) else v for v in values]
        expected = function(*plain)
        _same(result, expected, i)


def _same(result, expected, i):
    if isinstance(expected, (tuple, list)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            _same(one, other, i)
        return
    assert isinstance(result, HeadwiseTensor)
    assert result.branches[i].shape == expected.shape
    torch.testing.assert_close(result.branches[i], expected, rtol=1e-5, atol=1e-6)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype


OPERATIONS = {
    "operators": lambda x, y: (x + y) * 2 - y / (x**2 + 1.5) - 1 + (1 - x) + 2 / (x**2 + 1),
    "unary": lambda x, y: torch.exp(-x.abs()).log1p().sqrt() + x.tanh() + torch.sigmoid(x) + F.relu(x),
    "compare": lambda x, y: (x > y).float() + (x <= 0).float() + (torch.abs(x - 1) > 0.2).float(),
    "minimum": lambda x, y: torch.min(x * 2, torch.max(x, y)),
    "clamp": lambda x, y: torch.clamp(x, 0.8, 1.2) + x.clamp(min=-0.1),
    "where": lambda x, y: torch.where(y > 0, x, y),
    "mean": lambda x, y: x.mean(),
    "sum": lambda x, y: (x * y).sum(),
    "sum dim": lambda x, y: x.sum(-1) + x.sum(dim=x.dim() - 1),
    "mean keepdim": lambda x, y: x - x.mean(0, keepdim=True),
    "logsumexp": lambda x, y: x - x.logsumexp(dim=-1, keepdim=True),
    "softmax": lambda x, y: x.softmax(-1) + F.log_softmax(x, dim=0) + F.softmax(x, -1),
    "max dim": lambda x, y: x.max(dim=-1)[0],
    "max": lambda x, y: x.max() - x.min(),
    "std by vmap": lambda x, y: x.std(-1, unbiased=False),
    "flatten": lambda x, y: x.flatten() + x.reshape(-1) + x.view(-1),
    "shapes": lambda x, y: x.unsqueeze(1).squeeze(1) + x.unsqueeze(-1).squeeze(-1) + x.transpose(0, 0),
    "split": lambda x, y: x.split(1, dim=-1),
    "chunk": lambda x, y: torch.chunk(x, 2, dim=0),
    "unbind": lambda x, y: x.unbind(0),
    "stack": lambda x, y: torch.stack([x, x * 2, y], dim=1).sum(dim=1),
    "cat": lambda x, y: torch.cat([x, y], dim=-1),
    "index": lambda x, y: x[0] * x[..., :1] + x[:, None].sum(),
    "index by tensor": lambda x, y: x[torch.tensor([0, 0])],
    "expand": lambda x, y: x.unsqueeze(0).expand(2, *x.shape),
    "broadcast": lambda x, y: torch.broadcast_tensors(x, x[0])[1] * 1.0,
    "mse": lambda x, y: F.mse_loss(y, x) + F.mse_loss(x, y, reduction="sum"),
    "huber": lambda x, y: F.smooth_l1_loss(x, y) + F.huber_loss(x, y) + F.l1_loss(x, y),
    "loss without reduction": lambda x, y: F.mse_loss(x, y, reduction="none"),
    "bce": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid(), reduction="none"),
    "nan_to_num": lambda x, y: torch.nan_to_num(x / 0),
    "in place": lambda x, y: _in_place(x * 1.0, y),
    "cumsum by vmap": lambda x, y: x.cumsum(0),
}


def _in_place(x, y):
    x -= y
    x.mul_(2.0)
    return x


@pytest.mark.parametrize("name", OPERATIONS)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    n_heads=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_operation_matches_each_branch(name, shape, n_heads, seed):
    y = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 100))
    check(lambda x: OPERATIONS[name](x, y), headwise(*shape, n_heads=n_heads, seed=seed))


@given(batch=st.integers(1, 5), left=st.integers(1, 3), right=st.integers(1, 3))
def test_operands_of_different_dimensions_broadcast_like_their_visible_parts(batch, left, right):
    check(lambda a, b: a * b + b, headwise(batch, left, right), headwise(right, seed=1))
    check(lambda a, b: a - b, headwise(right), headwise(batch, left, 1, seed=1))
    check(lambda a: a * torch.ones(batch, left, right), headwise(right))


def test_gather_as_dqn_uses_it():
    actions = torch.tensor([[1], [0], [2], [1]])
    check(lambda q: torch.gather(q, dim=1, index=actions), headwise(4, 3))
    check(lambda q: F.smooth_l1_loss(torch.gather(q, 1, actions), torch.ones(4, 1)), headwise(4, 3))


def test_matrix_products():
    check(lambda x: torch.mm(torch.ones(2, 4), x), headwise(4, 3))
    check(lambda x: x @ torch.ones(3, 2), headwise(4, 3))
    check(lambda x: torch.mm(torch.ones(2, 4) ** 2, torch.exp(x) ** 2), headwise(4, 3))


@given(batch=st.integers(1, 6), n_actions=st.integers(2, 4), advantage_seed=st.integers(0, 3))
def test_losses_of_a2c_and_ppo_on_categorical(batch, n_actions, advantage_seed):
    generator = torch.Generator().manual_seed(advantage_seed)
    advantages, old = torch.randn(batch, generator=generator), -torch.rand(batch, generator=generator)
    actions = torch.randint(0, n_actions, (batch,), generator=generator)
    check(lambda x: _policy_loss(Categorical(logits=x), actions, advantages, old), headwise(batch, n_actions))


@given(batch=st.integers(1, 6), dims=st.integers(1, 3), seed=st.integers(0, 3))
def test_losses_of_a2c_and_ppo_on_gaussian_and_bernoulli(batch, dims, seed):
    generator = torch.Generator().manual_seed(seed)
    advantages, old = torch.randn(batch, generator=generator), -torch.rand(batch, generator=generator)
    actions = torch.randn(batch, dims, generator=generator)

    def gaussian(mean, log_std):
        return _policy_loss(Normal(mean, torch.ones_like(mean) * log_std.exp()), actions, advantages, old)

    check(gaussian, headwise(batch, dims), headwise(dims, seed=7))
    binary = (actions > 0).float()
    check(lambda x: _policy_loss(Bernoulli(logits=x), binary, advantages, old), headwise(batch, dims))


def _policy_loss(distribution, actions, advantages, old_log_prob):
    log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
    if log_prob.dim() > 1:
        log_prob, entropy = log_prob.sum(dim=1), entropy.sum(dim=1)
    ratio = torch.exp(log_prob - old_log_prob)
    clipped = advantages * torch.clamp(ratio, 0.8, 1.2)
    ppo = -torch.min(advantages * ratio, clipped).mean()
    a2c = -(advantages * log_prob).mean()
    clip_fraction = torch.mean((torch.abs(ratio - 1) > 0.2).float())
    return ppo + a2c - 0.01 * torch.mean(entropy) + 0 * clip_fraction


def test_reads_from_the_average():
    x = headwise(2, 3, requires_grad=False)
    average = x.branches[0]
    assert x.shape == (2, 3)
    assert x.size(1) == 3
    assert x.dim() == 2
    assert len(x) == 2
    assert x.numel() == 6
    assert x.tolist() == average.tolist()
    assert (x.numpy() == average.numpy()).all()
    assert torch.equal(x.cpu().detach().average, average)
    assert x.mean().item() == average.mean().item()
    assert float(x.sum()) == float(average.sum())
    assert bool((x.sum() > 0).item()) == bool(average.sum() > 0)
    assert torch.equal(x.argmax(1), average.argmax(1))
    assert "Headwise" not in repr(x)
    assert torch.equal(torch.zeros_like(x), torch.zeros(2, 3))


def test_samples_come_from_the_average():
    x = HeadwiseTensor.wrap(torch.tensor([[[-1e9, 0.0]], [[0.0, -1e9]]]), [LAYER])
    sample = Categorical(logits=x).sample()
    assert type(sample) is torch.Tensor
    assert sample.tolist() == [1]


def test_backward_starts_from_the_sum_of_all_branches():
    x = headwise(4)
    (x**2).mean().backward()
    torch.testing.assert_close(x.branches.grad, 2 * x.branches.detach() / 4)
    y = headwise(4)
    torch.testing.assert_close(torch.autograd.grad((y**2).sum(), [y.branches])[0], 2 * y.branches.detach())
    z = headwise(2)
    (z * 3).backward(torch.tensor([1.0, 2.0]))
    assert z.branches.grad.tolist() == [[3.0, 6.0]] * 4
    with pytest.raises(RuntimeError, match="scalar"):
        headwise(2).backward()


def test_plain_tensor_with_gradient_gets_the_average_branch_only():
    for function in (
        lambda t, x: (x * t).mean(),
        lambda t, x: torch.stack([t * 1.0, x.mean()]).sum(),
        lambda t, x: F.mse_loss(x, t.expand(4)),
        lambda t, x: (x.cumsum(0) * t).sum(),
    ):
        temperature = torch.tensor(0.7, requires_grad=True)
        x = headwise(4)
        function(temperature, x).backward()
        alone = torch.tensor(0.7, requires_grad=True)
        function(alone, x.branches[0].detach()).backward()
        torch.testing.assert_close(temperature.grad, alone.grad)
        assert (x.branches.grad.abs().sum(1) > 0).all()


def test_different_layers_add_and_are_refused_otherwise():
    policy, value = headwise(4), headwise(4, layer=VALUES, seed=1)
    loss = policy.mean() + 0.5 * value.mean()
    torch.testing.assert_close(loss.branches, policy.branches.mean(1) + 0.5 * value.branches.mean(1))
    assert set(loss.layers) == {LAYER, VALUES}
    loss = loss * 2.0
    loss.backward()
    torch.testing.assert_close(value.branches.grad, torch.full((4, 4), 0.25))
    with pytest.raises(HeadwiseError, match=r"mul\(\)"):
        headwise(4) * headwise(4, layer=VALUES)
    product = headwise(4) * value.detach()
    torch.testing.assert_close(product.branches, headwise(4).branches * value.branches[0])


def test_adding_layers_with_different_numbers_of_heads_is_refused():
    with pytest.raises(HeadwiseError, match="same n_heads"):
        headwise(4).mean() + headwise(4, n_heads=2, layer=VALUES).mean()


def test_detach_keeps_the_branches():
    x = headwise(4)
    detached = x.detach()
    assert isinstance(detached, HeadwiseTensor)
    assert not detached.requires_grad
    torch.testing.assert_close((x - detached).branches, torch.zeros(4, 4))


def test_detach_gives_the_average_where_the_layer_says_so():
    x = headwise(4, layer=OutputHeads(nn.Linear(2, 3), 3, (1e-3, 1e-1), detach_average_only=True))
    detached = (x + 1).detach()
    assert type(detached) is torch.Tensor
    assert not detached.requires_grad
    assert torch.equal(detached, x.branches[0] + 1)
    assert isinstance(x.data, HeadwiseTensor)


def test_clamp_around_the_average_value_leaves_heads_their_gradient():
    old = torch.zeros(4)
    check(lambda x: x.clamp(-0.1, 0.1), headwise(4, layer=VALUES))  # only where the layer says so
    layer = OutputHeads(nn.Linear(2, 3), 3, (1e-3, 1e-1), clamp_average_only=True)
    values = headwise(4, layer=layer)
    clipped = old + torch.clamp(values - old, -0.1, 0.1)
    F.mse_loss(torch.ones(4), clipped).backward()
    assert (values.branches.grad[1:] != 0).all()
    torch.testing.assert_close(clipped.branches[0], values.branches[0].clamp(-0.1, 0.1))


def test_what_cannot_be_done_names_the_function():
    with pytest.raises(HeadwiseError, match="nonzero"):
        torch.nonzero(headwise(4))
    with pytest.raises(HeadwiseError, match="sub"):
        torch.zeros(4).sub_(headwise(4))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 2, 7]])
def test_what_torch_refuses_of_plain_tensors_it_says_itself(labels):
    """A label too few, or of a class that is none: no advice how to do without the heads."""
    labels = torch.tensor(labels)
    with pytest.raises((ValueError, IndexError)) as expected:
        F.cross_entropy(torch.zeros(4, 3), labels)
    with pytest.raises(type(expected.value)) as told:
        F.cross_entropy(headwise(4, 3), labels)
    assert str(told.value) == str(expected.value)


def test_matrix_product_from_the_left():
    matrix = torch.randn(3, 3)
    check(lambda x: matrix @ x, headwise(3, 3))
    check(lambda x: x @ matrix, headwise(3, 3))
    with torch.no_grad():
        torch.testing.assert_close(matrix @ headwise(3, 3), matrix @ headwise(3, 3).average)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(dim=()),
        lambda x: x.sum([]),
        lambda x: x.sum((), keepdim=True),
        lambda x: torch.cat([x, torch.ones(4, 3)], axis=1),
        lambda x: torch.cat(tensors=[x, torch.ones(4, 3)], dim=1),
        lambda x: torch.stack(tensors=[x, torch.ones(4, 3)], dim=1),
        lambda x: x.view(size=(12,)),
        lambda x: x.expand(size=(2, 4, 3)),
        lambda x: x.log_softmax(-1, torch.float64),
        lambda x: torch.rsub(x, torch.ones(3)),
    ],
)
def test_rare_ways_to_call(function):
    check(function, headwise(4, 3))


def test_without_gradients_everything_is_the_average():
    x = headwise(4)
    with torch.no_grad():
        for y in (x - torch.ones(4), x.exp() * x, torch.minimum(x, x.detach()) + x):
            assert type(y) is torch.Tensor
        torch.testing.assert_close(x.detach().clamp(0.0, 1.0), x.average.clamp(0.0, 1.0))
        with pytest.raises(HeadwiseError, match="under no_grad"):
            x += 1


def test_writing_into_an_output():
    for index, value in ((0, 0.0), ((slice(None), 1), torch.ones(4)), (torch.tensor([True, False, True, False]), -1.0)):
        x, before = headwise(4, 3), headwise(4, 3)
        y = x * 1.0
        y[index] = value
        for branch, old in zip(y.branches, before.branches, strict=True):
            old = old.detach().clone()
            old[index] = value
            torch.testing.assert_close(branch, old)
        y.sum().backward()
        assert 0 < (x.branches.grad == 0).sum() < x.branches.numel()
    with pytest.raises(HeadwiseError, match=r"torch\.where"):
        torch.zeros(4, 3)[0] = headwise(4, 3)[0]


def test_backward_of_several_losses():
    x, y = headwise(4), headwise(4)
    torch.autograd.backward([x.exp().mean(), x.sum()])
    (y.exp().mean() + y.sum()).backward()
    torch.testing.assert_close(x.branches.grad, y.branches.grad)


def test_cross_entropy_of_a_classifier():
    labels = torch.tensor([0, 2, 1, 1])
    check(lambda x: F.cross_entropy(x, labels), headwise(4, 3))
    check(lambda x: F.nll_loss(F.log_softmax(x, -1), labels, reduction="sum"), headwise(4, 3))


def test_a_loss_times_zero_has_its_value_and_no_gradient(way):
    x, y = headwise(4), headwise(4, layer=VALUES)
    loss = x.sum()
    for zero in (0, 0.0):
        for product in (zero * loss, loss * zero, torch.mul(loss, zero)):
            assert isinstance(product, HeadwiseTensor)
            assert product.branches.tolist() == [0.0] * 4
            assert not product.branches.requires_grad or way == "plain"
    (x.sum() + 0.0 * y.sum()).backward()
    assert x.branches.grad.tolist() == [[1.0] * 4] * 4
    assert y.branches.grad is None or (way == "plain" and not y.branches.grad.any())
    check(lambda x: x + 0.0, x)  # of other operations with 0 the gradient stays
    assert (x - 0).branches.requires_grad


def test_options_of_a_sum_are_kept():
    x, y = headwise(4), headwise(4, seed=1)
    check(lambda x, y: torch.add(x, y, alpha=2), x, y)
    check(lambda x, y: torch.sub(x, y, alpha=2), x, y)
    other = headwise(4, layer=VALUES, seed=2)
    torch.testing.assert_close(torch.add(x, other, alpha=0.5).branches, x.branches + 0.5 * other.branches)


def test_only_a_loss_times_zero_loses_its_gradient():
    x = headwise(4)
    assert (0 * x).branches.requires_grad
    loss = x.sum()
    (0 * loss).backward()  # as torch's: no gradient arrives, and no error
    assert x.branches.grad is None or (x.branches.grad == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, 0].mul_(2),
        lambda x: x[:, 0].clamp_(-0.1, 0.1),
        lambda x: x[0].zero_(),
        lambda x: x[0].__setitem__(1, 5.0),
        lambda x: x.T.mul_(3),
        lambda x: x.unsqueeze(1).add_(3),
        lambda x: x.flatten(0, 0).mul_(2),
        lambda x: x.detach().mul_(2),
    ],
)
def test_writing_into_a_part_writes_into_the_whole(change):
    source = headwise(4, 3)
    x = source.clone()
    change(x)
    (x**2).sum().backward()
    gradients = []
    for branch in source.branches.detach().unbind():
        branch.requires_grad_()
        expected = branch.clone()
        change(expected)
        (expected**2).sum().backward()
        assert torch.allclose(x.branches[len(gradients)], expected)
        gradients.append(branch.grad)
    assert torch.allclose(source.branches.grad, torch.stack(gradients))


def test_a_written_tensor_with_gradient_gets_the_average_branch_only():
    x, value = headwise(4, 3), torch.randn(4, requires_grad=True)
    y = x.clone()
    y[:, 0] = value
    y.exp().sum().backward()
    assert torch.allclose(value.grad, value.detach().exp())
    assert torch.equal(y.branches[2, :, 0], value)


@pytest.mark.parametrize("turned", [False, True])
def test_divergence_of_categoricals(turned):
    """Torch writes where a mask of the heads' own says."""
    logits, other = headwise(5, 3), Categorical(logits=torch.randn(5, 3))
    pair = (Categorical(logits=logits), other)
    loss = torch.distributions.kl_divergence(*(pair[::-1] if turned else pair))
    for i, branch in enumerate(logits.branches.detach()):
        pair = (Categorical(logits=branch), other)
        assert torch.allclose(loss.branches[i], torch.distributions.kl_divergence(*(pair[::-1] if turned else pair)))
    loss.mean().backward()
    assert logits.branches.grad.isfinite().all()


@pytest.mark.parametrize("n", [1, 4, 11])
def test_a_label_in_the_type_of_an_output_stays_a_label(n):
    """Also where there are as many labels as branches."""
    x, label = headwise(n, 1), torch.randn(n, 1, dtype=torch.float64)
    for converted in (label.type_as(x), label.to(x)):
        assert type(converted) is torch.Tensor
        assert torch.equal(converted, label.float())
    assert x.to(label).dtype == torch.float64
    assert x.type_as(label).shape == (n, 1)
    with torch.no_grad():
        assert type(x.to(torch.float64)) is torch.Tensor
