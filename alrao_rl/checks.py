"""Checks of options, networks and training: one line that names the value, what was expected and the nearest choice."""

from __future__ import annotations

import inspect
import math
import numbers
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from alrao_rl.errors import suggest

if TYPE_CHECKING:
    from torch import Tensor, nn


# --- options --------------------------------------------------------------------------------------------------------


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number, NumPy's included."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


LINEAR = "lin_"
"""Prefix of an initial value that falls linearly to 0 over the run, as rl-baselines3-zoo writes it."""


def first_value(value: Any) -> float:
    """A hyperparameter at the start of training; nan if it is neither a number nor a schedule."""
    if isinstance(value, str) and value.startswith(LINEAR):
        with suppress(ValueError):
            return float(value.removeprefix(LINEAR))
    return float(value) if is_number(value) else math.nan


def number(name: str, value: Any, low: float, high: float = math.inf, ends: str = "()", also: str = "") -> float:
    """Return ``value`` if it is in the interval from ``low`` to ``high``; ``ends`` says which ends are open.

    ``also`` names what else would have been accepted.
    """
    inside = is_number(value) and low <= value <= high
    if not inside or (value == low and ends[0] == "(") or (value == high and ends[1] == ")"):
        kind = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
        if (low, high) == (0, math.inf):
            kind = "a positive number" + (" or 0" if ends[0] == "[" else "")
        raise ValueError(f"{name} is {value!r}, expected {also}{kind}")
    return float(value)


AUTO = "auto"
"""Of SAC's entropy coefficient and its target: learned, and minus the number of actions."""


def entropy_coefficient(value: Any) -> Any:
    """Return SAC's ``ent_coef``: a number of at least 0, ``"auto"`` or ``"auto_0.1"``, which begins with 0.1."""
    if isinstance(value, str):
        _, _, start = value.partition("auto_")
        with suppress(ValueError):
            if value == AUTO or (value.startswith("auto_") and 0 < float(start) < math.inf):
                return value
    elif is_number(value) and value >= 0:
        return value
    raise ValueError("expected a number of at least 0, 'auto', or 'auto_0.1' to begin with 0.1")


def target_entropy(value: Any) -> Any:
    """Return SAC's ``target_entropy`` if it is a number or ``"auto"``."""
    if value == AUTO or is_number(value):
        return value
    raise ValueError("expected a number or 'auto'")


def whole(name: str, value: Any, low: int, high: int = sys.maxsize) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        most = f" and at most {high}" if is_number(value) and value > high else ""
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {low}{most}")
    return int(value)


def one_of(what: str, value: object, choices: Iterable[str]) -> None:
    """Reject a value that is not one of the choices."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(choices)}{suggest(str(value), choices)}")


def construct(what: str, classes: Mapping[str, type], name: Any, options: Any, *args: Any) -> Any:
    """Make the object called ``name``, ``classes[name](*args, **options)``; its options are numbers and booleans."""
    one_of(what, name, classes)
    if not isinstance(options, Mapping):
        raise TypeError(f"options of {what} {name!r} are {options!r}, expected a dict")
    known = dict(list(inspect.signature(classes[name]).parameters.items())[len(args) :])
    for key, value in options.items():
        if not known:
            raise ValueError(f"{what} {name!r} takes no options, {key!r} was given")
        one_of(f"option of {what} {name!r}", key, known)
        wants_bool = isinstance(known[key].default, bool)
        if wants_bool != isinstance(value, bool) or not (wants_bool or is_number(value)):
            expected = "true or false" if wants_bool else "a number"
            raise TypeError(f"{what} {name!r}: {key} is {value!r}, expected {expected}")
    try:
        return classes[name](*args, **options)
    except ValueError as error:
        raise ValueError(f"{what} {name!r}: {error}") from None


def known_options(name: str, options: Any, known: Iterable[str]) -> dict[str, Any]:
    """Return ``options``, a dict or None, as a dict; refuse one that is not ``known``."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{name} is {options!r}, expected a dict of options such as dict(n_heads=20)")
    for option in options or {}:
        one_of(f"{name} option", option, known)
    return dict(options or {})


def interval(name: str, value: Any) -> tuple[float, float]:
    """Return the interval of learning rates ``value``, two numbers 0 < low <= high that 32 bits can hold."""
    expected = "expected two numbers 0 < lr_min <= lr_max, such as (1e-6, 0.1)"
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(is_number, value)):
        raise ValueError(f"{name} is {value!r}, {expected}")
    low, high = map(float, value)
    if not 0 < low <= high:
        hint = f" (did you mean {(high, low)}?)" if 0 < high < low else ""
        raise ValueError(f"{name} is {value!r}, {expected}{hint}")
    if low < 1e-30 or high > 1e30:
        raise ValueError(f"{name} is {value!r}, expected rates from 1e-30 to 1e30, which 32 bits can hold")
    return low, high


