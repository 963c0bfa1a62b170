import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alrao_rl.core import AlraoConfig, AlraoOptimizer, Output, OutputHeads, convert

pytestmark = pytest.mark.usefixtures("way")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def test_same_seed_same_rates_and_heads():
    a, b, c = (convert(network(), {"2": "values"}, {"seed": seed}) for seed in (1, 1, 2))
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name])
    assert not torch.equal(a.alrao_rates, c.alrao_rates)
    assert not torch.equal(a[2].weight[1], c[2].weight[1])


def test_seed_comes_from_the_global_generator_without_advancing_it():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = convert(network_unseeded(before), {"2": "values"})
    assert torch.equal(torch.get_rng_state(), before)
    again = convert(network_unseeded(before), {"2": "values"})
    assert torch.equal(first.alrao_rates, again.alrao_rates)
    torch.manual_seed(4)
    other = convert(network_unseeded(torch.get_rng_state()), {"2": "values"})
    assert not torch.equal(first.alrao_rates, other.alrao_rates)


def network_unseeded(state):
    net = network()
    torch.set_rng_state(state)
    return net


def test_rates_are_saved_with_the_network():
    a, b = convert(network(), {"2": "values"}, {"seed": 1}), convert(network(), {"2": "values"}, {"seed": 2})
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.alrao_rates, b.alrao_rates)
    assert torch.equal(a[2].rates, b[2].rates)
    assert "2.averaging_weights" in dict(a.named_parameters())  # target networks copy parameters


def test_a_shared_output_layer_is_replaced_everywhere():
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), shared), "b": nn.Sequential(nn.Tanh(), shared)})
    convert(net, {"a.1": "values"})
    assert isinstance(net["a"][1], OutputHeads)
    assert net["a"][1] is net["b"][1]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"7": "values"}, "does not exist, expected a Linear layer: one of 0, 2"),
        ({"1": "values"}, "is a Tanh"),
        ({"2": "vlaues"}, "kind is 'vlaues'"),
        ({}, "outputs is {}, expected a dict"),
        (["2"], "outputs is .'2'., expected a dict"),
        ({"2": {"kind": "values"}}, "expected an Output or one of values"),
        ({"2": None}, "output layer '2' is None"),
        ({"": "values"}, "output layer '' is a Sequential"),
        ({"2": "catgorical"}, "did you mean 'categorical'"),
        ({"2": Output("categorical", splits=[1, 1])}, r"splits are \[1, 1\], expected sizes that add up to 3"),
    ],
)
def test_bad_outputs(outputs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        convert(network(), outputs)


def test_a_network_without_a_linear_layer_or_that_is_one():
    with pytest.raises(ValueError, match=r"is a Conv2d, expected a Linear layer: the network has none$"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1)), {"0": "values"})
    with pytest.raises(ValueError, match=r"the whole network, expected a Linear layer: put it in a Sequential$"):
        convert(nn.Linear(2, 2), {"": "values"})


def test_a_refused_network_is_left_as_it_was():
    net = network()
    with pytest.raises(ValueError, match="splits are"):
        convert(net, {"0": "values", "2": Output("categorical", splits=[7])})
    convert(net, {"2": "values"})
    assert isinstance(net[0], nn.Linear)


