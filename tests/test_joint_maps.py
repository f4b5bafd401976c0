"""Source skeletons to the data set's joints: each known naming, what is missing, what is put between, and maps of one's own."""
import json

import numpy as np
import pytest

from dataset.prepare.bvh import joint_positions, read_bvh
from dataset.prepare.joint_maps import MAPS, find_map, map_joints, plain, read_map
from dataset.prepare.source import Reading, read_clip
from export.bvh import write_bvh
from tests.test_motion_process import random_clip
from utils.errors import UserError
from utils.motion_process import extract_features
from utils.motion_spec import get_spec

T2M = get_spec("t2m")


def source_names(title):
    return [name for entry in MAPS[title].values() for name in ([entry] if isinstance(entry, str) else entry[:2])] + ["LThumb"] * (title == "Mixamo")


@pytest.mark.parametrize("title", MAPS)
@pytest.mark.parametrize("dress", [str, str.upper, lambda name: f"rig:{name}"], ids=["as is", "upper", "prefix"])
def test_each_known_skeleton_is_found_by_its_names(title, dress):
    names = [dress(name) for name in dict.fromkeys(source_names(title))] + ["LowerBack", "Neck1"] * (title == "CMU (cgspeed)")
    assert find_map(names)[0] == title


# Skeletons as their tools write them: chains of (parent: joints) with offsets in cm, left limbs only; the right ones are their mirror images
HIP, LEG, FOOT, SPINES, HEAD = [(9, -7, 0)], [(0, -40, 1), (0, -42, -3)], [(0, -6, 13)], [(0, 12, -2), (0, 13, 1), (0, 6, 1)], [(0, 20, 0), (0, 9, 4)]
ARM = [(5, 11, 0), (12, 3, 0), (26, -2, 0), (25, 1, 1)]
NESTED = [("Hips", "Spine Spine1 Spine2", SPINES), ("Spine2", "Neck Head", HEAD), ("Spine2", "LeftShoulder LeftArm LeftForeArm LeftHand", ARM)]
LIMBS = "LeftUpLeg LeftLeg LeftFoot {} LeftArm LeftForeArm LeftHand"    # hip, knee, ankle, foot, shoulder, elbow, wrist
SKELETONS = {   # root, chains, limbs, the map that fits
    "LAFAN1": ("Hips", [("Hips", "LeftUpLeg LeftLeg LeftFoot LeftToe", HIP + LEG + FOOT), *NESTED], LIMBS.format("LeftToe"), "LAFAN1"),
    "Mixamo": ("Hips", [*NESTED, ("Head", "HeadTop_End", [(0, 18, 0)]), ("LeftHand", "LeftHandThumb1 LeftHandThumb2", [(3, 0, 3), (2, 0, 2)]),
                        ("Hips", "LeftUpLeg LeftLeg LeftFoot LeftToeBase LeftToe_End", HIP + LEG + FOOT + [(0, 0, 7)])],
               LIMBS.format("LeftToeBase"), "Mixamo"),
    "CMU (cgspeed)": ("Hips", [("Hips", "LHipJoint LeftUpLeg LeftLeg LeftFoot LeftToeBase", [(0, 0, 0), *HIP, *LEG, *FOOT]),
                               ("Hips", "LowerBack Spine Spine1", [(0, 0, 0), (0, 12, -1), (0, 12, 0)]),
                               ("Spine1", "Neck Neck1 Head", [(0, 0, 0), (0, 10, 1), (0, 10, -1)]),
                               ("Spine1", "LeftShoulder LeftArm LeftForeArm LeftHand", [(0, 0, 0), (19, 7, -2), *ARM[2:]]),
                               ("LeftHand", "LThumb", [(0, 0, 0)])], LIMBS.format("LeftToeBase"), "CMU (cgspeed)"),
    "SMPL": ("Pelvis", [("Pelvis", "L_Hip L_Knee L_Ankle L_Foot", HIP + LEG + FOOT), ("Pelvis", "Spine1 Spine2 Spine3 Neck Head", SPINES + HEAD),
                        ("Spine3", "L_Collar L_Shoulder L_Elbow L_Wrist L_Hand", [*ARM, (8, 0, 0)])],
             "L_Hip L_Knee L_Ankle L_Foot L_Shoulder L_Elbow L_Wrist", "SMPL (L_Hip)"),
    "Bandai Namco": ("joint_Root", [("joint_Root", "Hips", [(0, 95, 0)]),
                                    ("Hips", "Spine Chest Neck Head", [(0, 10, 0), (0, 20, 0), (0, 25, 0), (0, 9, 3)]),
                                    ("Hips", "UpperLeg_L LowerLeg_L Foot_L Toes_L", HIP + LEG + FOOT),
                                    ("Chest", "Shoulder_L UpperArm_L LowerArm_L Hand_L", ARM)],
                     "UpperLeg_L LowerLeg_L Foot_L Toes_L UpperArm_L LowerArm_L Hand_L", "Bandai Namco"),
}


