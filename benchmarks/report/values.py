"""The report's first question: is what our kernels compute right? Times come after it."""

from __future__ import annotations

from functools import partial

from benchmarks.report.book import Book, Row
from sjepa_kernels.selfcheck.checks import check, planned


def values(book: Book) -> None:
    """Every op on this device against float64, by each of its implementations.

    At the small sizes of `python -m sjepa_kernels`; the rows of the operations check their values
    again, at the sizes that they time.
    """
    for op, impl, device in planned(book.device):
        book.attempt(partial(measured, op, impl, device), op=op, impl=impl)


def measured(op: str, impl: str, device: str) -> Row:
    """Deviation from float64 and its budget; above it, an error."""
    deviation, most = check(op, impl, device)
    figures: Row = {"deviation": deviation, "budget": most}
    if not deviation <= most:
        figures["error"] = f"wrong: {deviation:.1e} from float64, {most:.1e} allowed"
    return figures
