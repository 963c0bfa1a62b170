"""Heads and their average as one compiled node are what the operations of torch make of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alrao_rl.core.mixtures import mix_logits
from alrao_rl.fast import OutputHeads, branches, kernels

pytestmark = pytest.mark.skipif(kernels.library is None, reason="no compiled library here")

KINDS = {
    "values": {"kind": "values", "rule": "switch"},
    "values with gains": {"kind": "values", "rule": "exponentiated-gradient"},
    "categorical": {"kind": "categorical", "rule": "exponentiated-gradient"},
    "categorical without gains": {"kind": "categorical", "rule": "uniform"},
    "mean with an extra": {"kind": "mean", "rule": "exponentiated-gradient", "extra": torch.zeros(5)},
}


def heads(inputs, outputs, n_heads, kind, bias=True, **more):
    torch.manual_seed(0)
    layer = OutputHeads(nn.Linear(inputs, outputs, bias=bias), n_heads, (1e-3, 1e-1), **KINDS[kind] | more)
    with torch.no_grad():
        layer.averaging_weights.copy_(torch.rand(n_heads).softmax(0))
    return layer


def passed(layer, x, seed=0):
    """Branches and all gradients of a random loss."""
    x = x.detach().clone().requires_grad_(True)
    out = layer(x).branches
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    out.backward(g)
    gains = layer.evidence.gains
    gradient = layer.gradient
    layer.drop_evidence()
    return out.detach(), x.grad, gradient, torch.zeros(0) if gains is None else gains


def both(layer, x, monkeypatch):
    """By compiled code and by torch, from equal layers."""
    other = copy.deepcopy(layer)
    fast = passed(layer, x)
    assert layer._kernel is not None
    with monkeypatch.context() as patch:
        patch.setattr(branches, "MOST_WORK", dict.fromkeys(branches.MOST_WORK, -1))
        slow = passed(other, x)
    return zip(("branches", "of x", "of theta", "gains"), fast, slow, strict=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (16, 2, 10, 64), (16, 200, 10, 64), (17, 5, 3, 15), (64, 1, 10, 33), (3, 4, 5, 0)]
)
def test_outputs_and_gradients(kind, bias, shape, monkeypatch):
    inputs, outputs, n_heads, batch = shape
    more = {"extra": torch.zeros(outputs)} if "extra" in kind else {}
    layer = heads(inputs, outputs, n_heads, kind, bias, **more)
    for name, fast, slow in both(layer, torch.randn(batch, inputs), monkeypatch):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["values", "categorical"])
def test_layouts_of_inputs(kind, monkeypatch):
    """Views of all kinds are read as what they are."""
    layer = heads(6, 3, 4, kind)
    x = torch.randn(6, 8)
    for view in (x.t(), x.t()[::2], torch.randn(8, 12)[:, ::2], torch.randn(1, 6).expand(8, 6)):
        for name, fast, slow in both(layer, view, monkeypatch):
            torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@given(scale=st.sampled_from([1e-20, 1.0, 30.0, 1e3, 1e6]), seed=st.integers(0, 1000))
def test_probabilities_at_all_scales(scale, seed):
    """Log-probabilities from nearly 0 to a million below it: finite, of sum 1, and those of torch."""
    layer = heads(4, 3, 5, "categorical")
    x = scale * torch.randn(7, 4, generator=torch.Generator().manual_seed(seed))
    fast = layer(x).branches.detach()
    logits = x @ layer.weight.detach().flatten(0, 1).t() + layer.bias.detach().flatten()
    logits = logits.view(7, 5, 3).permute(1, 2, 0).double()
    own = logits.log_softmax(1)
    average = mix_logits(logits, layer.averaging_weights.detach().double())
    expected = torch.cat([average[None], own]).transpose(1, 2)
    assert fast.isfinite().all()
    torch.testing.assert_close(fast.exp().sum(-1), torch.ones(6, 7), rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.double(), expected, rtol=1e-4, atol=1e-4 + 1e-6 * scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["values", "categorical"])
def test_what_is_not_finite_is_not_hidden(kind, value):
    """Of a batch with one broken observation that row is broken, in output and gradient, as in torch."""
    layer = heads(4, 3, 5, kind)
    x = torch.randn(7, 4)
    x[2, 1] = value
    out, of_x, of_theta, _ = passed(layer, x)
    assert not out[:, 2].isfinite().any()
    assert out[:, [0, 1, 3, 4, 5, 6]].isfinite().all()
    assert not of_theta.isfinite().all()
    if kind == "categorical":
        assert not of_x[2].isfinite().any()
    assert of_x[[0, 1, 3, 4, 5, 6]].isfinite().all()


@pytest.mark.parametrize("kind", ["values with gains", "categorical"])
def test_gradients_of_gradients(kind, monkeypatch):
    """As for a penalty on the gradient with respect to the observations."""
    results = []
    for most in (branches.MOST_WORK, dict.fromkeys(branches.MOST_WORK, -1)):
        monkeypatch.setattr(branches, "MOST_WORK", most)
        layer = heads(6, 3, 4, kind)
        torch.manual_seed(1)
        x = torch.randn(5, 6, requires_grad=True)
        out = layer(x).branches
        (of_x,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
        (of_x**2).sum().backward()
        results.append((of_x.detach(), x.grad, layer.gradient))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["values", "categorical", "mean with an extra"])
def test_acting_is_the_average_branch_bit_for_bit(kind):
    layer = heads(9, 5, 4, kind)
    x = torch.randn(33, 9)
    with torch.no_grad():
        plain = layer(x)
    assert torch.equal(plain, layer(x).branches[0])


@pytest.mark.parametrize("case", ["large", "double", "autocast", "lost head", "mask"])
def test_others_are_left_to_torch(case, monkeypatch):
    called = []
    apply = branches.Branches.apply
    monkeypatch.setattr(branches.Branches, "apply", lambda *args: called.append(args) or apply(*args))
    layer, x, offset = heads(8, 3, 4, "categorical"), torch.randn(5, 8), None
    layer(x)
    assert len(called) == 1
    if case == "large":
        x = torch.randn(branches.MOST_WORK["categorical"] // (8 * 3 * 5) + 1, 8)
    elif case == "double":
        layer, x = layer.double(), x.double()
    elif case == "lost head":
        with torch.no_grad():
            layer.weight[1, 0, 0] = float("nan")
    elif case == "mask":
        offset = torch.zeros(5, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        out = layer(x, offset)
    assert len(called) == 1
    assert out.average.isfinite().all()


def test_parameters_that_change_before_a_backward_pass_are_noticed():
    layer = heads(8, 3, 4, "values")
    loss = F.mse_loss(layer(torch.randn(5, 8)), torch.zeros(5, 3))
    with torch.no_grad():
        layer.theta.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", ["values", "categorical"])
@pytest.mark.parametrize("width", [7, 9])
def test_inputs_of_another_width_are_refused_as_by_torch(kind, width):
    layer = heads(8, 3, 4, kind)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(4, width))
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(4, width))


@pytest.mark.parametrize("change", ["more heads", "fewer heads", "weights"])
def test_parameters_of_another_size_are_not_read_as_the_old_ones(change):
    layer = heads(8, 3, 4, "values")
    layer(torch.randn(5, 8))
    if change == "weights":
        layer.averaging_weights.data = layer.averaging_weights.data[:2]
    else:
        theta = layer.theta.data
        layer.theta.data = theta[:2] if change == "fewer heads" else theta.repeat(5, 1)
    with pytest.raises(RuntimeError):
        layer(torch.randn(5, 8))


@pytest.mark.parametrize("kind", ["values", "categorical"])
@pytest.mark.parametrize("bias", [True, False])
def test_batches_of_gradients(kind, bias):
    """Jacobians, which pass many gradients at once."""
    layer, x = heads(6, 3, 4, kind, bias), torch.randn(5, 6)
    at_once, one_by_one = (
        torch.autograd.functional.jacobian(lambda x: layer(x).branches, x, vectorize=vectorize)
        for vectorize in (True, False)
    )
    assert layer._kernel is not None
    torch.testing.assert_close(at_once, one_by_one)
