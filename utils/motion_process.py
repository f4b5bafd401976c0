"""Joints to features and back: HumanML3D's representation (arXiv 2212.04048, `motion_representation.ipynb`).

Extraction is numpy in float64, recovery is torch. T frames, J joints, D features; quaternions are (w, x, y, z).
"""
import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from utils.motion_spec import SPECS, get_spec

UP, FORWARD = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
HEADING_SIGMA = 20  # frames over which the heading is smoothed


# joints to features

def extract_features(joints, dataname, bone_lengths=None):
    """Joint positions → HumanML3D features.

    joints: (T, J, 3) array, y up, in the data set's unit (t2m: metres, kit: millimetres; the contact threshold is in it), at its frame
    rate, T ≥ 2. bone_lengths: (J,) lengths of the skeleton to retarget to; None takes the data set's, and where it has none (kit) the
    clip keeps its own.
    Returns (T - 1, D) float32, D = 263 (t2m) or 251 (kit): root 4, local positions, 6-D rotations, velocities, contacts.
    Raises ValueError for any other shape.
    """
    spec = get_spec(dataname)
    joints = np.asarray(joints, np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (spec.joints, 3) or len(joints) < 2:
        raise ValueError(f"joints have shape {joints.shape}, expected (T, {spec.joints}, 3) with T of at least 2")
    bone_lengths = spec.bone_lengths if bone_lengths is None else bone_lengths
    if bone_lengths is not None:
        joints = retarget(joints, spec, np.asarray(bone_lengths))
    joints = joints - UP * joints[..., 1].min()                                        # stand on the floor
    joints = joints - joints[0, 0] * (1, 0, 1)                                         # start at the origin
    right_hip, left_hip, right_shoulder, left_shoulder = spec.face_joints
    across = joints[:1, right_hip] - joints[:1, left_hip] + joints[:1, right_shoulder] - joints[:1, left_shoulder]
    joints = turn(between(np.cross(UP, across), FORWARD)[:, None], joints)           # face +z
    step = np.diff(joints, axis=0)                                                     # (T-1, J, 3)
    contacts = np.square(step[:, spec.feet]).sum(-1) < spec.contact_threshold          # (T-1, 4)
    heading, rotations = inverse_kinematics(joints, spec, smooth=True)
    root_step = turn(heading[1:], step[:, 0])
    # w of the heading is never negative, so the one step across facing straight back gets the wrong sign; kept, as published
    yaw_step = np.arcsin(np.clip(multiply(heading[1:], invert(heading[:-1]))[:, 2:3], -1, 1))
    local = turn(heading[:, None], joints - joints[:, :1] * (1, 0, 1))
    velocities = turn(heading[:-1, None], step)
    parts = (yaw_step, root_step[:, [0, 2]], local[:-1, 0, 1:2], local[:-1, 1:], to_6d(rotations[:-1]), velocities, contacts)
    return np.concatenate([part.reshape(len(step), -1) for part in parts], 1).astype(np.float32)


def retarget(joints, spec, bone_lengths):
    """Give a clip (T, J, 3) other bone lengths (J,): every bone keeps its direction, the root moves by the ratio of the leg lengths.

    The ratio is taken from the first frame. What HumanML3D does by inverse, then forward kinematics.
    """
    bones = _bones(joints, spec)
    length = _length(bones)                             # (T, J, 1)
    leg = list(spec.leg)
    bones = bones / np.maximum(length, 1e-12) * bone_lengths[:, None]
    result = joints * (bone_lengths[leg].sum() / length[0, leg].sum())
    for chain in spec.chains:
        for parent, child in zip(chain, chain[1:]):
            result[:, child] = result[:, parent] + bones[:, child]
    return result


def inverse_kinematics(joints, spec, smooth):
    """Heading (T, 4) and each joint's rotation relative to the joint before it in its chain, (T, J - 1, 4), as quaternions.

    The heading turns the body to face +z; the first frame's is the identity. Every chain starts from the heading, the arms' too.
    """
    right_hip, left_hip, right_shoulder, left_shoulder = spec.face_joints
    # the hips are swapped against the shoulders here, and only here: the published features were made so
    across = joints[:, left_hip] - joints[:, right_hip] + joints[:, right_shoulder] - joints[:, left_shoulder]
    forward = np.cross(UP, across / np.maximum(_length(across), 1e-12))
    if smooth:
        forward = gaussian_filter1d(forward, HEADING_SIGMA, axis=0, mode="nearest")
    heading = between(forward, FORWARD)
    heading[0] = (1, 0, 0, 0)
    turned = between(np.array(spec.raw_offsets, np.float64), _bones(joints, spec))     # (T, J, 4): rest direction → bone
    turned[:, 0] = heading
    before = [0] * spec.joints
    for chain in spec.chains:
        for parent, child in zip(chain[1:], chain[2:]):
            before[child] = parent
    return heading, multiply(invert(turned[:, before]), turned)[:, 1:]


def _bones(joints, spec):
    """(T, J, 3) vectors from each joint's parent to it; the root's is zero."""
    return joints - joints[:, np.maximum(spec.parents, 0)]


def between(u, v):
    """The shortest rotation from directions u to v, (…, 3) each, of any length, as quaternions (…, 4). Half a turn goes about an axis across u."""
    u, v = np.broadcast_arrays(*(a / np.maximum(_length(a), 1e-12) for a in (u, v)))
    (a, b, c), (x, y, z) = (tuple(m[..., i] for i in range(3)) for m in (u, v))
    q = np.stack([1 + a * x + b * y + c * z, b * z - c * y, c * x - a * z, a * y - b * x], -1)
    opposite = q[..., 0] < 1e-9
    if opposite.any():
        axis = np.cross(u[opposite], np.where(np.abs(u[opposite, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]]))
        q[opposite] = np.concatenate([np.zeros_like(axis[:, :1]), axis], -1)
    return q / _length(q)


def _length(v):
    """(…, n) → (…, 1); several times faster than numpy's norm over a short axis."""
    return np.sqrt(np.einsum("...i,...i->...", v, v))[..., None]


def multiply(p, q):
    """Quaternion product p q, (…, 4) each."""
    a, b = p[..., 0], q[..., 0]
    x, y, z = (p[..., i] for i in (1, 2, 3))
    u, v, w = (q[..., i] for i in (1, 2, 3))
    return np.stack([a * b - x * u - y * v - z * w, a * u + x * b + y * w - z * v, a * v - x * w + y * b + z * u, a * w + x * v - y * u + z * b], -1)


def invert(q):
    """Inverse of unit quaternions (…, 4)."""
    return q * (1, -1, -1, -1)


def turn(q, v):
    """Vectors v (…, 3) turned by unit quaternions q (…, 4) about y, whose x and z are zero."""
    cos, sin = np.square(q[..., 0]) - np.square(q[..., 2]), 2 * q[..., 0] * q[..., 2]
    return np.stack([cos * v[..., 0] + sin * v[..., 2], np.broadcast_to(v[..., 1], np.broadcast_shapes(cos.shape, v.shape[:-1])),
                     cos * v[..., 2] - sin * v[..., 0]], -1)


def to_6d(q):
    """The first two columns of the rotation matrices of unit quaternions (…, 4), one after the other: (…, 6)."""
    w, x, y, z = (q[..., i] for i in range(4))
    return np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),
                     2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], -1)


