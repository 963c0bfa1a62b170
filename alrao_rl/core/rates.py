"""A learning rate for every feature, by layer type.

A *feature* is what one learning rate belongs to: a unit, a filter, a hidden unit of a recurrent layer. All of its
*incoming* parameters, weights and bias, share the rate η_{l,i}, drawn once, log-uniform in (η_min, η_max):

    log η_{l,i} ~ U(log η_min, log η_max)

See "Learning with Random Learning Rates" (Blier, Wolinski, Ollivier, 2019), https://arxiv.org/abs/1810.01322.
One rate per weight would give every feature a few weights with a far too large rate, and those alone derail it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_ROWS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def features_of(module: nn.Module) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the groups of features that a layer itself owns (not its children).

    Each group is ``(n_features, {parameter name: index})``. ``index`` is an integer tensor that broadcasts against
    the parameter and says, for each of its entries, to which feature of the group it belongs. Parameters that no
    group names have no features: they are taken as a whole.
    """
    if isinstance(module, _TRANSPOSED):
        # The weight is [in, out / groups, ...]: input channels of group g feed the output channels of group g.
        per_group = module.out_channels // module.groups
        group = torch.arange(module.in_channels) // (module.in_channels // module.groups)
        index = group[:, None] * per_group + torch.arange(per_group)
        spatial = (1,) * len(module.kernel_size)
        yield module.out_channels, {"weight": index.reshape(*index.shape, *spatial), "bias": _rows(module.out_channels)}
    elif isinstance(module, _ROWS):
        n = module.weight.shape[0]
        yield n, {"weight": _rows(n).reshape(n, *(1,) * (module.weight.dim() - 1)), "bias": _rows(n)}
    elif isinstance(module, _EMBEDDINGS):
        yield module.embedding_dim, {"weight": _rows(module.embedding_dim)}
    elif isinstance(module, _NORMS):
        scale = getattr(module, "weight", None)
        if scale is not None:
            index = _rows(scale.numel()).reshape(scale.shape)
            yield scale.numel(), {"weight": index, "bias": index}
    elif isinstance(units := getattr(module, "num_features", None), int):
        # A normalisation of another package, such as batch renormalisation.
        own = {name: value for name, value in module._parameters.items() if value is not None}
        yield units, {name: _rows(units) for name, value in own.items() if value.shape == (units,)}
    elif isinstance(module, nn.RNNBase):
        for suffix in _recurrent_suffixes(module):
            yield _hidden_units(module, suffix, module.hidden_size)
            if module.proj_size:
                yield module.proj_size, {f"weight_hr{suffix}": _rows(module.proj_size)[:, None]}
    elif isinstance(module, nn.RNNCellBase):
        yield _hidden_units(module, "", module.hidden_size)


def _rows(n: int) -> Tensor:
    return torch.arange(n)


def _recurrent_suffixes(module: nn.RNNBase) -> Iterator[str]:
    for layer in range(module.num_layers):
        yield f"_l{layer}"
        if module.bidirectional:
            yield f"_l{layer}_reverse"


def _hidden_units(module: nn.Module, suffix: str, hidden_size: int) -> tuple[int, dict[str, Tensor]]:
    """One feature per hidden unit: its rows in every gate of both weights and both biases."""
    n_gates = getattr(module, f"weight_hh{suffix}").shape[0] // hidden_size
    index = _rows(hidden_size).repeat(n_gates)
    names = {f"weight_{side}{suffix}": index[:, None] for side in ("ih", "hh")}
    return hidden_size, names | {f"bias_{side}{suffix}": index for side in ("ih", "hh")}


class FeatureMap:
    """Which feature every entry of every parameter of a network belongs to.

    Shared modules and tied weights appear once, under the first layer that owns them.

    Attributes:
        index: for each parameter, an integer tensor that broadcasts against it and holds feature numbers.
        n_features: how many features there are in all.
        whole: numbers of the features that are whole parameters (rate √(η_min η_max): one draw for a whole
            parameter would be a lottery).
    """

    def __init__(self, network: nn.Module, skip: Iterable[nn.Module] = ()) -> None:
        """Number the features of ``network``; modules in ``skip`` (and their children) are left out."""
        self.index: dict[nn.Parameter, Tensor] = {}
        self.n_features = 0
        self.whole: list[int] = []
        skipped = {inner for module in skip for inner in module.modules()}
        modules = [module for module in network.modules() if module not in skipped]
        for module in modules:
            for n, names in features_of(module):
                self._add(n, {module._parameters.get(name): index for name, index in names.items()})
        for module in modules:
            for parameter in module.parameters(recurse=False):
                if parameter not in self.index:
                    self.whole.append(self.n_features)
                    self._add(1, {parameter: torch.zeros((), dtype=torch.long)})

    def _add(self, n: int, indices: dict[nn.Parameter | None, Tensor]) -> None:
        new = {p: i for p, i in indices.items() if p is not None and p not in self.index}
        self.index.update({parameter: index + self.n_features for parameter, index in new.items()})
        self.n_features += n if new else 0

    def draw(self, lr_range: tuple[float, float], generator: torch.Generator) -> Tensor:
        """Draw a learning rate for every feature, shape ``[n_features]``, log-uniform in ``lr_range``."""
        low, high = math.log(lr_range[0]), math.log(lr_range[1])
        uniform = torch.rand(self.n_features, generator=generator, dtype=torch.float64)
        uniform[self.whole] = 0.5
        return torch.exp(low + (high - low) * uniform).float()


def head_rates(n_heads: int, lr_range: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Learning rates of the output heads, ``[…, J]``, log-spaced from η_min to η_max, slowest first.

    log η_j = log η_min + (j−1)/(J−1) · log(η_max/η_min); a single head gets √(η_min η_max).

    Args:
        n_heads: J.
        lr_range: (η_min, η_max), two numbers, or two tensors ``[…]``.
    """
    if isinstance(lr_range[0], Tensor) or isinstance(lr_range[1], Tensor):
        low, high = torch.broadcast_tensors(*map(torch.as_tensor, lr_range))
        rows = [head_rates(n_heads, ends) for ends in zip(low.flatten().tolist(), high.flatten().tolist(), strict=True)]
        return torch.stack(rows).view(*low.shape, n_heads)
    low, high = math.log(lr_range[0]), math.log(lr_range[1])
    if n_heads == 1:
        return torch.tensor([math.exp((low + high) / 2)])
    return torch.exp(torch.linspace(low, high, n_heads, dtype=torch.float64)).float()
