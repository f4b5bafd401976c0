"""A BVH file → joint positions: a small reader and forward kinematics.

Format: Biovision's HIERARCHY and MOTION sections. Any rotation order on any joint; position channels on any joint replace its OFFSET.
"""
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError

ROTATIONS = {"Xrotation": 0, "Yrotation": 1, "Zrotation": 2}
POSITIONS = {"Xposition": 0, "Yposition": 1, "Zposition": 2}
MAX_FPS = 1000
END = " end"    # what the name of an End Site's joint adds to its parent's


@dataclass
class Bvh:
    """A skeleton of J joints, End Sites among them, and F frames of C channels."""

    names: list            # J
    parents: list          # J indices, a parent before its children; -1 for the root
    offsets: np.ndarray    # (J, 3) in the file's unit
    channels: list         # J lists of channel names, in the file's order
    motion: np.ndarray     # (F, C) float64, degrees and the file's unit
    fps: float


def read_bvh(path):
    """Read a BVH file. Raises UserError with the line for anything that does not fit the format or does not add up."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a BVH file") from None
    lines = text.splitlines()
    names, parents, offsets, channels, start = _read_hierarchy(path, lines)
    motion, fps = _read_motion(path, lines, start, sum(map(len, channels)))
    return Bvh(names, parents, np.array(offsets), channels, motion, fps)


def _read_hierarchy(path, lines):
    """The skeleton, and the index of the line after MOTION."""

    def fail(found, expected):
        raise UserError(f"{path}, line {number}: {found}; expected {expected}")

    names, parents, offsets, channels, open_joints, joint = [], [], [], [], [], None
    number = 1
    if not lines or lines[0].split() != ["HIERARCHY"]:
        fail(f"starts with {lines[0][:40]!r}" if lines else "the file is empty", "HIERARCHY")
    for number, line in enumerate(lines, 1):
        words = line.replace("{", " { ").replace("}", " } ").split()
        while words:
            word, words = words[0], words[1:]
            if word == "HIERARCHY":
                continue
            if word == "MOTION":
                if open_joints or not names:
                    fail("MOTION", f"{len(open_joints)} closing braces first" if names else "a ROOT first")
                _check_joints(path, names, offsets)
                return names, parents, offsets, channels, number
            if word in ("ROOT", "JOINT", "End"):
                if word == "ROOT" and names:
                    fail("a second ROOT", "one skeleton")
                if word != "ROOT" and not open_joints:
                    fail(f"{word} outside of a joint", "it between the braces of its parent")
                parent = open_joints[-1] if open_joints else -1
                name = names[parent] + END if word == "End" else "_".join(itertools.takewhile(lambda w: w != "{", words))
                if not name:
                    fail(f"{word} without a name", f"{word} NAME")
                if name in names and word != "End":
                    fail(f"a second joint named {name}", "one of each name")
                words = words[words.index("{"):] if "{" in words else []
                joint = len(names)
                names.append(name)
                parents.append(parent)
                offsets.append(None)
                channels.append([])
            elif word == "{":
                if joint is None or joint in open_joints:
                    fail("an opening brace", "ROOT, JOINT or End Site before it")
                open_joints.append(joint)
            elif word == "}":
                if not open_joints:
                    fail("a closing brace too many", "MOTION")
                open_joints.pop()
            elif word == "OFFSET" and open_joints:
                offsets[open_joints[-1]], words = _numbers(words, 3, fail), words[3:]
            elif word == "CHANNELS" and open_joints:
                if not words or not words[0].isdigit():
                    fail(f"CHANNELS {' '.join(words)[:40]}", "CHANNELS COUNT NAME …")
                found = words[1:]
                if len(found) != int(words[0]):
                    fail(f"CHANNELS {words[0]} followed by {len(found)} names", f"{words[0]} names")
                unknown = [name for name in found if name not in ROTATIONS and name not in POSITIONS]
                if unknown or len(set(found)) < len(found):
                    fail(f"channel {unknown[0]}" if unknown else "a channel twice", f"each at most once of {', '.join([*POSITIONS, *ROTATIONS])}")
                channels[open_joints[-1]], words = found, []
            else:
                fail(f"{word[:40]!r}", "ROOT, JOINT, End Site, OFFSET, CHANNELS, a brace or MOTION")
    fail("the file ends", "MOTION")


def _check_joints(path, names, offsets):
    for name, offset in zip(names, offsets):
        if offset is None:
            raise UserError(f"{path}: joint {name} has no OFFSET; expected OFFSET X Y Z between its braces")


def _numbers(words, count, fail):
    try:
        numbers = [float(word) for word in words[:count]]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        fail(f"OFFSET {' '.join(words)[:40]}", f"OFFSET and {count} finite numbers")
    return numbers


def _read_motion(path, lines, start, width):
    """Frames (F, C) and frames per second from the lines after MOTION."""
    header, number = {}, start
    while number < len(lines) and len(header) < 2:
        line = lines[number].strip()
        number += 1
        if not line:
            continue
        key, _, value = line.partition(":")
        try:
            header[{"Frames": "frames", "Frame Time": "time"}[" ".join(key.split())]] = float(value)
        except (KeyError, ValueError):
            raise UserError(f"{path}, line {number}: {line[:40]!r}; expected 'Frames: N' and 'Frame Time: SECONDS'") from None
    if len(header) < 2:
        raise UserError(f"{path}, line {len(lines)}: the file ends; expected 'Frames: N' and 'Frame Time: SECONDS' after MOTION")
    frames, time = header["frames"], header["time"]
    if not frames >= 1 or frames != int(frames):
        raise UserError(f"{path}: Frames is {frames:g}; expected at least one frame")
    if not 1 / MAX_FPS <= time <= 1:
        raise UserError(f"{path}: Frame Time is {time:g} s; expected between {1 / MAX_FPS} (1000 fps) and 1; mend the file's header")
    if width == 0:
        raise UserError(f"{path}: no joint has a channel; expected CHANNELS for the joints that move")
    return _read_frames(path, lines, number, int(frames), width), 1 / time


def _read_frames(path, lines, start, frames, width):
    words = " ".join(itertools.islice(lines, start, None)).split()
    try:
        motion = np.array(words, np.float64)
        if len(motion) == frames * width and np.isfinite(motion).all():
            return motion.reshape(frames, width)
    except ValueError:
        pass  # a word that is not a number: the search below finds its line
    count = 0
    for number, line in enumerate(lines[start:], start + 1):
        words = line.split()
        for word in words:
            try:
                finite = np.isfinite(float(word))
            except ValueError:
                raise UserError(f"{path}, line {number}: {word[:40]!r} is not a number; expected {width} numbers") from None
            if not finite:
                raise UserError(f"{path}, line {number} (frame {count}): {word}; expected finite numbers")
        if words and len(words) != width:
            raise UserError(f"{path}, line {number} (frame {count}): {len(words)} numbers; expected {width}, one for each channel")
        count += bool(words)
    raise UserError(f"{path}: {count} frames after a header that says Frames: {frames}; expected {frames} (is the file cut short?)")


def joint_positions(bvh):
    """Forward kinematics: global positions (F, J, 3) float64 in the file's unit, End Sites included."""
    motion = np.ascontiguousarray(bvh.motion.T)                     # (C, F)
    angles = np.radians(motion)
    cos, sin = np.cos(angles), np.sin(angles)
    positions = np.empty((len(bvh.names), 3, motion.shape[1]))
    rotations, channel = [], 0
    for joint, (parent, offset, channels) in enumerate(zip(bvh.parents, bvh.offsets, bvh.channels)):
        local = list(offset)
        # the columns of the global rotation, (3, F) each; a rotation channel mixes two of them
        columns = list(rotations[parent]) if parent >= 0 else [axis[:, None] for axis in np.eye(3)]
        above = list(columns)
        for name in channels:
            if name in POSITIONS:
                local[POSITIONS[name]] = motion[channel]
            else:
                axis = ROTATIONS[name]
                a, b = (axis + 1) % 3, (axis + 2) % 3
                columns[a], columns[b] = (cos[channel] * columns[a] + sin[channel] * columns[b],
                                          cos[channel] * columns[b] - sin[channel] * columns[a])
            channel += 1
        rotations.append(columns)
        positions[joint] = sum(x * axis for x, axis in zip(local, above))
        if parent >= 0:
            positions[joint] += positions[parent]
    return np.moveaxis(positions, -1, 0)
