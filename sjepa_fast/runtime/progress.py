# SPDX-License-Identifier: Apache-2.0
"""How far a command is: one line with a bar on a terminal, plain lines elsewhere.

On a terminal a thread of rich's draws the line four times a second; who computes only leaves
numbers behind. In a file a line tells of each phase, and of the work every `PLAIN_SECONDS`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from sjepa_fast.names import hush, printable, say

T = TypeVar("T")

PLAIN_SECONDS = 10.0
_BAR = 16
_LONGEST = 36  # columns of a phase with its count; a store may have any name
# Figures in the order in which they are shown: key, label, format, and when it is left out for
# lack of room: the largest number first.
_FIGURES = (
    ("loss", "loss", ".3f", 0),
    ("skipped", "skipped", ".0f", 1),
    ("lr", "lr", ".2e", 6),
    ("momentum", "ema", ".5f", 8),
    ("effective_rank", "rank", ".1f", 5),
    ("target_entropy", "H(target)", ".2f", 7),
    ("knn", "kNN", ".1f", 2),
    ("top1", "top-1", ".1f", 3),
    ("clips_per_second", "clips/s", ".0f", 4),
    ("ms_per_step", "ms/step", ".1f", 9),
    ("gpu_mb", "GPU MB", ".0f", 10),
)


class Pace:
    """Tells how long a count takes, by all its units but the first, which compile or capture.

    Args:
        total: Units of the work.
        warm: The units up to this one are left out.
        clock: Gives seconds.
    """

    def __init__(self, total: int, warm: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.warm, self.clock = total, warm, clock
        self.began: tuple[float, int] | None = None
        self.known: tuple[int, float] | None = None

    def left(self, done: int) -> float | None:
        """Return the seconds left after `done` units; None until two moments are known."""
        if self.began is None:
            if done >= self.warm:
                self.began = self.clock(), done
            return None
        began, before = self.began
        if done > before and (self.known is None or self.known[0] != done):
            each = (self.clock() - began) / (done - before)
            self.known = done, each * (self.total - done)
        return None if self.known is None else self.known[1]


def figures(values: Mapping[str, float], room: float = float("inf"), between: int = 3) -> list[str]:
    """Return the figures of a line that fit into so many columns, with `between` before each."""
    shown: list[str] = []
    fitting: set[str] = set()
    for key, label, form, _ in sorted(_FIGURES, key=lambda row: row[3]):
        if key in values:
            room -= between + len(f"{label} {values[key]:{form}}")
            if room < 0:
                break
            fitting.add(key)
    for key, label, form, _ in _FIGURES:
        if key in fitting:
            shown.append(f"{label} {values[key]:{form}}")
    return shown


def duration(seconds: float) -> str:
    """Format a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


