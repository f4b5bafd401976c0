"""What the joints of a clip tell of their axes, sides, unit and shape: found where the evidence agrees."""
import numpy as np

from utils.errors import UserError

# source axes → x, y up, z: the axes to take, and their signs
TURNS = {"y": ((0, 1, 2), (1, 1, 1)), "z": ((0, 2, 1), (1, 1, -1)),
         "-y": ((0, 1, 2), (1, -1, -1)), "-z": ((0, 2, 1), (1, -1, 1))}
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inches": 0.0254, "feet": 0.3048, "dm": 0.1}    # in metres
ADULT, ANYBODY = (0.65, 1.02), (0.4, 1.15)      # metres from hip to ankle; the second from child to giant
TYPICAL_LEG = 0.82
UPRIGHT = 0.5           # least cosine between the expected axis and trunk and legs that are upright
UPRIGHT_ELSEWHERE = 0.8     # the same along another axis: who lies or leans is not stood up
MOST = 0.6              # share of the frames that must agree
CLEARLY = 0.4           # how much smaller the better of two costs must be
AT_ZERO = 0.15          # legs between a floor at zero and the lowest joints of who lies on it
FLOATING = 0.3          # metres between the floor and the lowest joint
# lengths as shares of the leg's, least and most, of people from pose estimates to cartoons
PROPORTIONS = dict(arm=(0.25, 0.9), trunk=(0.33, 1.1), hips=(0.02, 0.7), shoulders=(0.1, 1.1), head=(0, 0.8))
LONGEST = 0.75          # of any bone, in legs
UNSTEADY = 0.3          # share by which a bone of an array may change its length


