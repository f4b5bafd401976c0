"""Read checkpoint files: tensors and arguments, never a pickle that could run code."""
import argparse
import ast
import collections
import hashlib
import json
import math
import os
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from options.common import ACTIVATIONS, NET_ARGS, NORMS, QUANTIZERS
from utils.errors import UserError
from utils.files import describe_file, load_array, read_text
from utils.motion_spec import SPECS, get_spec

MODEL, CONFIG = "model.safetensors", "config.json"  # the pair that model hubs read
PAIR, PAIR_VERSION = "motion-vqvae", 1
# where a folder holds its weights: a run's, the pair's, a MoMask run's
WEIGHTS = ("net_last.pth", MODEL, "model/net_best_fid.tar", "model/latest.tar")

CONSTRUCTOR = [*NET_ARGS][[*NET_ARGS].index("nb_code"):]  # HumanVQVAE's parameters after `args`, in order
ALIASES = {"activation": "vq_act", "norm": "vq_norm", "dataset_name": "dataname"}
CHOICES = {"dataname": tuple(SPECS), "quantizer": QUANTIZERS, "vq_act": ACTIVATIONS,
           "vq_norm": (None, *NORMS[1:]), "shared_codebook": (False, True)}
UNTOLD = ("quantizer", "vq_act", "vq_norm", "dilation_growth_rate")  # no tensor may tell: said when assumed

FIRST = "encoder.model.0.weight"  # every state-dict of the network holds this key, after its prefix
STATE_KEYS = ("net", "vq_model", "state_dict", "model")

_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS = [(_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"), np.dtype,
            *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}, argparse.Namespace,
            collections.Counter]  # a scheduler's milestones


def load_checkpoint(path):
    """Read a checkpoint onto the CPU.

    path: a file of torch.save, a run folder of ours (net_last.pth) or of MoMask, or the pair that
    export_vq.py writes (its folder or its model.safetensors). Returns the file's content, with its state-dict
    under "net" and its arguments, a dict, under "args". Raises UserError where it is something else, damaged,
    NaN or Inf.
    """
    path = model_file(path)
    content = _load_pair(path) if path.endswith(".safetensors") else _load_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a checkpoint or a state-dict")
    key = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
    if key is None and any(str(name).endswith(FIRST) for name in content):
        key, content = "net", {"net": content}
    if key is None:
        raise UserError(f"{path}: holds no network under {', '.join(STATE_KEYS)}; its keys: {_some(content)}")
    if key == "vq_model":  # MoMask's names, and its statistics beside the file
        meta = Path(path).parent.with_name("meta")
        files = {name: meta / f"{name}.npy" for name in ("mean", "std")}
        content.update((name, load_array(file)) for name, file in files.items() if file.is_file())
        content["iter"] = content.get("total_it")
    content = _plain(content)
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    args = args if isinstance(args, dict) else {}  # other projects keep other things under this name
    return {**content, "net": strip_prefixes(content[key], path),
            "ema": strip_prefixes(content.get("ema") or {}, path), "args": _plain(args)}


def _plain(values):
    """Return a dictionary with its numpy scalars as numbers of Python."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _some(names):
    """Name the first few of some keys."""
    return ", ".join([str(name)[:30] for name in names][:4]) + (", …" if len(names) > 4 else "")


def model_file(path):
    """Return the path of the file that holds a checkpoint's weights. Raises UserError where there is none."""
    for file in (Path(path), *(Path(path, name) for name in WEIGHTS)):
        if file.is_file():
            return str(file)
    if Path(path).is_dir():
        raise UserError(f"{path}: a folder without a checkpoint; expected {', '.join(WEIGHTS)}")
    raise UserError(f"{path}: no such file; expected a checkpoint, such as net_last.pth, or a run folder")


def _load_pickle(path):
    try:
        found = describe_file(path)
        if not found.startswith(("a zip", "a Python pickle")):
            raise UserError(f"{path}: is {found}; expected a checkpoint")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch stores a CRC of each tensor and does not check it
                if archive.testzip():
                    raise ValueError("damaged")
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to its developers
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged archives and pickles raise nearly anything
        name = re.search(r"(?:GLOBAL|class|function) `?(\w+\.[\w.]+)", str(error))
        found = "damaged, cut short, or no checkpoint of torch.save"
        if name:
            found = f"holds Python objects ({name[1][:50]}), as a whole pickled module does; save weights"
        elif isinstance(error, OSError) and error.strerror:
            found = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {found}") from None


