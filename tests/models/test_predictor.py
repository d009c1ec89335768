"""The predictor's shortcuts and cheaper forms against plain computations over all tokens."""

import pytest
import torch
from torch import Tensor

from sjepa_fast.models.predictor import Predictor
from sjepa_fast.models.residual import Residual
from sjepa_fast.models.transformer import Block, CrossBlock

SEGMENTS, JOINTS, WIDTH, HEADS, KEPT = 4, 5, 32, 2, 6
TOKENS = SEGMENTS * JOINTS


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    visible = torch.randn(3, KEPT, WIDTH, dtype=dtype, generator=generator)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(3)])
    return visible, order[:, :KEPT], order[:, KEPT:]


def unsettled(module: torch.nn.Module, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Move every parameter off the zeros and ones of its initialisation."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module.to(dtype)


def gradients(out: Tensor, sources: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    return list(torch.autograd.grad((out * weight).sum(), sources))


def same(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-12)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("first", [0, 1, 13, TOKENS - 1])
def test_block_from_a_token_on_is_the_tail_of_the_whole_block(first: int) -> None:
    block = unsettled(Block(WIDTH, HEADS))
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64).requires_grad_()
    sources = [x, *block.parameters()]
    tail, whole = (block(Residual(x), at).settled() for at in (first, 0))
    whole = whole[:, first:]
    assert whole.shape[1] == TOKENS - first
    same((tail, gradients(tail, sources)), (whole, gradients(whole, sources)))


def test_predictor_equals_running_every_block_over_all_tokens() -> None:
    predictor = unsettled(Predictor(SEGMENTS, JOINTS, WIDTH, 3, HEADS))
    visible, keep, mask = inputs()
    visible.requires_grad_()
    position = (predictor.temporal[:, None] + predictor.spatial[None]).flatten(0, 1)
    seen = predictor.proj_in(visible) + position[keep]
    hidden = predictor.proj_in(predictor.mask_token) + position[mask]
    x = torch.cat([seen, hidden], dim=1)
    for block in predictor.blocks:
        x = block(Residual(x)).settled()
    whole = predictor.proj_out(predictor.norm(x))[:, KEPT:]
    ours = predictor(visible, keep, mask)
    sources = [visible, *predictor.parameters()]
    same((ours, gradients(ours, sources)), (whole, gradients(whole, sources)))


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    spread = (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centered / spread * norm.weight + norm.bias


def linear(x: Tensor, layer: torch.nn.Linear) -> Tensor:
    return x @ layer.weight.mT + layer.bias


@pytest.mark.parametrize("scale", [0.0, 0.5], ids=["plain", "layer scale"])
def test_cross_predictor_is_attention_whose_mask_tokens_see_the_visible_ones_alone(
    scale: float,
) -> None:
    predictor = unsettled(
        Predictor(SEGMENTS, JOINTS, WIDTH, 2, HEADS, outputs=7, layer_scale=scale, cross=True)
    )
    visible, keep, mask = inputs()
    visible.requires_grad_()
    position = (predictor.temporal[:, None] + predictor.spatial[None]).flatten(0, 1)
    seen = linear(visible, predictor.proj_in) + position[keep]
    x = linear(predictor.mask_token, predictor.proj_in) + position[mask]
    for block in predictor.blocks:
        mixed = []
        for head in torch.arange(WIDTH).chunk(HEADS):
            q = linear(layer_norm(x, block.norm1), block.q)[..., head]
            k, v = linear(layer_norm(seen, block.norm_memory), block.kv).chunk(2, dim=-1)
            weights = (q @ k[..., head].mT / len(head) ** 0.5).exp()
            mixed.append(weights / weights.sum(-1, keepdim=True) @ v[..., head])
        factors = (block.scale1.gamma, block.scale2.gamma) if scale else (1, 1)
        x = x + factors[0] * linear(torch.cat(mixed, dim=-1), block.proj)
        hidden = linear(layer_norm(x, block.norm2), block.fc1)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + factors[1] * linear(hidden, block.fc2)
    expected = linear(layer_norm(x, predictor.norm), predictor.proj_out)
    ours = predictor(visible, keep, mask)
    sources = [visible, *predictor.parameters()]
    same((ours, gradients(ours, sources)), (expected, gradients(expected, sources)))


def test_cross_predictions_do_not_depend_on_what_else_is_predicted() -> None:
    cross, joint = (
        unsettled(Predictor(SEGMENTS, JOINTS, WIDTH, 2, HEADS, cross=c)) for c in (True, False)
    )
    visible, keep, mask = inputs()
    alone, among = cross(visible, keep, mask[:, 3:5]), cross(visible, keep, mask)[:, 3:5]
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-12)
    alone, among = joint(visible, keep, mask[:, 3:5]), joint(visible, keep, mask)[:, 3:5]
    assert (alone - among).abs().max() > 1e-3


def check_compiled(module: torch.nn.Module, backend: str, *arguments: Tensor | int) -> None:
    """One graph without a break, with the values and the gradients of the eager module."""
    first, *rest = arguments
    assert isinstance(first, Tensor)
    first.requires_grad_()
    sources = [first, *module.parameters()]
    eager = module(first, *rest)
    compiled = torch.compile(module, fullgraph=True, backend=backend)(first, *rest)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(compiled, sources), gradients(eager, sources), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Settled(torch.nn.Module):
    """A block from tensor to tensor."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, first: int) -> Tensor:
        out: Tensor = self.block(Residual(x), first).settled()
        return out


@pytest.mark.slow
def test_compiled_block_gives_the_same_tail() -> None:
    block = Settled(unsettled(Block(WIDTH, HEADS), torch.float32))
    check_compiled(block, "inductor", torch.randn(2, TOKENS, WIDTH), KEPT)


@pytest.mark.slow
def test_compiled_cross_block_gives_the_same() -> None:
    block = unsettled(CrossBlock(WIDTH, HEADS), torch.float32)
    memory = torch.randn(2, KEPT, WIDTH)
    check_compiled(block, "inductor", torch.randn(2, TOKENS, WIDTH), memory)


@pytest.mark.parametrize("cross", [False, True], ids=["joint", "cross"])
def test_predictor_is_one_graph(cross: bool) -> None:
    predictor = Predictor(SEGMENTS, JOINTS, WIDTH, 2, HEADS, cross=cross)
    check_compiled(unsettled(predictor, torch.float32), "aot_eager", *inputs(torch.float32))
