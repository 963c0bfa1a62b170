#!/usr/bin/env bash
# A hook on a parameter changes its gradient under loss.backward() and torch.autograd.grad. torch.func.grad of the same
# module by functional_call, handed that very parameter, leaves the hook out without a word: the transform differentiates
# a wrapper of the tensor, to which no hook belongs. A hook that is registered on a tensor *inside* the function works.
# So a mask, a clip or a scaling that is written as a parameter's hook is lost in per-sample gradients and ensembles.
#
# Seen: torch 2.13.0; hook: lambda gradient: 0 * gradient
#   backward:                      [[0.0, 0.0]]
#   torch.autograd.grad:           [[0.0, 0.0]]
#   torch.func.grad:               [[1.0, 1.0]], hook called 0 times
#   torch.func.grad, hook inside:  [[0.0, 0.0]]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet numpy==2.4.6
cat > finding.py <<'EOF'
import sys

import torch
from torch import nn
from torch.func import functional_call, grad

x = torch.ones(1, 2)
network = nn.Linear(2, 1, bias=False)
calls = []


def nothing(gradient):
    calls.append(1)
    return 0 * gradient


def inside(parameters):
    weight = parameters["weight"] * 1
    weight.register_hook(nothing)
    return functional_call(network, {"weight": weight}, (x,)).sum()


network.weight.register_hook(nothing)
network(x).sum().backward()
seen = {"backward": network.weight.grad.tolist()}
seen["torch.autograd.grad"] = torch.autograd.grad(network(x).sum(), network.weight)[0].tolist()
calls.clear()
parameters = dict(network.named_parameters())
seen["torch.func.grad"] = grad(lambda p: functional_call(network, p, (x,)).sum())(parameters)["weight"].tolist()
n_calls = len(calls)
plain = {"weight": network.weight.detach().clone()}
seen["torch.func.grad, hook inside"] = grad(inside)(plain)["weight"].tolist()
print(f"torch {torch.__version__}; the hook was called {n_calls} times by torch.func.grad")
for name, gradient in seen.items():
    print(f"  {name + ':':<30} {gradient}")
sys.exit(list(seen.values()) != [[[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]] or n_calls != 0)
EOF
venv/bin/python -W ignore finding.py
