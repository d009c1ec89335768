"""Exact cosine nearest neighbours, and scaling of features by training statistics.

Shapes: N training rows, Q test rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def center_features(train_ND: Tensor, test_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the training mean from both parts."""
    mean = train_ND.mean(dim=0)
    return train_ND - mean, test_QD - mean


def standardize_features(train_ND: Tensor, test_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Give every feature zero mean and unit deviation over the training part.

    Features that do not vary in training are left at zero deviation, not amplified.
    """
    train, test = center_features(train_ND, test_QD)
    deviation = train.std(dim=0)
    scale = torch.where(deviation > 1e-8, deviation, 1.0)
    return train / scale, test / scale


def knn_predict(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_QD: Tensor,
    ks: Sequence[int] = (1,),
    chunk: int = 4096,
) -> dict[int, Tensor]:
    """Predict labels by the majority of the k most similar training rows (cosine).

    Ties between classes go to the class with the larger sum of similarities. All `ks` are answered
    in one pass, `chunk` test rows at a time; returns the labels (Q,) for each. Source: method 6.5
    (STARS), features L2-normalised.
    """
    bank = normalize(train_ND, dim=1)
    most = min(max(ks), len(bank))
    classes = int(train_labels_N.max()) + 1
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in torch.split(test_QD, chunk):
        similarity, index = (normalize(rows, dim=1) @ bank.T).topk(most, dim=1)
        votes = one_hot(train_labels_N[index], classes).to(similarity.dtype)
        for k in ks:
            near = votes[:, :k]
            # A vote outweighs any sum of similarities, which only settles ties.
            score = near.sum(1) + (near * similarity[:, :k, None]).sum(1) / (4 * k)
            found[k].append(score.argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in found.items()}
