"""Joints to features and back: HumanML3D's representation (arXiv 2212.04048, `motion_representation.ipynb`).

Extraction is numpy in float64, recovery is torch. T frames, J joints, D features; quaternions (w, x, y, z).
"""
import numpy as np
from scipy.ndimage import gaussian_filter1d

from utils.motion_spec import SPECS, get_spec

UP, FORWARD = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
HEADING_SIGMA = 20  # frames over which the heading is smoothed
INVERSE = np.array([1, -1, -1, -1])  # times a unit quaternion


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
    right_hip, left_hip, right_shoulder, left_shoulder = joints[:1, spec.face_joints].swapaxes(0, 1)
    across = right_hip - left_hip + right_shoulder - left_shoulder
    joints = turn(between(np.cross(UP, across), FORWARD)[:, None], joints)      # face +z
    step = np.diff(joints, axis=0)                                              # (T-1, J, 3)
    contacts = np.square(step[:, spec.feet]).sum(-1) < spec.contact_threshold   # (T-1, 4)
    heading, rotations = inverse_kinematics(joints, spec)
    root_step = turn(heading[1:], step[:, 0])
    # w of the heading is never negative: the step across facing back gets the wrong sign, as published
    yaw_step = np.arcsin(np.clip(multiply(heading[1:], heading[:-1] * INVERSE)[:, 2:3], -1, 1))
    local = turn(heading[:, None], joints - joints[:, :1] * (1, 0, 1))
    parts = (yaw_step, root_step[:, [0, 2]], local[:-1, 0, 1:2], local[:-1, 1:], to_6d(rotations[:-1]),
             turn(heading[:-1, None], step), contacts)
    return np.concatenate([part.reshape(len(step), -1) for part in parts], 1).astype(np.float32)


def retarget(joints, spec):
    """Return a clip (T, J, 3) with the data set's bone lengths. Every bone keeps its direction.

    The root moves by the ratio of the leg lengths in the first frame.
    """
    bones, target, leg = _bones(joints, spec), np.array(spec.bone_lengths), list(spec.leg)
    length = _length(bones)                             # (T, J, 1)
    bones = bones / np.maximum(length, 1e-12) * target[:, None]
    result = joints * (target[leg].sum() / length[0, leg].sum())
    for parent, child in (pair for chain in spec.chains for pair in zip(chain, chain[1:])):
        result[:, child] = result[:, parent] + bones[:, child]
    return result


def inverse_kinematics(joints, spec):
    """Return the heading (T, 4) and each joint's rotation (T, J - 1, 4) to its parent, as quaternions.

    The smoothed heading turns the body to face +z; every chain starts from it, the arms' too.
    """
    right_hip, left_hip, right_shoulder, left_shoulder = (joints[:, joint] for joint in spec.face_joints)
    # the hips are swapped against the shoulders here, and only here: the published features were made so
    across = left_hip - right_hip + right_shoulder - left_shoulder
    forward = np.cross(UP, across / np.maximum(_length(across), 1e-12))
    heading = between(gaussian_filter1d(forward, HEADING_SIGMA, axis=0, mode="nearest"), FORWARD)
    heading[0] = (1, 0, 0, 0)
    turned = between(np.array(spec.raw_offsets, np.float64), _bones(joints, spec))  # (T, J, 4): rest → bone
    turned[:, 0] = heading
    chained = {child: parent for chain in spec.chains for parent, child in zip(chain[1:], chain[2:])}
    before = [chained.get(joint, 0) for joint in range(spec.joints)]
    return heading, multiply(turned[:, before] * INVERSE, turned)[:, 1:]


def _bones(joints, spec):
    """(T, J, 3) vectors from each joint's parent to it; the root's is zero."""
    return joints - joints[:, np.maximum(spec.parents, 0)]


