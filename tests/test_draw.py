import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from utils.errors import UserError
from utils.motion_spec import KIT, T2M
from visualize import draw
from visualize.skeleton import bones, foot_contacts, frame_error


def stand(spec, frames=1):
    """A T-pose on the floor that faces +z, its left at +x, in metres: (frames, J, 3)."""
    x = {"hip": 0.1, "collar": 0.08, "shoulder": 0.18, "elbow": 0.28, "wrist": 0.25}
    y = {"hip": -0.05, "knee": -0.4, "ankle": -0.42, "collar": 0.08, "spine": 0.13, "spine1": 0.13,
         "spine2": 0.14, "spine3": 0.06, "chest": 0.2, "neck": 0.2, "head": 0.15}
    z = {"foot": 0.14, "toe": 0.06}
    joints = np.zeros((spec.joints, 3))
    for child, parent in bones(spec):
        name = spec.joint_names[child]
        part, side = name.split("_")[-1], 1 if name.startswith("left") else -1
        joints[child] = joints[parent] + (side * x.get(part, 0), y.get(part, 0), z.get(part, 0))
    return np.repeat((joints - (0, joints[:, 1].min(), 0))[None], frames, 0)


def dance(spec, frames, seed=0):
    """Return a rigid skeleton whose joints turn while it wanders about: (frames, J, 3) in metres."""
    rng, rest, t = np.random.default_rng(seed), stand(spec)[0], np.arange(frames)[:, None]
    joints, turned = np.zeros((frames, spec.joints, 3)), {}
    joints[:, 0] = rest[0] + np.concatenate([t * 0.02, 0.03 * np.sin(t / 3), 0.3 * np.sin(t / 20)], 1)
    for joint in [0] + [child for child, _ in bones(spec)]:
        wave = Rotation.from_rotvec(0.5 * np.sin(t * rng.uniform(0.1, 0.3, 3) + rng.uniform(0, 6, 3)))
        parent = spec.parents[joint]
        turned[joint] = wave if parent < 0 else turned[parent] * wave
        if parent >= 0:
            joints[:, joint] = joints[:, parent] + turned[parent].apply(rest[joint] - rest[parent])
    return joints


def near(picture, colour, within=12):
    return (np.abs(picture.astype(int) - colour) <= within).all(-1)


@pytest.mark.parametrize("spec", [T2M, KIT])
def test_the_left_is_blue_and_on_the_right_of_a_figure_that_faces_you(spec, monkeypatch):
    monkeypatch.setattr(draw, "AZIMUTH", 0)
    monkeypatch.setattr(draw, "ELEVATION", 0)
    picture = draw.draw_frames(stand(spec), spec)[0]
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    left, right = np.argwhere(near(picture, draw.LEFT))[:, 1], np.argwhere(near(picture, draw.RIGHT))[:, 1]
    assert len(left) > 300 and left.min() > 120 and right.max() < 136
    monkeypatch.setattr(draw, "AZIMUTH", 180)
    behind = draw.draw_frames(stand(spec), spec)[0]
    assert near(behind, draw.LEFT).nonzero()[1].max() < 136