def mirror(joints, spec):
    """The left-right mirrored clip (T, J, 3): x negated, left and right joints swapped by their names."""
    names = spec.joint_names
    other = [names.index(name.replace("left", "\0").replace("right", "left").replace("\0", "right")) for name in names]
    return joints[:, other] * (-1, 1, 1)


def group_statistics(clips, spec):
    """Mean per feature and std averaged within each feature group, as published: clips of (T, D), one after the other → (D,) float32 each.

    clips: an array (F, D) or an iterable of arrays, of which one at a time is held. A group that never changes (contacts of feet that never
    rest) gets a std of 1: it can be divided by. Raises ValueError when there is no frame.
    """
    count, mean, square = 0, np.zeros(spec.width), np.zeros(spec.width)
    for clip in (clips,) if isinstance(clips, np.ndarray) else clips:
        if len(clip) == 0:
            continue
        clip = np.asarray(clip, np.float64)
        own, share = clip.mean(0), len(clip) / (count + len(clip))
        square += np.square(clip - own).sum(0) + np.square(own - mean) * count * share  # pairwise: no large sums are subtracted
        mean += (own - mean) * share
        count += len(clip)
    if not count:
        raise ValueError("no frame to take statistics of")
    std = np.sqrt(square / count)
    for part in spec.slices.values():
        std[part] = std[part].mean()
    std[std < 1e-8] = 1
    return mean.astype(np.float32), std.astype(np.float32)


def describe_statistics(std):
    """Which of the two published kinds a std is: the evaluator's has root and contact entries 25 times smaller.

    The contacts' entry tells: a share of contact frames has a std of about 0.3 to 0.5, and a 25th of it in the evaluator's file.
    """
    return "evaluator" if std[-4:].max() < 0.06 else "data set"


# features to joints


def _spec_of(joints_num):
    for spec in SPECS.values():
        if spec.joints == joints_num:
            return spec
    raise ValueError(f"joints_num is {joints_num}; features are defined for 22 (t2m) and 21 (kit) joints")


