"""Which signals stop a run, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from sjepa_fast.runtime.dist import World
from sjepa_fast.runtime.signals import SIGNALS, StopSignals
from tests.tiny import CPU


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """Whatever this process ignores (a background job ignores SIGINT), the tests begin alike."""
    before = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_is_noted_and_gives_the_exit_code(number: str, code: int) -> None:
    with StopSignals(lambda: "") as signals:
        signals.agree(World(), CPU)
        assert signals.stop is None and signals.exit_code == 0
        os.kill(os.getpid(), getattr(signal, number))
        assert signals.stop is None, "the loop decides when"
        signals.agree(World(), CPU)
        assert signals.exit_code == code
    assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * 3


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_ignored_at_the_start_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopSignals(lambda: "") as signals:
        os.kill(os.getpid(), number)
        signals.agree(World(), CPU)
        assert signals.stop is None
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_second_ctrl_c_leaves_at_once_with_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt, match="step 4"), StopSignals(lambda: "step 4") as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.heard == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    # A launcher sends the terminal's Ctrl-C on to processes that have had it.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopSignals(lambda: "") as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        signals.agree(World(), CPU)
        assert signals.exit_code == 130


def test_processes_agree_on_the_signal_that_any_of_them_heard() -> None:
    class Two(World):
        def sum_(self, tensor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            tensor[SIGNALS.index(signal.SIGTERM)] += 1
            return tensor

    with StopSignals(lambda: "") as signals:
        signals.agree(Two(size=2), CPU)
        assert signals.heard is None and signals.exit_code == 143
