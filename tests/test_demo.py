"""The demo people: reproducible, anatomical, feet on the ground, captions that tell; and their folder."""
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.motion_folder import read_ids
from dataset.prepare import demo
from dataset.prepare.demo import ACTIONS, Score, keyed
from options.option_vq import get_args_parser
from train_vq import main
from utils.errors import UserError
from utils.motion_spec import T2M


@pytest.fixture(scope="module")
def clips():
    return list(demo.make_clips(count=120))


def actions_of(name):
    return name.split("_")[:-1]


def lengths_of(joints):
    return np.linalg.norm(joints[:, 1:] - joints[:, list(T2M.parents[1:])], axis=-1)


def test_a_seed_is_a_data_set():
    first, again, other = (list(demo.make_clips(seed, 12)) for seed in (3, 3, 4))
    for (name, joints, captions), (name2, joints2, captions2), (_, joints3, _) in zip(first, again, other):
        assert (name, captions) == (name2, captions2)
        np.testing.assert_array_equal(joints, joints2)
        assert joints.shape != joints3.shape or not np.allclose(joints, joints3)


def test_a_larger_count_only_adds_clips():
    few, more = list(demo.make_clips(0, 3)), list(demo.make_clips(0, 6))
    assert len(more) == 6
    for (name, joints, _), (name2, joints2, _) in zip(few, more):
        assert name == name2
        np.testing.assert_array_equal(joints, joints2)


def test_every_action_makes_clips_of_3_to_8_seconds(clips):
    names = [name for name, _, _ in clips]
    seen = [action for name in names for action in actions_of(name)]
    assert len(set(names)) == len(names) and set(seen) == set(ACTIONS)
    assert min(seen.count(action) for action in ACTIONS) >= 20
    assert sum(len(actions_of(name)) == 2 for name in names) > 40
    for name, joints, _ in clips:
        assert joints.dtype == np.float64 and joints.shape[1:] == (22, 3) and 64 <= len(joints) <= 160, name
        assert np.isfinite(joints).all(), name


def test_bones_keep_their_length(clips):
    for name, joints, _ in clips:
        lengths = lengths_of(joints)
        assert (np.ptp(lengths, axis=0) < 1e-6 * lengths[0]).all(), name


def test_bodies_differ_but_stay_human(clips):
    ratios = np.array([lengths_of(joints)[0] for _, joints, _ in clips]) / np.array(T2M.bone_lengths[1:])
    assert ratios.min() > 0.78 and ratios.max() < 1.22 and ratios.std(0).min() > 0.04
    assert np.std(ratios[:, 17] / ratios[:, 3]) > 0.02                     # arms against legs


def test_the_lower_foot_does_not_slide(clips):
    """Where one foot hands over to the other, both stay below the speed that counts as contact."""
    for name, joints, _ in clips:
        toes = joints[:, [10, 11]]
        low = toes[..., 1] < demo.SOLE + 5e-3
        slide = np.linalg.norm(np.diff(toes, axis=0)[..., [0, 2]], axis=-1).min(1)
        assert slide[(low[1:] & low[:-1]).any(1)].max(initial=0) < T2M.contact_threshold ** 0.5, name


def test_a_person_stands_somewhere_and_nothing_sinks_into_the_floor(clips):
    for name, joints, _ in clips:
        assert joints[..., 1].min() > -0.01, name
        lowest = joints[:, list(T2M.feet), 1].min(1)
        airborne = lowest > 0.03
        assert airborne.any() == ("jump" in actions_of(name)), name
        assert lowest.max() < 0.6 and airborne.mean() < 0.5, name


def test_knees_and_elbows_bend_one_way_and_never_lock(clips):
    for name, joints, _ in clips:
        pelvis_left = joints[:, 1] - joints[:, 2]
        for hip, knee, ankle in ((1, 4, 7), (2, 5, 8)):
            thigh, shin = joints[:, knee] - joints[:, hip], joints[:, ankle] - joints[:, knee]
            hinge = (np.cross(thigh, shin) * pelvis_left).sum(-1)
            assert hinge.min() > -1e-9, name       # the shin folds backward, about the axis to the left
            bend = angle(thigh, shin)
            assert bend.min() > 1 and bend.max() < 155, name
        for shoulder, elbow, wrist in ((16, 18, 20), (17, 19, 21)):
            bend = angle(joints[:, elbow] - joints[:, shoulder], joints[:, wrist] - joints[:, elbow])
            assert bend.min() > 1 and bend.max() < 150, name


def angle(a, b):
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def test_limbs_keep_clear_of_each_other(clips):
    """Bones of two limbs never come closer than limbs are thick."""
    shins, feet, forearms = ((4, 7), (5, 8)), ((7, 10), (8, 11)), ((18, 20), (19, 21))
    pairs = ((*shins, 0.05), (*feet, 0.05), (*forearms, 0.05), (shins[0], feet[1], 0.05),
             (shins[1], feet[0], 0.05), (forearms[0], (0, 12), 0.05), (forearms[1], (0, 12), 0.05),
             (forearms[0], (1, 4), 0.06), (forearms[1], (2, 5), 0.06))
    share = np.linspace(0, 1, 7)[:, None]
    for name, joints, _ in clips[::2]:
        for first, second, least in pairs:
            a, b = (joints[:, [top]] * (1 - share) + joints[:, [end]] * share for top, end in (first, second))
            assert np.linalg.norm(a[:, :, None] - b[:, None], axis=-1).min() > least, (name, first, second)