def alrao_numbers(config: Any) -> dict[str, Any]:
    """The numbers among the options of Alrao, by name, of the types that they should have.

    ``config`` has them as attributes, see :class:`~alrao_rl.core.config.AlraoConfig`.
    """
    checked: dict[str, Any] = {
        name: whole(f"alrao.{name}", getattr(config, name), low)
        for name, low in {"n_heads": 1, "reclone_interval": 0, "iterate_window": 1, "seed": 0}.items()
        if name != "seed" or config.seed is not None
    }
    if config.lr_range is not None:
        checked["lr_range"] = interval("alrao.lr_range", config.lr_range)
    if config.head_max_grad_norm is not None and config.head_max_grad_norm != "auto":
        name, also = "alrao.head_max_grad_norm", "None (in TOML 'none'), 'auto' or "
        checked["head_max_grad_norm"] = number(name, config.head_max_grad_norm, 0, also=also)
    return checked


def policy_rule(spec: str | Mapping[str, Any], evidence: Mapping[str, str]) -> None:
    """Refuse an averaging rule that judges by losses: a policy has none to be judged by.

    ``evidence`` says what each rule uses, by name.
    """
    name = spec if isinstance(spec, str) else spec["rule"]
    if evidence[name] == "losses":
        *others, last = [repr(other) for other, used in evidence.items() if used != "losses"]
        raise ValueError(
            f"alrao.policy_averaging is {name!r}, which needs labels that a policy does not have: expected "
            f"{', '.join(others)} or {last}"
        )


# --- headwise tensors -----------------------------------------------------------------------------------------------


class HeadwiseError(RuntimeError):
    """An operation that has no meaning, or no implementation, per output head.

    Not a TypeError: operators would take that for "not implemented" and hide the message.
    """


def cannot_apply(function: Any, error: Exception) -> HeadwiseError:
    """The error of a function that torch cannot apply to every branch, because of ``error``."""
    name, words = getattr(function, "__name__", str(function)), str(error).strip().splitlines() or ["no message"]
    return HeadwiseError(
        f"{name}() cannot be applied to the output of Alrao heads ({type(error).__name__}: {words[0]}); "
        "use the plain average with .detach().average, or compute under torch.no_grad()"
    )


def refuse_two_layers(function: Any) -> NoReturn:
    """Refuse an operation on outputs of two layers that has no meaning per head."""
    raise HeadwiseError(
        f"{function.__name__.strip('_')}() combines the outputs of two different Alrao output layers, and both need a "
        "gradient: only a sum of their losses has a meaning per head (detach() one of them)"
    )


def same_heads(function: Any, n_heads: Sequence[int]) -> None:
    """Refuse to join losses of layers with other numbers of heads."""
    if len(set(n_heads)) > 1:
        raise HeadwiseError(
            f"{function.__name__.strip('_')}() joins losses of output layers with {' and '.join(map(str, n_heads))} "
            "heads: layers whose losses are added need the same n_heads"
        )


# --- networks -------------------------------------------------------------------------------------------------------


def output_options(kind: object, kinds: Iterable[str], splits: Any, init: Any, extra: Any) -> None:
    """Refuse options of an output layer that are not as :class:`~alrao_rl.core.heads.Output` has them.

    Raises:
        ValueError: an unknown kind, or ``splits`` that are not positive whole numbers.
        TypeError: ``init`` is not a function, or ``extra`` not a tensor.
    """
    from torch import Tensor

    one_of("kind", kind, kinds)
    whole_numbers = isinstance(splits, Sequence) and all(isinstance(n, int) and n > 0 for n in splits)
    if splits is not None and (not whole_numbers or not splits):
        raise ValueError(f"splits is {splits!r}, expected a list of positive whole numbers such as [2, 3]")
    if init is not None and not callable(init):
        raise TypeError(f"init is {init!r}, expected a function of a Linear layer")
    if extra is not None and not isinstance(extra, Tensor):
        raise TypeError(f"extra is {extra!r}, expected a tensor")


def output_layers(
    network: nn.Module, outputs: Mapping[str, Any], settings: type, kinds: Iterable[str]
) -> dict[str, nn.Linear]:
    """Return the layers of ``network`` that ``outputs`` names; refuse those that cannot be duplicated.

    What ``outputs`` says of each has to be a string, one of ``kinds``, or an object of the class ``settings``.

    Raises:
        TypeError: ``network`` is not a module, or an output of another type.
        ValueError: it is converted already; or no such layer, not a ``Linear``, or one whose copies would be another.
    """
    from torch import nn

    if not isinstance(network, nn.Module):
        raise TypeError(f"network is {network!r}, expected an nn.Module")
    if hasattr(network, "alrao_config"):
        raise ValueError(f"{type(network).__name__} is an Alrao network already")
    if not isinstance(outputs, Mapping) or not outputs:
        raise ValueError(f"outputs is {outputs!r}, expected a dict such as {{'head': 'values'}}, one entry a layer")
    for name, output in outputs.items():
        if not isinstance(output, (str, settings)):
            expected = f"expected an {settings.__name__} or one of {', '.join(kinds)}"
            raise TypeError(f"output layer {name!r} is {output!r}, {expected}")
    modules = dict(network.named_modules(remove_duplicate=False))
    return {name: _output_layer(name, modules) for name in outputs}


