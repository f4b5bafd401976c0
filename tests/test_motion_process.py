"""Features both ways, on motions whose features are known by hand."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tests.helpers import make_clip
from utils.motion_process import (
    between,
    extract_features,
    group_statistics,
    mirror,
    normalisation_problem,
    recover_from_ric,
    retarget,
    turn,
    weigh_root_and_contacts,
)
from utils.motion_spec import get_spec

T2M, KIT = get_spec("t2m"), get_spec("kit")


def rest_pose(spec):
    """The skeleton (J, 3) with every bone along its raw offset, in metres, facing +z."""
    lengths = spec.bone_lengths or (0.2,) * spec.joints
    joints = np.zeros((spec.joints, 3))
    for chain in spec.chains:
        for parent, child in zip(chain, chain[1:]):
            joints[child] = joints[parent] + np.array(spec.raw_offsets[child]) * lengths[child]
    return joints


def still(spec, frames=10):
    return np.repeat(rest_pose(spec)[None], frames, 0)


def random_clip(seed, spec=T2M, frames=24):
    """Bones of the right length that swing smoothly, on a root that wanders."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, frames)[:, None]
    joints = np.zeros((frames, spec.joints, 3))
    joints[:, 0] = np.concatenate([time, 0 * time + 0.9, 2 * time], 1) * rng.uniform(-1, 1, 3)
    lengths = spec.bone_lengths or rng.uniform(0.1, 0.4, spec.joints)
    for chain in spec.chains:
        for parent, child in zip(chain, chain[1:]):
            shoulder = spec is T2M and child in (16, 17)  # held out sideways, for the heading
            direction = np.array((33 - 2 * child, 0, 0) if shoulder else spec.raw_offsets[child], float)
            trunk = child in spec.face_joints or parent in (9, 3, 6)
            swing = np.sin(6 * time * rng.random(3) + rng.uniform(0, 6, 3))
            direction = direction + (0.1 if trunk else 0.5) * swing
            direction *= lengths[child] / np.linalg.norm(direction, axis=1, keepdims=True)
            joints[:, child] = joints[:, parent] + direction
    return joints


def recover_from_rot(features, spec, bone_lengths):
    """Joint positions (T, J, 3) from the rotations: forward kinematics along the chains."""
    offsets = torch.from_numpy(np.array(spec.raw_offsets) * np.asarray(bone_lengths)[:, None])
    root = recover_from_ric(features, spec.joints)[..., 0, :]
    angle = 2 * torch.nn.functional.pad(features[:-1, 0], (1, 0)).cumsum(0)
    heading = torch.from_numpy(Rotation.from_euler("y", angle.numpy()[:, None]).as_matrix())
    columns = features[..., spec.slices["rotations"]].unflatten(-1, (spec.joints - 1, 6))
    x = torch.nn.functional.normalize(columns[..., :3], dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(x, columns[..., 3:]), dim=-1)
    local = torch.stack([x, torch.linalg.cross(z, x), z], -1)
    joints = [root] + [None] * (spec.joints - 1)
    for chain in spec.chains:
        rotation = heading
        for parent, child in zip(chain, chain[1:]):
            rotation = rotation @ local[..., child - 1, :, :]
            joints[child] = joints[parent] + rotation @ offsets[child]
    return torch.stack(joints, -2).numpy()


def part(features, name, spec=T2M):
    return features[:, spec.slices[name]]


@pytest.mark.parametrize("spec", [T2M, KIT], ids=lambda spec: spec.name)
def test_a_still_pose_has_no_velocity_and_all_contacts(spec):
    features = extract_features(still(spec), spec.name)
    assert features.shape == (9, spec.width) and features.dtype == np.float32
    for name in ("yaw", "root_xz", "velocities"):
        np.testing.assert_allclose(part(features, name, spec), 0, atol=1e-6)
    assert (part(features, "contacts", spec) == 1).all()
    joints = rest_pose(spec)
    np.testing.assert_allclose(part(features, "height", spec), -joints[:, 1].min(), atol=1e-6)


def test_the_rest_pose_has_identity_rotations():
    rotations = part(extract_features(still(T2M), "t2m"), "rotations").reshape(9, 21, 6)
    np.testing.assert_allclose(rotations, np.tile([1, 0, 0, 0, 1, 0], (9, 21, 1)), atol=1e-6)


