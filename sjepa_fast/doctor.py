# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.doctor RUN`: what a run's own records say is wrong, and the flag to try.

Every finding is a rule over the configuration, `metrics.jsonl`, the scores before and after, and
the store where it is at hand. The limits are our choice; nothing is computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from sjepa_fast import cli
from sjepa_fast.config.schema import TrainConfig, kept_tokens
from sjepa_fast.config.traits import TRAITS
from sjepa_fast.data.store import open_store
from sjepa_fast.data.units import wrong_units
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.collapse import describe_collapse
from sjepa_fast.evaluation.subject import trained_layout
from sjepa_fast.names import say
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.run_folder import read_run
from sjepa_fast.runtime.logging import read_metrics

# Fewer visible tokens than this can hardly show a movement.
LEAST_TOKENS = 8
# Less than this share of the first weights should be left in the target encoder at the end.
MOST_LEFT = 0.05
# Skipped steps or spikes beyond this share are no accident.
ROUGH = 0.01
# Clips that are looked at for their units.
LOOKED_AT = 50


@dataclass(frozen=True)
class DoctorConfig:
    """Look for what is wrong with a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""


@dataclass(frozen=True)
class Records:
    """What a run has written."""

    config: TrainConfig
    joints: int
    rows: list[dict[str, float]]
    """Of `metrics.jsonl`, oldest first."""
    scores: tuple[float, float] | None
    """1-NN before and after training, once it has ended."""

    def column(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of the rows that have a value."""
        return [(int(row["step"]), row[name]) for row in self.rows if name in row]

    @property
    def steps(self) -> int:
        """How many steps were logged."""
        return int(self.rows[-1]["step"]) if self.rows else 0


def read_records(run: Path) -> Records:
    """Read the records of a run folder; raises InputError if there are none or they are damaged."""
    config, path = read_run(run), run / "results" / "knn-before-after.json"
    scores = None
    if path.exists():
        found = read_json("run", path)
        check_fields("run", path, found, {"before": (float,), "after": (float,)})
        scores = found["before"], found["after"]
    root = config.data.root
    layout = trained_layout(run, root if root is not None and root.is_dir() else None)
    return Records(config, layout.num_joints, read_metrics(run), scores)


def too_few_tokens(of: Records) -> str | None:
    """Masks that leave next to nothing visible."""
    config = of.config
    tokens = config.data.frames // config.model.segment_length * of.joints
    kept = kept_tokens(config.mask, tokens, of.joints)
    if kept >= LEAST_TOKENS:
        return None
    return f"the view encoder sees {kept} of {tokens} tokens: --mask.ratio {1 - 16 / tokens:.2f}"


def slow_average(of: Records) -> str | None:
    """A target encoder that has hardly left its first weights: it teaches what it began with."""
    logged = of.column("momentum")
    if not logged:
        return None
    # Rows are few in a short run, and the momentum rises between them.
    points = [(0, of.config.objective.ema_start), *logged]
    moved = max(0.0, sum((t - s) * (2 - m - n) / 2 for (s, m), (t, n) in pairwise(points)))
    if math.exp(-moved) < MOST_LEFT:
        return None
    cure = "--objective.ema-start 0.99, or a longer run"
    if moved > 0.01 and of.config.objective.ema_start <= 0.99:
        enough = math.ceil(-math.log(MOST_LEFT) / moved * of.steps / 100) * 100
        cure = f"a longer run, such as --optim.length {enough} --optim.unit steps"
    return (
        f"after {of.steps} steps {100 * math.exp(-moved):.0f} % of the target encoder are its "
        f"first weights, the average is too slow for so short a run: {cure}"
    )


def below_initialisation(of: Records) -> str | None:
    """Features that were better before training."""
    if of.scores is None or of.scores[1] > of.scores[0]:
        return None
    if of.config.continue_from:
        return (
            f"1-NN is {of.scores[1]:.1f} % after training and was {of.scores[0]:.1f} % with the "
            f"weights of {of.config.continue_from}: --optim.lr {of.config.optim.lr / 10:g}, or use "
            "those as they are"
        )
    whiten = of.config.data.whiten
    softer = " --data.whiten 0.5" if whiten > 0.5 else ""
    return (
        f"1-NN is {of.scores[1]:.1f} % after training and was {of.scores[0]:.1f} % at the "
        f"initialisation: --model.layer-scale 1e-4{softer}, and a longer run; compare seeds with "
        "ablate"
    )


def best_was_earlier(of: Records) -> str | None:
    """A score that has fallen since its best by more than chance, which is taken as 3 points."""
    scored = [(step, value) for step, value in of.column("knn") if step > 0]
    if len(scored) < 3:
        return None
    best = max(scored, key=lambda pair: pair[1])
    if best[1] - scored[-1][1] < 3:
        return None
    return (
        f"1-NN was {best[1]:.1f} % at step {best[0]} and is {scored[-1][1]:.1f} % now: keep that "
        f"checkpoint (evaluate --checkpoints all chooses on validation), or --optim.length "
        f"{best[0]} --optim.unit steps"
    )


def collapsed(of: Records) -> str | None:
    """Features that hardly differ, now or more and more."""
    ranks = of.column("effective_rank")
    if not ranks:
        return None
    flags = of.column("collapsed")
    now = bool(flags and flags[-1][1])
    found = describe_collapse(ranks, now)
    if found is None:
        return None
    cure = "--optim.lr 5e-4"
    if TRAITS[of.config.objective.kind].target_encoder:
        cure += " --objective.ema-start 0.999"
    return f"{found}: {cure}{'' if now else ', or stop there'}"


def rough(of: Records) -> str | None:
    """Steps that were skipped, and spikes of loss or gradient."""
    for name, what in (("skipped", "steps were skipped"), ("spikes", "steps were spikes")):
        counted = of.column(name)
        if counted and counted[-1][1] > max(2.0, ROUGH * of.steps):
            clip = "" if of.config.optim.clip_grad else " --optim.clip-grad 3"
            rate = f"--optim.lr {of.config.optim.lr / 2:g}"
            return f"{counted[-1][1]:.0f} of {of.steps} {what}: {rate}{clip}"
    return None


def no_metres(of: Records) -> str | None:
    """Coordinates in other units than metres, where the store is at hand."""
    root = of.config.data.root
    if root is None or not root.is_dir():
        return None
    store = open_store(root, verify=False)
    for index in np.linspace(0, len(store.names) - 1, LOOKED_AT).astype(int):
        found = wrong_units(store.clip(int(index)))
        if found is not None:
            return f"clip {store.names[index]} {found[0]}: {found[1]}, and prepare it again"
    return None


CHECKS: tuple[Callable[[Records], str | None], ...] = (
    below_initialisation,
    collapsed,
    best_was_earlier,
    slow_average,
    too_few_tokens,
    rough,
    no_metres,
)


def findings(of: Records) -> list[str]:
    """Return what is wrong, the most telling first, each with a flag to try."""
    return [found for check in CHECKS if (found := check(of)) is not None]


def doctor(request: DoctorConfig) -> int:
    """Print what is wrong with a run, or what was looked for in vain; return 0.

    Raises InputError if the folder holds no run, or its records are damaged.
    """
    records = read_records(request.run)
    if not records.rows:
        raise InputError("run", f"{request.run} has logged no step", "train it first")
    found = findings(records)
    for text in found:
        say(f"- {text}")
    if not found:
        looked = ", ".join(check.__name__.replace("_", " ") for check in CHECKS)
        say(f"nothing found in {records.steps} steps; looked for: {looked}")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted)."""
    cli.run_main(lambda: doctor(cli.parse(DoctorConfig, argv, prog="sjepa_fast.doctor")))


if __name__ == "__main__":
    main()
