"""From the joints of a source skeleton to a data set's: built-in maps by name, and a file for any other.

A map is {target joint: source joint, or [source, source, share] for a point between two}. Names are compared without case, spaces,
underscores, hyphens and a prefix that ends in a colon or is Mixamo's or SMPL's. A target is one of the data set's joint names; spine joints a
map lacks are interpolated.
"""
import json
import re
from pathlib import Path

import numpy as np

from dataset.prepare.bvh import END
from utils.errors import UserError
from utils.motion_spec import KIT, T2M

SPINE = ("pelvis", "spine1", "spine2", "spine3", "neck")
OPTIONAL = SPINE[1:4] + ("left_collar", "right_collar")
DEGENERATE = 0.01       # a bone shorter than this share of the leg has no direction of its own

# KIT's joints from SMPL's: the same body, one spine joint fewer, no collars, and a foot of two bones
KIT_FROM_SMPL = dict(root="pelvis", spine="spine1", chest="spine3", neck="neck", head="head",
                     **{f"{side}_{joint}": f"{side}_{joint}" for side in ("left", "right")
                        for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "foot")})


def _sides(left, right, **limbs):
    """A limb's entry for both sides: `limbs` holds target='name with *', and * becomes `left` or `right`."""
    return {f"{side}_{target}": name.replace("*", mark) for side, mark in (("left", left), ("right", right)) for target, name in limbs.items()}


MIXAMO_LIMBS = dict(hip="*UpLeg", knee="*Leg", ankle="*Foot", collar="*Shoulder", shoulder="*Arm", elbow="*ForeArm", wrist="*Hand")
THREE_SPINES = dict(pelvis="Hips", spine1="Spine", spine2="Spine1", spine3="Spine2", neck="Neck", head="Head")

# name → map; of the maps that fit completely the first is taken, so the pickier come first
MAPS = {
    "SMPL": {name: name for name in T2M.joint_names},
    "SMPL (L_Hip)": dict(pelvis="Pelvis", spine1="Spine1", spine2="Spine2", spine3="Spine3", neck="Neck", head="Head", **_sides(
        "L", "R", hip="*_Hip", knee="*_Knee", ankle="*_Ankle", foot="*_Foot", collar="*_Collar", shoulder="*_Shoulder", elbow="*_Elbow",
        wrist="*_Wrist")),
    "Bandai Namco": dict(pelvis="Hips", spine1="Spine", spine3="Chest", neck="Neck", head="Head", **_sides(
        "L", "R", hip="UpperLeg_*", knee="LowerLeg_*", ankle="Foot_*", foot="Toes_*", collar="Shoulder_*", shoulder="UpperArm_*",
        elbow="LowerArm_*", wrist="Hand_*")),
    # Spine1, Neck and both Shoulders are one point at the base of the neck: the spine ends below it, the collars start there
    "CMU (cgspeed)": dict(dict(pelvis="Hips", spine1=["Hips", "Spine", 0.5], spine2="Spine", spine3=["Spine", "Spine1", 0.3], neck="Neck",
                               head="Head"), **dict(_sides("Left", "Right", **MIXAMO_LIMBS, foot="*ToeBase"),
                                                    left_collar=["Neck", "LeftArm", 0.4], right_collar=["Neck", "RightArm", 0.4])),
    "CMU (hip, abdomen, chest)": dict(pelvis="hip", spine1="abdomen", spine3="chest", neck="neck", head="head", **_sides(
        "l", "r", hip="*Thigh", knee="*Shin", ankle="*Foot", foot="*Foot" + END, collar="*Collar", shoulder="*Shldr", elbow="*ForeArm",
        wrist="*Hand")),
    "Mixamo": dict(THREE_SPINES, **_sides("Left", "Right", **MIXAMO_LIMBS, foot="*ToeBase")),
    "LAFAN1": dict(THREE_SPINES, **_sides("Left", "Right", **MIXAMO_LIMBS, foot="*Toe")),
}
PREFIXES = r"^(mixamorig\d*|[mf]avg)(?=.)"      # mixamorig_Hips where an exporter took the colon; m_avg_Pelvis in SMPL's own files
MARKS = {"CMU (cgspeed)": ("LowerBack", "Neck1")}   # names that tell a skeleton from another one with the same limbs


def plain(name):
    """A joint's name as it is compared."""
    return re.sub(PREFIXES, "", re.sub(r"[\s_\-]", "", name.rsplit(":", 1)[-1]).lower())


def _sources(entry):
    return [entry] if isinstance(entry, str) else entry[:2]


