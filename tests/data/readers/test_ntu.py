"""Raw NTU text: the parser on files in the exact format, and each denoising rule by hand."""

import re
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast.data.readers import ntu
from sjepa_fast.data.readers.ntu import open_ntu, read_missing
from sjepa_fast.data.readers.ntu_denoise import (
    Track,
    assign_actors,
    center_clip,
    denoise,
    drop_empty_frames,
    drop_short,
    drop_spread,
    good_frames,
    stack_actors,
    track_motion,
)
from sjepa_fast.data.readers.ntu_text import parse_skeleton
from sjepa_fast.errors import InputError

RNG = np.random.default_rng(0)


def person(frames: int, move: float = 0.1, x: float = 0.0) -> np.ndarray:
    """A narrow, tall body that moves a little: (T, 25, 3)."""
    rest = np.stack([RNG.uniform(-0.2, 0.2, 25), np.linspace(0, 1.7, 25), np.full(25, 3.0)], axis=1)
    joints = rest + move * RNG.normal(size=(frames, 1, 3))
    joints[..., 0] += x
    return joints


def skeleton_text(frames: list[dict[str, np.ndarray]]) -> str:
    """Write frames of {body id: (25, 3)} in the published layout."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, joints in bodies.items():
            lines.append(f"{body} 0 1 1 1 1 0 -0.1 0.2 2")
            lines.append("25")
            for x, y, z in joints:
                lines.append(f"{x:.7f} {y:.7f} {z:.7f} 250.1 200.2 1000.3 500.4 0.1 0.2 0.3 0.4 2")
    return "\n".join(lines) + "\n"


def tracks_of(*joints: np.ndarray, starts: tuple[int, ...] = ()) -> list[Track]:
    starts = starts or (0,) * len(joints)
    return [Track(j, s, track_motion(j)) for j, s in zip(joints, starts, strict=True)]


def test_parser_reads_joints_and_valid_frame_intervals() -> None:
    a, b = person(4), person(2)
    frames = [{}, {"1": a[0]}, {"1": a[1], "2": b[0]}, {}, {"1": a[2], "2": b[1]}, {"1": a[3]}]
    tracks, valid = parse_skeleton(skeleton_text(frames))
    assert valid == 4 and [t.start for t in tracks] == [0, 1]
    np.testing.assert_allclose(tracks[0].joints_TV3, a, atol=1e-6)
    np.testing.assert_allclose(tracks[1].joints_TV3, b, atol=1e-6)


def test_gaps_inside_a_track_are_not_preserved() -> None:
    a, b = person(3), person(2)
    frames = [{"1": a[0], "2": b[0]}, {"1": a[1]}, {"1": a[2], "2": b[1]}]
    tracks, _ = parse_skeleton(skeleton_text(frames))
    assert tracks[1].start == 0 and tracks[1].end == 2


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_truncated_text_is_an_error(cut: int) -> None:
    lines = skeleton_text([{"1": person(1)[0]}] * 2).split("\n")
    with pytest.raises(ValueError, match="ends early"):
        parse_skeleton("\n".join(lines[:-cut]) if cut > 1 else "\n".join(lines[:-2]))


def test_motion_is_the_summed_variance_over_frames_and_joints() -> None:
    x = person(7)
    assert track_motion(x) == pytest.approx(sum(x[..., c].var() for c in range(3)))


def test_short_tracks_go_only_when_there_are_several() -> None:
    long, short = person(12), person(11)
    assert len(drop_short(tracks_of(long, short))) == 1
    assert len(drop_short(tracks_of(short))) == 1


def test_wide_tracks_are_dropped_while_two_remain() -> None:
    tall, wide = person(20), person(20)
    wide[..., 0] *= 10
    assert good_frames(tall).all() and not good_frames(wide).any()
    kept = drop_spread(tracks_of(tall, wide))
    assert len(kept) == 1 and kept[0].joints_TV3 is tall
    assert len(drop_spread(tracks_of(wide))) == 1, "a lone body always stays"


def test_motion_is_lowered_to_that_of_the_good_frames() -> None:
    calm = person(20, move=0.01)
    calm[:8, :, 0] *= 10
    track = drop_spread(tracks_of(calm, person(20)))[0]
    assert track.motion == pytest.approx(track_motion(calm[8:]))


def test_actors_most_motion_first_then_by_overlap() -> None:
    lively, calm, late = person(20, 0.3), person(20, 0.1), person(10, 0.05)
    actors = assign_actors(tracks_of(calm, lively, late, starts=(0, 0, 20)))
    assert actors[0][0].joints_TV3 is lively and actors[0][1].joints_TV3 is late
    assert actors[1][0].joints_TV3 is calm
    third = person(20, 0.01)
    assert all(
        t.joints_TV3 is not third for a in assign_actors(tracks_of(lively, calm, third)) for t in a
    )


def test_one_shared_frame_is_no_overlap_and_the_later_track_wins_it() -> None:
    lively, calm = person(20, 0.3), person(15, 0.1)
    tracks = tracks_of(lively, calm, starts=(0, 19))
    (actor,) = assign_actors(tracks)
    assert [t.joints_TV3 is j for t, j in zip(actor, (lively, calm), strict=True)] == [True, True]
    clip = stack_actors([actor], 34)
    np.testing.assert_array_equal(clip[0, 18:20], [lively[18], calm[0]])
    assert len(assign_actors(tracks_of(lively, calm, starts=(0, 18)))) == 2


def test_the_second_actors_span_begins_at_frame_zero() -> None:
    lively, late, early = person(60, 0.3), person(20, 0.1), person(12, 0.02)
    actors = assign_actors(tracks_of(lively, late, early, starts=(0, 30, 5)))
    assert [len(actor) for actor in actors] == [1, 1], "the early track would fit before the late"
    assert actors[1][0].joints_TV3 is late


def test_stacking_and_empty_frames() -> None:
    a = person(3)
    clip = stack_actors([tracks_of(a, starts=(2,))], 6)
    assert clip.shape == (1, 6, 25, 3) and (clip[:, :2] == 0).all() and (clip[:, 5] == 0).all()
    np.testing.assert_array_equal(drop_empty_frames(clip)[0], a)


def test_centring_uses_the_first_actors_first_frame_and_keeps_absence() -> None:
    clip = np.zeros((2, 5, 25, 3))
    clip[0, 1:] = person(4)
    clip[1, 3:] = person(2)
    out = center_clip(clip)
    np.testing.assert_allclose(out[0, 1, 1], 0, atol=1e-12)
    np.testing.assert_allclose(out[1, 4], clip[1, 4] - clip[0, 1, 1])
    assert (out[0, 0] == 0).all() and (out[1, :3] == 0).all()


def test_denoise_of_nothing_usable() -> None:
    assert denoise(tracks_of(person(5), person(6)), 6) is None


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.skeleton").write_text(text)


def test_folder_with_every_kind_of_file(tmp_path: Path) -> None:
    one, two, noise = person(30), person(30, 0.05, x=1.0), person(5)
    write(tmp_path, "S001C001P001R001A001", skeleton_text([{"7": j} for j in one]))
    both = [{"7": a, "8": b} for a, b in zip(one, two, strict=True)]
    write(tmp_path, "S001C002P003R001A050", skeleton_text(both))
    third = [{**f, "9": noise[i]} if i < 5 else f for i, f in enumerate(both)]
    write(tmp_path, "S001C003P001R001A050", skeleton_text(third))
    write(tmp_path, "S001C001P001R001A002", "3\n1\n")
    write(tmp_path, "S001C001P001R001A003", skeleton_text([{}, {}]))
    write(tmp_path, "S001C001P001R001A004", skeleton_text([{"7": one[0]}]))
    write(tmp_path, "S001C001P001R001A077", skeleton_text([{"7": one[0]}]))
    write(tmp_path, "notes", "hello")
    missing = tmp_path / "missing.txt"
    missing.write_text("Samples with missing skeletons:\nS001C001P001R001A004\n")
    source = open_ntu("ntu60", tmp_path, missing=missing)
    found = {record.name: record for record in source.records()}
    assert source.count == len(found) == 8
    solo, pair = found["S001C001P001R001A001"], found["S001C002P003R001A050"]
    assert solo.clip_MTVC is not None and solo.clip_MTVC.shape == (1, 30, 25, 3)
    np.testing.assert_allclose(solo.clip_MTVC[0], one - one[0, 1], atol=1e-5)
    assert pair.clip_MTVC is not None and pair.clip_MTVC.shape == (2, 30, 25, 3)
    np.testing.assert_allclose(pair.clip_MTVC[0], one - one[0, 1], atol=1e-5)
    np.testing.assert_allclose(pair.clip_MTVC[1], two - one[0, 1], atol=1e-5)
    assert pair.label == 49 and pair.meta == {
        "setup": 1,
        "camera": 2,
        "subject": 3,
        "repetition": 1,
    }
    third_clip = found["S001C003P001R001A050"].clip_MTVC
    assert third_clip is not None and third_clip.shape == (2, 30, 25, 3)
    for name, reason in {
        "S001C001P001R001A002": "ends early",
        "S001C001P001R001A003": "no usable skeleton",
        "S001C001P001R001A004": "missing skeletons",
        "S001C001P001R001A077": "not one of 60",
        "notes": "SsssCcccPpppRrrrAaaa",
    }.items():
        assert found[name].clip_MTVC is None and reason in found[name].reason


def test_bad_text_is_skipped_with_the_reason(tmp_path: Path) -> None:
    good = skeleton_text([{"7": j} for j in person(20)])
    first = good.split("\n")[4].split()[0]
    for action, text in enumerate(
        (
            "",
            "\n",
            "twenty\n",
            good.replace("25\n", "24\n", 1),
            good.replace(first, "nan", 1),
            good.replace(first, "inf", 1),
            good.replace(first, "x", 1),
            good.replace(first, "\u00e9", 1),
            good[:-300],
        ),
        1,
    ):
        file = tmp_path / f"S001C001P001R001A{action:03d}.skeleton"
        file.write_text(text, encoding="utf-8")
    (tmp_path / "S001C001P001R001A060.skeleton").mkdir()
    (tmp_path / "S001C001P001R001A000.skeleton").write_text(good)
    records = list(open_ntu("ntu60", tmp_path).records())
    reasons = {int(record.name[-3:]): record.reason for record in records}
    assert all(record.clip_MTVC is None for record in records)
    for action, words in {
        0: "action 0 is not one of 60",
        1: "ends early",
        2: "ends early",
        3: "twenty",
        4: "24 joints",
        5: "NaN or infinite",
        6: "NaN or infinite",
        7: "could not convert",
        8: "could not convert",
        9: "could not convert|ends early|unpack",
        60: "directory",
    }.items():
        assert re.search(words, reasons[action], re.IGNORECASE), (action, reasons[action])


def test_a_pass_can_begin_later_and_spans_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ntu, "BATCH", 2)
    for action in range(1, 8):
        text = skeleton_text([{"7": j} for j in person(12)]) if action != 4 else "0\n"
        write(tmp_path, f"S001C001P001R001A{action:03d}", text)
    write(tmp_path, "notes", "hello")
    source = open_ntu("ntu60", tmp_path)
    whole = list(source.records())
    assert [record.name for record in whole] == sorted(f.stem for f in tmp_path.iterdir())
    for start in range(9):
        for found, wanted in zip(source.records(start), whole[start:], strict=True):
            assert found.name == wanted.name and found.reason == wanted.reason
            assert np.array_equal(found.clip_MTVC, wanted.clip_MTVC) or wanted.clip_MTVC is None


def test_long_clips_end_at_300_frames(tmp_path: Path) -> None:
    write(tmp_path, "S001C001P001R001A001", skeleton_text([{"7": j} for j in person(310)]))
    (record,) = open_ntu("ntu60", tmp_path).records()
    assert record.clip_MTVC is not None and record.clip_MTVC.shape[1] == 300


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.skeleton file"):
        open_ntu("ntu60", tmp_path)


def test_published_missing_lists_have_their_counts(data_root: Path) -> None:
    lists = data_root / "ntu_metadata"
    sixty = lists / "ntu60" / "NTU_RGBD_samples_with_missing_skeletons.txt"
    hundred_twenty = lists / "ntu120" / "NTU_RGBD120_samples_with_missing_skeletons.txt"
    assert len(read_missing(sixty)) == 302
    assert len(read_missing(hundred_twenty)) == 535
