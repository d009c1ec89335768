"""The pictures of the README and of the site, from embedded data and committed results.

python -m benchmarks.pictures            write all of them anew into docs/pictures
python -m benchmarks.pictures speed.png  one of them

A picture of results carries the numbers that it shows in its own file, so that a test can tell
when a result has changed and the picture has not.

Shapes: M bodies, T frames, V joints, C coordinates, S segments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from benchmarks.tables import RESULTS, ROOT
from sjepa_fast.config.presets import preset
from sjepa_fast.data.synthetic import ACTIONS, synthetic_clip
from sjepa_fast.runtime.files import new_file
from sjepa_fast.skeletons import NTU25
from sjepa_fast.viz.figure import Movie, new_figure, save_figure
from sjepa_fast.viz.tokens import MASKED, VISIBLE
from sjepa_kernels import motion_aware_mask
from sjepa_kernels.tubelets import to_tubelets

PICTURES = ROOT / "docs" / "pictures"
OURS, OTHERS, NEITHER = "#1f5fa8", "#9aa3af", "#d5d9df"
ACTION, SUBJECT, REPETITION = "wave", 2, 0
# A third of the frames is enough for the eye, and keeps the file small.
EVERY, RATE = 3, 11.0

Results = dict[str, dict[str, float]]


def speed_results() -> Results:
    """Milliseconds of a step: ours and the rungs of the reference, on a GPU and on a CPU."""
    report = json.loads((RESULTS / "gpu-nvidia-h100-80gb-hbm3/report.json").read_text())
    rows = {row["row"]: row for row in report["sections"]["steps"]["rows"] if "ms" in row}
    gpu = {
        "this library": rows["ours"]["ms"],
        "reference, compiled": rows["reference D"]["ms"],
        "reference, AMP and SDPA": rows["reference C"]["ms"],
        "reference, AMP": rows["reference B"]["ms"],
        "plain reference": rows["reference A"]["ms"],
    }
    found = json.loads((RESULTS / "cpu-2-cores/step.json").read_text())["rows"]
    timed = {(row["row"], row["dtype"]): 1000 * row["median"] for row in found if "row" in row}
    cpu = {
        "this library": timed["ours_compile", "bfloat16"],
        "reference, compiled": timed["reference_D", "bfloat16"],
        "reference, AMP and SDPA": timed["reference_C", "bfloat16"],
        "reference, AMP": timed["reference_B", "bfloat16"],
        "plain reference": timed["reference_A", "float32"],
    }
    return {
        f"{report['device'].removesuffix(' 80GB HBM3')}, 128 clips of two persons": gpu,
        "two cores of an AMD EPYC, 2 clips": cpu,
    }


def accuracy_results() -> Results:
    """Means over three seeds on two small sets, by what was pre-trained and how it is scored."""
    scores = json.loads((RESULTS / "cpu-2-cores/objectives.json").read_text())["scores"]
    sets = {"nucla": "N-UCLA", "msr_action3d": "MSR Action3D"}
    rows = ("raw coordinates", "random encoder", "S-JEPA", "Skeleton2vec", "MAMP", "SkeletonMAE")
    columns = {"1-NN": "1-NN", "linear, joint-pooled": "linear probe", "fine-tune": "fine-tuning"}
    return {
        f"{title}, {name}": {
            row: round(mean(scores[f"{key}: {row}"][column]), 1)
            for row in rows
            if column in scores[f"{key}: {row}"]
        }
        for key, title in sets.items()
        for column, name in columns.items()
    }


def bars(axes: Axes, title: str, values: dict[str, float], colors: list[str], form: str) -> None:
    """Draw horizontal bars with their figures, the first one on top."""
    drawn = axes.barh(list(values), list(values.values()), color=colors, height=0.7)
    axes.bar_label(drawn, [f"{value:{form}}" for value in values.values()], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(values.values()))
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def save_results(figure: Figure, out: Path, results: Results) -> None:
    """Write a picture of results, with the numbers in it."""
    with new_file(out) as temporary:
        note = {"Description": json.dumps(results), "Software": None}
        figure.savefig(temporary, format="png", dpi=140, metadata=note)


def draw_speed(out: Path) -> None:
    """Draw the time of a step beside the reference's."""
    results = speed_results()
    figure = new_figure(9.4, 2.5)
    for i, (place, values) in enumerate(results.items(), 1):
        axes = figure.add_subplot(1, 2, i)
        colors = [OURS, *[OTHERS] * (len(values) - 1)]
        bars(axes, f"ms per step: {place}", values, colors, ".1f" if i == 1 else ".0f")
        if i > 1:
            axes.set_yticks([])
    save_results(figure, out, results)


