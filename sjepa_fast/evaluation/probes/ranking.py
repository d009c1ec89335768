# SPDX-License-Identifier: Apache-2.0
"""Action retrieval: how early the clips of a query's class come in a ranking of the gallery.

Shapes: N gallery rows, Q queries, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def retrieve(
    gallery_ND: Tensor,
    gallery_labels_N: Tensor,
    query_QD: Tensor,
    query_labels_Q: Tensor,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Rank the whole gallery by cosine for each query, `chunk` queries at a time.

    The average precision of a query is the mean, over the gallery rows of its class, of the share
    of rows of that class among all rows ranked as high or higher. Returns the label of the first
    row (Q,), and the average precision (Q,), NaN for queries whose class is not in the gallery.
    """
    bank = normalize(gallery_ND, dim=1)
    rank = torch.arange(1, len(bank) + 1, device=bank.device, dtype=torch.float64)
    first, precision = [], []
    for rows, labels in zip(query_QD.split(chunk), query_labels_Q.split(chunk), strict=True):
        order = (normalize(rows, dim=1) @ bank.T).argsort(dim=1, descending=True, stable=True)
        ranked = gallery_labels_N[order]
        hit = (ranked == labels[:, None]).double()
        first.append(ranked[:, 0])
        precision.append((hit.cumsum(dim=1) / rank * hit).sum(dim=1) / hit.sum(dim=1))
    return torch.cat(first), torch.cat(precision)
