"""Activations are kept where a GPU has the memory, and what is kept is counted right."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import RuntimeConfig, replace
from sjepa_fast.training.memory import kept_bytes, recomputes
from tests.tiny import CPU
from tests.training.test_step import make_step

BF16, GPU = torch.bfloat16, torch.device("cuda")
NTU = replace(preset("sjepa-ntu60-xsub"), optim={"batch_size": 128})


def test_kept_bytes_of_the_paper_shape() -> None:
    # 8 blocks on 75 tokens, 4 on 750 and one that goes on with 675, of 256 sequences.
    rows = 256 * (8 * 75 + 4 * 750 + 675)
    assert kept_bytes(NTU, 25, BF16) == rows * 256 * 16 * 2
    assert kept_bytes(NTU, 25, torch.float32) == 2 * kept_bytes(NTU, 25, BF16)
    assert kept_bytes(NTU, 25, BF16, processes=4) == kept_bytes(NTU, 25, BF16) // 4
    twice = replace(NTU, mask={"num_masked_views": 2})
    assert kept_bytes(twice, 25, BF16) == 2 * kept_bytes(NTU, 25, BF16)
    views = replace(NTU, objective={"kind": "multiview", "views": 4})
    assert kept_bytes(views, 25, BF16) == 4 * 256 * 8 * 75 * 256 * 16 * 2


@pytest.mark.parametrize(
    ("choice", "device", "gib", "expected"),
    [
        ("auto", GPU, 140, False),
        ("auto", GPU, 24, True),
        ("on", GPU, 140, True),
        ("off", GPU, 24, False),
        ("auto", CPU, 0, False),
    ],
)
def test_where_activations_are_made_again(
    choice: Any, device: torch.device, gib: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    config = dataclasses.replace(NTU, runtime=RuntimeConfig(recompute=choice))
    assert recomputes(config, 25, device, BF16) is expected


@pytest.mark.parametrize("choice", ["on", "off"])
def test_the_choices_reach_every_block(choice: Any) -> None:
    step = make_step(dtype=BF16, runtime={"recompute": choice, "attention": "flash"})
    for name in ("view_encoder", "predictor", "target_encoder"):
        blocks = step.model.network(name).blocks
        assert {(block.attention, block.keep) for block in blocks} == {("flash", choice == "off")}
