"""Train the same small runs as 1, 2 and 4 ranks, a folder each: `python tests/ranks.py DATA OUT`.

The ranks are forked from one process, for importing torch takes longer than the work.
"""
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # the optimizer would import it, in every rank

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.helpers import small_args
from train_vq import main

# run → flags; 14 steps of 8 windows, 64 rows of latents a step
STEPS = ("--batch-size", "8", "--warm-up-iter", "5", "--total-iter", "10", "--lr", "1e-3",
         "--eval-iter", "10", "--save-iter", "100", "--depth", "1")
RUNS = {
    **{quantizer: ("--quantizer", quantizer, "--float64")
       for quantizer in ("ema_reset", "orig", "ema", "reset")},
    # layers are dropped: every rank must drop the same ones
    "residual": ("--quantizer", "residual", "--num-quantizers", "3", "--quantize-dropout-prob", "0.5",
                 "--ema-weights", "0.9", "--float64"),
    "shared": ("--quantizer", "residual", "--num-quantizers", "2", "--shared-codebook", "--float64"),
    "fsq": ("--quantizer", "fsq", "--fsq-levels", "4", "4", "--float64"),
    "few rows": ("--nb-code", "100", "--float64"),  # fewer rows than codes: they are repeated with noise
    "parts": ("--grad-accum", "2", "--float64"),
}
SINGLE = {"float32": ()}


def launch(world, function, *args):
    """Call `function(*args)` in `world` forked ranks. Returns whether every one came to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        ranks.append(os.fork())
        if not ranks[-1]:
            os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE=f"{world}",
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
            try:
                function(*args)
                code = 0
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)
    return not any([os.waitpid(rank, 0)[1] for rank in ranks])


def train(runs):
    """Train runs, {folder: flags}, one after the other."""
    for out, flags in runs.items():
        assert main(small_args(root, out, *flags)) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, out = map(Path, sys.argv[1:3])
    runs = {name: (*STEPS, *flags) for name, flags in {**RUNS, **SINGLE}.items()}
    worlds = {1: runs, 2: runs, 4: runs}
    if sys.argv[3:]:  # one run of two ranks, with these flags
        worlds = {2: {"": sys.argv[3:]}}
    for world, runs in worlds.items():
        if not launch(world, train, {out / f"{world}" / name: flags for name, flags in runs.items()}):
            sys.exit(1)
