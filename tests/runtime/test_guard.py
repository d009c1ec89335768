"""Out of memory names the batch that fits; a failing compiler costs one warning."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sjepa_fast.build import build_model, compile_blocks
from sjepa_fast.config.schema import DataConfig, MaskConfig, ModelConfig, RuntimeConfig, TrainConfig
from sjepa_fast.errors import InputError
from sjepa_fast.models.transformer import Block, CrossBlock
from sjepa_fast.runtime.guard import GuardedStep, largest_batch, parts_that_fit
from tests.tiny import CPU, metrics, trained, weights


@pytest.fixture(autouse=True)
def compiler_as_before() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def one_clip() -> Any:
    """What of a store decides the size of a model: joints, clips and bodies."""
    layout = types.SimpleNamespace(num_joints=25)
    return types.SimpleNamespace(layout=layout, labels_N=torch.zeros(1), max_bodies=1)


@pytest.mark.parametrize(
    ("batch", "most", "multiple", "expected"),
    [(256, 100, 1, 64), (256, 128, 1, 128), (48, 20, 8, 8), (6, 5, 1, 3), (2, 0, 1, 0)],
)
def test_the_batch_is_halved_until_it_fits(
    batch: int, most: int, multiple: int, expected: int
) -> None:
    assert largest_batch(batch, lambda size: size <= most, multiple) == expected


def failing_above(most: int) -> GuardedStep:
    def step(ids: torch.Tensor) -> int:
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return len(ids)

    return GuardedStep(step, step, 64, 2, CPU)


@pytest.mark.parametrize(
    ("most", "advice"),
    [
        (9, "--optim.accumulate 4, which makes the same update, or --optim.batch-size 16"),
        (0, "not even one"),
    ],
)
def test_out_of_memory_is_one_line_with_the_fix(
    most: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = types.SimpleNamespace(name="Toy GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: known)
    with pytest.raises(InputError) as caught:
        failing_above(most)(torch.arange(32))
    text = str(caught.value)
    start = "optim.batch_size: 64 clips per step do not fit into the 81920 MiB of Toy"
    assert text.startswith(start)
    assert advice in text and "\n" not in text
    assert caught.value.__context__ is None, "the failed step's tensors are let go"


@pytest.mark.parametrize(
    ("batch", "at_a_time", "processes", "expected"),
    [(64, 16, 2, 4), (64, 64, 1, 1), (48, 20, 8, 3), (60, 32, 2, 2), (7, 3, 1, 7), (8, 2, 2, 4)],
)
def test_the_fewest_equal_parts_that_fit(
    batch: int, at_a_time: int, processes: int, expected: int
) -> None:
    assert parts_that_fit(batch, at_a_time, processes) == expected
    assert batch % (expected * processes) == 0 and batch // expected <= at_a_time


@pytest.mark.usefixtures("toy_gpu")
def test_a_batch_whose_clips_are_compared_is_never_of_one_nor_in_parts() -> None:
    tried: list[int] = []

    def step(ids: torch.Tensor) -> None:
        tried.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(InputError) as caught:
        GuardedStep(step, step, 28, 2, CPU, compares=True)(torch.arange(14))
    # Of each of the two processes.
    assert tried == [14, 6, 2]
    assert str(caught.value).endswith("4 do: use --optim.batch-size 4")


@pytest.mark.usefixtures("toy_gpu")
def test_a_batch_in_parts_that_do_not_fit_goes_through_in_more() -> None:
    """64 clips in 4 parts: 8 of a part's 16 are this process's, and 5 fit."""
    tried: list[int] = []

    def step(ids: torch.Tensor) -> None:
        tried.append(len(ids))
        if len(ids) / 4 > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(InputError) as caught:
        GuardedStep(step, step, 64, 2, CPU, accumulate=4)(torch.arange(32))
    # 32 clips in 4 parts fit: parts of 8, of which there are 8 in 64.
    assert tried == [32, 16]
    text = str(caught.value)
    assert text.startswith("optim.batch_size: 64 clips per step in 4 parts do not fit")
    assert "32 do: use --optim.accumulate 8, which" in text and "--optim.batch-size 32" in text


@pytest.fixture
def toy_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    known = types.SimpleNamespace(name="Toy GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: known)


@pytest.mark.usefixtures("toy_gpu")
@pytest.mark.parametrize(
    ("compiled", "most", "advice"),
    # Of 32 clips of this process, half of all 64.
    [
        (False, 32, None),
        (False, 31, "32 do: use --optim.accumulate 2, which makes the same update, or "),
        (True, 16, None),
        (True, 15, "which makes the same update, or --optim.batch-size 16"),
        (False, 0, "not even one"),
    ],
)
def test_a_card_that_is_too_small_is_found_before_the_first_step(
    compiled: bool, most: int, advice: str | None
) -> None:
    tried: list[int] = []
    trained: list[int] = []

    def trial(ids: torch.Tensor) -> None:
        tried.append(len(ids))
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def step(ids: torch.Tensor) -> None:
        trained.append(len(ids))

    run = GuardedStep(step, step, 64, 2, CPU, trial=trial, compiled=compiled)
    if advice is None:
        for _ in range(3):
            run(torch.arange(32))
        assert trained == [32] * 3 and tried == [32, 16][: 1 + (most < 32)]
        return
    with pytest.raises(InputError, match=r"64 clips per step do not fit") as caught:
        run(torch.arange(32))
    assert advice in str(caught.value) and "\n" not in str(caught.value)
    assert trained == [] and tried[0] == 32


def test_a_step_that_fits_and_an_error_of_another_kind_pass_through() -> None:
    assert failing_above(32)(torch.arange(32)) == 32

    def broken(*_: object) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        GuardedStep(broken, broken, 4, 1, CPU)(torch.arange(4))


def test_where_nothing_can_be_compiled_the_model_stays_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported here\n\nand more")

    config = TrainConfig(
        data=DataConfig(frames=8, bodies=1),
        model=ModelConfig(width=16, depth=2, heads=1, predictor_depth=1),
    )
    model = build_model(config, one_clip(), torch.arange(1), CPU)
    x = torch.randn(1, 50, 12)
    before = model.view_encoder(x)
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(RuntimeWarning, match="goes on without: torch.compile is not supp") as seen:
        compile_blocks(model, config)
    assert len(seen) == 1 and "and more" not in str(seen[0].message)
    assert torch.equal(model.view_encoder(x), before)


@pytest.mark.parametrize(
    ("ratio", "device", "choice", "visible"),
    # "meta" stands for what is no CPU.
    [
        (0.9, "cpu", "auto", False),
        (0.8, "cpu", "on", False),
        (0.5, "cpu", "on", True),
        (0.9, "meta", "on", True),
    ],
)
def test_compiled_are_the_networks_of_a_step_that_see_many_tokens(
    ratio: float, device: str, choice: Any, visible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        data=DataConfig(frames=8, bodies=1),
        model=ModelConfig(width=16, depth=2, heads=1, predictor_depth=1),
        mask=MaskConfig(ratio=ratio),
        runtime=RuntimeConfig(compile=choice),
    )
    model = build_model(config, one_clip(), torch.arange(1), CPU)
    marked: list[object] = []
    monkeypatch.setattr(Block, "compile", lambda self, **_: marked.append(self))
    model.to(device)
    model.shadow("target_encoder", torch.bfloat16)
    compile_blocks(model, config)
    teacher = model.network("target_encoder")
    assert teacher is not None and teacher is not model.eval_encoder
    networks = [model.predictor, teacher, *([model.view_encoder] if visible else [])]
    assert marked == [block for network in networks for block in network.blocks]


@pytest.mark.parametrize(
    ("layer_scale", "predictor"), [(0.0, "joint"), (0.1, "joint"), (0.0, "cross")]
)
def test_on_a_gpu_auto_compiles_the_blocks_that_gain(
    layer_scale: float, predictor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        data=DataConfig(frames=8, bodies=1),
        model=ModelConfig(
            width=16,
            depth=2,
            heads=1,
            predictor_depth=1,
            layer_scale=layer_scale,
            predictor=predictor,
        ),
    )
    model = build_model(config, one_clip(), torch.arange(1), CPU)
    marked: list[object] = []
    for kind in (Block, CrossBlock):
        monkeypatch.setattr(kind, "compile", lambda self, **_: marked.append(self))
    compiles = compile_blocks(model.to("meta"), config)
    gaining = {
        (0.0, "joint"): [],
        (0.1, "joint"): [model.predictor, model.target_encoder, model.view_encoder],
        (0.0, "cross"): [model.predictor],
    }[layer_scale, predictor]
    assert marked == [block for network in gaining for block in network.blocks]
    assert compiles is bool(marked)


def test_a_compiler_that_fails_in_the_first_step_leaves_an_eager_run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.compile` only marks; what it cannot do shows when the first block is called."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)
    eager = trained(store, tmp_path / "eager", "--optim.length=4")
    with pytest.warns(RuntimeWarning) as seen:
        run = trained(store, tmp_path / "run", "--optim.length=4", "--compile")
    texts = [str(warning.message) for warning in seen]
    assert len([text for text in texts if "goes on without" in text]) == 1, texts
    assert "no working C++ compiler" in texts[0]
    timeless = [{k: row[k] for k in ("step", "loss", "grad_norm")} for row in metrics(run)[1:]]
    assert timeless == [{k: row[k] for k in timeless[0]} for row in metrics(eager)[1:]]
    assert len(timeless) == 4
    for name, weight in weights(eager).items():
        assert torch.equal(weights(run)[name], weight), name
