"""Fresh memory full of NaN, or of the least integer, shows in no output and in no gradient.

What allocates is patched, so a kernel that leaves an element of its output, or of a partial sum,
unwritten changes the result. (`ema_update_` writes into its arguments; its shadows are poisoned in
test_ema.py.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_kernels import (
    ContextualizedTargets,
    SkeletonTables,
    attention,
    augment_clips,
    centered_crop_cross_entropy,
    centered_softmax_cross_entropy,
    fused_mlp,
    motion_aware_mask,
    pack_tokens,
    random_mask,
    residual_layer_norm,
    scatter_mask_tokens,
    self_attention,
    tube_mask,
)
from sjepa_kernels.attention.cpu import PROCESSOR_HAS_CODE
from sjepa_kernels.augment.settings import Augmentation
from tests.kernels.cases import Place

HAS_CPP = True


def with_gradients(outputs: Tensor | tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    learning = [y for y in outputs if y.requires_grad]
    return [*outputs, *torch.autograd.grad(learning, leaves, [y.detach().cos() for y in learning])]


def leaves_of(place: Place, *shapes: tuple[int, ...], dtype: Any = torch.float32) -> list[Tensor]:
    made = [torch.randn(shape).to(place.device, dtype) for shape in shapes]
    return [x.requires_grad_() for x in made]


def tokens(place: Place, packed: bool) -> list[Tensor]:
    # More tokens than a tile of rows, more columns than a tile, a broken tile of each.
    leaves = leaves_of(place, (2, 7, 300), (300,), (5, 300), (7, 300))
    order = torch.stack([torch.randperm(35) for _ in range(2)]).to(place.device)
    keep, hide = order[:, :7], order[:, 7:30]
    if packed:
        return with_gradients(
            pack_tokens(*leaves[:2], keep, hide, *leaves[2:], impl=place.impl), leaves
        )
    return with_gradients(
        scatter_mask_tokens(*leaves[:2], keep, *leaves[2:], impl=place.impl), leaves
    )


def loss(place: Place, width: int) -> list[Tensor]:
    student = leaves_of(place, (7, width))
    teacher, center = torch.randn(9, width), torch.randn(width)
    rows, weights = torch.randint(9, (7,)), torch.rand(7) + 0.1
    found = centered_softmax_cross_entropy(
        *student,
        *(x.to(place.device) for x in (teacher, center)),
        teacher_index_R=rows.to(place.device),
        row_weights_R=weights.to(place.device),
        impl=place.impl,
    )
    return with_gradients(found, student)


def crops(place: Place) -> list[Tensor]:
    student = leaves_of(place, (4, 3, 70))
    teacher, center = torch.randn(2, 3, 70).to(place.device), torch.randn(70).to(place.device)
    found = centered_crop_cross_entropy(*student, teacher, center, impl=place.impl)
    return with_gradients(found, student)


def norm(place: Place) -> list[Tensor]:
    leaves = leaves_of(place, (9, 70), (9, 70), (70,), (70,))
    return with_gradients(residual_layer_norm(*leaves, impl=place.impl), leaves)


def mlp(place: Place) -> list[Tensor]:
    leaves = leaves_of(place, (21, 20), (20,), (20,), (37, 20), (37,), (20, 37), (20,))
    return with_gradients(fused_mlp(*leaves, impl=place.impl), leaves)


def targets(place: Place) -> list[Tensor]:
    found = []
    for kind in ("instance", "layer", "none"):
        mean = ContextualizedTargets(2, kind, impl=place.impl)
        for _ in range(2):
            mean.add_(torch.randn(2, 37, 70).to(place.device))
        found.append(mean.finish(torch.randint(37, (2, 11)).to(place.device)))
    return found


def masks(place: Place) -> list[Tensor]:
    x, seed = torch.randn(3, 42, 6).to(place.device), torch.tensor(3, device=place.device)
    return [
        *motion_aware_mask(x, 10, seed, joints=7, impl=place.impl),
        *random_mask(3, 42, 10, seed, impl=place.impl),
        *tube_mask(x, 2, seed, joints=7, tube_length=3, impl=place.impl),
    ]


def augmentation(place: Place) -> list[Tensor]:
    joints = torch.randn(30, 3, 3).to(place.device)
    tables = ([0, 10], [10, 10], [1, 2], [1, 0])
    seed, step = torch.tensor(3, device=place.device), torch.tensor(4, device=place.device)
    skeleton = SkeletonTables.of([0, 2, 1], [0, 0, 0], 0, 1, place.device)
    store = (torch.tensor(x, device=place.device) for x in tables)
    settings = Augmentation(frames=12, flip=0.5, tilt=0.1, shear=0.1, scale=0.1)
    return list(augment_clips(joints, *store, seed, step, skeleton, settings, impl=place.impl))


def cpu_attention(place: Place) -> list[Tensor]:
    if not PROCESSOR_HAS_CODE:
        pytest.skip("the processor does not multiply bfloat16")
    shapes = (2, 3, 37, 16), (2, 3, 41, 16), (2, 3, 41, 16)
    leaves = leaves_of(Place("cpu", "cpu"), *shapes, dtype=torch.bfloat16)
    return with_gradients(attention(*leaves, impl="cpu"), leaves)


def packed_attention(place: Place) -> list[Tensor]:
    if not PROCESSOR_HAS_CODE:
        pytest.skip("the processor does not multiply bfloat16")
    leaves = leaves_of(Place("cpu", "cpu"), (2, 41, 3, 3, 16), dtype=torch.bfloat16)
    return with_gradients(self_attention(*leaves, first=5), leaves)


CASES: dict[str, Callable[[Place], list[Tensor]]] = {
    "scatter": lambda place: tokens(place, False),
    "pack": lambda place: tokens(place, True),
    "loss": lambda place: loss(place, 100),
    "wide loss": lambda place: loss(place, 4500),
    "crops": crops,
    "residual norm": norm,
    "mlp": mlp,
    "targets": targets,
    "masks": masks,
    "augmentation": augmentation,
    "attention": cpu_attention,
    "packed attention": packed_attention,
}
IN_CPP = {"loss", "wide loss", "crops", "attention", "packed attention"}


def poison(x: Tensor) -> Tensor:
    return x.fill_(torch.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)


@pytest.mark.parametrize("name", CASES)
def test_every_element_is_written(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.impl == "torch" or (place.impl == "cpu" and name not in IN_CPP):
        pytest.skip("plain PyTorch allocates where nobody can look")
    torch.manual_seed(1)
    expected = CASES[name](place)
    poisoned = []

    def poisoning(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **options: Any) -> Tensor:
            poisoned.append(name)
            return poison(function(*args, **options))

        return call

    monkeypatch.setattr(Tensor, "new_empty", poisoning(Tensor.new_empty))
    for function in ("empty", "empty_like"):
        monkeypatch.setattr(torch, function, poisoning(getattr(torch, function)))
    torch.manual_seed(1)
    found = CASES[name](place)
    assert poisoned, "nothing was allocated where this test looks"
    for k, (ours, true) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(ours, true), k
