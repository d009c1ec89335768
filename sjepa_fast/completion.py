# SPDX-License-Identifier: Apache-2.0
"""`sjepa completion bash | zsh`: a script that completes the commands of `sjepa` and their flags.

`eval "$(sjepa completion bash)"` in ~/.bashrc, or with zsh in ~/.zshrc. It registers for `sjepa`
and for nothing else.
"""

from __future__ import annotations

from sjepa_fast import cli
from sjepa_fast.__main__ import COMMANDS
from sjepa_fast.config.presets import FITTED, PRESETS
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.convert import ConvertConfig
from sjepa_fast.data.readers import READERS
from sjepa_fast.embed import EmbedConfig
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.evaluation.protocols import PROTOCOLS
from sjepa_fast.export import FORMATS, ExportConfig
from sjepa_fast.extras import DRAWING, how_to_install
from sjepa_fast.merge import MERGE, MergeConfig
from sjepa_fast.names import say
from sjepa_fast.prepare import PrepareConfig
from sjepa_fast.report import ReportConfig

SHELLS = ["bash", "zsh"]


def words() -> dict[str, list[str]]:
    """Return what may follow each command, `evaluate` and a protocol, or `plot` and a kind."""
    training = [*FITTED, *PRESETS, "--config", *cli.flags(TrainConfig)]
    found = {
        "prepare": [*READERS, MERGE, *cli.flags(PrepareConfig)],
        f"prepare {MERGE}": cli.flags(MergeConfig),
        "train": training,
        "ablate": ["--axis", "--values", "--seeds", *training],
        "evaluate": list(PROTOCOLS),
        "convert": cli.flags(ConvertConfig),
        "results": [],
        "report": cli.flags(ReportConfig),
        "doctor": [],
        "plot": [],
        "embed": ["tiny", *cli.flags(EmbedConfig)],
        "export": ["tiny", *cli.flags(ExportConfig), *FORMATS],
        "bench": training,
        "completion": SHELLS,
    }
    for name, protocol in PROTOCOLS.items():
        found[f"evaluate {name}"] = cli.flags(protocol.request)
    if not how_to_install(*DRAWING):
        from sjepa_fast.pictures import KINDS

        found["plot"] = list(KINDS)
        for name, kind in KINDS.items():
            found[f"plot {name}"] = cli.flags(kind.request)
    return found


def script(shell: str) -> str:
    """Return the script for a shell; of what is no word of ours, files are completed."""
    cases = [f"    '{of}') words='{' '.join(options)}' ;;" for of, options in words().items()]
    lines = [
        "_sjepa() {",
        "  local words key=${COMP_WORDS[1]}",
        '  [[ $key =~ ^(evaluate|plot)$ && $COMP_CWORD -gt 2 ]] && key+=" ${COMP_WORDS[2]}"',
        f'  [[ "$key ${{COMP_WORDS[2]}}" == "prepare {MERGE}" ]] && key="prepare {MERGE}"',
        f"  if [[ $COMP_CWORD == 1 ]]; then words='{' '.join(COMMANDS)}'; else case $key in",
        *cases,
        "  esac; fi",
        '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
        "}",
        "complete -o default -F _sjepa sjepa",
    ]
    if shell == "zsh":
        lines.insert(0, "autoload -U +X bashcompinit && bashcompinit")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0 or 2 (usage)."""

    def body() -> int:
        shell = " ".join(cli.arguments(argv))
        if shell not in SHELLS:
            raise InputError("shell", shell or "not given", nearest(shell, SHELLS))
        say(script(shell))
        return 0

    cli.run_main(body)


if __name__ == "__main__":
    main()
