"""Numbers written for people: only meaningful digits, whatever the scale of the rewards."""

from __future__ import annotations

import math

LARGE = 1e7
"""From here on, and below ``SMALL``, numbers are written with an exponent."""
SMALL = 1e-4


def significant(value: float, digits: int = 4) -> str:
    """A number with ``digits`` significant digits: ``0.00093``, ``310.2``, ``1,234``, ``1.5e+09``.

    Digits before the decimal point are never rounded away; trailing zeros are dropped.
    """
    value = float(value)
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value + 0.0:g}"
    if not SMALL <= size < LARGE:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{_shorter(mantissa)}e{exponent}"
    return _shorter(f"{value:,.{decimals(value, digits)}f}")


def decimals(value: float, digits: int = 4) -> int:
    """Decimal places that give a number ``digits`` significant digits; 0 if those before the point suffice."""
    size = abs(float(value))
    # Of the rounded number: 9.9996 becomes 10.00.
    exponent = int(f"{size:.{digits - 1}e}".partition("e")[2]) if 0 < size < math.inf else 0
    return max(digits - 1 - exponent, 0)


def _shorter(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
