"""The ranks of a run that torchrun started: who is who, sums over all, and what one says to the others. A single process is rank 0 of 1."""
import atexit
import os
import time
import zlib
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.device import rank_and_world

CONNECT, ATTEMPTS = timedelta(seconds=20), 5
PATIENCE = timedelta(minutes=30)  # with each other, once connected: rank 0 may be reading data


def start_ranks():
    """Join the other processes of a torchrun, if this is one of several. Returns (rank, number of ranks).

    Now and then two gloo processes miss each other when they connect, and would wait for good: all try again then, together.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        store, rank, world = next(dist.rendezvous("env://"))
        for attempt in range(ATTEMPTS):
            store.add(f"attempt {attempt}", 1)
            while store.add(f"attempt {attempt}", 0) < world:
                time.sleep(0.01)
            try:
                dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=CONNECT, rank=rank, world_size=world,
                                        store=dist.PrefixStore(f"attempt {attempt}", store))
                break
            except RuntimeError:
                if attempt == ATTEMPTS - 1:
                    raise
        dist.distributed_c10d._set_pg_timeout(PATIENCE)
        atexit.register(dist.destroy_process_group)
    return rank_and_world()


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

