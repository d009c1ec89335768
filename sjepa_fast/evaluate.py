"""`python -m sjepa_fast.evaluate PROTOCOL RUN`: score a run's encoder on a store."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from sjepa_fast import cli
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.evaluation.metrics import accuracy, confusion_matrix, per_class_accuracy
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.protocols.ensemble import EnsembleRequest, run_ensemble
from sjepa_fast.evaluation.protocols.finetune import (
    FinetuneRequest,
    SemiRequest,
    TransferRequest,
    run_finetune,
    run_semi,
    run_transfer,
)
from sjepa_fast.evaluation.protocols.knn import KnnRequest, run_knn
from sjepa_fast.evaluation.protocols.linear import LinearRequest, run_linear
from sjepa_fast.evaluation.protocols.retrieval import RetrievalRequest, run_retrieval
from sjepa_fast.evaluation.recipes import finetune_recipe, linear_recipe
from sjepa_fast.evaluation.request import Request
from sjepa_fast.evaluation.subject import Subject, describe, open_subject, read_run
from sjepa_fast.runtime.dist import environment_world
from sjepa_fast.runtime.files import new_file, write_json, write_text
from sjepa_fast.viz.confusion import plot_confusion

REQUESTS: dict[str, type[Request] | type[EnsembleRequest]] = {
    "knn": KnnRequest,
    "retrieval": RetrievalRequest,
    "linear": LinearRequest,
    "finetune": FinetuneRequest,
    "semi": SemiRequest,
    "transfer": TransferRequest,
    "ensemble": EnsembleRequest,
}
PROG = "sjepa_fast.evaluate"

AnyRequest = TypeVar("AnyRequest", bound=Request)


def score(subject: Subject, request: Request) -> Outcome:
    """Run the protocol that the request belongs to."""
    match request:
        case KnnRequest():
            return run_knn(subject, request)
        case RetrievalRequest():
            return run_retrieval(subject, request)
        case LinearRequest():
            return run_linear(subject, request)
        case SemiRequest():
            return run_semi(subject, request)
        case TransferRequest():
            return run_transfer(subject, request)
        case FinetuneRequest():
            return run_finetune(subject, request)
    raise TypeError(type(request))


def write_outcome(
    folder: Path,
    name: str,
    outcome: Outcome,
    stated: dict[str, Any],
    labels_Q: torch.Tensor,
    clip_names: list[str],
    class_names: tuple[str, ...],
) -> None:
    """Write the result, its scores, its subsets and its picture; the JSON comes last.

    Args:
        folder: Where to.
        name: Stem of the files.
        outcome: Figures, predictions and scores.
        stated: The conditions.
        labels_Q: Labels of the test clips.
        clip_names: Their names.
        class_names: Names of the labels.
    """
    classes = len(class_names)
    guess = outcome.predicted_SQ
    # Seeds are summed, so every class keeps its weight.
    matrix = confusion_matrix(guess.flatten(), labels_Q.expand(len(guess), -1).flatten(), classes)
    folder.mkdir(exist_ok=True)
    headline = accuracy(guess, labels_Q)
    plot_confusion(matrix, class_names, folder / f"{name}.png", title=f"{name}: {headline:.1f} %")
    if outcome.scores_SQC is not None:
        scores = outcome.scores_SQC.cpu().numpy().astype(np.float32)
        with new_file(folder / f"{name}.scores.npz") as path, path.open("wb") as file:
            labels = labels_Q.cpu().numpy()
            np.savez(file, scores=scores, labels=labels, names=np.array(clip_names))
    for seed, names in outcome.ids.items():
        write_text(folder / f"{name}-s{seed}.ids.txt", "\n".join(names) + "\n")
    result = {
        **stated,
        **outcome.figures,
        "recipe": outcome.recipe,
        "per_class": dict(zip(class_names, per_class_accuracy(matrix), strict=True)),
        "confusion": matrix.tolist(),
    }
    write_json(folder / f"{name}.json", result)
    shown = ", ".join(f"{k} {v:.1f}" for k, v in outcome.figures.items() if isinstance(v, float))
    print(f"{name}: {shown} ({len(labels_Q)} test clips) -> {folder / name}.json")


def evaluate(request: Request, protocol: str) -> int:
    """Score, print one line, and write the result with its conditions and a confusion picture.

    Args:
        request: What to score, on what.
        protocol: Its name.

    Returns:
        0.

    Raises:
        InputError: If the run, the store or the split does not fit.
    """
    world = environment_world()
    if world.size > 1:
        raise InputError("WORLD_SIZE", world.size, "evaluate in one process, without a launcher")
    subject = open_subject(request)
    outcome = score(subject, request)
    stated = {"protocol": protocol, "pool": outcome.recipe.get("pool")}
    stated |= describe(subject, request.encoder)
    if stated["test_clips_seen_in_training"]:
        seen = stated["test_clips_seen_in_training"]
        print(f"note: {seen} of the test clips were in the pre-training set of this run")
    test = subject.test_ids.cpu().numpy()
    write_outcome(
        subject.run / "results",
        f"{outcome.name}-{subject.store.name}-{subject.config.data.split}",
        outcome,
        stated,
        subject.labels(subject.test_ids),
        [str(subject.store.names[i]) for i in test],
        subject.store.class_names,
    )
    return 0


def ensemble(request: EnsembleRequest) -> int:
    """Average saved results and write the new one into the first run's folder."""
    outcome, members = run_ensemble(request)
    first = members[0].result
    keys = ("store", "store_fingerprint", "split", "test_clips", "device", "torch")
    stated = {"protocol": "ensemble", **{key: first[key] for key in keys}}
    write_outcome(
        request.runs[0] / "results",
        f"{outcome.name}-{first['store']}-{first['split']}",
        outcome,
        stated,
        members[0].labels_Q,
        members[0].clip_names,
        tuple(first["per_class"]),
    )
    return 0


