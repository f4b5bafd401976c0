"""One source file → joints in metres, y up, at the data set's frame rate."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from dataset.prepare.bvh import joint_positions, read_bvh
from dataset.prepare.joint_maps import find_map, map_joints
from utils.errors import UserError
from utils.motion_spec import UNIT_LENGTH, get_spec

SUFFIXES = (".bvh", ".npy")
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "inches": 0.0254, "CMU units": 0.0254 / 0.45}
LOW, HIGH = 0.9, 1.95    # metres from the ankles over the hips to the base of the skull, from a child's to a giant's: one unit fits
TYPICAL = 1.48           # the same of HumanML3D's skeleton
MAX_SPEED = 15           # metres per second; a boxer's fist makes ten
LEADING = 0.1            # seconds in which a clip may spring from a pose to its motion
SMOOTHING = 0.3          # how much of a target frame the low-pass before downsampling is wide (standard deviation)


@dataclass(frozen=True)
class Reading:
    """How sources are read; None finds out by itself."""

    dataname: str = "t2m"
    scale: float = None      # metres per unit
    up: str = "y"
    fps: float = None        # of .npy joints (they do not say); None: the data set's
    joint_map: dict = None


def read_clip(path, reading):
    """Joints (T, J, 3) float64 of a .bvh or .npy file, in metres, y up, at the data set's rate; and {what was found: value}.

    Raises UserError for a file that cannot be read, has other joints, is not finite, does not measure like a person or is too short.
    """
    spec = get_spec(reading.dataname)
    if Path(path).suffix.lower() == ".bvh":
        bvh = read_bvh(path)
        skeleton, joint_map = ("--joint-map", reading.joint_map) if reading.joint_map else _find_map(path, bvh.names)
        try:
            joints, fps = map_joints(joint_positions(bvh), bvh.names, joint_map, spec), bvh.fps
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    else:
        skeleton, joints, fps = f"{spec.joints} joints", _read_joints(path, spec), reading.fps or spec.fps
    if reading.up == "z":
        joints = joints[..., [0, 2, 1]] * (1, 1, -1)
    unit, scale = (f"x {reading.scale:g}", reading.scale) if reading.scale else find_unit(joints, spec, path)
    joints, found = joints * scale, dict(skeleton=skeleton, unit=unit, fps=f"{round(fps, 2):g}")
    pose = leading_pose(joints, fps)
    if pose:
        joints, found["start"] = joints[pose:], "frames of a pose apart from the motion left out"
    joints = resample(joints, fps, spec.fps)
    if len(joints) <= UNIT_LENGTH:
        raise UserError(f"{path}: {len(joints)} frames at {spec.fps:g} fps; expected more than {UNIT_LENGTH}")
    return joints, found


def _find_map(path, names):
    try:
        return find_map(names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_joints(path, spec):
    try:
        joints = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: unreadable ({str(error).splitlines()[0][:100]}); expected joints (T, {spec.joints}, 3)") from None
    if joints.ndim != 3 or joints.shape[1:] != (spec.joints, 3) or joints.dtype.kind not in "fiu":
        other = "; use --dataname kit" if joints.shape[1:] == (21, 3) else "; use --dataname t2m" if joints.shape[1:] == (22, 3) else ""
        raise UserError(f"{path}: {joints.dtype} of shape {joints.shape}; expected joints (T, {spec.joints}, 3) for {spec.name}{other}")
    finite = np.isfinite(joints).all((1, 2))
    if not finite.all():
        raise UserError(f"{path}: frame {int(np.argmin(finite))} is NaN or Inf ({int((~finite).sum())} of {len(joints)} frames)")
    return joints.astype(np.float64)


def measure(joints, spec):
    """From the ankles over the hips to the head along the bones, in the joints' unit (the median over the frames)."""
    trunk = spec.chains[2]      # root … head
    hip, knee, ankle = (spec.joint_names.index(f"left_{name}") for name in ("hip", "knee", "ankle"))
    path = list(trunk[::-1])
    bones = [*zip(path, path[1:]), (hip, knee), (knee, ankle)]
    return float(np.median(sum(np.linalg.norm(joints[:, a] - joints[:, b], axis=-1) for a, b in bones)))


def find_unit(joints, spec, path="joints"):
    """(name, metres per unit) from the skeleton's size. One that fits no known unit is given a typical size.

    Raises UserError for joints that all lie in one point.
    """
    size = measure(joints, spec)
    if not size > 0:
        raise UserError(f"{path}: all joints lie in one point; expected a body")
    for name, scale in UNITS.items():
        if LOW <= size * scale <= HIGH:
            return name, scale
    return "none known, scaled to a typical height", TYPICAL / size


def leading_pose(joints, fps):
    """How many of the first frames of joints (T, J, 3, metres) are no part of the motion, as the T-pose that CMU's BVH files begin with: some
    joint leaves them, within a tenth of a second, faster than anyone moves and than the clip goes on."""
    steps = np.linalg.norm(np.diff(joints, axis=0), axis=-1).max(1, initial=0) * fps
    if len(steps) == 0:
        return 0
    fast = steps[:int(LEADING * fps)] > max(MAX_SPEED, 3 * np.median(steps))
    return int(np.flatnonzero(fast).max(initial=-1)) + 1


def resample(joints, fps, target):
    """(T, J, 3) at `fps` → at `target` fps, from the same first instant: cubic splines, and a low-pass before where frames get fewer.

    The low-pass sees a straight continuation beyond both ends, so that steady motion stays steady there.
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
    """Every .bvh and .npy file of the given files and folders as {id: path}, sorted by id.

    An id is the file's name without its ending; files of one name in several folders take their folders' names too. Raises UserError for a
    path that is missing or of another kind, for none at all, and for two files of one id.
    """
    found = []  # (path, folder it was found under)
    for path in map(Path, paths):
        if path.is_dir():
            found += [(file, path) for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
        elif not path.is_file():
            raise UserError(f"{path}: no such file or folder; expected {' or '.join(SUFFIXES)} files")
        elif path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: ends in {path.suffix or 'nothing'}; expected {' or '.join(SUFFIXES)}")
        else:
            found.append((path, path.parent))
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no {' or '.join(SUFFIXES)} file; expected motion capture or joints")
    stems = [_clean(path.stem) for path, _ in found]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    sources = {}
    for stem, (path, folder) in zip(stems, found):
        name = _clean("_".join(path.relative_to(folder.parent).with_suffix("").parts)) if stem in twice else stem
        if name in sources and not path.samefile(sources[name]):
            raise UserError(f"{path}: would be clip {name}, as {sources[name]} is; rename one of them")
        sources[name] = path
    return dict(sorted(sources.items()))


def _clean(name):
    """A name that is safe in a split file and on any disk."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "clip"
