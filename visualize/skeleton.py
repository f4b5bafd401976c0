"""What drawing, the player and the export know of a skeleton: its bones, its size and unit, its feet on the floor, its distance to another."""
import numpy as np

from utils.errors import UserError


def skeleton_height(joints, spec):
    """Leg and spine bones end to end, in the unit of joints (T, J, 3): the median over the clip of the longest chains up and down."""
    length = np.zeros(joints.shape[:2])
    for child, parent in bones(spec):   # parents come first
        length[:, child] = length[:, parent] + np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
    leg = length[:, list(spec.feet)].max(1)
    head = length[:, [chain[-1] for chain in spec.chains if chain[0] == 0]].max(1)
    return float(np.median(leg + head)) * 0.9   # the foot lies flat and the hips go sideways


def unit_in_metres(joints, spec):
    """1.0 for joints in metres, 0.001 for millimetres (KIT-ML): no skeleton is 20 m tall."""
    return 0.001 if skeleton_height(joints, spec) > 20 else 1.0


def foot_contacts(joints, spec):
    """(T, 4) bool: squared displacement of each foot joint to the next frame below the data set's threshold; the last frame repeats.

    Order: left ankle, left toe, right ankle, right toe. The same rule as the contact features (HumanML3D), in the data's unit.
    """
    if len(joints) < 2:
        return np.zeros((len(joints), 4), bool)
    step = np.square(np.diff(joints[:, list(spec.feet)], axis=0)).sum(-1) < spec.contact_threshold
    return np.concatenate([step, step[-1:]])


def check_joints(joints, spec, name="joints"):
    """joints as a finite float64 array (T, J, 3) with T at least 1. Raises UserError, which names the first bad frame."""
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (spec.joints, 3) or len(joints) == 0:
        raise UserError(f"{name} have shape {joints.shape}; {spec.name} wants (frames, {spec.joints}, 3) with at least one frame")
    bad = np.flatnonzero(~np.isfinite(joints).all((1, 2)))
    if len(bad):
        raise UserError(f"{name} hold NaN or infinity in {len(bad)} of {len(joints)} frames, first in frame {bad[0]}: cannot be drawn")
    return joints


def bones(spec):
    """(child, parent) pairs, parents before their children."""
    return [(child, parent) for chain in spec.chains for parent, child in zip(chain, chain[1:])]


def frame_error(joints, reference):
    """Root-aligned and global MPJPE of each frame in mm, (T,) each, from metres."""
    difference = joints - reference
    return [1000 * np.linalg.norm(d, axis=-1).mean(1) for d in (difference - difference[:, :1], difference)]
