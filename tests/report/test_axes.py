"""Ticks and ends of the axes that pages draw."""

import pytest

from repairopt.report.axes import decades, span, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.001, 0.0012), (87.1, 88.7), (1e-9, 3e-9), (-5, 900)])
def test_ticks_are_round_and_few(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)


def test_a_logarithmic_axis_has_ticks_between_its_ends():
    assert decades(-0.1, 1.1) == pytest.approx([0, 0.30103, 0.69897, 1], abs=1e-5)
    assert decades(0.1, 0.2) == [pytest.approx(0.15)]  # no round number between them: the middle


@pytest.mark.parametrize("values", [[0.2, 0.4], [3.0], [0.0]])
def test_an_axis_leaves_room_around_its_values(values):
    low, high = span(values)
    assert low < min(values) <= max(values) < high
