# SPDX-License-Identifier: Apache-2.0
"""Which tokens the view encoder sees, drawn for each body from the clip itself.

Shapes: B clips, M bodies, N = S*V tokens, P numbers per token, K kept, Q masked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sjepa_fast.config.schema import MaskConfig, kept_joints, kept_tokens, predicted_tokens
from sjepa_kernels import TokenMask, motion_aware_mask, random_mask, tube_mask
from sjepa_kernels.purposes import MASK


def draw_mask(
    clip_BNP: Tensor,
    ids_B: Tensor,
    bodies: int,
    seed: Tensor,
    step: Tensor,
    mask: MaskConfig,
    joints: int,
    *,
    purpose: int = MASK,
) -> TokenMask:
    """Draw the mask of each sequence, fixed by (seed, step, clip id, body).

    `clip_BNP` has the B*M sequences' tubelets, the bodies of a clip next to each other; seed and
    step are 0-dim int64. `purpose` keeps the draws of several masks of a clip apart. Returns kept
    and masked ids, int32 in rising order, so that gathers walk memory forwards (the networks do not
    depend on the order), and their inverse.
    """
    sequences, tokens = clip_BNP.shape[:2]
    keep = kept_tokens(mask, tokens, joints)
    draws: dict[str, Any] = {
        "step": step,
        "clip_ids_C": ids_B,
        "bodies": bodies,
        "purpose": purpose,
    }
    if mask.kind == "random":
        return random_mask(sequences, tokens, keep, seed, **draws)
    if mask.kind == "tube":
        return tube_mask(
            clip_BNP,
            kept_joints(mask, joints),
            seed,
            joints=joints,
            tube_length=mask.tube_length,
            scale=mask.tube_scale,
            **draws,
        )
    return motion_aware_mask(clip_BNP, keep, seed, joints=joints, tau=mask.tau, **draws)


def draw_predicted(
    ids_mask_BQ: Tensor,
    ids_B: Tensor,
    bodies: int,
    seed: Tensor,
    step: Tensor,
    mask: MaskConfig,
    *,
    purpose: int,
) -> Tensor:
    """Draw which masked tokens of each sequence are predicted, each with the same probability.

    The expected loss is that of all masked tokens. Our choice, after the partial targets of masked
    autoencoders; with `mask.predict_ratio` 1 all are predicted, as in the papers. `purpose` keeps
    these draws apart from all others. Returns a part of each row of ids, in the row's order.
    """
    sequences, masked = ids_mask_BQ.shape
    predicted = predicted_tokens(mask, masked)
    if predicted == masked:
        return ids_mask_BQ
    chosen = random_mask(
        sequences,
        masked,
        predicted,
        seed,
        step=step,
        clip_ids_C=ids_B,
        bodies=bodies,
        purpose=purpose,
    )
    return ids_mask_BQ.gather(1, chosen.ids_keep_BK.long())
