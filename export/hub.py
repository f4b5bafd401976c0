"""Write a checkpoint as the pair of files that model hubs read."""
import hashlib
import os

from models.loading import CONFIG, MODEL, PAIR, PAIR_VERSION, import_safetensors, read_config
from utils.errors import UserError
from utils.files import atomic_write, write_json


def save_pair(folder, checkpoint, about):
    """Write a checkpoint as model.safetensors and config.json.

    checkpoint: "net", a state-dict, and "args", "iter", "mean" and "std" where it has them. about: primitives
    to put into config.json besides. The SHA-256 of the weights goes there too, so that the two files are
    known to belong together. Raises UserError where the folder holds a model of something else or cannot be
    written.
    """
    library = import_safetensors()
    weights, config = (os.path.join(folder, name) for name in (MODEL, CONFIG))
    if any(os.path.exists(path) for path in (weights, config)) and read_config(config) is None:
        raise UserError(f"{folder}: holds a {MODEL} or {CONFIG} of something else; name another folder")
    state = {name: tensor.contiguous() for name, tensor in checkpoint["net"].items()}
    data = library.torch.save(state, {"format": "pt"})
    with atomic_write(weights, flush=True) as file:
        file.write(data)
    statistics = {name: None if checkpoint.get(name) is None else [float(x) for x in checkpoint[name]]
                  for name in ("mean", "std")}
    write_json(config, dict(format=PAIR, format_version=PAIR_VERSION, **about,
                            iteration=checkpoint.get("iter"), args=checkpoint.get("args") or {},
                            **statistics, sha256=hashlib.sha256(data).hexdigest()))
