"""A BVH file (Biovision's HIERARCHY and MOTION) → joint positions: a reader and forward kinematics."""
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError

POSITIONS, ROTATIONS = ([axis + kind for axis in "XYZ"] for kind in ("position", "rotation"))
HEADER = r"Frames ?: ?([1-9]\d{,9}) Frame Time ?: ?(\S+)"
END = " end"    # added to the parent's name to name an End Site


@dataclass
class Bvh:
    """A skeleton of J joints, End Sites among them, and F frames of C channels."""

    names: list                     # J
    parents: list                   # J indices, a parent before its children; -1 for the root
    offsets: list                   # (J, 3) in the file's unit
    channels: list                  # J lists of channel names, in the file's order
    motion: np.ndarray = None       # (F, C) float64, degrees and the file's unit
    frame_time: float = None        # seconds, as the file says


def read_bvh(path):
    """Read a BVH file into a `Bvh`. Raises OSError, and UserError for what does not fit the format."""
    lines = Path(path).read_text("utf-8-sig", "replace").splitlines()
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    bvh, above, number = Bvh([], [], [], []), [], 0
    for number, line in numbered:
        if line.split() == ["MOTION"]:
            break
        for part in re.split(r"([{}]|(?=CHANNELS))", line):
            _read_part(part.split(), number, bvh, above)
    if above or not any(bvh.channels) or None in bvh.offsets:
        raise UserError(f"line {number}: the skeleton ends; expected HIERARCHY, CHANNELS, and each joint's "
                        "OFFSET and closing brace before MOTION")
    header = " ".join(word for _, (_, line) in zip(range(2), numbered) for word in line.split())
    match = re.fullmatch(HEADER, header)
    if not match:
        raise UserError(f"{header[:60]!r}; expected MOTION, 'Frames: N' and 'Frame Time: SECONDS'")
    frames, width, rows = int(match[1]), sum(map(len, bvh.channels)), list(numbered)
    bvh.frame_time = _read_numbers([match[2]], 1, number + 2)[0]
    try:
        motion = _read_numbers(" ".join(line for _, line in rows).split(), frames * width, 0)
    except UserError:
        for number, line in rows:
            _read_numbers(line.split(), width, number)
        raise UserError(f"{len(rows)} frames, the header says Frames: {frames}; is the file cut?") from None
    bvh.motion = motion.reshape(frames, width)
    return bvh


def _read_part(words, number, bvh, above):
    """Read a brace, or what stands between two in a line. above: a stack of the joints that are open."""
    keyword, *words = words or ["{"]
    if (keyword in ("JOINT", "End") and above) or (keyword == "ROOT" and not bvh.names):
        name = bvh.names[above[-1]] + END if keyword == "End" else " ".join(words)
        if name in bvh.names and keyword != "End":
            raise UserError(f"line {number}: a second joint named {name[:40]}; expected one of each name")
        bvh.names.append(name)
        bvh.parents.append(above[-1] if above else -1)
        bvh.offsets.append(None)
        bvh.channels.append([])
        above.append(len(bvh.names) - 1)
    elif keyword == "}" and above:
        above.pop()
    elif keyword == "OFFSET" and above:
        bvh.offsets[above[-1]] = _read_numbers(words, 3, number).tolist()
    elif keyword == "CHANNELS" and above:
        count, *names = words or [""]
        if count != str(len(names)) or len({*names} & {*POSITIONS, *ROTATIONS}) < len(names):
            raise UserError(f"line {number}: CHANNELS {' '.join(words)[:40]}; expected their number, then, "
                            f"once at most, {', '.join(POSITIONS + ROTATIONS)}")
        bvh.channels[above[-1]] = names
    elif keyword not in ("HIERARCHY", "{"):
        raise UserError(f"line {number}: {keyword[:40]!r}; expected HIERARCHY, one ROOT, JOINT, End Site, "
                        "OFFSET, CHANNELS, as many braces closed as opened, or MOTION")


def _read_numbers(words, count, number):
    with suppress(ValueError):
        numbers = np.array(words, np.float64)
        if len(numbers) == count and np.isfinite(numbers).all():
            return numbers
    raise UserError(f"line {number}: {' '.join(words[:9])[:40]!r}; expected {count} finite numbers")


def joint_positions(bvh):
    """Return the global positions (F, J, 3) float64 in the file's unit, End Sites included."""
    motion = iter(np.ascontiguousarray(bvh.motion.T))
    positions = np.zeros((len(bvh.names) + 1, 3, len(bvh.motion)))      # the last: the root's parent, -1
    columns = np.empty((len(bvh.names) + 1, 3, 3, len(bvh.motion)))     # of the global rotations
    columns[-1] = np.eye(3)[..., None]
    for joint, (parent, offset, channels) in enumerate(zip(bvh.parents, bvh.offsets, bvh.channels)):
        local, own = list(offset), list(columns[parent])
        for name, value in zip(channels, motion):
            axis = "XYZ".index(name[0])
            if name in POSITIONS:
                local[axis] = value
            else:
                cos, sin = np.cos(np.radians(value)), np.sin(np.radians(value))
                a, b = own[axis - 2], own[axis - 1]     # a turn mixes the columns of the other two axes
                own[axis - 2], own[axis - 1] = cos * a + sin * b, cos * b - sin * a
        columns[joint] = own
        positions[joint] = positions[parent] + sum(x * axis for x, axis in zip(local, columns[parent]))
    return np.moveaxis(positions[:-1], -1, 0)