def test_tied_output_weights_are_refused():
    net = network()
    net.append(nn.Linear(*reversed(net[2].weight.shape)))
    net[3].weight = net[2].weight
    with pytest.raises(ValueError, match="'2' shares its weight"):
        convert(net, {"2": "values"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": 3}, "splits is 3, expected a list"),
        ({"splits": [1.5, 1.5]}, "expected a list of positive whole numbers"),
        ({"splits": [0, 3]}, "positive whole"),
        ({"init": 3}, "init is 3"),
        ({"extra": 3.0}, "extra is 3.0, expected a tensor"),
    ],
)
def test_bad_output_specifications(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Output("categorical", **options)


@pytest.mark.parametrize("rule", [3, {}, ["switch"]])
def test_bad_rules_of_outputs(rule):
    with pytest.raises(TypeError, match="expected the name of a rule"):
        convert(network(), {"2": Output("values", rule=rule)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_train_and_reclone(dtype):
    net = convert(network().to(dtype), {"2": "values"}, {"reclone_interval": 2})
    optimizer = AlraoOptimizer(net)
    for _ in range(5):
        optimizer.zero_grad()
        F.mse_loss(net(torch.randn(8, net[0].in_features, dtype=dtype)), torch.zeros(8, 3, dtype=dtype)).backward()
        optimizer.step()
    assert all(p.dtype == dtype and p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), "x", None, -1])
def test_bad_lr_of_the_optimizer(lr):
    with pytest.raises(ValueError, match="lr is"):
        AlraoOptimizer(convert(network(), {"2": "values"}), lr=lr)


def test_numbers_of_numpy_are_numbers():
    options = {"n_heads": np.int64(3), "lr_range": (np.float32(1e-3), np.float64(0.5)), "seed": np.int32(7)}
    config = AlraoConfig(**options, head_max_grad_norm=np.float32(0.5), base_kwargs={"decay": np.float32(0.5)})
    assert (config.n_heads, type(config.n_heads), type(config.seed)) == (3, int, int)
    assert (config.head_max_grad_norm, config.lr_range[1]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("learns", "base", "rule"),
    [
        ("rollouts", "rmsprop", "switch"),
        ("q-values", "rmsprop", "whiteness"),
        ("critics", "adam", "switch"),
        ("online critics", "rmsprop", "switch"),
    ],
)
def test_base_and_rule_of_values_follow_what_is_learned_unless_they_are_given(learns, base, rule):
    config = AlraoConfig().resolve(learns)
    assert (config.base, config.value_averaging) == (base, rule)
    given = AlraoConfig(base="sgd", value_averaging="uniform").resolve(learns)
    assert (given.base, given.value_averaging) == ("sgd", "uniform")


def test_options_of_a_base_that_is_not_decided_yet():
    config = AlraoConfig(base_kwargs={"beta1": 0.5})
    assert config.resolve("critics").make_base().beta1 == 0.5
    with pytest.raises(ValueError, match="beta1"):
        config.resolve("rollouts")


@pytest.mark.parametrize("network", ["net", nn.Linear, lambda x: x])
def test_only_a_module_can_be_converted(network):
    with pytest.raises(TypeError, match=r"^network is .*, expected an nn\.Module$"):
        convert(network, {"0": "values"})


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="'rmsprop' divides by squares, 0 in float16: expected float32"):
        AlraoOptimizer(convert(network().half(), {"2": "values"}))
    late = convert(network(), {"2": "values"})
    optimizer = AlraoOptimizer(late)
    late.half()(torch.ones(2, 4).half()).sum().backward()
    with pytest.raises(ValueError, match="0 in float16"):
        optimizer.step()


def test_converting_twice_is_refused():
    net = convert(network(), {"2": "values"})
    with pytest.raises(ValueError, match="already"):
        convert(net, {"0": "values"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 0}, "n_heads is 0"),
        ({"n_heads": 2.5}, "n_heads is 2.5"),
        ({"lr_range": (1.0, 0.1)}, r"did you mean \(0.1, 1.0\)"),
        ({"lr_range": (0.0, 0.1)}, "lr_range"),
        ({"lr_range": (-1.0, 0.1)}, "lr_range"),
        ({"lr_range": (float("nan"), 0.1)}, "lr_range"),
        ({"lr_range": 0.1}, "lr_range is 0.1"),
        ({"lr_range": (1e-60, 1e300)}, "from 1e-30 to 1e30"),
        ({"head_max_grad_norm": 10**400}, "head_max_grad_norm is 1000"),
        ({"seed": 2**64}, f"alrao.seed is {2**64}, expected a whole number of at least 0 and at most"),
        ({"value_averaging": {"rule": "switch", "theta": 3}}, "alrao.value_averaging 'switch': theta is 3"),
        ({"base_kwargs": {"decay": 3}}, "alrao.base_kwargs of 'rmsprop': decay is 3"),
        ({"base": "rmsporp"}, "did you mean 'rmsprop'"),
        ({"base_kwargs": {"momentum": 0.9}}, "momentum"),
        ({"base": "sgd", "base_kwargs": {"momentum": 1.5}}, "momentum is 1.5"),
        ({"base_kwargs": {"eps_inside": 1}}, "eps_inside is 1"),
        ({"value_averaging": "whitness"}, "did you mean 'whiteness'"),
        ({"value_averaging": {"rule": "whiteness", "widnow": 3}}, "did you mean 'window'"),
        ({"value_averaging": 3}, "value_averaging is 3"),
        ({"policy_averaging": "switch"}, "needs labels.*'whiteness'"),
        ({"head_max_grad_norm": -1.0}, "head_max_grad_norm is -1.0"),
        ({"reclone_interval": -1}, "reclone_interval is -1"),
        ({"nheads": 3}, "did you mean 'n_heads'"),
    ],
)
def test_bad_options_are_one_line_that_names_value_and_choice(options, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        convert(network(), {"2": "values"}, options)
    assert "\n" not in str(error.value)


def test_default_interval_belongs_to_the_base():
    assert AlraoConfig().interval == (1e-6, 1e-1)
    assert AlraoConfig(base="sgd").interval == (1e-5, 10.0)
    assert AlraoConfig(base="sgd", lr_range=[1e-3, 1.0]).interval == (1e-3, 1.0)


@pytest.mark.slow
def test_supervised_classifier_as_published():
    """SGD on (1e-5, 10) with switch: learns without a learning rate."""
    torch.manual_seed(0)
    x = torch.randn(400, 4)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long()
    net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))
    net = convert(net, {"2": Output("categorical", rule="switch")}, {"base": "sgd", "lr_range": (1e-5, 10.0)})
    optimizer = AlraoOptimizer(net)
    for _ in range(60):
        for batch in torch.randperm(400).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net(x).argmax(1) == y).float().mean().item()
        assert net(x).exp().sum(1).allclose(torch.ones(400), atol=1e-4)  # log-probabilities of the mixture
    assert accuracy > 0.85
    assert net[2].averaging_weights[-1] < 0.05  # SGD at 10 diverges


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_regression_survives_rates_at_which_a_linear_output_diverges(scale):
    torch.manual_seed(0)
    x = torch.randn(512, 4)
    y = scale * torch.sin(x.sum(1, keepdim=True))
    net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    net = convert(net, {"2": "values"}, {"base": "sgd", "lr_range": (1e-5, 10.0), "seed": 0})
    optimizer = AlraoOptimizer(net)
    for step in range(1_500):
        batch = torch.arange(16 * step, 16 * step + 16) % 512
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x[batch]), y[batch]).backward()
        optimizer.step()
    assert optimizer.reclones(net[2], "lost").sum() > 0  # some heads do
    with torch.no_grad():
        assert nn.functional.mse_loss(net(x), y) < 0.5 * y.var()


