"""The FLOP count against the method's figures, and against torch's count of a real step."""

import dataclasses
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sjepa_fast.build import build_model, build_optimizer
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, kept_tokens, replace
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.schedule import tabulate
from sjepa_fast.skeletons import KINECT20
from sjepa_fast.training.flops import block_flops, step_flops
from sjepa_fast.training.step import TrainStep
from sjepa_kernels import attention, self_attention
from tests.tiny import CPU, drawn, packed


def test_one_full_layer_of_the_paper() -> None:
    assert block_flops(750, 256) == pytest.approx(1.756e9, rel=1e-3)


def test_paper_step_is_within_two_percent_of_the_method() -> None:
    paper = replace(preset("sjepa-ntu60-xsub"), optim={"batch_size": 1})
    found = step_flops(paper)
    # Method 8.3, GFLOP of a clip of two bodies.
    assert found.view_encoder == pytest.approx(1.95e9, rel=0.02)
    assert found.predictor == pytest.approx(17.77e9, rel=0.02)
    assert found.target_encoder == pytest.approx(28.10e9, rel=0.02)
    assert found.total == pytest.approx(87.3e9, rel=0.02)


# Method 8.3, GFLOP of a clip of two bodies, forward and backward.
PUBLISHED = {
    "sjepa-ntu60-xsub": 87.3,
    "mamp-ntu120-xsub": 59.2,
    "mamp-ntu60-xsub": 38.1,
    "skeleton2vec-ntu60-xsub": 65.0,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counted_as_the_papers_compute_it_is_within_two_percent(name: str) -> None:
    config = replace(preset(name), optim={"batch_size": 1})
    whole = step_flops(config, visible_to_the_end=True).total
    assert whole == pytest.approx(PUBLISHED[name] * 1e9, rel=0.02)
    assert whole > step_flops(config).total


@pytest.mark.parametrize("name", PUBLISHED)
def test_with_what_is_left_out_it_is_the_methods_count(name: str) -> None:
    """The method counts visible tokens to the end, and a head of the full width for each token."""
    config = replace(preset(name), optim={"batch_size": 1})
    width, joints = 256, 25
    masked = 750 - kept_tokens(config.mask, 750, joints)
    outputs = 12 if name.startswith("mamp") else width
    last = block_flops(750, width) - block_flops(750, width, masked)
    head = 2 * width * (750 * width - masked * outputs)
    whole = step_flops(config).total + 2 * 3 * (last + head)
    assert whole == pytest.approx(PUBLISHED[name] * 1e9, rel=0.005)


def test_equal_sequences_are_counted_once_if_they_are_computed_once() -> None:
    paper = preset("sjepa-ntu60-xsub")
    whole, once = step_flops(paper), step_flops(paper, target_sequences=128)
    assert 4 * once.target_encoder == whole.target_encoder
    assert whole.total - once.total == 3 * once.target_encoder


def test_batch_bodies_and_skipping_scale_the_count() -> None:
    paper = preset("sjepa-ntu60-xsub")
    one = replace(paper, optim={"batch_size": 1})
    assert step_flops(paper).total == 256 * step_flops(one).total
    single = replace(one, data={"skip_empty_bodies": True})
    assert 2 * step_flops(single).total == step_flops(one).total


def small(kind: str = "sjepa", **sections: dict[str, object]) -> TrainConfig:
    base = replace(
        TrainConfig(),
        data={"frames": 16, "bodies": 1, "crop_min_frames": 4},
        model={"segment_length": 4, "width": 48, "depth": 2, "heads": 3, "predictor_depth": 2},
        mask={"ratio": 0.7},
        view={"rotation": 0.5, "tilt": 0.1},
        objective={"kind": kind, "target_layers": 2},
        optim={"batch_size": 3},
    )
    return replace(base, **sections)


CASES = {
    "paper": small(),
    "whitened": small(data={"whiten": 1.0}),
    "partial": small(mask={"predict_ratio": 0.3}),
    "cross": small(model={"predictor": "cross"}, mask={"predict_ratio": 0.5}),
    "two masks": small(mask={"num_masked_views": 2}),
    "mamp": small("mamp"),
    "tubes": small("skeleton2vec", mask={"kind": "tube", "tube_length": 2}),
    "sigreg": small("mamp", objective={"kind": "mamp", "regularizer": "sigreg", "directions": 8}),
    "multiview": small(
        objective={"kind": "multiview", "regularizer": "vicreg", "views": 3},
        model={"projector_hidden": 40, "projector_width": 8},
    ),
    "absent bodies": small(data={"bodies": 2}),
    "absent bodies, tubes": small("skeleton2vec", data={"bodies": 2}, mask={"num_masked_views": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_count_equals_torchs_of_a_real_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Attention as two plain products; torch counts a fused backward's recomputation as work.
    for form in (attention, self_attention):
        explicit = partial(form, impl="explicit")
        monkeypatch.setattr(f"sjepa_fast.models.transformer.{form.__name__}", explicit)
    config = CASES[case]
    clips = packed(drawn([1] * 3, [20] * 3, KINECT20), KINECT20)
    if config.data.bodies > 1:
        clips = dataclasses.replace(clips, max_bodies=2, most_bodies=3)
        assert clips.distinct_sequences(3) == 4
    model = build_model(config, clips, torch.arange(3), CPU)
    optimizer = build_optimizer(model, config)
    schedule = tabulate(config, 10, 2, CPU)
    step = TrainStep(config, clips, model, optimizer, torch.float32, World(), schedule)
    with FlopCounterMode(display=False) as counter:
        step(torch.arange(3))
    name = type(model).__name__
    counts = {part: sum(found.values()) for part, found in counter.get_flop_counts().items()}
    ours = step_flops(config, joints=20, target_sequences=clips.distinct_sequences(3))
    assert counts.get(f"{name}.target_encoder", 0) == ours.target_encoder
    # S-JEPA's mask token passes the input layer, forward and two products backward, once a batch.
    mask_token = 3 * 2 * 48 * 48 if name == "SJEPA" else 0
    parts = (counts.get(f"{name}.{part}", 0) for part in ("view_encoder", "predictor", "projector"))
    found = sum(parts) - mask_token
    assert found == ours.view_encoder + ours.predictor + ours.projector + ours.backward
    rotations = counter.get_total_flops() - ours.total - mask_token
    assert 0 <= rotations < 1e-3 * ours.total, "nothing but the networks is worth counting"
