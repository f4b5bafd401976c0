"""A BVH file → joint positions: a reader and forward kinematics.

Format: Biovision's HIERARCHY and MOTION sections. Any rotation order and position channels on any joint.
"""
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import UserError

ROTATIONS = {"Xrotation": 0, "Yrotation": 1, "Zrotation": 2}
POSITIONS = {"Xposition": 0, "Yposition": 1, "Zposition": 2}
END = " end"    # added to the parent's name to name an End Site


@dataclass
class Bvh:
    """A skeleton of J joints, End Sites among them, and F frames of C channels."""

    names: list = field(default_factory=list)       # J
    parents: list = field(default_factory=list)     # J indices, a parent before its children; -1 for the root
    offsets: list = field(default_factory=list)     # (J, 3) in the file's unit
    channels: list = field(default_factory=list)    # J lists of channel names, in the file's order
    motion: np.ndarray = None                       # (F, C) float64, degrees and the file's unit
    frame_time: float = None                        # seconds, as the file says


class Misfit(Exception):
    """What was found and what was expected, in a line that does not fit the format."""


def read_bvh(path):
    """Read a BVH file into a `Bvh`. Raises UserError with the line that does not fit the format."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a BVH file") from None
    bvh = Bvh()
    start = _read_hierarchy(path, lines, bvh)
    bvh.offsets = np.array(bvh.offsets, np.float64)
    bvh.motion, bvh.frame_time = _read_motion(path, lines, start, sum(map(len, bvh.channels)))
    return bvh


def _read_hierarchy(path, lines, bvh):
    """Fill in the joints of `bvh`. Return the index of the line after MOTION."""
    open_joints, number = [], 1
    try:
        if not lines or lines[0].split() != ["HIERARCHY"]:
            raise Misfit(f"starts with {lines[0][:40]!r}" if lines else "the file is empty", "HIERARCHY")
        for number, line in enumerate(lines[1:], 2):
            words = line.replace("{", " { ").replace("}", " } ").split()
            if words == ["MOTION"]:
                _check_joints(bvh, open_joints)
                return number
            while words:
                words = _read_statement(words, bvh, open_joints)
        raise Misfit("the file ends", "MOTION")
    except Misfit as error:
        found, expected = error.args
        raise UserError(f"{path}, line {number}: {found}; expected {expected}") from None


def _read_statement(words, bvh, open_joints):
    """Take the first statement of `words`, and return the words after it. open_joints: a stack of indices."""
    keyword, rest = words[0], words[1:]
    if keyword in ("ROOT", "JOINT", "End"):
        return _read_joint(keyword, rest, bvh, open_joints)
    if keyword == "{":
        if not bvh.names or bvh.offsets[-1] is not None or len(bvh.names) - 1 in open_joints:
            raise Misfit("an opening brace", "ROOT, JOINT or End Site before it")
        open_joints.append(len(bvh.names) - 1)
        return rest
    if keyword == "}" and not open_joints:
        raise Misfit("a closing brace too many", "MOTION")
    if keyword == "}":
        open_joints.pop()
        return rest
    if keyword == "OFFSET" and open_joints:
        bvh.offsets[open_joints[-1]] = _read_offset(rest[:3])
        return rest[3:]
    if keyword == "CHANNELS" and open_joints:
        bvh.channels[open_joints[-1]] = _read_channels(rest)
        return []
    raise Misfit(f"{keyword[:40]!r}", "ROOT, JOINT, End Site, OFFSET, CHANNELS, a brace or MOTION")


def _read_joint(keyword, words, bvh, open_joints):
    if keyword == "ROOT" and bvh.names:
        raise Misfit("a second ROOT", "one skeleton")
    if keyword != "ROOT" and not open_joints:
        raise Misfit(f"{keyword} outside of a joint", "it between the braces of its parent")
    parent = open_joints[-1] if open_joints else -1
    named = list(itertools.takewhile(lambda word: word != "{", words))
    name = bvh.names[parent] + END if keyword == "End" else "_".join(named)
    if not name:
        raise Misfit(f"{keyword} without a name", f"{keyword} NAME")
    if name in bvh.names and keyword != "End":
        raise Misfit(f"a second joint named {name}", "one of each name")
    bvh.names.append(name)
    bvh.parents.append(parent)
    bvh.offsets.append(None)
    bvh.channels.append([])
    return words[len(named):]


def _read_offset(words):
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise Misfit(f"OFFSET {' '.join(words)[:40]}", "OFFSET and 3 finite numbers")
    return numbers


def _read_channels(words):
    count, names = words[0] if words else "", words[1:]
    if not count.isdecimal() or int(count) != len(names):
        raise Misfit(f"CHANNELS {count[:10]} followed by {len(names)} names", "CHANNELS COUNT NAME …")
    unknown = [name for name in names if name not in ROTATIONS and name not in POSITIONS]
    if unknown or len(set(names)) < len(names):
        raise Misfit(f"channel {unknown[0][:40]}" if unknown else "a channel twice",
                     f"each at most once of {', '.join([*POSITIONS, *ROTATIONS])}")
    return names


def _check_joints(bvh, open_joints):
    if open_joints or not bvh.names:
        raise Misfit("MOTION", f"{len(open_joints)} closing braces first" if bvh.names else "a ROOT first")
    for name, offset in zip(bvh.names, bvh.offsets):
        if offset is None:
            raise Misfit(f"joint {name[:40]} has no OFFSET", "OFFSET X Y Z between its braces")


def _read_motion(path, lines, start, width):
    """Return the frames (F, C) and seconds per frame. start: index of the line after MOTION."""
    numbered = enumerate(itertools.islice(lines, start, None), start + 1)
    filled = ((number, line.strip()) for number, line in numbered if line.strip())
    values, number = [], len(lines)
    for wanted in ("Frames", "Frame Time"):
        number, line = next(filled, (len(lines), ""))
        key, _, value = line.partition(":")
        try:
            values.append(float(value) if " ".join(key.split()) == wanted else None)
        except ValueError:
            values.append(None)
        if values[-1] is None:
            found = repr(line[:40]) if line else "the file ends"
            raise UserError(f"{path}, line {number}: {found}; expected 'Frames: N' and 'Frame Time: SECONDS'")
    frames, time = values
    if not 1 <= frames < 1e9 or frames != int(frames):
        raise UserError(f"{path}: Frames is {frames:g}; expected at least one frame")
    if width == 0:
        raise UserError(f"{path}: no joint has a channel; expected CHANNELS for the joints that move")
    return _read_frames(path, lines, number, int(frames), width), time


def _read_frames(path, lines, start, frames, width):
    """Return the numbers of the lines from index `start` on, (frames, width). Raises UserError for others."""
    try:
        motion = np.array(" ".join(lines[start:]).split(), np.float64)
        if len(motion) == frames * width and np.isfinite(motion).all():
            return motion.reshape(frames, width)
    except ValueError:
        pass  # a word that is not a number: the search below finds its line
    count = 0
    for number, line in enumerate(lines[start:], start + 1):
        words = line.split()
        where = f"{path}, line {number} (frame {count})"
        for word in words:
            try:
                finite = np.isfinite(float(word))
            except ValueError:
                raise UserError(f"{where}: {word[:40]!r} is not a number") from None
            if not finite:
                raise UserError(f"{where}: {word[:40]}; expected finite numbers")
        if words and len(words) != width:
            raise UserError(f"{where}: {len(words)} numbers; expected {width}")
        count += bool(words)
    raise UserError(f"{path}: {count} frames, the header says Frames: {frames}; is the file cut short?")


def rest_positions(bvh):
    """Return the positions (1, J, 3) of the zero pose: the offsets alone, End Sites included."""
    positions = np.array(bvh.offsets)
    for joint, parent in enumerate(bvh.parents):
        if parent >= 0:
            positions[joint] += positions[parent]
    return positions[None]


def joint_positions(bvh):
    """Return the global positions (F, J, 3) float64 in the file's unit, End Sites included."""
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
                a, b = (ROTATIONS[name] + 1) % 3, (ROTATIONS[name] + 2) % 3
                columns[a], columns[b] = (cos[channel] * columns[a] + sin[channel] * columns[b],
                                          cos[channel] * columns[b] - sin[channel] * columns[a])
            channel += 1
        rotations.append(columns)
        positions[joint] = sum(x * axis for x, axis in zip(local, above))
        if parent >= 0:
            positions[joint] += positions[parent]
    return np.moveaxis(positions, -1, 0)
