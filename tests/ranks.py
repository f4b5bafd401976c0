"""Train small runs, a folder each, as one rank: `torchrun --nproc-per-node N tests/ranks.py DATA OUT`."""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.helpers import small_args
from train_vq import main

# run → flags; 25 steps of 8 windows, 64 rows of latents a step
STEPS = ("--batch-size", "8", "--warm-up-iter", "6", "--total-iter", "20", "--lr", "1e-3", "--print-iter",
         "10",
         "--eval-iter", "10", "--depth", "1")
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

if __name__ == "__main__":
    torch.set_num_threads(1)
    root, out = map(Path, sys.argv[1:])
    for name, flags in {**RUNS, **SINGLE}.items():
        assert main(small_args(root, out / name, *STEPS, *flags)) == 0
