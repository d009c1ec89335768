"""What a GPU cannot do is one line: the run goes on without it, or stops if it was asked for.

The driver's answers are made up here; the GPU named is a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.errors import InputError
from sjepa_fast.runtime import preflight as tested
from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.preflight import check_code, graph_refused, preflight, triton_refused

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
HALF, SINGLE = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def ops_as_before() -> Iterator[None]:
    yield
    tested._chosen.close()


class Driver:
    """What the driver, PyTorch's build and Triton would say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capability = (9, 0)
        self.archs = ["sm_75", "sm_80", "sm_90a", "sm_100", "compute_120"]
        self.triton: str | None = None
        self.graphs: str | None = None
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: self.capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Toy GPU")
        monkeypatch.setattr("torch.cuda.get_arch_list", lambda: self.archs)
        real = torch.zeros
        monkeypatch.setattr("torch.zeros", lambda *n, device, **o: real(*n, **o))
        monkeypatch.setattr(tested, "random_mask", self.launch)
        monkeypatch.setattr(tested, "graph_refused", lambda _: self.graphs)
        self.used: list[str] = []
        monkeypatch.setattr(tested, "use", self.use)

    def launch(self, *_: object, impl: str) -> None:
        assert impl == "triton"
        if self.triton is not None:
            raise RuntimeError(self.triton)

    @contextlib.contextmanager
    def use(self, impl: str) -> Iterator[None]:
        self.used += [impl, "until closed"]
        yield
        self.used.append("closed")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def asked(**runtime: object) -> TrainConfig:
    return replace(TrainConfig(), runtime=runtime)


def test_a_gpu_that_can_do_everything_changes_and_says_nothing(
    driver: Driver, recwarn: pytest.WarningsRecorder
) -> None:
    for config in (asked(), asked(compile="on", cuda_graph="on"), asked(cuda_graph="off")):
        assert preflight(config, GPU, HALF) is config
    assert len(recwarn) == 0


def test_a_cpu_is_asked_nothing(driver: Driver) -> None:
    driver.capability, driver.triton, driver.graphs = (5, 0), "absent", "no"
    config = asked()
    assert preflight(config, CPU, HALF) is config


@pytest.mark.parametrize("compiling", ["auto", "on", "off"])
def test_without_triton_the_references_run_and_nothing_is_compiled(
    compiling: str, driver: Driver
) -> None:
    driver.triton = "Failed to find C compiler.\nPlease specify via CC"
    with pytest.warns(RuntimeWarning) as seen:
        config = preflight(asked(compile=compiling), GPU, SINGLE)
    (text,) = [str(warning.message) for warning in seen]
    assert "Triton does not work: Failed to find C compiler.;" in text and "\n" not in text
    assert "references" in text and ("nothing is compiled" in text) == (compiling != "off")
    assert config == asked(compile="off")
    assert driver.used == ["torch", "until closed"]
    tested._chosen.close()
    assert driver.used == ["torch", "until closed", "closed"]


def test_our_attention_asked_for_without_triton_is_refused(driver: Driver) -> None:
    driver.triton = "no ptxas"
    with pytest.raises(InputError, match=r"runtime\.attention: triton, but Triton does not work"):
        preflight(asked(attention="triton"), GPU, SINGLE)
    assert driver.used == []


def test_several_processes_replay_no_graph_and_one_of_them_says_why(
    driver: Driver, recwarn: pytest.WarningsRecorder
) -> None:
    driver.graphs = "no"
    for rank in (0, 1):
        config = preflight(asked(), GPU, HALF, World(rank, 2))
        assert config == asked(cuda_graph="off"), "the driver is not asked"
    (text,) = [str(warning.message) for warning in recwarn]
    assert text.startswith("2 processes replay no CUDA graph") and "--cuda-graph on" in text


