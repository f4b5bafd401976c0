"""What the joints of a clip tell of their axes, sides, unit and shape: found where the evidence agrees."""
import numpy as np

from utils.errors import UserError
from utils.motion_process import unit

AXES = ("y", "z", "-y", "-z")
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inches": 0.0254, "feet": 0.3048, "dm": 0.1}    # in metres
ADULT, ANYBODY = (0.65, 1.02), (0.4, 1.15)      # metres from hip to ankle; the second from child to giant
TYPICAL_LEG = 0.82
UPRIGHT = 0.5           # least cosine between the expected axis and trunk and legs that are upright
UPRIGHT_ELSEWHERE = 0.8     # the same along another axis: who lies or leans is not stood up
MOST = 0.6              # share of the frames that must agree
CLEARLY = 0.4           # how much smaller the better of two costs must be
AT_ZERO = 0.15          # legs between a floor at zero and the lowest joints of who lies on it
FLOATING = 0.3          # metres between the floor and the lowest joint
# least and most, of people from pose estimates to cartoons: lengths in legs, the greatest ratio of left and
# right, and by what share a bone of an array changes its length
PROPORTIONS = dict(arm=(0.25, 0.9), trunk=(0.33, 1.1), hips=(0.02, 0.7), shoulders=(0.1, 1.1), head=(0, 0.8),
                   bone=(0, 0.75), asymmetry=(1, 1.6), stretch=(0, 0.3))


