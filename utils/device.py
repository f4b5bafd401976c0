"""Where to run, how precisely, and on how many ranks."""
import os

import torch
import torch.distributed as dist

from utils.errors import UserError


def pick_device(name):
    """Return the torch.device of a name: auto, cpu, cuda, mps, or one with an index.

    On CUDA each process of a torchrun takes the device of its LOCAL_RANK. Raises UserError for one that is
    not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(kind for kind in there if there[kind]) if str(name) == "auto" else str(name)
    kind, _, index = name.partition(":")
    if not there.get(kind):
        raise UserError(f"--device {name}: unknown, or this machine's torch has none; use auto or cpu")
    if kind == "cuda" and not index:
        index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"process {index} has no CUDA device of its own; use --nproc-per-node {count}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device(name)


def set_precision(device, tf32=False):
    """Make convolutions repeatable and, on CUDA, set TF32 on or off. Raises UserError for TF32 elsewhere."""
    torch.backends.cudnn.deterministic = True
    if tf32 and device.type != "cuda":
        raise UserError(f"--tf32 acts only on CUDA, and this run is on {device.type}; leave it out")
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # the quantizer's distances


def is_slow_in_bf16(device):
    """Return whether bfloat16 convolutions take longer than float32 ones here. Measures for 0.1 s."""
    from torch.utils.benchmark import Timer  # slow to import
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (torch.ones(size, dtype=dtype, device=device) for size in ((4, 128, 64), (128, 128, 3)))
        timer = Timer("conv1d(x, weight).sum().item()", globals=dict(x=x, weight=weight, conv1d=torch.conv1d))
        seconds.append(min(timer.blocked_autorange(min_run_time=0.05).times))
    return seconds[1] > 1.5 * seconds[0]


def check_compiler(device):
    """Raise UserError where torch.compile does not work on the device."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # no C++ compiler, no Triton, …
        raise UserError(f"--compile does not work here: {' '.join(str(error).split())[:100]}") from None


def rank_and_world():
    """Return (rank, number of ranks) of this process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce(tensor):
    """Sum a tensor over the ranks, in place, and return it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor
