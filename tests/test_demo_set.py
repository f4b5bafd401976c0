"""The demo set: made on first use, the same every time, walking on the floor."""
import numpy as np
import pytest

from dataset.motion_folder import read_ids
from dataset.prepare.demo import make_clips
from dataset.prepare.demo_set import ensure_demo
from tests.helpers import small_args
from train_vq import main
from utils.errors import UserError
from utils.motion_spec import get_spec

DEMO = get_spec("demo")


@pytest.fixture(scope="module")
def clips():
    return list(make_clips(0, 40))


def test_clips_follow_from_the_seed(clips):
    again, other = list(make_clips(0, 5)), list(make_clips(1, 5))
    for (name, joints, captions), (name2, joints2, captions2) in zip(clips, again):
        assert name == name2 and captions == captions2
        np.testing.assert_array_equal(joints, joints2)
    assert any(a[1].shape != b[1].shape or not np.allclose(a[1], b[1]) for a, b in zip(again, other))


def test_bodies_keep_their_bones_and_stay_above_the_floor(clips):
    assert len({name for name, _, _ in clips}) == 40
    for name, joints, captions in clips:
        assert 40 <= len(joints) <= 161 and joints.shape[1:] == (22, 3) and all(captions), name
        bones = np.linalg.norm(joints[:, 1:] - joints[:, list(DEMO.parents[1:])], axis=-1)
        np.testing.assert_allclose(bones, np.broadcast_to(bones[0], bones.shape), rtol=1e-5, err_msg=name)
        assert joints[..., 1].min() > -0.02, name
        assert np.abs(np.diff(joints, n=2, axis=0)).max() < 0.4, name  # metres a frame², 160 m/s²: no limb pops


def test_the_folder_is_made_once_and_trains(tmp_path):
    root = tmp_path / "demo"
    args = small_args(root, tmp_path / "out", "--dataname", "demo", "--total-iter", "6")
    assert main(args) == 0
    log = (tmp_path / "out" / "run" / "run.log").read_text()
    assert "made the demo set" in log and "goes without validation" not in log
    assert len(read_ids(root / "all.txt")) >= 400
    assert ensure_demo(root) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        ensure_demo(tmp_path)
