import re

import bvhio
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from export.bvh import euler_zxy, solve_skeleton, write_bvh
from tests.test_draw import dance
from utils.errors import UserError
from utils.motion_spec import KIT, T2M


def read_bvh(path):
    """Joint names and world positions (T, J, 3) of a BVH file, by the format and SciPy's rotations."""
    head, motion = path.read_text().split("MOTION")
    names, parents, offsets, channels, stack = [], [], [], [], []
    for word in re.findall(r"(?:ROOT|JOINT) \S+|End Site|\{|\}|OFFSET [^\n]+|CHANNELS [^\n]+", head):
        if word.startswith(("ROOT", "JOINT")):
            parents.append(stack[-1] if stack else -1)
            names.append(word.split()[1])
            entering = len(names) - 1
        elif word == "End Site":
            entering = None
        elif word == "{":
            stack.append(entering)
        elif word == "}":
            stack.pop()
        elif stack[-1] is not None:
            (offsets if word.startswith("OFFSET") else channels).append(word.split()[1:])
    lines = motion.strip().splitlines()
    rows = np.array([line.split() for line in lines[2:]], float)
    assert len(rows) == int(lines[0].split()[1])
    world, turned, at = np.zeros((len(rows), len(names), 3)), [], 0
    for n, (parent, offset, kinds) in enumerate(zip(parents, offsets, channels)):
        values = dict(zip(kinds[1:], rows[:, at:at + int(kinds[0])].T))
        at += int(kinds[0])
        axes = [kind for kind in values if kind.endswith("rotation")]
        local = Rotation.from_euler("".join(axis[0] for axis in axes),
                                    np.stack([values[axis] for axis in axes], -1), degrees=True)
        if parent < 0:
            world[:, n] = np.stack([values[f"{axis}position"] for axis in "XYZ"],
                                   -1) + np.array(offset, float)
            turned.append(local)
        else:
            world[:, n] = world[:, parent] + turned[parent].apply(np.array(offset, float))
            turned.append(turned[parent] * local)
    assert at == rows.shape[1]
    return names, world, 1 / float(lines[1].split()[2])


@pytest.mark.parametrize("spec, unit", [(T2M, 1.0), (KIT, 1000.0)])
def test_a_rigid_clip_comes_back_from_the_file_within_a_millimetre(tmp_path, spec, unit):
    joints = dance(spec, 50, seed=3)
    cleaned = write_bvh(tmp_path / "clip.bvh", joints * unit, spec)
    names, centimetres, fps = read_bvh(tmp_path / "clip.bvh")
    assert sorted(names) == sorted(spec.joint_names) and fps == pytest.approx(spec.fps, rel=1e-5)
    read = centimetres[:, [names.index(name) for name in spec.joint_names]] / 100
    assert np.abs(read - cleaned).max() < 1e-5        # five decimals of a centimetre and of a degree
    assert np.abs(read - joints).max() < 1e-4


@pytest.mark.parametrize("spec, unit", [(T2M, 1.0), (KIT, 1000.0)])
def test_a_library_of_others_reads_the_same_motion(tmp_path, spec, unit):
    joints = dance(spec, 40, seed=8)
    cleaned = write_bvh(tmp_path / "clip.bvh", joints * unit, spec)
    tree = bvhio.readAsHierarchy(str(tmp_path / "clip.bvh"))
    by_name = {joint.Name: joint for joint, _, _ in tree.layout()}
    read = np.zeros_like(joints)
    for frame in range(len(joints)):
        tree.loadPose(frame)
        read[frame] = [tuple(by_name[name].PositionWorld) for name in spec.joint_names]
    assert np.abs(read / 100 - cleaned).max() < 1e-4 and np.linalg.norm(read / 100 - joints,
                                                                        axis=-1).max() < 1e-3


