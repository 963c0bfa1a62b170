"""Numbers as people read them: significant digits, whatever their size."""

import pytest

from alrao_rl.numbers import significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.3e-4, "0.00093"),
        (-3.14159e-8, "-3.142e-08"),
        (21.456, "21.46"),
        (500.0, "500"),
        (-200, "-200"),
        (999.96, "1,000"),
        (12_345.6, "12,346"),
        (-1e9, "-1e+09"),
        (3.14159e20, "3.142e+20"),
        (-0.0, "0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_significant(value, text):
    assert significant(value) == text


def test_digits():
    assert significant(21.456, 2) == "21"
    assert significant(123.4, 2) == "123"
