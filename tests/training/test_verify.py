"""Steps done twice: every flipped bit is found and named, and nothing else changes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sjepa_fast.config.traits import TRAITS
from sjepa_fast.errors import RunStopped
from sjepa_fast.train import main
from sjepa_fast.training import verify
from sjepa_fast.training.step import TrainStep
from sjepa_fast.training.verify import Trace, VerifiedStep, digest, state_of
from tests.tiny import call, metrics, run_python, trained, weights, words_of_run
from tests.training.test_step import OTHERS, make_step

IDS = torch.arange(6)
PARTS = ("weights", "exp_avg", "exp_avg_sq", "step", "ema", "center")


def bits_of(tensor: Tensor) -> Tensor:
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().reshape(-1).view(sizes[tensor.element_size()])


def flip(tensor: Tensor, dice: random.Random) -> None:
    """Flip one bit, as a cosmic ray would."""
    bits = bits_of(tensor)
    mask = torch.ones((), dtype=bits.dtype) << dice.randrange(8 * tensor.element_size())
    bits[dice.randrange(len(bits))] ^= mask


class Spoiler:
    """Calls `spoil` at the end of the pass number `at` (from 0 on) through a step."""

    def __init__(self, step: TrainStep) -> None:
        self.inner, self.passes, self.at = step.eager, 0, -1
        self.spoil: Callable[[], object] = lambda: None
        step.eager = self  # type: ignore[method-assign,assignment]

    def plan(self, at: int, spoil: Callable[[], object]) -> None:
        self.passes, self.at, self.spoil = 0, at, spoil

    def __call__(self, ids_B: Tensor) -> Any:
        result = self.inner(ids_B)
        if self.passes == self.at:
            self.spoil()
        self.passes += 1
        return result


def mixed(value: int) -> int:
    """What `digest` does with one element's bits plus its place, in whole numbers."""
    value = value * 0x2545F4914F6CDD1D % 2**64
    value ^= value >> 32
    return value * 0x5851F42D4C957F2D % 2**64


