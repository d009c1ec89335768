"""Loading a checkpoint on another kind of device than it was made on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sjepa_fast.runtime.checkpoint import load_state, save_checkpoint


def optimizer_of(model: nn.Module, *, capturable: bool) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True, capturable=capturable)


def test_how_to_step_is_the_devices_and_not_the_runs(tmp_path: Path) -> None:
    """A run begun on a CPU is captured on a GPU: its optimiser must be `capturable` there."""
    model = nn.Linear(3, 2)
    begun = optimizer_of(model, capturable=False)
    model(torch.ones(1, 3)).sum().backward()
    begun.step()
    saved = save_checkpoint(tmp_path, 1, model, begun, keep=1)
    resumed = optimizer_of(model, capturable=True)
    load_state(saved, resumed)
    (group,) = resumed.param_groups
    assert group["capturable"] and group["fused"] and group["lr"] == 0.1
    for weight in model.parameters():
        for key, value in begun.state[weight].items():
            assert torch.equal(resumed.state[weight][key], value)