def test_closure_as_other_optimizers_take_it():
    net = convert(network(), {"2": "values"})
    optimizer, x = AlraoOptimizer(net), torch.randn(5, 4)

    def closure():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(20):
        last = optimizer.step(closure)
    assert last.item() < first.item()


def test_an_unknown_rule_names_the_choices():
    with pytest.raises(ValueError, match="rule is 'swich', expected one of switch"):
        convert(network(), {"2": Output("values", rule="swich")})


def test_options_that_are_no_dict_are_refused():
    with pytest.raises(TypeError, match="alrao is 5, expected a dict"):
        convert(network(), {"2": "values"}, 5)


def test_the_ratio_counts_from_the_rate_the_optimizer_was_made_with():
    """A schedule has decayed by the time of the first update: it is not the first value."""
    nets = []
    for lr, now in ((1.0, 0.5), (4.0, 2.0), (1.0, 1.0)):
        net = convert(network(), {"2": "values"}, {"seed": 1, "base": "sgd"})
        optimizer = AlraoOptimizer(net, lr=lr)
        optimizer.param_groups[0]["lr"] = now
        torch.manual_seed(2)
        net(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
        nets.append(net[0].weight.detach())
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


DATA = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
LABELS = 2 * DATA[:, :1]


def perceptron(n_outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, n_outputs))


def trained(loss, steps=30, **output):
    """The averaging weights, and all parameters, of a network that was trained on a loss of it."""
    network = convert(
        perceptron(3 if output.get("kind") == "categorical" else 1), {"2": Output(rule="switch", **output)}
    )
    optimizer = AlraoOptimizer(network)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("function", [F.mse_loss, F.smooth_l1_loss])
def test_what_a_mask_leaves_out_of_a_loss_is_no_evidence(function, way):
    """Nothing of it reaches the weights either: padding would decide, with whatever it holds for a label."""
    padded, mask = LABELS.clone(), torch.ones(32, 1)
    padded[16:], mask[16:] = 1e3, 0
    real = trained(lambda network: function(network(DATA[:16]), LABELS[:16]))
    masked = trained(lambda network: (function(network(DATA), padded, reduction="none") * mask).sum() / mask.sum())
    chosen = trained(lambda network: function(network(DATA), padded, reduction="none")[mask > 0].mean())
    rounding = 1e-3 if way == "plain" else 1e-4  # its sums over the batch are in another order
    assert torch.allclose(masked, real, atol=rounding)
    assert torch.allclose(chosen, real, atol=rounding)


def test_a_mask_over_likelihoods():
    classes, mask = torch.arange(32) % 3, (torch.arange(32) < 16).float()
    real = trained(lambda network: F.cross_entropy(network(DATA[:16]), classes[:16]), kind="categorical")

    def loss(network):
        return (F.cross_entropy(network(DATA), classes * mask.long(), reduction="none") * mask).sum() / mask.sum()

    assert torch.allclose(trained(loss, kind="categorical"), real, atol=1e-4)


