"""The tables of a skeleton that `augment_clips` reads."""

from __future__ import annotations

from sjepa_kernels import SkeletonTables
from tests.kernels.op_case import Absent, Arguments, OpCase


def arguments() -> Arguments:
    tables = {"flip": (0, 1, 3, 2), "parents": (0, 0, 1, 1)}
    return {**tables, "center": 0, "spine_top": 1}


TABLES = Absent("tables, which augment_clips reads")
CASE = OpCase(
    op=SkeletonTables,
    tests=["test_augment.py"],
    arguments=arguments,
    calls=lambda a: SkeletonTables.of(**a, device="cpu"),
    says=[
        ({"flip": (0, 0, 2, 3)}, r"flip: .*give a permutation of 0\.\.3"),
        ({"parents": (0, 4, 0, 0)}, r"parents: .*joints must lie in 0\.\.3"),
        ({"spine_top": -1}, r"spine_top: \(-1,\); joints must lie in 0\.\.3"),
    ],
    spoils={
        "flip": [(0, 1, 2), (0, 1, 1, 3), (0, 1, 2, 4), ()],
        "parents": [(0, 0, 1), (0, 0, 1, 4), (0, 0, 1, -1), ()],
        "center": [-1, 4],
        "spine_top": [-1, 4],
    },
    uses=TABLES,
    launches=TABLES,
    fuzz=TABLES,
    checked_with="augment_clips",
    in_triton=False,
)