class Display:
    """Shows the phase of a command and how far it is, while the block lasts; prints its notes.

    Args:
        shown: False for processes that are not to print anything.
        clock: Gives seconds.
    """

    def __init__(self, shown: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.shown, self.clock = shown, clock
        self.line: _Line | None = None
        self.told, self.told_phase, self.pending = clock(), "", False
        self._begin("", 0, 0)

    def __enter__(self) -> Display:
        """Take over a terminal's last line; a file, or a terminal that cannot move, has none."""
        # Not only what rich thinks, whom FORCE_COLOR can tell that a file is a terminal.
        if self.shown and sys.stdout.isatty():
            # Paths and commands in notes are copied: only the terminal itself may break them.
            console = Console(soft_wrap=True)
            if console.is_interactive:
                self.line = _Line(self, console)
                self._show(self.line.start)
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Remove the line; that of work which has failed stays."""
        if kind is not None:
            self.leave()
        line, self.line = self.line, None
        if line is not None:
            self._show(line.stop)

    def _begin(self, phase: str, done: int, total: int, first: str = "", warm: int = 1) -> None:
        self.phase_name, self.first = phase, first
        self.done, self.total, self.begun = done, total, done
        self.pace = Pace(total, done + warm, self.clock)
        self.now: Callable[[], int] = lambda: self.done
        self.values: dict[str, float] = {}
        self.fresh = True
        if self.line is not None:
            self.line.begin(total)

    def phase(self, name: str) -> None:
        """Begin something whose end is not known, such as `loading`."""
        self._begin(name, 0, 0)
        self._tell_phase(name)

    def count(
        self,
        name: str,
        total: int,
        done: int = 0,
        *,
        now: Callable[[], int] | None = None,
        first: str = "",
        warm: int = 1,
    ) -> None:
        """Begin work of `total` units, of which `done` are done already.

        Args:
            name: What a unit is, or the work.
            total: All units, also those done before.
            done: Units done before, as by the run that is resumed.
            now: Gives the units done. The thread that draws the line asks it, so that nobody needs
                to call `at` for each unit.
            first: The phase until the first unit is done, such as `compiling`.
            warm: Units that take longer than those after them, and tell nothing about these.
        """
        self._begin(name, done, total, first, warm)
        if now is not None:
            self.now = now
        if first:
            self._tell_phase(first)

    def at(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Note that `done` units are done, and new figures; the others stay as they are.

        In a file the first and the last line with figures are written whenever they come.
        """
        if not self.shown:
            return
        self.done = done
        left = self.pace.left(done)
        if values is not None:
            self.values.update(values)
            self.pending = True
        if self.line is None:
            ends = values is not None and (self.fresh or done == self.total)
            self.fresh = self.fresh and values is None
            if ends or self.clock() - self.told >= PLAIN_SECONDS:
                self._tell(self._plain(left))

    def each(self, items: Iterable[T], every: int = 1) -> Iterator[T]:
        """Yield items, and note them as done, `every` so many and at the end."""
        taken = 0
        for item in items:
            yield item
            taken += 1
            if taken == every:
                self.at(self.done + taken)
                taken = 0
        if taken:
            self.at(self.done + taken)

    def counted(self, function: Callable[[Any], T]) -> Callable[[Any], T]:
        """Return a function of chunks that notes their items as done."""

        def call(chunk: Any) -> T:
            found = function(chunk)
            self.at(self.done + len(chunk))
            return found

        return call

    def note(self, text: str) -> None:
        """Print a permanent line."""
        if self.line is not None:
            shown = Text(printable(text))
            self._show(partial(self.line.console.print, shown, highlight=False))
        elif self.shown:
            self._show(partial(say, text))

    def leave(self) -> None:
        """Let the last figures stay, as a permanent line, if they are not one already."""
        pending, self.pending = self.pending, False
        if pending and self.line is not None:
            self._show(self.line.refresh)
            head = self._head(self.done)
            room = self.line.console.width - cell_len(head)
            self.note(" | ".join([head, *figures(self.values, room)]))
        elif pending:
            self._tell(self._plain(None))

    def _tell_phase(self, name: str) -> None:
        if self.line is None and self.shown and name != self.told_phase:
            self.told_phase = name
            self._tell(name)

    def _tell(self, text: str) -> None:
        self.told, self.pending = self.clock(), False
        self.note(text)

    def _plain(self, left: float | None) -> str:
        eta = [] if left is None else [f"ETA {duration(left)}"]
        return " | ".join([self._head(self.done), *figures(self.values), *eta])

    def _head(self, done: int) -> str:
        """Return the phase and its count, in at most `_LONGEST` columns."""
        if not self.total:
            count, name = "", self.phase_name
        elif done == self.begun and self.first:
            count, name = "", self.first
        else:
            count, name = f" {done}/{self.total}", self.phase_name
        name, room = printable(name), _LONGEST - len(count)
        if cell_len(name) > room:
            name = set_cell_size(name, room - 1).rstrip() + "…"
        return name + count

    def texts(self, width: int) -> tuple[str, str, int]:
        """Return what stands before and behind the bar in a line of so many columns, and the count.

        The thread that draws calls it.
        """
        done = self.now()
        head = self._head(done)
        if not self.total:
            return head, "", done
        left = self.pace.left(done)
        eta = "ETA --:--:--" if left is None else f"ETA {duration(left)}"
        room = width - cell_len(head) - _BAR - len(eta) - 2
        return head, "  ".join([eta, *figures(self.values.copy(), room, 2)]), done

    def _show(self, show: Callable[[], object]) -> None:
        try:
            show()
        except OSError:
            # Who read the output is gone, perhaps by the signal that we got too: there is a run to
            # be saved.
            hush()


class _Line(Progress):
    """The line of a terminal."""

    def __init__(self, display: Display, console: Console) -> None:
        self.display, self.terminal, self.head, self.rest = display, console, "", ""
        super().__init__(
            _Words(lambda: self.head),
            BarColumn(_BAR),
            _Words(lambda: self.rest),
            console=console,
            refresh_per_second=4,
            transient=True,
            # What goes into a file of errors stays out of the terminal.
            redirect_stderr=sys.stderr.isatty(),
        )

    def begin(self, total: int) -> None:
        """Begin a bar; without a total it only moves."""
        with self._lock:
            for task in self.tasks:
                self.remove_task(task.id)
            self.add_task("", total=total or None)
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        self.head, self.rest, done = self.display.texts(self.terminal.width)
        for task in self.tasks:
            self.update(task.id, completed=done)
        return super().get_renderables()


class _Words(ProgressColumn):
    """Text that is made when the line is drawn; nothing in it is markup."""

    def __init__(self, text: Callable[[], str]) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text())


SILENT = Display(shown=False)
