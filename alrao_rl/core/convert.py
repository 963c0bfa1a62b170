"""Turn any ``nn.Module`` into its Alrao version: draw the rates, duplicate the output layers.

    >>> network = convert(network, {"classifier": Output("categorical", rule="switch")})
    >>> optimizer = AlraoOptimizer(network)

and train it as before. Nothing else changes: the output of the network is the averaged model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from alrao_rl.checks import output_layers
from alrao_rl.core.config import AlraoConfig
from alrao_rl.core.heads import KINDS, Output, OutputHeads
from alrao_rl.core.rates import FeatureMap


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
        TypeError: ``network`` is not a module, or an output neither an :class:`Output` nor a kind.
        ValueError: no such layer, a layer that cannot be duplicated, or a network converted before.
    """
    config = AlraoConfig.from_options(config).resolve("rollouts")
    layers = output_layers(network, outputs, Output, KINDS)
    settings = {name: _resolved(output, config) for name, output in outputs.items()}
    seed = _seed(config)
    with torch.random.fork_rng(devices=sorted({p.device.index or 0 for p in network.parameters() if p.is_cuda})):
        torch.manual_seed(seed)
        made: dict[nn.Module | None, OutputHeads] = {
            layer: heads(layer, config.n_heads, config.interval, **vars(settings[name]))
            for name, layer in layers.items()
        }
    # Wherever the layer is used, also under a second name.
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if child in made:
                module._modules[name] = made[child]
    duplicated = [module for module in network.modules() if isinstance(module, OutputHeads)]
    rates = FeatureMap(network, skip=duplicated).draw(config.interval, torch.Generator().manual_seed(seed))
    # A buffer of the network itself, saved with it: a child module would run in a Sequential.
    network.register_buffer("alrao_rates", rates.to(duplicated[0].rates.device))
    network.alrao_config = config  # type: ignore[assignment]
    return network


def _resolved(output: Output | str, config: AlraoConfig) -> Output:
    """``output`` with the rule of the configuration where it has none of its own."""
    output = Output(output) if isinstance(output, str) else output
    default = config.value_averaging if output.kind == "values" else config.policy_averaging
    return output if output.rule is not None else replace(output, rule=default)


def _seed(config: AlraoConfig) -> int:
    """The configured seed, or one from the state of torch's global generator, which is read and not advanced."""
    if config.seed is not None:
        return config.seed
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
    return int.from_bytes(digest[:6], "little")
