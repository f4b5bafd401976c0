"""The demo people: reproducible, anatomical, with their feet on the ground and captions that say what they do."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.prepare import demo
from dataset.prepare.demo_actions import ACTIONS
from dataset.prepare.demo_score import FRAMES, Score, Step, ease, keyed
from utils.motion_spec import T2M

STEMS = dict(walk=("walk", "step"), run=("run", "jog"), sidestep=("side",), turn=("turn",), jump=("jump",), squat=("squat",),
             sit=("sit", "seat"), wave=("wave", "waving"), punch=("punch",), kick=("kick",), bow=("bow",), dance=("dance", "dancing"))


@pytest.fixture(scope="module")
def clips():
    return [demo.make_clip(0, index) for index in range(420)]


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


def test_at_least_400_clips_of_2_to_8_seconds_with_every_action(clips):
    named = [name for name, *_ in demo.make_clips()]
    assert len(named) >= 400 and len(set(named)) == len(named) and named == [name for name, *_ in clips]
    seen = [action for name in named for action in actions_of(name)]
    assert set(seen) == set(ACTIONS) and min(seen.count(action) for action in ACTIONS) >= 30
    assert sum(len(actions_of(name)) > 1 for name in named) > 80            # transitions
    for name, joints, _, planted in clips:
        assert joints.dtype == np.float64 and joints.shape[1:] == (22, 3) and 40 <= len(joints) <= 160, name
        assert planted.shape == (len(joints), 2) and np.isfinite(joints).all(), name


def test_bones_keep_their_length(clips):
    for name, joints, *_ in clips:
        lengths = lengths_of(joints)
        assert (np.ptp(lengths, axis=0) < 1e-6 * lengths[0]).all(), name


def test_bodies_differ_but_stay_human(clips):
    ratios = np.array([lengths_of(joints)[0] for _, joints, *_ in clips]) / np.array(T2M.bone_lengths[1:])
    assert ratios.min() > 0.78 and ratios.max() < 1.22 and ratios.std(0).min() > 0.04
    assert np.std(ratios[:, 17] / ratios[:, 3]) > 0.02                     # arms against legs


def test_planted_feet_do_not_slide(clips):
    for name, joints, _, planted in clips:
        for side, toe in ((0, 10), (1, 11)):
            held = planted[1:, side] & planted[:-1, side]
            slide = np.linalg.norm(np.diff(joints[:, toe], axis=0)[:, [0, 2]], axis=-1)
            assert slide[held].max(initial=0) < 2e-3, name


def test_a_toe_on_the_floor_does_not_slide(clips):
    """Seen from outside: whatever the animation calls planted, a toe as low as a standing one holds still."""
    for name, joints, *_ in clips:
        size = lengths_of(joints)[0, 3] / T2M.bone_lengths[4]
        for toe in (10, 11):
            low = joints[:, toe, 1] < size * demo.SOLE + 5e-4
            slide = np.linalg.norm(np.diff(joints[:, toe], axis=0)[:, [0, 2]], axis=-1)
            assert slide[low[1:] & low[:-1]].max(initial=0) < 4e-3, name


def test_a_person_stands_somewhere_and_nothing_sinks_into_the_floor(clips):
    for name, joints, *_ in clips:
        assert joints[..., 1].min() > -0.01, name
        lowest = joints[:, list(T2M.feet), 1].min(1)
        airborne = lowest > 0.03
        if not {"run", "jump"} & set(actions_of(name)):
            assert not airborne.any(), name
        assert lowest.max() < 0.6 and airborne.mean() < 0.5, name


def test_runs_and_jumps_leave_the_ground(clips):
    for name, joints, *_ in clips:
        if name.startswith(("run", "jump")):
            assert joints[:, list(T2M.feet), 1].min(1).max() > 0.04, name


def test_knees_and_elbows_bend_one_way_and_never_lock(clips):
    for name, joints, *_ in clips:
        pelvis_left = joints[:, 1] - joints[:, 2]
        for hip, knee, ankle in ((1, 4, 7), (2, 5, 8)):
            thigh, shin = joints[:, knee] - joints[:, hip], joints[:, ankle] - joints[:, knee]
            hinge = (np.cross(thigh, shin) * pelvis_left).sum(-1)
            assert hinge.min() > -1e-9, name                               # the shin folds backward, about the axis to the left
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
    pairs = ((*shins, 0.06), (*feet, 0.05), (*forearms, 0.05), (shins[0], feet[1], 0.05), (shins[1], feet[0], 0.05), (forearms[0], (0, 12), 0.05),
             (forearms[1], (0, 12), 0.05), (forearms[0], (1, 4), 0.06), (forearms[1], (2, 5), 0.06))
    share = np.linspace(0, 1, 7)[:, None]
    for name, joints, *_ in clips[1::3]:
        for first, second, least in pairs:
            a, b = (joints[:, bone[0], None] * (1 - share) + joints[:, bone[1], None] * share for bone in (first, second))
            assert np.linalg.norm(a[:, :, None] - b[:, None], axis=-1).min() > least, (name, first, second)


def test_arms_stretched_forward_in_a_squat_stay_level(clips):
    seen = 0
    for name, joints, captions, _ in clips:
        if actions_of(name) == ["squat"] and any("stretched forward" in caption for caption in captions):
            deepest = joints[joints[:, 0, 1].argmin()]
            for shoulder, wrist in ((16, 20), (17, 21)):
                reach = deepest[wrist] - deepest[shoulder]
                assert abs(np.degrees(np.arcsin(reach[1] / np.linalg.norm(reach)))) < 25, name
                seen += 1
    assert seen


def test_nothing_pops(clips):
    for name, joints, *_ in clips:
        speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * T2M.fps
        acceleration = np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1) * T2M.fps ** 2
        assert speed.max() < 11 and speed[:, 0].max() < 5, name
        assert acceleration.max() < 160 and acceleration[:, [0, 15]].max() < 60, name


def test_nobody_is_frozen(clips):
    for name, joints, *_ in clips:
        wrists = np.linalg.norm(np.diff(joints[:, [15, 20, 21]], axis=0), axis=-1).max(1)
        assert (wrists > 1e-5).mean() > 0.97, name


def test_captions_name_the_actions(clips):
    for name, _, captions, _ in clips:
        assert 2 <= len(captions) <= 4 and len(set(captions)) == len(captions), name
        for caption in captions:
            assert caption == caption.strip() == caption.lower() and "  " not in caption, caption
            assert all(character.isalpha() or character in " ,-" for character in caption), caption
            for action in actions_of(name):
                assert any(stem in caption for stem in STEMS[action]), (name, caption)


def test_captions_tell_the_side(clips):
    """A waving hand is the one that rises, a kicking leg the one that leaves the floor."""
    checked = 0
    for name, joints, captions, _ in clips:
        for action, (left, right), word in (("wave", (20, 21), "hand"), ("kick", (7, 8), "foot")):
            if actions_of(name) == [action]:
                higher = "left" if joints[:, left, 1].max() > joints[:, right, 1].max() else "right"
                lower = "right" if higher == "left" else "left"
                assert not any(f"{lower} {word}" in caption for caption in captions), name
                checked += 1
    assert checked > 20


def test_clips_stand_the_right_way_round(clips):
    """A walk forward goes where the hips face, one backward goes the other way, a sidestep across, there and back nowhere."""
    seen = set()
    for name, joints, captions, _ in clips:
        if actions_of(name) not in (["walk"], ["sidestep"]):
            continue
        left = (joints[0, 1] - joints[0, 2]) * (1, 0, 1)
        left /= np.linalg.norm(left)
        travel = joints[-1, 0] - joints[0, 0]
        ahead, aside, said = travel @ np.cross(left, (0, 1, 0)), travel @ left, " ".join(captions)
        if name.startswith("sidestep"):
            seen.add("sidestep")
            assert abs(aside) > 3 * abs(ahead) and (aside > 0) == ("left" in said), name
        elif "walks back and forth" in said or "turns around" in said:
            seen.add("return")
            assert np.hypot(ahead, aside) < 0.7 < np.linalg.norm(joints[:, 0] - joints[0, 0], axis=-1).max(), name
        elif "backward" in said or "steps back" in said:
            seen.add("backward")
            assert ahead < -0.4 and abs(aside) < 0.3 * abs(ahead), name
        elif "circle" not in said and "circular" not in said and "curve" not in said and "veer" not in said:
            seen.add("forward")
            assert ahead > 0.8 and abs(aside) < 0.3 * ahead, name
    assert seen == {"sidestep", "return", "backward", "forward"}


def test_a_step_lands_beside_the_root():
    """By hand: at 1 m/s along +z, a left step over 1.0 s is put down at z = 1 and its width to the left (+x)."""
    score = Score(np.random.default_rng(0))
    score.heading, score.width, score.toe_out = 0.0, 0.1, 0.0
    score.steps.append(Step("left", 0.5, 0.9, 1.0, width=0.12))
    path = score.t[:, None] * np.array([0.0, 0.0, 1.0])
    feet = demo.plan_feet(score, path, np.zeros(FRAMES))
    np.testing.assert_allclose(feet["left"]["base"][0], (0.1, 0, 0), atol=1e-12)
    np.testing.assert_allclose(feet["left"]["base"][-1], (0.12, 0, 1.0), atol=1e-12)
    np.testing.assert_allclose(feet["right"]["base"], np.tile((-0.1, 0, 0), (FRAMES, 1)), atol=1e-12)
    assert feet["left"]["lift"][(score.t <= 0.5) | (score.t >= 0.9)].max() == 0
    assert feet["left"]["lift"].max() == pytest.approx(0.08, rel=0.03)


@given(st.lists(st.tuples(st.floats(0.05, 1), st.floats(-50, 50)), min_size=2, max_size=8))
def test_keyed_goes_through_its_keys_and_never_past_them(parts):
    times, values = np.cumsum([gap for gap, _ in parts]), np.array([value for _, value in parts])
    keys = list(zip(times, values))
    np.testing.assert_allclose(keyed(times, *keys), values, atol=1e-9)
    curve = keyed(np.linspace(times[0] - 1, times[-1] + 1, 400), *keys)
    assert curve.min() >= values.min() - 1e-9 and curve.max() <= values.max() + 1e-9
    assert curve[0] == pytest.approx(values[0]) and curve[-1] == pytest.approx(values[-1])


def test_ease_holds_outside_and_is_symmetric():
    u = np.linspace(-1, 2, 301)
    np.testing.assert_allclose(ease(u) + ease(1 - u), 1, atol=1e-12)
    assert (ease(u[u <= 0]) == 0).all() and (ease(u[u >= 1]) == 1).all() and (np.diff(ease(u)) >= 0).all()


def test_straight_line_swing_is_a_rotation():
    """Raising an arm by 90° forward points it at +z, to its side at +x; between them every matrix is orthonormal."""
    down = np.array([0, -1.0, 0])
    np.testing.assert_allclose(demo._swing(np.array([90.0]), np.array([0.0]))[0] @ down, (0, 0, 1), atol=1e-12)
    np.testing.assert_allclose(demo._swing(np.array([0.0]), np.array([90.0]))[0] @ down, (1, 0, 0), atol=1e-12)
    angles = np.random.default_rng(0).uniform(-150, 150, (2, 50))
    matrix = demo._swing(*angles)
    np.testing.assert_allclose(matrix @ matrix.swapaxes(-1, -2), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
