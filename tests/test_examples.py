"""The adapters in `examples/` against the plain form or the equations of what they replace."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.data2vec_loop import Data2Vec, momentum_at
from examples.dino_loss import DinoLoss
from examples.jepa_predictor import PackedPredictor, full_grid
from examples.lejepa_loop import LeJepa
from sjepa_kernels.losses.directions import unit_directions

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_examples_stay_short_enough_to_paste() -> None:
    files = list(EXAMPLES.glob("*.py"))
    assert len(files) == 4
    assert {f.name: n for f in files if (n := len(f.read_text().splitlines())) >= 80} == {}


def table_and_ids() -> tuple[Tensor, Tensor]:
    """A position table of 12 tokens, width 16, and a random order of the tokens of 2 sequences."""
    return torch.randn(12, 16).double(), torch.stack([torch.randperm(12) for _ in range(2)])


def test_the_predictors_stream_stays_float32_under_autocast() -> None:
    """As it does where a bfloat16 embedding and a float32 table are added and concatenated."""
    position, order = table_and_ids()
    seen: list[Tensor] = []

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    model = PackedPredictor(7, position.float(), nn.Sequential(Block()))
    nn.init.normal_(model.mask_token)
    keep, hide = order[:, :5], order[:, 5:9]
    context = torch.randn(2, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        model(context, keep, [hide])
        kept = model.embed(context) + position.float()[keep]
    assert kept.dtype == torch.float32
    plain = torch.cat([kept, model.mask_token + position.float()[hide]], dim=1)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], plain)


@pytest.mark.parametrize("targets", [1, 4])
def test_packed_predictor_equals_repeat_cat_gather(targets: int) -> None:
    position, order = table_and_ids()
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    model = PackedPredictor(7, position, nn.Sequential(layer)).double()
    nn.init.normal_(model.mask_token)
    keep = order[:, :5]
    hides = [order[:, 5 + start : 8 + start] for start in range(targets)]
    context = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)

    def plain() -> Tensor:
        """The published forward: the context is repeated for each target, positions gathered."""
        hide = torch.cat(hides)
        x = model.embed(context) + position[keep]
        x = x.repeat(targets, 1, 1)
        mask = model.mask_token.repeat(*hide.shape, 1) + position[hide]
        mixed = layer(torch.cat([x, mask], dim=1))[:, 5:]
        return model.project(model.norm(mixed))

    ours, theirs = model(context, keep, hides), plain()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights, leaves = torch.randn_like(ours), [context, *model.parameters()]
    for mine, other in zip(
        torch.autograd.grad(ours, leaves, weights),
        torch.autograd.grad(theirs, leaves, weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


def test_full_grid_is_the_decoders_input() -> None:
    position, order = table_and_ids()
    visible, mask_token = torch.randn(2, 5, 16).double(), torch.randn(16).double()
    grid = full_grid(visible, mask_token, order[:, :5], position)
    for b in range(2):
        for token in range(12):
            found = (order[b, :5] == token).nonzero()
            content = visible[b, int(found)] if len(found) else mask_token
            torch.testing.assert_close(grid[b, token], content + position[token])


def dino_by_definition(
    student: list[Tensor], teacher: list[Tensor], center: Tensor, temps: tuple[float, float]
) -> Tensor:
    """The sum over pairs of different crops of H(P_t, P_s), in float64, divided by their number."""
    terms = []
    for t, teacher_BD in enumerate(teacher):
        y = (teacher_BD.double() - center) / temps[1]
        p_t = (y - y.logsumexp(1, keepdim=True)).exp()
        for s, student_BD in enumerate(student):
            if s != t:
                x = student_BD.double() / temps[0]
                terms.append(-(p_t * (x - x.logsumexp(1, keepdim=True))).sum(1).mean())
    return torch.stack(terms).mean()


def crops(count: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(6, 40, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("local", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dino_loss_is_the_published_one_over_a_warmup(dtype: torch.dtype, local: int) -> None:
    loss_of = DinoLoss(40).to(dtype)
    center = torch.zeros(40, dtype=torch.float64)
    for temp in (0.04, 0.055, 0.07):
        student, teacher = crops(2 + local, dtype), crops(2, dtype)
        leaves = [x.requires_grad_() for x in student]
        truth = dino_by_definition(leaves, teacher, center, (0.1, temp))
        ours = loss_of(leaves, teacher, temp)
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=0)
        pairs = zip(
            torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, leaves), strict=True
        )
        for mine, true in pairs:
            assert (mine.double() - true).norm() <= 1e-5 * true.norm()
        center = 0.9 * center + 0.1 * torch.cat(teacher).double().mean(0)
        torch.testing.assert_close(loss_of.center.double(), center, rtol=1e-5, atol=1e-7)


def test_dino_loss_equals_lightlys() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    module = pytest.importorskip("lightly.loss.dino_loss", reason="lightly cannot be imported")
    theirs, ours = module.DINOLoss(output_dim=40, teacher_temp=0.05), DinoLoss(40)
    for _ in range(3):
        student, teacher = crops(5, torch.float32), crops(2, torch.float32)
        expected = theirs(teacher, student, teacher_temp=0.05)
        torch.testing.assert_close(ours(student, teacher, 0.05), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(ours.center, theirs.center.flatten(), rtol=1e-5, atol=1e-7)


class ThreeBlocks(nn.Module):
    """Three layers of a linear map and tanh; masked tokens are replaced by a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, masked_BN: Tensor | None) -> list[Tensor]:
        if masked_BN is not None:
            x = torch.where(masked_BN[:, :, None], self.mask_token, x)
        layers = []
        for block in self.blocks:
            x = torch.tanh(block(x))
            layers.append(x)
        return layers


