# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.bench [PRESET] [--flag value ...]`: how fast a training step is here.

It trains for a few steps in a folder that is gone afterwards, on the embedded data if no store is
named, and prints the page that `train --profile` writes: milliseconds per step, of each pass, and
what share of the machine that is. PRESET and flags are those of `sjepa_fast.train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import tempfile
from pathlib import Path

from sjepa_fast import cli
from sjepa_fast.config.files import parse_train
from sjepa_fast.config.schema import replace
from sjepa_fast.data.facts import facts_of
from sjepa_fast.errors import InputError
from sjepa_fast.names import say
from sjepa_fast.train import train
from sjepa_fast.training.continuing import origin_of
from sjepa_fast.training.profiling import CLOCKED, TRACED, WARMUP

PROG = "sjepa_fast.bench"
STEPS = WARMUP + CLOCKED + TRACED + 1


def bench(arguments: list[str]) -> int:
    """Profile some steps of the run that `train` would begin, and print the page; return its code.

    Raises InputError as `train` does, and if a run folder is named: nothing is kept.
    """
    if "-h" in arguments or "--help" in arguments:
        say(f"usage: {cli.command(PROG)} [PRESET] [--flag value ...]\n\n{(__doc__ or '').strip()}")
        return 0
    config = parse_train(arguments, facts_of, origin_of)
    named = {word.partition("=")[0] for word in arguments}
    if named & {"--run", "--resume"}:
        raise InputError("run", config.run, "leave --run and --resume out; nothing is kept")
    folder = Path(tempfile.mkdtemp(prefix="sjepa-bench-"))
    try:
        together = config.objective.target_every
        config = replace(
            dataclasses.replace(config, run=folder / "run"),
            data={"synthetic": config.data.root is None},
            optim={"length": -(-STEPS // together) * together, "warmup": 1, "unit": "steps"},
            log={"profile": True, "knn_every": 0, "to": ()},
        )
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = train(config)
        if code == 0:
            say((folder / "run" / "profile" / "profile.md").read_text().rstrip())
        return code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted)."""
    cli.run_main(lambda: bench(cli.arguments(argv)))


if __name__ == "__main__":
    main()
