"""The step of fine-tuning as a CUDA graph: it is captured whole, and computes what the CPU does."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.evaluation.probes.classifier import finetune_views, recipe_lengths
from sjepa_fast.evaluation.probes.classifier_step import ClassifierStep
from sjepa_fast.evaluation.probes.streams import join_streams
from sjepa_fast.evaluation.recipes import FinetuneRecipe, finetune_recipe
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.heads import ActionClassifier
from sjepa_fast.models.transformer import set_drop_path
from sjepa_fast.skeletons import KINECT20
from tests.null_gpu import gpu
from tests.null_gpu.traces import CALLS, GPU, WARM_UP
from tests.null_gpu.values import compute_values, poison_free_memory
from tests.tiny import CPU, drawn, packed

CONFIG = replace(
    preset("sjepa-nucla"),
    data={"frames": 16, "bodies": 2, "crop_min_frames": 8},
    runtime={"compile": "off"},
)
# Drawn by torch, whose generators differ between devices.
UNDRAWN = {"drop_path": 0.0, "dropout": 0.0, "mixup": 0.0}


def clips() -> ResidentClips:
    """Six clips of three classes, two of them of two bodies."""
    found = packed(drawn([1, 2, 1, 2, 1, 1], [30, 24, 40, 18, 33, 27], KINECT20), KINECT20)
    return dataclasses.replace(found, labels_N=torch.tensor([0, 1, 2, 0, 1, 2]))


def make_step(device: torch.device, cuda_graph: str = "auto", **changed: Any) -> ClassifierStep:
    recipe: FinetuneRecipe = dataclasses.replace(
        finetune_recipe("strong", CONFIG, scratch=False),
        **{"length": 4 * CALLS, "warmup": 2, "batch_size": 4, "hidden": 8, "lr": 0.01, **changed},
    )
    of = clips()
    config = replace(CONFIG, runtime={"cuda_graph": cuda_graph})
    torch.manual_seed(0)
    encoder = SkeletonTransformer(4, 20, 4 * 3, 32, 2, 1, whiten=True)
    join_streams(encoder, of, torch.arange(6), config, fresh=True)
    model = ActionClassifier(encoder, 20, 3, recipe.hidden, recipe.dropout, recipe.pool).to(device)
    set_drop_path(list(model.encoder.blocks), recipe.drop_path)
    moved = {
        field.name: getattr(of, field.name).to(device)
        for field in dataclasses.fields(of)
        if isinstance(getattr(of, field.name), Tensor)
    }
    of = dataclasses.replace(of, **moved)
    views = finetune_views(recipe, config, of.max_bodies)
    lengths = recipe_lengths(recipe, 6)[1]
    return ClassifierStep(model, of, views, recipe, lengths, config, torch.float32, seed=3)


def batch(number: int, device: torch.device) -> Tensor:
    return ((torch.arange(4) * 5 + number) % 6).to(device)


def state(step: ClassifierStep) -> dict[str, Tensor]:
    """All that a step changes, but for biases whose gradient is a rounding, which AdamW magnifies.

    Attention forgets what is added to all keys, and a batch norm what is added to all rows; its
    running mean does not.
    """
    found = dict(step.model.state_dict())
    names = [name for name, x in found.items() if x.is_floating_point()]
    found |= {f"average of {n}": x for n, x in zip(names, step.average.average, strict=True)}
    found |= {"loss": step.loss_sum, "rates": step.rates_G, "done": step.done}
    found = {name: x.detach().cpu().clone() for name, x in found.items()}
    for name, value in found.items():
        if name.endswith("qkv.bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    left_out = ("head.fc1.bias", "head.norm.running_mean")
    return {name: x for name, x in found.items() if not name.endswith(left_out)}


def test_the_whole_strong_recipe_is_captured_and_replayed_without_a_wait() -> None:
    with gpu.zeros_read():
        step = make_step(GPU)
        for number in range(WARM_UP + 1):
            step(batch(number, GPU))
        assert step.graph is not None and step.graph.graph is not None
        gpu.reset()
        ids = [batch(number, CPU).pin_memory().to(GPU, non_blocking=True) for number in range(2)]
        before = len(gpu.records())
        for some in ids:
            step(some)
        found = gpu.records()[before:]
        # The clips, torch's seed and offset for what it draws, and the graph.
        assert [r.kind for r in found] == 2 * ["copy", "kernel", "kernel", "graph_launch"]
        assert {r.name for r in found if r.kind == "copy"} == {"DtoD"}
        assert all("FillFunctorIl" in r.name for r in found if r.kind == "kernel")
    assert gpu.problems() == []


def test_a_captured_step_computes_what_the_cpu_computes() -> None:
    expected = make_step(CPU, **UNDRAWN)
    wanted = []
    for number in range(CALLS):
        expected(batch(number, CPU))
        wanted.append(state(expected))
    with compute_values():
        step = make_step(GPU, **UNDRAWN)
        for number in range(CALLS):
            poison_free_memory()
            step(batch(number, GPU))
            found = state(step)
            assert found.keys() == wanted[number].keys()
            for name, value in found.items():
                torch.testing.assert_close(value, wanted[number][name], rtol=1e-3, atol=1e-5)
    assert step.graph is not None and step.graph.graph is not None
    assert not torch.equal(wanted[-1]["head.fc2.weight"], wanted[0]["head.fc2.weight"])


@pytest.mark.parametrize("cuda_graph", ["auto", "off"])
def test_nothing_keeps_a_step_that_is_dropped(cuda_graph: str) -> None:
    with gpu.zeros_read():
        step = make_step(GPU, cuda_graph)
        for number in range(WARM_UP + 2):
            step(batch(number, GPU))
        assert (step.graph is None) == (cuda_graph == "off")
        alive = weakref.ref(step)
        gc.disable()
        try:
            del step
            assert alive() is None
        finally:
            gc.enable()
