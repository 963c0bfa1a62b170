import copy
import math

import pytest
import torch
import torch.nn.functional as F
from reference import ReferenceBase, step
from stable_baselines3 import PPO
from torch import nn

from alrao_rl import AlraoPolicy
from alrao_rl.core import AlraoConfig, AlraoOptimizer, OutputHeads, convert
from alrao_rl.core.rates import FeatureMap

pytestmark = pytest.mark.usefixtures("way")

BASES = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("adam", {}),
    ("adam", {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3}),
    ("rmsprop", {}),
    ("rmsprop", {"eps_inside": False}),
    ("rmsprop", {"bias_correction": True}),
    ("rmsprop", {"bias_correction": True, "eps_inside": False, "decay": 0.9}),
    ("feature-normalized", {}),
]


def network(trunk, n_in=6, n_out=2, **options):
    net = nn.Sequential(*trunk, nn.Linear(n_in, n_out))
    torch.manual_seed(1)
    for layer in net:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    options = {"n_heads": 3, "lr_range": (1e-3, 1e-1), "value_averaging": "uniform", "reclone_interval": 0} | options
    return convert(net, {str(len(net) - 1): "values"}, options)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_one_step_by_hand(base, options):
    """One weight in the trunk, one head of one weight: y = w₂ w₁ x, label 0, loss y²."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.constant_(net[0].weight, 2.0)
    nn.init.constant_(net[1].weight, 3.0)
    options_ = {"n_heads": 1, "lr_range": (0.01, 0.01), "base": base, "base_kwargs": options}
    convert(net, {"1": "values"}, options_ | {"value_averaging": "uniform"})
    optimizer = AlraoOptimizer(net)
    (net(torch.ones(1, 1)) ** 2).sum().backward()
    optimizer.step()
    # ∂(w₁w₂)²/∂w₁ = 2·6·3 = 36, ∂/∂w₂ = 2·6·2 = 24
    expected = []
    for w, g in ((2.0, 36.0), (3.0, 24.0)):
        if base == "sgd":
            u = g  # the first momentum step is the gradient
        elif base == "adam":
            u = g / (g + options.get("eps", 1e-8))  # bias-corrected: m̂ = g, v̂ = g²
        elif base == "feature-normalized":
            u = 1.0
        else:
            v = g * g if options.get("bias_correction") else 0.01 * g * g
            u = g / math.sqrt(v + 1e-8) if options.get("eps_inside", True) else g / (math.sqrt(v) + 1e-8)
        expected.append(w - 0.01 * u)
    assert net[0].weight.item() == pytest.approx(expected[0], rel=1e-6)
    assert net[1].weight.item() == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize(("base", "options"), BASES)
def test_linear_trunk_matches_the_slow_reference_step_by_step(base, options):
    net = network([nn.Linear(4, 6), nn.Tanh()], base=base, base_kwargs=options)
    _compare(net, lambda p, x: torch.tanh(F.linear(x, p[0], p[1])), torch.randn(8, 4), base, options)


@pytest.mark.parametrize(("base", "options"), [BASES[4], BASES[8]])
def test_convolution_matches_the_slow_reference(base, options):
    net = network([nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten()], n_in=12, base=base, base_kwargs=options)
    forward = lambda p, x: torch.tanh(F.conv2d(x, p[0], p[1])).flatten(1)  # noqa: E731
    _compare(net, forward, torch.randn(4, 2, 3, 3), base, options)


def _compare(net, forward, x, base, options, n_steps=5):
    torch.manual_seed(2)
    head = net[-1]
    y = torch.randn(len(x), head.out_features)
    trunk = [p.detach().clone().requires_grad_() for p in net[0].parameters()]
    heads = [[head.weight[j].detach().clone(), head.bias[j].detach().clone()] for j in range(head.n_heads)]
    heads = [[p.requires_grad_() for p in one] for one in heads]
    features = FeatureMap(net, skip=[head])
    indices = [features.index[p].expand(p.shape) for p in net[0].parameters()]
    reference, optimizer = ReferenceBase(base, **options), AlraoOptimizer(net)
    rates = net.alrao_rates.double().tolist()
    for _ in range(n_steps):
        loss = F.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(
            trunk, heads, [1 / len(heads)] * len(heads), indices, rates, head.rates.double().tolist(), reference,
            lambda output: F.mse_loss(output, y), forward, x,
        )  # fmt: skip
        for fast, slow in zip(net[0].parameters(), trunk, strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5)
        for j, (weight, bias) in enumerate(heads):
            torch.testing.assert_close(head.weight[j], weight, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(head.bias[j], bias, rtol=1e-3, atol=1e-5)


class LastOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.lstm(x)[0][-1])


@pytest.mark.parametrize("base", ["sgd", "rmsprop", "feature-normalized"])
def test_lstm_matches_the_slow_reference(base):
    torch.manual_seed(1)
    net = convert(
        LastOutput(), {"out": "values"},
        {"n_heads": 2, "lr_range": (1e-2, 1e-1), "base": base, "value_averaging": "uniform", "reclone_interval": 0},
    )  # fmt: skip
    x, y = torch.randn(5, 6, 3), torch.randn(6, 1)
    plain = nn.LSTM(3, 4)
    plain.load_state_dict(net.lstm.state_dict())
    heads = [[net.out.weight[j].detach().clone().requires_grad_(), net.out.bias[j].detach().clone().requires_grad_()]
             for j in range(2)]  # fmt: skip
    index = torch.arange(4).repeat(4)  # by hand: units in gate after gate
    indices = [index[:, None].expand(16, 3), index[:, None].expand(16, 4), index, index]
    reference, optimizer = ReferenceBase(base), AlraoOptimizer(net)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    for _ in range(4):
        loss = F.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step(
            [getattr(plain, name) for name in names], heads, [0.5, 0.5], indices, net.alrao_rates.double().tolist(),
            net.out.rates.double().tolist(), reference, lambda output: F.mse_loss(output, y),
            lambda p, x: plain(x)[0][-1], x,
        )  # fmt: skip
        for name in names:
            torch.testing.assert_close(getattr(net.lstm, name), getattr(plain, name), rtol=1e-4, atol=1e-6)


def test_lstm_unit_at_rate_zero_freezes_its_rows_in_all_gates():
    net = convert(LastOutput(), {"out": "values"}, {"base": "sgd", "lr_range": (0.1, 1.0)})
    net.alrao_rates[2] = 0.0
    before = {name: p.detach().clone() for name, p in net.lstm.named_parameters()}
    optimizer = AlraoOptimizer(net)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(net(torch.randn(5, 6, 3)), torch.randn(6, 1)).backward()
        optimizer.step()
    frozen = torch.tensor([2, 6, 10, 14])
    for name, p in net.lstm.named_parameters():
        moved = (p != before[name]).reshape(16, -1).any(1)
        assert not moved[frozen].any()
        assert moved.sum() == 12


def test_convolution_is_unfold_and_linear_with_the_same_rates():
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(2, 4, 3), nn.Linear(18, 4)
    linear.weight.data = convolution.weight.data.reshape(4, 18).clone()
    linear.bias.data = convolution.bias.data.clone()

    class Unfolded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = linear, nn.Linear(4 * 9, 1)

        def forward(self, x):
            return self.out(torch.tanh(self.first(F.unfold(x, 3).transpose(1, 2))).transpose(1, 2).flatten(1))

    class Convolved(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = convolution, nn.Linear(4 * 9, 1)

        def forward(self, x):
            return self.out(torch.tanh(self.first(x)).flatten(1))

    a, b = Unfolded(), Convolved()
    b.out.load_state_dict(a.out.state_dict())
    options = AlraoConfig(seed=5, base="feature-normalized")
    a, b = convert(a, {"out": "values"}, options), convert(b, {"out": "values"}, options)
    assert torch.equal(a.alrao_rates, b.alrao_rates)
    x, y = torch.randn(3, 2, 5, 5), torch.randn(3, 1)
    for net in (a, b):
        optimizer = AlraoOptimizer(net)
        for _ in range(5):
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()
    torch.testing.assert_close(a.first.weight.reshape_as(b.first.weight), b.first.weight, rtol=1e-4, atol=1e-6)


def test_learning_rate_acts_only_by_its_ratio_to_the_first_that_is_not_zero():
    def run(rates):
        net = network([nn.Linear(4, 6), nn.Tanh()], base="sgd")
        torch.manual_seed(3)
        x, y = torch.randn(8, 4), torch.randn(8, 2)
        optimizer = AlraoOptimizer(net, lr=0.0)
        for lr in rates:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(net.parameters())

    constant = run([1e-3, 1e-3, 1e-3])
    assert torch.equal(constant, run([7.0, 7.0, 7.0]))
    assert torch.equal(constant, run([0.0, 0.0, 0.0]))  # a schedule of 0, as policy.load makes it, is a ratio of 1
    assert torch.equal(run([0.0, 5.0, 2.5]), run([1.0, 1.0, 0.5]))
    assert torch.equal(run([4.0, 0.0, 0.0]), run([4.0]))  # a rate that has decayed to 0 stops learning


def test_a_look_before_the_first_update_leaves_the_state_as_it_is():
    """A run that is killed before it learns has been evaluated already."""
    net = network([nn.Linear(4, 6), nn.Tanh()])
    optimizer = AlraoOptimizer(net)
    assert optimizer.reclones(next(m for m in net.modules() if isinstance(m, OutputHeads))).sum() == 0
    assert optimizer.state_dict()["state"] == {}
    AlraoOptimizer(network([nn.Linear(4, 6), nn.Tanh()])).load_state_dict(optimizer.state_dict())


def test_state_is_tensors_and_primitives_and_resumes_exactly():
    def data(seed):
        torch.manual_seed(seed)
        return torch.randn(8, 4), torch.randn(8, 2)

    def train(net, optimizer, seeds):
        for seed in seeds:
            x, y = data(seed)
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()

    net = network([nn.Linear(4, 6), nn.Tanh()], value_averaging="whiteness", base="adam", reclone_interval=7)
    optimizer = AlraoOptimizer(net)
    train(net, optimizer, range(10))
    torch.manual_seed(99)
    other = network([nn.Linear(4, 6), nn.Tanh()], value_averaging="whiteness", base="adam", reclone_interval=7, seed=8)
    import io

    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    state, optimizer_state = torch.load(file, weights_only=True)
    other_optimizer = AlraoOptimizer(other)
    other.load_state_dict(state)
    other_optimizer.load_state_dict(optimizer_state)
    train(net, optimizer, range(10, 30))
    train(other, other_optimizer, range(10, 30))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("change", ["deepcopy", "load_from_vector", "to", "load_state_dict"])
def test_trains_on_after_parameters_are_copied_or_replaced(change):
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    net = network([nn.Linear(4, 6), nn.Tanh()], base="rmsprop")
    if change == "deepcopy":
        F.mse_loss(net(x), y).backward()  # hooks are there before the copy
        net = copy.deepcopy(net)
    elif change == "load_from_vector":
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()).detach(), net.parameters())
    elif change == "to":
        net = net.to("cpu", torch.float32)
    else:
        net.load_state_dict(net.state_dict())
    optimizer = AlraoOptimizer(net)
    optimizer.zero_grad()
    first = F.mse_loss(net(x), y).item()
    for _ in range(50):
        loss = F.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in net[-1].parameters())
        optimizer.step()
    assert loss.item() < 0.9 * first


def test_what_gets_no_gradient_does_not_move_and_keeps_its_state():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.out_a, self.out_b = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x, which):
            return self.out_a(torch.tanh(self.a(x))) if which == "a" else self.out_b(torch.tanh(self.b(x)))

    net = convert(Two(), {"out_a": "values", "out_b": "values"}, {"base": "adam", "n_heads": 2})
    optimizer = AlraoOptimizer(net)

    def update(which):
        optimizer.zero_grad()
        (net(torch.ones(3, 2), which) ** 2).mean().backward()
        optimizer.step()

    update("a")
    update("b")
    still = {name: p.detach().clone() for name, p in net.named_parameters() if ".weight" in name and "b" in name}
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].clone()
    update("a")
    for name, p in net.named_parameters():
        if name in still:
            assert torch.equal(p, still[name]), name
    moved = optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"] != state
    assert 0 < moved.sum() < len(moved)


def test_every_head_is_clipped_by_itself():
    net = network([nn.Linear(4, 6), nn.Tanh()], base="sgd", lr_range=(1.0, 1.0), head_max_grad_norm=20.0)
    head = net[-1]
    with torch.no_grad():
        head.bias[2] += 1000.0
    before = head.weight.detach().clone(), head.bias.detach().clone()
    optimizer = AlraoOptimizer(net)
    F.mse_loss(net(torch.randn(8, 4)), torch.zeros(8, 2)).backward()
    gradient = head.evidence.gradient
    optimizer.step()
    moved = torch.cat([(before[0] - head.weight).flatten(1), (before[1] - head.bias).flatten(1)], 1).norm(dim=1)
    expected = gradient.norm(dim=1).clamp(max=20.0)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)
    assert expected[0] < 20.0 < gradient.norm(dim=1)[2]


def test_refuses_a_network_that_was_not_converted():
    with pytest.raises(ValueError, match="not an Alrao network"):
        AlraoOptimizer(nn.Linear(2, 2))


def output_after_training(net, x, y):
    optimizer = AlraoOptimizer(net)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return net(x)


def test_permuting_hidden_units_with_their_rates_leaves_the_outputs():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    outputs = []
    for permuted in (False, True):
        net = network([nn.Linear(4, 6), nn.Tanh()], value_averaging="whiteness", seed=3)
        if permuted:
            with torch.no_grad():
                net[0].weight.copy_(net[0].weight[order])
                net[0].bias.copy_(net[0].bias[order])
                net[-1].weight.copy_(net[-1].weight[:, :, order])
                net.alrao_rates.copy_(net.alrao_rates[order])
        outputs.append(output_after_training(net, x, y))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["uniform", "bayes", "switch", "exponentiated-gradient"])
def test_permuting_heads_with_their_rates_leaves_the_outputs(rule):
    order = torch.tensor([2, 0, 1])
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    outputs = []
    for permuted in (False, True):
        net = network([nn.Linear(4, 6), nn.Tanh()], value_averaging=rule, seed=3)
        if permuted:
            with torch.no_grad():
                for tensor in (net[-1].weight, net[-1].bias, net[-1].rates):
                    tensor.copy_(tensor[order].clone())
        outputs.append(output_after_training(net, x, y))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["uniform", "bayes", "switch", "exponentiated-gradient", "whiteness"])
def test_identical_heads_at_one_rate_stay_uniform_and_equal_one_output(rule):
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    outputs = []
    for n_heads in (1, 4):
        net = network([nn.Linear(4, 6), nn.Tanh()], n_heads=n_heads, lr_range=(0.01, 0.01), value_averaging=rule)
        head: OutputHeads = net[-1]
        with torch.no_grad():
            for p in (head.weight, head.bias):
                p.copy_(p[:1].expand_as(p).clone())
        outputs.append(output_after_training(net, x, y))
        torch.testing.assert_close(head.averaging_weights.data, torch.full((n_heads,), 1 / n_heads))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-6)


def test_a_loaded_state_brings_its_rates():
    """Also into a network that has trained already."""
    nets = [
        convert(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), {"2": "values"}, {"seed": s})
        for s in (1, 2)
    ]
    optimizers = [AlraoOptimizer(net) for net in nets]
    x = torch.randn(5, 3)

    def update(k):
        optimizers[k].zero_grad()
        nets[k](x).square().mean().backward()
        optimizers[k].step()

    update(0), update(1)
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    update(0), update(1)
    for mine, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("base", ["rmsprop", "adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_is_a_copy(base, dtype):
    """Three optimizers go on from one state: from itself, from the same tensors, and from a deep copy of them."""

    def made():
        net = network([nn.Linear(4, 6), nn.Tanh()], base=base).to(dtype)
        return net, AlraoOptimizer(net)

    def train(net, optimizer, seeds):
        for seed in seeds:
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()

    (first, its), (second, others), (third, copied) = made(), made(), made()
    train(first, its, range(300))  # more than bfloat16 can count
    given = its.state_dict()
    dtypes = [values.dtype for values in given["state"][0].values()]
    for net, optimizer, state in ((second, others, given), (third, copied, copy.deepcopy(given))):
        net.load_state_dict(first.state_dict())
        optimizer.load_state_dict(state)
    train(second, others, range(400, 405))
    train(first, its, range(500, 505))
    train(third, copied, range(500, 505))
    for mine, other in zip(first.parameters(), third.parameters(), strict=True):
        assert torch.equal(mine, other)
    for optimizer in (its, others, copied):
        [state] = optimizer.state_dict()["state"].values()
        assert state["steps"].tolist() == [305.0] * len(state["steps"])
        assert [values.dtype for values in state.values()] == dtypes
    its.load_state_dict(its.state_dict())
    assert its.state_dict()["state"][0]["steps"][0] == 305


def test_models_go_on_independently_after_set_parameters():
    models = [PPO(AlraoPolicy, "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0) for _ in range(3)]
    models[0].learn(64)
    models[1].set_parameters(models[0].get_parameters())
    models[2].set_parameters(copy.deepcopy(models[0].get_parameters()))
    for model, seed in zip(models, (1, 2, 1), strict=True):
        model.set_random_seed(seed)
        model.learn(128)
    for name, tensor in models[0].policy.state_dict().items():
        assert torch.equal(tensor, models[2].policy.state_dict()[name]), name


def test_hooks_of_step_are_called_though_torch_does_not_wrap_it():
    net = network([nn.Linear(4, 6), nn.Tanh()])
    optimizer, seen = AlraoOptimizer(net), []
    before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    F.mse_loss(net(torch.randn(3, 4)), torch.zeros(3, 2)).backward()
    optimizer.step()
    assert seen == ["before", "after"]
    before.remove()
    after.remove()
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=1)
    with torch.profiler.profile() as profile:
        optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)
    assert any("Optimizer.step#AlraoOptimizer.step" in event.key for event in profile.key_averages())
    assert seen == ["before", "after"]


def ramp(start, end, lr):
    """The ratios that a warm-up of ten steps asks for."""
    optimizer = AlraoOptimizer(network([nn.Linear(4, 6), nn.Tanh()]), lr=lr)
    if end == 1:
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start, total_iters=10)
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: start + (end - start) * min(k, 10) / 10)
    scales = []
    for _ in range(12):
        optimizer.step()
        scales.append(optimizer._scale())
        scheduler.step()
    return scales


@pytest.mark.parametrize("lr", [1.0, 1e-3, 3e-4, 7e-4])
def test_a_ramp_up_to_the_first_learning_rate_is_no_rise(lr):
    """Torch's own ends beside it by rounding."""
    assert ramp(0.1, 1, lr) == pytest.approx([0.1 + 0.09 * min(k, 10) for k in range(12)])


def test_what_helps_a_learning_rate_that_rises():
    with pytest.warns(UserWarning, match=r"rose to 1\.1 times its .* takes AlraoOptimizer\(network, lr=0\.0011\)"):
        ramp(0.1, 1.1, 1e-3)
    with pytest.warns(
        UserWarning, match=r"0\.01 times that .* a warm-up may rise from there, but if it is to fall from"
    ):
        ramp(0.01, 1, 1e-3)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")]
)
def test_state_is_in_the_precision_of_the_rates_and_float32_at_least(dtype, expected):
    """A running mean of squares in bfloat16 would not decay: 0.999 rounds to 1."""
    net = network([nn.Linear(4, 6), nn.Tanh()], base="adam").to(getattr(torch, dtype))
    optimizer = AlraoOptimizer(net)
    net(torch.randn(8, 4, dtype=getattr(torch, dtype))).square().mean().backward()
    optimizer.step()
    [state] = optimizer.state_dict()["state"].values()
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {getattr(torch, expected)}
    assert {state[name].dtype for name in ("steps", "reclones", "lost")} == {torch.float32}
