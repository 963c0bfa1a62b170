"""The averaged model of a converted network as plain torch, with nothing of Alrao left: to act, export or share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from alrao_rl.core.heads import OutputHeads
from alrao_rl.core.mixtures import mix_bernoulli, mix_logits


def averaged(network: nn.Module) -> nn.Module:
    """An independent copy of a converted network, made of plain modules only, with the same outputs as now.

    It is in evaluation mode and takes no gradients; ``torch.export``, ``torch.onnx`` and ``torch.jit`` can trace it.
    An output layer becomes one ``Linear``, Σ_j a_j θ_j, if outputs are averaged (``"values"``, ``"mean"``), and a
    :class:`Mixture` if probabilities are; a parameter beside the outputs, such as log_std, becomes its ``extra``.
    Other modules keep their names and types.

    Args:
        network: a network made by :func:`~alrao_rl.core.convert.convert`.

    Raises:
        ValueError: if it is not converted, or contains a module that cannot be copied.
    """
    if not hasattr(network, "alrao_config"):
        parts = [name for name, part in network.named_modules() if hasattr(part, "alrao_config")]
        helps = f"take its {parts[0]}" if parts else "pass it through convert() first"
        raise ValueError(f"{type(network).__name__} is not an Alrao network: {helps}")
    try:
        plain = copy.deepcopy(network)
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot be copied: {str(error).partition('.')[0]}; detach() what a module keeps of a call, "
            "and use torch.nn.utils.parametrizations.weight_norm instead of torch.nn.utils.weight_norm"
        ) from None
    replace_heads(plain)
    del plain.alrao_config, plain.alrao_rates
    return plain.requires_grad_(False).eval()


class Mixture(nn.Module):
    """Heads averaged as probabilities, which a single ``Linear`` cannot do: Σ_j a_j p_j(x), as logits.

    Args:
        heads: the output layer.
    """

    weights: Tensor

    def __init__(self, heads: OutputHeads) -> None:
        super().__init__()
        self.kind, self.splits, self.shape = heads.kind, heads.splits, (heads.n_heads, heads.out_features)
        self.out_features = heads.out_features
        self.all = _empty_linear(heads, heads.n_heads)
        theta, averaging_weights = heads._finite_heads()
        weight, bias = heads._split(heads._rows(theta.detach()))
        self.all.weight.data = weight.reshape(-1, heads.in_features).clone()
        if bias is not None:
            self.all.bias.data = bias.reshape(-1).clone()
        self.register_buffer("weights", averaging_weights.detach().clone())

    def forward(self, features: Tensor, offset: Tensor | None = None) -> Tensor:
        """``[B, I]`` to ``[B, O]``; ``offset``, ``[B, O]``, as for the heads."""
        logits = self.all(features).t().reshape(*self.shape, -1)
        logits = logits if offset is None else logits + offset.t()
        if self.kind == "bernoulli":
            return mix_bernoulli(logits, self.weights).t()
        return torch.cat([mix_logits(part, self.weights) for part in logits.split(self.splits, 1)]).t()


def replace_heads(network: nn.Module) -> None:
    """Replace every duplicated output layer by the plain module that computes its average."""
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, OutputHeads):
                module._modules[name] = _plain(child)


def _plain(heads: OutputHeads) -> nn.Module:
    if heads.kind not in ("values", "mean"):
        return Mixture(heads)
    layer = _empty_linear(heads)
    layer.load_state_dict({name: value for name, value in heads.collapse().items() if value is not None})
    if heads.extra is not None:
        with torch.no_grad():
            layer.register_buffer("extra", heads.averaged_extra())
    return layer


def _empty_linear(heads: OutputHeads, copies: int = 1) -> nn.Linear:
    """A ``Linear`` with the shape, type and device of ``copies`` heads in a row, to be filled."""
    # Initialising it must not advance torch's generator. Not skip_init: importing sympy takes most of a second.
    with torch.random.fork_rng(devices=()):
        layer = nn.Linear(heads.in_features, copies * heads.out_features, heads.bias is not None)
    return layer.to(heads.weight)
