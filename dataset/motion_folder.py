"""A folder in the HumanML3D layout: its splits, statistics and clips, read once into one contiguous array.

Everything wrong with it is one UserError that names files, lines or frames.
"""
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from utils.errors import UserError
from utils.files import load_array
from utils.motion_process import describe_statistics
from utils.motion_spec import SPECS, get_spec

NAMED = 10      # offenders named in one message; the rest are counted
CACHE = ".packed"
ABANDONED = 3600    # seconds since a temporary file grew: whoever wrote it was killed


def read_ids(path):
    """Clip ids of a split file, in order, each once. BOM, CRLF, blank lines and duplicates do not matter.

    Raises UserError for a file that is missing, empty or not text, and for an id that leaves the folder.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected one clip id per line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file (byte {error.start}); expected one clip id per line") from None
    ids = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name and (name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name or "\0" in name):
            raise UserError(f"{path}, line {number}: id {name!r} leaves the folder; expected a plain clip name")
        if name:
            ids[name] = None
    if not ids:
        raise UserError(f"{path}: holds no clip id; expected one per line")
    return list(ids)


def find_clips(root):
    """The folder of a data folder's clips; raises UserError, saying what to do, when there is none."""
    root = Path(root)
    folder = root / "new_joint_vecs"
    if not folder.is_dir():
        what = f"has no folder {folder.name}" if root.is_dir() else "does not exist"
        raise UserError(f"{root}: {what}; expected the HumanML3D layout ({folder.name}/ID.npy, train.txt, …): name the folder with "
                        "--data-root, or make one with python -m dataset.prepare")
    return folder


def find_statistics(args, spec):
    """Read mean and std, (D,) float64 each, from --meta-dir, else the evaluator's meta folder, else the data folder.

    Returns (mean, std, folder). Raises UserError when they are missing, of the wrong width, not finite or zero.
    """
    root = args.data_root or spec.data_root
    folders = [args.meta_dir] if args.meta_dir else [*spec.meta_dirs, root]
    for folder in folders:
        for names in (("mean.npy", "std.npy"), ("Mean.npy", "Std.npy")):
            paths = [Path(folder, name) for name in names]
            if all(path.is_file() for path in paths):
                mean, std = (_read_statistic(path, spec) for path in paths)
                if not (std > 0).all():
                    raise UserError(f"{paths[1]}: entry {int(np.argmin(std > 0))} is {std[np.argmin(std > 0)]}; expected every std over 0")
                return mean, std, str(folder)
    raise UserError(f"{folders[-1]}: no mean and std (Mean.npy and Std.npy, or mean.npy and std.npy); name their folder with --meta-dir")


def _read_statistic(path, spec):
    array = load_array(path)
    if array.shape != (spec.width,):
        raise UserError(f"{path}: has shape {array.shape}, expected ({spec.width},) for {spec.name}{_looks_like(array.shape[-1:])}")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: entry {int(np.argmin(np.isfinite(array)))} is not finite; expected {spec.width} finite numbers")
    return array.astype(np.float64)


def find_data(path, net, args):
    """Which data a checkpoint belongs to: (spec, folder, remarks), the flags before its own arguments, its mean and std before the folder's.

    net: the checkpoint's HumanVQVAE, which gets the folder's mean and std where the checkpoint brought none; saved: the checkpoint's
    arguments; args: dataname, data_root and meta_dir, None where not given. Raises UserError where they do not fit the net.
    """
    saved = net.recipe
    spec = get_spec(args.dataname or saved.get("dataname") or net.spec.name)
    if spec.width != net.spec.width:
        raise UserError(f"{path}: a network of {net.spec.width} features, and --dataname {spec.name} has {spec.width}; leave the flag out")
    root = args.data_root or saved.get("data_root") or spec.data_root
    remarks = []
    if net.mean is None:
        mean, std, folder = find_statistics(SimpleNamespace(data_root=root, meta_dir=args.meta_dir), spec)
        net.mean, net.std = mean, std
        return spec, root, [f"the checkpoint carries no mean and std: taken from {folder} (the {describe_statistics(std)}'s kind)"]
    try:
        mean, std, folder = find_statistics(SimpleNamespace(data_root=root, meta_dir=args.meta_dir or saved.get("meta_dir")), spec)
    except UserError:  # the checkpoint's own are enough
        return spec, root, remarks
    if not (np.allclose(mean, net.mean, rtol=1e-5, atol=1e-7) and np.allclose(std, net.std, rtol=1e-5, atol=1e-7)):
        largest = int(np.argmax(np.abs(mean - net.mean) / net.std + np.abs(np.log(std / net.std))))
        remarks.append(f"mean and std in {folder} differ from the checkpoint's, most in entry {largest} (std {std[largest]:.5g}, checkpoint "
                       f"{net.std[largest]:.5g}); the checkpoint's are used")
    return spec, root, remarks


def _looks_like(shape):
    fits = [spec.name for spec in SPECS.values() if shape and spec.width == shape[0]]
    return f"; it looks like {fits[0]}: use --dataname {fits[0]}" if fits else ""


