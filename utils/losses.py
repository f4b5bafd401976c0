"""Reconstruction losses (T2M-GPT utils/losses.py)."""
import torch.nn as nn
import torch.nn.functional as F

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "l1_smooth": F.smooth_l1_loss}


class ReConsLoss(nn.Module):
    """Mean loss over the whole feature vector, and over one slice of it.

    recons_loss: l1 | l2 | l1_smooth. nb_joints: 22 (t2m) or 21 (kit). `vel_slice`: what `forward_vel` looks at. Upstream calls it
    velocity, yet its slice 4 : 4 + 3(J-1) holds the local joint positions; "velocities" takes the joint velocities instead.
    """

    def __init__(self, recons_loss, nb_joints, vel_slice="positions"):
        super().__init__()
        self.loss = LOSSES[recons_loss]
        self.motion_dim = 12 * nb_joints - 1
        positions = slice(4, 4 + 3 * (nb_joints - 1))
        velocities = slice(4 + 9 * (nb_joints - 1), 4 + 9 * (nb_joints - 1) + 3 * nb_joints)
        self.vel = {"positions": positions, "velocities": velocities}[vel_slice]

    def forward(self, motion_pred, motion_gt):
        """(…, D) and (…, D) → scalar mean over all features."""
        return self.loss(motion_pred[..., :self.motion_dim], motion_gt[..., :self.motion_dim])

    def forward_vel(self, motion_pred, motion_gt):
        """(…, D) and (…, D) → scalar mean over `vel_slice`."""
        return self.loss(motion_pred[..., self.vel], motion_gt[..., self.vel])
