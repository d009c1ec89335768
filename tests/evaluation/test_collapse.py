"""The panel tells collapsed features from healthy ones, and never by entropy."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sjepa_fast.evaluation.collapse import collapse_panel, effective_rank

WIDTH = 32
CENTER = torch.zeros(WIDTH)


def rows(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, WIDTH, generator=generator)
    if kind == "healthy":
        return noise
    if kind == "constant":
        return torch.ones(2000, WIDTH) + 1e-6 * noise
    if kind == "rank-1":
        return noise[:, :1] * torch.randn(WIDTH, generator=generator)
    hot = torch.zeros(2000, WIDTH)
    hot[:, 3] = 10
    return hot + 1e-5 * noise


@pytest.mark.parametrize("kind", ["constant", "rank-1", "one-hot"])
def test_collapsed_features_are_told_apart(kind: str) -> None:
    assert collapse_panel(rows(kind), CENTER, 0.06)["collapsed"] == 1


def test_healthy_features_are_not_called_collapsed_although_their_entropy_is_low() -> None:
    panel = collapse_panel(rows("healthy"), CENTER, 0.06)
    assert panel["collapsed"] == 0
    assert panel["effective_rank"] > 0.9 * WIDTH
    assert panel["channel_std"] == pytest.approx(1, abs=0.05)
    assert panel["mean_cosine"] < 0.05
    assert panel["target_entropy"] < 0.2 * math.log(WIDTH)
    assert panel["argmax_perplexity"] > 0.9 * WIDTH


def test_one_hot_everywhere_has_one_argmax() -> None:
    panel = collapse_panel(rows("one-hot"), CENTER, 0.06)
    assert panel["argmax_share"] == 1 and panel["argmax_perplexity"] == pytest.approx(1)


def test_effective_rank_of_equal_directions_is_their_number() -> None:
    x = torch.zeros(400, WIDTH)
    x[:, :4] = torch.linalg.qr(torch.randn(400, 4))[0]
    x -= x.mean(dim=0)
    assert effective_rank(x).item() == pytest.approx(4, abs=0.1)


def test_center_enters_the_entropy_and_the_norm() -> None:
    x = rows("one-hot")
    centered = collapse_panel(x, x.mean(dim=0), 0.06)
    assert centered["target_entropy"] > 0.9 * math.log(WIDTH)
    assert centered["center_norm"] == pytest.approx(10, rel=1e-3)


def test_panel_reads_the_device_once() -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        collapse_panel(rows("healthy"), CENTER, 0.06)
    # tolist() reads the whole vector; one_hot's range check is the library's own.
    assert reads.count <= 2


def test_a_regular_grid_is_sampled_over_all_its_joints_and_clips() -> None:
    # 64 clips of 8 x 20 tokens: a plain stride of 2 would only ever meet every other joint.
    clips, segments, joints = 64, 8, 20
    noise = torch.randn(clips, segments, joints, WIDTH, generator=torch.Generator().manual_seed(1))
    every_other = noise.clone()
    every_other[:, :, ::2] = 1.0
    late = torch.zeros_like(noise)
    late[52:] = noise[52:]
    for grid, share in ((every_other, 0.5), (late, 12 / 64)):
        panel = collapse_panel(grid, CENTER, 0.06)
        everything = grid.flatten(0, 2).std(dim=0).mean().item()
        assert panel["collapsed"] == 0
        assert panel["channel_std"] == pytest.approx(everything, rel=0.1)
        assert panel["argmax_share"] == pytest.approx(1 - share, abs=0.06)


def test_a_constant_offset_is_not_a_collapse() -> None:
    panel = collapse_panel(rows("healthy") + 200, CENTER, 0.06)
    assert panel["mean_cosine"] > 0.999 and panel["collapsed"] == 0


def test_the_panel_of_a_broken_step_is_not_a_number() -> None:
    """The decomposition of rows with NaN raised, and no resume came past that step."""
    features = torch.randn(8, 4)
    features[3, 2] = math.nan
    assert math.isnan(collapse_panel(features, torch.zeros(4), 0.06)["effective_rank"])