def other_side(name):
    """LeftArm → RightArm, LHipJoint → RHipJoint, Foot_L → Foot_R; None for a joint in the middle."""
    for left, right in (("Left", "Right"), ("_L", "_R"), ("L_", "R_"), ("LHip", "RHip"), ("LThumb", "RThumb")):
        if name.startswith(left) or (left == "_L" and name.endswith(left)):
            return name.replace(left, right)
    return None


def skeleton_bvh(root, chains, dress):
    """BVH text of a skeleton that stands still with an arm raised and a knee bent, root at 100 cm."""
    parents, offsets = {root: None}, {root: (0, 0, 0)}
    for above, names, vectors in chains:
        for name, vector in zip(names.split(), vectors):
            for parent, joint, sign in ((above, name, 1), (other_side(above) or above, other_side(name), -1)):
                if joint:
                    parents[joint], offsets[joint] = parent, (sign * vector[0], *vector[1:])
            above = name
    lines, rows = ["HIERARCHY"], []

    def write(joint, depth):
        position = "Xposition Yposition Zposition " * (depth == 0)
        lines.extend([f"{'JOINT' if depth else 'ROOT'} {dress(joint)}", "{", "OFFSET " + " ".join(map(str, offsets[joint])),
                      f"CHANNELS {3 + 3 * (depth == 0)} {position}Zrotation Xrotation Yrotation"])
        rows.extend([0, 100, 0] * (depth == 0) + [40 * (joint in ("LeftArm", "L_Shoulder", "UpperArm_L")),
                                                  30 * (joint in ("RightLeg", "R_Knee", "LowerLeg_R")), 0])
        children = [child for child, parent in parents.items() if parent == joint]
        for child in children:
            write(child, depth + 1)
        lines.extend([] if children else ["End Site", "{", "OFFSET 0 1 0", "}"])
        lines.append("}")

    write(root, 0)
    return "\n".join([*lines, "MOTION", "Frames: 12", "Frame Time: 0.05", *[" ".join(map(str, rows))] * 12])


@pytest.mark.parametrize("dress", [str, lambda name: f"mixamorig:{name}", lambda name: f"mixamorig1_{name}", lambda name: f"m_avg_{name}"],
                         ids=["as is", "mixamorig:", "mixamorig1_", "m_avg_"])
@pytest.mark.parametrize("root, chains, limbs, title", SKELETONS.values(), ids=SKELETONS)
def test_skeletons_as_their_tools_write_them(tmp_path, root, chains, limbs, title, dress):
    (tmp_path / "clip.bvh").write_text(skeleton_bvh(root, chains, dress))
    bvh = read_bvh(tmp_path / "clip.bvh")
    placed = dict(zip(bvh.names, joint_positions(bvh)[0] / 100))
    joints, found = read_clip(tmp_path / "clip.bvh", Reading())
    assert (found["skeleton"], found["unit"]) == (title, "cm")
    body = dict(zip(T2M.joint_names, joints[0]))
    for target, name in zip("hip knee ankle foot shoulder elbow wrist".split(), limbs.split()):
        np.testing.assert_allclose(body[f"left_{target}"], placed[dress(name)], atol=1e-9)
        np.testing.assert_allclose(body[f"right_{target}"], placed[dress(other_side(name))], atol=1e-9)
    assert body["left_wrist"][1] > body["right_wrist"][1] + 0.1 and body["left_wrist"][0] > 0.4     # the raised arm, on +x
    heights = [body[name][1] for name in ("pelvis", "spine1", "spine2", "spine3", "neck", "head")]
    assert (np.diff(heights) > 0.01).all(), heights
    assert np.isfinite(extract_features(joints, "t2m")).all()


