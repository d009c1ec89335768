# SPDX-License-Identifier: Apache-2.0
"""The protocols of `sjepa_fast.evaluate`, one file each, and the table that names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sjepa_fast.evaluation.beside import (
    FLOORS,
    PROBED,
    TRAINED,
    found_beside,
    request_fingerprint,
    with_baselines,
)
from sjepa_fast.evaluation.checkpoints import best_checkpoint
from sjepa_fast.evaluation.outcome import Outcome, Result
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
from sjepa_fast.evaluation.protocols.supervised import SupervisedRequest, run_supervised
from sjepa_fast.evaluation.request import ProbeRequest
from sjepa_fast.evaluation.subject import Subject, describe, open_subject
from sjepa_fast.runtime.progress import Display


@dataclass(frozen=True)
class Protocol:
    """A protocol: its request, a dataclass that the command line fills, and its function."""

    request: type[Any]
    run: Callable[[Any, Display], Result]


def of_one_run(
    request_type: type[Any],
    run: Callable[[Subject, Any], Outcome],
    beside: dict[str, str] | None = None,
) -> Protocol:
    """Make a protocol of a function that scores one run's encoder, for a request type.

    Its results state run, data and device, and stand beside the run's results named in `beside`
    (`beside.py`), and those of a probe beside encoders without training too.
    """

    def state(subject: Subject, request: Any, outcome: Outcome) -> Result:
        return Result(
            outcome=outcome,
            run=subject.run,
            data=f"{subject.store.name}-{subject.config.data.split}",
            conditions={"pool": outcome.recipe.get("pool"), **describe(subject, request.encoder)},
            labels_Q=subject.labels(subject.test_ids),
            clip_names=[str(subject.store.names[i]) for i in subject.test_ids.cpu().numpy()],
            class_names=subject.store.class_names,
        )

    def score(subject: Subject, request: Any) -> Result:
        return state(subject, request, run(subject, request))

    def probed(subject: Subject, request: ProbeRequest) -> Result:
        request = request.settled(subject.config)
        others, made = with_baselines(subject, request, score)
        if request.checkpoints == "all":
            chosen, outcome = best_checkpoint(subject, request, run)
            result = state(chosen, request, outcome)
        else:
            result = score(subject, request)
        if subject.checkpoint is None:
            asked = request_fingerprint(subject, request)
            result = dataclasses.replace(result, request=asked)
        return dataclasses.replace(result, beside=others, made=made)

    def opened(request: Any, display: Display) -> Result:
        display.note(f"run folder: {request.run}")
        display.phase("loading")
        subject = open_subject(request, display=display)
        opened_by = probed if isinstance(request, ProbeRequest) else score
        result = opened_by(subject, request)
        if not subject.world.leads:
            return result
        others = result.beside | found_beside(result, beside or {})
        return dataclasses.replace(result, beside=others)

    return Protocol(request_type, opened)


def of_new_run(protocol: Protocol) -> Protocol:
    """Make a protocol of one that needs a run folder, whose request makes that folder."""

    def begun(request: Any, display: Display) -> Result:
        request.begin()
        return protocol.run(request, display)

    return Protocol(protocol.request, begun)


PROTOCOLS: dict[str, Protocol] = {
    "knn": of_one_run(KnnRequest, run_knn, PROBED),
    "retrieval": of_one_run(RetrievalRequest, run_retrieval, PROBED),
    "linear": of_one_run(LinearRequest, run_linear, PROBED),
    "finetune": of_one_run(FinetuneRequest, run_finetune, TRAINED | FLOORS),
    "supervised": of_new_run(of_one_run(SupervisedRequest, run_supervised, FLOORS)),
    "semi": of_one_run(SemiRequest, run_semi, TRAINED),
    "transfer": of_one_run(TransferRequest, run_transfer, TRAINED | FLOORS),
    "ensemble": Protocol(EnsembleRequest, lambda request, _: run_ensemble(request)),
}
