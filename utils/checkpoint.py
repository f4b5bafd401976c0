"""Reading and writing checkpoints: whole or not at all, hashed, and never a pickle that could run code."""
import hashlib
import json
import os
import pickle
import shutil
import zipfile

import torch

from utils.errors import UserError

HASHES = "hashes.json"  # beside the checkpoints: file name → the last few saved versions, {"iter", "sha256"}
MODEL, CONFIG = "model.safetensors", "config.json"  # the pair that model hubs read
PAIR, PAIR_VERSION = "motion-vqvae", 1
MAX_BYTES = 8 << 30     # a larger declared size is refused before anything is unpacked


def load_checkpoint(path, verify=True):
    """Read a checkpoint onto the CPU: a dict with at least 'net' (a state-dict).

    path: a file that torch.save wrote, or the pair of export_vq.py: its folder or its model.safetensors. Only tensors and Python primitives
    are admitted (`weights_only`), a declared size beyond 8 GiB or twice the file's is refused, and the SHA-256 is compared where one is
    recorded, in a `hashes.json` beside the file or in the pair's config.json. Raises UserError for everything that is wrong with it.
    """
    path = model_file(path)
    if path.endswith(".safetensors"):
        return _load_pair(path)
    if verify:
        _verify(path)
    try:
        _check_declared_size(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason[:160]}); expected tensors and primitives saved by torch.save") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("net"), dict):
        raise UserError(f"{path}: no state-dict under 'net'; expected a checkpoint of this project or of T2M-GPT")
    checkpoint["net"] = strip_prefixes(checkpoint["net"])
    declared = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint["net"].values() if torch.is_tensor(tensor))
    if declared > 2 * os.path.getsize(path) + (1 << 20):  # tensors may repeat one stored number over any shape
        raise UserError(f"{path}: its tensors declare {declared:,} bytes in a file of {os.path.getsize(path):,}; refused")
    return checkpoint


def model_file(path):
    """The file of a checkpoint's weights: `path` itself, or model.safetensors in the folder. Raises UserError where there is none."""
    path = os.fspath(path)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, MODEL)):
            raise UserError(f"{path}: is a folder without {MODEL}; name a checkpoint in it, e.g. {os.path.join(path, 'net_last.pth')}")
        path = os.path.join(path, MODEL)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; expected a checkpoint (net_last.pth, state_last.pth, or upstream's net_last.pth)")
    return path


def import_safetensors():
    """The optional library of the pair's weights. Raises UserError where it is missing."""
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(f"{MODEL} needs safetensors, which is not installed: pip install safetensors") from None
    return safetensors


def save_pair(folder, checkpoint, config):
    """Write a checkpoint as the Hub's pair: its state-dict as model.safetensors, and config.json, each whole or not at all.

    checkpoint: 'net', and 'args', 'iter', 'mean', 'std' where it has them; config: primitives to write besides. The SHA-256 of the weights
    goes into the config. Raises UserError where the folder holds a model of something else or cannot be written.
    """
    library, weights, about = import_safetensors(), os.path.join(folder, MODEL), os.path.join(folder, CONFIG)
    if (os.path.exists(weights) or os.path.exists(about)) and _read_config(about) is None:
        raise UserError(f"{folder}: holds a {MODEL} or {CONFIG} of something else; name another folder with --out")
    data = library.torch.save({name: tensor.contiguous() for name, tensor in checkpoint["net"].items()}, {"format": "pt"})
    statistics = {name: None if checkpoint.get(name) is None else [float(x) for x in checkpoint[name]] for name in ("mean", "std")}
    content = dict(format=PAIR, format_version=PAIR_VERSION, **config, iteration=checkpoint.get("iter"), args=checkpoint.get("args") or {},
                   **statistics, sha256=hashlib.sha256(data).hexdigest())
    try:
        os.makedirs(folder, exist_ok=True)
        write_atomically(weights, lambda file: file.write(data))
        write_json(about, content)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder with --out") from None


def _read_config(path):
    """config.json of a pair, or None where it is missing or something else."""
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("format") == PAIR else None


def _load_pair(path):
    library, about = import_safetensors(), os.path.join(os.path.dirname(path), CONFIG)
    config = _read_config(about)
    if config is None:
        raise UserError(f"{path}: no {CONFIG} of this project beside it; expected the two files that export_vq.py writes")
    if config.get("format_version") != PAIR_VERSION:
        raise UserError(f"{about}: format version {config.get('format_version')}, expected {PAIR_VERSION}; it needs another version of this project")
    if config.get("sha256") != sha256(path):
        raise UserError(f"{path}: SHA-256 mismatch with {about}: one of the two was damaged or belongs to another model; export it again")
    try:
        state = library.torch.load_file(path)
        statistics = {name: None if config[name] is None else torch.tensor(config[name], dtype=torch.float64) for name in ("mean", "std")}
        return dict(net=state, args=dict(config["args"]), iter=config["iteration"], **statistics)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, library.SafetensorError) as error:
        raise UserError(f"{path}: unreadable, or its {CONFIG} is damaged ({str(error).splitlines()[0][:160]}); export it again") from None


