# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.evaluate PROTOCOL RUN`: score a run's encoder on a store."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sjepa_fast import cli
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.evaluation import beside, checkpoints
from sjepa_fast.evaluation.metrics import (
    accuracy,
    confusion_matrix,
    per_class_accuracy,
    standard_error,
)
from sjepa_fast.evaluation.outcome import Result
from sjepa_fast.evaluation.protocols import PROTOCOLS
from sjepa_fast.evaluation.request import RecipeRequest
from sjepa_fast.names import say
from sjepa_fast.results import read_scores, table_of
from sjepa_fast.runtime.dist import disconnect, environment_world
from sjepa_fast.runtime.files import new_file, write_json, write_text
from sjepa_fast.runtime.progress import Display
from sjepa_fast.viz.saving import save_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "sjepa_fast.evaluate"


def write_result(result: Result, protocol: str) -> None:
    """Write scores, subsets, picture and, last, figures and predictions; print a line and tables.

    The results that were made to stand beside it are written before it, without pictures, and have
    their line in its table.
    """
    for other in result.made:
        _write(other, protocol)
    content = _write(result, protocol, picture=True)
    outcome, path = result.outcome, result.run / "results" / f"{result.name}.json"
    shown = ", ".join(f"{k} {v:.1f}" for k, v in outcome.figures.items() if isinstance(v, float))
    counted = f"{len(result.labels_Q)} test clips"
    if outcome.features is not None:
        counted += f", {outcome.features} features"
    say(f"{result.name}: {shown} ({counted}) -> {path}")
    if "checkpoints" in outcome.figures:
        say(checkpoints.table(outcome.figures["checkpoints"]))
    if content["beside"]:
        say(beside.table(content))
    named = {result.name, *(row["result"] for row in content["beside"].values())}
    every = read_scores(result.run)
    if any(score.name not in named for score in every):
        say(f"all results of {result.run}:\n{table_of(every)}")


def _write(result: Result, protocol: str, *, picture: bool = False) -> dict[str, Any]:
    outcome, labels_Q, class_names = result.outcome, result.labels_Q.cpu(), result.class_names
    folder, name = result.run / "results", result.name
    guess = outcome.predicted_SQ.cpu()
    # Seeds are summed, so every class keeps its weight.
    every_label = labels_Q.expand(len(guess), -1).flatten()
    matrix = confusion_matrix(guess.flatten(), every_label, len(class_names))
    folder.mkdir(exist_ok=True)
    headline = accuracy(guess, labels_Q)
    error = standard_error(headline, len(labels_Q))
    if picture:

        def confusion() -> Figure:
            from sjepa_fast.viz.confusion import confusion_figure

            return confusion_figure(matrix, class_names, f"{name}: {headline:.1f} % right")

        save_pictures(folder, {f"{name}.png": confusion})
    if outcome.scores_SQC is not None:
        scores = outcome.scores_SQC.cpu().numpy().astype(np.float32)
        with new_file(folder / f"{name}.scores.npz") as path, path.open("wb") as file:
            names_Q = np.array(result.clip_names)
            np.savez(file, scores=scores, labels=labels_Q.numpy(), names=names_Q)
    for seed, names in outcome.ids.items():
        write_text(folder / f"{name}-s{seed}.ids.txt", "\n".join(names) + "\n")
    compared = {of: beside.compare(guess, other, labels_Q) for of, other in result.beside.items()}
    content = {
        "protocol": protocol,
        **result.conditions,
        "features": outcome.features,
        "request_sha256": result.request,
        **outcome.figures,
        "headline": headline,
        "standard_error": error,
        "beside": compared,
        "recipe": outcome.recipe,
        "per_class": dict(zip(class_names, per_class_accuracy(matrix), strict=True)),
        "confusion": matrix.tolist(),
        "predicted": guess.tolist(),
    }
    write_json(folder / f"{name}.json", content)
    return content


def parse_request(protocol: str, arguments: list[str]) -> Any:
    """Parse the run folder and flags of one of `PROTOCOLS` into its request.

    The defaults of its recipe flags are the recipe's values; the recipe has the name of the one
    that was chosen.
    """
    kind, prog = PROTOCOLS[protocol].request, f"{PROG} {protocol}"
    arguments = _spell_recipe(arguments)
    request = cli.parse(kind, arguments, prog=prog)
    if not isinstance(request, RecipeRequest):
        return request
    base = request.default_recipe(request.configuration())
    default = kind(run=request.run, recipe=base)
    request = cli.parse(kind, arguments, default=default, prog=prog)
    return dataclasses.replace(request, recipe=dataclasses.replace(request.recipe, name=base.name))


def _spell_recipe(arguments: list[str]) -> list[str]:
    """Give `--recipe strong` its long form, `--recipe.name strong`."""
    long = "--recipe.name"
    spelled = (long if arg == "--recipe" else arg for arg in arguments)
    return [arg.replace("--recipe=", f"{long}=", 1) for arg in spelled]


def evaluate(request: Any, protocol: str) -> int:
    """Score by one of `PROTOCOLS`, write the result with its conditions and a picture, return 0.

    The request is the protocol's own dataclass. Several processes of a launcher share the work out,
    and one of them writes and prints. Raises InputError if the run, the store or the split does not
    fit.
    """
    world = environment_world()
    with contextlib.ExitStack() as stack:
        if not world.leads:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        result = PROTOCOLS[protocol].run(request, stack.enter_context(Display()))
    disconnect(world)
    if not world.leads:
        return 0
    seen = result.conditions.get("test_clips_seen_in_training")
    if seen:
        say(f"note: {seen} of the test clips were in the pre-training set of this run")
    lacking = result.conditions.get("clips_without_label")
    if lacking:
        say(f"note: {lacking} clips of the split have no label and are left out")
    write_result(result, protocol)
    return 0


def _help() -> None:
    command = cli.command(PROG)
    say(f"usage: {command} PROTOCOL RUN [--flag value ...]\n\nProtocols:")
    for name, protocol in PROTOCOLS.items():
        say(f"  {name:<12}{(protocol.request.__doc__ or '').splitlines()[0]}")
    say(f"\nThe flags of one: {command} PROTOCOL --help")


def run(arguments: list[str]) -> int:
    """Run the protocol named first, with the other arguments as its run folder and flags."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0
    protocol = arguments[0]
    if protocol not in PROTOCOLS:
        raise InputError("protocol", protocol, nearest(protocol, list(PROTOCOLS)))
    return evaluate(parse_request(protocol, arguments[1:]), protocol)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, no result written)."""
    again = "interrupted; no result is written, and the same command begins anew"
    cli.run_main(lambda: run(cli.arguments(argv)), again)


if __name__ == "__main__":
    main()