@pytest.mark.parametrize(
    ("version", "driver_says", "refusal"),
    [
        ((2, 9, 6), None, None),
        ((2, 30, 7, "cuda13"), None, None),
        ((2, 9, 5), None, "NCCL 2.9.5 is older than 2.9.6"),
        (None, None, "no NCCL"),
        ((2, 27, 5), "no capture", "no capture"),
    ],
)
def test_a_graph_of_several_processes_is_tried_if_asked_for_and_nccl_is_new_enough(
    version: Any,
    driver_says: str | None,
    refusal: str | None,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: version is not None)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: version)
    driver.graphs = driver_says
    config = asked(cuda_graph="on")
    if refusal is None:
        assert preflight(config, GPU, HALF, World(1, 2)) is config
    else:
        with pytest.raises(InputError, match=f"cuda-graph: on, but .*{refusal}"):
            preflight(config, GPU, HALF, World(1, 2))
        if driver_says is None:
            assert preflight(config, GPU, HALF) is config, "alone it needs no NCCL"


def test_a_gpu_below_8_0_computes_in_float32_without_triton(driver: Driver) -> None:
    driver.capability = (7, 5)
    with pytest.warns(RuntimeWarning) as seen:
        config = preflight(asked(), GPU, SINGLE)
    (text,) = [str(warning.message) for warning in seen]
    assert "Toy GPU (compute capability 7.5) is too old for Triton, which needs 8.0" in text
    assert config.runtime.compile == "off"


def test_bfloat16_asked_for_where_it_is_not_native_is_said_to_be_slow(driver: Driver) -> None:
    driver.capability = (7, 5)
    with pytest.warns(RuntimeWarning) as seen:
        preflight(asked(dtype="bfloat16"), GPU, HALF)
    texts = [str(warning.message) for warning in seen]
    assert len(texts) == 2 and "no native bfloat16" in texts[0] and "use dtype float32" in texts[0]


@pytest.mark.parametrize(
    ("capability", "archs", "fits"),
    [
        ((7, 0), ["sm_75", "sm_80"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((12, 0), ["sm_75", "sm_90a", "compute_120"], True),
        ((6, 1), ["sm_100", "sm_75"], False),
        # A build for another maker's GPUs, about which nothing is known.
        ((9, 4), ["gfx942"], True),
    ],
)
def test_a_gpu_that_pytorch_was_not_built_for_is_refused(
    capability: tuple[int, int], archs: list[str], fits: bool, driver: Driver
) -> None:
    driver.capability, driver.archs = capability, archs
    refusal: Any = pytest.raises(InputError, match=r"runtime.device: .*older than this build")
    with contextlib.nullcontext() if fits else refusal as error:
        check_code(GPU)
    assert fits or "use --runtime.device cpu" in str(error.value)


def test_a_driver_without_graphs_costs_a_warning_or_the_run_that_asked_for_one(
    driver: Driver,
) -> None:
    driver.graphs = "operation not supported"
    with pytest.warns(RuntimeWarning, match="going on without: operation not supported") as seen:
        assert preflight(asked(), GPU, HALF) == asked(cuda_graph="off")
    assert len(seen) == 1
    with pytest.raises(InputError, match=r"cuda-graph: on, but Toy .*; leave it on auto"):
        preflight(asked(cuda_graph="on"), GPU, HALF)
    config = asked(cuda_graph="off")
    assert preflight(config, GPU, HALF) is config


class Stream:
    """Stands in for a CUDA stream where there is none."""

    def wait_stream(self, other: object) -> None:
        """Nothing to wait for."""


class Graph:
    """Stands in for a captured graph."""

    def replay(self) -> None:
        """Nothing to replay."""


@pytest.mark.parametrize("where", [None, "warm-up", "capture"])
def test_a_refusal_is_found_by_trying(where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("operation not supported: by this driver\nlong story")

    def succeed(*_: object, **__: object) -> Any:
        return contextlib.nullcontext()

    monkeypatch.setattr("torch.cuda.Stream", fail if where == "warm-up" else Stream)
    monkeypatch.setattr("torch.cuda.current_stream", Stream)
    monkeypatch.setattr("torch.cuda.set_stream", lambda _: None)
    monkeypatch.setattr("torch.cuda.stream", succeed)
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", fail if where == "capture" else succeed)
    reason = graph_refused(CPU)
    assert reason == (None if where is None else "operation not supported: by this driver")


def test_triton_without_a_gpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    reason = triton_refused(CPU)
    assert reason is not None and reason.startswith("Triton does not work: impl: 'triton'")
