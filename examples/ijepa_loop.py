# SPDX-License-Identifier: Apache-2.0
"""I-JEPA (Assran et al. 2023) with fused masks, packed predictor and EMA, on toy images.

    python -m examples.ijepa_loop [STEPS]

An image is a wave of a drawn direction, pitch, phase and color. Printed is the error of the
predictions over that of guessing the images' mean target at a place (below 1, the context is of
use), and the targets' deviation (near 0, they have collapsed). Nothing waits for the device.

Shapes: B images, N tokens of an 8 x 8 grid, K context tokens, P targets of U tokens, D width.
"""

import copy
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.jepa_predictor import PackedPredictor
from sjepa_kernels import EmaPlan, block_mask

GRID, PATCH, WIDTH, BATCH, KEEP, TARGET = (8, 8), 4, 32, 32, 24, (3, 3)


def waves(count: int, draw: torch.Generator) -> Tensor:
    """Return images as patches (count, N, 3 PATCH^2)."""
    angle, pitch, phase = torch.rand(3, count, 1, 1, generator=draw) * torch.pi
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n * PATCH) for n in GRID), indexing="ij")
    wave = torch.sin((1 + pitch / 2) * (x * angle.cos() + y * angle.sin()) + 2 * phase)
    image = wave[:, None] * torch.rand(count, 3, 1, 1, generator=draw)
    return F.unfold(image, PATCH, stride=PATCH).transpose(1, 2)


def blocks(depth: int) -> nn.Sequential:
    """Return transformer blocks that read (B, tokens, D)."""
    options = {"batch_first": True, "norm_first": True, "dropout": 0.0}
    layers = [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, **options) for _ in range(depth)]
    return nn.Sequential(*layers, nn.LayerNorm(WIDTH))


def at(tokens_BND: Tensor, ids_BK: Tensor) -> Tensor:
    """Return the tokens of these ids; rows of ids go around the batch as often as they must."""
    rows = tokens_BND.repeat(len(ids_BK) // len(tokens_BND), 1, 1)
    return rows.gather(1, ids_BK.long()[..., None].expand(-1, -1, WIDTH))


def main(steps: int = 120) -> None:
    """Train, and print a line now and then."""
    torch.manual_seed(0)
    draw, seed = torch.Generator().manual_seed(0), torch.tensor(0)
    table = torch.randn(64, WIDTH) / 8
    online = nn.ModuleList([nn.Linear(3 * PATCH**2, WIDTH), blocks(2)])
    target = copy.deepcopy(online).requires_grad_(False)
    predict = PackedPredictor(WIDTH, table, blocks(1))
    ema = EmaPlan(list(target.parameters()), list(online.parameters()))
    optimizer = torch.optim.AdamW([*online.parameters(), *predict.parameters()], lr=3e-3)
    for step in range(steps + 1):
        patches = waves(BATCH, draw)
        mask = block_mask(BATCH, GRID, KEEP, seed, target=TARGET, step=step)
        context = online[1](at(online[0](patches) + table, mask.ids_keep_BK))
        predicted = predict(context, mask.ids_keep_BK, list(mask.ids_target_PBU.chunk(4)))
        every = F.layer_norm(target[1](target[0](patches) + table), (WIDTH,))
        wanted = at(every, mask.ids_target_PBU)
        loss = F.mse_loss(predicted, wanted)
        if step % max(1, steps // 4) == 0:
            guess = at(every.mean(0).expand_as(every), mask.ids_target_PBU)
            share, spread = loss / F.mse_loss(guess, wanted), every.std(0).mean()
            print(f"step {step:3}: {share:.2f} of guessing, deviation {spread:.2f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update_(0.99)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
