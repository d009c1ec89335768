"""`sjepa_fast.doctor`: each rule speaks where it should, and is silent on a run that went well."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sjepa_fast import doctor
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import replace as changed
from sjepa_fast.data.store_writer import StoreWriter
from sjepa_fast.doctor import CHECKS, Records, findings
from sjepa_fast.skeletons import KINECT20
from tests.tiny import call, trained

CONFIG = preset("sjepa-nucla")


def rows(**columns: list[float]) -> list[dict[str, float]]:
    """A row every 100 steps."""
    count = len(next(iter(columns.values())))
    return [{"step": 100 * (i + 1), **{k: v[i] for k, v in columns.items()}} for i in range(count)]


WELL = Records(
    CONFIG,
    20,
    rows(
        knn=[60.0, 70.0, 75.0, 74.0],
        effective_rank=[20.0, 25.0, 24.0, 23.0],
        collapsed=[0.0] * 4,
        momentum=[0.98, 0.99, 0.99, 0.999],
        spikes=[0.0, 1.0, 1.0, 1.0],
    ),
    (60.0, 74.0),
)


def test_a_run_that_went_well_has_no_finding() -> None:
    assert findings(WELL) == []


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        (replace(WELL, scores=(60.0, 58.0)), "1-NN is 58.0 % after training and was 60.0 %"),
        (replace(WELL, rows=rows(effective_rank=[20.0, 25.0, 9.0])), "fallen from 25.0 at step"),
        (
            replace(WELL, rows=rows(effective_rank=[1.5], collapsed=[1.0])),
            "have collapsed, effective rank 1.5 at step 100: --optim.lr 5e-4 --objective.ema-start",
        ),
        (replace(WELL, rows=rows(knn=[60.0, 75.0, 70.0])), "75.0 % at step 200 and is 70.0 % now"),
        (
            replace(
                WELL,
                config=changed(CONFIG, objective={"ema_start": 0.9999}),
                rows=rows(momentum=[0.9999] * 5),
            ),
            "after 500 steps 95 % of the target encoder are its first weights.*--objective.ema-st",
        ),
        (
            replace(WELL, config=changed(CONFIG, mask={"ratio": 0.98})),
            "sees 4 of 160 tokens: --mask.ratio 0.90",
        ),
        (
            replace(WELL, rows=rows(skipped=[0.0, 40.0])),
            "40 of 200 steps were skipped: --optim.lr 0.0005$",
        ),
        (
            replace(
                WELL,
                config=changed(CONFIG, optim={"clip_grad": 0.0}),
                rows=rows(spikes=[9.0]),
            ),
            "9 of 100 steps were spikes: --optim.lr 0.0005 --optim.clip-grad 3",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_speaks_alone_and_names_a_flag(ill: Records, words: str) -> None:
    (found,) = findings(ill)
    assert re.search(words, found), found
    assert "--" in found


def test_mask_advice_holds() -> None:
    """The ratio that is named leaves enough tokens, also of few."""
    for frames, joints in ((32, 20), (16, 13), (120, 25)):
        config = changed(CONFIG, data={"frames": frames}, mask={"ratio": 0.999})
        text = doctor.too_few_tokens(replace(WELL, config=config, joints=joints))
        assert text is not None
        ratio = float(text.rpartition(" ")[2])
        advised = changed(config, mask={"ratio": ratio})
        assert doctor.too_few_tokens(replace(WELL, config=advised, joints=joints)) is None


def test_no_advice_about_a_teacher_where_there_is_none() -> None:
    mamp = replace(WELL, config=preset("mamp-nucla"), rows=rows(effective_rank=[20.0, 5.0]))
    (found,) = findings(mamp)
    assert "ema" not in found


def test_a_slow_average_is_told_from_few_rows_and_the_advice_holds() -> None:
    """From 0.99 on a cosine to 1, and one row at the end: 20 steps leave 90 %."""
    text = doctor.slow_average(replace(WELL, rows=[{"step": 20, "momentum": 1.0}]))
    assert text is not None and "after 20 steps 90 %" in text and "ema-start" not in text
    length = int(re.findall(r"--optim\.length (\d+) --optim\.unit steps", text)[0])
    cosine = [1 - 0.005 * (1 + math.cos(math.pi * k / length)) for k in range(length)]
    assert 0.04 < math.prod(cosine) < doctor.MOST_LEFT


def test_millimetres_are_found_in_the_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", "mm", KINECT20, ["a"]) as writer:
        clip = np.random.default_rng(0).normal(size=(1, 9, 20, 3)).astype(np.float32)
        writer.add("tall", 600 * clip, 0, {})
        writer.finish({"xsub": np.array([1], dtype=np.int8)})
    config = changed(CONFIG, data={"root": tmp_path / "store"})
    (found,) = findings(replace(WELL, config=config))
    assert found.startswith("clip tall spans")
    assert "divide millimetres by 1000, and prepare it again" in found


def test_the_command_reads_a_run(store: Path, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "run", "--optim.unit", "steps", "--optim.length", "2")
    done = call(doctor.main, run)
    assert done.returncode == 0, done.stderr
    assert "the target encoder are its first weights" in done.stdout
    for line in done.stdout.splitlines():
        assert line.startswith("- ")


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    assert call(doctor.main, tmp_path).stderr == (
        f"run: {tmp_path} is not a run folder; name a folder with a run\n"
    )


def test_every_rule_is_named_where_nothing_is_found(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "read_records", lambda run: WELL)
    done = call(doctor.main, tmp_path)
    assert done.stdout.startswith("nothing found in 400 steps; looked for: below initialisation")
    assert all(check.__name__.replace("_", " ") in done.stdout for check in CHECKS)
