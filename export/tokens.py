"""Codes on disk: ID.npy of each clip, (1, T') or residual (T', Q), clips.txt with the ids, and a manifest."""
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from export.clips import find_arrays, require_folder
from utils.errors import UserError
from utils.files import atomic_write, load_array, read_text, remove_stale, save_array, write_json

FORMAT, VERSION = "motion-vq-tokens", 1
MANIFEST, IDS = "manifest.json", "clips.txt"


def weights_sha256(state):
    """Return the SHA-256 of a state-dict's names and numbers: one net has one digest in any kind of file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_manifest(folder):
    """Read the manifest of a folder of codes; None where there is none. Raises UserError if damaged."""
    path = Path(folder, MANIFEST)
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: is damaged or cut off; write the codes again, into a new folder") from None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def _read_ids(folder):
    path = Path(folder, IDS)
    ids = read_text(path, "one clip id per line").splitlines() if path.exists() else []
    for name in ids:  # files are removed and written by these names
        if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise UserError(f"{path}: id {name[:60]!r} leaves the folder; expected plain clip names")
    return ids


def check_output(out):
    """Raise UserError for a folder that holds anything but codes."""
    require_folder(out)
    there = sorted(path.name for path in Path(out).glob("*"))
    if there and read_manifest(out) is None:
        raise UserError(f"{out}: holds other files ({', '.join(there[:3])}); name a new folder with --out")


def write_tokens(out, codes, manifest):
    """Write codes {id: (T',) or (T', Q) int64} and their manifest; remove what an earlier run left.

    Every file is whole or not there. `complete` in the manifest turns true last, so that a killed run shows.
    """
    check_output(out)
    out, old, files = Path(out), [f"{name}.npy" for name in _read_ids(out)], [f"{name}.npy" for name in codes]
    manifest = dict(format=FORMAT, version=VERSION, complete=False, rows=1, **manifest)
    write_json(out / MANIFEST, manifest)
    for name in set(old).difference(files):
        (out / name).unlink(missing_ok=True)
    for folder in {(out / name).parent for name in (*old, *files)}:
        remove_stale(folder)
    with atomic_write(out / IDS) as file:
        file.write("".join(f"{name}\n" for name in codes).encode())
    for name, row in codes.items():
        save_array(out / f"{name}.npy", row[None] if row.ndim == 1 else row)
    write_json(out / MANIFEST, {**manifest, "complete": True})


def read_tokens(path):
    """Read the arrays of codes at a path, unchecked: ({name: array}, {name: its file}, manifest or None).

    path: a folder that `write_tokens` filled, any folder of .npy files, or one such file.
    """
    path = Path(path)
    manifest = read_manifest(path.parent if path.is_file() else path)
    if manifest and not manifest.get("complete"):
        raise UserError(f"{path}: unfinished, the run that wrote it was stopped; run it again")
    ids = _read_ids(path) if manifest and path.is_dir() else []
    files = {name: path / f"{name}.npy" for name in ids} or find_arrays(path)
    return {name: load_array(file) for name, file in files.items()}, files, manifest


def rows_of(codes, nb_code, name, rows=1, layers=1):
    """Return the rows of an array of codes from the file `name`, int64, cut at the end token.

    codes: (T',) or (1, T') integers of one layer, (rows, T') where the manifest says how many `rows` a file
    holds, or (T', q) of the first q ≤ `layers` layers of residual codes, with -1 for none.
    The first nb_code ends a row (T2M-GPT's second stage ends its rows so, and pads them with nb_code + 1).
    Raises UserError for other arrays and numbers.
    """
    wanted = "(1, T') or (T',)" if layers == 1 else f"(T', q), q at most {layers}"
    if codes.dtype.kind not in "iu" or codes.ndim not in ((1, 2) if layers == 1 else (2,)):
        raise UserError(f"{name}: {codes.dtype} of shape {codes.shape}; expected integers {wanted}")
    if layers > 1:
        if codes.shape[1] > layers or (codes.size and not -1 <= codes.min() <= codes.max() < nb_code):
            raise UserError(f"{name}: shape {codes.shape}, codes {codes.min()} to {codes.max()}; "
                            f"expected {wanted}, codes -1 … {nb_code - 1}")
        return [codes.astype(np.int64)]
    codes = np.atleast_2d(codes).astype(np.int64)
    if len(codes) not in (1, rows):
        raise UserError(f"{name}: shape {codes.shape} would be {len(codes)} clips of {codes.shape[1]} codes; "
                        f"expected {wanted}, or a {MANIFEST} with \"rows\": {len(codes)}")
    ended = np.cumsum(codes == nb_code, axis=1) > 0
    for row, position in np.argwhere((codes < 0) | (codes > nb_code + ended))[:1]:
        raise UserError(f"{name}: {codes[row, position]} at position {position}; expected 0 … {nb_code - 1}, "
                        f"then the end token {nb_code} and padding {nb_code + 1}")
    return [row[~end] for row, end in zip(codes, ended)]