def test_a_missing_joint_is_named_with_those_that_were_found():
    names = [name for name in source_names("LAFAN1") if name != "LeftToe"]
    with pytest.raises(UserError, match=r"LAFAN1, also needs LeftToe; found Hips, .*--joint-map"):
        find_map(names)


def test_spine_joints_a_skeleton_lacks_lie_between_their_neighbours():
    joints = random_clip(0)
    names = [name for name in T2M.joint_names if name not in ("spine2", "spine3", "left_collar")]
    mapped = map_joints(joints[:, [T2M.joint_names.index(name) for name in names]], names, {name: name for name in names}, T2M)
    kept = [T2M.joint_names.index(name) for name in names]
    np.testing.assert_array_equal(mapped[:, kept], joints[:, kept])
    spine1, neck = (mapped[:, T2M.joint_names.index(name)] for name in ("spine1", "neck"))
    np.testing.assert_allclose(mapped[:, 6], spine1 + (neck - spine1) / 3, atol=1e-12)
    np.testing.assert_allclose(mapped[:, 9], spine1 + (neck - spine1) * 2 / 3, atol=1e-12)
    assert np.isfinite(mapped).all()


def test_joints_that_fall_together_get_a_direction():
    joints = random_clip(0)
    joints[:, [9, 13, 14]] = joints[:, [12]]    # spine3 and both collars at the neck, as in CMU's files
    mapped = map_joints(joints, T2M.joint_names, MAPS["SMPL"], T2M)
    for child in (9, 12, 13, 14):
        assert np.linalg.norm(mapped[:, child] - mapped[:, T2M.parents[child]], axis=-1).min() > 0.02


def test_a_map_of_ones_own(tmp_path):
    joints = random_clip(1)
    write_bvh(tmp_path / "own.bvh", joints, T2M)
    text = (tmp_path / "own.bvh").read_text()
    for name in T2M.joint_names:
        text = text.replace(f" {name}\n", f" bone_of_{name}\n")
    (tmp_path / "own.bvh").write_text(text)
    with pytest.raises(UserError, match="no known skeleton"):
        read_clip(tmp_path / "own.bvh", Reading())
    own = {name: f"bone_of_{name}" for name in T2M.joint_names if name != "spine2"}
    own["spine2"] = ["bone_of_spine1", "bone_of_spine3", 0.7]
    (tmp_path / "map.json").write_text(json.dumps(own))
    clip, _ = read_clip(tmp_path / "own.bvh", Reading(joint_map=read_map(tmp_path / "map.json")))
    np.testing.assert_allclose(clip[:, 6], 0.3 * clip[:, 3] + 0.7 * clip[:, 9], atol=1e-9)


@pytest.mark.parametrize("content, message", [
    ("[1]", "holds a list"), ("{", "not JSON"), ('{"pelvis": 3}', "pelvis is 3"), ('{"pelvis": "a", "tail": "b"}', "has no joint left_hip"),
    (json.dumps({name: name for name in T2M.joint_names} | {"tail": "b"}), "names tail")])
def test_a_bad_map_is_refused(tmp_path, content, message):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_map(tmp_path / "map.json")


def test_names_are_compared_plainly():
    assert plain("mixamorig:Left_Up Leg") == plain("mixamorig_LeftUpLeg") == plain("LeftUpLeg") == "leftupleg"
    assert plain("m_avg_L_Hip") == plain("L_Hip") and plain("mixamorig") == "mixamorig"
