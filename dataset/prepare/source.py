"""One source file → joints in metres, y up, at the data set's frame rate."""
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from dataset.prepare import axes
from dataset.prepare.bvh import joint_positions, read_bvh
from dataset.prepare.joint_maps import find_map, map_joints, to_kit
from utils.errors import UserError
from utils.files import load_array
from utils.motion_process import swap_sides
from utils.motion_spec import KIT, T2M, UNIT_LENGTH, get_spec

SUFFIXES = (".bvh", ".npy", ".npz")
FOREIGN = (".pkl", ".fbx", ".glb", ".c3d")
SHAPES = {22: T2M, 24: T2M, 52: T2M, 55: T2M, 21: KIT}  # joints of an array → ours, the first
SLOWEST, FASTEST = 0.2, 0.001   # seconds per frame
MAX_SPEED = 15           # metres per second; a boxer's fist makes ten
LEADING = 0.1            # seconds in which a clip may spring from a pose to its motion
SMOOTHING = 0.3          # standard deviation of the low-pass before downsampling, in target frames


@dataclass(frozen=True)
class Reading:
    """How sources are read. None and auto: found out for each file."""

    dataname: str = "t2m"
    scale: float = None      # metres per unit
    up: str = "auto"         # y, z, -y or -z
    fps: float = None        # None: a BVH file's own, the data set's for arrays
    joint_map: dict = None   # goes before what is recognised
    swap_sides: bool = False


def read_clip(path, reading, found=None):
    """Read a .bvh, .npy or .npz file. Return joints (T, J, 3) float64 and {what was found: value}.

    The joints are in metres, y up, at the data set's frame rate. found: a dictionary to fill, for --explain.
    Raises UserError for a file that cannot be read, is no person's, contradicts itself or is too short.
    """
    spec, found = get_spec(reading.dataname), {} if found is None else found
    read = _read_bvh if Path(path).suffix.lower() == ".bvh" else _read_array
    try:
        joints, rest, fps, sided = read(path, reading, found)
        joints = _stand_up(joints, rest, sided, reading, found)
        apart = leading_pose(joints, fps)
        if apart:
            found["start"] = "frames of a pose apart from the motion left out"
        joints = resample(joints[apart:], fps, spec.fps)
        if len(joints) <= UNIT_LENGTH:
            raise UserError(f"{len(joints)} frames at {spec.fps:g} fps; expected more than {UNIT_LENGTH}")
    except (UserError, OSError) as error:
        raise UserError(error if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return to_kit(joints) if spec.joints == KIT.joints != joints.shape[1] else joints, found


def _read_bvh(path, reading, found):
    """Return joints (T, J, 3), the zero pose (1, J, 3), the frame rate, and whether the sides are known."""
    bvh = read_bvh(path)
    if reading.fps is None and not FASTEST <= bvh.frame_time <= SLOWEST:
        raise UserError(f"Frame Time is {bvh.frame_time:g} s; expected {FASTEST} to {SLOWEST}; give --fps")
    fps, positions = reading.fps or 1 / bvh.frame_time, joint_positions(bvh)
    few = axes.thin_out(positions)
    lengths = np.median(np.linalg.norm(few - few[:, np.maximum(bvh.parents, 0)], axis=-1), 0).tolist()
    joint_map, skeleton, sided = find_map(bvh.names, bvh.parents, lengths, reading.joint_map)
    found |= dict(skeleton=skeleton, fps=f"{round(fps, 2):g}", map=joint_map)
    zero = joint_positions(replace(bvh, channels=[()] * len(bvh.names), motion=np.zeros((1, 0))))
    joints, rest = (map_joints(points, bvh.names, joint_map) for points in (positions, zero))
    return joints, rest, fps, sided


def _read_array(path, reading, found):
    """Return the same of joints saved by numpy: no zero pose, and the sides are known."""
    suffix, fps = Path(path).suffix.lower(), reading.fps or get_spec(reading.dataname).fps
    if suffix in FOREIGN:
        raise UserError(f"{suffix} is not read here: export BVH with Blender or MotionBuilder (a .c3d file's "
                        "markers, solved to a skeleton), or save joints (T, 22, 3) with numpy.save")
    array = load_array(path) if suffix == ".npy" else _find_joints(path)
    joints = array.reshape(len(array), -1, 3) if array.ndim == 2 and array.shape[1] in (63, 66) else array
    spec = SHAPES.get(joints.shape[1]) if joints.shape[2:] == (3,) else None
    if spec is None or (spec is KIT and reading.dataname != "kit"):
        raise UserError(f"{array.dtype} of shape {array.shape}; expected joints (T, 22, 3), SMPL's, "
                        "or with --dataname kit (T, 21, 3)")
    if spec is T2M and reading.dataname == "kit" and not reading.fps:
        raise UserError("22 joints make KIT's 21, but at which frame rate? Give --fps")
    finite = np.isfinite(joints).all((1, 2))
    if not finite.all():
        raise UserError(f"frame {finite.argmin()} is NaN or Inf ({(~finite).sum()} of {len(joints)} frames)")
    found |= dict(skeleton=f"{joints.shape[1]} joints in the data set's order", fps=f"{round(fps, 2):g}")
    return joints[:, :spec.joints].astype(np.float64), None, fps, True


def _find_joints(path):
    """Return the one array of joints in an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy and zipfile raise nearly anything for a damaged file
        raise UserError(f"is damaged or no .npz file ({type(error).__name__})") from None
    if {"poses", "trans"} <= arrays.keys():
        raise UserError("AMASS's poses, not joints: convert them with --amass")
    joints = [array for array in arrays.values() if array.shape[1:] in [(count, 3) for count in SHAPES]]
    if len(joints) != 1:
        raise UserError(f"holds {len(joints)} arrays of joints (T, 22, 3); expected one")
    return joints[0]


def _stand_up(joints, rest, sided, reading, found):
    """Return joints in metres, y up, left on the left. Raises UserError where they are no person's."""
    spec, few = (KIT if joints.shape[1] == KIT.joints else T2M), axes.thin_out(joints)
    if not reading.joint_map:
        axes.check_proportions(few, spec, rigid=rest is None)
    found["up"] = axes.find_up(few, rest, spec) if reading.up == "auto" else reading.up
    given = (f"x {reading.scale:g}", reading.scale) if reading.scale else None
    found["unit"], scale = given or axes.find_unit(few, spec)
    joints = axes.turn_up(joints, found["up"]) * scale
    if reading.swap_sides:
        joints = swap_sides(joints, spec)
    few = axes.thin_out(joints)
    if spec is T2M and axes.is_mirrored(few, spec):     # KIT's published joints are named the other way round
        if sided:
            raise UserError("mirrored: knees and toes point backwards by the names; --swap-sides mends it")
        joints = swap_sides(joints, spec)
    if not reading.joint_map and axes.walks_on_fours(few, spec):
        raise UserError("walks on four legs; expected a person. If it is one, give --joint-map")
    lowest = float(np.median(few[..., 1].min(1)))
    if abs(lowest) > axes.FLOATING:
        found["floor"] = f"{'floats' if lowest > 0 else 'sinks'} by over {axes.FLOATING} m, put on the floor"
    return joints


def leading_pose(joints, fps):
    """Return how many first frames of joints (T, J, 3) in metres are a pose apart, as in CMU's files.

    Within LEADING seconds some joint leaves them faster than anyone moves and than the clip goes on.
    """
    steps = np.linalg.norm(np.diff(joints, axis=0, prepend=joints[:1]), axis=-1).max(1) * fps
    fast = steps[:int(LEADING * fps) + 1] > max(MAX_SPEED, 3 * np.median(steps))
    return int(np.flatnonzero(fast).max(initial=0))


def resample(joints, fps, target):
    """Resample (T, J, 3) from `fps` to `target` fps by cubic splines, with a low-pass before downsampling.

    The first instant stays. The low-pass continues the motion straight beyond both ends.
    """
    ratio = fps / target
    if abs(ratio - 1) < 1e-3:
        return joints
    count = int((len(joints) - 1) / ratio + 1e-6) + 1
    if count < 2:
        return joints[:1]
    if ratio > 1:
        sigma = SMOOTHING * np.sqrt(ratio ** 2 - 1)
        pad = min(int(4 * sigma) + 1, len(joints) - 1)
        padded = np.pad(joints, ((pad, pad), (0, 0), (0, 0)), mode="reflect", reflect_type="odd")
        joints = gaussian_filter1d(padded, sigma, axis=0)[pad:-pad]
    return CubicSpline(np.arange(len(joints)), joints)(np.arange(count) * ratio)


def find_sources(paths):
    """Return every motion file of the given files and folders as {id: path}, sorted by id.

    An id is the file's name; files of one name in several folders take their folders' names too.
    FOREIGN files without one of ours beside them are there for `read_clip` to name.
    Raises UserError for a path without any, and for two files of one id.
    """
    found, clean = [], partial(re.sub, r"[^\w.-]", "_")
    for path in map(Path, paths):
        folder, files = (path, sorted(path.rglob("*"))) if path.is_dir() else (path.parent, [path])
        files = [file for file in files if file.suffix.lower() in (*SUFFIXES, *FOREIGN) and file.is_file()]
        if not files:
            raise UserError(f"{path}: no {' or '.join(SUFFIXES)} file; expected motion capture or joints")
        ours = {file.with_suffix("") for file in files if file.suffix.lower() in SUFFIXES}
        found += [(file, clean(file.stem), folder.parent) for file in files
                  if file.suffix.lower() in SUFFIXES or file.with_suffix("") not in ours]
    times, sources = Counter(name for _, name, _ in found), {}
    for file, name, folder in found:
        if times[name] > 1:
            name = clean("_".join(file.relative_to(folder).with_suffix("").parts))
        if name in sources and not file.samefile(sources[name]):
            raise UserError(f"{file}: would be clip {name}, as {sources[name]} is; rename one of them")
        sources[name] = file
    return dict(sorted(sources.items()))
