import pytest

from ablatio import schedules


def test_peak_and_ends():
    factor = schedules.build("triangle", {"peak": 0.5})
    assert factor(49, 100) == pytest.approx(1) and factor(99, 100) == pytest.approx(0)
    assert factor(24, 100) == pytest.approx(0.5) and factor(74, 100) == pytest.approx(0.5)