def test_a_walker_on_a_circle_turns_and_steps_steadily():
    frames, radius, omega = 200, 2.0, 0.03
    angle = omega * np.arange(frames)
    pose = still(T2M, frames)
    path = np.stack([-radius * np.cos(angle), 0 * angle, radius * np.sin(angle)], -1)
    walker = turn(angle[:, None], pose) + path[:, None]
    features = extract_features(walker, "t2m")
    middle = slice(80, 120)  # the smoothing of the heading holds at both ends
    yaw = part(features, "yaw")[middle, 0]
    np.testing.assert_allclose(np.abs(yaw), omega / 2, atol=1e-6)  # the quaternion holds half the angle
    back = int(np.pi / omega) - middle.start  # the sign changes for the one step across facing straight back
    assert np.flatnonzero(yaw > 0).tolist() == [back]
    chord = 2 * radius * np.sin(omega / 2)
    np.testing.assert_allclose(np.linalg.norm(part(features, "root_xz")[middle], axis=1), chord, atol=1e-6)
    np.testing.assert_allclose(part(features, "root_xz")[middle, 1], chord * np.cos(omega / 2), atol=1e-4)
    recovered = recover_from_ric(torch.from_numpy(features).double(), 22).numpy()
    lap = recovered[:int(2 * np.pi / omega / 2), 0, [0, 2]]
    assert np.ptp(np.linalg.norm(lap - lap[0], axis=1)) == pytest.approx(2 * radius, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10 ** 6))
def test_joints_come_back_from_positions_and_from_rotations(seed):
    joints = random_clip(seed)
    features = torch.from_numpy(extract_features(joints, "t2m")).double()
    from_ric = recover_from_ric(features, 22).numpy()
    from_rot = recover_from_rot(features, T2M, T2M.bone_lengths)
    np.testing.assert_allclose(from_rot, from_ric, atol=1e-4)
    # the same motion but for where it starts: distances between joints, and the root's path, are kept
    joints = joints[:-1] - joints[..., 1].min() * np.array([0, 1, 0])
    np.testing.assert_allclose(from_ric[..., 1], joints[..., 1], atol=1e-4)
    for pair in ((20, 7), (0, 15), (21, 10)):
        apart, expected = (np.diff(clip[:, pair], axis=1)[:, 0] for clip in (from_ric, joints))
        np.testing.assert_allclose(np.linalg.norm(apart, axis=1), np.linalg.norm(expected, axis=1), atol=1e-4)
    steps, expected = (np.linalg.norm(np.diff(path[:, 0], axis=0), axis=1) for path in (from_ric, joints))
    np.testing.assert_allclose(steps, expected, atol=1e-4)


def test_the_smoothed_heading_swaps_the_hips_as_published():
    joints, arms, angle = still(T2M), [13, 14, 16, 17, 18, 19, 20, 21], 0.6
    chest = joints[:, 9:10]
    joints[:, arms] = turn(angle, joints[:, arms] - chest) + chest
    ground = joints[0, :, 0] - 1j * joints[0, :, 2]                 # turning about +y adds to the phase
    right_hip, left_hip, right_shoulder, left_shoulder = ground[list(T2M.face_joints)]
    faced = (right_hip - left_hip) + (right_shoulder - left_shoulder)       # the clip is turned by this one,
    swapped = (left_hip - right_hip) + (right_shoulder - left_shoulder)     # and its heading is this one's
    between_them = np.angle(swapped / faced)
    yaw = part(extract_features(joints, "t2m"), "yaw")[:, 0]
    assert abs(between_them) > 0.5                                          # the pose tells the two apart
    np.testing.assert_allclose(yaw[0], -between_them / 2, atol=1e-6)    # out of the first frame's identity
    np.testing.assert_allclose(yaw[1:], 0, atol=1e-6)


def test_where_a_clip_starts_and_faces_does_not_matter():
    joints = random_clip(3)
    angle = 1.1
    moved = turn(angle, joints) + np.array([3.0, 0.7, -2.0])
    np.testing.assert_allclose(extract_features(moved, "t2m"), extract_features(joints, "t2m"), atol=1e-5)


def test_retargeting_gives_the_target_lengths_and_keeps_directions():
    joints = random_clip(5) * 1.3
    result = retarget(joints, T2M)
    for child, parent in enumerate(T2M.parents):
        if parent >= 0:
            bone, before = result[:, child] - result[:, parent], joints[:, child] - joints[:, parent]
            np.testing.assert_allclose(np.linalg.norm(bone, axis=1), T2M.bone_lengths[child], atol=1e-9)
            np.testing.assert_allclose(np.cross(bone, before), 0, atol=1e-9)
    np.testing.assert_allclose(result[:, 0], joints[:, 0] / 1.3, atol=1e-9)


