"""The BVH reader and forward kinematics: by hand, against scipy, and every way a file can be broken."""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dataset.prepare.bvh import END, joint_positions, read_bvh
from dataset.prepare.source import Reading, read_clip
from utils.errors import UserError

ARM = """HIERARCHY
ROOT hip
{
\tOFFSET 0 0 0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
\tJOINT knee
\t{
\t\tOFFSET 0 -2 0
\t\tCHANNELS 3 Zrotation Xrotation Yrotation
\t\tEnd Site
\t\t{
\t\t\tOFFSET 0 -1 0
\t\t}
\t}
}
MOTION
Frames:\t2
Frame Time:\t0.05
1 2 3 0 0 0 0 0 0
1 2 3 90 0 0 0 90 0
"""


@pytest.fixture
def read(tmp_path):
    def read_text(text, encoding="utf-8"):
        path = tmp_path / "clip.bvh"
        path.write_bytes(text.encode(encoding))
        return read_bvh(path)
    return read_text


def test_a_leg_by_hand(read):
    bvh = read(ARM)
    assert bvh.names == ["hip", "knee", "knee" + END] and bvh.parents == [-1, 0, 1] and bvh.frame_time == 0.05
    positions = joint_positions(bvh)
    np.testing.assert_allclose(positions[0], [[1, 2, 3], [1, 0, 3], [1, -1, 3]], atol=1e-12)
    # a quarter turn about z takes -y to +x; the knee's own, about its x, takes the shin's -y to -z
    np.testing.assert_allclose(positions[1], [[1, 2, 3], [3, 2, 3], [3, 2, 2]], atol=1e-12)


def test_layout_does_not_matter(read):
    expected = joint_positions(read(ARM))
    for text in (
        ARM.replace("\n", "\r\n"),
        "\ufeff" + ARM,
        ARM.replace("\t", "    "),
        ARM + "\n\n",
        ARM.replace("ROOT hip\n{", "ROOT hip {"),
        ARM.replace("MOTION\n", "MOTION\n\n"),
        ARM.replace("0 0 0 0 0 0\n1", "0 0 0 0 0 0\n\n1"),
    ):
        np.testing.assert_array_equal(joint_positions(read(text)), expected)


def test_position_channels_replace_the_offset_of_any_joint(read):
    text = ARM.replace("CHANNELS 3 Zrotation Xrotation Yrotation", "CHANNELS 2 Yposition Zrotation")
    text = text.replace("1 2 3 0 0 0 0 0 0\n1 2 3 90 0 0 0 90 0", "1 2 3 0 0 0 -5 0\n1 2 3 90 0 0 -7 90")
    positions = joint_positions(read(text))
    np.testing.assert_allclose(positions[0], [[1, 2, 3], [1, -3, 3], [1, -4, 3]], atol=1e-12)
    np.testing.assert_allclose(positions[1], [[1, 2, 3], [8, 2, 3], [8, 3, 3]], atol=1e-12)


def make_bvh(rng, joints, frames):
    """A random tree as BVH text, and its positions by scipy (frames, joints, 3)."""
    orders = ["".join(order) for order in itertools.permutations("XYZ")]
    parents = [-1] + [int(rng.integers(i)) for i in range(1, joints)]
    offsets, order = rng.normal(size=(joints, 3)).round(4), [orders[i] for i in rng.integers(6, size=joints)]
    moves = rng.random(joints) < 0.4
    rows, lines = {}, ["HIERARCHY"]

    def write(joint, depth):
        names = [f"{axis}position" for axis in "XYZ"] * bool(moves[joint]) + [
            f"{axis}rotation" for axis in order[joint]
        ]
        rows[joint] = rng.uniform(-180, 180, (frames, len(names))).round(5)
        lines.extend(
            [
                f"{'JOINT' if depth else 'ROOT'} j{joint}",
                "{",
                "OFFSET " + " ".join(map(str, offsets[joint])),
                f"CHANNELS {len(names)} " + " ".join(names),
            ]
        )
        for child in (child for child in range(joints) if parents[child] == joint):
            write(child, depth + 1)
        lines.append("}")

    write(0, 0)
    motion = np.concatenate(list(rows.values()), 1)
    lines += [
        "MOTION",
        f"Frames: {frames}",
        "Frame Time: 0.01",
        *(" ".join(map(repr, row)) for row in motion.tolist()),
    ]
    positions, turned = np.zeros((frames, joints, 3)), [None] * joints
    for joint in range(joints):
        local = rows[joint][:, :3] if moves[joint] else np.tile(offsets[joint], (frames, 1))
        own = Rotation.from_euler(order[joint], rows[joint][:, -3:], degrees=True)
        if joint:
            local = positions[:, parents[joint]] + turned[parents[joint]].apply(local)
            own = turned[parents[joint]] * own
        positions[:, joint], turned[joint] = local, own
    return "\n".join(lines), positions


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10 ** 6), st.integers(1, 12))
def test_forward_kinematics_agrees_with_scipy(tmp_path_factory, seed, joints):
    text, expected = make_bvh(np.random.default_rng(seed), joints, 5)
    path = tmp_path_factory.mktemp("bvh") / "tree.bvh"
    path.write_text(text)
    bvh = read_bvh(path)
    order = [bvh.names.index(f"j{i}") for i in range(joints)]
    np.testing.assert_allclose(joint_positions(bvh)[:, order], expected, atol=1e-6)


