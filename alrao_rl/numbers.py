"""Numbers as people read them."""

from __future__ import annotations


def significant(value: float, digits: int = 4) -> str:
    """A number with so many significant digits, and all those before the point: ``0.00093``, ``-1,235``, ``500``.

    Args:
        value: any float; from 1e15 on, and below 1e-4, it is written with an exponent.
        digits: at least 1.
    """
    value = float(value) + 0.0  # no -0
    if 10 ** (digits - 1) <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}"
