"""How far a command is: what is left without the first units, what fits a line, plain lines."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from sjepa_fast.runtime.progress import PLAIN_SECONDS, Display, Pace, duration, figures

EVERY = {
    "loss": 23.1294, "skipped": 3, "lr": 8e-5, "momentum": 0.99, "effective_rank": 42.7,
    "target_entropy": 0.28, "knn": 84.1, "top1": 70.0, "clips_per_second": 123456.0,
    "ms_per_step": 123.4, "gpu_mb": 70000.0, "grad_norm": 1.0,
}  # fmt: skip


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_leaves_the_first_step_out() -> None:
    """The first step compiles for 1,000 s, each after it takes 2 s."""
    clock = Clock()
    pace = Pace(50, 1, clock)
    assert pace.left(0) is None
    clock.now += 1000
    assert pace.left(1) is None, "nothing is known of the others yet"
    clock.now += 2
    assert pace.left(2) == 2 * 48
    clock.now += 1
    assert pace.left(2) == 2 * 48, "a step that is still computed is no slow one"
    clock.now += 5
    assert pace.left(4) == pytest.approx(8 / 3 * 46)
    clock.now += 92
    assert pace.left(50) == 0


def test_several_first_steps_can_be_left_out() -> None:
    clock = Clock()
    pace = Pace(100, 14, clock)
    for done in (11, 12, 13):
        clock.now += 60
        assert pace.left(done) is None
    assert pace.left(14) is None
    clock.now += 3
    assert pace.left(15) == 3 * 85


def test_a_time_is_hours_minutes_and_seconds() -> None:
    assert [duration(x) for x in (0.4, 59.6, 3725, 360000)] == [
        "00:00:00", "00:01:00", "01:02:05", "100:00:00",
    ]  # fmt: skip


def test_the_least_important_figures_are_dropped_first() -> None:
    whole = figures(EVERY)
    assert whole[0] == "loss 23.129" and whole[-1] == "GPU MB 70000" and len(whole) == 11
    for room in range(140):
        fitting = figures(EVERY, room)
        assert sum(3 + len(text) for text in fitting) <= room
        assert [text for text in whole if text in fitting] == fitting
    assert figures(EVERY, 40) == ["loss 23.129", "skipped 3", "kNN 84.1"]
    assert figures({"lr": 8e-5}) == ["lr 8.00e-05"]


@pytest.mark.parametrize("name", ["step", "clips of " + "x" * 300, "体操" * 50, "\x1b[2J" * 9])
@pytest.mark.parametrize("width", [80, 100])
def test_a_line_fits_whatever_a_store_is_called(name: str, width: int) -> None:
    display = Display(shown=False)
    display.count(name, 240_000, 100_000)
    display.values = EVERY
    head, rest, done = display.texts(width)
    assert cell_len(f"{head} {16 * '━'} {rest}") <= width
    assert head.endswith(" 100000/240000") and done == 100_000 and head.isprintable()
    assert rest.startswith("ETA --:--:--  loss 23.129")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_file_gets_phases_and_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Display(clock=clock) as display:
        display.phase("loading")
        display.phase("loading")
        display.count("step", 2400, first="compiling", warm=3)
        assert lines(capsys) == ["loading", "compiling"]
        clock.now += 300
        display.at(3)
        assert lines(capsys) == ["step 3/2400"], "of the long silence"
        for step in range(4, 10):
            clock.now += 1
            display.at(step, {"loss": float(step)})
        assert lines(capsys) == ["step 4/2400 | loss 4.000 | ETA 00:39:56"], "the first figures"
        clock.now += PLAIN_SECONDS
        display.at(19, {"knn": 50.0})
        assert lines(capsys) == ["step 19/2400 | loss 9.000 | kNN 50.0 | ETA 00:39:41"]
        display.at(20, {"loss": 1.0})
        assert lines(capsys) == []
        display.leave()
        display.leave()
        assert lines(capsys) == ["step 20/2400 | loss 1.000 | kNN 50.0"], "once"
        display.at(2400, {"loss": 0.5})
        assert lines(capsys)[0].startswith("step 2400/2400 | loss 0.500 | kNN 50.0")


def test_a_short_count_without_figures_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Display(clock=clock) as display:
        display.count("clips", 5, done=2)
        assert list(display.each("abc")) == ["a", "b", "c"]
        assert display.done == 5 and lines(capsys) == []
        display.count("clips", 5)
        assert list(display.each("abcde", every=2)) == list("abcde")
        assert display.done == 5
        display.count("clips", 5)
        assert display.counted(len)("ab") == 2 and display.done == 2


def test_work_that_fails_leaves_its_last_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Display() as display:
        display.count("step", 9)
        display.at(1, {"loss": 1.0})
        display.at(2, {"loss": 2.0})
        raise ZeroDivisionError
    assert lines(capsys) == ["step 1/9 | loss 1.000", "step 2/9 | loss 2.000"]


def test_processes_that_do_not_lead_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(shown=False) as display:
        display.note("a")
        display.phase("b")
        display.count("c", 1, first="d")
        display.at(1, {"loss": 1.0})
        display.leave()
    assert capsys.readouterr() == ("", "")
