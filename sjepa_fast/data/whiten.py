# SPDX-License-Identifier: Apache-2.0
"""PCA whitening of tubelets, fitted once on the training clips.

A raw tubelet is nearly all static position; whitening brings its motion content to the same
scale, without which a fresh EMA target on a small set has little motion to bootstrap from.
Our choice; off in paper presets.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fit_whitening(tubelets_RP: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Fit y = (x - mean) @ matrix with matrix = U diag(lambda^(-power/2)).

    U and lambda are the eigenvectors and eigenvalues of the covariance; power 1 whitens fully, 0
    only rotates. Directions below 1e-6 of the largest variance are not amplified further. Returns
    the mean (P,) and the matrix (P, P), float32.
    """
    x = tubelets_RP.double()
    mean = x.mean(dim=0)
    centered = x - mean
    values, vectors = torch.linalg.eigh(centered.T @ centered / len(x))
    values = values.clamp_min(values[-1] * 1e-6)
    # eigh fixes each vector up to its sign; the sign of its largest entry makes it repeatable.
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    vectors = vectors * vectors.gather(0, largest).sign()
    return mean.float(), (vectors * values ** (-power / 2)).float()
