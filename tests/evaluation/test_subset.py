"""Labelled subsets: one draw for every process, another for every seed, balanced on request."""

from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.store import Store, open_store
from sjepa_fast.data.synthetic import write_synthetic_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.subset import draw_subset
from tests.tiny import run_python

# Both ranks of a gloo group draw, and the leader compares what they gathered.
GATHER = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from sjepa_fast.data.store import open_store
from sjepa_fast.evaluation.subset import draw_subset

dist.init_process_group("gloo")
np.random.seed(dist.get_rank())
torch.manual_seed(dist.get_rank())
store = open_store(sys.argv[1])
for balanced in (False, True):
    own = torch.from_numpy(draw_subset(store, "xsub", 0.1, 3, balanced=balanced))
    found = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(found, own)
    assert torch.equal(*found), found
    if dist.get_rank() == 0:
        print(*own.tolist())
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_synthetic_store(tmp_path_factory.mktemp("subset") / "s", subjects=4, repetitions=2)


def test_two_processes_label_the_same_clips(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "gather.py"
    script.write_text(GATHER)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = run_python(*launcher, script, store.root)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    for line, balanced in zip(lines, (False, True), strict=True):
        here = draw_subset(store, "xsub", 0.1, 3, balanced=balanced)
        assert line == " ".join(map(str, here)), "and this process, alone, too"


def test_size_members_and_seeds(store: Store) -> None:
    train = store.ids("xsub", "train")
    seen = [draw_subset(store, "xsub", 0.1, seed) for seed in range(4)]
    for drawn in seen:
        assert len(drawn) == int(len(train) * 0.1) == len(set(drawn.tolist()))
        assert np.isin(drawn, train).all() and (np.diff(drawn) > 0).all()
    for one in range(4):
        for other in range(one):
            assert not np.array_equal(seen[one], seen[other]), "a seed is another draw"
    assert np.array_equal(draw_subset(store, "xsub", 1.0, 0), train)


def test_data_split_and_ratio_are_part_of_the_draw(store: Store, tmp_path: Path) -> None:
    other = write_synthetic_store(tmp_path / "o", subjects=4, repetitions=2, seed=1)
    mine = draw_subset(store, "xsub", 0.1, 0)
    assert not np.array_equal(draw_subset(other, "xsub", 0.1, 0), mine), "another fingerprint"
    assert not np.isin(mine, draw_subset(store, "xsub", 0.2, 0)).all(), "not nested"
    assert np.array_equal(draw_subset(open_store(store.root), "xsub", 0.1, 0), mine)


def test_balanced_counts_differ_by_one_at_most(store: Store) -> None:
    for ratio in (0.1, 0.15, 0.03):
        drawn = draw_subset(store, "xsub", ratio, 5, balanced=True)
        counts = np.bincount(store.labels[drawn], minlength=14)
        assert counts.max() - counts.min() <= 1 and counts.sum() == int(168 * ratio)
    extra = [
        tuple(np.bincount(store.labels[draw_subset(store, "xsub", 0.03, s, balanced=True)]))
        for s in range(6)
    ]
    assert len(set(extra)) > 1, "which classes get one more is drawn"


def test_balanced_is_uniform_within_a_class(store: Store) -> None:
    counts = np.zeros(len(store))
    for seed in range(300):
        counts[draw_subset(store, "xsub", 0.0834, seed, balanced=True)] += 1
    drawn = counts[store.ids("xsub", "train")]
    # One clip of each class's 12: 25 of 300 each on average, deviation 4.8.
    assert drawn.sum() == 300 * 14 and drawn.min() > 8 and drawn.max() < 46


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, 0.001])
def test_ratios_that_leave_nothing(store: Store, ratio: float) -> None:
    with pytest.raises(InputError, match="ratio"):
        draw_subset(store, "xsub", ratio, 0)
