"""Compiled regression losses are torch's, in value and gradient, also of what gather() chose."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alrao_rl.fast import HeadwiseTensor, OutputHeads, kernels, losses

pytestmark = pytest.mark.skipif(kernels.library is None, reason="no compiled library here")

NAMES = ("mse_loss", "smooth_l1_loss", "huber_loss")
LAYER = OutputHeads(nn.Linear(2, 3), 3, (1e-3, 1e-1), rule="uniform")


def found(function, *tensors):
    """Value of every branch and its gradient by each of ``tensors``, for a weight of each branch."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*tensors)
    value.backward(torch.linspace(-1, 2, len(value)))
    return [value.detach(), *[tensor.grad for tensor in tensors]]


def by_torch(name, outputs, index, labels):
    chosen = outputs.gather(2, index.expand(len(outputs), *index.shape))
    return getattr(F, name)(chosen, labels.expand_as(chosen), reduction="none").flatten(1).mean(1)


def compiled(name, *tensors):
    outputs, index, labels = tensors
    return losses.chosen_losses(name, (outputs, index), labels)[0]


@pytest.mark.parametrize("name", NAMES)
@given(n=st.integers(1, 40), columns=st.integers(1, 5), branches=st.integers(1, 11), seed=st.integers(0, 99))
def test_value_and_gradient(name, n, columns, branches, seed):
    torch.manual_seed(seed)
    outputs, index, labels = 2 * torch.randn(branches, n, columns), torch.randint(columns, (n, 1)), torch.randn(n, 1)
    fast, slow = (found(lambda x, one=one: one(name, x, index, labels), outputs) for one in (compiled, by_torch))
    torch.testing.assert_close(fast, slow)
    squares = losses.chosen_losses(name, (outputs, index), labels)[1]
    assert not squares.requires_grad
    torch.testing.assert_close(squares, by_torch("mse_loss", outputs, index, labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("view", ["plain", "transposed", "with gaps", "expanded"])
def test_layouts(name, view):
    torch.manual_seed(0)
    rows, columns = 6, 3
    source, make = {
        "plain": (torch.randn(4, rows, columns), lambda x: x),
        "transposed": (torch.randn(4, columns, rows), lambda x: x.transpose(1, 2)),
        "with gaps": (torch.randn(4, rows, 2 * columns), lambda x: x[..., ::2]),
        "expanded": (torch.randn(4, 1, columns), lambda x: x.expand(4, rows, columns)),
    }[view]
    index, labels = torch.randint(columns, (2 * rows, 1))[::2], torch.randn(rows, 2)[:, :1]
    fast, slow = (found(lambda x, one=one: one(name, make(x), index, labels), source) for one in (compiled, by_torch))
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("name", NAMES)
def test_at_the_bound_and_without_numbers(name):
    """On the bound, far beyond it, and where an output or a label is not a number."""
    outputs = torch.tensor([0.0, 1.0, -1.0, 1e30, math.inf, -math.inf, math.nan]).view(-1, 1, 1)
    for label in (0.0, math.inf, math.nan):
        rest = torch.tensor([[0]]), torch.tensor([[label]])
        fast, slow = (found(lambda x, one=one, rest=rest: one(name, x, *rest), outputs) for one in (compiled, by_torch))
        torch.testing.assert_close(fast, slow, equal_nan=True)


def test_a_mean_of_nothing_is_not_a_number():
    nothing = torch.zeros(0, 1)
    assert compiled("mse_loss", torch.zeros(3, 0, 2), nothing.long(), nothing).isnan().all()


def test_second_derivatives():
    """``create_graph`` differentiates what the gradient was computed from."""
    torch.manual_seed(0)
    index, labels = torch.tensor([[0], [2]]), torch.randn(2, 1)
    outputs = torch.randn(4, 2, 3, requires_grad=True)
    value = compiled("mse_loss", outputs, index, labels)
    (gradient,) = torch.autograd.grad(value.sum(), outputs, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), outputs)
    torch.testing.assert_close(second, torch.zeros(4, 2, 3).scatter(2, index.expand(4, 2, 1), 1.0))


def test_batches_of_gradients():
    """Jacobians, which pass many gradients at once."""
    outputs, rest = torch.randn(3, 5, 2), (torch.randint(2, (5, 1)), torch.randn(5, 1))
    fast, slow = (
        torch.autograd.functional.jacobian(lambda x, one=one: one("huber_loss", x, *rest), outputs, vectorize=True)
        for one in (compiled, by_torch)
    )
    torch.testing.assert_close(fast, slow)


def test_left_to_torch():
    outputs, index, labels = torch.randn(3, 5, 2), torch.randint(2, (5, 1)), torch.randn(5, 1)
    for name, *tensors, odd in (
        ("l1_loss", outputs, labels),
        ("mse_loss", outputs.double(), labels.double()),
        ("mse_loss", outputs, labels.clone().requires_grad_()),
        ("mse_loss", outputs, nn.Parameter(labels)),
        ("mse_loss", outputs, torch.randn(5)),
        ("mse_loss", outputs, torch._efficientzerotensor(5, 1)),
        ("mse_loss", outputs, torch._neg_view(labels)),
        ("mse_loss", outputs, labels.to_sparse()),
    ):
        assert losses.chosen_losses(name, (tensors[0], index), odd) is None


def test_an_index_out_of_bounds():
    for wrong in (-1, 3):
        with pytest.raises(RuntimeError, match=r"out of bounds.*3 outputs"):
            compiled("mse_loss", torch.randn(2, 1, 3), torch.tensor([[wrong]]), torch.zeros(1, 1))


def test_headwise_losses_use_it(monkeypatch):
    """Label in front or behind; without the library the same numbers."""

    def computed():
        outputs = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        q, index = HeadwiseTensor.wrap(outputs, [LAYER]), torch.tensor([[0], [1], [2], [1], [0]])
        value = F.smooth_l1_loss(q.gather(1, index), torch.ones(5, 1)) + F.mse_loss(
            torch.ones(5, 1), q.gather(1, index)
        )
        value.backward()
        return value.branches.detach(), outputs.grad

    calls, apply = [], losses._ChosenLosses.apply
    monkeypatch.setattr(losses._ChosenLosses, "apply", lambda *args: calls.append(args[-1]) or apply(*args))
    fast = computed()
    assert calls == ["smooth_l1_loss", "mse_loss"]
    monkeypatch.setattr(kernels, "library", None)
    torch.testing.assert_close(fast, computed())
    assert len(calls) == 2


def test_evidence_of_the_layer(monkeypatch):
    """Rules that go by losses are told the same mean squared residuals either way."""

    def told():
        torch.manual_seed(0)
        layer = OutputHeads(nn.Linear(2, 3), 4, (1e-3, 1e-1), rule="switch")
        F.smooth_l1_loss(layer(torch.randn(5, 2)).gather(1, torch.ones(5, 1).long()), torch.randn(5, 1)).backward()
        return layer.evidence.residual

    fast = told()
    monkeypatch.setattr(kernels, "library", None)
    torch.testing.assert_close(fast, told())


class TestChoice:
    """gather() along the outputs is put off until it is read."""

    def q(self):
        self.outputs = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        return HeadwiseTensor.wrap(self.outputs, [LAYER])

    index = torch.tensor([[0], [1], [2], [1], [0]])

    def test_read_without_gradients_first(self):
        """Logging it under no_grad does not cut it off the graph."""
        chosen = self.q().gather(1, self.index)
        with torch.no_grad():
            mean = chosen.mean().item()
        (chosen * 2).sum().backward()
        assert mean == pytest.approx(self.outputs[0].gather(1, self.index).mean().item())
        assert self.outputs.grad.sum() == 4 * 5 * 2

    def test_read_in_inference_mode_first(self):
        chosen = self.q().gather(1, self.index)
        with torch.inference_mode():
            assert chosen.mean().item() == pytest.approx(self.outputs[0].gather(1, self.index).mean().item())
        F.mse_loss(chosen, torch.ones(5, 1)).backward()
        assert self.outputs.grad.abs().sum() > 0

    @pytest.mark.parametrize("shared", [False, True], ids=["a tensor", "memory of numpy"])
    def test_an_index_that_is_written_over(self, shared):
        """What was chosen stays chosen."""
        memory = self.index.clone().numpy()
        index = torch.from_numpy(memory)
        chosen, again = self.q().gather(1, index), self.q().gather(1, index)
        expected = self.outputs.gather(2, self.index.expand(4, 5, 1)).detach()
        if shared:
            memory[:] = 0
        else:
            index.zero_()
        torch.testing.assert_close(chosen.branches.detach(), expected)
        value = F.mse_loss(again, torch.ones(5, 1)).branches.detach()
        torch.testing.assert_close(value, (expected - 1).square().mean((1, 2)))

    def test_an_index_from_elsewhere(self):
        """On another device it is torch's to judge."""
        assert self.q().gather(1, self.index.to("meta")).pending_gather is None

    def test_attributes(self):
        chosen = self.q().gather(-1, self.index)
        assert chosen.pending_gather is not None
        assert chosen.shape == (5, 1)
        assert chosen.pending_gather is None
        torch.testing.assert_close(chosen.branches, self.outputs.gather(2, self.index.expand(4, 5, 1)))
        assert not hasattr(chosen, "nothing")
        with pytest.raises(AttributeError, match=r"HeadwiseTensor.*'nothing'"):
            _ = chosen.nothing


class TestQuantiles:
    """QR-DQN's loss is sb3-contrib's, in value and gradient."""

    utils = pytest.importorskip("sb3_contrib.common.utils")

    def contrib(self, quantiles, samples):
        return torch.stack([self.utils.quantile_huber_loss(branch, samples) for branch in quantiles])

    def loss(self):
        """The function that QR-DQN calls."""
        from sb3_contrib.qrdqn import qrdqn

        import alrao_rl.sb3.contrib  # noqa: F401  hands it over

        return qrdqn.quantile_huber_loss

    @given(
        n=st.integers(1, 9),
        quantiles=st.integers(1, 40),
        samples=st.integers(1, 40),
        branches=st.integers(1, 11),
        seed=st.integers(0, 99),
    )
    def test_value_and_gradient(self, n, quantiles, samples, branches, seed):
        torch.manual_seed(seed)
        outputs, target = 2 * torch.randn(branches, n, quantiles), 2 * torch.randn(n, samples)
        fast, slow = (
            found(lambda x, one=one: one(x, target), outputs) for one in (losses.quantile_losses, self.contrib)
        )
        torch.testing.assert_close(fast, slow)

    def test_by_hand(self):
        """Two quantiles, ¼ and ¾, of one sample at 2: d = 3 and −½; the mean over samples, the sum over quantiles."""
        outputs = torch.tensor([[[-1.0, 2.5]]], requires_grad=True)
        loss = losses.quantile_losses(outputs, torch.tensor([[2.0]]))
        loss.backward(torch.ones(1))
        assert loss.item() == 0.25 * (3 - 0.5) + 0.25 * (0.5 * 0.5**2)
        assert outputs.grad.flatten().tolist() == [-0.25, 0.25 * 0.5]

    def test_without_numbers(self):
        """What has diverged shows in its own branch; the gradient of an infinite distance is that of a large one."""
        outputs = torch.tensor([1e30, math.inf, -math.inf, math.nan]).view(-1, 1, 1)
        value, gradient = found(lambda x: losses.quantile_losses(x, torch.zeros(1, 1)), outputs)
        assert value[:3].tolist() == pytest.approx([5e29, math.inf, math.inf])
        assert gradient[:3].flatten().tolist() == [-0.5, 0.0, -0.5]
        assert torch.stack([value[3], gradient[3, 0, 0]]).isnan().all()

    def test_layouts_and_second_derivatives(self):
        torch.manual_seed(0)
        outputs, target = torch.randn(4, 6, 3, 2, requires_grad=True), torch.randn(2, 7, 3).mT[..., 0][:, :3]
        results = []
        for one in (losses.quantile_losses, self.contrib):
            value = one(outputs[..., 0].mT, target[:2].repeat(2, 1)[:3])
            (gradient,) = torch.autograd.grad(value.square().sum(), outputs, create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), outputs)
            results.append((value, gradient, second))
        assert results[0][2].count_nonzero() > 0
        torch.testing.assert_close(*results)

    def test_left_to_torch(self):
        outputs, target = torch.randn(3, 5, 2), torch.randn(5, 4)
        for x, y in (
            (outputs.double(), target.double()),
            (outputs, target.clone().requires_grad_()),
            (outputs, target[:4]),
            (outputs[:, None], target[:, None]),
            (outputs[:, :0], target[:0]),
        ):
            assert losses.quantile_losses(x, y) is None

    @pytest.mark.parametrize("options", [{}, {"sum_over_quantiles": True}, {"sum_over_quantiles": False}], ids=str)
    def test_headwise_losses_use_it(self, options, monkeypatch):
        loss, calls, apply = self.loss(), [], losses._QuantileLosses.apply
        monkeypatch.setattr(losses._QuantileLosses, "apply", lambda *args: calls.append(args) or apply(*args))

        def computed():
            torch.manual_seed(0)
            outputs, target = torch.randn(4, 5, 3, requires_grad=True), torch.randn(5, 3)
            value = loss(HeadwiseTensor.wrap(outputs, [LAYER]), target, **options)
            value.backward()
            return value.branches.detach(), outputs.grad

        fast = computed()
        assert len(calls) == options.get("sum_over_quantiles", True)
        monkeypatch.setattr(kernels, "library", None)
        torch.testing.assert_close(fast, computed())

    def test_for_other_tensors_it_is_what_it_was(self):
        outputs, target = torch.randn(5, 3), torch.randn(5, 3)
        assert torch.equal(self.loss()(outputs, target), self.utils.quantile_huber_loss(outputs, target))
        with pytest.raises(ValueError, match="needs to match"):
            self.loss()(HeadwiseTensor.wrap(torch.randn(4, 5, 3), [LAYER]), torch.randn(5))
