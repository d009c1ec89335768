"""The modules that hold parameters: each equals the torch layers whose parameters it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from sjepa_kernels import FusedMlp, MaskTokens, ResidualLayerNorm
from tests.kernels.cases import Place


def assert_same_learning(
    ours: nn.Module, out: Tensor, theirs: list[Tensor], expected: Tensor
) -> None:
    """Equal values, and equal gradients of the parameters in their order."""
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    found = torch.autograd.grad(out, list(ours.parameters()), grad)
    torch.testing.assert_close(
        list(found), list(torch.autograd.grad(expected, theirs, grad)), rtol=1e-11, atol=1e-11
    )


def test_residual_layer_norm_takes_a_layer_norms_state(place: Place) -> None:
    theirs = nn.LayerNorm(6, eps=1e-3).double().to(place.device)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = ResidualLayerNorm(6, eps=1e-3, impl=place.impl).double().to(place.device)
    ours.load_state_dict(theirs.state_dict())
    x, stream = torch.randn(2, 4, 5, 6, dtype=torch.float64, device=place.device)
    y, total = ours(x, stream)
    assert torch.equal(total, x + stream)
    assert_same_learning(ours, y, list(theirs.parameters()), theirs(x + stream))


def test_fused_mlp_equals_its_layers(place: Place) -> None:
    ours = FusedMlp(6, 10, eps=1e-3, impl=place.impl).double().to(place.device)
    x = torch.randn(4, 6, dtype=torch.float64, device=place.device)
    names = ["norm.weight", "norm.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert list(ours.state_dict()) == names
    expected = x + ours.fc2(gelu(ours.fc1(ours.norm(x))))
    assert_same_learning(ours, ours(x), list(ours.parameters()), expected)


def test_mask_tokens_in_the_grid_and_packed(place: Place) -> None:
    module = MaskTokens(2, 3, 5, impl=place.impl).double().to(place.device)
    mask, temporal, spatial = module.parameters()
    visible = torch.randn(2, 2, 5, dtype=torch.float64, device=place.device)
    keep = torch.tensor([[4, 1], [0, 5]], device=place.device)
    hide = torch.tensor([[0, 5, 2, 3], [3, 1, 4, 2]], device=place.device)
    position = (temporal[:, None] + spatial).flatten(0, 1)
    order = torch.cat([keep, hide], dim=1)
    content = torch.cat([visible, mask.expand(2, 4, 5)], dim=1)
    packed = content + position[order]
    back = order.argsort(dim=1)[:, :, None].expand(-1, -1, 5)
    theirs = list(module.parameters())
    assert_same_learning(module, module(visible, keep, hide), theirs, packed)
    content = torch.cat([visible, mask.expand(2, 4, 5)], dim=1).gather(1, back)
    grid = content + (temporal[:, None] + spatial).flatten(0, 1)
    assert_same_learning(module, module(visible, keep), theirs, grid)
