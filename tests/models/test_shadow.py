"""The target encoder's half-precision twin computes what autocast would, and follows the EMA."""

import pytest
import torch
from torch import nn

from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.shadow import product_bias, shadow
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.runtime.dist import World
from sjepa_fast.training.step import shadows_trained
from tests.training.test_step import make_step

BF16 = torch.bfloat16


def encoder() -> SkeletonTransformer:
    torch.manual_seed(0)
    made = SkeletonTransformer(2, 20, 12, 32, 2, 2, whiten=True).requires_grad_(False)
    made.embed.get_buffer("whiten_matrix").copy_(torch.randn(12, 12))
    return made


def test_twin_gives_the_bits_of_autocast() -> None:
    original = encoder()
    twin, _ = shadow(original, BF16)
    x = torch.randn(3, 40, 12)
    with torch.autocast("cpu", BF16):
        assert torch.equal(twin(x), original(x))


def test_twin_owns_the_linear_weights_alone() -> None:
    original = encoder()
    twin, shadows = shadow(original, BF16)
    masters, own = dict(original.named_parameters()), dict(twin.named_parameters())
    linear = {n for n, m in original.named_modules() if isinstance(m, nn.Linear)}
    assert set(shadows) == {f"{n}.{part}" for n in linear for part in ("weight", "bias")}
    for name, weight in own.items():
        if name in shadows and name.endswith("weight"):
            assert weight is shadows[name] and weight.dtype == BF16
        else:
            assert weight is masters[name]
    for name in linear:
        layer = twin.get_submodule(name)
        assert product_bias(layer).data_ptr() == shadows[f"{name}.bias"].data_ptr()
        assert product_bias(layer).dtype == BF16
        assert product_bias(original.get_submodule(name)).dtype == torch.float32
    for name, buffer in original.named_buffers():
        assert twin.get_buffer(name) is buffer


def test_steps_with_the_twin_are_steps_without(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = make_step(momentum=0.5, dtype=BF16)
    with monkeypatch.context() as patched:
        patched.setattr(Objective, "shadow", lambda *_: {})
        plain = make_step(momentum=0.5, dtype=BF16)
    assert fast.model.network("target_encoder") is not fast.model.target_encoder
    assert plain.model.network("target_encoder") is plain.model.target_encoder
    for _ in range(4):
        ids = torch.arange(6)
        assert torch.equal(fast(ids).loss, plain(ids).loss)
    for name, tensor in fast.model.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name]), name
    teacher = fast.model.network("target_encoder")
    twin = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    for name, weight in fast.model.target_encoder.named_parameters():
        assert torch.equal(twin[name], weight.to(twin[name].dtype)), name
        half = twin.get(name.replace(".bias", ".half_bias"), twin[name])
        assert torch.equal(half, weight.to(half.dtype)), name


def test_twin_stays_out_of_the_checkpoint() -> None:
    step = make_step(dtype=BF16)
    names = set(step.model.state_dict())
    assert names == set(make_step().model.state_dict())


def test_trained_copies_give_the_bits_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_step(dtype=BF16)
    with monkeypatch.context() as patched:
        patched.setattr("sjepa_fast.training.step.shadows_trained", lambda *_: True)
        fast = make_step(dtype=BF16)
    for name in ("view_encoder", "predictor"):
        assert fast.model.network(name) is not getattr(fast.model, name)
    for _ in range(4):
        ids = torch.arange(6)
        ours, theirs = fast(ids), plain(ids)
        assert torch.equal(ours.loss, theirs.loss)
        assert torch.equal(ours.grad_norm, theirs.grad_norm)
    for name, tensor in fast.model.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name]), name


def test_gradients_of_trained_copies_are_dropped_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sjepa_fast.training.step.shadows_trained", lambda *_: True)
    step = make_step(dtype=BF16)
    monkeypatch.setattr(step.shadows, "hand_over", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(torch.arange(6))
    assert any(half.grad is not None for half in step.shadows.halves)
    step.forget()
    assert all(half.grad is None for half in step.shadows.halves)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "expected"),
    [("cuda", BF16, 1, True), ("cuda", torch.float32, 1, False), ("cuda", BF16, 2, False),
     ("cpu", BF16, 1, False)],
)  # fmt: skip
def test_where_trained_copies_compute(
    device: str, dtype: torch.dtype, size: int, expected: bool
) -> None:
    assert shadows_trained(torch.device(device), dtype, World(size=size)) is expected
