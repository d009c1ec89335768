"""The predictor alone at the paper's NTU shape: what each cheaper form of it costs.

A row is forward and backward of one predictor on 4 bodies (256 on a GPU): all tokens through every
block, as the plain reference has it; ours, whose last block keeps the masked tokens alone; partial
targets; and cross-attention. Only the first two compute the same thing. `gflop` is the forward's.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Timed
from sjepa_fast.config.schema import TrainConfig, predicted_tokens, replace
from sjepa_fast.models.predictor import Predictor
from sjepa_fast.models.residual import Residual, last_norm
from sjepa_fast.runtime.device import autocast
from sjepa_fast.training.flops import sequences_per_step, step_flops
from sjepa_kernels import pack_tokens

SEGMENTS, JOINTS, KEPT = 30, 25, 75

pytestmark = pytest.mark.benchmark(group="predictor")


class EveryToken(Predictor):
    """The predictor before its last block was shortened: visible tokens are dropped at the end."""

    def forward(self, visible, ids_keep, ids_mask, *, masked_only=True):  # type: ignore[no-untyped-def]
        visible = self.proj_in(visible)
        tables = (self.proj_in(self.mask_token), self.temporal, self.spatial)
        hidden, temporal, spatial = (table.to(visible.dtype) for table in tables)
        x = pack_tokens(visible, hidden, ids_keep, ids_mask, temporal, spatial)
        residual = Residual(x)
        for block in self.blocks:
            residual = block(residual)
        return self.proj_out(last_norm(residual, self.norm)[:, ids_keep.shape[1] :])


# Name, network, share of masked tokens that are predicted.
FORMS = {
    "every token to the end": (EveryToken, 1.0),
    "joint": (Predictor, 1.0),
    "joint, half the targets": (Predictor, 0.5),
    "joint, a quarter of the targets": (Predictor, 0.25),
    "cross": (Predictor, 1.0),
    "cross, half the targets": (Predictor, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_predictor(timed: Timed, device: torch.device, dtype: torch.dtype, form: str) -> None:
    """Forward and backward, weights in float32, products in `dtype`."""
    network, share = FORMS[form]
    cross = form.startswith("cross")
    bodies = 256 if device.type == "cuda" else 4
    config = replace(
        TrainConfig(),
        mask={"predict_ratio": share},
        model={"predictor": "cross" if cross else "joint"},
        optim={"batch_size": bodies // 2},
    )
    assert sequences_per_step(config) == bodies
    sizes = config.model
    torch.manual_seed(0)
    predictor = network(
        SEGMENTS, JOINTS, sizes.width, sizes.predictor_depth, sizes.heads, cross=cross
    ).to(device)
    visible = torch.randn(bodies, KEPT, sizes.width, device=device, requires_grad=True)
    order = torch.stack([torch.randperm(SEGMENTS * JOINTS) for _ in range(bodies)])
    order = order.to(device=device, dtype=torch.int32)
    predicted = predicted_tokens(config.mask, SEGMENTS * JOINTS - KEPT)
    keep, mask = order[:, :KEPT].contiguous(), order[:, KEPT : KEPT + predicted].contiguous()

    def run() -> None:
        with autocast(device, dtype):
            out = predictor(visible, keep, mask)
        out.backward(torch.ones_like(out))

    gflop = round(step_flops(config).predictor / 1e9, 2)
    facts = {"row": form, "bodies": bodies, "predicted": predicted, "gflop": gflop}
    timed(run, dtype=dtype, warmup=2, **facts)
