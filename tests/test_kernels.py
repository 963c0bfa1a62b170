"""What is compiled computes what the operations on tensors do."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alrao_rl.core import Output
from alrao_rl.fast import AlraoOptimizer, activations, convert, kernels
from alrao_rl.fast.addresses import Addresses

ROOT = Path(__file__).parent.parent
compiled = pytest.mark.skipif(kernels.library is None, reason="no compiled library here")


def test_built_where_there_is_a_compiler():
    assert kernels.library is not None or not (shutil.which("cc") or shutil.which("gcc"))


def test_library_of_another_source_is_not_loaded(tmp_path):
    """Its functions might have other arguments: the name of a library tells the version of its source."""
    source = tmp_path / "kernels.c"
    source.write_bytes(kernels.SOURCE.read_bytes())
    assert kernels.library_path(source).name == kernels.library_path().name
    source.write_bytes(kernels.SOURCE.read_bytes() + b"\n")
    assert kernels.library_path(source).name != kernels.library_path().name


def train(kind, bias=True, extra=False, n_in=17, base="rmsprop", limit=0.5, steps=60, scale=None, freeze=False, **more):
    """A trained network: sizes that are no multiple of the kernels' lanes, and larger than them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, n_in), nn.Tanh(), nn.Linear(n_in, n_in), nn.Tanh(), nn.Linear(n_in, 3, bias=bias))
    rule = {"values": "whiteness", "mean": "switch"}.get(kind, "exponentiated-gradient")
    output = Output(kind, rule=rule, extra=torch.zeros(3) if extra else None)
    options = {"seed": 1, "reclone_interval": 25, "head_max_grad_norm": limit, "base": base, "n_heads": 7, **more}
    convert(net, {"4": output}, options)
    optimizer, x, y = AlraoOptimizer(net), torch.randn(16, 5), torch.randint(0, 3, (16,))
    for step in range(steps):
        if scale:
            optimizer.param_groups[0]["lr"] = scale ** (step // 10)
        net[2].requires_grad_(not (freeze and 20 < step < 40))
        optimizer.zero_grad()
        out = net(x)
        loss = F.cross_entropy(out, y) if kind == "categorical" else F.mse_loss(out, F.one_hot(y, 3).float())
        if extra:
            loss = loss + (net[4].averaged_extra().exp() - 2).square().sum()
        loss.backward()
        optimizer.step()
    return net, optimizer


CASES = {
    "values": {"kind": "values"},
    "mean": {"kind": "mean"},
    "categorical": {"kind": "categorical"},
    "without a bias": {"kind": "values", "bias": False},
    "extra parameter": {"kind": "mean", "extra": True},
    "extra parameter without a bias": {"kind": "mean", "extra": True, "bias": False},
    "epsilon outside": {"kind": "values", "base_kwargs": {"eps_inside": False}},
    "bias correction": {"kind": "values", "base_kwargs": {"bias_correction": True}},
    "bias correction, others' segments": {
        "kind": "mean",
        "extra": True,
        "freeze": True,
        "base_kwargs": {"bias_correction": True, "decay": 0.5},
    },
    "no clipping": {"kind": "categorical", "limit": None},
    "one head": {"kind": "values", "n_heads": 1},
    "many heads": {"kind": "categorical", "n_heads": 100, "steps": 10},
    "decaying": {"kind": "values", "scale": 0.5},
    "frozen for a while": {"kind": "values", "freeze": True},
    "wide": {"kind": "values", "n_in": 300, "steps": 30},
    "adam": {"kind": "values", "base": "adam"},
    "another base": {"kind": "values", "base": "sgd"},
}


@compiled
@pytest.mark.parametrize("case", CASES)
def test_trains_as_operations_on_tensors_do(case, monkeypatch):
    options = {"lr_range": (1e-4, 1e-2), **CASES[case]}
    fast, optimizer = train(**options)
    assert (optimizer._addresses is not None) == (case != "another base")
    monkeypatch.setattr(kernels, "library", None)
    slow, reference = train(**options)
    assert reference._addresses is None
    for name, tensor in slow.state_dict().items():
        torch.testing.assert_close(
            fast.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    states = [next(iter(one.state.values())) for one in (optimizer, reference)]
    for name, tensor in states[1].items():
        torch.testing.assert_close(
            states[0][name], tensor, rtol=1e-2, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@compiled
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("cuts", [[1], [15], [16], [17], [1000], [20, 1, 979], [0, 30, 3]], ids=str)
def test_update_by_hand(cuts, correct):
    """θ − η g/√(v̂ + ε) with v = 0.99 v + 0.01 g² and v̂ = v or v/(1 − 0.99^t), t = 4, 11, 18, … by segment."""
    n = sum(cuts)
    g, v, rates, theta = torch.randn(n), torch.rand(n), torch.rand(n), torch.randn(n)
    steps, lengths = 3 + 7 * torch.arange(len(cuts)), torch.tensor(cuts)
    new = 0.99 * v + 0.01 * g * g
    corrected = new / (1 - 0.99 ** (steps + 1).repeat_interleave(lengths)) if correct else new
    taken = 0.5 * rates * g / (corrected + 1e-5).sqrt()
    expected = theta - taken
    for parameters in ([n], [n // 2, n - n // 2]):  # that a segment ends in, or that are in one
        moving, square = theta.clone(), v.clone()
        sizes = torch.tensor(parameters)
        addresses = moving.data_ptr() + 4 * (sizes.cumsum(0) - sizes)
        counted = steps.float()
        moved = kernels.library.rmsprop(
            len(sizes), addresses.data_ptr(), sizes.data_ptr(), g.data_ptr(), rates.data_ptr(), square.data_ptr(),
            lengths.data_ptr(), counted.data_ptr(), 0.99, 1e-5, 1, correct, 0.5,
        )  # fmt: skip
        assert counted.tolist() == (steps + 1).tolist()
        torch.testing.assert_close(square, new)
        torch.testing.assert_close(moving, expected)
        assert moved == pytest.approx(float(taken.sum()), rel=1e-3, abs=1e-3)


@compiled
@pytest.mark.parametrize("cuts", [[1], [17], [1000], [20, 1, 979], [0, 30, 3]], ids=str)
def test_an_update_of_adam_by_hand(cuts):
    """θ − η m̂/(√v̂ + ε) with m = 0.9 m + 0.1 g, v = 0.999 v + 0.001 g², both corrected by the steps of their segment."""
    n = sum(cuts)
    g, m, v, rates, theta = torch.randn(n), torch.randn(n), torch.rand(n), torch.rand(n), torch.randn(n)
    steps, lengths = 3 + 7 * torch.arange(len(cuts)), torch.tensor(cuts)
    new_m, new_v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    t = (steps + 1).repeat_interleave(lengths).double()
    taken = 0.5 * rates * (new_m / (1 - 0.9**t)) / ((new_v / (1 - 0.999**t)).sqrt() + 1e-3)
    expected = (theta - taken).float()
    for parameters in ([n], [n // 2, n - n // 2]):
        moving, mean, square = theta.clone(), m.clone(), v.clone()
        sizes = torch.tensor(parameters)
        addresses = moving.data_ptr() + 4 * (sizes.cumsum(0) - sizes)
        counted = steps.float()
        moved = kernels.library.adam(
            len(sizes), addresses.data_ptr(), sizes.data_ptr(), g.data_ptr(), rates.data_ptr(), mean.data_ptr(),
            square.data_ptr(), lengths.data_ptr(), counted.data_ptr(), 0.9, 0.999, 1e-3, 0.5,
        )  # fmt: skip
        assert counted.tolist() == (steps + 1).tolist()
        torch.testing.assert_close((mean, square), (new_m, new_v))
        torch.testing.assert_close(moving, expected)
        assert moved == pytest.approx(float(taken.sum()), rel=1e-3, abs=1e-3)


@compiled
def test_an_update_is_seen_by_autograd():
    """As an update by tensors is: what was computed before it cannot be differentiated after it."""
    net, optimizer = train("values", steps=2)
    assert optimizer._addresses is not None
    loss = F.mse_loss(net(torch.randn(4, 5)), torch.zeros(4, 3))
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@compiled
@pytest.mark.parametrize("change", ["double", "strided", "size"])
def test_memory_that_does_not_fit_is_left_alone(change):
    """Compiled code believes what it is told of sizes and precision, so it is only told what is so."""
    net, optimizer = train("values", steps=2)
    layout, flat = optimizer._layout, [optimizer._rates]
    assert Addresses.of(layout, flat) is not None
    if change == "double":
        net[0].weight.data = net[0].weight.data.double()
    elif change == "strided":
        net[2].weight.data = net[2].weight.data.t()
    else:
        flat = [torch.zeros(layout.numel - 1)]
    assert Addresses.of(layout, flat) is None


@compiled
@pytest.mark.parametrize("change", ["double", "strided"])
def test_trains_on_after_parameters_have_left_for_other_memory(change):
    net, optimizer = train("values", steps=2)
    x, y = torch.randn(4, 5), torch.zeros(4, 3)
    if change == "double":
        net.double()
        x, y = x.double(), y.double()
    else:
        net[2].weight.data = net[2].weight.data.t()
    before = net[2].weight.detach().clone()
    optimizer.zero_grad()
    F.mse_loss(net(x), y).backward()
    if change == "double":
        optimizer.load_state_dict(optimizer.state_dict())  # as .double() leaves a torch optimizer: its state to be cast
    optimizer.step()
    assert optimizer._addresses is None
    assert not torch.equal(net[2].weight, before)


@pytest.mark.slow
def test_trains_without_the_library():
    """As where it could not be built: an installed package without a compiler."""
    script = (
        "from alrao_rl.fast import kernels; kernels.library = None\n"
        "from stable_baselines3 import A2C; from alrao_rl import AlraoPolicy\n"
        "A2C(AlraoPolicy, 'CartPole-v1', device='cpu').learn(50)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@compiled
@pytest.mark.parametrize("larger", [True, False])
def test_a_parameter_of_another_size_is_refused_as_by_torch(larger):
    net, optimizer = train("values", steps=2)
    n = 500 if larger else 2
    net[0].weight.data = torch.randn(17, n)

    def update():
        optimizer.zero_grad()
        F.mse_loss(net(torch.randn(4, n)), torch.zeros(4, 3)).backward()
        optimizer.step()

    for _ in range(2):
        with pytest.raises(RuntimeError):
            update()
    assert optimizer._addresses is None


@compiled
def test_a_gradient_left_from_a_smaller_parameter_is_not_read_beyond_its_end():
    net, optimizer = train("values", steps=2)
    F.mse_loss(net(torch.randn(4, 5)), torch.zeros(4, 3)).backward()
    layout = optimizer._layout
    memory, flat = Addresses.of(layout, []), torch.zeros(layout.numel)
    assert memory.gather(flat) is not None
    weight, gradient = net[0].weight, net[0].weight.grad
    weight.grad = None
    weight.data = weight.data[:1]
    weight.grad = gradient[:1].clone()
    assert memory.gather(flat) is None


@compiled
@pytest.mark.parametrize("kind", ["mean", "categorical"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_rule_in_another_precision_is_left_to_torch(kind, dtype):
    torch.manual_seed(0)
    net, optimizer = train(kind, steps=3)
    net[4].rule.to(dtype)
    x, y = torch.randn(16, 5), torch.randint(0, 3, (16,))
    for _ in range(5):
        optimizer.zero_grad()
        out = net(x)
        loss = F.cross_entropy(out, y) if kind == "categorical" else F.mse_loss(out, F.one_hot(y, 3).float())
        loss.backward()
        with contextlib.suppress(RuntimeError):  # torch's own of two types, where it cannot do it either
            optimizer.step()
    weights = net[4].averaging_weights.detach()
    assert weights.sum().item() == pytest.approx(1.0, abs=0.05)
    assert weights.isfinite().all()


@compiled
def test_a_library_without_our_functions_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_SIGNATURES", kernels._SIGNATURES | {"another": (None,)})
    assert kernels._load() is None
    monkeypatch.setattr(kernels, "library_path", lambda: tmp_path / "nothing.so")
    assert kernels._load() is None


@compiled
def test_tanh_is_torchs():
    """Value and gradients, also second ones; what is not finite; few numbers and other layouts, which are torch's."""
    ends = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1e-30])
    x = torch.cat([torch.linspace(-12, 12, 6_000), ends]).requires_grad_()
    found = []
    for function in (activations.tanh, torch.tanh):
        y = function(x)
        (first,) = torch.autograd.grad(y[:6_000].sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:6_000].sum(), x)
        found.append((y.detach(), first[:6_000].detach(), second[:6_000]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=5e-7, atol=0, equal_nan=True)
    for mine, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-6)
    assert not torch.equal(found[0][0][:6_000], found[1][0][:6_000])
    assert torch.equal(activations.tanh(x[:10]), torch.tanh(x[:10]))
    columns = torch.randn(80, 90).t()
    assert torch.equal(activations.tanh(columns), torch.tanh(columns))