def test_weights_of_examples_weigh_the_evidence():
    network = convert(perceptron(), {"2": Output(rule="switch")})
    weights = torch.rand(32, 1)
    out = network(DATA)
    (F.mse_loss(out, LABELS, reduction="none") * weights).mean().backward()
    expected = ((out.branches.detach() - LABELS).square() * weights).sum((1, 2)) / weights.sum()
    assert torch.allclose(network[2].evidence.residual, expected)
    AlraoOptimizer(network).zero_grad()
    (F.mse_loss(network(DATA), LABELS, reduction="none") * 0).mean().backward()
    assert network[2].evidence.residual is None


@pytest.mark.parametrize("base", ["sgd", "adam", "rmsprop", "feature-normalized"])
def test_parameters_that_are_unfrozen_train(base):
    network = perceptron()
    network[0].requires_grad_(False)
    convert(network, {"2": "values"}, {"base": base})
    optimizer = AlraoOptimizer(network)

    def update():
        optimizer.zero_grad()
        F.mse_loss(network(DATA), LABELS).backward()
        before = [parameter.detach().clone() for parameter in (network[0].weight, network[2].theta)]
        optimizer.step()
        pairs = zip((network[0].weight, network[2].theta), before, strict=True)
        return [bool((now != then).any()) for now, then in pairs]

    assert update() == update() == [False, True]
    network[0].requires_grad_(True)
    assert update() == update() == [True, True]
    optimizer.load_state_dict(optimizer.state_dict())
    assert update() == [True, True]
    other = AlraoOptimizer(network)
    other.load_state_dict(optimizer.state_dict())
    assert (other.reclones(network[2]) == optimizer.reclones(network[2])).all()


def frozen(layer):
    layer.bias.requires_grad_(False)


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:Complex modules")
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (frozen, "output layer '2' is frozen"),
        (hooked, "output layer '2' has hooks"),
        (torch.nn.utils.weight_norm, "a weight computed from others"),
        (lambda layer: layer.to(torch.complex64), "output layer '2' is complex"),
    ],
)
def test_output_layers_whose_copies_would_be_others_are_refused(prepare, message):
    network = perceptron()
    prepare(network[2])
    with pytest.raises(ValueError, match=message):
        convert(network, {"2": "values"})


def test_a_network_that_is_one_layer():
    with pytest.raises(
        ValueError, match=r"output layer '' is a Linear, the whole network, expected .* in a Sequential"
    ):
        convert(nn.Linear(4, 2), {"": "values"})


def test_a_gradient_scaler_is_refused():
    network = convert(perceptron(), {"2": "values"})
    optimizer, scaler = AlraoOptimizer(network), torch.amp.GradScaler("cpu")
    scaler.scale(F.mse_loss(network(DATA), LABELS)).backward()
    with pytest.raises(RuntimeError, match="takes no GradScaler"):
        scaler.step(optimizer)


def test_annealing_from_a_rate_of_its_own_warns():
    """As in scripts that write their rate into the optimizer at every update, also at the first."""
    network = convert(perceptron(), {"2": "values"})
    optimizer = AlraoOptimizer(network)
    optimizer.param_groups[0]["lr"] = 2.5e-4
    F.mse_loss(network(DATA), LABELS).backward()
    with pytest.warns(UserWarning, match=r"make that AlraoOptimizer\(network, lr=0.00025\)"):
        optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "base"),
    [(dtype, base) for dtype in (torch.float64, torch.bfloat16) for base in ("rmsprop", "adam", "sgd")]
    + [(torch.float16, "sgd")],
)
def test_losses_in_another_precision_than_the_network(dtype, base):
    network = convert(perceptron().to(dtype), {"2": "values"}, {"base": base})
    optimizer, before = AlraoOptimizer(network), network[0].weight.detach().clone()
    for label in (LABELS, LABELS.double()):
        optimizer.zero_grad()
        F.mse_loss(network(DATA.to(dtype)).float(), label).backward()
        optimizer.step()
    assert (network[0].weight != before).any()
    assert network[2].averaging_weights.float().sum().item() == pytest.approx(1, abs=0.01)


def test_sparse_gradients():
    network = convert(nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Tanh(), nn.Linear(4, 1)), {"2": "values"})
    optimizer, before = AlraoOptimizer(network), network[0].weight.detach().clone()
    F.mse_loss(network(torch.arange(5)), torch.ones(5, 1)).backward()
    optimizer.step()
    assert (network[0].weight != before).any(1).tolist() == [True] * 5 + [False] * 5


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, where it breaks a graph
def test_a_compiled_network_trains_as_one_that_is_not():
    networks = [convert(perceptron(), {"2": "values"}, {"seed": 0}) for _ in range(2)]
    optimizers = [AlraoOptimizer(network) for network in networks]
    called = [networks[0], torch.compile(networks[1], backend="eager")]
    for _ in range(3):
        for function, optimizer in zip(called, optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(function(DATA), LABELS).backward()
            optimizer.step()
    for mine, other in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(mine, other)
