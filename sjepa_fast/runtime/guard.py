# SPDX-License-Identifier: Apache-2.0
"""A training step that handles the two failures about which a user can do something.

If a batch does not fit into the GPU's memory, the run ends with a message that names a size that
fits; where that can be known before anything is compiled or captured, before that. If the compiler
fails, the run continues without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sjepa_fast.errors import InputError

T = TypeVar("T")
MIB = 2**20


def largest_batch(batch: int, fits: Callable[[int], bool], multiple: int = 1) -> int:
    """Halve a batch, rounded down to a `multiple`, until it fits; 0 if not even `multiple` does."""
    size = batch // 2 // multiple * multiple
    while size > 0 and not fits(size):
        size = size // 2 // multiple * multiple
    return size


def parts_that_fit(batch: int, at_a_time: int, processes: int) -> int:
    """Return the fewest equal parts of a batch that hold at most `at_a_time` clips each.

    The processes share a part evenly; there must be a clip for each of them `at_a_time`.
    """
    share = batch // processes
    return next(
        parts
        for parts in range(1, share + 1)
        if share % parts == 0 and share // parts <= at_a_time // processes
    )


def out_of_memory(
    batch: int,
    fitting: int,
    device: str,
    total_bytes: int,
    accumulate: int = 1,
    processes: int = 1,
    *,
    divisible: bool = True,
) -> InputError:
    """Return the one-line error that a user sees; `fitting` is 0 if not even one clip fits.

    The batch goes through in `accumulate` parts, and so would the one that fits; one that is not
    `divisible` has to be smaller.
    """
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    value = (
        f"{batch} clips per step{parts} do not fit into the {total_bytes // MIB} MiB of {device}"
    )
    if fitting == 0:
        fix = "not even one does; choose a smaller model, or another device"
    elif not divisible:
        fix = f"{fitting} do: use --optim.batch-size {fitting}"
    else:
        more = parts_that_fit(batch, fitting // accumulate, processes)
        fix = (
            f"{fitting} do: use --optim.accumulate {more}, which makes the same update, or "
            f"--optim.batch-size {fitting}"
        )
    return InputError("optim.batch_size", value, fix)


def fall_back_to_eager(error: Exception) -> None:
    """Warn once why nothing is compiled, and run all compiled code eagerly from here on."""
    # The first lines of pages of advice; the first alone may only name the compiler.
    lines = str(error).strip().splitlines()[:2]
    reason = " ".join(lines) or type(error).__name__
    text = f"compiling failed, so the run goes on without: {reason}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)
    torch.compiler.set_stance("force_eager")


class GuardedStep(Generic[T]):
    """A step that explains a lack of memory, and continues if its compiler fails.

    `batch` counts the clips of all processes, which go through in `accumulate` parts; the number of
    clips of an `eager` step may vary.
    With `compares` its clips are compared, so that it can be neither in parts nor of one clip.
    `trial`, which does what needs the memory and changes nothing, runs once before the first step.
    Where the step will be `compiled`, more or less memory may do than eagerly, so a batch is
    refused beforehand only if not even its half fits (our choice).
    """

    def __init__(
        self,
        step: Callable[[Tensor], T],
        eager: Callable[[Tensor], T],
        batch: int,
        processes: int,
        device: torch.device,
        *,
        accumulate: int = 1,
        trial: Callable[[Tensor], object] | None = None,
        compiled: bool = False,
        compares: bool = False,
    ) -> None:
        self.step, self.eager, self.batch = step, eager, batch
        self.processes, self.device, self.accumulate = processes, device, accumulate
        self.trial, self.compiled, self.compares = trial, compiled, compares
        # Smaller batches are multiples of it.
        self.multiple = processes * accumulate * (2 if compares else 1)
        self.succeeded = False

    def __call__(self, ids: Tensor) -> T:
        """Train one step, or raise an `InputError` that names the batch that fits."""
        if self.trial is not None:
            trial, self.trial = self.trial, None
            self._check(trial, ids)
        try:
            result = self.step(ids)
        except torch.OutOfMemoryError:
            # Handled outside of this block, whose traceback keeps the step's tensors alive.
            pass
        except Exception as error:
            # Compilation happens in the first call, and so do its failures.
            if self.succeeded or not _is_compiler_error(error):
                raise
            fall_back_to_eager(error)
            self.succeeded = True
            return self(ids)
        else:
            self.succeeded = True
            return result
        raise self._explain(self.eager, ids)

    def _check(self, trial: Callable[[Tensor], object], ids: Tensor) -> None:
        fits = partial(_fits, trial, ids, self.processes)
        half = self.batch // 2 // self.multiple * self.multiple
        if not (fits(self.batch) or (self.compiled and half > 0 and fits(half))):
            raise self._explain(trial, ids)
        # The step allocates on another stream, to which memory must be free for all.
        torch.cuda.empty_cache()

    def _explain(self, run: Callable[[Tensor], object], ids: Tensor) -> InputError:
        fits = partial(_fits, run, ids, self.processes)
        size = largest_batch(self.batch, fits, self.multiple)
        card = torch.cuda.get_device_properties(self.device)
        shares = self.accumulate, self.processes
        memory = card.name, card.total_memory
        return out_of_memory(self.batch, size, *memory, *shares, divisible=not self.compares)


def _fits(run: Callable[[Tensor], object], ids: Tensor, processes: int, batch: int) -> bool:
    """Whether the first clips of this process, of a smaller batch of all, fit into the memory."""
    torch.cuda.empty_cache()
    try:
        run(ids[: batch // processes])
    except torch.OutOfMemoryError:
        return False
    return True


def _is_compiler_error(error: Exception) -> bool:
    # Imported where it is needed: the compiler's modules take seconds to load.
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
