"""Networks: published parameter counts, and the exactness of the packed layouts."""

import pytest
import torch

from sjepa_fast.models.embed import TubeletEmbed
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.models.predictor import Predictor
from sjepa_fast.models.residual import Residual
from sjepa_kernels.tubelets import to_tubelets


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper_sizes() -> None:
    assert count(SkeletonTransformer(30, 25, 12, 256, 8, 8)) == 6_336_000
    assert count(Predictor(30, 25, 256, 5, 8)) == 4_095_232


def test_tubelets_order_is_segment_joint_then_frame_coordinate() -> None:
    x = torch.arange(2 * 8 * 5 * 3, dtype=torch.float32).view(2, 8, 5, 3)
    tokens = to_tubelets(x, 4)
    assert tokens.shape == (2, 10, 12)
    for segment in range(2):
        for joint in range(5):
            expected = x[1, segment * 4 : segment * 4 + 4, joint].flatten()
            assert torch.equal(tokens[1, segment * 5 + joint], expected)


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
def test_embedding_only_kept_tokens_equals_gathering_them_afterwards(whiten: bool) -> None:
    torch.manual_seed(0)
    embed = TubeletEmbed(3, 5, 12, 16, whiten=whiten)
    if whiten:
        embed.get_buffer("whiten_mean").normal_()
        embed.get_buffer("whiten_matrix").normal_()
    x = torch.randn(2, 15, 12)
    keep = torch.stack([torch.randperm(15)[:4] for _ in range(2)])
    everything = embed(x)
    for b in range(2):
        torch.testing.assert_close(embed(x, keep)[b], everything[b, keep[b]])


def test_gradients_of_the_positions_repeat_bitwise_on_several_threads() -> None:
    torch.manual_seed(0)
    embed = TubeletEmbed(30, 25, 12, 64, whiten=False)
    x, keep = torch.randn(64, 750, 12), torch.stack([torch.randperm(750)[:75] for _ in range(64)])
    before = torch.get_num_threads()
    tables = [embed.temporal, embed.spatial]
    grad = torch.randn(64, 75, 64)
    try:
        torch.set_num_threads(2)
        found = [torch.autograd.grad(embed(x, keep), tables, grad) for _ in range(10)]
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True)
    )
    for table, ids, ours in zip(tables, (keep // 25, keep % 25), found[0], strict=True):
        truth = torch.zeros_like(table, dtype=torch.float64)
        truth.index_add_(0, ids.flatten(), grad.double().flatten(0, 1))
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


def test_whitening_is_applied_before_the_projection() -> None:
    torch.manual_seed(0)
    embed = TubeletEmbed(2, 3, 12, 8, whiten=True)
    plain = TubeletEmbed(2, 3, 12, 8, whiten=False)
    plain.load_state_dict({k: v for k, v in embed.state_dict().items() if "whiten" not in k})
    mean, matrix = torch.randn(12), torch.randn(12, 12)
    embed.get_buffer("whiten_mean").copy_(mean)
    embed.get_buffer("whiten_matrix").copy_(matrix)
    x = torch.randn(2, 6, 12)
    torch.testing.assert_close(embed(x), plain((x - mean) @ matrix))


def test_packed_predictor_equals_scatter_then_gather() -> None:
    torch.manual_seed(0)
    segments, joints, width = 3, 5, 64
    tokens, kept = segments * joints, 4
    predictor = Predictor(segments, joints, width, 2, 2).double()
    visible = torch.randn(2, kept, width, dtype=torch.float64, requires_grad=True)
    order = torch.stack([torch.randperm(tokens) for _ in range(2)])
    keep, mask = order[:, :kept], order[:, kept:]
    packed = predictor(visible, keep, mask)

    grid = predictor.mask_token.expand(2, tokens, width).clone()
    grid = grid.scatter(1, keep.unsqueeze(-1).expand(-1, -1, width), visible)
    position = (predictor.temporal[:, None] + predictor.spatial[None]).flatten(0, 1)
    x = predictor.proj_in(grid) + position
    for block in predictor.blocks:
        x = block(Residual(x)).settled()
    out = predictor.proj_out(predictor.norm(x))
    full = out.gather(1, mask.unsqueeze(-1).expand(-1, -1, width))
    torch.testing.assert_close(packed, full, rtol=1e-10, atol=1e-12)

    weight = torch.randn_like(full)
    names = [n for n, _ in predictor.named_parameters()]
    parameters = [*predictor.parameters(), visible]
    ours = torch.autograd.grad((packed * weight).sum(), parameters)
    theirs = torch.autograd.grad((full * weight).sum(), parameters)
    for name, a, b in zip([*names, "visible"], ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


def test_encoder_is_equivariant_to_the_order_of_kept_tokens() -> None:
    torch.manual_seed(0)
    encoder = SkeletonTransformer(3, 5, 12, 64, 2, 2).double()
    x = torch.randn(1, 15, 12, dtype=torch.float64)
    keep = torch.tensor([[3, 9, 0, 14]])
    flipped = encoder(x, keep.flip(1)).flip(1)
    torch.testing.assert_close(encoder(x, keep), flipped, rtol=1e-10, atol=1e-12)


def test_whitening_keeps_the_small_directions_under_autocast() -> None:
    torch.manual_seed(0)
    embed = TubeletEmbed(1, 50, 12, 16, whiten=True)
    x = 100 + torch.randn(4, 50, 12) * torch.logspace(0, -3, 12)
    embed.get_buffer("whiten_mean").fill_(100)
    embed.get_buffer("whiten_matrix").copy_(torch.diag(torch.logspace(0, 3, 12)))
    exact = embed.double()(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = embed.float()(x)
    assert (ours - exact).norm() < 0.01 * exact.norm()