def thin_out(joints):
    """Return at most about a hundred frames, evenly spread: postures need no more."""
    return joints[::max(1, len(joints) // 100)]


def turn_up(joints, up):
    """Rotate joints (…, 3) so that the axis `up` (y, z, -y, -z) becomes y."""
    x, y, z = np.moveaxis(joints, -1, 0)
    return np.stack({"y": (x, y, z), "z": (x, z, -y), "-y": (x, -y, -z), "-z": (x, -z, y)}[up], -1)


def _apart(a, b):
    return np.median(np.linalg.norm(a - b, axis=-1), -1)


def _sides(joints, spec, *names):
    """Return left and right of joints (T, J, 3), as (2, T, 3) for each name."""
    index = [[spec.joint_names.index(f"{side}_{name}") for side in ("left", "right")] for name in names]
    return np.moveaxis(joints, 1, 0)[index]


def leg_length(joints, spec):
    """Return the median length from hip over knee to ankle, the longer leg's. Raises UserError for none."""
    hips, knees, ankles = _sides(joints, spec, "hip", "knee", "ankle")
    leg = max(_apart(hips, knees) + _apart(knees, ankles))
    if not leg > 0:
        raise UserError("a leg has no length; expected hip, knee and ankle apart")
    return leg


def find_unit(joints, spec):
    """Return (name, metres per unit) from the leg's length. One that fits no unit is given a typical leg."""
    leg = leg_length(joints, spec)
    fits = [(name, scale) for low, high in (ADULT, ANYBODY) for name, scale in UNITS.items()
            if low <= leg * scale <= high]
    return fits[0] if fits else ("none known, scaled to a typical leg", TYPICAL_LEG / leg)


def check_proportions(joints, spec, rigid=False):
    """Raise UserError for bones of no person, as in another joint order. rigid: none may change in length."""
    leg, bones = leg_length(joints, spec), np.linalg.norm(joints - joints[:, spec.parents], axis=-1)[:, 1:]
    least, usual, most = np.percentile(bones / leg, (5, 50, 95), axis=0)
    stretch = ((most - least) / np.maximum(usual, 1e-9))[usual > 0.15]
    points = _sides(joints, spec, "hip", "knee", "ankle", "shoulder", "elbow", "wrist")
    thighs, shins, _, upper_arms, forearms = _apart(points[:-1], points[1:]) / leg
    limbs, hips, shoulders = np.sort([thighs, shins, upper_arms + forearms]), points[0], points[3]
    found = dict(
        arm=limbs[2, 1], trunk=_apart(shoulders.mean(0), hips.mean(0)) / leg, hips=_apart(*hips) / leg,
        shoulders=_apart(*shoulders) / leg, head=usual[spec.joint_names.index("head") - 1], bone=max(usual),
        asymmetry=max(limbs[:, 1] / np.maximum(limbs[:, 0], 1e-9)), stretch=rigid * stretch.max(initial=0))
    for what, (low, high) in PROPORTIONS.items():
        if not low <= found[what] <= high:
            raise UserError(f"no person's proportions: {what} {found[what]:.2f}, expected {low:g} to {high}; "
                            "are the joints in another order? Else give --joint-map")


def _trunk_and_legs(joints, spec):
    """Return the unit directions (T, 3) of the trunk, upwards, and of the legs, downwards."""
    hips, shoulders, ankles = (both.mean(0) for both in _sides(joints, spec, "hip", "shoulder", "ankle"))
    return unit(shoulders - hips), unit(ankles - hips)


def _upright_axis(joints, spec, expected="y"):
    """Return the axis along which a person stands or sits in most frames, or None."""
    trunk, legs = _trunk_and_legs(joints, spec)
    for up in (expected, *AXES):
        least = UPRIGHT if up == expected else UPRIGHT_ELSEWHERE
        if np.mean((turn_up(trunk, up)[:, 1] > least) & (turn_up(legs, up)[:, 1] < -least)) > MOST:
            return up
    return None


def find_up(joints, rest, spec):
    """Return the up axis: y, z, -y or -z. joints: (T, J, 3). rest: (1, J, 3) of the zero pose, or None.

    The motion's axis counts where the zero pose agrees or shows no person. Where they differ, as in a person
    who lies along z or stands on the hands, the floor decides. Raises UserError where it cannot.
    """
    resting = _upright_axis(rest, spec) if rest is not None else None
    expected = resting or "y"
    moving = _upright_axis(joints, spec, expected)
    leg = leg_length(joints, spec)
    lowest = {up: turn_up(joints, up)[..., 1].min(1) / leg for up in AXES}
    # how badly the lowest joints fit a floor at zero
    cost = {up: abs(np.median(low)) + 2 * np.std(low) for up, low in lowest.items()}
    better = min(cost, key=cost.get)
    if not (moving or resting) and cost[better] < 0.5 * CLEARLY * cost["y"]:    # lies, crawls, rolls
        moving = better
    if moving in (None, expected):
        return expected
    opposite = moving[-1] == expected[-1]
    if cost[moving] < CLEARLY * cost[expected] and (opposite or not resting or cost[expected] > 2 * AT_ZERO):
        return moving
    if resting and cost[expected] < CLEARLY * cost[moving] and (opposite or cost[expected] < AT_ZERO):
        return expected
    raise UserError(f"up may be {moving} (by the motion) or {expected} (by the zero pose, or as usual); "
                    f"give --up={moving} or --up={expected}")


def is_mirrored(joints, spec):
    """Return whether knees and toes point backwards, as seen from the sides that the joints' names tell."""
    hip, knee, ankle, foot = _sides(joints, spec, "hip", "knee", "ankle", "foot")
    across = hip[0] - hip[1]
    knees = np.median((unit(knee - hip) * unit(np.cross(across, hip - ankle))).sum(-1))       # cosines
    toes = np.median((unit(foot - ankle) * unit(np.cross(across, knee - ankle))).sum(-1))
    return bool((toes < -0.3 and knees < 0.04) or (knees < -0.04 and toes < 0.1))


def walks_on_fours(joints, spec):
    """Return whether trunk level, legs straight and hands by the feet is the usual posture. joints: y up."""
    leg, (trunk, _) = leg_length(joints, spec), _trunk_and_legs(joints, spec)
    hands, feet, hips = _sides(joints, spec, "wrist", "ankle", "hip")[..., 1].mean(1)
    return bool(np.median(trunk[:, 1]) < 0.6 and np.median(np.abs(hands - feet)) < 0.4 * leg
                and np.median(hips - feet) > 0.6 * leg)


def posture_problems(joints, spec):
    """Return what is wrong with a person's joints (T, J, 3) in metres, y up, a line each."""
    joints = thin_out(joints)
    try:
        check_proportions(joints, spec, rigid=True)
    except UserError as error:
        return [str(error).split(";")[0]]
    trunk, legs = (np.abs(directions[:, 1]) for directions in _trunk_and_legs(joints, spec))
    lowest = float(np.median(joints[..., 1].min(1)))
    problems = (
        (_upright_axis(joints, spec) == "-y", "upside down: the head is below the feet"),
        (np.mean(np.maximum(trunk, legs) < UPRIGHT) > 0.9, "lying on a side throughout: is up another axis?"),
        (is_mirrored(joints, spec), "mirrored: knees and toes point backwards"),
        (lowest > FLOATING, f"floating: the lowest joint is usually at {lowest:.2f} m"),
        (lowest < -FLOATING, f"sunk: the lowest joint is usually at {lowest:.2f} m"))
    return [problem for found, problem in problems if found]
