"""The limits that docs/limits.md states are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from sjepa_fast.config import files, plain_yaml
from sjepa_fast.config.validation import LARGEST
from sjepa_fast.evaluation.protocols import ensemble
from sjepa_fast.opening import JSON_BYTES, LIST_BYTES
from sjepa_fast.runtime import foreign

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "limits.md"
OTHERS = {
    "a configuration in YAML": files.YAML_BYTES,
    "its nesting": plain_yaml.DEEPEST,
    "a result or record": JSON_BYTES,
    "the same, where an ensemble": ensemble.RESULT_BYTES,
    "a list": LIST_BYTES,
    "saved scores": ensemble.SCORES_BYTES,
    "what names the tensors": foreign.PICKLE_BYTES,
}


def test_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (.+) \| (\d+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    keys: dict[str, int] = {}
    for what, most in rows:
        named = re.findall(r"`([a-z]+\.[a-z_]+)`", what) if what.startswith("`") else []
        keys |= dict.fromkeys(named, int(most))
        if not named:
            [known] = [value for start, value in OTHERS.items() if what.startswith(start)]
            assert known == int(most), what
    assert keys == LARGEST
    assert len(rows) >= len(OTHERS) + 8