def draw_accuracy(out: Path) -> None:
    """Draw what each objective scores beside features that nobody trained."""
    results = accuracy_results()
    figure = new_figure(9.4, 4.6)
    for i, (title, values) in enumerate(results.items()):
        axes = figure.add_subplot(2, 3, i + 1)
        # Coordinates cannot be fine-tuned; they keep their line, so that the rows stand level.
        shown = {row: values.get(row, 0.0) for row in results["N-UCLA, 1-NN"]}
        colors = [OURS] * len(shown)
        colors[:2] = NEITHER, NEITHER
        bars(axes, f"{title}, top-1 %", shown, colors, ".1f")
        for label in axes.texts:
            if label.get_text() == "0.0":
                label.set_text("-")
        if i % 3:
            axes.set_yticks([])
    save_results(figure, out, results)


def masked_clip() -> tuple[np.ndarray, np.ndarray]:
    """Return a synthetic clip (T, V, C) and which of its tokens (S, V) are hidden."""
    config = preset("sjepa-ntu60-xsub")
    clip_TVC = synthetic_clip(ACTIONS.index(ACTION), SUBJECT, 1, REPETITION)[0]
    at = np.linspace(0, len(clip_TVC) - 1, config.data.frames)
    flat = clip_TVC.reshape(len(clip_TVC), -1)
    resized = np.stack([np.interp(at, np.arange(len(flat)), line) for line in flat.T], axis=1)
    clip_TVC = resized.reshape(len(at), *clip_TVC.shape[1:]).astype(np.float32)
    tubelets = to_tubelets(torch.from_numpy(clip_TVC)[None], config.model.segment_length)
    keep = round(tubelets.shape[1] * (1 - config.mask.ratio))
    mask = motion_aware_mask(tubelets, keep, torch.tensor(0), joints=NTU25.num_joints)
    masked = np.ones(tubelets.shape[1], dtype=bool)
    masked[mask.ids_keep_BK[0].numpy()] = False
    return clip_TVC, masked.reshape(-1, NTU25.num_joints)


def draw_pose(axes: Axes, pose_V3: np.ndarray, hidden_V: np.ndarray, whole: bool) -> None:
    """Draw a pose in which what is hidden is pale, or in full."""
    for child, parent in NTU25.bones:
        ends = pose_V3[[child, parent]]
        axes.plot(ends[:, 0], ends[:, 1], color="#7a8594" if whole else MASKED, linewidth=1.6)
    seen = pose_V3 if whole else pose_V3[~hidden_V]
    axes.scatter(seen[:, 0], seen[:, 1], s=34, color=OURS if whole else VISIBLE, zorder=3)


def draw_mask(out: Path) -> None:
    """Draw a clip as it moves: what the view encoder sees, what is to be predicted, the mask."""
    clip_TVC, masked_SV = masked_clip()
    length = len(clip_TVC) // len(masked_SV)
    low, high = clip_TVC.min(axis=(0, 1)) - 0.1, clip_TVC.max(axis=(0, 1)) + 0.1
    figure = new_figure(9.4, 3.3)
    seen = "the view encoder sees\n10 % of the tokens"
    titles = {seen: False, "it predicts the features\nof the rest": True}

    def show(number: int) -> None:
        frame = number * EVERY
        segment = frame // length
        figure.clear()
        *poses, plan = figure.subplots(1, 3, width_ratios=[1, 1, 2.2])
        for axes, (title, whole) in zip(poses, titles.items(), strict=True):
            draw_pose(axes, clip_TVC[frame], masked_SV[segment], whole)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
        colors = ListedColormap([VISIBLE, MASKED])
        plan.pcolormesh(
            masked_SV.T.astype(int), cmap=colors, vmin=0, vmax=1, edgecolors="w", linewidth=1
        )
        plan.axvspan(segment, segment + 1, facecolor="none", edgecolor=OURS, linewidth=2)
        plan.invert_yaxis()
        plan.set(xticks=[], yticks=[])
        plan.set_xlabel("time: 30 segments of 4 frames", fontsize=9)
        plan.set_ylabel("25 joints", fontsize=9)
        plan.set_title("a motion-aware mask: what moves is hidden more often", fontsize=9)

    save_figure(Movie(figure, len(clip_TVC) // EVERY, show, RATE), out)


DRAWN: dict[str, Any] = {
    "mask.gif": draw_mask,
    "speed.png": draw_speed,
    "small-sets.png": draw_accuracy,
}


def main(names: list[str]) -> None:
    """Draw the named pictures, or all."""
    PICTURES.mkdir(exist_ok=True)
    for name in names or DRAWN:
        DRAWN[name](PICTURES / name)


if __name__ == "__main__":
    main(sys.argv[1:])
