"""Schedules against the values the papers imply (method 3.6)."""

import pytest
import torch

from sjepa_fast.config.schema import ObjectiveConfig, OptimConfig, TrainConfig
from sjepa_fast.runtime.schedule import ema_momentum, learning_rate, tabulate


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.9999), (0.25, 0.9999146), (0.5, 0.99995), (0.75, 0.9999854), (1.0, 1.0)],
)
def test_ema_momentum(share: float, expected: float) -> None:
    total = 187_200
    assert ema_momentum(int(share * total), total, 0.9999, 1.0) == pytest.approx(expected, abs=5e-8)


def test_learning_rate_of_the_ntu60_run() -> None:
    per_epoch, total, warmup = 156, 1200 * 156, 20 * 156
    assert learning_rate(0, total, warmup, 1e-3, 5e-4) == 0
    half = learning_rate(10 * per_epoch, total, warmup, 1e-3, 5e-4)
    assert half == pytest.approx(5e-4)
    assert learning_rate(warmup, total, warmup, 1e-3, 5e-4) == pytest.approx(1e-3)
    middle = learning_rate((total + warmup) // 2, total, warmup, 1e-3, 5e-4)
    assert middle == pytest.approx(7.5e-4)
    assert learning_rate(total, total, warmup, 1e-3, 5e-4) == pytest.approx(5e-4)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 100, 0, 1e-3, 0.0) == pytest.approx(1e-3)


def test_tables_hold_the_schedules_of_every_step() -> None:
    config = TrainConfig(
        optim=OptimConfig(length=10, warmup=2, lr=1e-3, lr_end=1e-4),
        objective=ObjectiveConfig(ema_start=0.9999, ema_end=1.0),
    )
    tables = tabulate(config, 30, 6, torch.device("cpu"))
    assert tables.rates_S.tolist() == pytest.approx(
        [learning_rate(s, 30, 6, 1e-3, 1e-4) for s in range(30)], rel=1e-6
    )
    # 1 - m matters and must keep its digits.
    assert (1 - tables.momenta_S).tolist() == pytest.approx(
        [1 - ema_momentum(s, 30, 0.9999, 1.0) for s in range(30)], rel=1e-12
    )


def test_an_ema_schedule_of_its_own_length_stays_at_its_end() -> None:
    objective = ObjectiveConfig(ema_start=0.5, ema_end=1.0, ema_schedule="linear", ema_length=5)
    config = TrainConfig(optim=OptimConfig(length=10, warmup=2), objective=objective)
    momenta = tabulate(config, 20, 4, torch.device("cpu")).momenta_S
    assert momenta[:11].tolist() == pytest.approx([0.5 + 0.05 * s for s in range(11)])
    assert (momenta[10:] == 1).all()
