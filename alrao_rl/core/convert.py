"""Turn any ``nn.Module`` into its Alrao version: draw the rates, duplicate the output layers.

    >>> network = convert(network, {"classifier": Output("categorical", rule="switch")})
    >>> optimizer = AlraoOptimizer(network)

and train it as before. Nothing else changes: the output of the network is the averaged model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from alrao_rl.checks import one_of
from alrao_rl.core.config import AlraoConfig
from alrao_rl.core.heads import KINDS, OutputHeads
from alrao_rl.core.rates import FeatureMap


@dataclass(frozen=True)
class Output:
    """How one output layer is averaged; see :class:`~alrao_rl.core.heads.OutputHeads` for the fields.

    ``rule`` None takes the configuration's ``value_averaging`` for ``kind="values"`` and its ``policy_averaging``
    otherwise.
    """

    kind: str = "values"
    rule: str | Mapping[str, Any] | None = None
    splits: Sequence[int] | None = None
    init: Callable[[nn.Linear], object] | None = None
    extra: Tensor | None = None
    clamp_average_only: bool = False

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        sizes = self.splits
        if sizes is not None and (
            not isinstance(sizes, Sequence) or not all(isinstance(n, int) and n > 0 for n in sizes) or not sizes
        ):
            raise ValueError(f"splits is {sizes!r}, expected a list of positive whole numbers such as [2, 3]")
        if self.init is not None and not callable(self.init):
            raise TypeError(f"init is {self.init!r}, expected a function of a Linear layer")
        if self.extra is not None and not isinstance(self.extra, Tensor):
            raise TypeError(f"extra is {self.extra!r}, expected a tensor")


def convert(
    network: nn.Module,
    outputs: Mapping[str, Output | str],
    config: AlraoConfig | Mapping[str, Any] | None = None,
    heads: type[OutputHeads] = OutputHeads,
) -> nn.Module:
    """Convert ``network`` in place and return it. Its features' learning rates are in its buffer ``alrao_rates``.

    Torch's global generator is left as it was: the rates and the fresh heads come from generators of their own. Two
    networks that are converted at one state of it have the same rates, by layer: give each of an ensemble, or of twin
    critics, a ``seed`` of its own.

    Args:
        network: any module.
        outputs: its output layers by name (as in ``named_modules()``), each with an :class:`Output` or just a kind.
        config: options of Alrao, see :class:`~alrao_rl.core.config.AlraoConfig`.
        heads: what an output layer becomes: the plain class, or a faster subclass of it.

    Raises:
        TypeError: ``network`` is no module.
        ValueError: no such layer, a layer that is no ``nn.Linear``, or a network converted before.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is {network!r}, expected an nn.Module")
    config = AlraoConfig.from_options(config).resolve(replay=False)
    if hasattr(network, "alrao_config"):
        raise ValueError(f"{type(network).__name__} is an Alrao network already")
    if not isinstance(outputs, Mapping) or not outputs:
        raise ValueError(f"outputs is {outputs!r}, expected a dict such as {{'head': 'values'}}, one entry a layer")
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, output in outputs.items():
        if not isinstance(output, (str, Output)):
            raise TypeError(f"output layer {name!r} is {output!r}, expected an Output or one of {', '.join(KINDS)}")
        _check_layer(name, modules)
    seed = _seed(config)
    devices = sorted({p.device.index or 0 for p in network.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        made = {name: _make_heads(heads, modules[name], output, config) for name, output in outputs.items()}
        for name, layer in made.items():
            _replace(network, name, layer)
    layers = [module for module in network.modules() if isinstance(module, OutputHeads)]
    rates = FeatureMap(network, skip=layers).draw(config.interval, torch.Generator().manual_seed(seed))
    # A buffer of the network itself, saved with it: a child module would run in a Sequential.
    network.register_buffer("alrao_rates", rates.to(layers[0].rates.device))
    network.alrao_config = config  # type: ignore[assignment]
    return network


def _check_layer(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Refuse an output layer that does not exist, or whose copies would be something else."""
    if not name or type(modules.get(name)) is not nn.Linear:
        linear = [key for key, module in modules.items() if key and type(module) is nn.Linear]
        found = f"is a {type(modules[name]).__name__}" if name in modules else "does not exist"
        found += "" if name else ", the whole network"
        none = "put it in a Sequential" if type(modules[""]) is nn.Linear else "the network has none"
        expected = f"one of {', '.join(linear)}" if linear else none
        raise ValueError(f"output layer {name!r} {found}, expected a Linear layer: {expected}")
    layer = cast(nn.Linear, modules[name])
    if not all(parameter.requires_grad for parameter in layer.parameters()):
        raise ValueError(f"output layer {name!r} is frozen: its copies learn; unfreeze it or choose another layer")
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks) or "weight" not in layer._parameters:
        raise ValueError(
            f"output layer {name!r} has hooks, or a weight computed from others, which its copies would lack: "
            "convert it without, as by torch.nn.utils.remove_weight_norm or prune.remove"
        )
    if layer.weight.is_complex():
        raise ValueError(f"output layer {name!r} is complex, expected real numbers")
    others = set(modules.values()) - {layer}
    if any(parameter is layer.weight for module in others for parameter in module._parameters.values()):
        raise ValueError(f"output layer {name!r} shares its weight with another layer: its copies cannot, untie it")


def _make_heads(heads: type[OutputHeads], layer: nn.Module, output: Output | str, config: AlraoConfig) -> OutputHeads:
    output = Output(output) if isinstance(output, str) else output
    default = config.value_averaging if output.kind == "values" else config.policy_averaging
    rule = default if output.rule is None else output.rule
    assert isinstance(layer, nn.Linear)
    return heads(
        layer,
        config.n_heads,
        config.interval,
        output.kind,
        rule,
        output.splits,
        output.init,
        output.extra,
        output.clamp_average_only,
    )


def _replace(network: nn.Module, name: str, heads: OutputHeads) -> None:
    """Put ``heads`` wherever the layer called ``name`` is used, also under other names."""
    old = network.get_submodule(name)
    for module in list(network.modules()):
        for child_name, child in list(module._modules.items()):
            if child is old:
                module._modules[child_name] = heads


def _seed(config: AlraoConfig) -> int:
    """The configured seed, or one from the state of torch's global generator, which is read and not advanced."""
    if config.seed is not None:
        return config.seed
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
    return int.from_bytes(digest[:6], "little")
