"""The GPU's form of a block, whose norms add the branch before them, computes what the plain does.

It runs here on a CPU, through the reference forms of its ops.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.predictor import Predictor
from sjepa_fast.models.residual import Residual
from sjepa_fast.models.transformer import Block, set_drop_path
from sjepa_kernels import ContextualizedTargets

SEGMENTS, JOINTS, WIDTH, HEADS, KEPT = 2, 5, 16, 2, 4
TOKENS = SEGMENTS * JOINTS


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def choose(fused: bool) -> None:
        for module in ("residual", "transformer"):
            monkeypatch.setattr(f"sjepa_fast.models.{module}.fuses", lambda _: fused)

    return choose


def unsettled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module.double()


def ids() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(3)])
    return order[:, :KEPT], order[:, KEPT:]


def encoder(layer_scale: float) -> tuple[nn.Module, Callable[[], Tensor]]:
    made = unsettled(
        SkeletonTransformer(SEGMENTS, JOINTS, 12, WIDTH, 3, HEADS, layer_scale=layer_scale)
    )
    x = torch.randn(3, TOKENS, 12, dtype=torch.float64)
    return made, lambda: torch.cat([made(x), made(x, ids()[0])], dim=1)


def predictor(masked_only: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    made = unsettled(Predictor(SEGMENTS, JOINTS, WIDTH, 3, HEADS))
    visible = torch.randn(3, KEPT, WIDTH, dtype=torch.float64)
    return made, lambda: made(visible, *ids(), masked_only=masked_only)


CASES = {
    "encoder": lambda: encoder(0.0),
    "encoder with layer scale": lambda: encoder(0.1),
    "predictor": lambda: predictor(True),
    "predictor, all tokens": lambda: predictor(False),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_every_gradient_are_those_of_the_plain_form(
    case: str, as_on_a_gpu: Callable[[bool], None]
) -> None:
    torch.manual_seed(0)
    module, run = CASES[case]()
    found = []
    for fused in (True, False):
        as_on_a_gpu(fused)
        out = run()
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).double()
        grads = torch.autograd.grad((out * weight).sum(), list(module.parameters()))
        found.append([out, *grads])
    names = ["out", *(name for name, _ in module.named_parameters())]
    for name, ours, plain in zip(names, *found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_targets_from_layers_are_those_of_the_plain_form(
    layer_scale: float, as_on_a_gpu: Callable[[bool], None]
) -> None:
    torch.manual_seed(0)
    made = unsettled(
        SkeletonTransformer(SEGMENTS, JOINTS, 12, WIDTH, 3, HEADS, layer_scale=layer_scale)
    )
    x = torch.randn(3, TOKENS, 12, dtype=torch.float64)
    found = []
    for fused in (True, False):
        as_on_a_gpu(fused)
        layers = ContextualizedTargets(2, "instance")
        with torch.no_grad():
            made(x, layers=layers)
        found.append(layers.finish())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_a_branch_that_is_left_out_is_left_out(as_on_a_gpu: Callable[[bool], None]) -> None:
    torch.manual_seed(0)
    blocks = [Block(8, 2) for _ in range(2)]
    set_drop_path(blocks, 0.6)
    x = torch.randn(64, 3, 8)
    found = []
    for fused in (True, False):
        as_on_a_gpu(fused)
        torch.manual_seed(1)
        found.append(blocks[1](Residual(x)).settled())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert 0 < ((found[0] - x).abs().amax(dim=(1, 2)) == 0).sum() < 64


def test_a_branch_whose_bias_waits_for_its_gradient_is_not_settled(
    as_on_a_gpu: Callable[[bool], None],
) -> None:
    as_on_a_gpu(True)
    residual = Block(8, 2)(Residual(torch.randn(1, 3, 8)))
    assert residual.bias is not None
    with pytest.raises(AssertionError, match="bias would be lost"):
        residual.settled()
    with torch.no_grad():
        assert residual.settled().shape == (1, 3, 8)
