"""The path for numbers that are not finite does the same, where they are, as the short one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alrao_rl import fast
from alrao_rl.core import Output
from alrao_rl.fast import AlraoOptimizer, convert, kernels


def train(kind, steps=90):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    rule = "whiteness" if kind == "values" else "exponentiated-gradient"
    options = {"seed": 1, "reclone_interval": 50, "head_max_grad_norm": 0.5}
    # A large ε: with a small one a gradient that is all rounding makes a whole step.
    convert(net, {"2": Output(kind, rule=rule)}, options | {"base_kwargs": {"eps": 1e-5}})
    optimizer, x, y = AlraoOptimizer(net), torch.randn(16, 4), torch.randint(0, 3, (16,))
    for step in range(steps):
        optimizer.zero_grad()
        out = net(x)
        loss = F.mse_loss(out, F.one_hot(y, 3).float()) if kind == "values" else F.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
        if step == 70:  # found in the next step, by its gradient
            with torch.no_grad():
                net[2].weight[4] = float("nan")
    return net.state_dict()


@pytest.mark.parametrize("kind", ["values", "categorical"])
def test_the_path_that_never_looks_does_the_same(kind, monkeypatch):
    short = train(kind)
    monkeypatch.setattr(fast.heads, "all_finite", lambda tensor: False)
    monkeypatch.setattr(fast.optim, "all_finite", lambda tensor: False)
    monkeypatch.setattr(kernels, "library", None)
    careful = train(kind)
    for name, tensor in short.items():
        assert tensor.isfinite().all()
        torch.testing.assert_close(tensor, careful[name], rtol=1e-3, atol=1e-4)
