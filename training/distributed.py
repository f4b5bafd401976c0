"""The ranks of a run that torchrun started, one process being rank 0 of 1, and stopping all at one step."""
import atexit
import os
import signal
from contextlib import contextmanager

import torch
import torch.distributed as dist

from utils.device import rank_and_world
from utils.errors import UserError

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def start_ranks():
    """Join the other processes of a torchrun, if this is one of several. Returns (rank, number of ranks)."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        store, rank, world = next(dist.rendezvous("env://"))
        # torchrun keeps its store over a restart: a prefix hides the addresses of ranks that died
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        atexit.register(dist.destroy_process_group)
    return rank_and_world()


def check_ranks(args, world):
    """Refuse flags with which ranks and micro-batches cannot share a batch."""
    parts = world * args.grad_accum
    if args.batch_size % parts:
        raise UserError(f"--batch-size {args.batch_size} is no multiple of {parts}, ranks × --grad-accum")
    if parts > 1 and args.vq_norm == "BN":
        raise UserError("--vq-norm BN cannot work on several ranks or micro-batches: use LN or GN")
    if args.grad_accum > 1 and args.shared_codebook:
        raise UserError("--grad-accum cannot work with --shared-codebook, which moves within a batch")


def from_rank_zero(value):
    """Broadcast `value`, tensors and primitives, from rank 0 and return it on every rank."""
    box = [value]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(box)
    return box[0]


@contextmanager
def rank_zero_first():
    """Run the block on rank 0 before the others begin, so that they find what it wrote."""
    rank, world = rank_and_world()
    if rank:
        dist.barrier()
    yield
    if world > 1 and not rank:
        dist.barrier()


class Signals:
    """Record the first SIGINT, SIGTERM or SIGUSR1 for a clean stop. A second one acts as usual."""

    first = 0

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.first = self.first or number
        if rank_and_world()[1] == 1:  # ranks get a Ctrl-C twice, by torchrun too
            self.__exit__()

    def received(self):
        """Return the signal to stop for, the same on every rank, or 0."""
        number = torch.tensor(self.first)
        if rank_and_world()[1] > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return signal.Signals(int(number)) if number else 0
