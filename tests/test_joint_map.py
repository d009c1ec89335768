"""Counterparts of joints between skeletons, and encoders that read another skeleton."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.subject import load_encoder
from sjepa_fast.joint_map import INSTEAD, PARTS, body_part, map_joints
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.runtime.checkpoint import save_checkpoint
from sjepa_fast.skeletons import COCO17, KINECT15, KINECT20, LAYOUTS, NTU25, SkeletonLayout


def named(trained: SkeletonLayout, other: SkeletonLayout) -> dict[str, str]:
    found = zip(other.joints, map_joints(trained, other), strict=True)
    return {joint: "+".join(trained.joints[row] for row in rows) for joint, rows in found}


def test_ntu_to_kinect_v1() -> None:
    found = named(NTU25, KINECT20)
    assert found["hip_center"] == "spine_base" and found["spine"] == "spine_mid"
    assert found["shoulder_center"] == "spine_shoulder"
    same = set(KINECT20.joints) - {"hip_center", "spine", "shoulder_center"}
    assert len(same) == 17 and all(found[joint] == joint for joint in same)
    assert len(set(found.values())) == 20


def test_kinect_v1_to_ntu_takes_the_nearest_part() -> None:
    found = named(KINECT20, NTU25)
    assert found["neck"] == found["spine_shoulder"] == "shoulder_center"
    assert found["thumb_left"] == found["hand_tip_left"] == "hand_left"
    assert found["thumb_right"] == "hand_right"


def test_kinect_v1_and_openni() -> None:
    found = named(KINECT20, KINECT15)
    assert found["torso"] == "spine" and found["neck"] == "shoulder_center"
    assert found["foot_left"] == "foot_left"
    back = named(KINECT15, KINECT20)
    assert back["hip_center"] == "hip_left+hip_right" and back["wrist_left"] == "hand_left"
    assert back["ankle_right"] == "foot_right"


def test_a_middle_part_stands_between_two_sides() -> None:
    found = named(COCO17, KINECT20)
    assert found["hip_center"] == found["spine"] == "hip_left+hip_right"
    assert found["shoulder_center"] == "shoulder_left+shoulder_right"
    assert found["head"] == "nose" and found["foot_left"] == "ankle_left"


@pytest.mark.parametrize("trained", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("other", LAYOUTS, ids=lambda layout: layout.name)
def test_sides_never_cross_and_mirrors_agree(
    trained: SkeletonLayout, other: SkeletonLayout
) -> None:
    found = map_joints(trained, other)
    for joint, rows in zip(other.joints, found, strict=True):
        side = body_part(joint)[1]
        allowed = ({side}, {""}) if side else ({""}, {"left", "right"})
        assert {body_part(trained.joints[row])[1] for row in rows} in allowed, joint
    mirror, own = trained.flip_permutation(), other.flip_permutation()
    mirrored = [{mirror[row] for row in rows} for rows in found]
    assert mirrored == [set(found[own[j]]) for j in range(other.num_joints)]


def test_table_is_closed() -> None:
    assert set(INSTEAD) == set(PARTS)
    assert all(set(parts) <= set(PARTS) for parts in INSTEAD.values())
    names = [name for names in PARTS.values() for name in names]
    assert len(names) == len(set(names))
    assert body_part("left_big_toe") == ("foot", "left") and body_part("tail") == ("", "")


def test_equal_joints_need_no_names_and_unknown_ones_are_refused() -> None:
    odd = dataclasses.replace(KINECT15, name="odd", joints=tuple("abcdefghijklmno"))
    assert map_joints(odd, dataclasses.replace(odd, name="copy")) == tuple((j,) for j in range(15))
    with pytest.raises(InputError, match="a of odd has no counterpart"):
        map_joints(NTU25, odd)


def test_an_encoder_reads_another_skeleton_as_the_trained_joints(tmp_path: Path) -> None:
    """On kinect20 clips the mapped encoder equals the ntu25 encoder on the counterpart joints."""
    torch.manual_seed(0)
    segments = 3
    trained = SkeletonTransformer(segments, 25, 12, 16, depth=2, heads=2)
    holder = torch.nn.ModuleDict({"target_encoder": trained})
    checkpoint = save_checkpoint(tmp_path, 1, holder, torch.optim.SGD(holder.parameters()), keep=1)
    mapped = SkeletonTransformer(segments, 20, 12, 16, depth=2, heads=2)
    load_encoder(checkpoint, "target", mapped, NTU25, KINECT20)
    rows = torch.tensor(map_joints(NTU25, KINECT20)).flatten()
    clip = torch.randn(2, segments * 20, 12)
    whole = torch.zeros(2, segments, 25, 12)
    whole[:, :, rows] = clip.view(2, segments, 20, 12)
    kept = (torch.arange(segments)[:, None] * 25 + rows).flatten().expand(2, -1)
    with torch.no_grad():
        expected = trained.eval()(whole.flatten(1, 2), kept)
        torch.testing.assert_close(mapped.eval()(clip), expected)


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    holder = torch.nn.ModuleDict({"view_encoder": SkeletonTransformer(3, 25, 12, 16, 1, 2)})
    checkpoint = save_checkpoint(tmp_path, 1, holder, torch.optim.SGD(holder.parameters()), keep=1)
    load_encoder(checkpoint, "target", SkeletonTransformer(3, 25, 12, 16, 1, 2), NTU25, NTU25)
    for wrong in ((2, 25, 12, 16, 1, 2), (3, 25, 24, 16, 1, 2), (3, 25, 12, 16, 2, 2)):
        with pytest.raises(InputError, match="of this configuration"):
            load_encoder(checkpoint, "target", SkeletonTransformer(*wrong), NTU25, NTU25)
