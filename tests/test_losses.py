"""Reconstruction losses: which slice counts, and how."""
import pytest
import torch

from utils.losses import ReConsLoss
from utils.motion_spec import get_spec


@pytest.mark.parametrize(("dataname", "joints"), [("t2m", 22), ("kit", 21)])
@pytest.mark.parametrize("part", ["positions", "velocities"])
def test_the_velocity_loss_sees_its_slice_alone(dataname, joints, part):
    spec = get_spec(dataname)
    x = torch.randn(2, 5, spec.width)
    y = x.clone()
    y[..., spec.slices[part]] += 1
    loss = ReConsLoss("l1", joints, part)
    assert float(loss.forward_vel(y, x)) == pytest.approx(1, rel=1e-5)
    size = spec.slices[part].stop - spec.slices[part].start
    assert float(loss(y, x)) == pytest.approx(size / spec.width, rel=1e-5)
    z = x + 1
    z[..., spec.slices[part]] = x[..., spec.slices[part]]
    assert float(loss.forward_vel(z, x)) == 0


def test_upstreams_slice_is_positions():
    assert ReConsLoss("l2", 22).vel == slice(4, 67)
    assert ReConsLoss("l2", 21).vel == slice(4, 64)
    assert get_spec("t2m").width == 263 and get_spec("kit").width == 251


@pytest.mark.parametrize(("name", "small", "large"),
                         [("l1", 0.5, 3), ("l2", 0.25, 9), ("l1_smooth", 0.125, 2.5)])
def test_each_loss_by_hand(name, small, large):
    loss, zero = ReConsLoss(name, 22), torch.zeros(1, 1, 263)
    assert float(loss(zero + 0.5, zero)) == pytest.approx(small)
    assert float(loss(zero + 3, zero)) == pytest.approx(large)


def test_errors_of_the_yaw_add_up_to_the_headings():
    loss, zero = ReConsLoss("l1", 22), torch.zeros(2, 8, 263)
    turning, steady = zero.clone(), zero.clone()
    turning[..., 0] = 0.5                                   # off by 0.5, 1.0 … 4.0
    steady[..., 0] = torch.tensor([0.5, -0.5]).repeat(4)    # and by 0.5, 0, 0.5, 0 …
    assert float(loss.forward_heading(turning, zero)) == pytest.approx(2.25)
    assert float(loss.forward_heading(steady, zero)) == pytest.approx(0.25)
    assert float(loss.forward_heading(zero + 3 * (torch.arange(263) > 0), zero)) == 0
