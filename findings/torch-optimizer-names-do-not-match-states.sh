#!/usr/bin/env bash
# Since torch 2.6 an optimizer takes named parameters, and its state_dict holds the names. They are kept and not used:
# load_state_dict matches by position as ever. Where two parameters of one shape come in another order (modules declared
# in another order, another version of the model), each gets the other's momentum, without a warning, and the optimizer's
# own names are overwritten by the saved ones, so that afterwards they name the wrong parameters too.
#
# Seen: torch 2.13.0, Adam
#   saved:  exp_avg of a 0.1, of b 10.0
#   loaded into [b, a]:  exp_avg of a 10.0, of b 0.1; warnings 0; param_names ['a', 'b'] for the parameters b, a
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet numpy==2.4.6
cat > finding.py <<'EOF'
import sys
import warnings

import torch

a, b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
saved = torch.optim.Adam([("a", a), ("b", b)])
a.grad, b.grad = torch.full((3,), 1.0), torch.full((3,), 100.0)
saved.step()
loaded = torch.optim.Adam([("b", b), ("a", a)])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded.load_state_dict(saved.state_dict())


def moments(optimizer):
    return [round(optimizer.state[parameter]["exp_avg"][0].item(), 4) for parameter in (a, b)]


group = loaded.param_groups[0]
order = ["a" if parameter is a else "b" for parameter in group["params"]]
print(f"torch {torch.__version__}, Adam")
print("  saved:  exp_avg of a {}, of b {}".format(*moments(saved)))
print("  loaded: exp_avg of a {}, of b {}".format(*moments(loaded)), f"; warnings {len(caught)};",
      f"param_names {group['param_names']} for the parameters {order}")
sys.exit(moments(saved) != [0.1, 10.0] or moments(loaded) != [10.0, 0.1] or bool(caught)
         or group["param_names"] != ["a", "b"] or order != ["b", "a"])
EOF
venv/bin/python -W ignore finding.py