def find_map(names):
    """The built-in map that fits the joints `names`. Returns (its name, the map). Raises UserError naming what the closest one misses."""
    have = {plain(name) for name in names}
    lacking = {}
    for title, joints in MAPS.items():
        wanted = [name for entry in joints.values() for name in _sources(entry)] + list(MARKS.get(title, ()))
        lacking[title] = [name for name in dict.fromkeys(wanted) if plain(name) not in have]
        if not lacking[title]:
            return title, joints
    title = min(lacking, key=lambda title: len(lacking[title]))
    raise UserError(f"no known skeleton: the closest, {title}, also needs {', '.join(lacking[title])}; found {', '.join(names)}. "
                    "Give --joint-map FILE.json")


def read_map(path):
    """A map from a JSON file {target: source or [source, source, share]}. Raises UserError for anything else, or a missing target.

    The targets are SMPL's 22, or KIT's 21; spine joints and collars may be left out.
    """
    try:
        joints = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a JSON file of joint names") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected {{\"pelvis\": \"Hips\", …}}") from None
    if not isinstance(joints, dict):
        raise UserError(f"{path}: holds a {type(joints).__name__}; expected {{\"pelvis\": \"Hips\", …}}")
    for target, entry in joints.items():
        between = isinstance(entry, list) and len(entry) == 3 and all(isinstance(name, str) for name in entry[:2]) \
            and isinstance(entry[2], (int, float)) and not isinstance(entry[2], bool)
        if not isinstance(entry, str) and not between:
            raise UserError(f"{path}: {target} is {json.dumps(entry)[:60]}; expected a joint's name or [name, name, share]")
    spec = KIT if "root" in joints else T2M
    unknown = [target for target in joints if target not in spec.joint_names]
    missing = [target for target in spec.joint_names if target not in joints and target not in OPTIONAL]
    if unknown or missing:
        what = f"has no joint {', '.join(missing)}" if missing else f"names {', '.join(unknown)}"
        raise UserError(f"{path}: {what}; expected the joints {', '.join(spec.joint_names)}")
    return joints


def map_joints(positions, names, joints, spec):
    """Source positions (T, S, 3) with S `names` → (T, J, 3) of the data set's joints, in the source's unit.

    Raises UserError naming a source joint the map wants and the skeleton lacks.
    """
    index = {plain(name): i for i, name in reversed(list(enumerate(names)))}
    missing = [name for entry in joints.values() for name in _sources(entry) if plain(name) not in index]
    if missing:
        raise UserError(f"no joint {', '.join(dict.fromkeys(missing))}, which the joint map wants; found {', '.join(names)}")

    def place(entry):
        if isinstance(entry, str):
            return positions[:, index[plain(entry)]]
        a, b, share = entry
        return (1 - share) * positions[:, index[plain(a)]] + share * positions[:, index[plain(b)]]

    placed = {target: place(entry) for target, entry in joints.items()}
    if spec.joints == KIT.joints and "root" in placed:
        return np.stack([placed[name] for name in KIT.joint_names], 1)
    body = _complete(placed)
    if spec.joints == T2M.joints:
        return np.stack([body[name] for name in T2M.joint_names], 1)
    return np.stack([_kit_joint(body, name) for name in KIT.joint_names], 1)


def _complete(placed):
    """SMPL's 22: spine joints and collars that are missing, or fall together with the joint before, are put between their neighbours."""
    leg = np.median(np.linalg.norm(placed["left_hip"] - placed["left_knee"], axis=-1))
    body = dict(placed)
    chain = [name for name in SPINE if name in body]
    for lower, upper in zip(chain, chain[1:]):
        if upper != "neck" and (_apart(body, lower, upper) < DEGENERATE * leg or _apart(body, upper, "neck") < DEGENERATE * leg):
            del body[upper]
    for i, name in enumerate(SPINE):
        if name not in body:
            after = next(k for k in range(i + 1, len(SPINE)) if SPINE[k] in body)
            share = 1 / (after - i + 1)
            body[name] = (1 - share) * body[SPINE[i - 1]] + share * body[SPINE[after]]
    for side in ("left", "right"):
        collar, shoulder = f"{side}_collar", f"{side}_shoulder"
        if collar not in body or min(_apart(body, "spine3", collar), _apart(body, collar, shoulder)) < DEGENERATE * leg:
            body[collar] = 0.6 * (body["spine3"] + body["neck"]) / 2 + 0.4 * body[shoulder]
    return body


def _apart(body, a, b):
    return np.median(np.linalg.norm(body[a] - body[b], axis=-1))


def _kit_joint(body, name):
    if name.endswith("toe"):    # SMPL's foot ends at the ball: the toes go on as far again as half the foot
        side = name.split("_")[0]
        return 1.5 * body[f"{side}_foot"] - 0.5 * body[f"{side}_ankle"]
    return body[KIT_FROM_SMPL[name]]