def test_a_trembling_clip_gets_constant_bones_and_stays_close():
    joints = dance(T2M, 60, seed=4)
    noisy = joints + np.random.default_rng(0).normal(0, 0.01, joints.shape)
    offsets, rotations, cleaned = solve_skeleton(noisy, T2M)
    for child, parent in enumerate(T2M.parents[1:], 1):
        bone = np.linalg.norm(cleaned[:, child] - cleaned[:, parent], axis=-1)
        assert np.ptp(bone) < 1e-9 and bone[0] == pytest.approx(np.linalg.norm(offsets[child]))
    assert np.allclose(rotations @ rotations.transpose(0, 1, 3, 2), np.eye(3),
                       atol=1e-9) and (np.linalg.det(rotations) > 0).all()
    error = np.linalg.norm(cleaned - noisy, axis=-1).mean(0)
    assert error.max() < 0.025
    assert error[list(T2M.feet)].max() < 0.025


def test_the_rest_pose_is_a_t_pose_that_faces_plus_z():
    offsets, _, _ = solve_skeleton(dance(T2M, 30, seed=5), T2M)
    at = dict(zip(T2M.joint_names, offsets))
    assert at["left_hip"][0] > 0 > at["right_hip"][0] and at["left_collar"][0] > 0 > at["right_collar"][0]
    assert at["left_wrist"][0] > 0 and at["left_foot"][2] > 0 and at["head"][1] > 0 > at["left_knee"][1]
    assert abs(at["left_hip"][1:] - at["right_hip"][1:]).max() < 0.02


def test_turning_or_moving_the_clip_changes_the_root_alone():
    joints, turn = dance(T2M, 20, seed=6), Rotation.from_euler("Y", 70, degrees=True)
    _, before, cleaned = solve_skeleton(joints, T2M)
    _, after, moved = solve_skeleton(turn.apply(joints.reshape(-1, 3)).reshape(joints.shape) + (3, 0, -2),
                                     T2M)
    assert np.allclose(before[:, 1:], after[:, 1:], atol=1e-6)
    assert np.allclose(turn.as_matrix() @ before[:, 0], after[:, 0], atol=1e-6)
    assert np.allclose(turn.apply(cleaned.reshape(-1, 3)).reshape(joints.shape) + (3, 0, -2), moved,
                       atol=1e-6)


def test_euler_angles_agree_with_scipy_also_where_two_axes_fall_together():
    rotations = np.concatenate([Rotation.random(200, random_state=0).as_matrix(),
                                Rotation.from_euler("ZXY", [[30, 90, 20], [-70, -90, 10]],
                                                    degrees=True).as_matrix()])
    back = Rotation.from_euler("ZXY", euler_zxy(rotations), degrees=True).as_matrix()
    assert np.allclose(back, rotations, atol=1e-6)


def test_angles_do_not_jump_by_a_turn_over_time():
    spin = Rotation.from_euler("Y", np.arange(0, 1000, 15)[:, None], degrees=True).as_matrix()
    assert np.allclose(np.diff(euler_zxy(spin)[:, 2]), 15)


def test_a_bone_folded_back_and_a_bone_without_length_are_no_trouble():
    joints = dance(T2M, 10, seed=7)
    upper_arm = joints[4:, 18] - joints[4:, 16]
    joints[4:, 20] = joints[4:, 18] - 0.2661 * upper_arm / 0.25684      # wrist back along the arm
    joints[:, 15] = joints[:, 12]                                       # head in the neck
    offsets, rotations, cleaned = solve_skeleton(joints, T2M)
    assert np.isfinite(rotations).all() and not offsets[15].any()
    assert np.allclose(np.linalg.det(rotations), 1) and np.abs(cleaned - joints)[4:].max() < 0.002


def test_what_cannot_be_exported_is_said(tmp_path):
    joints = dance(T2M, 8)
    joints[5, 3, 1] = np.nan
    with pytest.raises(UserError, match=r"NaN or Inf.*5"):
        write_bvh(tmp_path / "clip.bvh", joints, T2M)
    with pytest.raises(UserError, match="21, 3"):
        write_bvh(tmp_path / "clip.bvh", dance(T2M, 8), KIT)
