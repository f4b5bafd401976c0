"""Reconstruction losses (T2M-GPT utils/losses.py)."""
import torch.nn as nn
import torch.nn.functional as F

from utils.motion_spec import SPECS

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "l1_smooth": F.smooth_l1_loss}


class ReConsLoss(nn.Module):
    """Compare features: all of them, and one slice.

    recons_loss: l1, l2 or l1_smooth. nb_joints: 22 (t2m) or 21 (kit). vel_slice: what `forward_vel` compares.
    Upstream's "velocity" slice 4 : 4 + 3(J-1) holds the local joint positions; "velocities" is the true one.
    """

    def __init__(self, recons_loss, nb_joints, vel_slice="positions"):
        super().__init__()
        self.loss = LOSSES[recons_loss]
        spec = next(spec for spec in SPECS.values() if spec.joints == nb_joints)
        self.motion_dim, self.vel = spec.width, spec.slices[vel_slice]

    def forward(self, motion_pred, motion_gt):
        """Return the mean loss () over all features of (…, D) and (…, D)."""
        return self.loss(motion_pred[..., :self.motion_dim], motion_gt[..., :self.motion_dim])

    def forward_vel(self, motion_pred, motion_gt):
        """Return the mean loss () over `vel_slice` of (…, D) and (…, D)."""
        return self.loss(motion_pred[..., self.vel], motion_gt[..., self.vel])

    def forward_heading(self, motion_pred, motion_gt):
        """Return the mean loss () over the heading: yaw velocities of (…, T, D), summed over time."""
        return self.loss(motion_pred[..., 0].cumsum(-1), motion_gt[..., 0].cumsum(-1))
