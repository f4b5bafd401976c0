"""From the joints of a source skeleton to HumanML3D's 22 or KIT's 21, with what the source lacks put in.

A map is {target joint: source joint, or [source, source, share] for a point between two}.
"""
import json

import numpy as np

from dataset.prepare.skeleton import recognise
from utils.errors import UserError
from utils.files import read_text
from utils.motion_process import unit
from utils.motion_spec import KIT, T2M

SPINE = ("pelvis", "spine1", "spine2", "spine3", "neck")
PLACED = (*SPINE[1:], "left_collar", "right_collar", "left_foot", "right_foot")     # put in if missing
DEGENERATE = 0.01       # a bone shorter than this share of the thigh has no direction of its own
NECK_AT = 0.68          # HumanML3D's neck on the way from spine3 to head
FOOT = 0.36             # HumanML3D's foot, from the ankle to the ball, in thighs
KIT_FROM_SMPL = dict(root="pelvis", spine="spine1", chest="spine3")    # the others have SMPL's names


def read_map(path):
    """Read a map of some or all of HumanML3D's joints from a JSON file. Raises UserError for others."""
    expected = 'a JSON file of {"pelvis": "Hips", …}'
    try:
        joints = dict(json.loads(read_text(path, expected)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {str(error)[:80]}; expected {expected}") from None
    for target, entry in joints.items():
        if target not in T2M.joint_names:
            raise UserError(f"{path}: names {target[:40]}; expected {', '.join(T2M.joint_names)}"[:200])
        kinds = [type(part) for part in entry] if isinstance(entry, list) else [type(entry)]
        if kinds not in ([str], [str, str, float], [str, str, int]):
            raise UserError(f"{path}: {target} is {json.dumps(entry)[:60]}; "
                            "expected a joint's name or [name, name, share]")
    return joints


def find_map(names, parents, lengths, own):
    """Return (map, how it was found, whether names tell the sides). own: a map that goes before, or None."""
    own = own or {}
    if own.keys() >= {*T2M.joint_names} - {*PLACED}:
        return own, "by --joint-map", True
    joints, confidence, sided = recognise(names, parents, lengths)
    found = {target: names[joint] for target, joint in joints.items()} | own
    return found, f"recognised ({confidence:.0%})" + " and --joint-map" * bool(own), sided


def map_joints(positions, names, joints):
    """Source positions (T, S, 3) with S `names` → (T, 22, 3)."""
    def place(entry):
        if isinstance(entry, list):
            return (1 - entry[2]) * place(entry[0]) + entry[2] * place(entry[1])
        if entry not in names:
            raise UserError(f"no joint {entry[:40]}, of --joint-map; expected of {', '.join(names)}"[:150])
        return positions[:, names.index(entry)]

    body = {target: place(entry) for target, entry in joints.items()}
    _complete(body)
    return np.stack([body[name] for name in T2M.joint_names], 1)


def _complete(body):
    """Put in the joints that are missing or fall together with their parent: neck, spine, collars, feet."""
    def apart(a, b):
        return np.median(np.linalg.norm(body[a] - body[b], axis=-1))

    def lacks(name, *neighbours):
        return name not in body or min(apart(name, other) for other in neighbours) < DEGENERATE * thigh

    thigh, lower = apart("left_hip", "left_knee"), "pelvis"
    if "neck" not in body:
        chest = body[[name for name in SPINE if name in body][-1]]
        body["neck"] = chest + NECK_AT * (body["head"] - chest)
    for name in SPINE[1:-1]:
        if lacks(name, lower, "neck"):
            body.pop(name, None)
        else:
            lower = name
    for i, name in enumerate(SPINE):
        if name not in body:
            before, after = SPINE[i - 1], next(other for other in SPINE[i:] if other in body)
            body[name] = body[before] + (body[after] - body[before]) / (SPINE.index(after) - i + 1)
    for side in ("left", "right"):
        knee, ankle, foot, collar, shoulder = (
            f"{side}_{joint}" for joint in ("knee", "ankle", "foot", "collar", "shoulder"))
        if lacks(collar, shoulder, "spine3"):
            body[collar] = 0.6 * (body["spine3"] + body["neck"]) / 2 + 0.4 * body[shoulder]
        if lacks(foot, ankle):
            forward = np.cross(body["right_hip"] - body["left_hip"], body[ankle] - body[knee])
            body[foot] = body[ankle] + FOOT * thigh * unit(forward)


def to_kit(joints):
    """HumanML3D's joints (T, 22, 3) → KIT's (T, 21, 3)."""
    body = dict(zip(T2M.joint_names, np.moveaxis(joints, 1, 0)))
    for side in ("left", "right"):  # SMPL's foot ends at the ball: the toes go on by half of it
        body[f"{side}_toe"] = 1.5 * body[f"{side}_foot"] - 0.5 * body[f"{side}_ankle"]
    return np.stack([body[KIT_FROM_SMPL.get(name, name)] for name in KIT.joint_names], 1)
