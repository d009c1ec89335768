# SPDX-License-Identifier: Apache-2.0
"""Which sequences of a batch are equal, so that the target encoder computes each of them once.

An absent body is zero in the clip and in every view of it, so all absent bodies of a batch have
equal targets. Each step has the same number of slots (a CUDA graph needs that), enough for the
batch with the most bodies. The saving is exact: the loss still has the absent bodies' tokens, as in
the papers.

Shapes: B sequences (clips x bodies), U slots, N tokens, P numbers per token, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Distinct:
    """Places of the sequences of a batch: absent ones share slot 0, the others have one each."""

    slot_B: Tensor
    """Slot of each sequence, int64."""
    slots: int
    """U."""

    @staticmethod
    def of(present_B: Tensor, slots: int) -> Distinct:
        """Number the present sequences (1, int64; absent ones 0) from 1 on, on the device.

        At most U - 1 may be present; with more, `gather` fails.
        """
        return Distinct(present_B.cumsum(0) * present_B, slots)

    def gather(self, x_BNP: Tensor) -> Tensor:
        """Put each sequence into its slot, (U, N, P); slot 0 and those left over are zero."""
        out = x_BNP.new_zeros(self.slots, *x_BNP.shape[1:])
        return out.index_copy_(0, self.slot_B, x_BNP)


@dataclass(frozen=True)
class Encoded:
    """Features (..., D) for the collapse panel, kept as they were computed.

    They are the target encoder's of all tokens or, without one, the view encoder's of the visible
    tokens.
    """

    rows: Tensor
    distinct: Distinct | None = None

    def features(self) -> Tensor:
        """Features of all sequences of the batch, (B, ..., D); equal ones are copied here."""
        if self.distinct is None:
            return self.rows
        return self.rows.index_select(0, self.distinct.slot_B)
