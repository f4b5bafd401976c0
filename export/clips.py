"""Motion out of the program: one clip as a file that other tools read."""
from pathlib import Path

import numpy as np
import torch

from export.bvh import write_bvh
from utils.errors import UserError
from utils.files import load_array, save_array
from utils.motion_process import recover_from_ric
from utils.motion_spec import KIT, T2M
from visualize.draw import save_gif

SUFFIX = {"features": ".npy", "joints": ".npy", "gif": ".gif", "bvh": ".bvh"}


def require_folder(out):
    """Raise UserError where `out` is, or lies below, a file."""
    for path in (Path(out), *Path(out).parents):
        if path.is_file():
            raise UserError(f"{path}: is a file; name a folder with --out")


def find_arrays(path):
    """Return the .npy files at a path, {name: file}: the one named, or all below a folder but hidden ones."""
    path = Path(path)
    if path.is_file():
        return {path.stem: path}
    files = [file for file in sorted(path.rglob("*.npy")) if not file.name.startswith(".")]
    if not files:
        raise UserError(f"{path}: no such file, nor a folder that holds .npy files")
    return {file.relative_to(path).with_suffix("").as_posix(): file for file in files}


def read_motion(path):
    """Read raw features (T, D) or joints (T, J, 3), in the data set's unit: (float32 array, MotionSpec)."""
    motion = load_array(path)
    shapes = {shape: spec for spec in (T2M, KIT) for shape in ((spec.width,), (spec.joints, 3))}
    if motion.dtype.kind != "f" or motion.ndim < 2 or not len(motion) or motion.shape[1:] not in shapes:
        raise UserError(f"{path}: {motion.dtype} of shape {motion.shape}; expected float features (T, 263), "
                        "(T, 251), or joints (T, 22, 3), (T, 21, 3)")
    bad = np.flatnonzero(~np.isfinite(motion).reshape(len(motion), -1).all(1))
    if len(bad):
        raise UserError(f"{path}: frame {bad[0]} is NaN or Inf ({len(bad)} of {len(motion)} frames)")
    return motion.astype(np.float32), shapes[motion.shape[1:]]


def write_motion(path, motion, spec, kind):
    """Write raw features (T, D) or joints (T, J, 3) as kind features | joints (.npy, float32), gif or bvh."""
    if kind != "features" and motion.ndim == 2:
        motion = recover_from_ric(torch.as_tensor(motion, dtype=torch.float32), spec.joints).numpy()
    if kind == "bvh":
        write_bvh(path, motion, spec)
    elif kind == "gif":
        save_gif(path, motion, spec)
    else:
        save_array(path, motion.astype(np.float32))


def plan_outputs(out, sources, kind, overwrite):
    """Return {name: file to write} below `out` for sources {name: file that it is made from}."""
    require_folder(out)
    targets = {name: Path(out, f"{name}{SUFFIX[kind]}") for name in sources}
    there = [name for name, target in targets.items() if target.exists()]
    if any(targets[name].samefile(sources[name]) for name in there):
        raise UserError(f"{out}: this would replace what it is made of; name another folder with --out")
    if there and not overwrite:
        raise UserError(f"{targets[there[0]]}: is there already ({len(there)} of {len(targets)} files are); "
                        "name another folder with --out, or give --overwrite")
    return targets
