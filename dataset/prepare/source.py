"""One source file → joints in metres, y up, at the data set's frame rate."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from dataset.prepare.bvh import joint_positions, read_bvh
from dataset.prepare.joint_maps import find_map, map_joints
from utils.errors import UserError
from utils.files import load_array
from utils.motion_spec import UNIT_LENGTH, get_spec

SUFFIXES = (".bvh", ".npy")
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inches": 0.0254, "CMU units": 0.0254 / 0.45}
LOW, HIGH = 0.9, 1.95    # metres along the bones from ankle to head, of a child and of a giant: one unit fits
TYPICAL = 1.48           # the same of HumanML3D's skeleton
MAX_SPEED = 15           # metres per second; a boxer's fist makes ten
LEADING = 0.1            # seconds in which a clip may spring from a pose to its motion
SMOOTHING = 0.3          # standard deviation of the low-pass before downsampling, in target frames


@dataclass(frozen=True)
class Reading:
    """How sources are read. None: found out for each file."""

    dataname: str = "t2m"
    scale: float = None      # metres per unit
    up: str = "y"
    fps: float = None        # of .npy joints, which do not say; None: the data set's
    joint_map: dict = None


def read_clip(path, reading):
    """Read a .bvh or .npy file. Return joints (T, J, 3) float64 and {what was found: value}.

    The joints are in metres, y up, at the data set's frame rate.
    Raises UserError for a file that cannot be read, lacks joints, is not finite or is too short.
    """
    spec, read = get_spec(reading.dataname), _read_bvh if Path(path).suffix.lower() == ".bvh" else _read_array
    try:
        joints, fps, found = read(path, reading, spec)
        joints, found["unit"] = _to_metres(joints, reading, spec)
        joints, found["start"] = _cut_leading_pose(joints, fps)
        joints = resample(joints, fps, spec.fps)
    except UserError as error:
        raise UserError(error if str(error).startswith(str(path)) else f"{path}: {error}") from None
    if len(joints) <= UNIT_LENGTH:
        raise UserError(f"{path}: {len(joints)} frames at {spec.fps:g} fps; expected more than {UNIT_LENGTH}")
    return joints, {what: value for what, value in found.items() if value}


def _read_bvh(path, reading, spec):
    bvh = read_bvh(path)
    title, joint_map = ("--joint-map", reading.joint_map) if reading.joint_map else find_map(bvh.names)
    joints = map_joints(joint_positions(bvh), bvh.names, joint_map, spec)
    return joints, bvh.fps, dict(skeleton=title, fps=f"{round(bvh.fps, 2):g}")


def _read_array(path, reading, spec):
    joints, fps = load_array(path), reading.fps or spec.fps
    if joints.ndim != 3 or joints.shape[1:] != (spec.joints, 3) or joints.dtype.kind not in "fiu":
        hint = {(21, 3): "; use --dataname kit", (22, 3): "; use --dataname t2m"}.get(joints.shape[1:], "")
        raise UserError(f"{joints.dtype} of shape {joints.shape}; expected (T, {spec.joints}, 3){hint}")
    finite = np.isfinite(joints).all((1, 2))
    if not finite.all():
        raise UserError(f"frame {finite.argmin()} is NaN or Inf ({(~finite).sum()} of {len(joints)} frames)")
    return joints.astype(np.float64), fps, dict(skeleton=f"{spec.joints} joints", fps=f"{round(fps, 2):g}")


def _to_metres(joints, reading, spec):
    if reading.up == "z":
        joints = joints[..., [0, 2, 1]] * (1, 1, -1)
    unit, scale = (f"x {reading.scale:g}", reading.scale) if reading.scale else find_unit(joints, spec)
    return joints * scale, unit


def measure(joints, spec):
    """Return the median length from ankle over hip to head along the bones, in the joints' unit."""
    trunk = list(spec.chains[2])      # root … head
    hip, knee, ankle = (spec.joint_names.index(f"left_{name}") for name in ("hip", "knee", "ankle"))
    bones = [*zip(trunk, trunk[1:]), (hip, knee), (knee, ankle)]
    return float(np.median(sum(np.linalg.norm(joints[:, a] - joints[:, b], axis=-1) for a, b in bones)))


def find_unit(joints, spec):
    """Return (name, metres per unit) from the skeleton's size. One that fits no unit is given a typical size.

    Raises UserError for joints that all lie in one point.
    """
    size = measure(joints, spec)
    if not size > 0:
        raise UserError("all joints lie in one point; expected a body")
    for name, scale in UNITS.items():
        if LOW <= size * scale <= HIGH:
            return name, scale
    return "none known, scaled to a typical height", TYPICAL / size


def _cut_leading_pose(joints, fps):
    count = leading_pose(joints, fps)
    return joints[count:], "frames of a pose apart from the motion left out" if count else None


def leading_pose(joints, fps):
    """Return how many first frames of joints (T, J, 3) in metres are a pose apart, as in CMU's files.

    Within LEADING seconds some joint leaves them faster than anyone moves and than the clip goes on.
    """
    steps = np.linalg.norm(np.diff(joints, axis=0), axis=-1).max(1, initial=0) * fps
    if len(steps) == 0:
        return 0
    fast = steps[:int(LEADING * fps)] > max(MAX_SPEED, 3 * np.median(steps))
    return int(np.flatnonzero(fast).max(initial=-1)) + 1


def resample(joints, fps, target):
    """Resample (T, J, 3) from `fps` to `target` fps by cubic splines, with a low-pass before downsampling.

    The first instant stays. The low-pass continues the motion straight beyond both ends.
    """
    ratio = fps / target
    if abs(ratio - 1) < 1e-3:
        return joints
    count = int((len(joints) - 1) / ratio + 1e-6) + 1
    if len(joints) < 2 or count < 2:
        return joints[:1]
    if ratio > 1:
        sigma = SMOOTHING * np.sqrt(ratio ** 2 - 1)
        pad = min(int(4 * sigma) + 1, len(joints) - 1)
        padded = np.pad(joints, ((pad, pad), (0, 0), (0, 0)), mode="reflect", reflect_type="odd")
        joints = gaussian_filter1d(padded, sigma, axis=0)[pad:-pad]
    return CubicSpline(np.arange(len(joints)), joints)(np.arange(count) * ratio)


def find_sources(paths):
    """Return every .bvh and .npy file of the given files and folders as {id: path}, sorted by id.

    An id is the file's name; files of one name in several folders take their folders' names too.
    Raises UserError for a path that is missing or of another kind, for no file, and for two of one id.
    """
    found, kinds = [], " or ".join(SUFFIXES)    # (file, folder it was found under)
    for path in map(Path, paths):
        if path.is_dir():
            files = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES)
            found += [(file, path) for file in files if file.is_file()]
        elif path.is_file() and path.suffix.lower() in SUFFIXES:
            found.append((path, path.parent))
        else:
            raise UserError(f"{path}: no such file or folder; expected {kinds} files")
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no {kinds} file; expected motion capture or joints")
    stems = [_clean(path.stem) for path, _ in found]
    sources = {}
    for stem, (path, folder) in zip(stems, found):
        longer = "_".join(path.relative_to(folder.parent).with_suffix("").parts)
        name = _clean(longer) if stems.count(stem) > 1 else stem
        if name in sources and not path.samefile(sources[name]):
            raise UserError(f"{path}: would be clip {name}, as {sources[name]} is; rename one of them")
        sources[name] = path
    return dict(sorted(sources.items()))


def _clean(name):
    """Return a name that is safe in a split file and on any disk."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "clip"
