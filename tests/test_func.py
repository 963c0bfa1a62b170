"""To torch.func, functional_call and traces a network is a plain function, the average; and it stays whole."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from alrao_rl import AlraoOptimizer, Output, averaged, convert
from alrao_rl.fast.branches import Kernel

pytestmark = pytest.mark.usefixtures("backend")
KINDS = [Output("values"), Output("mean"), Output("categorical"), Output("categorical", splits=[1, 2])]
KINDS += [Output("bernoulli"), Output("mean", extra=torch.zeros(3))]
kinds = pytest.mark.parametrize("output", KINDS, ids=lambda output: f"{output.kind}-{output.splits}-{output.extra}")


def network(output, called, seed=0):
    torch.manual_seed(seed)
    net = convert(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), {"2": output}, {"n_heads": 4, "seed": 1})
    with torch.no_grad():
        net[2].averaging_weights.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        net[2].theta.normal_()
    if called:
        net(torch.randn(2, 4))
    return net


def loop(net, x):
    """Outputs ``[B, O]`` and their derivatives ``[B, O, I]``, a backward pass of the plain network for each."""
    plain, rows = averaged(net), []
    for one in x:
        one = one.clone().requires_grad_()
        rows.append(torch.stack([torch.autograd.grad(plain(one[None])[0, i], one)[0] for i in range(3)]))
    return plain(x), torch.stack(rows)


@kinds
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_transforms_are_right(output, called, broken):
    net, x = network(output, called), torch.randn(5, 4)
    if broken:
        nn.init.constant_(net[2].weight[1], float("nan"))
    outputs, jacobian = loop(net, x)
    ones = torch.ones_like(x)
    found = {
        "vmap": (vmap(net)(x), outputs),
        "jacrev": (jacrev(net)(x[0]), jacobian[0]),
        "vmap of jacrev": (vmap(jacrev(net))(x), jacobian),
        "jacfwd": (jacfwd(net)(x[0]), jacobian[0]),
        "grad": (grad(lambda x: net(x).sum())(x[0]), jacobian[0].sum(0)),
        "jvp": (jvp(net, (x,), (ones,))[1], jacobian.sum(-1)),
        "vjp": (vjp(net, x)[1](torch.ones(5, 3))[0], jacobian.sum(1)),
        "hessian": (
            hessian(lambda x: net(x).square().sum())(x[0]),
            torch.autograd.functional.hessian(lambda x: averaged(net)(x[None]).square().sum(), x[0]),
        ),
    }
    with torch.no_grad():
        found["vmap under no_grad"] = vmap(net)(x), outputs
    for name, (value, expected) in found.items():
        assert type(value) is torch.Tensor, name
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    if not broken:
        learns(net, x)


def learns(net, x):
    """What was called as a function is the network it was, and left nothing to learn from."""
    assert net[2].evidence.gradient is None
    before, optimizer = net[2].theta.detach().clone(), AlraoOptimizer(net)
    net(x).square().mean().backward()
    gradient = net[2].evidence.gradient
    assert (gradient.abs().sum(1) > 0).all()
    optimizer.step()
    assert (net[2].theta != before).any(1).all()


@kinds
def test_functional_call_is_right(output):
    """Of own parameters, of others, of several networks, and the gradient of each datum."""
    nets, x = [network(output, False, seed) for seed in range(3)], torch.randn(5, 4)
    expected = torch.stack([averaged(net)(x) for net in nets])
    net = nets[0]
    torch.testing.assert_close(functional_call(net, dict(net.named_parameters()), (x,)).detach().average, expected[0])
    other = {name: value.detach().clone() for name, value in nets[1].named_parameters()}
    torch.testing.assert_close(functional_call(net, other, (x,)), expected[1])
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(net).to("meta")
    together = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(together, expected)

    def loss(parameters, x):
        return functional_call(net, parameters, (x,)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(other, x)
    for k, one in enumerate(x):
        nets[1].zero_grad()
        nets[1](one[None]).square().sum().backward()
        for name in ("0.weight", "0.bias"):
            torch.testing.assert_close(each[name][k], nets[1].get_parameter(name).grad, rtol=1e-4, atol=1e-5)
    learns(net, x)


@kinds
@pytest.mark.parametrize("name", ["2.theta", "2.averaging_weights"])
def test_derivatives_by_the_heads_are_those_of_the_function(output, name):
    net, x = network(output, False).double(), torch.randn(5, 4).double()
    parameters = {key: value.detach() for key, value in net.named_parameters()}

    def loss(value):
        return functional_call(net, parameters | {name: value}, (x,)).square().sum()

    value, step = parameters[name], 1e-6 * torch.randn_like(parameters[name])
    difference = (loss(value + step) - loss(value - step)) / 2
    assert (grad(loss)(value) * step).sum().item() == pytest.approx(difference.item(), rel=1e-5)


@kinds
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("called", [False, True])
def test_a_trace_computes_what_the_network_computes(output, gradients, called):
    """Of other batches too, and with the parameters of later."""
    net, x = network(output, called), torch.randn(5, 4)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(net, x)
    with torch.no_grad():
        net[2].theta.add_(0.1)
    for batch in (x, torch.randn(7, 4)):
        torch.testing.assert_close(traced(batch), averaged(net)(batch))
    net = network(output, called)
    learns(net, x)


def test_an_exception_in_the_middle_of_a_first_call_breaks_nothing(monkeypatch):
    """As where there is no memory left; what had arrived before is there once."""
    net, x = network(Output("values"), True), torch.randn(5, 4)
    net(x).square().mean().backward()
    expected = net[2].evidence.gradient
    net[2].theta.data = net[2].theta.data.clone()  # elsewhere: looked at anew

    def fail(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "of", fail)
        for _ in range(2):
            with pytest.raises(MemoryError):
                net(x)
    torch.testing.assert_close(net(x).detach().average, averaged(net)(x))
    torch.testing.assert_close(net[2].evidence.gradient, expected)
