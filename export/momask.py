"""Write a residual network as MoMask's own loader reads it (arXiv 2312.00063, utils/get_opt.py)."""
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.files import atomic_write, save_array

HEAD, TAIL = "------------ Options -------------", "-------------- End ----------------"
RENAMED = {"dataname": "dataset_name"}
NOT_MOMASKS = {"quantizer", "beta", "sample_codebook_temp", "fsq_levels", "block_dropout"}


def save_momask(folder, net):
    """Write FOLDER/opt.txt, model/net_best_fid.tar and meta/{mean,std}.npy of a residual HumanVQVAE.

    MoMask finds them as CHECKPOINTS_DIR/DATASET_NAME/NAME, so FOLDER best ends that way. Raises UserError for
    other quantizers, without mean and std, and where the folder holds a run already.
    """
    folder, options = Path(folder), Path(folder, "opt.txt")
    if net.vqvae.quant != "residual":
        raise UserError(f"--to-momask needs residual codes, and this network has {net.vqvae.quant} codes")
    if net.mean is None:
        raise UserError("--to-momask: the checkpoint has no mean and std; name their folder with --meta-dir")
    if options.exists():
        raise UserError(f"{options}: is there already; name a new folder with --to-momask")
    place = folder.absolute().parts
    values = {RENAMED.get(name, name): value for name, value in net.args.items() if name not in NOT_MOMASKS}
    values.update(dataset_name=net.spec.name, name=place[-1], checkpoints_dir=str(Path(*place[:-2])),
                  unit_length=2 ** net.down_t)
    state = {name.removeprefix("vqvae."): tensor for name, tensor in net.state_dict().items()}
    with atomic_write(folder / "model" / "net_best_fid.tar") as file:
        torch.save({"vq_model": state, "ep": 0, "total_it": net.iteration or 0}, file)
    for name in ("mean", "std"):
        save_array(folder / "meta" / f"{name}.npy", np.asarray(getattr(net, name)))
    with atomic_write(options) as file:
        lines = [HEAD, *(f"{name}: {values[name]}" for name in sorted(values)), TAIL]
        file.write("".join(f"{line}\n" for line in lines).encode())