def thin_out(joints):
    """Return at most about a hundred frames, evenly spread: postures need no more."""
    return joints[::max(1, len(joints) // 100)]


def name_joints(joints, spec):
    """Return {name: (T, 3)} of joints (T, J, 3), with `pelvis` for KIT's root too."""
    body = dict(zip(spec.joint_names, np.moveaxis(joints, 1, 0)))
    return body | dict(pelvis=joints[:, 0])


def turn_up(joints, up):
    """Rotate joints (…, 3) so that the axis `up` (y, z, -y, -z) becomes y."""
    axes, signs = TURNS[up]
    return joints[..., axes] * signs


def _length(vectors):
    return np.linalg.norm(vectors, axis=-1)


def _unit(vectors):
    return vectors / np.maximum(_length(vectors), 1e-9)[..., None]


def leg_length(joints, spec):
    """Return the median length from hip over knee to ankle, the longer of the two legs."""
    body = name_joints(joints, spec)
    return max(_limb(body, side, "hip", "knee", "ankle") for side in ("left", "right"))


def _limb(body, side, *names):
    points = [body[f"{side}_{name}"] for name in names]
    return float(sum(np.median(_length(a - b)) for a, b in zip(points, points[1:])))


def find_unit(joints, spec):
    """Return (name, metres per unit) from the leg's length. One that fits no unit is given a typical leg.

    Raises UserError for a leg without length.
    """
    leg = leg_length(joints, spec)
    if not leg > 0:
        raise UserError("both legs have no length; expected a body")
    for low, high in (ADULT, ANYBODY):
        for name, scale in UNITS.items():
            if low <= leg * scale <= high:
                return name, scale
    return "none known, scaled to a typical leg", TYPICAL_LEG / leg


def check_proportions(joints, spec, rigid=False):
    """Raise UserError for joints (T, J, 3) whose bones are no person's, as in another joint order.

    rigid: whether bones must keep their lengths.
    """
    body, leg = name_joints(joints, spec), max(leg_length(joints, spec), 1e-9)
    shares = dict(
        arm=max(_limb(body, side, "shoulder", "elbow", "wrist") for side in ("left", "right")),
        trunk=np.median(_length(_middle(body, "shoulder") - _middle(body, "hip"))),
        hips=np.median(_length(body["left_hip"] - body["right_hip"])),
        shoulders=np.median(_length(body["left_shoulder"] - body["right_shoulder"])),
        head=np.median(_length(body["head"] - body["neck"])))
    for what, (low, high) in PROPORTIONS.items():
        share = shares[what] / leg
        if not low <= share <= high:
            raise UserError(f"no person's proportions: {what} {share:.2f} legs, expected {low} to {high}; "
                            "are the joints in another order? Else give --joint-map")
    for names in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow", "wrist")):
        left, right = (_limb(body, side, *names) for side in ("left", "right"))
        if not max(left, right) <= 1.6 * min(left, right):
            raise UserError(f"left and right {'-'.join(names)} differ: {left:.3g} and {right:.3g}; "
                            "are the joints in another order? Else give --joint-map")
    bones = _length(joints[:, 1:] - joints[:, spec.parents[1:]]) / leg
    low, usual, high = np.percentile(bones, (5, 50, 95), axis=0)
    for name, least, length, most in zip(spec.joint_names[1:], low, usual, high):
        unsteady = rigid and length > 0.15 and most - least > UNSTEADY * length
        if length > LONGEST or unsteady:
            raise UserError(f"the bone to {name} is {least:.2f} to {most:.2f} legs long; "
                            "are the joints in another order?")


def _middle(body, name):
    return (body[f"left_{name}"] + body[f"right_{name}"]) / 2


def _trunk_and_legs(joints, spec):
    """Return the unit directions (T, 3) of the trunk, upwards, and of the legs, downwards."""
    body = name_joints(joints, spec)
    hips = _middle(body, "hip")
    return _unit(_middle(body, "shoulder") - hips), _unit(_middle(body, "ankle") - hips)


def _upright_axis(joints, spec, expected="y"):
    """Return the axis along which a person stands or sits in most frames, or None."""
    trunk, legs = _trunk_and_legs(joints, spec)
    for up in (expected, *TURNS):
        least = UPRIGHT if up == expected else UPRIGHT_ELSEWHERE
        if np.mean((turn_up(trunk, up)[:, 1] > least) & (turn_up(legs, up)[:, 1] < -least)) > MOST:
            return up
    return None


def _floor_cost(joints, spec, up):
    """Return how badly the lowest joints fit a floor at zero, in legs."""
    lowest = turn_up(joints, up)[..., 1].min(1) / leg_length(joints, spec)
    return abs(float(np.median(lowest))) + 2 * float(np.std(lowest))


def find_up(joints, rest, spec):
    """Return the up axis: y, z, -y or -z. joints: (T, J, 3). rest: (1, J, 3) of the zero pose, or None.

    The motion's axis counts where the zero pose agrees or shows no person. Where they differ, as in a person
    who lies along z or stands on the hands, the floor decides. Raises UserError where it cannot.
    """
    resting = _upright_axis(rest, spec) if rest is not None else None
    expected = resting or "y"
    moving = _upright_axis(joints, spec, expected)
    cost = {up: _floor_cost(joints, spec, up) for up in TURNS}
    if moving == expected:
        return moving
    if moving is None:      # lies, crawls, rolls
        better = min(cost, key=cost.get)
        if resting or cost[better] > 0.5 * CLEARLY * cost["y"]:
            return expected
        moving = better
    opposite = moving[-1] == expected[-1]
    if cost[moving] < CLEARLY * cost[expected] and (opposite or not resting or cost[expected] > 2 * AT_ZERO):
        return moving
    if resting and cost[expected] < CLEARLY * cost[moving] and (opposite or cost[expected] < AT_ZERO):
        return expected
    raise UserError(f"up may be {moving} (by the motion) or {expected} (by the zero pose, or as usual); "
                    f"give --up={moving} or --up={expected}")


def facing(joints, spec):
    """Return how far knees and toes point forwards, (knees in legs, toes as a cosine); negative: backwards.

    Forwards follows from the sides: hip to hip, and along the leg.
    """
    body, knees, toes = name_joints(joints, spec), [], []
    across = body["left_hip"] - body["right_hip"]
    for side in ("left", "right"):
        hip, knee, ankle, foot = (body[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "foot"))
        down = _unit(ankle - hip)
        bend = knee - hip - ((knee - hip) * down).sum(-1, keepdims=True) * down
        length = np.maximum(_length(knee - hip) + _length(ankle - knee), 1e-9)
        knees.append((bend * _unit(np.cross(across, -down))).sum(-1) / length)
        toes.append((_unit(foot - ankle) * _unit(np.cross(across, knee - ankle))).sum(-1))
    return float(np.median(knees)), float(np.median(toes))


def is_mirrored(joints, spec):
    """Return whether knees and toes point backwards, as seen from the sides that the joints' names tell."""
    knees, toes = facing(joints, spec)
    return (toes < -0.3 and knees < 0.02) or (knees < -0.02 and toes < 0.1)


def walks_on_fours(joints, spec):
    """Return whether trunk level, legs straight and hands by the feet is the usual posture. joints: y up."""
    body, leg = name_joints(joints, spec), leg_length(joints, spec)
    trunk, _ = _trunk_and_legs(joints, spec)
    hands, feet, hips = (_middle(body, name)[:, 1] for name in ("wrist", "ankle", "hip"))
    return bool(np.median(trunk[:, 1]) < 0.6 and np.median(np.abs(hands - feet)) < 0.4 * leg
                and np.median(hips - feet) > 0.6 * leg)


def posture_problems(joints, spec):
    """Return what is wrong with a clip that should be a person, y up, a line each. joints: (T, J, 3) metres.

    Says: another joint order, upside down, lying throughout, mirrored, floating or sunk.
    """
    joints = thin_out(joints)
    try:
        check_proportions(joints, spec, rigid=True)
    except UserError as error:
        return [str(error).split(";")[0]]
    problems, up = [], _upright_axis(joints, spec)
    trunk, legs = (directions[:, 1] for directions in _trunk_and_legs(joints, spec))
    lowest = float(np.median(joints[..., 1].min(1)))
    if up == "-y":
        problems.append("upside down: the head is below the feet")
    elif np.mean((np.abs(trunk) < UPRIGHT) & (np.abs(legs) < UPRIGHT)) > 0.9:
        problems.append("lying on a side throughout: is up another axis?")
    if is_mirrored(joints, spec):
        problems.append("mirrored: knees and toes point backwards")
    if abs(lowest) > FLOATING:
        word = "floating" if lowest > 0 else "sunk"
        problems.append(f"{word}: the lowest joint is usually at {lowest:.2f} m")
    return problems