def test_forward_kinematics_agrees_with_bvhio(tmp_path):
    bvhio = pytest.importorskip("bvhio")
    text, _ = make_bvh(np.random.default_rng(4), 8, 3)
    path = tmp_path / "tree.bvh"
    path.write_text(text)
    bvh, root = read_bvh(path), bvhio.readAsHierarchy(str(path))
    for frame, positions in enumerate(joint_positions(bvh)):
        root.loadPose(frame)
        for joint, *_ in root.layout():
            np.testing.assert_allclose(
                positions[bvh.names.index(joint.Name)], np.array(joint.PositionWorld), rtol=1e-3, atol=1e-2
            )


BROKEN = {
    "empty": ("", "line 0: the skeleton ends; expected HIERARCHY"),
    "another format": ("; FBX 7.4.0\n", "line 1: ';'; expected HIERARCHY"),
    "no MOTION": (ARM[: ARM.index("MOTION")], "''; expected MOTION"),
    "cut in the skeleton": (ARM[: ARM.index("}")], "line 12: the skeleton ends; expected .*MOTION"),
    "brace missing": (ARM.replace("\t}\n}\n", "\t}\n"), "line 15: the skeleton ends.*closing brace"),
    "brace too many": (ARM.replace("}\nMOTION", "}\n}\nMOTION"), "line 16: '}'; expected .*braces"),
    "two roots": (ARM.replace("MOTION", "ROOT b\n{\nOFFSET 0 0 0\n}\nMOTION"), "'ROOT'; expected .*one ROOT"),
    "a name twice": (ARM.replace("knee", "hip"), "line 6: a second joint named hip"),
    "channel count": (ARM.replace("CHANNELS 3 Z", "CHANNELS 4 Z"), "line 9: CHANNELS 4 Z.*their number"),
    "channel name": (ARM.replace("CHANNELS 3 Z", "CHANNELS 3 W"), "line 9: CHANNELS 3 W.*, Xposition"),
    "offset": (ARM.replace("OFFSET 0 -2 0", "OFFSET 0 -2"), "line 8: '0 -2'; expected 3 finite numbers"),
    "no offset": (ARM.replace("\t\tOFFSET 0 -2 0\n", ""), "line 15: the skeleton ends.*OFFSET"),
    "keyword": (ARM.replace("CHANNELS 3", "CHANELS 3"), "line 9: 'CHANELS'"),
    "zero frames": (ARM.replace("Frames:\t2", "Frames: 0"), "'Frames: 0 .*; expected MOTION, 'Frames: N'"),
    "frames not a number": (ARM.replace("Frames:\t2", "Frames: two"), "'Frames: two "),
    "no frame time": (ARM[: ARM.index("Frame Time")], "'Frames: 2'; expected .* and 'Frame Time"),
    "truncated": (ARM[: ARM.rindex("1 2 3")], "1 frames, the header says Frames: 2"),
    "truncated in a line": (ARM[:-6], "line 20: '1 2 3 90 0 0 0'; expected 9 finite"),
    "too long": (ARM + "1 2 3 0 0 0 0 0 0\n", "3 frames, the header says Frames: 2"),
    "non-numeric": (ARM.replace("1 2 3 90", "1 2 x 90"), "line 20: '1 2 x 90 .*; expected 9 finite"),
    "not finite": (ARM.replace("1 2 3 90", "1 2 inf 90"), "line 20: '1 2 inf 90 .*; expected 9 finite"),
}


@pytest.mark.parametrize("text, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_says_where(read, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("time", ["1e-9", "0", "0.21", "-0.05"])
def test_a_frame_time_that_cannot_be_is_refused_unless_fps_is_given(tmp_path, time):
    (tmp_path / "clip.bvh").write_text(ARM.replace("0.05", time))
    with pytest.raises(UserError, match=r"Frame Time is .*give --fps"):
        read_clip(tmp_path / "clip.bvh", Reading())
    with pytest.raises(UserError, match="no human skeleton"):
        read_clip(tmp_path / "clip.bvh", Reading(fps=20))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_clip(tmp_path / "nowhere.bvh", Reading())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_brings_a_traceback(tmp_path_factory, data):
    words = ARM.split(" ")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] = data.draw(
            st.sampled_from(
                [
                    "",
                    "{",
                    "}",
                    "-1",
                    "1e999",
                    "JOINT",
                    "MOTION\n",
                    "End Site",
                    "\0",
                    "é",
                    "CHANNELS",
                    words[at] * 2,
                ]
            )
        )
    path = tmp_path_factory.mktemp("bvh") / "damaged.bvh"
    path.write_text(" ".join(words)[:data.draw(st.integers(0, len(ARM) + 20))])
    try:
        assert np.isfinite(joint_positions(read_bvh(path))).all()
    except UserError as error:
        assert "\n" not in str(error)
