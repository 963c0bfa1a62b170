import math

import pytest
import torch
from torch import nn

from alrao_rl.core.rates import FeatureMap, head_rates


def index_of(module, name):
    """Feature numbers of a parameter, in its shape."""
    parameter = module.get_parameter(name)
    return FeatureMap(module).index[parameter].expand(parameter.shape)


@pytest.mark.parametrize(
    ("layer", "n", "weight_rows"),
    [
        (nn.Linear(3, 5), 5, 0),
        (nn.Conv1d(2, 4, 3), 4, 0),
        (nn.Conv2d(4, 6, 3, groups=2), 6, 0),
        (nn.Conv3d(2, 3, 2), 3, 0),
        (nn.Embedding(7, 5), 5, 1),
        (nn.Bilinear(2, 3, 4), 4, 0),
    ],
)
def test_one_feature_per_output(layer, n, weight_rows):
    index = index_of(layer, "weight")
    assert FeatureMap(layer).n_features == n
    for feature in range(n):
        assert (index.select(weight_rows, feature) == feature).all()
    if getattr(layer, "bias", None) is not None:
        assert index_of(layer, "bias").tolist() == list(range(n))


def test_transposed_convolution_by_output_channel():
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2)  # weight [4, 3, 2, 2]: inputs 0, 1 feed outputs 0..2, the rest 3..5
    index = index_of(layer, "weight")
    assert index[:, :, 0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    assert index_of(layer, "bias").tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_hidden_unit_owns_its_rows_in_all_gates(kind, gates):
    layer = kind(2, 3, num_layers=2, bidirectional=True)
    assert FeatureMap(layer).n_features == 4 * 3
    first = index_of(layer, "weight_ih_l0")
    assert first[:, 0].tolist() == [0, 1, 2] * gates
    assert torch.equal(first[:, 0], index_of(layer, "weight_hh_l0")[:, 0])
    assert torch.equal(first[:, 0], index_of(layer, "bias_ih_l0"))
    assert torch.equal(first[:, 0], index_of(layer, "bias_hh_l0"))
    assert set(index_of(layer, "bias_ih_l1_reverse").tolist()).isdisjoint(first.flatten().tolist())


def test_lstm_projection_and_cells():
    layer = nn.LSTM(2, 4, proj_size=3)
    assert FeatureMap(layer).n_features == 4 + 3
    assert index_of(layer, "weight_hr_l0")[:, 0].tolist() == [4, 5, 6]
    cell = nn.LSTMCell(2, 3)
    assert index_of(cell, "bias_ih").tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4)])
def test_normalisation_by_channel(layer):
    assert FeatureMap(layer).n_features == 4
    assert index_of(layer, "weight").tolist() == index_of(layer, "bias").tolist() == [0, 1, 2, 3]


def test_layer_norm_over_two_dimensions_and_without_parameters():
    assert index_of(nn.LayerNorm((2, 3)), "weight").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert FeatureMap(nn.BatchNorm2d(3, affine=False)).n_features == 0


def test_any_other_parameter_as_a_whole_at_the_middle_rate():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)
            self.temperature = nn.Parameter(torch.ones(4, 2))

    network = Odd()
    features = FeatureMap(network)
    assert features.n_features == 4
    assert features.whole == [3]
    rates = features.draw((1e-4, 1e-2), torch.Generator().manual_seed(0))
    assert rates[3].item() == pytest.approx(1e-3)


def test_shared_modules_and_tied_weights_have_one_set():
    shared = nn.Linear(3, 3)
    assert FeatureMap(nn.Sequential(shared, nn.Tanh(), shared)).n_features == 3
    embedding, decoder = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    decoder.weight = embedding.weight
    network = nn.Sequential(embedding, decoder)
    features = FeatureMap(network)
    assert features.n_features == 4  # the embedding's, which owns the weight first
    assert list(features.index) == [embedding.weight]


def test_skipped_modules_have_no_features():
    network = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
    assert FeatureMap(network, skip=[network[1]]).n_features == 3


def test_draw_is_reproducible_log_uniform_and_inside_the_interval():
    features = FeatureMap(nn.Linear(1, 20_000))
    rates = features.draw((1e-5, 10.0), torch.Generator().manual_seed(3))
    assert torch.equal(rates, features.draw((1e-5, 10.0), torch.Generator().manual_seed(3)))
    assert not torch.equal(rates, features.draw((1e-5, 10.0), torch.Generator().manual_seed(4)))
    assert rates.min() >= 1e-5
    assert rates.max() <= 10.0
    logs = rates.double().log10()  # uniform on (−5, 1): mean −2, standard deviation 6/√12
    assert logs.mean().item() == pytest.approx(-2.0, abs=0.05)
    assert logs.std().item() == pytest.approx(6 / math.sqrt(12), abs=0.05)


def test_head_rates_by_hand():
    assert head_rates(3, (1e-4, 1e-2)).tolist() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert head_rates(1, (1e-4, 1e-2)).tolist() == pytest.approx([1e-3])
    assert head_rates(2, (0.5, 0.5)).tolist() == [0.5, 0.5]
