"""The predictor's shortcuts give what the plain computation over all tokens gives."""

import pytest
import torch
from torch import Tensor

from sjepa_fast.models.predictor import Predictor
from sjepa_fast.models.transformer import Block

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
def test_block_from_a_token_on_is_the_tail_of_the_whole_block(first: int):
    block = unsettled(Block(WIDTH, HEADS))
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64).requires_grad_()
    sources = [x, *block.parameters()]
    tail, whole = block(x, first), block(x)[:, first:]
    assert whole.shape[1] == TOKENS - first
    same((tail, gradients(tail, sources)), (whole, gradients(whole, sources)))


def test_predictor_equals_running_every_block_over_all_tokens():
    predictor = unsettled(Predictor(SEGMENTS, JOINTS, WIDTH, 3, HEADS))
    visible, keep, mask = inputs()
    visible.requires_grad_()
    position = (predictor.temporal[:, None] + predictor.spatial[None]).flatten(0, 1)
    seen = predictor.proj_in(visible) + position[keep]
    hidden = predictor.proj_in(predictor.mask_token) + position[mask]
    x = torch.cat([seen, hidden], dim=1)
    for block in predictor.blocks:
        x = block(x)
    whole = predictor.proj_out(predictor.norm(x))[:, KEPT:]
    ours = predictor(visible, keep, mask)
    sources = [visible, *predictor.parameters()]
    same((ours, gradients(ours, sources)), (whole, gradients(whole, sources)))


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


def test_compiled_block_gives_the_same_tail():
    block = unsettled(Block(WIDTH, HEADS), torch.float32)
    check_compiled(block, "inductor", torch.randn(2, TOKENS, WIDTH), KEPT)


def test_predictor_is_one_graph():
    predictor = unsettled(Predictor(SEGMENTS, JOINTS, WIDTH, 2, HEADS), torch.float32)
    check_compiled(predictor, "aot_eager", *inputs(torch.float32))
