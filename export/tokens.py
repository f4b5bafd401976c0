"""Codes on disk: ID.npy of each clip, (1, T') or residual (T', Q), clips.txt with the ids, and a manifest."""
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from export.clips import find_arrays, require_folder
from utils.errors import UserError
from utils.files import atomic_write, load_array, read_text, remove_stale, save_array, write_json

FORMAT, MANIFEST, IDS = "motion-vq-tokens", "manifest.json", "clips.txt"


def weights_sha256(state):
    """Return the SHA-256 of a state-dict's names and numbers: one net has one digest in any kind of file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_manifest(folder):
    """Read the manifest of a folder of codes; {} where there is none. Raises UserError if damaged."""
    path = Path(folder, MANIFEST)
    try:
        manifest = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{path}: is damaged or cut off; write the codes again, into a new folder") from None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else {}


def check_output(out):
    """Raise UserError for a folder that holds anything but codes."""
    require_folder(out)
    if any(Path(out).glob("*")) and not read_manifest(out):
        raise UserError(f"{out}: holds other files; name a new folder with --out")


def write_tokens(out, codes, manifest):
    """Write codes {id: (T',) or (T', Q) int64} and their manifest; remove what an earlier run left.

    `complete` in the manifest turns true last, so that a killed run shows.
    """
    check_output(out)
    out = Path(out)
    old = read_text(out / IDS, "one clip id per line").splitlines() if (out / IDS).exists() else []
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in old):
        raise UserError(f"{out / IDS}: an id leaves the folder; expected plain clip names")
    manifest = dict(format=FORMAT, version=1, rows=1, **manifest)
    write_json(out / MANIFEST, {**manifest, "complete": False})
    for name in set(old).difference(codes):
        (out / f"{name}.npy").unlink(missing_ok=True)
    for folder in {(out / name).parent for name in (*old, *codes)}:
        remove_stale(folder)
    with atomic_write(out / IDS) as file:
        file.write("".join(f"{name}\n" for name in codes).encode())
    for name, row in codes.items():
        save_array(out / f"{name}.npy", row[None] if row.ndim == 1 else row)
    write_json(out / MANIFEST, {**manifest, "complete": True})


def read_tokens(path):
    """Read the arrays at a path, unchecked: ({name: array}, {name: its file}, manifest or {})."""
    path = Path(path)
    manifest = read_manifest(path.parent if path.is_file() else path)
    if manifest and not manifest.get("complete"):
        raise UserError(f"{path}: unfinished, the run that wrote it was stopped; run it again")
    files = find_arrays(path)
    return {name: load_array(file) for name, file in files.items()}, files, manifest


def read_rows(path, net):
    """Read the rows of codes at a path: ({name: (T',) int64, residual (T', q)}, {name: its file}).

    A file of several rows gives NAME_0, NAME_1, …
    """
    arrays, files, manifest = read_tokens(path)
    if manifest and manifest.get("weights_sha256") != weights_sha256(net.state_dict()):
        raise UserError(f"{path}: codes of {manifest.get('checkpoint')} at iteration "
                        f"{manifest.get('iteration')}, which has other weights; decode with it")
    rows, sources = {}, {}
    for name, array in arrays.items():
        found = rows_of(array, files[name], net, manifest)
        names = [name] if len(found) == 1 else [f"{name}_{i}" for i in range(len(found))]
        rows.update(zip(names, found))
        sources.update(dict.fromkeys(names, files[name]))
    return rows, sources


def rows_of(codes, file, net, manifest):
    """Return the rows, (T',) or residual (T', q) int64, of an array of codes.

    codes: integers (T',) or (1, T') of one layer, (rows, T') where the manifest says how many "rows" a file
    holds, or (T', q) of the first q layers of residual codes, with -1 for none. Raises UserError for others.
    The first nb_code ends a row (T2M-GPT's second stage ends its rows so, and pads them with nb_code + 1).
    """
    nb_code, quantizer = net.nb_code, net.vqvae.quantizer
    layers = 1 if manifest.get("layers") == 1 else quantizer.num_layers
    coarse = layers == 1 or codes.ndim == 1 or codes.shape[-1] > layers
    wanted = "(1, T') or (T',)" + f" or (T', q), q at most {layers}" * (layers > 1)
    if codes.dtype.kind not in "iu" or codes.ndim not in (1, 2):
        raise UserError(f"{file}: {codes.dtype} of shape {codes.shape}; expected integers {wanted}")
    rows = np.atleast_2d(codes if coarse else codes.T).astype(np.int64)
    if coarse and len(rows) not in (1, manifest.get("rows")):
        raise UserError(f"{file}: shape {codes.shape} would be {len(rows)} clips of {rows.shape[1]} codes; "
                        f"expected {wanted}, or a {MANIFEST} with \"rows\": {len(rows)}")
    ended = coarse & (np.cumsum(rows == nb_code, axis=1) > 0)
    for row, position in np.argwhere((rows < coarse - 1) | (rows >= nb_code + 2 * ended))[:1]:
        end = f", then the end token {nb_code} and padding {nb_code + 1}" if coarse else ""
        raise UserError(f"{file}: {rows[row, position]} at position {position}; "
                        f"expected {coarse - 1} … {nb_code - 1}{end}")
    found = [row[~end] for row, end in zip(rows, ended)] if coarse else [rows.T]
    return [row[:, None] if row.ndim < quantizer.clip_axes else row for row in found]
