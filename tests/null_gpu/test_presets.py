"""Every preset's step on a GPU: it warms up without a wait, is captured, and is then one launch.

Presets whose steps launch the same work, however different their numbers are, share a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from sjepa_fast.config.presets import FITTED, PRESETS
from sjepa_fast.config.schema import ModelConfig, Switch, TrainConfig
from tests.null_gpu import gpu
from tests.null_gpu.steps import (
    WARMUP,
    call,
    layout_of,
    preset_for_nucla,
    preset_step,
    shape_of,
    waits_and_host_copies,
)

NAMES = [*PRESETS, *FITTED]
DTYPES = (torch.bfloat16, torch.float32)
BATCH = 4


def work_of(name: str) -> tuple[object, ...]:
    """What decides which work a preset's step launches; the others are numbers that it reads."""
    config: TrainConfig = preset_for_nucla(name)
    data, mask, aim = config.data, config.mask, config.objective
    return (
        config.model,
        (data.frames, data.sampling, data.bodies, data.stream, data.whiten > 0),
        (data.center, data.align_spine, data.align_yaw, data.normalize_size),
        (mask.kind, mask.ratio, mask.tube_length, mask.mamp_count, mask.predict_ratio),
        mask.num_masked_views,
        (aim.kind, aim.target_norm, aim.target_layers, aim.legacy_tube_layout),
        (aim.views, aim.regularizer, aim.directions),
        (config.view.form, config.optim.clip_grad > 0, layout_of(name)),
    )


def blocks_of(name: str) -> tuple[object, ...]:
    """What decides which code is compiled: the transformer's sizes, and who runs it on what.

    Joints and masked tokens change the lengths of sequences alone.
    """
    config = preset_for_nucla(name)
    sizes = dataclasses.replace(config.model, depth=1, predictor_depth=1)
    return (sizes, config.objective.kind)


def first_of_each(key: object) -> list[str]:
    """The first preset of each group that has one key."""
    found: dict[object, str] = {}
    for name in NAMES:
        found.setdefault(key(name), name)  # type: ignore[operator]
    return list(found.values())


def test_presets_that_share_a_run_differ_in_numbers_alone() -> None:
    """The groups cover all presets, and every method at its published size, if any, and a small."""
    groups = first_of_each(work_of)
    assert {work_of(name) for name in NAMES} == {work_of(name) for name in groups}
    methods = {name.partition("-")[0] for name in NAMES}
    for chosen in (groups, first_of_each(blocks_of)):
        for method in methods:
            widths = {preset_for_nucla(n).model.width for n in chosen if n.startswith(f"{method}-")}
            published = f"{method}-ntu60-xsub" in PRESETS
            assert widths >= {64, *([ModelConfig().width] if published else [])}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Nothing of the presets before: the compiler gives up on a function after a few shapes."""
    torch._dynamo.reset()
    yield
    torch.compiler.set_stance("default")


def rehearse(name: str, *, compiled: Switch, dtype: torch.dtype) -> None:
    step = preset_step(name, compiled=compiled, dtype=dtype, batch=BATCH)
    for number in range(WARMUP):
        records = call(step)
        assert gpu.problems() == []
        assert {"triton", "kernel", "gemm"} <= {r.kind for r in records}
        assert not [r for r in records if r.captured]
        if number > 0:
            assert waits_and_host_copies(records) == [], "a warm-up step waits for the host"
    capture = call(step)
    assert gpu.problems() == [], "the capture is not legal"
    captured = [r for r in capture if r.captured]
    again = shape_of([r for r in records if r.kind not in ("malloc", "free")])
    assert shape_of(captured) == again, "what is captured is not the step"
    for _ in range(2):
        replay = call(step)
        assert gpu.problems() == []
        copy, launch = replay
        assert (copy.kind, copy.name, copy.sizes) == ("copy", "DtoD", (8 * BATCH,))
        assert (launch.kind, launch.sizes) == ("graph_launch", (len(captured),))


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", first_of_each(work_of))
def test_an_eager_step_becomes_one_launch(name: str, dtype: torch.dtype) -> None:
    rehearse(name, compiled="off", dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", first_of_each(blocks_of))
def test_a_compiled_step_becomes_one_launch(name: str, dtype: torch.dtype) -> None:
    rehearse(name, compiled="on", dtype=dtype)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("name", first_of_each(blocks_of))
def test_the_default_step_becomes_one_launch(name: str) -> None:
    rehearse(name, compiled="auto", dtype=torch.bfloat16)
