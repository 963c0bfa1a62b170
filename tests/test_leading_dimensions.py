"""Dimensions in front are networks side by side: S of them in one call are S calls, bit for bit.

Averaging rules have their test in test_averaging.py.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alrao_rl.core import Output, convert
from alrao_rl.core.bases import BASES
from alrao_rl.core.heads import KINDS, OutputHeads, average_heads, average_outputs, without_lost
from alrao_rl.core.layout import Layout
from alrao_rl.core.mixtures import mix, mix_bernoulli, mix_logits
from alrao_rl.core.rates import head_rates

SHAPES = st.sampled_from([(1,), (3,), (2, 2)])
SEEDS = st.integers(0, 100)


def same_bits(together, alone):
    """Whether one tensor, or several, is what a list of them for one network each would be, stacked."""
    together = together if isinstance(together, tuple) else (together,)
    alone = zip(*(one if isinstance(one, tuple) else (one,) for one in alone), strict=True)
    for found, parts in zip(together, alone, strict=True):
        expected = torch.stack(parts).view(found.shape)
        assert torch.equal(found.contiguous().view(torch.int32), expected.view(torch.int32))


def side_by_side(shape, function, *tensors):
    """A function of tensors with ``shape`` in front of them, and of the tensors of one network at a time."""
    flat = [tensor.flatten(0, len(shape) - 1) for tensor in tensors]
    same_bits(function(*tensors), [function(*parts) for parts in zip(*flat, strict=True)])


def some(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS, shape=SHAPES, n_heads=st.sampled_from([1, 3, 10]))
def test_mixtures(seed, shape, n_heads):
    logits, weights = some(seed, *shape, n_heads, 4, 6), some(seed + 1, *shape, n_heads).softmax(-1)
    for function in (mix, mix_logits, mix_bernoulli):
        side_by_side(shape, function, logits, weights)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, shape=SHAPES)
def test_averages_of_outputs(kind, seed, shape):
    outputs, weights = some(seed, *shape, 5, 4, 6), some(seed + 1, *shape, 5).softmax(-1)
    side_by_side(shape, lambda o, w: average_outputs(kind, [1, 3], o, w), outputs, weights)


@given(seed=SEEDS, shape=SHAPES)
def test_averages_of_heads_and_what_lost_ones_leave(seed, shape):
    theta, weights = some(seed, *shape, 5, 7), some(seed + 1, *shape, 5).softmax(-1)
    side_by_side(shape, average_heads, theta, weights)
    theta[..., 0][some(seed + 2, *shape, 5) > 1] = math.nan
    side_by_side(shape, without_lost, theta, weights)


@given(shape=SHAPES, n_heads=st.integers(1, 12), low=st.floats(1e-8, 1e-4), width=st.floats(1.0, 1e6), seed=SEEDS)
def test_rates_of_heads(shape, n_heads, low, width, seed):
    lows = low * (1 + torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double())
    side_by_side(shape, lambda a, b: head_rates(n_heads, (a, b)), lows, lows * width)
    ends = lows.flatten()[0].item(), (lows * width).flatten()[0].item()
    assert torch.equal(head_rates(n_heads, (lows, lows * width)).view(-1, n_heads)[0], head_rates(n_heads, ends))


def a_layout():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    convert(network, {"2": Output("values")}, {"n_heads": 4, "seed": 0})
    return Layout(network, [module for module in network.modules() if isinstance(module, OutputHeads)])


@given(seed=SEEDS, shape=SHAPES)
def test_layouts(seed, shape):
    layout = a_layout()
    flat, segments = some(seed, *shape, layout.numel), some(seed, *shape, len(layout.sizes))
    side_by_side(shape, layout.feature_mean, flat)
    side_by_side(shape, layout.spread, segments)
    side_by_side(shape, layout.rates, some(seed, *shape, layout.features.n_features))
    side_by_side(shape, lambda x: tuple(layout.heads(x)), flat)
    side_by_side(shape, lambda x: tuple(layout.views(x)), flat)


OPTIONS = [("sgd", {"momentum": 0.9}), ("rmsprop", {"bias_correction": True}), ("rmsprop", {"eps_inside": False})]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in BASES), *OPTIONS], ids=str)
@given(seed=SEEDS, shape=SHAPES)
def test_bases(name, options, seed, shape):
    base = BASES[name](**options)
    layout, n = a_layout(), math.prod(shape)

    def state(*front):
        buffers = {buffer: torch.zeros(*front, layout.numel) for buffer in base.buffers}
        return buffers | {"steps": torch.zeros(*front, len(layout.sizes))}

    together, alone = state(*shape), [state() for _ in range(n)]
    for step in range(5):
        g = some(seed + step, *shape, layout.numel)
        ages = torch.randint(1, 50, (*shape, len(layout.sizes)), generator=torch.Generator().manual_seed(step)).float()
        together["steps"].copy_(ages)
        for one, age in zip(alone, ages.view(n, -1), strict=True):
            one["steps"].copy_(age)
        found = base.direction(g, together, layout)
        expected = [base.direction(x, one, layout) for x, one in zip(g.view(n, -1), alone, strict=True)]
        same_bits(found, expected)