def test_kit_keeps_its_own_bone_lengths():
    joints = random_clip(2, KIT)
    features = torch.from_numpy(extract_features(joints, "kit")).double()
    lengths = np.linalg.norm(joints[0] - joints[0][list(KIT.parents)], axis=1)
    lengths[0] = 0
    from_rot = recover_from_rot(features, KIT, lengths)
    np.testing.assert_allclose(from_rot, recover_from_ric(features, 21), atol=1e-4)


@pytest.mark.parametrize("spec", [T2M, KIT], ids=lambda spec: spec.name)
def test_mirroring_twice_is_the_identity(spec):
    joints = random_clip(1, spec)
    once = mirror(joints, spec)
    assert not np.allclose(once, joints)
    np.testing.assert_array_equal(mirror(once, spec), joints)
    right = spec.joint_names.index("right_hip")
    np.testing.assert_array_equal(once[:, right], joints[:, spec.joint_names.index("left_hip")] * (-1, 1, 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_the_rotation_between_two_directions_turns_one_into_the_other(numbers):
    u, v = np.array(numbers[:3]), np.array(numbers[3:])
    if min(np.linalg.norm(u), np.linalg.norm(v)) < 1e-3:
        return
    matrix = between(u, v)
    np.testing.assert_allclose(matrix @ u / np.linalg.norm(u), v / np.linalg.norm(v), atol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) > 0


def test_half_a_turn_is_finite():
    u = np.array([[0, -1.0, 0], [1.0, 0, 0]])
    np.testing.assert_allclose((between(u, -u) @ u[..., None])[..., 0], -u, atol=1e-12)


def test_std_is_averaged_within_its_groups():
    frames = np.random.default_rng(0).normal(size=(500, 263)) * np.linspace(1, 5, 263)
    mean, std = group_statistics(frames, T2M)
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5)
    for group in T2M.slices.values():
        np.testing.assert_allclose(std[group], frames.std(0)[group].mean(), rtol=1e-5)


def test_statistics_of_clips_are_those_of_all_their_frames():
    frames = np.random.default_rng(0).normal(1000, 1, size=(300, 263)).astype(np.float32)
    whole, parts = group_statistics(frames, T2M), group_statistics(iter(np.split(frames, [3, 3, 120])), T2M)
    for a, b in zip(whole, parts):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert (group_statistics(np.ones((5, 263)), T2M)[1] == 1).all()  # nothing is divided by zero
    with pytest.raises(ValueError, match="no frame"):
        group_statistics([], T2M)


@pytest.mark.skipif("T2M_DATA_ROOT" not in os.environ, reason="T2M_DATA_ROOT names no real features")
def test_real_features_come_back_through_joints():
    folder = Path(os.environ["T2M_DATA_ROOT"], "new_joint_vecs")
    for path in sorted(folder.glob("*.npy"))[::20]:
        joints = recover_from_ric(torch.from_numpy(np.load(path)).double(), 22)
        again = recover_from_ric(torch.from_numpy(extract_features(joints.numpy(), "t2m")).double(), 22)
        # the joints, not the features: one frame fewer moves the smoothed heading near the end
        assert (again - joints[:-1]).abs().max() < 0.02, path.name


def test_extraction_does_without_torch():
    """Worker processes that only extract features start fast and small."""
    code = "import sys, utils.motion_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


@pytest.mark.parametrize("dataname", ["t2m", "kit"])
def test_frames_that_are_not_normalised_are_noticed(dataname):
    clips = [make_clip(dataname, 70, seed) for seed in range(8)]
    mean, std = group_statistics(clips, get_spec(dataname))
    frames = np.concatenate(clips)
    normalised = (frames - mean) / std
    assert normalisation_problem(normalised) is None
    assert "worst, entry" in normalisation_problem(frames)
    assert normalisation_problem(normalised + 1) and normalisation_problem(normalised * 3)
    for clip in clips:  # one clip is never as wide as a split, and lies beside its mean
        once = (clip - mean) / std
        assert normalisation_problem(once, 3, np.inf) is None
        assert normalisation_problem((once - mean) / std, 3, np.inf)


def test_a_bias_weighs_root_and_contacts_alone():
    std = np.random.default_rng(0).uniform(1, 2, 263)
    biased = weigh_root_and_contacts(std, T2M, 5)
    expected = np.ones(263)
    expected[[0, 1, 2, 3, 259, 260, 261, 262]] = 5
    np.testing.assert_allclose(std / biased, expected)
    assert (weigh_root_and_contacts(std, T2M, 1) == std).all()
    std[-4:] = 0.016  # the evaluator's, which are biased already
    assert (weigh_root_and_contacts(std, T2M, 5) == std).all()