def test_nothing_pops(clips):
    for name, joints, _ in clips:
        speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * T2M.fps
        acceleration = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1) * T2M.fps ** 2
        assert speed.max() < 11 and speed[:, 0].max() < 5, name
        assert acceleration.max() < 160 and acceleration[:, [0, 15]].max() < 60, name


def test_nobody_is_frozen(clips):
    for name, joints, _ in clips:
        wrists = np.linalg.norm(np.diff(joints[:, [15, 20, 21]], axis=0), axis=-1).max(1)
        assert (wrists > 1e-5).mean() > 0.97, name


@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(-50, 50)), min_size=2, max_size=8))
def test_keyed_goes_through_its_keys_and_never_past_them(parts):
    times, values = np.cumsum([gap for gap, _ in parts]), np.array([value for _, value in parts])
    keys = list(zip(times, values))
    np.testing.assert_allclose(keyed(times, *keys), values, atol=1e-9)
    curve = keyed(np.linspace(times[0] - 1, times[-1] + 1, 400), *keys)
    assert curve.min() >= values.min() - 1e-9 and curve.max() <= values.max() + 1e-9
    assert curve[0] == pytest.approx(values[0]) and curve[-1] == pytest.approx(values[-1])


def test_captions_say_what_happens(clips):
    """Each action by its name; a waving hand is the one that rises, a kicking foot leaves the floor."""
    for name, joints, (caption,) in clips:
        assert all(action in caption for action in actions_of(name)), (name, caption)
        for action, (left, right), word in (("wave", (20, 21), "hand"), ("kick", (7, 8), "foot")):
            if actions_of(name) == [action] and "both" not in caption:
                higher = "left" if joints[:, left, 1].max() > joints[:, right, 1].max() else "right"
                assert f"{higher} {word}" in caption, name


def test_walkers_go_where_their_caption_says(clips):
    for name, joints, (caption,) in clips:
        if actions_of(name) == ["walk"]:
            left = (joints[0, 1] - joints[0, 2]) * (1, 0, 1)
            forward = np.cross(left / np.linalg.norm(left), [0, 1, 0])
            ahead = (joints[-1, 0] - joints[0, 0]) @ forward
            aside = np.abs(np.cross(forward, joints[-1, 0] - joints[0, 0])[1])
            assert ahead < -0.4 if "backward" in caption else ahead > 0.5, name
            assert (aside > 0.25 * abs(ahead)) == ("curve" in caption), name


def test_a_body_moves_by_its_angles_about_the_lower_foot():
    """By hand: legs of 0.8 m that swing back by 30 degrees carry the root ahead of the toes."""
    score = Score(np.random.default_rng(0))
    score.angles[:] = 0
    swing = keyed(score.t, (1, 0), (2, 30))
    for side in ("left", "right"):
        score.leg(side, -swing, 0, 0)
    joints = demo.animate(score, np.full(22, 0.4))
    np.testing.assert_allclose(joints[-1, 0] - joints[0, 0], (0, -0.8 * (1 - np.sqrt(0.75)), 0.4), atol=1e-9)
    np.testing.assert_allclose(np.ptp(joints[:, [10, 11]], axis=0), 0, atol=1e-9)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        demo.ensure_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_set_left_half_made_is_finished(tmp_path):
    assert demo.ensure_demo(tmp_path / "demo", count=6).kept == 0
    assert demo.ensure_demo(tmp_path / "demo", count=6) is None
    (tmp_path / "demo/all.txt").unlink()
    report = demo.ensure_demo(tmp_path / "demo", count=6)
    assert report.kept == 6 and len(read_ids(tmp_path / "demo/all.txt")) == 6


@pytest.mark.slow
def test_the_recipe_trains_on_the_demo_set_it_makes(tmp_path, monkeypatch):
    """The README's first command, cut short, on a part of the set."""
    make = demo.ensure_demo
    monkeypatch.setattr(demo, "ensure_demo", lambda root: make(root, count=30))
    monkeypatch.chdir(Path(__file__).parent.parent)
    flags = "--exp-name run --total-iter 2 --warm-up-iter 1 --batch-size 4 --nb-vis 0 --device cpu".split()
    folders = [f"--data-root={tmp_path}/demo", f"--out-dir={tmp_path}"]
    assert main(get_args_parser(["@options/demo.args", *folders, *flags])) == 0
    log = (tmp_path / "run/run.log").read_text()
    assert "made the demo set" in log and "MPJPE" in log
    assert len(read_ids(tmp_path / "demo/all.txt")) == 30
