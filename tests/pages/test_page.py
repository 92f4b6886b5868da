"""The axes of the charts on a page."""

import pytest

from pages.page import round_numbers


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.93, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.0001214, 0.02221, [0, 0.005, 0.01, 0.015, 0.02, 0.025]),
        (-23, 23, [-30, -20, -10, 0, 10, 20, 30]),
        (0, 960, [0, 200, 400, 600, 800, 1000]),
        (0.3, 0.3, [0.3, 0.35]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, expected):
    assert round_numbers(float(low), float(high)) == expected