def test_data2vec_loop_follows_the_equations() -> None:
    """The losses and the teacher of five steps, recomputed in float64 from the students."""
    student, head = ThreeBlocks(), nn.Linear(8, 8)
    model = Data2Vec(student, head, top=2, beta=0.5)
    optimizer = torch.optim.SGD([*student.parameters(), *head.parameters()], lr=0.1)
    followed, exact_head = ThreeBlocks().double(), nn.Linear(8, 8).double()
    averaged = [p.detach().double() for p in student.parameters()]
    for step in range(5):
        x, masked = torch.randn(3, 6, 8), torch.rand(3, 6) < 0.5
        for p, value in zip(followed.parameters(), averaged, strict=True):
            p.data = value
        top = torch.stack(followed(x.double(), None)[-2:])
        top = (top - top.mean(-1, keepdim=True)) / (
            top.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        for p, value in zip(followed.parameters(), student.parameters(), strict=True):
            p.data = value.detach().double()
        for p, value in zip(exact_head.parameters(), head.parameters(), strict=True):
            p.data = value.detach().double()
        gap = exact_head(followed(x.double(), masked)[-1])[masked] - top.mean(0)[masked]
        small = gap.abs() < 0.5
        truth = torch.where(small, gap.square() / (2 * 0.5), gap.abs() - 0.5 / 2).mean()
        momentum = momentum_at(step, 0.9, 0.99, 4)
        assert momentum == pytest.approx(min(0.99, 0.9 + 0.0225 * step))
        loss = model.step(x, masked, optimizer, momentum)
        torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
        averaged = [
            momentum * a + (1 - momentum) * p.detach().double()
            for a, p in zip(averaged, student.parameters(), strict=True)
        ]
        for p, value in zip(model.teacher.parameters(), averaged, strict=True):
            torch.testing.assert_close(p.double(), value, rtol=1e-5, atol=1e-6)
            assert not p.requires_grad


def lejepa_by_definition(z_VND: Tensor, step: int, weight: float) -> Tensor:
    """The loss of MINIMAL.md's formula in float64, along the directions of a step."""
    numbers = torch.tensor(0), torch.tensor(step)
    axes_KD = unit_directions(*numbers, 256, z_VND.shape[-1], torch.float64, "torch")
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    phi = (-t * t / 2).exp()
    angles = (z_VND @ axes_KD.mT)[..., None] * t
    gaps = (angles.cos().mean(1) - phi).square() + angles.sin().mean(1).square()
    statistic = torch.trapezoid(2 * gaps * phi, t).mean() * z_VND.shape[1]
    return (1 - weight) * (z_VND.mean(0) - z_VND).square().mean() + weight * statistic


def test_lejepa_loop_follows_the_equations_and_spreads_its_features() -> None:
    """Losses and gradients of steps in float64; a collapsed start becomes a normal."""
    encoder = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 8))
    with torch.no_grad():
        encoder[-1].weight.mul_(0.01)
    model = LeJepa(encoder, nn.Linear(8, 4), weight=0.1)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-2)
    exact = copy.deepcopy(model.model).double()
    samples = torch.randn(128, 12)
    statistics = []
    for step in range(40):
        views = [samples + 0.1 * torch.randn_like(samples) for _ in range(2)]
        exact.load_state_dict(model.model.state_dict())
        exact.zero_grad()
        z_VND = torch.stack([exact(view.double()) for view in views])
        truth = lejepa_by_definition(z_VND, step, 0.1)
        statistics.append(float(lejepa_by_definition(z_VND.detach(), 0, 1.0)))
        truth.backward()
        loss = model.step(views, optimizer)
        torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
        for ours, true in zip(model.model.parameters(), exact.parameters(), strict=True):
            assert ours.grad is not None and true.grad is not None
            assert (ours.grad.double() - true.grad).norm() <= 1e-4 * true.grad.norm() + 1e-9
    assert statistics[-1] < 0.25 * statistics[0]
