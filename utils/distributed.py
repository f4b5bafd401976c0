"""The ranks of a run that torchrun started: who is who, sums over all, and what one says to the others. A single process is rank 0 of 1."""
import atexit
import os
import zlib
from contextlib import contextmanager

import torch
import torch.distributed as dist


def start_ranks():
    """Join the other processes of a torchrun, if this is one of several. Returns (rank, number of ranks)."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return rank_and_world()


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


def largest(numbers):
    """Each of the ranks' whole numbers at its largest, as a list that all of them know. Waits for every rank."""
    values = torch.tensor(numbers)
    if rank_and_world()[1] > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def equal_everywhere(tensors):
    """Whether every rank holds the same bits in its `tensors`. A single one does, without a look."""
    if rank_and_world()[1] == 1:
        return True
    digest = 0
    for tensor in tensors:
        digest = zlib.crc32(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy(), digest)
    high, low = largest([digest, -digest])
    return high == -low


def from_rank_zero(value):
    """Rank 0's value, whatever the others gave: tensors and primitives."""
    if rank_and_world()[1] > 1:
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


@contextmanager
def rank_zero_first():
    """Rank 0 runs the block before the others begin: it makes what they only read, and finds what is wrong once."""
    rank, world = rank_and_world()
    if rank:
        dist.barrier()
    yield
    if world > 1 and rank == 0:
        dist.barrier()