def recover_root(data):
    """Heading and root path from the four root features.

    data: (…, T, D) float features, de-normalised. Returns the half-angle cosine and sine of each frame's heading about y, (…, T) each,
    and the root position (…, T, 3). Source: HumanML3D `recover_root_rot_pos`.
    """
    yaw_velocity = torch.zeros_like(data[..., 0])
    yaw_velocity[..., 1:] = data[..., :-1, 0]
    yaw = yaw_velocity.cumsum(-1)
    cos, sin = yaw.cos(), yaw.sin()
    step_x, step_z = torch.zeros_like(yaw), torch.zeros_like(yaw)
    step_x[..., 1:], step_z[..., 1:] = data[..., :-1, 1], data[..., :-1, 2]
    x, z = _unturn(cos, sin, step_x, step_z)
    return cos, sin, torch.stack([x.cumsum(-1), data[..., 3], z.cumsum(-1)], -1)


def _unturn(cos, sin, x, z):
    """Rotate ground-plane vectors by the inverse of the quaternion (cos, 0, sin, 0)."""
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    return cos2 * x - sin2 * z, sin2 * x + cos2 * z


def recover_from_ric(data, joints_num):
    """Global joint positions from features: heading and root path integrated, local positions turned and moved along.

    data: (…, T, D) float features, de-normalised. Returns (…, T, joints_num, 3) in the data set's unit (t2m: metres, kit: millimetres).
    Source: HumanML3D `recover_from_ric`.
    """
    cos, sin, root = recover_root(data)
    local = data[..., _spec_of(joints_num).slices["positions"]].unflatten(-1, (joints_num - 1, 3))
    x, z = _unturn(cos[..., None], sin[..., None], local[..., 0], local[..., 2])
    joints = torch.stack([x + root[..., None, 0], local[..., 1], z + root[..., None, 2]], -1)
    return torch.cat([root[..., None, :], joints], -2)


def recover_from_rot(data, joints_num, bone_lengths=None):
    """Global joint positions from the rotations: forward kinematics along the chains.

    data: (…, T, D) float features, de-normalised. bone_lengths: (J,); None takes the data set's (t2m; kit has none and needs them).
    Returns (…, T, joints_num, 3). Raises ValueError without bone lengths. Source: HumanML3D `recover_from_rot`.
    """
    spec = _spec_of(joints_num)
    bone_lengths = spec.bone_lengths if bone_lengths is None else bone_lengths
    if bone_lengths is None:
        raise ValueError(f"{spec.name} has no bone lengths of its own: give bone_lengths, ({joints_num},) in the features' unit")
    offsets = torch.as_tensor(np.array(spec.raw_offsets) * np.asarray(bone_lengths)[:, None], dtype=data.dtype, device=data.device)
    cos, sin, root = recover_root(data)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    heading = torch.stack([cos2, zero, sin2, zero, one, zero, -sin2, zero, cos2], -1).unflatten(-1, (3, 3))
    local = _from_6d(data[..., spec.slices["rotations"]].unflatten(-1, (joints_num - 1, 6)))
    joints = [root] + [None] * (joints_num - 1)
    for chain in spec.chains:
        turn = heading
        for parent, child in zip(chain, chain[1:]):
            turn = turn @ local[..., child - 1, :, :]
            joints[child] = joints[parent] + turn @ offsets[child]
    return torch.stack(joints, -2)


def _from_6d(columns):
    """Rotation matrices (…, 3, 3) from their first two columns (…, 6), made orthonormal."""
    x = torch.nn.functional.normalize(columns[..., :3], dim=-1)
    z = torch.nn.functional.normalize(torch.cross(x, columns[..., 3:], dim=-1), dim=-1)
    return torch.stack([x, torch.cross(z, x, dim=-1), z], -1)


def normalisation_problem(normalised, shift=0.5, factor=2.0):
    """Say how normalised frames miss mean 0 and std 1, or return None where they do not.

    normalised: (F, D). An entry is off when its mean lies more than `shift` from 0, or the average std of
    its feature group, which is what the published Std.npy holds, outside [1 / factor, factor]. More than a
    quarter of the entries off is a problem; the text names the worst one. One clip needs a wider `shift`.
    """
    normalised = np.asarray(normalised, np.float64)
    mean, std = normalised.mean(0), normalised.std(0)
    spec = next((spec for spec in SPECS.values() if spec.width == len(mean)), None)
    for part in spec.slices.values() if spec else ():
        std[part] = std[part].mean()
    miss = np.maximum(np.abs(mean) / shift, np.abs(np.log(np.maximum(std, 1e-12))) / np.log(factor))
    off, worst = int((miss > 1).sum()), int(miss.argmax())
    if off <= miss.size / 4:
        return None
    return (f"{off} of {miss.size} entries do not look normalised; the worst, entry {worst}, "
            f"has mean {mean[worst]:.3g} and std {std[worst]:.3g} instead of 0 and 1")
