# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.plot KIND RUN [--out FILE]`: a picture of a run or of its clips."""

from __future__ import annotations

from sjepa_fast import cli
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.extras import DRAWING, require
from sjepa_fast.names import say

PROG = "sjepa_fast.plot"


def _help() -> None:
    from sjepa_fast.pictures import KINDS

    command = cli.command(PROG)
    say(f"usage: {command} KIND RUN [--out FILE] [--flag value ...]\n\nKinds:")
    for name, kind in KINDS.items():
        say(f"  {name:<12}{(kind.request.__doc__ or '').splitlines()[0]}")
    say(f"\nThe flags of one: {command} KIND --help")


def run(arguments: list[str]) -> int:
    """Draw the kind named first, with the other arguments as its run folder and flags."""
    # matplotlib is in the extra viz, and its first import takes a second.
    require("plot", "a picture", *DRAWING)
    from sjepa_fast.pictures import KINDS
    from sjepa_fast.pictures.drawing import plot

    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0
    name = arguments[0]
    if name not in KINDS:
        raise InputError("kind", name, nearest(name, list(KINDS)))
    request = cli.parse(KINDS[name].request, arguments[1:], prog=f"{PROG} {name}")
    return plot(request, name)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1, 2 (usage) or 130 (interrupted, no file written)."""
    cli.run_main(lambda: run(cli.arguments(argv)))


if __name__ == "__main__":
    main()