@pytest.mark.parametrize("together", [1, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_digest_is_the_sum_of_mixed_bits_and_places(
    dtype: torch.dtype, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_TOGETHER", together)
    x, y = (torch.randn(5, 7) * 100).to(dtype), torch.randn(3).to(dtype)
    found = digest(x, y, y.bool()).tolist()
    place = 0
    for tensor, result in zip((x, y), found, strict=False):
        if place + tensor.numel() > together:
            place = 0
        bits = bits_of(tensor).tolist()
        terms = [mixed(b + i * 0x9E3779B97F4A7C15) for i, b in enumerate(bits, start=place + 1)]
        assert result % 2**64 == sum(terms) % 2**64
        place += len(bits)
    assert len(found) == 3
    assert not torch.equal(digest(x.T), digest(x)), "the order counts"
    assert torch.equal(digest(x[:, ::2]), digest(x[:, ::2].clone()))
    assert digest(x.flatten()[0]).shape == (1,)
    assert torch.equal(digest(x, y, y.bool()), torch.tensor(found)), "and nothing is changed"


def test_no_flip_and_no_two_flips_leave_a_digest_as_it_was() -> None:
    x, dice = torch.randn(64), random.Random(0)
    seen = {int(digest(x))}
    for place in range(64):
        for bit in range(32):
            y = x.clone()
            bits_of(y)[place] ^= torch.ones((), dtype=torch.int32) << bit
            seen.add(int(digest(y)))
    assert len(seen) == 1 + 64 * 32
    for _ in range(500):
        # The same bit in two places, which a plain sum or exclusive or may not see.
        y, bit = x.clone(), torch.ones((), dtype=torch.int32) << dice.randrange(32)
        for place in dice.sample(range(64), 2):
            bits_of(y)[place] ^= bit
        seen.add(int(digest(y)))
    assert len(seen) > 1 + 64 * 32 + 400


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TRAITS)
def test_a_verified_step_ends_as_a_plain_one(kind: str, dtype: torch.dtype) -> None:
    plain: dict[str, object] = {"kind": kind, "target_norm": TRAITS[kind].target_norms[0]}
    sections = OTHERS.get(kind) or {"objective": plain}
    once, twice = (make_step(dtype=dtype, **sections) for _ in range(2))
    checked = VerifiedStep(twice, "every", resumed=False)
    for number in range(3):
        ids = IDS.roll(number)
        one, other = once(ids), checked(ids)
        assert torch.equal(one.loss, other.loss) and torch.equal(one.grad_norm, other.grad_norm)
    assert int(twice.step) == 3
    for name, tensor in state_of(once).items():
        assert torch.equal(bits_of(tensor), bits_of(state_of(twice)[name])), name


def test_a_step_that_does_not_fit_twice_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, step = make_step(), make_step()
    checked = VerifiedStep(step, "every", resumed=False)
    trace, passes = checked._trace, []

    def second_does_not_fit(ids_B: Tensor) -> Any:
        passes.append(1)
        if len(passes) == 2:
            step.eager(ids_B)
            raise torch.OutOfMemoryError
        return trace(ids_B)

    monkeypatch.setattr(checked, "_trace", second_does_not_fit)
    with pytest.warns(RuntimeWarning, match="do not fit into the memory"):
        checked(IDS)
    checked(IDS.roll(1))
    plain(IDS), plain(IDS.roll(1))
    assert len(passes) == 2
    for name, tensor in state_of(plain).items():
        assert torch.equal(bits_of(tensor), bits_of(state_of(step)[name])), name


def test_state_is_all_that_a_step_changes() -> None:
    step = make_step(dtype=torch.bfloat16)
    names = state_of(step)
    model, count = step.model, len(step.weights)
    for part in ("exp_avg", "exp_avg_sq", "step"):
        assert sum(name.startswith(f"{part} of ") for name in names) == count
    assert sum(name.startswith("weights ") for name in names) == count
    target = dict(model.target_encoder.named_parameters())
    assert {name for name in names if name.startswith("ema ")} == {
        f"ema target_encoder.{name}" for name in target
    }
    halves = {name for name in names if name.startswith("half-precision target_encoder.")}
    assert halves, "the target encoder's copies in half precision"
    assert {"center", "step", "rate", "seed"} <= set(names)


@pytest.fixture(scope="module")
def spoiled() -> tuple[TrainStep, VerifiedStep, Spoiler]:
    step = make_step()
    spoiler = Spoiler(step)
    checked = VerifiedStep(step, "every", resumed=False)
    for number in range(2):
        checked(IDS.roll(number))
    assert spoiler.passes == 4, "each step was done twice, and no third time"
    return step, checked, spoiler


@pytest.mark.parametrize("part", PARTS)
def test_a_bit_flipped_in_a_step_is_named(
    part: str, spoiled: tuple[TrainStep, VerifiedStep, Spoiler]
) -> None:
    """In either pass, in any tensor, place and bit: 6 x 2 x 13 flips."""
    step, checked, spoiler = spoiled
    state = state_of(step)
    names = [name for name in state if name.split()[0] == part and name != "step"]
    for trial in range(26):
        step.step.fill_(2)
        dice = random.Random(f"{part} {trial}")
        name = dice.choice(names)
        spoiler.plan(trial % 2, lambda name=name, dice=dice: flip(state[name], dice))
        with pytest.raises(RunStopped, match=rf"^runtime.verify: step 3.*: {name} differs first"):
            checked(IDS)
        assert spoiler.passes == 3


def test_a_bit_flipped_in_a_gradient_is_named() -> None:
    """In either pass, before and after the gradients are clipped: 2 x 2 x 10 flips."""
    step = make_step()
    named = {name: x for name, x in step.model.named_parameters() if x.requires_grad}
    spoiler, due = Spoiler(step), {"pass": -1, "when": ""}
    chosen, dice = "", random.Random(0)

    def made(name: str) -> Callable[[Tensor], None]:
        def hook(x: Tensor) -> None:
            if (name, spoiler.passes, due["when"]) == (chosen, due["pass"], "made"):
                flip(x.grad, dice)  # type: ignore[arg-type]

        return hook

    def given(*_: object) -> None:
        if (spoiler.passes, due["when"]) == (due["pass"], "given"):
            flip(named[chosen].grad, dice)  # type: ignore[arg-type]

    for name, x in named.items():
        x.register_post_accumulate_grad_hook(made(name))
    step.optimizer.register_step_pre_hook(given)
    checked = VerifiedStep(step, "every", resumed=False)
    for trial in range(40):
        step.step.fill_(2)
        spoiler.plan(-1, lambda: None)
        chosen = dice.choice(list(named))
        due |= {"pass": trial % 2, "when": ("made", "given")[trial // 2 % 2]}
        after = ", for the update" if due["when"] == "given" else ""
        with pytest.raises(RunStopped, match=rf": gradient of {chosen}{after} differs first"):
            checked(IDS)


def test_a_bit_flipped_between_the_passes_is_named(
    spoiled: tuple[TrainStep, VerifiedStep, Spoiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, checked, spoiler = spoiled
    spoiler.plan(-1, lambda: None)
    put_back, dice = verify._put_back, random.Random(1)
    chosen = ""

    def spoil_once(state: dict[str, Tensor], before: list[Tensor]) -> None:
        if chosen:
            # The copy that is put back, this time and the next.
            flip(before[list(state).index(chosen)], dice)
        put_back(state, before)

    monkeypatch.setattr(verify, "_put_back", spoil_once)
    for _ in range(12):
        step.step.fill_(2)
        names = [n for n in state_of(step) if n.split()[0] in PARTS and n != "step"]
        chosen = dice.choice(names)
        with pytest.raises(RunStopped, match=rf": {chosen}, before it differs first"):
            checked(IDS)


def test_which_calls_are_verified() -> None:
    done = {"off": [], "resume": [], "first": [0], "every": [0, 1, 2, 3, 4], "2": [0, 2, 4]}
    for when, expected in done.items():
        step = make_step()
        spoiler = Spoiler(step)
        checked, twice = VerifiedStep(step, when, resumed=False), []
        for number in range(5):
            before = spoiler.passes
            checked(IDS)
            twice += [number] * (spoiler.passes - before == 2)
        assert twice == expected, when
    assert verify.interval("resume", resumed=True) == verify.interval("first", resumed=False) > 1e9


def test_a_device_that_never_repeats_is_a_warning_and_no_alarm() -> None:
    """On a GPU only: attention's backward may add in any order there."""
    checked = VerifiedStep(make_step(), "every", resumed=False)
    traces = [Trace(["loss", "center"], torch.tensor([5, n])) for n in range(3)]
    with pytest.raises(RunStopped, match="center differs first"):
        checked._judge("center", traces, torch.device("cpu"))
    with pytest.raises(RunStopped, match="center differs first"):
        checked._judge("center", [*traces[:2], traces[1]], torch.device("cuda"))
    assert checked.every == 1
    with pytest.warns(RuntimeWarning, match="no two of three.*center"):
        checked._judge("center", traces, torch.device("cuda"))
    assert checked.every == 0, "and there is no second warning"


@pytest.mark.parametrize("value", ["0", "-1", "always", "1.5", ""])
def test_other_values_are_refused(store: Path, tmp_path: Path, value: str) -> None:
    done = call(main, *words_of_run(store, tmp_path / "run", f"--verify={value}"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"runtime.verify: {value}; use resume, first, every, off")


MORE = ("--optim.length=4", "--checkpoint.every=2", "--runtime.dtype=float32")


def test_a_run_verified_at_every_step_is_the_same_run(store: Path, tmp_path: Path) -> None:
    plain = trained(store, tmp_path / "plain", *MORE, "--verify=off")
    twice = trained(store, tmp_path / "twice", *MORE, "--verify=every")
    ours, theirs = weights(twice), weights(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for kind in ("loss", "grad_norm"):
        assert [r.get(kind) for r in metrics(twice)] == [r.get(kind) for r in metrics(plain)]


def test_a_resumed_run_verifies_its_first_step_and_stops_in_one_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, eager, passes = tmp_path / "run", TrainStep.eager, 0

    def spoil(self: TrainStep, ids_B: Tensor) -> Any:
        nonlocal passes
        result = eager(self, ids_B)
        passes += 1
        if passes == 5:
            flip(self.model.get_buffer("center"), random.Random(0))
        return result

    monkeypatch.setattr(TrainStep, "eager", spoil)
    words = words_of_run(store, run, *MORE)
    trained(store, run, *MORE, "--optim.length=4")
    assert passes == 4, "a start from nothing verifies no step"
    folders = sorted(run.glob("checkpoints/step-*"))
    newest = folders.pop()
    newest.rename(tmp_path / "last")
    done = call(main, *words, "--resume=auto")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "step 3" in line and "center differs first" in line and "Traceback" not in line
    assert sorted(run.glob("checkpoints/step-*")) == folders, "nothing was saved"
    done = call(main, *words, "--resume=auto", "--verify", "first")
    assert done.returncode == 0, "another value is no other run"


TWO = """
import os, random, sys
from sjepa_fast.train import main
from sjepa_fast.training.step import TrainStep
from tests.training.test_verify import flip

folder, port, *words = sys.argv[1:]
eager, passes = TrainStep.eager, 0

def spoil(self, ids_B):
    global passes
    result = eager(self, ids_B)
    passes += 1
    if (passes, os.environ["RANK"], bool(int(os.environ["SPOIL"]))) == (5, "1", True):
        flip(dict(self.model.named_parameters())["predictor.mask_token"], random.Random(0))
    return result

TrainStep.eager = spoil
pids = []
for rank in "01":
    pids.append(os.fork())
    if not pids[-1]:
        here = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update(here)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        try:
            main(words)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)
        os._exit(9)
print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


@pytest.mark.slow
def test_a_flip_in_one_process_stops_both(store: Path, tmp_path: Path) -> None:
    import os
    import socket

    plain = trained(store, tmp_path / "plain", *MORE)
    for spoil, codes in (("0", "0 0"), ("1", "1 1")):
        run = tmp_path / f"run-{spoil}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        words = words_of_run(store, run, *MORE, "--verify=2")
        environment = {**os.environ, "SPOIL": spoil, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = run_python("-c", TWO, tmp_path, port, *words, env=environment)
        errors = [(tmp_path / f"{rank}.err").read_text() for rank in "01"]
        assert done.stdout.split() == codes.split(), (done.stderr, errors)
    assert (tmp_path / "run-0/results/knn-before-after.json").exists()
    losses = [[row["loss"] for row in metrics(r)[1:]] for r in (plain, tmp_path / "run-0")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # Calls 2 and 4 are compared; pass 5 is the first of call 4.
    for text in errors:
        (line,) = text.splitlines()
        assert "step 4" in line and "weights predictor.mask_token in process 1" in line
    steps = [path.name for path in (tmp_path / "run-1").glob("checkpoints/step-*")]
    assert steps == ["step-00000002"]
