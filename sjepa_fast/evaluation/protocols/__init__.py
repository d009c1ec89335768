"""The protocols of `sjepa_fast.evaluate`, one file each, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from sjepa_fast.evaluation.subject import Subject, describe, open_subject


@dataclass(frozen=True)
class Protocol:
    """A protocol: its request, a dataclass that the command line fills, and its function."""

    request: type[Any]
    run: Callable[[Any], Result]


def of_one_run(request_type: type[Any], run: Callable[[Subject, Any], Outcome]) -> Protocol:
    """Make a protocol of a function that scores one run's encoder, for a request type.

    Its results state run, data and device.
    """

    def opened(request: Any) -> Result:
        subject = open_subject(request)
        outcome = run(subject, request)
        return Result(
            outcome=outcome,
            run=subject.run,
            data=f"{subject.store.name}-{subject.config.data.split}",
            conditions={"pool": outcome.recipe.get("pool"), **describe(subject, request.encoder)},
            labels_Q=subject.labels(subject.test_ids),
            clip_names=[str(subject.store.names[i]) for i in subject.test_ids.cpu().numpy()],
            class_names=subject.store.class_names,
        )

    return Protocol(request_type, opened)


PROTOCOLS: dict[str, Protocol] = {
    "knn": of_one_run(KnnRequest, run_knn),
    "retrieval": of_one_run(RetrievalRequest, run_retrieval),
    "linear": of_one_run(LinearRequest, run_linear),
    "finetune": of_one_run(FinetuneRequest, run_finetune),
    "semi": of_one_run(SemiRequest, run_semi),
    "transfer": of_one_run(TransferRequest, run_transfer),
    "ensemble": Protocol(EnsembleRequest, run_ensemble),
}
