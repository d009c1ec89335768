"""The report of a finished run: kNN before and after training, and three pictures."""

from __future__ import annotations

import torch

from sjepa_fast.config.schema import TrainConfig, replace
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.data.store import Store
from sjepa_fast.evaluation.features import nearest_neighbour
from sjepa_fast.evaluation.labelled import labelled_parts, lacking
from sjepa_fast.evaluation.metrics import accuracy, confusion_matrix
from sjepa_fast.objectives.objective import Objective, make_step_input
from sjepa_fast.opening import check_fields, read_json
from sjepa_fast.runtime.files import write_json
from sjepa_fast.runtime.logging import read_metrics
from sjepa_fast.viz.confusion import plot_confusion
from sjepa_fast.viz.curves import plot_curves
from sjepa_fast.viz.skeleton import plot_clip_mask
from sjepa_kernels.tubelets import to_frames


def picture_mask(config: TrainConfig, store: Store, clips: ResidentClips) -> None:
    """Draw the crop and the mask of the first training clip at step 0."""
    device = clips.joints_RVC.device
    ids = torch.from_numpy(store.ids(config.data.split, "train")[:1]).to(device)
    seed = torch.tensor(config.seed, device=device)
    inputs = make_step_input(clips, ids, seed, torch.zeros_like(seed), config)
    masked = torch.ones(inputs.clip_BNP.shape[:2], dtype=torch.bool, device=device)
    # The first of a body's masks, where it has several.
    seen = inputs.ids_keep_BK.view(len(masked), -1, inputs.ids_keep_BK.shape[1])[:, 0]
    masked.scatter_(1, seen.long(), False)
    bodies = int(clips.bodies_N[ids[0]])
    length, joints = config.model.segment_length, store.layout.num_joints
    # The same crop as coordinates, whatever stream the mask was drawn from.
    joint_config = replace(config, data={"stream": "joint"})
    shown = make_step_input(clips, ids, seed, torch.zeros_like(seed), joint_config)
    clip = to_frames(shown.clip_BNP[:bodies], joints)
    plot_clip_mask(
        clip.cpu().numpy(),
        store.layout,
        masked[:bodies].view(bodies, -1, joints).cpu().numpy(),
        config.run / "mask.png",
        title=f"{store.names[int(ids[0])]}: {100 * masked.float().mean():.0f} % of tokens masked",
        segment_length=length,
    )


def _score_before(config: TrainConfig) -> float:
    path = config.run / "results" / "knn-before.json"
    score = read_json("run", path)
    check_fields("run", path, score, {"top1": (float,)})
    return float(score["top1"])


def write_report(
    config: TrainConfig, store: Store, clips: ResidentClips, model: Objective, dtype: torch.dtype
) -> list[str]:
    """Score the encoder that is used downstream and write the run's pictures.

    Returns lines to print: where the pictures are, and the scores before and after, where there
    are labels.
    """
    device = clips.joints_RVC.device
    plot_curves(read_metrics(config.run), config.run / "curves.png")
    picture_mask(config, store, clips)
    lines = [f"pictures: {config.run}/curves.png, {config.run}/mask.png"]
    if lacking(store, config.data.split) is not None:
        return lines
    parts = labelled_parts(store, config.data.split)
    train, test = (torch.from_numpy(ids).to(device) for ids in parts)
    train = train[: config.eval.knn_clips]
    labels = clips.labels_N[test]
    guess = nearest_neighbour(model.eval_encoder, clips, train, test, config, dtype)
    after = accuracy(guess, labels)
    before = _score_before(config)
    matrix = confusion_matrix(guess, labels, len(store.class_names))
    picture = config.run / "confusion.png"
    plot_confusion(matrix, store.class_names, picture, title=f"1-NN, {after:.1f} %")
    result = {"pool": config.eval.online_pool, "before": before, "after": after}
    write_json(config.run / "results" / "knn-before-after.json", result)
    return [
        f"kNN ({config.eval.online_pool} pooling, {config.data.split}): {before:.1f} % with the "
        f"random initialisation, {after:.1f} % after training",
        lines[0] + f", {config.run}/confusion.png",
    ]