def parse_request(kind: type[AnyRequest], arguments: list[str]) -> AnyRequest:
    """Parse the flags of a protocol; those of its recipe have the recipe's values as defaults.

    Args:
        kind: Type of the request.
        arguments: Run folder and flags.

    Returns:
        The request; its recipe has the name of the one that was chosen.
    """
    request = cli.parse(kind, arguments, prog=PROG)
    if not isinstance(request, LinearRequest | FinetuneRequest):
        return request
    config, wanted = read_run(request.run), request.recipe.name
    if isinstance(request, LinearRequest):
        base: Any = linear_recipe(wanted, config)
    else:
        base = finetune_recipe(wanted, config, scratch=request.encoder == "random")
    default = kind(run=request.run, recipe=base)  # type: ignore[call-arg]
    request = cli.parse(kind, arguments, default=default, prog=PROG)
    recipe = dataclasses.replace(request.recipe, name=base.name)  # type: ignore[attr-defined]
    return dataclasses.replace(request, recipe=recipe)  # type: ignore[call-arg]


def _help() -> None:
    print(f"python -m {PROG} PROTOCOL RUN [--flag value ...]\n\nProtocols:")
    for name, kind in REQUESTS.items():
        print(f"  {name:<10}{(kind.__doc__ or '').splitlines()[0]}")
    for name, kind in REQUESTS.items():
        print()
        with contextlib.suppress(SystemExit):
            cli.parse(kind, ["--help"], prog=f"{PROG} {name}")


def run(arguments: list[str]) -> int:
    """Run the protocol named first on what the other arguments say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0
    protocol, rest = arguments[0], arguments[1:]
    kind = REQUESTS.get(protocol)
    if kind is None:
        raise InputError("protocol", protocol, nearest(protocol, list(REQUESTS)))
    if issubclass(kind, EnsembleRequest):
        return ensemble(cli.parse(kind, rest, prog=f"{PROG} {protocol}"))
    return evaluate(parse_request(kind, rest), protocol)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, no result written)."""
    arguments = sys.argv[1:] if argv is None else argv
    cli.run_main(lambda: run(arguments))


if __name__ == "__main__":
    main()
