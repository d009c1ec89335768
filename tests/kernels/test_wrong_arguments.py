"""Every kind of wrong argument to every public function: an error that names the argument.

Each case takes a valid call and spoils one argument. An error from deep inside torch is a failure,
and so is a result.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.kernels.op_case import Arguments, OpCase, all_cases

CASES = all_cases()


@pytest.mark.parametrize("name", CASES)
def test_the_unspoiled_call_is_valid(name: str) -> None:
    CASES[name].call(CASES[name].arguments())


@pytest.mark.parametrize(
    ("name", "argument", "way"),
    [
        (name, argument, way)
        for name, case in CASES.items()
        for argument, ways in case.spoils.items()
        for way in ways
    ],
    ids=str,
)
def test_a_spoiled_argument_is_named(name: str, argument: str, way: Any) -> None:
    case = CASES[name]
    arguments, ways = case.arguments(), case.spoils[argument]
    arguments[argument] = ways[way](arguments[argument]) if isinstance(ways, dict) else way
    names = "|".join([*arguments, *case.also_named])
    with pytest.raises((ValueError, TypeError), match=rf"^({names})(\[\d+\])?: "):
        case.call(arguments)


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        pytest.param(case, *said, id=f"{name}-{k}")
        for name, case in CASES.items()
        for k, said in enumerate(case.says)
    ],
)
def test_an_error_says_what_to_do(case: OpCase, change: Arguments, words: str) -> None:
    """A wrong dtype, which the error names, is a TypeError, and all else a ValueError."""
    error = TypeError if re.search(r"torch\.\w+\d", words) else ValueError
    with pytest.raises(error, match=words):
        case.call(case.arguments() | change)
