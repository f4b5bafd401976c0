"""Where to run, how precisely, and on how many ranks."""
import os
import time

import torch
import torch.distributed as dist

from utils.errors import UserError


def pick_device(name):
    """Return the torch.device of a name: auto, cpu, cuda or mps.

    On CUDA each process of a torchrun takes the device of its LOCAL_RANK. Raises UserError for one that is
    not there.
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
        count = torch.cuda.device_count()
        raise UserError(f"process {index} has no CUDA device of its own; use --nproc-per-node {count}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def set_precision(device, tf32=False):
    """Make convolutions repeatable and, on CUDA, set TF32 on or off. Raises UserError for TF32 elsewhere."""
    torch.backends.cudnn.deterministic = True
    if tf32 and device.type != "cuda":
        raise UserError(f"--tf32 acts only on CUDA, and this run is on {device.type}; leave it out")
    if device.type == "cuda":
        torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # the quantizer's distances


def is_slow_in_bf16(device):
    """Return whether bfloat16 convolutions take longer than float32 ones here.

    Measures for some milliseconds.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    seconds, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other on a busy machine, in either precision
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(4, 128, 64, dtype=dtype, device=device)
        weight = torch.ones(128, 128, 3, dtype=dtype, device=device)
        runs = []
        for _ in range(4):  # the first one prepares the kernel
            start = time.perf_counter()
            torch.nn.functional.conv1d(x, weight).sum().item()
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    torch.set_num_threads(threads)
    return seconds[1] > 1.5 * seconds[0]


def can_compile(device):
    """Return None where torch.compile works on the device, else why not, in one line."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # no C++ compiler, no Triton, …
        return " ".join(str(error).split())[:100]
    return None


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
