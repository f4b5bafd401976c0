"""Joints to features and back: HumanML3D's representation (arXiv 2212.04048, `motion_representation.ipynb`).

Extraction is numpy in float64, recovery is torch. T frames, J joints, D features; angles in radians about y.
"""
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from utils.motion_spec import SPECS, get_spec

UP = np.array([0.0, 1.0, 0.0])
HEADING_SIGMA = 20  # frames over which the heading is smoothed


def extract_features(joints, dataname):
    """Return the features (T - 1, D) float32 of joint positions (T, J, 3), D = 263 (t2m) or 251 (kit).

    joints: y up, in the data set's unit (t2m: metres, kit: millimetres) and at its frame rate, T ≥ 2.
    Features: root, local positions, rotations, velocities, contacts.
    """
    spec = get_spec(dataname)
    joints = np.asarray(joints, np.float64)
    if spec.bone_lengths:
        joints = retarget(joints, spec)
    joints = joints - UP * joints[..., 1].min()                                 # stand on the floor
    joints = joints - joints[0, 0] * (1, 0, 1)                                  # start at the origin
    right_hip, left_hip, right_shoulder, left_shoulder = joints[0, list(spec.face_joints)]
    across = right_hip - left_hip + right_shoulder - left_shoulder
    joints = turn(to_front(np.cross(UP, across)), joints)                       # face +z
    step = np.diff(joints, axis=0)                                              # (T-1, J, 3)
    contacts = np.square(step[:, spec.feet]).sum(-1) < spec.contact_threshold   # (T-1, 4)
    heading, rotations = inverse_kinematics(joints, spec)
    root_step = turn(heading[1:], step[:, 0])
    # half the angle: the step across facing straight back gets the wrong sign, as published
    yaw_step = np.arcsin(np.sin(np.diff(heading) / 2))
    local = turn(heading[:, None], joints - joints[:, :1] * (1, 0, 1))
    columns = rotations[:-1, :, :, :2].swapaxes(-1, -2)                         # the first two of each matrix
    parts = (yaw_step, root_step[:, [0, 2]], local[:-1, 0, 1], local[:-1, 1:], columns,
             turn(heading[:-1, None], step), contacts)
    return np.concatenate([part.reshape(len(step), -1) for part in parts], 1).astype(np.float32)


def retarget(joints, spec):
    """Return a clip (T, J, 3) with the data set's bone lengths. Every bone keeps its direction.

    The root moves by the ratio of the leg lengths in the first frame.
    """
    bones, target, leg = _bones(joints, spec), np.array(spec.bone_lengths), list(spec.leg)
    result = joints * (target[leg].sum() / np.linalg.norm(bones[0, leg], axis=-1).sum())
    bones = unit(bones) * target[:, None]
    for parent, child in (pair for chain in spec.chains for pair in zip(chain, chain[1:])):
        result[:, child] = result[:, parent] + bones[:, child]
    return result


def inverse_kinematics(joints, spec):
    """Return the angle (T,) that turns the body to face +z, smoothed, and rotations (T, J - 1, 3, 3).

    A joint's rotation is relative to its parent's; every chain starts from the heading, the arms' too.
    """
    right_hip, left_hip, right_shoulder, left_shoulder = (joints[:, joint] for joint in spec.face_joints)
    # the hips are swapped against the shoulders here, and only here: the published features were made so
    across = left_hip - right_hip + right_shoulder - left_shoulder
    forward = np.cross(UP, unit(across))
    heading = to_front(gaussian_filter1d(forward, HEADING_SIGMA, axis=0, mode="nearest"))
    heading[0] = 0
    turned = between(np.array(spec.raw_offsets), _bones(joints, spec))  # (T, J, 3, 3): rest → bone
    turned[:, 0] = Rotation.from_euler("y", heading[:, None]).as_matrix()
    chained = {child: parent for chain in spec.chains for parent, child in zip(chain[1:], chain[2:])}
    before = [chained.get(joint, 0) for joint in range(spec.joints)]
    return heading, (turned[:, before].swapaxes(-1, -2) @ turned)[:, 1:]


def _bones(joints, spec):
    """(T, J, 3) vectors from each joint's parent to it; the root's is zero."""
    return joints - joints[:, np.maximum(spec.parents, 0)]


def unit(v):
    """Return vectors (…, 3) at length 1; zero stays zero."""
    # several times faster than numpy's norm over a short axis
    return v / np.maximum(np.sqrt(np.einsum("...i,...i->...", v, v)), 1e-12)[..., None]


def between(u, v):
    """Return the shortest rotation from directions u to v, (…, 3) each, as matrices (…, 3, 3)."""
    u, v = np.broadcast_arrays(unit(u), unit(v))
    quaternion = np.concatenate([np.cross(u, v), 1 + (u * v).sum(-1, keepdims=True)], -1)
    opposite = quaternion[..., 3] < 1e-9     # half a turn: about an axis across u
    across = np.cross(u[opposite], np.where(np.abs(u[opposite, :1]) < 0.9, (1.0, 0, 0), (0, 1.0, 0)))
    quaternion[opposite] = np.insert(across, 3, 0, -1)
    return Rotation.from_quat(quaternion.reshape(-1, 4)).as_matrix().reshape(*u.shape, 3)


