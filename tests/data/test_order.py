"""How often the sets of a pool are drawn, and that the order is a function of its arguments."""

import numpy as np
import pytest

from sjepa_fast.data.order import BatchOrder, Mixture, epoch_order, pooled_order, quotas

SIZES = np.array([4, 30, 66])
PART = np.arange(200, 300)
SETS = np.repeat([0, 1, 2], SIZES)


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
def test_quotas_follow_the_power_of_the_size(power: float) -> None:
    found = quotas(SIZES, power)
    share = SIZES**power / (SIZES**power).sum()
    assert found.sum() == 100 and (abs(found - 100 * share) < 1).all()


def test_quotas_at_the_ends() -> None:
    assert quotas(SIZES, 1.0).tolist() == SIZES.tolist()
    assert quotas(np.array([1, 1, 5]), 0.0).tolist() == [3, 2, 2]
    # 100 parts by the roots 2, 5.48 and 8.12.
    assert quotas(SIZES, 0.5).tolist() == [13, 35, 52]


def test_a_sample_comes_back_only_after_all_others_of_its_set() -> None:
    ids = pooled_order(PART, SETS, 0.5, seed=1, epoch=4)
    own = {kind: ids[np.isin(ids, PART[kind == SETS])] for kind in range(3)}
    assert [len(own[kind]) for kind in range(3)] == [13, 35, 52]
    assert len(set(own[2])) == 52, "a part of the large set, none twice"
    for kind in (0, 1):
        n = SIZES[kind]
        for first in range(len(own[kind]) - n + 1):
            assert len(set(own[kind][first : first + n])) == n
    # Sets are mixed, not one after the other.
    place = np.flatnonzero(np.isin(ids, PART[SETS == 0]))
    assert place.min() < 30 and place.max() > 70


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = pooled_order(PART, SETS, 0.5, 3, 0)
    assert (first == pooled_order(PART, SETS, 0.5, 3, 0)).all()
    for seed, epoch in ((4, 0), (3, 1)):
        assert (first != pooled_order(PART, SETS, 0.5, seed, epoch)).any()


def test_batches_are_the_same_from_any_step_and_shared_by_processes() -> None:
    mixture = Mixture(SETS, 0.5)
    assert mixture.repeats and not Mixture(SETS, 1.0).repeats
    alone = BatchOrder(PART, 7, 8, 0, 1, mixture)
    whole = [alone.ids(step) for step in range(30)]
    # A resumed run begins in the middle of an epoch.
    resumed = BatchOrder(PART, 7, 8, 0, 1, mixture)
    assert (resumed.ids(17) == whole[17]).all() and (resumed.ids(29) == whole[29]).all()
    both = [BatchOrder(PART, 7, 8, rank, 2, mixture) for rank in (0, 1)]
    for step, ids in enumerate(whole):
        assert np.concatenate([order.ids(step) for order in both]).tolist() == ids.tolist()
    counts = np.bincount(SETS[np.concatenate(whole) - 200], minlength=3) / (30 * 8)
    np.testing.assert_allclose(counts, np.array([13, 35, 52]) / 100, atol=0.03)


def test_without_a_mixture_every_sample_comes_once_in_the_order_it_always_had() -> None:
    order = BatchOrder(PART, 7, 10, 0, 1)
    assert (order.epoch_ids(2) == epoch_order(PART, 7, 2)).all()


def test_most_counts_what_repeats() -> None:
    order = BatchOrder(PART, 0, 10, 0, 1, Mixture(SETS, 0.0))
    count = np.zeros(300, np.int64)
    count[PART[SETS == 0]] = 1
    most = max(int(count[order.ids(step)].sum()) for step in range(10))
    assert order.most(count, 10) == most > 1
