"""Joints to features and back (HumanML3D's representation)."""
import torch

from utils.motion_spec import SPECS


def _layout(joints_num):
    for spec in SPECS.values():
        if spec.joints == joints_num:
            return spec.slices
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

    data: (…, T, D) float features, de-normalised. Returns (…, T, joints_num, 3) in the data set's unit (t2m: metres).
    Source: HumanML3D `recover_from_ric`.
    """
    cos, sin, root = recover_root(data)
    local = data[..., _layout(joints_num)["positions"]].unflatten(-1, (joints_num - 1, 3))
    x, z = _unturn(cos[..., None], sin[..., None], local[..., 0], local[..., 2])
    joints = torch.stack([x + root[..., None, 0], local[..., 1], z + root[..., None, 2]], -1)
    return torch.cat([root[..., None, :], joints], -2)
