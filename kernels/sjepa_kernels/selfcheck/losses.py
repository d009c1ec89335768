# SPDX-License-Identifier: Apache-2.0
"""The self-check's functions for losses and centers; see `checks.py`."""

from functools import partial

import torch
from torch import Tensor

from sjepa_kernels.losses.center import update_center_
from sjepa_kernels.losses.centered_ce import centered_softmax_cross_entropy
from sjepa_kernels.losses.crop_pairs_ce import centered_crop_cross_entropy
from sjepa_kernels.losses.koleo import koleo
from sjepa_kernels.losses.sigreg import sigreg
from sjepa_kernels.losses.sinkhorn import sinkhorn_center
from sjepa_kernels.losses.soft_ce import soft_cross_entropy
from sjepa_kernels.losses.vicreg import vicreg
from sjepa_kernels.losses.visreg import visreg
from sjepa_kernels.selfcheck import truth as definition
from sjepa_kernels.selfcheck.triples import Triple, normals, with_gradients


def centered_ce_triples(impl: str, device: str) -> list[Triple]:
    """The center's sum, too, of rows that an index names."""
    teacher, center = (3 * normals(40, 50, seed=1)).to(device), normals(50, seed=2).to(device)
    rows = torch.arange(33, device=device) * 7 % 40
    sums: list[Tensor] = []

    def ours(student: Tensor) -> Tensor:
        loss, center_sum = centered_softmax_cross_entropy(
            student, teacher, center, teacher_index_R=rows, impl=impl
        )
        sums.append(center_sum)
        return loss

    def plain(student: Tensor) -> Tensor:
        t, c = teacher[rows].to(student.dtype), center.to(student.dtype)
        sums.append(t.sum(0))
        target = torch.softmax((t - c) / 0.06, dim=1)
        return -(target * torch.log_softmax(student / 0.1, dim=1)).sum(1).mean()

    triples = with_gradients(ours, plain, [normals(33, 50)], device)
    return [*triples, (sums[0], sums[1], sums[2])]


def centered_crops_triples(impl: str, device: str) -> list[Triple]:
    """Two global and two local crops."""
    teacher, center = (3 * normals(2, 6, 20, seed=1)).to(device), normals(20, seed=2).to(device)

    def ours(student: Tensor) -> Tensor:
        return centered_crop_cross_entropy(student, teacher, center, impl=impl)[0]

    def plain(student: Tensor) -> Tensor:
        t, c = teacher.to(student.dtype), center.to(student.dtype)
        target = torch.softmax((t - c) / 0.04, dim=-1)
        pairs = -torch.einsum("tbk,sbk->tsb", target, torch.log_softmax(student / 0.1, dim=-1))
        different = ~torch.eye(2, 4, dtype=torch.bool, device=student.device)
        return pairs[different].mean()

    return with_gradients(ours, plain, [normals(4, 6, 20)], device)


def soft_ce_triples(impl: str, device: str) -> list[Triple]:
    """Of rows that an index names."""
    given = torch.softmax(3 * normals(40, 50, seed=1), dim=1).to(device)
    rows = torch.arange(33, device=device) * 7 % 40

    def ours(student: Tensor) -> Tensor:
        return soft_cross_entropy(student, given, probabilities_index_R=rows, impl=impl)

    def plain(student: Tensor) -> Tensor:
        log_p = torch.log_softmax(student / 0.1, dim=1)
        return -(given[rows].to(student.dtype) * log_p).sum(1).mean()

    return with_gradients(ours, plain, [normals(33, 50)], device)


def sinkhorn_triples(impl: str, device: str) -> list[Triple]:
    """The probabilities, which are the published algorithm's of the exponentials themselves."""
    teacher = (0.3 * normals(33, 50)).to(device)
    center = sinkhorn_center(teacher, 0.06, impl=impl)

    def published(dtype: torch.dtype) -> Tensor:
        q = torch.exp(teacher.to(dtype) / 0.06)
        for _ in range(3):
            q = q / q.sum(dim=0, keepdim=True) / 50
            q = q / q.sum(dim=1, keepdim=True) / 33
        return 33 * q

    ours = torch.softmax((teacher - center) / 0.06, dim=1)
    return [(ours, published(torch.float32), published(torch.float64))]


def sigreg_triples(impl: str, device: str) -> list[Triple]:
    """Two views, along the directions that follow from the Philox words in float64."""
    seed = torch.tensor(5, device=device)
    axes_KD = definition.directions(5, 3, 40, 6).to(device)

    def ours(z: Tensor) -> Tensor:
        return sigreg(z, seed, step=3, directions=40, impl=impl)

    def plain(z: Tensor) -> Tensor:
        t = torch.linspace(0, 3, 17, dtype=z.dtype, device=device)
        phi = torch.exp(-t * t / 2)
        angles = (z @ axes_KD.to(z.dtype).mT)[..., None] * t
        gaps = (angles.cos().mean(1) - phi).square() + angles.sin().mean(1).square()
        return torch.trapezoid(2 * gaps * phi, t).mean() * z.shape[1]

    return with_gradients(ours, plain, [normals(2, 70, 6) + 0.5], device)


def visreg_triples(impl: str, device: str) -> list[Triple]:
    """The three terms of two views, along the directions of `sigreg_triples`."""
    seed = torch.tensor(5, device=device)
    axes_KD = definition.directions(5, 3, 4, 6).to(device)

    def ours(z: Tensor) -> Tensor:
        return torch.stack(visreg(z, seed, step=3, directions=4, impl=impl)[1:])

    plain = partial(definition.visreg_terms, axes_KD)
    return with_gradients(ours, plain, [2 * normals(2, 20, 6) + 0.5], device)


def vicreg_triples(impl: str, device: str) -> list[Triple]:
    """Both terms, of few features and of many."""
    triples = []
    for shape in ((30, 6), (9, 40)):
        leaves = [0.7 * normals(*shape)]
        triples += with_gradients(
            lambda z: torch.stack(vicreg(z)[1:]), definition.vicreg_terms, leaves, device
        )
    return triples


def koleo_triples(impl: str, device: str) -> list[Triple]:
    """More rows than a tile has."""
    return with_gradients(
        partial(koleo, impl=impl), definition.koleo_loss, [normals(70, 12)], device
    )


def update_center_triples(impl: str, device: str) -> list[Triple]:
    """Of a batch of 33 rows."""
    ours, total = normals(50).to(device), normals(50, seed=1).to(device)
    eager, truth = (0.9 * c + 0.1 * (s / 33) for c, s in ((ours, total), (ours.double(), total)))
    update_center_(ours, total, 33, 0.9)
    return [(ours, eager, truth)]