def _output_layer(name: str, modules: Mapping[str, nn.Module]) -> nn.Linear:
    from torch import nn

    layer = modules.get(name)
    if not name or type(layer) is not nn.Linear:
        linear = [key for key, module in modules.items() if key and type(module) is nn.Linear]
        found = f"is a {type(modules[name]).__name__}" if name in modules else "does not exist"
        found += "" if name else ", the whole network"
        none = "put it in a Sequential" if type(modules[""]) is nn.Linear else "the network has none"
        expected = f"one of {', '.join(linear)}" if linear else none
        raise ValueError(f"output layer {name!r} {found}, expected a Linear layer: {expected}")
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
    return layer


# --- training -------------------------------------------------------------------------------------------------------

MANY_PASSES = 100
"""Backward passes before one optimizer step: more than anyone accumulates."""


def warn_of_unused_passes(n: int) -> None:
    """Warn at the :data:`MANY_PASSES`-th backward pass without a step: nobody uses the heads' gradients."""
    if n == MANY_PASSES:
        warnings.warn(
            f"{n} backward passes without a step of the Alrao optimizer: output heads learn only through it "
            "(policy.optimizer, or AlraoOptimizer), not through another torch optimizer",
            stacklevel=4,
        )


def warn_of_learning_rate(group: dict[str, Any], first: float) -> None:
    """Warn, once, of a learning rate whose ratio to its ``first`` value does harm: it scales all rates of Alrao.

    A schedule that decays does none. ``group`` is the optimizer's.
    """
    lr, what = float(group["lr"]), None
    if lr > 1.01 * first:  # more than what a ramp up to it is off by rounding
        what = (
            f"rose to {lr / first:.3g} times its first value: a schedule may decay, a warm-up is not needed; one that "
            f"rises to {lr:g} takes AlraoOptimizer(network, lr={lr:g})"
        )
    elif 0 < lr < 0.05 * first and group["n_updates"] == 1:
        what = (
            f"is {lr / first:.3g} times that of the optimizer at its first step already: a warm-up may rise from "
            f"there, but if it is to fall from {lr:g} make that AlraoOptimizer(network, lr={lr:g})"
        )
    if what is not None and not group.get("warned"):
        group["warned"] = True
        warnings.warn(f"all of Alrao's rates follow the learning rate, and that {what}", stacklevel=5)


def optimizer_state(state_dict: Mapping[str, Any], expected: Mapping[str, int], base: str) -> None:
    """Refuse an optimizer's state that does not have the ``expected`` tensors, by name, of the expected sizes."""
    for held in state_dict["state"].values():
        given = {name: len(values) for name, values in held.items()}
        if given != expected:
            raise ValueError(
                f"the state holds {given}, expected {expected}: it is of another base update than {base!r}, of "
                "another network or of another number of heads"
            )


def refuse_float16(name: str, base: object, parameters: Iterable[Tensor]) -> None:
    """Refuse a base update that divides by squares, for parameters in whose precision these are 0."""
    import torch

    if hasattr(base, "eps") and any(parameter.dtype is torch.float16 for parameter in parameters):
        raise ValueError(f"{name!r} divides by squares, 0 in float16: expected float32 or bfloat16")


def refuse_grad_scaler() -> NoReturn:
    """Refuse a step that a gradient scaler made."""
    raise RuntimeError(
        "an AlraoOptimizer takes no GradScaler, which does not reach the heads' gradients: call loss.backward() and "
        "optimizer.step() without it; autocast to bfloat16 needs none"
    )


NOT_FINITE = (
    "as where advantages are normalised over a single step (normalize_advantage with n_steps=1 in one environment), or "
    "a reward, an observation or a learning rate is far too large"
)
"""Usual causes of a gradient that is not finite."""


class SkippedUpdateWarning(UserWarning):
    """An update was skipped, because its gradient was not finite."""


def warn_of_skipped_update(n: int) -> None:
    """Warn that update ``n`` was skipped, the first one."""
    warnings.warn(
        f"update {n} was skipped: its loss or the gradient is nan or infinite, {NOT_FINITE}; later ones are only "
        "counted",
        SkippedUpdateWarning,
        stacklevel=7,
    )
