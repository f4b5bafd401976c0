"""Read checkpoint files: arguments and tensors, never a pickle that could run code."""
import hashlib
import json
import os
import pickle
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
