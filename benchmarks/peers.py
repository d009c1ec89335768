"""What other projects have for the same job, called as our ops are, where it is installed.

They are not among the dependencies: `pip install liger-kernel`, `pip install --no-deps
nemo-automodel`, and Fast-LLM and dion from their repositories. All run on a GPU only. Each function
takes the arguments of our op in the benchmarks and returns what it returns; the bytes that a peer
reads for want of a fused center or gather are part of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

# The module that a peer's function is in, by the name of its column.
MODULES = {
    "Fast-LLM": "fast_llm.functional.triton.entropy_loss",
    "Automodel": "nemo_automodel.components.loss.triton.soft_cross_entropy",
    "Liger": "liger_kernel.transformers.kl_div",
    "dion": "dion.scalar_opts",
}


def peer(name: str) -> pytest.MarkDecorator | Any:
    """Return a variant of a row, skipped with its reason where the peer cannot run."""
    reason = ""
    if not torch.cuda.is_available():
        reason = "needs a GPU"
    else:
        try:
            import_module(MODULES[name])
        except Exception as error:
            reason = f"{name} cannot be imported: {error}"
    return pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason))


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient was made in the forward."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None


def fast_llm(student: Tensor, teacher: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """The centered loss: softmax of both in its kernel, center and its sum in PyTorch."""
    module = import_module(MODULES["Fast-LLM"])
    config = import_module("fast_llm.functional.config")
    loss, _, grad = module.triton_entropy_loss_forward_backward(
        student.detach(),
        teacher - center,
        None,
        grad_output=1.0,
        logits_scale_factor=1 / 0.1,
        temperature=0.06 / 0.1,
        target_format=config.TargetFormat.logits,
        entropy_loss_type=config.EntropyLossType.cross_entropy,
    )
    return _WithGradient.apply(student, loss, grad), teacher.sum(0)


def automodel(student: Tensor, probabilities: Tensor) -> Tensor:
    """The loss on given probabilities; it writes its gradient over the logits, here a copy."""
    logits = (student / 0.1)[None]
    mask = torch.ones_like(logits[..., :1])
    loss: Tensor = import_module(MODULES["Automodel"]).fused_soft_cross_entropy(
        logits, probabilities[None], mask
    )
    return loss


def liger(given: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return its KL divergence plus the entropy of the given probabilities, which is a constant."""
    entropy = -torch.xlogy(given, given).sum(-1).mean()
    divergence = import_module(MODULES["Liger"]).LigerKLDIVLoss(reduction="batchmean")

    def loss(student: Tensor, probabilities: Tensor) -> Tensor:
        found: Tensor = divergence(torch.log_softmax(student / 0.1, dim=-1), probabilities)
        return found + entropy

    return loss


def dion_step(params: Sequence[Tensor], grads: Sequence[Tensor], lr: float) -> Callable[[], None]:
    """Return the first step of its AdamW in one launch, without EMA or shadows."""
    update = import_module(MODULES["dion"]).adamw_update_foreach
    scalars = [torch.tensor(x) for x in (lr, 0.9, 0.999, 1e-2)]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]

    def step() -> None:
        update(list(params), list(grads), *moments, *scalars, 1, 1e-8)

    return step
