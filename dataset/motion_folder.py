"""A folder in the HumanML3D layout: its splits, statistics and clips, read into one contiguous array."""
import hashlib
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np

from utils.errors import UserError
from utils.files import load_array, read_text
from utils.motion_process import describe_statistics, normalisation_problem
from utils.motion_spec import get_spec

SMALLEST_STD = 1e-8     # below it an entry of std.npy is no statistic of any motion
ORIGINS = {263: "HumanML3D's (--dataname t2m)", 251: "KIT-ML's (--dataname kit)"}


def read_ids(path):
    """Return the clip ids of a split file, in order, each once.

    Raises UserError for a file that is missing, empty or no text, and for an id that leaves the folder.
    """
    ids = [line.strip() for line in read_text(path, "one clip id per line").splitlines()]
    for number, name in enumerate(ids, 1):
        place = PureWindowsPath(name)  # knows / and \\, roots and drives
        if len(name) > 250 or place.anchor or ".." in place.parts:
            raise UserError(f"{path}, line {number}: {name[:40]!r} is no clip id; expected one per line")
    if not any(ids):
        raise UserError(f"{path}: holds no clip id; expected one per line")
    return list(dict.fromkeys(filter(None, ids)))


def find_clips(root):
    """Return the folder of a data folder's clips. Raises UserError when there is none."""
    folder = Path(root, "new_joint_vecs")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected HumanML3D's layout (clips in it, train.txt "
                        "beside it); name it with --data-root, or make one with python -m dataset.prepare")
    return folder


def read_clip(path, spec):
    """Read one clip: (T, D) floating point features, T ≥ 1. Raises UserError for anything else and NaN."""
    clip = load_array(path)
    if clip.shape[1:] != (spec.width,) or not len(clip):
        hint = "; dataset.prepare makes features of joints" if clip.ndim == 3 else _origin(clip)
        raise UserError(f"{path}: has shape {clip.shape}, expected (frames, {spec.width}){hint}")
    if clip.dtype.kind != "f":
        raise UserError(f"{path}: holds {clip.dtype}, expected float32")
    finite = np.isfinite(clip.astype(np.float32, copy=False)).all(1)
    if not finite.all():
        raise UserError(f"{path}: frame {np.argmin(finite)} is NaN or Inf ({(~finite).sum()} such frames)")
    return clip


def _origin(array):
    width = (array.shape or (0,))[-1]
    return f"; {width} features are {ORIGINS[width]}" if width in ORIGINS else ""


def find_statistics(args, spec):
    """Read mean and std from --meta-dir, else the evaluator's meta folder, else the data folder.

    Returns (mean, std, folder), (D,) float64. Raises UserError when missing, of another width or not usable.
    """
    folders = [args.meta_dir] if args.meta_dir else [*spec.meta_dirs, args.data_root or spec.data_root]
    for folder in folders:
        for names in (("mean.npy", "std.npy"), ("Mean.npy", "Std.npy")):
            paths = [Path(folder, name) for name in names]
            if all(path.is_file() for path in paths):
                mean, std = (_read_statistic(path, spec) for path in paths)
                if std.min() < SMALLEST_STD:
                    raise UserError(f"{paths[1]}: entry {np.argmin(std)} is {std.min():g}, too small a std")
                return mean, std, str(folder)
    raise UserError(f"{folders[-1]}: no mean and std (Mean.npy and Std.npy, or mean.npy and std.npy); "
                    "name their folder with --meta-dir")


def _read_statistic(path, spec):
    array = load_array(path)
    if array.shape != (spec.width,):
        hint = "; save it with reshape(-1)" if array.size == spec.width else _origin(array)
        raise UserError(f"{path}: has shape {array.shape}, expected ({spec.width},) for {spec.name}{hint}")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: entry {np.argmin(np.isfinite(array))} is not finite")
    return array.astype(np.float64)


def find_data(path, net, args):
    """Return (spec, data folder, remarks) for a HumanVQVAE `net`, loaded from `path`.

    dataname, data_root and meta_dir in `args` count where they are not None, else those of its training.
    Sets `net.mean` and `net.std` where the checkpoint has none. Raises UserError where the data does not fit.
    """
    spec = get_spec(args.dataname or net.spec.name)
    if spec.width != net.spec.width:
        raise UserError(f"{path}: a network of {net.spec.name}'s {net.spec.width} features cannot take "
                        f"{spec.name}'s {spec.width}; name data of {net.spec.name} or another checkpoint")
    root = args.data_root or net.recipe.get("data_root") or spec.data_root
    if net.mean is None:
        where = SimpleNamespace(data_root=root, meta_dir=args.meta_dir or net.recipe.get("meta_dir"))
        net.mean, net.std, folder = find_statistics(where, spec)
        return spec, root, [f"the checkpoint carries no mean and std; in use: {folder} "
                            f"({describe_statistics(net.std)} variant)"]
    ignored = [f"the checkpoint's own mean and std are used, not those in {args.meta_dir}"]
    return spec, root, ignored if args.meta_dir else []


def load_split(root, split, spec, mean, std, skip_bad=False):
    """Read all clips of a split, normalised, into one array.

    Returns a namespace: `names` list of ids; `frames` (F, D) float32, clip after clip, normalised in float64;
    `offsets` (n + 1,) int64; `bad` the messages of the clips left out; `warning` why the frames do not look
    normalised, or None; `content` a SHA-256 of the frames; `split`.
    Raises UserError for a missing folder and, unless `skip_bad`, for clips that `read_clip` refuses.
    """
    folder, path = find_clips(root), Path(root, f"{split}.txt")
    ids = read_ids(path)
    files = [folder / f"{name}.npy" for name in ids]
    size = sum(file.stat().st_size for file in files if file.is_file())
    # a value takes two bytes at least; untouched rows take no memory
    frames = np.empty((size // (2 * spec.width), spec.width), np.float32)
    names, offsets, bad = [], [0], []
    for name, file in zip(ids, files):
        try:
            clip = read_clip(file, spec)
        except UserError as error:
            hint = "; ids come without .npy" if name.lower().endswith(".npy") else ""
            bad.append(f"{error}{hint}")
            continue
        offsets.append(offsets[-1] + len(clip))
        frames[offsets[-2]:offsets[-1]] = (clip - mean) / std
        names.append(name)
    if bad and not skip_bad:
        raise UserError(f"{len(bad)} of {len(ids)} clips cannot be used (--skip-bad-clips leaves them out), "
                        f"the first: {bad[0]}", bad)
    if not names:
        raise UserError(f"{path}: none of its {len(ids)} clips can be used: {bad[0]}", bad)
    frames = frames[:offsets[-1]]
    problem = normalisation_problem(frames[::max(1, len(frames) // 50_000)])
    return SimpleNamespace(names=names, frames=frames, offsets=np.array(offsets, np.int64), bad=bad,
                           warning=problem and f"{path}: {problem}", split=split,
                           content=hashlib.sha256(frames.reshape(-1).view(np.uint8)).hexdigest())
