"""Write a checkpoint as the pair of files that model hubs read."""
import hashlib
import os

from models.loading import CONFIG, MODEL, PAIR, PAIR_VERSION, _read_config, import_safetensors
from utils.errors import UserError
from utils.files import write_atomically, write_json


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
