"""Source skeletons to the data set's joints: families of rigs, missing joints, no persons, own maps."""
import json
import re

import numpy as np
import pytest

from dataset.prepare.bvh import END
from dataset.prepare.joint_maps import find_map, map_joints, read_map, to_kit
from dataset.prepare.skeleton import recognise
from dataset.prepare.source import Reading, read_clip
from export.bvh import write_bvh
from tests.test_motion_process import random_clip
from utils.errors import UserError
from utils.motion_spec import KIT, T2M

LIMB = "hip knee ankle foot collar shoulder elbow wrist".split()
# Rigs as tools write them: chains "parent > joint=length …", % for either side, l, L, left or Left.
# Then the joints for LIMB, pelvis, neck and head; - where the rig has none.
RIGS = {
    "camel case": ("Left", """Hips > Spine=.1 Spine1=.12 Spine2=.1 Neck=.2 Head=.1 HeadTop_End=.2
        Spine2 > %Shoulder=.1 %Arm=.13 %ForeArm=.27 %Hand=.26 %HandMiddle1=.1 %HandMiddle2=.04
        %Hand > %HandThumb1=.05 %HandThumb2=.04
        Head > %Eye=.1
        Hips > %UpLeg=.1 %Leg=.42 %Foot=.42 %ToeBase=.15 END=.08""",
     "%UpLeg %Leg %Foot %ToeBase %Shoulder %Arm %ForeArm %Hand", "Hips Neck Head"),
    "collar and wrist, end site for a toe": ("Left", """Hips > Chest=.12 Chest2=.16 Neck=.17 Head=.1 END=.2
        Chest2 > %Collar=.15 %Shoulder=.15 %Elbow=.26 %Wrist=.24 END=.1
        Hips > %Hip=.1 %Knee=.45 %Ankle=.42 END=.18""",
     "%Hip %Knee %Ankle %Ankle_end %Collar %Shoulder %Elbow %Wrist", "Hips Neck Head"),
    "glued letters and connectors": ("l", """hip > lowerback=0 upperback=.12 thorax=.12 lowerneck=.01
            upperneck=.1 head=.09 END=.1
        thorax > %clavicle=0 %humerus=.2 %radius=.28 %wrist=.19 %hand=.01 %fingers=.08
        hip > %hipjoint=0 %femur=.13 %tibia=.42 %foot=.4 %toes=.12""",
     "%femur %tibia %foot %toes %clavicle %humerus %radius %wrist", "hip lowerneck head"),
    "still root, twist beside the chain": ("l", """root > pelvis=.95 spine_01=.1 spine_02=.19
            spine_03=.13 neck_01=.17 head=.09
        spine_03 > clavicle_%=.13 upperarm_%=.15 lowerarm_%=.3 hand_%=.27 index_01_%=.12 index_02_%=.05
        upperarm_% > upperarm_twist_01_%=.1
        pelvis > thigh_%=.1 calf_%=.43 foot_%=.4 ball_%=.17
        thigh_% > thigh_twist_01_%=.22
        root > ik_foot_root=0
        ik_foot_root > ik_foot_%=.1""",
     "thigh_% calf_% foot_% ball_% clavicle_% upperarm_% lowerarm_% hand_%", "pelvis neck_01 head"),
    "twist within the chain": ("l", """hip > abdomenLower=.05 abdomenUpper=.08 chest=.2 neckLower=.18
            neckUpper=.04 head=.06 END=.2
        chest > %Collar=.14 %ShldrBend=.12 %ShldrTwist=.11 %ForearmBend=.15 %ForearmTwist=.12 %Hand=.14
            %Mid1=.08 %Mid2=.04
        hip > %ThighBend=.11 %ThighTwist=.2 %Shin=.22 %Foot=.42 %Toe=.14""",
     "%ThighBend %Shin %Foot %Toe %Collar %ShldrBend %ForearmBend %Hand", "hip neckLower head"),
    "thighs on the spine, arms on the neck": ("L", """Bip01 > Bip01_Pelvis=0 Bip01_Spine=.1
            Bip01_Spine1=.2 Bip01_Neck=.2 Bip01_Head=.1
        Bip01_Neck > Bip01_%_Clavicle=.05 Bip01_%_UpperArm=.15 Bip01_%_Forearm=.29 Bip01_%_Hand=.28
        Bip01_Spine > Bip01_%_Thigh=.12 Bip01_%_Calf=.45 Bip01_%_Foot=.42 Bip01_%_Toe0=.17""",
     "Bip01_%_Thigh Bip01_%_Calf Bip01_%_Foot Bip01_%_Toe0 Bip01_%_Clavicle Bip01_%_UpperArm "
     "Bip01_%_Forearm Bip01_%_Hand",
     "Bip01_Pelvis Bip01_Neck Bip01_Head"),
    "side last, no neck, no collar": ("Left", """HipCenter > Spine=.07 ShoulderCenter=.35 Head=.25
        ShoulderCenter > Shoulder%=.17 Elbow%=.27 Wrist%=.25 Hand%=.08
        HipCenter > Hip%=.1 Knee%=.43 Ankle%=.38 Foot%=.12""",
     "Hip% Knee% Ankle% Foot% - Shoulder% Elbow% Wrist%", "HipCenter - Head"),
    "spine joints named on": ("L", """DEF-spine > DEF-spine.001=.14 DEF-spine.002=.12 DEF-spine.003=.15
            DEF-spine.004=.17 DEF-spine.006=.08
        DEF-spine.003 > DEF-shoulder.%=.12 DEF-upper_arm.%=.17 DEF-forearm.%=.27 DEF-hand.%=.25
        DEF-spine > DEF-thigh.%=.1 DEF-shin.%=.42 DEF-foot.%=.42 DEF-toe.%=.14""",
     "DEF-thigh.% DEF-shin.% DEF-foot.% DEF-toe.% DEF-shoulder.% DEF-upper_arm.% DEF-forearm.% DEF-hand.%",
     "DEF-spine DEF-spine.004 DEF-spine.006"),
    "skirt and hair": ("left", """hips > spine=.1 chest=.15 neck=.2 head=.1
        head > hair_%_1=.1 hair_%_2=.3 hair_%_3=.3 hair_%_4=.3
        chest > %Shoulder=.05 %UpperArm=.12 %LowerArm=.26 %Hand=.25
        hips > %UpperLeg=.1 %LowerLeg=.42 %Foot=.42
        hips > skirt_%_1=.1 skirt_%_2=.3 skirt_%_3=.3 skirt_%_4=.2""",
     "%UpperLeg %LowerLeg %Foot - %Shoulder %UpperArm %LowerArm %Hand", "hips neck head"),
    "names that say only the side": ("L", """joint0 > j1=.12 j2=.14 j3=.1 j4=.2 j5=.1 END=.15
        j3 > a%1=.12 a%2=.13 a%3=.28 a%4=.25 END=.1
        joint0 > b%1=.1 b%2=.42 b%3=.42 b%4=.15 END=.05""",
     "b%1 b%2 b%3 b%4 a%1 a%2 a%3 a%4", "joint0 j4 j5"),
}
RIGHT = dict(Left="Right", l="r", L="R", left="right")