def import_safetensors():
    """Return the optional safetensors library. Raises UserError where it is missing."""
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(f"{MODEL} needs safetensors: pip install safetensors") from None
    return safetensors


def read_config(path):
    """Return a pair's config.json, or None where it is missing or something else."""
    try:
        config = json.loads(read_text(path, "JSON"))
    except (UserError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("format") == PAIR else None


def _load_pair(path):
    library, config = import_safetensors(), read_config(os.path.join(os.path.dirname(path), CONFIG))
    if config is None or config.get("format_version") != PAIR_VERSION:
        raise UserError(f"{path}: no {CONFIG} of this version beside it; expected what export_vq.py writes")
    if config.get("sha256") != hashlib.sha256(Path(path).read_bytes()).hexdigest():
        raise UserError(f"{path}: its SHA-256 is not the one in {CONFIG}: damaged, or of another model")
    try:
        state = library.torch.load_file(path)
    except (ValueError, RuntimeError, OSError, library.SafetensorError):
        raise UserError(f"{path}: damaged; export it again") from None
    known = {name: config[name] for name in ("args", "mean", "std") if config.get(name) is not None}
    return {"net": state, "iter": config.get("iteration"), **known}


def strip_prefixes(state, path):
    """Return a state-dict with upstream's keys. Raises UserError for what is no tensor of finite numbers."""
    for name, tensor in state.items():
        if not torch.is_tensor(tensor):
            raise UserError(f"{path}: {str(name)[:60]!r} is a {type(tensor).__name__}; expected a tensor")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name[:60]} holds NaN or Inf; use an earlier checkpoint")
    prefix = next((name[:-len(FIRST)] for name in state if name.endswith(FIRST)), "vqvae.")
    return {f"vqvae.{name[len(prefix):]}" if name.startswith(prefix) else name: tensor
            for name, tensor in state.items()}


def network_args(checkpoint, path, given):
    """Return the arguments of a checkpoint's network, a dict of NET_ARGS, and lines on what was assumed.

    Each comes from the file (else from opt.txt or args.json beside it), from its tensors, from the caller's
    `given`, or is the published one. Raises UserError where `given` contradicts the file.
    """
    recorded, remarks = _known(checkpoint["args"], path), []
    if not recorded:
        recorded, remarks = _read_beside(path)
    told = infer_args(checkpoint["net"], path)
    for values in (recorded, _known(given, "from_checkpoint")):
        for name, value in values.items():
            alike = name == "dataname" and get_spec(value).width == get_spec(told[name]).width
            if value != told.get(name, value) and not alike:
                raise UserError(f"{path}: {name} {value} contradicts the file, which has {told[name]}; "
                                "leave it out")
        told.update(values)
    args = {**NET_ARGS, "vq_norm": "LN", **told}  # a norm that is not told is LN or GN
    if assumed := [f"{name} {args[name]}" for name in UNTOLD if name not in told]:
        remarks.append("what the checkpoint does not tell was assumed: " + ", ".join(assumed))
    if args["quantizer"] == "fsq":
        if not args["fsq_levels"]:
            raise UserError(f"{path}: its tensors do not tell the fsq_levels; give them, or put them into an "
                            "opt.txt beside it (fsq_levels: [8, 5, 5, 5])")
        args["nb_code"] = math.prod(args["fsq_levels"])
    return args, remarks