def to_front(forward):
    """Return the angles (…) that turn directions (…, 3) to +z."""
    return -np.arctan2(forward[..., 0], forward[..., 2])


def turn(angle, v):
    """Rotate vectors (…, 3) by angles (…) about y."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = (v[..., i] for i in range(3))
    return np.stack(np.broadcast_arrays(cos * x + sin * z, y, cos * z - sin * x), -1)


def swap_sides(joints, spec):
    """Exchange the left joints of a clip (T, J, 3) with the right ones."""
    swap, parts = {"left": "right", "right": "left"}, [name.split("_") for name in spec.joint_names]
    return joints[:, [parts.index([swap.get(side, side), *rest]) for side, *rest in parts]]


def mirror(joints, spec):
    """Return the left-right mirrored clip (T, J, 3): x negated, left and right joints swapped."""
    return swap_sides(joints, spec) * (-1, 1, 1)


def group_statistics(clips, spec):
    """Return mean and std, (D,) float32 each, of clips (T, D). The std is averaged within a feature group.

    clips: an array (F, D) or an iterable of arrays, read once. A group that never changes gets a std of 1.
    Raises ValueError when there is no frame.
    """
    count, total, square, origin = 0, 0, 0, None
    for clip in filter(len, (clips,) if isinstance(clips, np.ndarray) else clips):
        origin = np.asarray(clip[0], np.float64) if origin is None else origin
        count += len(clip)
        total += (clip - origin).sum(0)
        square += np.square(clip - origin).sum(0)  # from the first frame: no large sums
    if not count:
        raise ValueError("no frame to take statistics of")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean ** 2, 0))
    for part in spec.slices.values():
        std[part] = std[part].mean()
    std[std < 1e-8] = 1
    return (origin + mean).astype(np.float32), std.astype(np.float32)


def describe_statistics(std):
    """Return which published variant a std (D,) is: "evaluator", "data set", or "unknown"."""
    contacts = np.max(std[-4:])     # a data set's: 0.3 to 0.5, 1 where they never change; 25 times smaller
    if 0.06 <= contacts <= 1:
        return "data set"
    return "evaluator" if 0.002 <= contacts < 0.06 else "unknown"


def weigh_root_and_contacts(std, spec, bias):
    """Return std (D,) with root and contact entries divided by `bias` (MoMask's feat_bias)."""
    if describe_statistics(std) == "evaluator":  # has such a bias already
        return std
    std = std.copy()
    for name in ("yaw", "root_xz", "height", "contacts"):
        std[spec.slices[name]] /= bias
    return std


def recover_from_ric(data, joints_num):
    """Return joint positions (…, T, joints_num, 3) of features (…, T, D), in the data set's unit.

    The features are de-normalised; joints_num: 22 or 21. Source: HumanML3D `recover_from_ric`.
    """
    import torch  # here, for extraction does without
    spec = get_spec({22: "t2m", 21: "kit"}[joints_num])
    yaw_step, step_x, step_z = torch.nn.functional.pad(data[..., :-1, :3], (0, 0, 1, 0)).unbind(-1)
    angle = 2 * yaw_step.cumsum(-1)
    x, z = _unturn(angle, step_x, step_z)
    root = torch.stack([x.cumsum(-1), data[..., 3], z.cumsum(-1)], -1)[..., None, :]
    local = data[..., spec.slices["positions"]].unflatten(-1, (joints_num - 1, 3))
    x, z = _unturn(angle[..., None], local[..., 0], local[..., 2])
    joints = torch.stack([x + root[..., 0], local[..., 1], z + root[..., 2]], -1)
    return torch.cat([root, joints], -2)


def _unturn(angle, x, z):
    """Rotate ground-plane vectors by -angle about y."""
    cos, sin = angle.cos(), angle.sin()
    return cos * x - sin * z, sin * x + cos * z


def normalisation_problem(normalised, shift=0.5, factor=2.0):
    """Say how normalised frames (F, D) miss mean 0 and std 1, or return None where they do not.

    More than a quarter must be off: means by over `shift`, or group stds outside [1 / factor, factor].
    """
    normalised = np.asarray(normalised, np.float64)
    mean, std = normalised.mean(0), normalised.std(0)
    for part in next(spec for spec in SPECS.values() if spec.width == len(mean)).slices.values():
        std[part] = std[part].mean()
    miss = np.maximum(np.abs(mean) / shift, np.abs(np.log(np.maximum(std, 1e-12))) / np.log(factor))
    off, worst = int((miss > 1).sum()), int(miss.argmax())
    if off <= miss.size / 4:
        return None
    return (f"{off} of {miss.size} entries do not look normalised; the worst, entry {worst}, "
            f"has mean {mean[worst]:.3g} and std {std[worst]:.3g} instead of 0 and 1")
