"""Types of arguments that several commands take, for argparse."""

from __future__ import annotations

import argparse
import contextlib
import re
from decimal import Decimal

from alrao_rl.errors import UserError
from alrao_rl.notation import parse_seeds


def parse_count(text: str) -> int:
    """A number of timesteps on a command line: ``100000``, ``100_000``, ``1e5``, ``100k`` or ``0.1m``, for argparse.

    Raises:
        ArgumentTypeError: if it is not a number, or not a whole one.
    """
    found = re.fullmatch(r"([+-]?[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)(e[+-]?[0-9]{1,2}|[km])?", text.strip().lower())
    if found is not None:
        count = Decimal(found[1] + {"k": "e3", "m": "e6", None: ""}.get(found[2], found[2]))
        if count == count.to_integral_value():
            return int(count)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number such as 100000, 1e5, 100k or 1m")


def parse_seed(text: str) -> int:
    """The seed of a single run, for argparse.

    Raises:
        ArgumentTypeError: if it is not one; for several seeds it names the command that takes them.
    """
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(UserError):
        parse_seeds([text], "")
        raise argparse.ArgumentTypeError(
            f"{text!r} are several seeds, expected one; python -m alrao_rl.sweep --seeds {text} trains them all"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is not a seed, expected a whole number")