def load_split(root, split, spec, mean, std, skip_bad=False, cache=True):
    """All clips of a split, normalised, in one array.

    Returns a namespace: `names` list of ids; `frames` (F, D) float32, clip after clip, normalised in float64 and rounded once;
    `offsets` (n + 1,) int64; `bad` the messages of the clips left out; `content` a SHA-256 of the frames; `split`. With `cache`, a packed
    file in ROOT/.packed is mapped when its fingerprint (ids, file sizes and times, statistics) and its checksum still fit, and written
    when they do not.
    Raises UserError for a missing folder and, unless `skip_bad`, for clips that are missing, unreadable, of the wrong width or not finite.
    """
    root = Path(root)
    folder = find_clips(root)
    ids = read_ids(root / f"{split}.txt")
    key = _fingerprint(folder, ids, spec, mean, std, skip_bad)
    clips = _map_cache(root, split, key) if cache else None
    if clips is None:
        clips = _read_clips(folder, ids, spec, mean, std, skip_bad)
        clips.split = split
        if cache:
            _write_cache(root, split, key, clips)
    if not clips.names:
        raise UserError(f"{root / split}.txt: none of its {len(ids)} clips can be used; the first: {clips.bad[0]}")
    clips.warning = None
    return clips


def _read_clips(folder, ids, spec, mean, std, skip_bad):
    names, lengths, bad = [], [], []
    for name in ids:  # headers first: one allocation of the right size
        path = folder / f"{name}.npy"
        try:
            array = load_array(path, mmap=True)
            if array.ndim != 2 or array.shape[1] != spec.width:
                raise UserError(f"{path}: has shape {array.shape}, expected (frames, {spec.width}) for {spec.name}"
                                + _looks_like(array.shape[1:2] if array.ndim == 2 else ()))
            if array.dtype.kind != "f":
                raise UserError(f"{path}: holds {array.dtype}, expected float32")
            if len(array) == 0:
                raise UserError(f"{path}: has no frame")
        except UserError as error:
            bad.append(str(error))
            continue
        names.append(name)
        lengths.append(len(array))
    _refuse(bad, skip_bad, len(ids))
    frames = np.empty((sum(lengths), spec.width), np.float32)
    kept, offsets = [], [0]
    for name, length in zip(names, lengths):
        start = offsets[-1]
        clip = (load_array(folder / f"{name}.npy") - mean) / std
        frames[start:start + length] = clip
        finite = np.isfinite(frames[start:start + length]).all(1)
        if not finite.all():
            bad.append(f"{folder / name}.npy: frame {int(np.argmin(finite))} is NaN or Inf ({int((~finite).sum())} of {length} frames)")
            continue
        kept.append(name)
        offsets.append(start + length)
    _refuse(bad, skip_bad, len(ids))
    frames = frames[:offsets[-1]]
    return SimpleNamespace(names=kept, frames=frames, offsets=np.array(offsets, np.int64), bad=bad,
                           content=hashlib.sha256(frames.reshape(-1).view(np.uint8)).hexdigest())


def _refuse(bad, skip_bad, total):
    if bad and not skip_bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise UserError(f"{len(bad)} of {total} clips cannot be used: {'; '.join(bad[:NAMED])}{more}. Mend them, or leave them out with "
                        "--skip-bad-clips")


# The packed cache: SPLIT.json (names, offsets, fingerprint, checksum) beside SPLIT-FINGERPRINT.npy (the normalised frames).

def _fingerprint(folder, ids, spec, mean, std, skip_bad):
    """SHA-256 over everything the packed frames depend on: ids, sizes and times of their files, statistics."""
    with os.scandir(folder) as entries:
        stats = {entry.name: entry.stat() for entry in entries}
    digest = hashlib.sha256(json.dumps([2, spec.width, skip_bad]).encode() + mean.tobytes() + std.tobytes())
    for name in ids:
        stat = stats.get(f"{name}.npy")
        digest.update(f"{name}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def _checksum(frames):
    """SHA-256 of each MiB's sum of 64-bit words, and of the rest: any flipped bit, torn or misplaced block changes it.

    Every byte is read, at the memory's speed: 0.1 s for HumanML3D's 3 GB when the system still holds the file, else the time to read it once.
    """
    data = frames.reshape(-1).view(np.uint8)
    whole = data.size >> 20 << 20
    return hashlib.sha256(data[:whole].view(np.uint64).reshape(-1, 1 << 17).sum(1).tobytes() + data[whole:].tobytes()).hexdigest()


def _map_cache(root, split, key):
    folder = root / CACHE
    try:
        index = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        if index["key"] != key:
            return None
        frames = np.load(folder / f"{split}-{key[:16]}.npy", mmap_mode="r")
        if frames.shape[0] != index["offsets"][-1] or _checksum(frames) != index["checksum"]:
            return None
        return SimpleNamespace(names=index["names"], frames=frames, offsets=np.array(index["offsets"], np.int64), bad=index["bad"],
                               content=index["content"], split=split)
    except (OSError, ValueError, KeyError, EOFError):  # none yet, or damaged: it is made anew
        return None


def _write_cache(root, split, key, clips):
    """Write the packed files, each whole before it gets its name; a folder that cannot be written simply has no cache."""
    folder = root / CACHE
    index = dict(key=key, names=clips.names, offsets=clips.offsets.tolist(), bad=clips.bad, content=clips.content,
                 checksum=_checksum(clips.frames))
    temporary = folder / f"{split}.{os.getpid()}.tmp"
    try:
        folder.mkdir(exist_ok=True)
        stale = [path for path in folder.glob(f"{split}-*.npy") if path.name != f"{split}-{key[:16]}.npy"]
        stale += [path for path in folder.glob("*.tmp") if path.stat().st_mtime < time.time() - ABANDONED]
        with open(temporary, "wb") as file:
            np.save(file, clips.frames)
        os.replace(temporary, folder / f"{split}-{key[:16]}.npy")
        temporary.write_text(json.dumps(index), encoding="utf-8")
        os.replace(temporary, folder / f"{split}.json")
        for path in stale:
            path.unlink(missing_ok=True)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
