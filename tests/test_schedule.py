"""Schedules against the values the papers imply (method 3.6)."""

import pytest

from sjepa_fast.runtime.schedule import ema_momentum, learning_rate


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.9999), (0.25, 0.9999146), (0.5, 0.99995), (0.75, 0.9999854), (1.0, 1.0)],
)
def test_ema_momentum(share: float, expected: float):
    total = 187_200
    assert ema_momentum(int(share * total), total, 0.9999, 1.0) == pytest.approx(expected, abs=5e-8)


def test_learning_rate_of_the_ntu60_run():
    per_epoch, total, warmup = 156, 1200 * 156, 20 * 156
    assert learning_rate(0, total, warmup, 1e-3, 5e-4) == 0
    half = learning_rate(10 * per_epoch, total, warmup, 1e-3, 5e-4)
    assert half == pytest.approx(5e-4)
    assert learning_rate(warmup, total, warmup, 1e-3, 5e-4) == pytest.approx(1e-3)
    middle = learning_rate((total + warmup) // 2, total, warmup, 1e-3, 5e-4)
    assert middle == pytest.approx(7.5e-4)
    assert learning_rate(total, total, warmup, 1e-3, 5e-4) == pytest.approx(5e-4)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(0, 100, 0, 1e-3, 0.0) == pytest.approx(1e-3)
