# SPDX-License-Identifier: Apache-2.0
"""`sjepa COMMAND ...`, or `python -m sjepa_fast COMMAND ...`: all commands under one name.

A command is the module of its name, which `python -m sjepa_fast.COMMAND` runs too. It is imported
when it is called, so that help and version come at once.
"""

from __future__ import annotations

import sys
from importlib import import_module

from sjepa_fast._version import __version__
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.names import say

COMMANDS = {
    "prepare": "make a store from raw files",
    "train": "pre-train an encoder",
    "evaluate": "score a run's encoder by a protocol",
    "embed": "write the features of clips",
    "results": "show all scores of one run or several in one table",
    "plot": "draw clips, masks, predictions, attention, curves, maps, confusion, neighbours",
    "report": "write one page of one run or several, to look at in a browser",
    "doctor": "say what is wrong with a run, and the flag to try",
    "ablate": "train a run with each of several values of a flag, and compare",
    "convert": "read weights of other projects' codes",
    "export": "write a model for other runtimes, or a store for other code",
    "bench": "measure a training step on this machine",
    "completion": "print what makes bash or zsh complete these commands",
}


def usage() -> str:
    """Return the commands and what each does."""
    rows = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    head = "usage: sjepa COMMAND ... (sjepa COMMAND --help for its flags; sjepa --version)"
    return "\n".join([head, "", *rows])


def main(argv: list[str] | None = None) -> None:
    """Console entry: hand over to the command; 2 where there is none of this name."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        say(usage())
        sys.exit(0 if args else 2)
    if args[0] == "--version":
        say(__version__)
        sys.exit(0)
    if args[0] not in COMMANDS:
        known = nearest(args[0], list(COMMANDS))
        say(InputError("command", args[0], known), to_stderr=True)
        sys.exit(2)
    import_module(f"sjepa_fast.{args[0]}").main(args[1:])


if __name__ == "__main__":
    main()
