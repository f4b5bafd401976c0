"""Where to run, how precisely, and on how many ranks."""
import os

import torch
import torch.distributed as dist

from utils.errors import UserError


def pick_device(name):
    """torch.device of --device (auto | cpu | cuda | mps); raises UserError for one that is not there.

    On CUDA each process of a torchrun takes the device of its LOCAL_RANK.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    given, name = name, str(name).partition(":")[0]  # a torch.device and "cuda:1" are taken too
    if name not in (*there, "auto"):
        raise UserError(f"device {name!r} is unknown; use auto, cpu, cuda or mps")
    if there.get(name) and str(given) != name:
        return torch.device(given)
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise UserError(f"--device {name}: this machine's torch has none; use --device auto or cpu")
    if name != "cuda":
        return torch.device(name)
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(f"process {index} of this machine has no CUDA device; start {torch.cuda.device_count()} with --nproc-per-node")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def set_precision(args, device):
    """What --tf32 asks for; everything that is repeatable. Raises UserError for what the device cannot do."""
    torch.backends.cudnn.deterministic = True
    for flag, given in (("--tf32", args.tf32), ("--data-device", args.data_device != "auto")):
        if given and device.type != "cuda":
            raise UserError(f"{flag} acts only on CUDA, and this run is on {device.type}; leave it out")
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32" if args.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # the quantizer's distances


def can_compile(device):
    """None where torch.compile works on the device, else why it does not, in one line."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # no C++ compiler, no Triton, …
        return " ".join(str(error).split())[:160]
    return None


def rank_and_world():
    """(rank, number of ranks) of this process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce(tensor):
    """Sum over the ranks, in place; the tensor itself."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor
