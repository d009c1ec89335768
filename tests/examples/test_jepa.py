"""The packed predictor of I-JEPA and V-JEPA against repeat, cat and gather."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, smooth_l1_loss

from examples.jepa_predictor import PackedPredictor, full_grid
from sjepa_kernels import block_mask
from tests.examples.compare import PRECISIONS, assert_model_as_exact


def table_and_ids() -> tuple[Tensor, Tensor]:
    """A position table of 12 tokens, width 16, and a random order of the tokens of 2 sequences."""
    return torch.randn(12, 16).double(), torch.stack([torch.randperm(12) for _ in range(2)])


def test_the_predictors_stream_stays_float32_under_autocast() -> None:
    """As it does where a bfloat16 embedding and a float32 table are added and concatenated."""
    position, order = table_and_ids()
    seen: list[Tensor] = []

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    model = PackedPredictor(7, position.float(), nn.Sequential(Block()))
    nn.init.normal_(model.mask_token)
    keep, hide = order[:, :5], order[:, 5:9]
    context = torch.randn(2, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        model(context, keep, [hide])
        kept = model.embed(context) + position.float()[keep]
    assert kept.dtype == torch.float32
    plain = torch.cat([kept, model.mask_token + position.float()[hide]], dim=1)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], plain)


@pytest.mark.parametrize("targets", [1, 4])
def test_packed_predictor_equals_repeat_cat_gather(targets: int) -> None:
    position, order = table_and_ids()
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    model = PackedPredictor(7, position, nn.Sequential(layer)).double()
    nn.init.normal_(model.mask_token)
    keep = order[:, :5]
    hides = [order[:, 5 + start : 8 + start] for start in range(targets)]
    context = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)

    def plain() -> Tensor:
        """The published forward: the context is repeated for each target, positions gathered."""
        hide = torch.cat(hides)
        x = model.embed(context) + position[keep]
        x = x.repeat(targets, 1, 1)
        mask = model.mask_token.repeat(*hide.shape, 1) + position[hide]
        mixed = layer(torch.cat([x, mask], dim=1))[:, 5:]
        return model.project(model.norm(mixed))

    ours, theirs = model(context, keep, hides), plain()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights, leaves = torch.randn_like(ours), [context, *model.parameters()]
    for mine, other in zip(
        torch.autograd.grad(ours, leaves, weights),
        torch.autograd.grad(theirs, leaves, weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


def test_full_grid_is_the_decoders_input() -> None:
    position, order = table_and_ids()
    visible, mask_token = torch.randn(2, 5, 16).double(), torch.randn(16).double()
    grid = full_grid(visible, mask_token, order[:, :5], position)
    for b in range(2):
        for token in range(12):
            found = (order[b, :5] == token).nonzero()
            content = visible[b, int(found)] if len(found) else mask_token
            torch.testing.assert_close(grid[b, token], content + position[token])


def sines_and_cosines(tokens: int, width: int) -> Tensor:
    """The table of one axis that image and video models begin with."""
    rate = 10000 ** -(torch.arange(width // 2) / (width // 2))
    angle = torch.arange(tokens)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("project", ["I-JEPA", "V-JEPA"])
def test_a_step_is_as_exact_as_the_published_one(project: str, precision: str) -> None:
    """I-JEPA: four blocks from one context, smooth L1. V-JEPA: all that blocks hide, L1."""
    torch.manual_seed(0)
    image, seed = project == "I-JEPA", torch.tensor(1)
    grid = (8, 8) if image else (4, 4, 4)
    blocks = {"target": (3, 3), "targets": 4} if image else {"target": (4, 2, 2), "targets": 2}
    mask = block_mask(2, grid, 20, seed, **blocks)
    keep = mask.ids_keep_BK.long()
    hide = (mask.ids_target_PBU if image else mask.ids_mask_BQ).long()
    targets, repeat = list(hide.chunk(4)) if image else [hide], 4 if image else 1
    position = sines_and_cosines(64, 16)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    model = PackedPredictor(12, position, nn.Sequential(layer))
    nn.init.normal_(model.mask_token, std=0.02)
    context, features = torch.randn(2, 20, 12), torch.randn(2, 64, 12)
    loss_of = smooth_l1_loss if image else l1_loss

    def of_targets(features: Tensor) -> Tensor:
        rows = [features.gather(1, ids[:, :, None].expand(-1, -1, 12)) for ids in targets]
        return torch.cat(rows)

    def published(model: nn.Module, inputs: list[Tensor]) -> Tensor:
        context, features = inputs
        table = model.position.repeat(2, 1, 1)
        x = model.embed(context)
        x = x + table.gather(1, keep[:, :, None].repeat(1, 1, 16))
        queries = table.repeat(repeat, 1, 1).gather(1, hide[:, :, None].repeat(1, 1, 16))
        queries = queries + model.mask_token.repeat(*hide.shape, 1)
        x = torch.cat([x.repeat(repeat, 1, 1), queries], dim=1)
        predicted = model.project(model.norm(model.blocks(x)))[:, keep.shape[1] :]
        return loss_of(predicted, of_targets(features))

    def ours(model: nn.Module, inputs: list[Tensor]) -> Tensor:
        return loss_of(model(inputs[0], keep, targets), of_targets(inputs[1]))

    assert_model_as_exact(project, precision, model, ours, published, [context, features])