def test_edges_are_smooth():
    picture = draw.draw_frames(stand(T2M), T2M)[0]
    blend = near(picture, (np.array(draw.LEFT) + draw.PAPER) // 2, 4)
    assert blend.sum() > 10


def test_millimetres_and_metres_give_one_picture():
    joints = dance(KIT, 5)
    joints += np.arange(5)[:, None, None] * (0, 0, 1)  # no foot stands, by the threshold of either unit
    metres, millimetres = (draw.draw_frames(joints * unit, KIT, size=96) for unit in (1, 1000))
    assert (np.abs(metres.astype(int) - millimetres) > 8).mean() < 1e-3


def test_the_camera_goes_along():
    joints = dance(T2M, 120)
    joints[..., 2] += np.arange(120)[:, None] * 0.1                     # 12 m at 2 m/s
    pictures = draw.draw_frames(joints, T2M)
    for picture in pictures[[0, 60, 119]]:
        rows, columns = near(picture, draw.SPINE).nonzero()
        assert 60 < columns.mean() < 196 and 40 < rows.mean() < 200
    shifted = draw.draw_frames(joints + (4.5, 0, -7), T2M)  # by whole squares of the grid
    assert (np.abs(shifted.astype(int) - pictures) > 8).mean() < 1e-3


@pytest.mark.parametrize("x", [-40, 40])   # in front of the camera and behind it
def test_a_stray_joint_does_not_shrink_the_body_to_a_dot(x):
    joints = stand(T2M, 20)
    joints[7, 21] = (x, 3, 0)
    assert near(draw.draw_frames(joints, T2M)[0], draw.LEFT).sum() > 80


def test_side_by_side_shows_each_motion_and_the_error():
    joints = dance(T2M, 6)
    pictures = draw.draw_frames(joints, T2M, reference=stand(T2M, 6), size=128)
    assert pictures.shape == (6, 128, 256, 3)
    alone = draw.draw_frames(stand(T2M, 6), T2M, size=128, title="original")
    assert (pictures[:, :, :128] == alone).all()
    same, moved = (draw.draw_frames(x, T2M, reference=joints)[0, 236:, 256:] for x in (joints, joints + 0.01))
    columns = np.flatnonzero((same != moved).any((0, 2)))
    assert columns.size > 2  # 17 mm global instead of 0


def test_a_wild_reconstruction_leaves_the_scale_of_both_panels_alone():
    joints = dance(T2M, 6)
    wild = joints + np.random.default_rng(0).normal(0, 0.4, joints.shape)
    panels = [draw.draw_frames(x, T2M, reference=joints, size=96)[:, :, :96] for x in (wild, joints)]
    assert (panels[0] == panels[1]).all()
    short = draw.draw_frames(joints * 0.5, T2M, reference=joints, size=96)
    sizes = [near(short[0, :, half], draw.LEFT).nonzero()[0] for half in (slice(0, 96), slice(96, 192))]
    assert np.ptp(sizes[1]) < 0.65 * np.ptp(sizes[0])


def test_a_reconstruction_alone_stands_at_the_originals_scale_over_its_path():
    joints = dance(T2M, 6)
    alone = draw.draw_frames(joints * 0.5 + (0, 0, 0.2), T2M, reference=joints, alone=True, size=96,
                             title="reconstruction")
    both = draw.draw_frames(joints * 0.5 + (0, 0, 0.2), T2M, reference=joints, size=96)
    assert alone.shape == (6, 96, 96, 3) and (alone[:, :88] == both[:, :88, 96:]).all()
    assert (alone != draw.draw_frames(joints * 0.5 + (0, 0, 0.2), T2M, size=96)).any()


def test_errors_are_millimetres_root_aligned_and_global():
    joints = dance(T2M, 4)
    moved, bent = joints + (0.03, 0, 0.04), joints.copy()
    bent[:, 15, 1] += 0.022
    aligned, overall = frame_error(moved, joints)
    assert np.allclose(aligned, 0) and np.allclose(overall, 50)
    assert np.allclose(frame_error(bent, joints), 1)                  # 22 mm over 22 joints


def test_feet_that_stand_are_told_by_the_threshold_and_marked():
    joints = stand(T2M, 6)
    joints[3:, 10, 0] += np.sqrt(T2M.contact_threshold) * 1.01  # the left toe steps once, from frame 2 to 3
    expected = np.ones((6, 4), bool)
    expected[2, 1] = False
    assert (foot_contacts(joints, T2M) == expected).all() and foot_contacts(joints[:1], T2M).shape == (1, 4)
    marks = [near(picture, draw.CONTACT, 6).sum() for picture in draw.draw_frames(joints, T2M)]
    assert marks[1] > marks[2] > 20
    running = stand(T2M, 3) + np.arange(3)[:, None, None] * (0, 0, 0.1)
    assert not near(draw.draw_frames(running, T2M)[1], draw.CONTACT, 6).any()


def test_what_cannot_be_drawn_is_said():
    joints = dance(T2M, 8)
    bad = joints.copy()
    bad[5:, 2, 0] = np.inf
    with pytest.raises(UserError, match="in 3 of 8 frames, first in 5"):
        draw.draw_frames(bad, T2M)
    with pytest.raises(UserError, match=r"\(8, 22, 3\); kit wants \(frames, 21, 3\)"):
        draw.draw_frames(joints, KIT)
    with pytest.raises(UserError, match=r"\(0, 22, 3\)"):
        draw.draw_frames(joints[:0], T2M)
    with pytest.raises(UserError, match=r"reference joints .* \(7, 22, 3\); t2m wants \(8, 22, 3\)"):
        draw.draw_frames(joints, T2M, reference=joints[:7])


@pytest.mark.parametrize("fps", [20, 12.5, 30])
def test_a_gif_plays_every_frame_at_the_right_time(tmp_path, fps):
    joints, spec = dance(T2M, 31), replace(T2M, fps=fps)
    draw.save_gif(tmp_path / "clip.gif", joints, spec, size=96, title="dance")
    frames = draw.draw_frames(joints, spec, size=96, title="dance")
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.n_frames == 31 and gif.info["loop"] == 0
        total = 0
        for n in range(31):
            gif.seek(n)
            total += gif.info["duration"]
            frame = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(frame - frames[n]).mean() < 4  # the palette's loss
            assert np.abs(frame[40, 2] - draw.PAPER).max() <= 4
    assert abs(total - 31000 / fps) <= 5


def test_tensorboard_reads_the_gif_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
    frames = draw.draw_frames(dance(T2M, 7), T2M, size=64)
    with SummaryWriter(str(tmp_path)) as writer:
        draw.add_gif(writer, "./Vis/org_eval0", draw.encode_gif(frames, 20), 1000)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["./Vis/org_eval0"]
    image = events.Images("./Vis/org_eval0")[0]
    assert (image.step, image.width, image.height) == (1000, 64, 64)
    assert Image.open(io.BytesIO(image.encoded_image_string)).n_frames == 7
