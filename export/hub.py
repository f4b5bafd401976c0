"""Write a network as the pair of files that model hubs read."""
import hashlib
from pathlib import Path

import numpy as np

from models.loading import CONFIG, MODEL, PAIR, PAIR_VERSION, import_safetensors, read_config
from utils.errors import UserError
from utils.files import atomic_write, write_json


def describe(net):
    """Return what any exported file says of a HumanVQVAE, {name: primitive}."""
    return dict(dataname=net.spec.name, fps=net.spec.fps, joints=net.spec.joints, features=net.spec.width,
                unit_length=2 ** net.down_t, quantizer=net.vqvae.quant, nb_code=net.nb_code,
                layers=net.vqvae.quantizer.num_layers, code_dim=net.vqvae.code_dim, iteration=net.iteration)


def save_pair(folder, net):
    """Write a HumanVQVAE as model.safetensors and config.json. Raises UserError over another model."""
    library, weights, config = import_safetensors(), Path(folder, MODEL), Path(folder, CONFIG)
    if (weights.exists() or config.exists()) and read_config(config) is None:
        raise UserError(f"{folder}: holds a {MODEL} or {CONFIG} of something else; name another folder")
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}  # none may share its memory
    data = library.torch.save(state, {"format": "pt"})
    with atomic_write(weights, flush=True) as file:
        file.write(data)
    mean, std = (None if array is None else np.asarray(array).tolist() for array in (net.mean, net.std))
    write_json(config, dict(format=PAIR, format_version=PAIR_VERSION, **describe(net), args=net.args,
                            mean=mean, std=std, sha256=hashlib.sha256(data).hexdigest()))
