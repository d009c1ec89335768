"""Targets of equal sequences are computed once, and nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.objectives.distinct import Distinct, Encoded
from sjepa_fast.objectives.objective import Objective, StepInput, make_step_input
from sjepa_fast.skeletons import NTU25
from tests.tiny import NORMS, drawn, objective, packed

CONFIG = replace(
    TrainConfig(),
    data={"frames": 8, "bodies": 3, "crop_min_frames": 4},
    model={"segment_length": 2, "width": 32, "depth": 3, "heads": 2, "predictor_depth": 1},
    view={"rotation": 0.5, "tilt": 0.1, "translation": 0.3, "flip": 0.5, "scale": 0.2},
)
# Bodies of the clips; a batch of any four of them has six at most.
BODIES = [1, 1, 2, 1, 1, 1, 2, 1, 1, 1]
MOST = 6
BATCHES = {"all slots": [2, 5, 6, 0], "slots left over": [0, 1, 3, 4]}


def clips_of(bodies: list[int] = BODIES, most: int = MOST) -> ResidentClips:
    frames = [9 + i for i in range(len(bodies))]
    clips = packed(drawn(bodies, frames, NTU25, seed=4), NTU25)
    return dataclasses.replace(clips, max_bodies=3, most_bodies=most)


def batch_of(config: TrainConfig, ids: list[int], clips: ResidentClips | None = None) -> StepInput:
    keys = torch.tensor(3), torch.tensor(5)
    return make_step_input(clips or clips_of(), torch.tensor(ids), *keys, config)


def moved(config: TrainConfig) -> Objective:
    """An objective whose target encoder and center are not as they start."""
    model = objective(config)
    assert model.target_encoder is not None
    with torch.no_grad():
        for weight in model.target_encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        if model.center is not None:
            model.center.normal_()
    return model


def of_kind(kind: str, **sections: dict[str, object]) -> TrainConfig:
    chosen = {"kind": kind, "target_norm": NORMS[kind], "target_layers": 2}
    own = replace(CONFIG, objective=chosen)
    return replace(own, **sections)


CASES = {
    "sjepa": of_kind("sjepa"),
    "sjepa, normalised targets": of_kind("sjepa", objective={"target_norm": "layernorm"}),
    "sjepa, three masks": of_kind("sjepa", mask={"num_masked_views": 3}),
    "sjepa, whitened, some tokens": of_kind(
        "sjepa", data={"whiten": 1.0}, mask={"predict_ratio": 0.4}
    ),
    "skeleton2vec": of_kind("skeleton2vec"),
    "skeleton2vec, layernorm": of_kind("skeleton2vec", objective={"target_norm": "layernorm"}),
    "skeleton2vec, two masks, some tokens": of_kind(
        "skeleton2vec", mask={"num_masked_views": 2, "predict_ratio": 0.4}
    ),
    "skeleton2vec, tubes as the authors": of_kind(
        "skeleton2vec",
        mask={"kind": "tube", "tube_length": 2, "ratio": 0.8},
        objective={"legacy_tube_layout": True},
        data={"sampling": "index"},
    ),
}


@pytest.mark.parametrize("which", [*BATCHES, "all absent"])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_loss_gradients_center_and_features_are_those_of_all_sequences(
    config: TrainConfig, which: str
) -> None:
    # Kernels of a CPU may sum in another order where they get fewer rows.
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    clips = clips_of()
    if which not in BATCHES:
        clips = dataclasses.replace(clips, bodies_N=torch.zeros_like(clips.bodies_N))
    model = moved(config)
    batch = batch_of(config, BATCHES.get(which, [0, 1, 2, 3]), clips)
    if config.data.whiten:
        for encoder in (model.view_encoder, model.eval_encoder):
            encoder.embed.get_buffer("whiten_mean").normal_()
    assert batch.distinct is not None and batch.distinct.slots < len(batch.clip_BNP)
    found = []
    for form in (batch, dataclasses.replace(batch, distinct=None)):
        model.zero_grad()
        out = model(form)
        out.loss.backward()
        found.append((out, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (once, gradients), (all_, expected) = found
    assert len(once.encoded.rows) < len(all_.encoded.rows)
    torch.testing.assert_close(once.loss, all_.loss, **tolerance)
    torch.testing.assert_close(gradients, expected, **tolerance)
    torch.testing.assert_close(once.features, all_.features, **tolerance)
    assert once.center_count == all_.center_count
    if all_.center_sum is not None:
        torch.testing.assert_close(once.center_sum, all_.center_sum, rtol=1e-5, atol=1e-4)


def counted(model: Objective) -> list[int]:
    """Fill a list with the number of sequences of each pass of the target encoder."""
    passes: list[int] = []
    teacher = model.network("target_encoder")
    teacher.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


@pytest.mark.parametrize("kind", ["sjepa", "skeleton2vec"])
@pytest.mark.parametrize("masks", [1, 3])
def test_a_step_has_one_pass_of_the_target_encoder_of_one_size(kind: str, masks: int) -> None:
    config = of_kind(kind, mask={"num_masked_views": masks})
    model = objective(config)
    passes = counted(model)
    for ids in BATCHES.values():
        model(batch_of(config, ids))
    model(batch_of(config, [6]))
    # A batch of one clip has no more than its three sequences.
    assert passes == [MOST + 1, MOST + 1, 3]


def test_a_batch_without_absent_bodies_is_computed_as_it_is() -> None:
    config = of_kind("sjepa")
    full = packed(drawn([3, 3], [9, 9], NTU25), NTU25)
    batch = batch_of(config, [0, 1], dataclasses.replace(full, most_bodies=6))
    assert batch.distinct is None and batch.target_input() is batch.clip_BNP


def test_a_batch_that_fills_all_slots_has_its_own_targets() -> None:
    """No body is absent, although the run has a batch with one: all but slot 0 are taken."""
    x = torch.randn(4, 5, 6)
    distinct = Distinct.of(torch.ones(4, dtype=torch.int64), 5)
    assert distinct.slot_B.tolist() == [1, 2, 3, 4]
    rows = distinct.gather(x)
    assert torch.equal(rows[1:], x) and (rows[0] == 0).all()
    assert torch.equal(Encoded(rows, distinct).features(), x)


def test_slots_follow_the_bodies_and_more_than_fit_is_an_error() -> None:
    distinct = Distinct.of(torch.tensor([1, 0, 1, 1, 0, 0]), 5)
    assert distinct.slot_B.tolist() == [1, 0, 2, 3, 0, 0]
    x = torch.arange(1.0, 7.0)[:, None] * torch.tensor([1, 0, 1, 1, 0, 0])[:, None]
    assert distinct.gather(x).flatten().tolist() == [0, 1, 3, 4, 0]
    with pytest.raises((IndexError, RuntimeError)):
        Distinct.of(torch.tensor([1, 0, 1, 1, 0, 0]), 3).gather(x)


@pytest.mark.parametrize("kind", ["mamp", "skeletonmae"])
def test_objectives_without_a_target_encoder_do_not_look(kind: str) -> None:
    assert batch_of(of_kind(kind), [0, 1]).distinct is None


def test_unknown_counts_and_single_bodies_are_computed_as_they_are() -> None:
    config = of_kind("sjepa")
    assert batch_of(config, [0, 1], clips_of(most=0)).distinct is None
    single, _ = clips_of(most=0).split_bodies(torch.arange(10).numpy())
    assert batch_of(config, [0, 1], dataclasses.replace(single, most_bodies=2)).distinct is None


FORMS: dict[str, dict[str, object]] = {
    "body": {},
    "axes": {"form": "axes", "tilt": 0.0, "shear": 0.5},
}


@pytest.mark.parametrize("plain", [False, True], ids=["as built", "plain PyTorch"])
@pytest.mark.parametrize("stream", ["joint", "bone", "motion", "bone_motion"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampling", ["resize", "index"])
def test_absent_bodies_are_zero_for_the_target_encoder(
    form: str, stream: str, sampling: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every option of the data path, before and after the view."""
    if plain:
        monkeypatch.setattr("sjepa_kernels.augment.op.choose", lambda *_, **__: "torch")
    data = {"stream": stream, "sampling": sampling}
    for kind in ("sjepa", "skeleton2vec"):
        config = of_kind(kind, data=data, view=FORMS[form])
        batch = batch_of(config, BATCHES["all slots"])
        expected = torch.zeros(4, 3, dtype=torch.bool)
        for row, clip in enumerate(BATCHES["all slots"]):
            expected[row, : BODIES[clip]] = True
        for x in (batch.view_BNP, batch.clip_BNP):
            assert torch.equal((x != 0).flatten(1).any(dim=1), expected.flatten())
        assert batch.distinct is not None
        assert torch.equal(batch.distinct.slot_B > 0, expected.flatten())
