"""A target encoder whose residual stream is in the compute precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.models.encoder import SkeletonTransformer
from tests.training.test_step import OTHERS, make_step

BF16 = torch.bfloat16


def seen(encoder: SkeletonTransformer) -> list[torch.dtype]:
    """Fill a list with the dtypes that the blocks of an encoder are given."""
    found: list[torch.dtype] = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].stream.dtype))
    return found


def losses(kind: str, stream: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[torch.dtype]]:
    """Losses of three steps, the features of the last, and the dtypes of the teacher's stream."""
    sections = OTHERS[kind]
    chosen = {**sections.get("objective", {}), "kind": kind, "target_stream": stream}
    model = {**sections.get("model", {}), "depth": 2}
    step = make_step(dtype=dtype, **{**sections, "objective": chosen, "model": model})
    teacher, student = (seen(step.model.network(n)) for n in ("target_encoder", "view_encoder"))
    results = [step(torch.arange(6)) for _ in range(3)]
    assert set(student) == {torch.float32}
    return torch.stack([r.loss for r in results]), results[-1].features, teacher


@pytest.mark.parametrize("kind", ["sjepa", "skeleton2vec"])
def test_stream_is_rounded_and_the_targets_little(kind: str) -> None:
    exact, plain, wide = losses(kind, "float32", BF16)
    rounded, features, narrow = losses(kind, "compute", BF16)
    assert set(wide) == {torch.float32} and set(narrow) == {BF16}
    assert features.dtype == torch.float32
    # bfloat16 has 8 bits; a block adds twice.
    torch.testing.assert_close(features, plain, rtol=0.05, atol=0.05)
    assert not torch.equal(features, plain)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["sjepa", "skeleton2vec"])
def test_in_float32_it_changes_nothing(kind: str) -> None:
    exact, plain, _ = losses(kind, "float32", torch.float32)
    same, features, dtypes = losses(kind, "compute", torch.float32)
    assert set(dtypes) == {torch.float32}
    assert torch.equal(same, exact) and torch.equal(features, plain)


def test_no_preset_rounds_it() -> None:
    assert {preset(name).objective.target_stream for name in PRESETS} == {"float32"}
