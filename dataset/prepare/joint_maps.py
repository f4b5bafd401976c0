"""From the joints of a source skeleton to HumanML3D's 22 or KIT's 21, with what the source lacks put in.

A map is {target joint: source joint, or [source, source, share] for a point between two}.
"""
import json
import re
from pathlib import Path

import numpy as np

from dataset.prepare.skeleton import recognise
from utils.errors import UserError
from utils.motion_spec import KIT, T2M

SPINE = ("pelvis", "spine1", "spine2", "spine3", "neck")
PLACED = (*SPINE[1:], "left_collar", "right_collar", "left_foot", "right_foot")     # put in if missing
DEGENERATE = 0.01       # a bone shorter than this share of the thigh has no direction of its own
NECK_AT = 0.68          # HumanML3D's neck on the way from spine3 to head
FOOT = 0.36             # HumanML3D's foot, from the ankle to the ball, in thighs

# KIT's joints from SMPL's: the same body, one spine joint fewer, no collars, and a foot of two bones
KIT_FROM_SMPL = dict(root="pelvis", spine="spine1", chest="spine3", neck="neck", head="head",
                     **{f"{side}_{joint}": f"{side}_{joint}" for side in ("left", "right")
                        for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "foot")})


def plain(name):
    """Return a joint's name as it is compared: without case, blanks, underscores, hyphens and namespace."""
    return re.sub(r"[\s_\-]", "", name.rsplit(":", 1)[-1]).lower()


def read_map(path):
    """Read a map from a JSON file {target: source or [source, source, share]}; it may name some targets only.

    The targets are HumanML3D's joints, or KIT's. Raises UserError for anything else.
    """
    try:
        joints = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a JSON file of joint names") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({str(error)[:60]}); expected {{\"pelvis\": \"Hips\"}}") from None
    if not isinstance(joints, dict) or not joints:
        raise UserError(f"{path}: holds no names; expected {{\"pelvis\": \"Hips\", …}}")
    spec = KIT if "root" in joints else T2M
    for target, entry in joints.items():
        if target not in spec.joint_names:
            raise UserError(f"{path}: names {target[:40]}; expected {', '.join(spec.joint_names)}"[:200])
        kinds = [type(part) for part in entry] if isinstance(entry, list) else []
        between = kinds in ([str, str, float], [str, str, int])
        if not isinstance(entry, str) and not between:
            found = json.dumps(entry)[:60]
            raise UserError(f"{path}: {target} is {found}; expected a joint's name or [name, name, share]")
    return joints


def describe_entry(entry):
    """Return a source joint, or a point between two, in words."""
    return entry if isinstance(entry, str) else f"{entry[2]:g} of the way from {entry[0]} to {entry[1]}"


def find_map(names, parents, lengths, own):
    """Return (map, how it was found, whether the names tell the sides). own: a map that goes before, or None.

    Raises UserError for joints neither recognised nor in `own`, and for a joint in `own` that is not there.
    """
    own = own or {}
    known = {plain(name) for name in names}
    for entry in own.values():
        for name in [entry] if isinstance(entry, str) else entry[:2]:
            if plain(name) not in known:
                raise UserError(f"no joint {name[:40]}, which --joint-map names; the file has others")
    wanted = KIT.joint_names if "root" in own else [name for name in T2M.joint_names if name not in PLACED]
    if all(target in own for target in wanted):
        return own, "by --joint-map", True
    joints, confidence, sided = recognise(names, parents, lengths)
    found = {target: names[joint] for target, joint in joints.items()} | own
    return found, f"recognised ({confidence:.0%})" + " and --joint-map" * bool(own), sided


def map_joints(positions, names, joints):
    """Source positions (T, S, 3) with S `names` → (T, 22, 3), or (T, 21, 3) for a map of KIT's joints."""
    index = {plain(name): i for i, name in reversed(list(enumerate(names)))}
    index |= {name: i for i, name in reversed(list(enumerate(names)))}

    def place(entry):
        if isinstance(entry, str):
            return positions[:, index.get(entry, index.get(plain(entry)))]
        a, b, share = entry
        return (1 - share) * place(a) + share * place(b)

    body = {target: place(entry) for target, entry in joints.items()}
    if "root" in joints:
        return np.stack([body[name] for name in KIT.joint_names], 1)
    _complete(body)
    return np.stack([body[name] for name in T2M.joint_names], 1)


def _complete(body):
    """Put in the joints that are missing or fall together with their parent: neck, spine, collars, feet."""
    thigh = _apart(body, "left_hip", "left_knee")
    if "neck" not in body:
        chest = next((body[name] for name in SPINE[3:0:-1] if name in body), body["pelvis"])
        body["neck"] = chest + NECK_AT * (body["head"] - chest)
    lower = "pelvis"
    for name in [name for name in SPINE[1:-1] if name in body]:
        if min(_apart(body, lower, name), _apart(body, name, "neck")) < DEGENERATE * thigh:
            del body[name]
        else:
            lower = name
    for i, name in enumerate(SPINE):
        if name not in body:
            after = next(k for k in range(i + 1, len(SPINE)) if SPINE[k] in body)
            share = 1 / (after - i + 1)
            body[name] = (1 - share) * body[SPINE[i - 1]] + share * body[SPINE[after]]
    for side in ("left", "right"):
        collar, shoulder, foot = f"{side}_collar", f"{side}_shoulder", f"{side}_foot"
        ends = (shoulder, "spine3")
        if collar not in body or min(_apart(body, collar, end) for end in ends) < DEGENERATE * thigh:
            body[collar] = 0.6 * (body["spine3"] + body["neck"]) / 2 + 0.4 * body[shoulder]
        if foot not in body or _apart(body, foot, f"{side}_ankle") < DEGENERATE * thigh:
            shin = body[f"{side}_ankle"] - body[f"{side}_knee"]
            forward = np.cross(body["right_hip"] - body["left_hip"], shin)     # at right angles to the shin
            forward /= np.maximum(np.linalg.norm(forward, axis=-1, keepdims=True), 1e-9)
            body[foot] = body[f"{side}_ankle"] + FOOT * thigh * forward


def _apart(body, a, b):
    return np.median(np.linalg.norm(body[a] - body[b], axis=-1))


def to_kit(joints):
    """HumanML3D's joints (T, 22, 3) → KIT's (T, 21, 3)."""
    body = dict(zip(T2M.joint_names, np.moveaxis(joints, 1, 0)))
    placed = {name: body[source] for name, source in KIT_FROM_SMPL.items()}
    for side in ("left", "right"):  # SMPL's foot ends at the ball: the toes go on by half of it
        placed[f"{side}_toe"] = 1.5 * body[f"{side}_foot"] - 0.5 * body[f"{side}_ankle"]
    return np.stack([placed[name] for name in KIT.joint_names], 1)
