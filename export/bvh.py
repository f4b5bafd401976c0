"""Joints out to animation tools: inverse kinematics onto one clean skeleton, written as BVH."""
import warnings

import numpy as np
from scipy.spatial.transform import Rotation

from utils.files import atomic_write
from utils.motion_process import between, unit
from visualize.skeleton import bones, check_joints, unit_in_metres

CM = 100.0          # BVH has no unit; centimetres are what most tools expect
END_SITE = 0.05     # metres: a leaf's tip, so that it has a bone to show
ANGLES = "Zrotation Xrotation Yrotation"


def solve_skeleton(joints, spec):
    """Solve the inverse kinematics of joints (T, J, 3), metres or millimetres, y up. All in float64 metres.

    Returns offsets (J, 3) in a T-pose that faces +z, of median length; local rotations (T, J, 3, 3); and the
    forward kinematics (T, J, 3) of both. A bone takes the smallest rotation towards where its joint was, a
    group of bones the best fit. Raises UserError for joints that are not finite.
    """
    joints = check_joints(joints, spec)
    joints = joints * unit_in_metres(joints, spec)
    vectors = joints - joints[:, np.maximum(spec.parents, 0)]             # from each parent
    lengths = np.median(np.linalg.norm(vectors, axis=-1), axis=0)
    offsets = np.array([_rest_direction(name) for name in spec.joint_names]) * lengths[:, None]
    rotations = np.tile(np.eye(3), (len(joints), spec.joints, 1, 1))
    turned, cleaned = {-1: rotations[:, 0].copy()}, joints.copy()         # turned: global rotations (T, 3, 3)
    for joint in [0] + [child for child, _ in bones(spec)]:               # parents come first
        before, group = turned[spec.parents[joint]], _children(joint, spec)
        aims = np.einsum("tji,tcj->tci", before, joints[:, group] - cleaned[:, [joint]])
        if len(group) == 1:
            rotations[:, joint] = between(offsets[group[0]], aims[:, 0])
        elif group:
            names = [spec.joint_names[child] for child in group]
            offsets[group] = _group_shape(vectors[:, group], names, lengths[group])
            rotations[:, joint] = _best_rotation(offsets[group], aims)
        turned[joint] = before @ rotations[:, joint]
        cleaned[:, group] = cleaned[:, [joint]] + np.einsum("tij,cj->tci", turned[joint], offsets[group])
    return offsets, rotations, cleaned


def write_bvh(path, joints, spec):
    """Write joints (T, J, 3), metres or millimetres, as BVH in centimetres, y up, rotations about Z, X, Y.

    Returns the joints that the file holds, (T, J, 3) in metres. Raises UserError for joints not finite.
    """
    offsets, rotations, cleaned = solve_skeleton(joints, spec)
    order, lines = [], ["HIERARCHY"]
    _hierarchy(0, "", offsets * CM, spec, order, lines)
    angles = euler_zxy(rotations[:, order])                               # (T, J, 3)
    rows = np.concatenate([cleaned[:, 0] * CM, angles.reshape(len(angles), -1)], 1)
    lines += ["MOTION", f"Frames: {len(rows)}", f"Frame Time: {1 / spec.fps:.8f}"]
    lines += [" ".join(f"{value:.5f}" for value in row) for row in rows.tolist()]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode("ascii"))
    return cleaned


def euler_zxy(rotations):
    """Return degrees (T, …, 3) about z, x, y of matrices (T, …, 3, 3) = Rz·Rx·Ry, without jumps of 360°."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where two axes fall together: any split of the turn is right
        angles = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_euler("ZXY", degrees=True)
    return np.unwrap(angles.reshape(rotations.shape[:-1]), axis=0, period=360)


def _children(joint, spec):
    return [child for child, parent in bones(spec) if parent == joint]


def _hierarchy(joint, pad, offsets, spec, order, lines):
    """Append a joint and all beneath it to `lines`, and its index to `order`, the order of the channels."""
    name, children = spec.joint_names[joint], _children(joint, spec)
    channels = f"3 {ANGLES}" if pad else f"6 Xposition Yposition Zposition {ANGLES}"
    offset = "{}OFFSET {:.6f} {:.6f} {:.6f}"
    order.append(joint)
    lines += [f"{pad}{'JOINT' if pad else 'ROOT'} {name}", f"{pad}{{",
              offset.format(f"{pad}  ", *offsets[joint]), f"{pad}  CHANNELS {channels}"]
    for child in children:
        _hierarchy(child, f"{pad}  ", offsets, spec, order, lines)
    if not children:
        tip = np.array(_rest_direction(name)) * END_SITE * CM
        lines += [f"{pad}  End Site", f"{pad}  {{", offset.format(f"{pad}    ", *tip), f"{pad}  }}"]
    lines.append(f"{pad}}}")


def _rest_direction(name):
    """Return where the bone to a joint points in the T-pose: arms to the side, legs down, feet ahead."""
    if name.endswith(("collar", "shoulder", "elbow", "wrist", "hip")):
        return (1.0, 0, 0) if name.startswith("left") else (-1.0, 0, 0)
    if name.endswith(("knee", "ankle")):
        return (0, -1.0, 0)
    return (0, 0, 1.0) if name.endswith(("foot", "toe")) else (0, 1.0, 0)


def _group_shape(vectors, names, lengths):
    """Return the rest offsets (C, 3) of a joint's children: the mean shape of vectors (T, C, 3) to them."""
    shape = np.array([_rest_direction(name) for name in names]) * lengths[:, None]
    for _ in range(4):  # fit and average in turn
        turned = np.einsum("tji,tcj->tci", _best_rotation(shape, vectors), vectors)  # into the rest pose
        shape = unit(turned.mean(0)) * lengths[:, None]
    sides = {name.split("_")[0]: offset for name, offset in zip(names, shape)}
    up = next(offset for side, offset in sides.items() if side not in ("left", "right"))
    across = unit(sides["left"] - sides["right"])
    ahead = unit(np.cross(across, up))
    return shape @ np.stack([across, np.cross(ahead, across), ahead], -1)  # its own axes become x, y, z


def _best_rotation(offsets, aims):
    """Return the rotations (T, 3, 3) that bring offsets (C, 3) nearest to aims (T, C, 3) (Kabsch 1976)."""
    u, _, vt = np.linalg.svd(np.einsum("tci,cj->tij", aims, offsets))
    sign = np.ones((len(aims), 3))
    sign[:, 2] = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    return (u * sign[:, None]) @ vt