def between(u, v):
    """Return the shortest rotation from directions u to v, (…, 3) each, as unit quaternions (…, 4)."""
    u, v = np.broadcast_arrays(*(a / np.maximum(_length(a), 1e-12) for a in (u, v)))
    q = np.concatenate([1 + (u * v).sum(-1, keepdims=True), np.cross(u, v)], -1)
    opposite = q[..., 0] < 1e-9     # half a turn: about an axis across u
    across = np.cross(u[opposite], np.where(np.abs(u[opposite, :1]) < 0.9, (1.0, 0, 0), (0, 1.0, 0)))
    q[opposite] = np.insert(across, 0, 0, -1)
    return q / _length(q)


def _length(v):
    """(…, n) → (…, 1); several times faster than numpy's norm over a short axis."""
    return np.sqrt(np.einsum("...i,...i->...", v, v))[..., None]


def multiply(p, q):
    """Return the quaternion product p q, (…, 4) each."""
    a, x, y, z = (p[..., i] for i in range(4))
    b, u, v, w = (q[..., i] for i in range(4))
    return np.stack([a * b - x * u - y * v - z * w, a * u + x * b + y * w - z * v,
                     a * v - x * w + y * b + z * u, a * w + x * v - y * u + z * b], -1)


def turn(q, v):
    """Rotate vectors v (…, 3) by unit quaternions q (…, 4) about y, whose x and z are zero."""
    cos, sin = np.square(q[..., 0]) - np.square(q[..., 2]), 2 * q[..., 0] * q[..., 2]
    x, y, z = (v[..., i] for i in range(3))
    return np.stack(np.broadcast_arrays(cos * x + sin * z, y, cos * z - sin * x), -1)


def to_6d(q):
    """Return the first two columns of the rotation matrices of unit quaternions (…, 4), as (…, 6)."""
    w, x, y, z = (q[..., i] for i in range(4))
    return np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),
                     2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], -1)


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
    """Return std (D,) with root and contact entries divided by `bias` (MoMask's feat_bias).

    Normalised by it, these few features weigh as much more in every loss. The evaluator's std has such a bias
    already and stays as it is.
    """
    if describe_statistics(std) == "evaluator":
        return std
    std = std.copy()
    for name in ("yaw", "root_xz", "height", "contacts"):
        std[spec.slices[name]] /= bias
    return std


def recover_root(data):
    """Return cosine and sine of half the heading (…, T), and root positions (…, T, 3), of features (…, T, D).

    The features are de-normalised. Source: HumanML3D `recover_root_rot_pos`.
    """
    import torch  # here, for extraction does without
    yaw_step, step_x, step_z = torch.nn.functional.pad(data[..., :-1, :3], (0, 0, 1, 0)).unbind(-1)
    yaw = yaw_step.cumsum(-1)
    cos, sin = yaw.cos(), yaw.sin()
    x, z = _unturn(cos, sin, step_x, step_z)
    return cos, sin, torch.stack([x.cumsum(-1), data[..., 3], z.cumsum(-1)], -1)


def _unturn(cos, sin, x, z):
    """Rotate ground-plane vectors by the inverse of the quaternion (cos, 0, sin, 0)."""
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    return cos2 * x - sin2 * z, sin2 * x + cos2 * z


def recover_from_ric(data, joints_num):
    """Return joint positions (…, T, joints_num, 3) of features (…, T, D), in the data set's unit.

    The features are de-normalised; joints_num: 22 or 21. Source: HumanML3D `recover_from_ric`.
    """
    import torch
    spec = get_spec({22: "t2m", 21: "kit"}[joints_num])
    cos, sin, root = recover_root(data)
    local = data[..., spec.slices["positions"]].unflatten(-1, (joints_num - 1, 3))
    x, z = _unturn(cos[..., None], sin[..., None], local[..., 0], local[..., 2])
    joints = torch.stack([x + root[..., None, 0], local[..., 1], z + root[..., None, 2]], -1)
    return torch.cat([root[..., None, :], joints], -2)


def normalisation_problem(normalised, shift=0.5, factor=2.0):
    """Say how normalised frames (F, D) miss mean 0 and std 1, or return None where they do not.

    More than a quarter of the entries must be off: the mean by more than `shift`, or the average std of the
    feature group outside [1 / factor, factor].
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