def build(chains, left):
    """Names, parents and bone lengths of a rig."""
    names, parents, lengths = [chains.split()[0]], [-1], [0.0]
    for line in re.sub(r"\n(?=[^>\n]*(\n|$))", " ", chains).splitlines():     # a line without > goes on
        for side in (left, RIGHT[left]) if "%" in line else ("",):
            parent, joints = line.replace("%", side).split(">")
            above = parent.strip()
            for joint in joints.split():
                name, length = joint.split("=")
                parents.append(names.index(above))
                names.append(above + END if name == "END" else name)
                lengths.append(float(length))
                above = names[-1]
    return names, parents, lengths


@pytest.mark.parametrize("left, chains, limbs, trunk", RIGS.values(), ids=RIGS)
def test_a_rig_is_recognised(left, chains, limbs, trunk):
    names, *hierarchy = build(chains, left)
    joints, confidence, sided = recognise(names, *hierarchy)
    found = {target: names[joint] for target, joint in joints.items()}
    expected = dict(zip(("pelvis", "neck", "head"), trunk.split()))
    for side, word in (("left", left), ("right", RIGHT[left])):
        expected |= {
            f"{side}_{role}": name.replace("%", word).replace("_end", END)
            for role, name in zip(LIMB, limbs.split())
        }
    assert {target: name for target, name in found.items() if "spine" not in target} == \
        {target: name for target, name in expected.items() if name != "-"}
    assert sided and 0.5 <= confidence <= 1
    spine = [joints[name] for name in ("spine1", "spine2", "spine3") if name in joints]
    assert spine == sorted(set(spine)) and spine


@pytest.mark.parametrize("prefix", ["mixamorig:", "Character1_", "m_avg_"])
def test_a_prefix_of_all_names_does_not_matter(prefix):
    left, chains, *_ = RIGS["camel case"]
    names, *hierarchy = build(chains, left)
    assert recognise([prefix + name for name in names], *hierarchy) == recognise(names, *hierarchy)


def test_sides_without_names_are_left_open():
    left, chains, *_ = RIGS["names that say only the side"]
    names, *hierarchy = build(chains, left)
    joints, _, sided = recognise([f"bone{i}" for i in range(len(names))], *hierarchy)
    assert not sided and {names[joints[f"{side}_knee"]] for side in ("left", "right")} == {"bL2", "bR2"}


@pytest.mark.parametrize(
    "chains",
    [
        "body > head=.1\nbody > %_leg_1=.1 %_leg_2=.2 %_leg_3=.3\nbody > %_claw_1=.1 %_claw_2=.2 %_claw_3=.2",
        "hand > thumb1=.05 thumb2=.04 thumb3=.03\nhand > index1=.1 index2=.04 index3=.03\n"
        "hand > ring1=.1 ring2=.04 ring3=.03",
        "Hips > Spine=.2 Neck=.2 Head=.1",
    ],
    ids=["crab", "hand", "no limbs"],
)
def test_no_person_is_refused(chains):
    with pytest.raises(UserError, match=r"no human skeleton.*--joint-map"):
        recognise(*build(chains, "L"))


def placed(names, joints=None, **changes):
    """Map random joints of which only `names` are there."""
    joints = random_clip(0) if joints is None else joints
    kept = joints[:, [T2M.joint_names.index(name) for name in names]]
    return joints, map_joints(kept, names, {name: name for name in names})


def test_joints_that_are_missing_are_put_on_the_bones_that_are_there():
    lacking = ("spine2", "spine3", "neck", "left_collar", "left_foot")
    names = [name for name in T2M.joint_names if name not in lacking]
    joints, mapped = placed(names)
    kept = [T2M.joint_names.index(name) for name in names]
    np.testing.assert_array_equal(mapped[:, kept], joints[:, kept])
    body = dict(zip(T2M.joint_names, np.moveaxis(mapped, 1, 0)))
    np.testing.assert_allclose(
        body["neck"], body["spine1"] + 0.68 * (body["head"] - body["spine1"]), atol=1e-12
    )
    np.testing.assert_allclose(
        body["spine2"], body["spine1"] + (body["neck"] - body["spine1"]) / 3, atol=1e-12
    )
    across, shin, foot = (body[a] - body[b] for a, b in (
        ("left_hip", "right_hip"), ("left_ankle", "left_knee"), ("left_foot", "left_ankle")))
    assert (np.cross(across, -shin) * foot).sum(-1).min() > 0      # forwards


def test_joints_that_fall_together_get_a_direction():
    joints = random_clip(0)
    joints[:, [9, 13, 14]] = joints[:, [12]]    # spine3 and both collars at the neck, as in CMU's files
    joints[:, 3] = joints[:, 0]                 # and the first spine joint on the pelvis
    _, mapped = placed(list(T2M.joint_names), joints)
    for child in (3, 6, 9, 12, 13, 14):
        assert np.linalg.norm(mapped[:, child] - mapped[:, T2M.parents[child]], axis=-1).min() > 0.02


def test_kit_joints_come_from_the_same_body():
    kit = to_kit(random_clip(0))
    names = KIT.joint_names
    assert (
        kit.shape[1:] == (21, 3)
        and (kit[:, names.index("left_toe")] != kit[:, names.index("left_foot")]).any()
    )


@pytest.fixture
def strange(tmp_path):
    """A BVH file whose names say nothing."""
    write_bvh(tmp_path / "own.bvh", random_clip(1), T2M)
    text = (tmp_path / "own.bvh").read_text()
    for i, name in enumerate(T2M.joint_names):
        text = text.replace(f" {name}\n", f" bone{i}\n")
    (tmp_path / "own.bvh").write_text(text)
    return tmp_path / "own.bvh"


def test_a_map_of_ones_own_goes_before_what_is_recognised(tmp_path, strange):
    own = {name: f"bone{i}" for i, name in enumerate(T2M.joint_names)}
    own["spine2"] = ["bone3", "bone9", 0.7]
    (tmp_path / "map.json").write_text(json.dumps(own))
    clip, found = read_clip(strange, Reading(joint_map=read_map(tmp_path / "map.json")))
    np.testing.assert_allclose(clip[:, 6], 0.3 * clip[:, 3] + 0.7 * clip[:, 9], atol=1e-9)
    assert found["skeleton"] == "by --joint-map" and found["map"] == own
    names, *hierarchy = build(RIGS["camel case"][1], "Left")
    joints, how, _ = find_map(names, *hierarchy, {"head": "HeadTop_End"})
    assert (
        joints["head"] == "HeadTop_End"
        and joints["left_knee"] == "LeftLeg"
        and how.endswith("and --joint-map")
    )
    with pytest.raises(UserError, match="no joint Kopf, of --joint-map"):
        map_joints(np.zeros((1, len(names), 3)), names, {"head": "Kopf"})


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "sequence.*expected a JSON file"),
        ("{", "line 1 column 2.*expected a JSON file"),
        ('{"pelvis": 3}', "pelvis is 3"),
        ('{"tail": "b"}', "names tail"),
        ('{"pelvis": ["a", "b"]}', "pelvis is"),
    ],
)
def test_a_bad_map_is_refused(tmp_path, content, message):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_map(tmp_path / "map.json")
    assert len(str(error.value)) <= 300
