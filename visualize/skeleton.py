"""Facts of a skeleton in motion: bones, size, unit, foot contacts, distance to another motion."""
import numpy as np

from utils.errors import UserError


def bones(spec):
    """Return (child, parent) pairs, parents before their children."""
    return [(child, parent) for chain in spec.chains for parent, child in zip(chain, chain[1:])]


def body_height(joints, spec):
    """Return the height of joints (T, J, 3) in their unit: leg and spine bones end to end, median over T."""
    length = np.zeros(joints.shape[:2])
    for child, parent in bones(spec):
        length[:, child] = length[:, parent] + np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
    leg = length[:, list(spec.feet)].max(1)
    head = length[:, [chain[-1] for chain in spec.chains if chain[0] == 0]].max(1)
    return float(np.median(leg + head)) * 0.9  # the foot lies flat and the hips go sideways


def floor_height(joints, height):
    """Return the y of the floor that joints (T, J, 3) of a body's `height` stand on: 0 if it may be."""
    lowest = float(joints[..., 1].min())
    return 0.0 if abs(lowest) < 0.25 * height else lowest


def unit_in_metres(joints, spec):
    """Return 1.0 for joints in metres, 0.001 for millimetres (KIT-ML): no skeleton is 20 m tall."""
    return 0.001 if body_height(joints, spec) > 20 else 1.0


def foot_contacts(joints, spec):
    """Return whether each foot joint stands, by HumanML3D's rule: (T, 4) bool, the left ones first."""
    if len(joints) < 2:
        return np.zeros((len(joints), 4), bool)
    step = np.square(np.diff(joints[:, list(spec.feet)], axis=0)).sum(-1)
    return np.concatenate([step, step[-1:]]) < spec.contact_threshold


def check_joints(joints, spec, name="joints", frames=None):
    """Return joints as finite float64 (T, J, 3), T = `frames` if given; raise UserError for others."""
    joints = np.asarray(joints, dtype=np.float64)
    length = len(joints) if joints.ndim else 0
    if not length or joints.shape != (frames or length, spec.joints, 3):
        expected = f"({frames or 'frames'}, {spec.joints}, 3)"
        raise UserError(f"{name} have shape {joints.shape}; {spec.name} wants {expected}")
    bad = np.flatnonzero(~np.isfinite(joints).all((1, 2)))
    if len(bad):
        raise UserError(f"{name} hold NaN or Inf in {len(bad)} of {length} frames, first in {bad[0]}")
    return joints


def frame_error(joints, reference):
    """Return root-aligned and global MPJPE of each frame in mm, (T,) each, of joints in metres."""
    difference = joints - reference
    return [1000 * np.linalg.norm(d, axis=-1).mean(1) for d in (difference - difference[:, :1], difference)]
