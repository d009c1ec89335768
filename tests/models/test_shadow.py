"""The target encoder's half-precision twin computes what autocast would, and follows the EMA."""

import pytest
import torch
from torch import nn

from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.shadow import shadow_encoder
from sjepa_fast.objectives.objective import Objective
from tests.training.test_step import make_step

BF16 = torch.bfloat16


def encoder() -> SkeletonTransformer:
    torch.manual_seed(0)
    made = SkeletonTransformer(2, 20, 12, 32, 2, 2, whiten=True).requires_grad_(False)
    made.embed.get_buffer("whiten_matrix").copy_(torch.randn(12, 12))
    return made


def test_twin_gives_the_bits_of_autocast() -> None:
    original = encoder()
    twin, _ = shadow_encoder(original, BF16)
    x = torch.randn(3, 40, 12)
    with torch.autocast("cpu", BF16):
        assert torch.equal(twin(x), original(x))


def test_twin_owns_the_linear_weights_alone() -> None:
    original = encoder()
    twin, shadows = shadow_encoder(original, BF16)
    masters, own = dict(original.named_parameters()), dict(twin.named_parameters())
    linear = {n for n, m in original.named_modules() if isinstance(m, nn.Linear)}
    assert set(shadows) == {f"{n}.{part}" for n in linear for part in ("weight", "bias")}
    for name, weight in own.items():
        if name in shadows:
            assert weight is shadows[name] and weight.dtype == BF16
        else:
            assert weight is masters[name]
    for name, buffer in original.named_buffers():
        assert twin.get_buffer(name) is buffer


def test_steps_with_the_twin_are_steps_without(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = make_step(momentum=0.5, dtype=BF16)
    with monkeypatch.context() as patched:
        patched.setattr(Objective, "shadow_teacher", lambda *_: {})
        plain = make_step(momentum=0.5, dtype=BF16)
    assert fast.model.teacher is not fast.model.target_encoder
    assert plain.model.teacher is plain.model.target_encoder
    for _ in range(4):
        ids = torch.arange(6)
        assert torch.equal(fast(ids).loss, plain(ids).loss)
    for name, tensor in fast.model.state_dict().items():
        assert torch.equal(tensor, plain.model.state_dict()[name]), name
    twin = dict(fast.model.teacher.named_parameters())
    for name, weight in fast.model.target_encoder.named_parameters():
        assert torch.equal(twin[name], weight.to(twin[name].dtype)), name


def test_twin_stays_out_of_the_checkpoint() -> None:
    step = make_step(dtype=BF16)
    names = set(step.model.state_dict())
    assert names == set(make_step().model.state_dict())
