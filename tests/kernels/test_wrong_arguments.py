"""Every kind of wrong argument to every public function: an error that names the argument.

Each case takes a valid call and spoils one argument. An error from deep inside torch is a failure,
and so is a result.
"""

from __future__ import annotations

from typing import Any

import pytest

import sjepa_kernels
from tests.kernels import calls_data, calls_training

CALLS = calls_training.CALLS | calls_data.CALLS
# Called through another name of this list, tested elsewhere, or nothing to get wrong.
NOT_CALLED = {"EmaPlan", "TokenMask", "use"}
# An argument beside the functions' names for it in an error.
ALSO_NAMED = {"crop_resize": ["frames", "bodies"]}


def test_every_public_function_is_called() -> None:
    modules = {n for n in sjepa_kernels.__all__ if hasattr(getattr(sjepa_kernels, n), "forward")}
    assert set(CALLS) == set(sjepa_kernels.__all__) - NOT_CALLED - modules


@pytest.mark.parametrize("name", CALLS)
def test_the_unspoiled_call_is_valid(name: str) -> None:
    make, call, _ = CALLS[name]
    call(make())


@pytest.mark.parametrize(
    ("name", "argument", "way"),
    [
        (name, argument, way)
        for name, (_, _, spoils) in CALLS.items()
        for argument, ways in spoils.items()
        for way in ways
    ],
    ids=str,
)
def test_a_spoiled_argument_is_named(name: str, argument: str, way: Any) -> None:
    make, call, spoils = CALLS[name]
    arguments = make()
    ways = spoils[argument]
    arguments[argument] = ways[way](arguments[argument]) if isinstance(ways, dict) else way
    names = "|".join([*arguments, *ALSO_NAMED.get(name, []), "q, k, v"])
    with pytest.raises((ValueError, TypeError), match=rf"^({names})(\[\d+\])?: "):
        call(arguments)
