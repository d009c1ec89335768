"""`sjepa`: all commands under one name, help without the libraries, and completion in a shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module

import pytest

from sjepa_fast import cli, completion
from sjepa_fast.__main__ import COMMANDS, main
from sjepa_fast._version import __version__
from sjepa_fast.config.schema import TrainConfig


def ended(argv: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_the_module_of_its_name(name: str) -> None:
    assert callable(import_module(f"sjepa_fast.{name}").main)


def test_help_and_version_load_no_library() -> None:
    code = """
import sys
from sjepa_fast.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"torch", "numpy", "tyro", "rich"} & set(sys.modules)))
"""
    for flag, word in (("--help", "evaluate"), ("--version", __version__)):
        done = subprocess.run(
            [sys.executable, "-c", code, flag], capture_output=True, text=True, check=True
        )
        assert word in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


def test_arguments_are_handed_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["export", "s", "--format", "ctrgcm", "--out", "o.npz"]) == 2
    assert capsys.readouterr().err == "format: ctrgcm; nearest: ctrgcn\n"


def test_unknown_and_missing_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["trane"]) == 2
    assert capsys.readouterr().err == "command: trane; nearest: train\n"
    assert ended([]) == 2
    assert "usage: sjepa COMMAND" in capsys.readouterr().out


def test_help_names_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.command("sjepa_fast.prepare") == "python -m sjepa_fast.prepare"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sjepa", "prepare"])
    assert cli.command("sjepa_fast.prepare") == "sjepa prepare"


def test_flags_are_those_that_are_typed() -> None:
    flags = cli.flags(TrainConfig)
    assert {"--run", "--compile", "--verify", "--optim.batch-size"} <= set(flags)
    assert "--runtime.compile" not in flags


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tr"], "train"),
        (["train", "sjepa-nu"], "sjepa-nucla"),
        (["train", "--optim.bat"], "--optim.batch-size"),
        (["evaluate", "fine"], "finetune"),
        (["evaluate", "linear", "--data.ro"], "--data.root"),
        (["plot", "conf"], "confusion"),
        (["plot", "attention", "--he"], "--head"),
        (["prepare", "--dr"], "--dry-run"),
        (["completion", "z"], "zsh"),
    ],
    ids=" ".join,
)
def test_bash_completes(typed: list[str], offered: str) -> None:
    words = " ".join(["sjepa", *typed])
    code = f"{completion.script('bash')}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}; _sjepa\n"
    code += 'echo "${COMPREPLY[@]}"; complete -p'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    reply, *registered = done.stdout.splitlines()
    assert reply == offered
    assert registered == ["complete -o default -F _sjepa sjepa"]


def test_zsh_borrows_bashs(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == completion.script("zsh") + "\n"
    assert completion.script("zsh").startswith("autoload -U +X bashcompinit")
    assert ended(["completion", "fish"]) == 2
    assert capsys.readouterr().err == "shell: fish; nearest: zsh, bash\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export"], "source, format, out: not given; give source first, and --format and --out"),
        (["export", "tiny"], "format, out: not given; give --format and --out; see --help"),
        (["embed", "tiny", "clips"], "out: not given; give --out; see --help"),
        (["prepare", "generic"], "raw"),
        (["evaluate", "knn"], "run: not given; give run first; see --help"),
    ],
)
def test_what_is_missing_is_named(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(said) and printed.count("\n") == 1, printed