def strip_prefixes(state):
    """State-dict without the prefixes that wrappers leave on every key."""
    while state and (prefix := next((p for p in ("_orig_mod.", "module.") if all(key.startswith(p) for key in state)), None)):
        state = {key[len(prefix):]: value for key, value in state.items()}
    return state


def _check_declared_size(path):
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > min(MAX_BYTES, 2 * os.path.getsize(path) + (1 << 20)):
        raise ValueError(f"it declares {declared:,} bytes in a file of {os.path.getsize(path):,}")


def sha256(path):
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def recorded_hashes(folder):
    """The folder's record of saved files, {name: [{"iter", "sha256"}, …]} oldest first; empty without one."""
    try:
        with open(os.path.join(folder, HASHES), encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _verify(path):
    folder, name = os.path.split(path)
    versions = recorded_hashes(folder).get(name)
    if versions and sha256(path) not in {version["sha256"] for version in versions}:
        last = versions[-1]
        raise UserError(f"{path}: SHA-256 mismatch: found {sha256(path)[:16]}…, recorded {last['sha256'][:16]}… (iteration {last['iter']}); "
                        "the file was damaged or changed after it was saved: use another checkpoint of the run")


def write_atomically(path, write, before_rename=None):
    """Call `write(file)` on a temporary file in the same folder, flush it to the disk, rename it to `path`.

    `before_rename(sha256)` runs when the new file is whole and the old one still in place. On any failure the temporary file is
    removed and `path` is left as it was. Raises OSError as the system does.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename:
            before_rename(sha256(temporary))
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)  # the rename itself must reach the disk too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path, content):
    """Write JSON atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def save_checkpoint(path, checkpoint, keep_previous=None):
    """Write a checkpoint atomically and record its SHA-256; with `keep_previous`, the replaced file moves to that name first.

    The hash is recorded before the rename: whatever moment the process dies at, every file under its final name is whole and known.
    A failed write (a full disk) is tried once more; raises UserError if it fails again, with the old file still in place.
    """
    folder, name = os.path.split(path)

    def record(digest):
        hashes = recorded_hashes(folder)
        hashes[name] = [*hashes.get(name, [])[-2:], {"iter": checkpoint.get("iter", 0), "sha256": digest}]
        if keep_previous:
            hashes[keep_previous] = hashes[name]
        write_json(os.path.join(folder, HASHES), hashes)
        if keep_previous and os.path.exists(path):
            os.replace(path, os.path.join(folder, keep_previous))

    for attempt in (1, 2):
        try:
            return write_atomically(path, lambda file: torch.save(checkpoint, file), record)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            if attempt == 2:
                free = shutil.disk_usage(folder or ".").free
                raise UserError(f"{path}: cannot be saved ({str(error).splitlines()[0]}; {free:,} bytes free); the previous checkpoint is "
                                "untouched: free some space and go on with --resume auto") from error


def remove_stale(folder):
    """Remove the temporary files a killed process left in a run folder; returns their names."""
    stale = [name for name in os.listdir(folder) if name.endswith(".tmp")]
    for name in stale:
        os.remove(os.path.join(folder, name))
    return stale
