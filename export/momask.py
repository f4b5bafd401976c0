"""Write a residual network as MoMask's own loader reads it (arXiv 2312.00063, utils/get_opt.py)."""
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_write, save_array


def save_momask(folder, net):
    """Write FOLDER/opt.txt, model/net_best_fid.tar and meta/{mean,std}.npy of a HumanVQVAE."""
    if net.vqvae.quant != "residual":
        raise UserError(f"--to-momask needs residual codes, and this network has {net.vqvae.quant} codes")
    folder = Path(folder).absolute()
    values = dict(net.args, dataset_name=net.spec.name, name=folder.name, unit_length=2 ** net.down_t,
                  checkpoints_dir=folder.parent.parent)
    state = {name.removeprefix("vqvae."): tensor for name, tensor in net.state_dict().items()}
    with atomic_write(folder / "model" / "net_best_fid.tar") as file:
        torch.save({"vq_model": state, "ep": 0, "total_it": net.iteration or 0}, file)
    for name in ("mean", "std"):
        save_array(folder / "meta" / f"{name}.npy", np.asarray(getattr(net, name)))
    with atomic_write(folder / "opt.txt") as file:
        file.write("".join(f"{name}: {value}\n" for name, value in values.items()).encode())