def infer_args(state, path="checkpoint"):
    """Return what a state-dict tells of its network, {name of NET_ARGS: value}."""
    first, told = state.get(f"vqvae.{FIRST}"), _infer_quantizer(state)
    if first is None or first.ndim != 3 or not told:
        raise UserError(f"{path}: no motion VQ-VAE; its state-dict holds {_some(state)}")
    datanames = [spec.name for spec in SPECS.values() if spec.width == first.shape[1]]
    if not datanames:
        raise UserError(f"{path}: {first.shape[1]} features a frame: a data set this project does not know")
    block = "vqvae.encoder.model.2.1.model."
    if f"{block}0.norm1.weight" not in state:
        told["vq_norm"] = None
    elif f"{block}0.norm1.running_mean" in state:
        told["vq_norm"] = "BN"  # LN and GN look alike
    down = [name for name in state if re.fullmatch(r"vqvae\.encoder\.model\.\d+\.0\.weight", name)]
    return dict(told, dataname=datanames[0], output_emb_width=told["code_dim"], down_t=len(down),
                stride_t=state[down[0]].shape[-1] // 2 if down else 2, width=first.shape[0],
                depth=sum(name.startswith(block) and name.endswith("conv1.weight") for name in state))


def _infer_quantizer(state):
    """Return what a state-dict tells of its quantizer, as `infer_args` does; {} where it has none."""
    own = {name.removeprefix("vqvae.quantizer."): tensor for name, tensor in state.items()
           if name.startswith("vqvae.quantizer.") and tensor.ndim == 2}
    layers = [tensor for name, tensor in own.items() if re.fullmatch(r"layers\.\d+\.codebook", name)]
    if "project_in.weight" in own:
        return dict(quantizer="fsq", code_dim=own["project_in.weight"].shape[1])
    told = {}  # a plain codebook is ema_reset's, ema's or reset's
    if layers:
        told = dict(quantizer="residual", num_quantizers=len(layers))
        if any(not torch.equal(layer, layers[0]) for layer in layers):
            told["shared_codebook"] = False
    elif "embedding.weight" in own:
        told = dict(quantizer="orig")
    for codes in (*layers[:1], *(own[name] for name in ("embedding.weight", "codebook") if name in own)):
        told.update(nb_code=codes.shape[0], code_dim=codes.shape[1])
    return told


def _known(values, path):
    """Return the network's arguments among `values`. Raises UserError for one that cannot be."""
    values = {ALIASES.get(name, name): value for name, value in values.items()}
    known = {name: values[name] for name in NET_ARGS if name in values}
    for name, value in known.items():
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"{path}: {name} is {str(value)[:30]!r}; expected {CHOICES[name]}")
        if name == "fsq_levels" and not isinstance(value, list | tuple | None):
            raise UserError(f"{path}: fsq_levels is {str(value)[:30]!r}; expected a list: [8, 5, 5, 5]")
        kind, least = type(NET_ARGS[name]), isinstance(NET_ARGS[name], int)
        if kind in (int, float) and not (isinstance(value, int | kind) and value >= least):
            raise UserError(f"{path}: {name} is {str(value)[:30]!r}; expected a number, {least:d} or more")
    return known


def _read_beside(path):
    """Return the network's arguments in opt.txt or args.json beside a checkpoint, and a line that says so.

    MoMask's opt.txt lies one folder above its model/.
    """
    folder = Path(model_file(path)).parent
    files = [folder / "opt.txt", folder / "args.json"]
    files += [folder.with_name("opt.txt")] if folder.name == "model" else []
    for file in filter(Path.is_file, files):
        text = read_text(file, "network arguments")
        try:
            values = dict(json.loads(text)) if file.suffix == ".json" else _read_lines(text)
        except (ValueError, TypeError):
            raise UserError(f"{file}: cannot be read; mend it, or move it away to do without") from None
        if known := _known(values, file):
            return known, [f"network arguments read from {file.name} beside the checkpoint"]
    return {}, []


def _read_lines(text):
    """Return the values of lines `key: value`: numbers, None, True, lists or strings."""
    values = {}
    for key, _, value in (line.partition(":") for line in text.splitlines()):
        try:
            values[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            values[key.strip()] = value.strip()
    return values


def read_statistics(checkpoint, width, path):
    """Return a checkpoint's mean and std, (width,) float64 arrays, or None and None where it has neither."""
    if "mean" not in checkpoint and "std" not in checkpoint:
        return None, None
    mean, std = (np.asarray(checkpoint.get(name), np.float64) for name in ("mean", "std"))
    if not (mean.shape == std.shape == (width,) and np.isfinite(mean + std).all() and (std > 0).all()):
        raise UserError(f"{path}: mean of shape {mean.shape} and std of shape {std.shape}; "
                        f"expected {width} finite numbers each, every std over 0")
    return mean, std
