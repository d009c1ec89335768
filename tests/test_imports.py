"""What the commands import: not the compiler, whose modules take seconds and 70 MiB."""

from tests.tiny import run_python

COMMANDS = ("train", "evaluate", "prepare", "ablate", "convert", "export", "embed", "plot")


def test_no_command_loads_the_compiler() -> None:
    lines = [f"import sjepa_fast.{name}" for name in COMMANDS]
    loaded = "sorted({'torch._dynamo', 'torch._inductor'} & set(sys.modules))"
    done = run_python("-c", "\n".join(["import sys", *lines, f"print({loaded})"]))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
