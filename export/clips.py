"""Motion out of the program: one clip as a file other tools read."""
from pathlib import Path

import numpy as np
import torch

from export.bvh import write_bvh
from utils.errors import UserError
from utils.files import load_array, save_array, whole_file
from utils.motion_process import recover_from_ric
from utils.motion_spec import SPECS
from visualize.draw import gif_bytes

SUFFIX = {"features": ".npy", "joints": ".npy", "gif": ".gif", "bvh": ".bvh"}


def find_arrays(path):
    """The .npy files at a path, {name: file}: the one it names, or all below the folder, by their path in it."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(path.rglob("*.npy"))} if path.is_dir() else {path.stem: path}
    if not files:
        raise UserError(f"{path}: holds no .npy file")
    return files


def read_motion(path):
    """A clip of de-normalised features (T, D) or joints (T, J, 3), in the data set's unit → (float32 array, MotionSpec)."""
    motion = load_array(path)
    for spec in SPECS.values():
        if motion.dtype.kind == "f" and motion.ndim > 1 and len(motion) and motion.shape[1:] in ((spec.width,), (spec.joints, 3)):
            finite = np.isfinite(motion).reshape(len(motion), -1).all(1)
            if not finite.all():
                raise UserError(f"{path}: frame {int(np.argmin(finite))} is NaN or Inf ({int((~finite).sum())} of {len(motion)} frames)")
            return motion.astype(np.float32), spec
    raise UserError(f"{path}: {motion.dtype} of shape {motion.shape}; expected float features (T, 263) or (T, 251), or joints (T, 22, 3) or "
                    "(T, 21, 3)")


def write_motion(path, motion, spec, kind):
    """Write one clip: kind features | joints (.npy, float32), gif or bvh, each at the data set's frame rate.

    motion: de-normalised features (T, D) or, but for kind features, joints (T, J, 3), in the data set's unit. Written whole or not at all.
    """
    if kind != "features" and motion.ndim == 2:
        motion = recover_from_ric(torch.as_tensor(motion, dtype=torch.float32), spec.joints).numpy()
    if kind in ("features", "joints"):
        save_array(path, motion.astype(np.float32))
    elif kind == "gif":
        with whole_file(path) as temporary:
            temporary.write_bytes(gif_bytes(motion, spec))
    else:
        with whole_file(path) as temporary:
            write_bvh(temporary, motion, spec)


def plan_outputs(out, sources, kind, overwrite):
    """{name: file to write} below `out` for {name: file it comes from}. Raises UserError for files that are there already or are sources."""
    targets = {name: Path(out, f"{name}{SUFFIX[kind]}") for name in sources}
    there = [name for name, target in targets.items() if target.exists()]
    if any(targets[name].samefile(sources[name]) for name in there):
        raise UserError(f"{out}: the output would replace what it is made of; name another folder with --out")
    if there and not overwrite:
        more = f" and {len(there) - 1} more of the {len(targets)} files to write are" if len(there) > 1 else " is"
        raise UserError(f"{targets[there[0]]}{more} there already; name another folder with --out, or replace with --overwrite")
    return targets
