"""The C++ reader of `.skeleton` text against the Python one, bit for bit, sound and odd."""

import numpy as np
import pytest

from sjepa_fast.data.readers import ntu_text
from sjepa_fast.data.readers.ntu_text import Tracks, parse_all, parse_bytes

NATIVE = getattr(ntu_text.LIBRARY, "sjepa_read_skeletons", None)
needs_native = pytest.mark.skipif(NATIVE is None, reason="the C++ reader is not built")
RNG = np.random.default_rng(3)


def number(value: float, style: int) -> str:
    return [f"{value:.7g}", f"{value:.6f}", repr(float(value)), f"{value:.9E}", f"{value:+.0f}."][
        style % 5
    ]


def body_lines(body: str, style: int, newline: str) -> str:
    # The format has no plus sign, which Python takes: style 4 is left to the Python reader.
    xyz = RNG.normal(size=(25, 3)) * 10.0 ** RNG.integers(-12, 4, size=(25, 3))
    rest = "277.419 191.8218 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2"
    joints = newline.join(" ".join(number(v, style) for v in row) + f" {rest}" for row in xyz)
    return f"{body} 0 1 1 1 1 0 -0.1057 0.2114 2{newline}25{newline}{joints}{newline}"


def text_of(frames: list[list[str]], style: int = 0, newline: str = "\n") -> bytes:
    parts = [f"{len(frames)}{newline}"]
    for bodies in frames:
        parts += [f"{len(bodies)}{newline}", *(body_lines(b, style, newline) for b in bodies)]
    return "".join(parts).encode()


def assert_same(found: Tracks | str, wanted: Tracks | str) -> None:
    if isinstance(wanted, str) or isinstance(found, str):
        assert found == wanted
        return
    assert found[1] == wanted[1] and len(found[0]) == len(wanted[0])
    for a, b in zip(found[0], wanted[0], strict=True):
        assert a.start == b.start and repr(a.motion) == repr(b.motion)
        assert a.joints_TV3.tobytes() == b.joints_TV3.tobytes(), "bit for bit"


SOUND = [
    text_of([["1"]] * 4, style, newline) for style in range(4) for newline in ("\n", "\r\n")
] + [
    text_of([["72057594037931691", "2", "3"], [], ["3"], ["2", "3"], ["1"]]),
    text_of([["1"], ["1"]]).rstrip(b"\n"),
    text_of([["1"]]) + b"what follows the declared frames is not read",
    text_of([["a"]]).replace(b"25\n", b" 25 \n").replace(b" 277", b"\t  277"),
    text_of([[], []]),
    text_of([["1"]]).replace(b"277.419", b"\xff\x85\x00 "),
    b"0\n",
    text_of([["1"]]).replace(b"277.419", b"nan"),
    b"1\n1\nx 0\n25\n" + b"-0.0 .5 5.\n" * 25,
    b"1\n1\nx 0\n25\n" + b"1e22 9007199254740993 123456789012345678901234567890e-25\n" * 25,
    b"1\n1\nx 0\n25\n" + b"5e-324 1.7976931348623157e308 2.2250738585072011e-308\n" * 25,
]


@needs_native
def test_sound_files_are_read_in_cpp_and_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = [parse_bytes(data) for data in SOUND]
    assert not [text for text in wanted if isinstance(text, str)]

    def no_python(data: bytes) -> Tracks | str:
        raise AssertionError(f"left to Python: {data[:80]!r}")

    monkeypatch.setattr(ntu_text, "parse_bytes", no_python)
    for threads in (1, 3):
        for found, want in zip(parse_all(SOUND, threads), wanted, strict=True):
            assert_same(found, want)


def odd_files() -> list[bytes]:
    whole = text_of([["1"], ["1", "2"]])
    cuts = [whole[:n] for n in (0, 1, 2, 5, 60, len(whole) // 2, len(whole) - 1200)]
    changes = [
        *((b"25\n", joints) for joints in (b"24\n", b"26\n", b"\n", b"2 5\n")),
        *((b"2\n", bodies) for bodies in (b"-1\n", b"9" * 20 + b"\n", b"1_0\n", b"+2\n")),
        (b" 277", b"\xff277"),
        (b" 277", b"\x00277"),
        (b"1 0 1", b"\x0b1 0 1"),
        (b"1 0 1", b"\n1 0 1"),
    ]
    swapped = [whole.replace(old, new, 1) for old, new in changes]
    rows = ["nan inf 1", "1 2", "one 2 3", "1,0 2 3", "1e 2 3", "1e999 0 0", ". 0 0", "- 0 0"]
    rows += ["0x1p3 0 0", "1_0 0 0", "+1 0 0", "1e+5 2E-3 3e5", "1..2 0 0", "--1 0 0", "", "   "]
    bodies = [
        f"1\n1\nx 0\n25\n{'1 2 3' + chr(10)}".encode() * 1 + f"{row}\n".encode() * 24
        for row in rows
    ]
    return [*cuts, *swapped, *bodies, text_of([["1"]], style=4), "1\n1\n\u0661\n".encode()]


@needs_native
def test_odd_files_end_as_the_python_reader_ends_them() -> None:
    files = odd_files()
    for data, found in zip(files, parse_all(files, 2), strict=True):
        assert_same(found, parse_bytes(data))


@needs_native
def test_altered_files_never_differ_or_crash() -> None:
    whole = text_of([["1"], ["1", "2"], ["2"]], style=3)
    alphabet = b"0123456789.-+eE \n\r\tnx\x00\xff"
    altered = []
    for _ in range(300):
        data = bytearray(whole)
        for at in RNG.integers(0, 400, size=RNG.integers(1, 4)):
            data[at] = alphabet[RNG.integers(len(alphabet))]
        altered.append(bytes(data))
    for data, found in zip(altered, parse_all(altered, 1), strict=True):
        assert_same(found, parse_bytes(data))


def test_without_the_library_the_python_reader_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntu_text, "LIBRARY", None)
    files = [SOUND[0], b"2\n"]
    for data, found in zip(files, parse_all(files, 1), strict=True):
        assert_same(found, parse_bytes(data))
    assert parse_all([], 1) == []
