"""The model of many GPUs against sums done by hand; nothing here is a measurement."""

from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling import (
    GPUS,
    LINKS,
    MIB,
    Links,
    Load,
    Options,
    all_reduce_ms,
    buckets,
    exposed_ms,
    predict,
    trained_parameters,
)

# 100 GB/s reach a GPU in a host, 4 * 10 GB/s a host.
SLOW = Links(4, 200.0, 20.0, 4, sustained=0.5, hop_us=5.0, far_hop_us=50.0, launch_us=10.0)
# Two buckets; 40 of the 100 ms are backward.
LOAD = Load(100, 100.0, 10.0, 0.4, (10_000_000, 30_000_000), 2)


def test_all_reduce_in_a_host_is_a_ring_of_its_gpus() -> None:
    assert all_reduce_ms(1e8, 1, SLOW) == 0
    # 2 * 3/4 * 1e8 bytes at 1e11 B/s are 1.5 ms; six hops 30 us; the launch 10 us.
    assert all_reduce_ms(1e8, 4, SLOW) == pytest.approx(1.5 + 0.030 + 0.010)


def test_all_reduce_between_hosts_is_bound_by_their_cards() -> None:
    # Large: the ring, 2 * 15/16 * 1e9 bytes at 4e10 B/s; 22 hops of 5 us and 8 of 50.
    assert all_reduce_ms(1e9, 16, SLOW) == pytest.approx(46.875 + 0.110 + 0.400 + 0.010)
    # Small: the tree, 2 * 1e4 bytes; 2 * 3 hops of 5 us, 2 * log2(4) of 50.
    assert all_reduce_ms(1e4, 16, SLOW) == pytest.approx(0.0005 + 0.030 + 0.200 + 0.010)
    # NVLink is the bound where the cards together have more.
    many = Links(4, 200.0, 100.0, 4, sustained=0.5, hop_us=0.0, far_hop_us=0.0, launch_us=0.0)
    assert all_reduce_ms(1e9, 8, many) == pytest.approx(2 * 7 / 8 * 1e9 / 1e11 * 1e3)


def test_buckets_are_those_of_pytorch() -> None:
    assert buckets(1000) == (1000,)
    assert buckets(60 * MIB) == (MIB, 25 * MIB, 25 * MIB, 9 * MIB)


def test_what_the_backward_does_not_hide() -> None:
    # Filled at 10 and 40 ms: sent in time, only the last is waited for.
    assert exposed_ms((10, 30), 40.0, (5.0, 2.0)) == pytest.approx(2.0)
    # The first is still on its way when the second is ready: 10 + 50, then 2.
    assert exposed_ms((10, 30), 40.0, (50.0, 2.0)) == pytest.approx(22.0)


def test_a_step_on_four_gpus_by_hand() -> None:
    alone = predict(LOAD, 1, SLOW)
    assert (alone.step_ms, alone.waited_ms, alone.efficiency) == (100.0, 0.0, 100.0)
    found = predict(LOAD, 4, SLOW)
    # The second bucket, 0.45 + 0.04 ms, and twice the latency of ring or tree, 0.04 ms.
    assert found.waited_ms == pytest.approx(0.49 + 0.08)
    assert found.sent_ms == pytest.approx(0.19 + 0.49 + 0.08)
    assert found.step_ms == pytest.approx(100.57)
    assert found.efficiency == pytest.approx(100 * 100 / 100.57)
    # 100 clips in all: 25 each, 10 + 90 / 4 ms of work, at most a fourth of the clips per second.
    split = predict(LOAD, 4, SLOW, batch=100)
    assert split.step_ms == pytest.approx(32.5 + 0.57)
    assert split.efficiency == pytest.approx(100 * 0.25 * 100 / 33.07)


def test_the_default_model_has_the_papers_parameters_in_its_gradients() -> None:
    trained, _ = trained_parameters()
    assert trained == 6_336_000 + 4_095_232


@pytest.mark.parametrize("batch", [0, 256])
def test_the_command_says_what_it_assumes_and_that_nothing_is_measured(
    batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaling.png"
    assert scaling.run(Options(step_ms=40.0, batch=batch, plot=out)) == 0
    said = capsys.readouterr().out
    assert "modelled, not measured" in said and "40.0 ms (given)" in said
    for value in (41.7, *vars(LINKS["H200"]).values()):
        assert str(value) in said, "every assumption"
    rows = [line.split() for line in said.splitlines() if line[:12].strip().isdigit()]
    batches = [128 * count for count in GPUS]
    if batch:
        batches += [batch for count in GPUS if count <= batch]
    assert [int(row[2]) for row in rows] == batches
    assert [int(row[0]) for row in rows[: len(GPUS)]] == list(GPUS)
    for part in (rows[: len(GPUS)], rows[len(GPUS) :]):
        efficiency = [float(row[7]) for row in part]
        assert efficiency == sorted(efficiency, reverse=True), "never better with more"
    assert said.count("modelled, not measured") >= 2 + bool(batch)
    assert out.stat().st_size > 10_000


def test_an_unknown_card_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="card: H900; known: H200, H100, A100"):
        scaling.run(Options(card="H900"))
