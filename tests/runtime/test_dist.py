"""Work shared by the processes of a launcher: nothing twice, nothing lost, all in order."""

from pathlib import Path

import pytest
import torch

from sjepa_fast.runtime.dist import World
from tests.tiny import torchrun

# Three processes share chunks out; process 0 prints what each of them has computed and got.
SHARE = """
import torch
from sjepa_fast.runtime.dist import connect, disconnect, environment_world

world = environment_world()
connect(world, torch.device("cpu"))
for count, size in ((0, 4), (2, 4), (8, 4), (10, 4), (21, 4)):
    done = []

    def rows(chunk):
        done.append(chunk.tolist())
        return torch.stack([chunk.float(), chunk.float().sin()], dim=1)

    ids = torch.arange(count)
    found = world.map_rows(rows, ids.split(size))
    assert torch.equal(found, torch.stack([ids.float(), ids.float().sin()], dim=1)), found
    everywhere = world.gather([done])
    if world.leads:
        print(f"{count} clips:", everywhere, flush=True)
assert world.gather(["only here"] if world.rank == 1 else []) == ["only here"]
disconnect(world)
"""


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 16])
def test_shares_hold_each_item_once_in_order_and_differ_by_one(size: int, count: int) -> None:
    shares = World(size=size).shares(list(range(count)))
    assert [item for share in shares for item in share] == list(range(count))
    lengths = [len(share) for share in shares]
    assert len(shares) == size and max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths), "process 0 has something, where there is anything"


def test_one_process_shares_with_nobody() -> None:
    chunks = torch.arange(5).split(2)
    rows = World().map_rows(lambda chunk: chunk[:, None].float(), chunks)
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4]
    assert World().gather([3, 4]) == [3, 4]


def test_three_processes_compute_every_chunk_once_and_all_get_it(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SHARE)
    done = torchrun(3, script)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "clips:" in line]
    assert said == [
        "0 clips: [[[]], [], []]",
        "2 clips: [[[0, 1]], [], []]",
        "8 clips: [[[0, 1, 2, 3]], [[4, 5, 6, 7]], []]",
        "10 clips: [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9]]]",
        "21 clips: [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]], "
        "[[16, 17, 18, 19], [20]]]",
    ]
