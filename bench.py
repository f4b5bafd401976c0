"""Measure how near training comes to what this machine can do: a much shorter train_vq.py.

    python bench.py                                      # the published network; a few minutes on two cores
    python bench.py --only evaluation --clips 117 4384

A ratio is the median over rounds in which both sides ran in turn: a busy machine hardly changes it.
"""
from options.common import COUNT, Parser, number
from options.option_vq import get_args_parser

PARTS = ["step", "data", "evaluation"]
PRODUCT = 2048  # rows of the matrix product; four times as many on CUDA


def parse_args(argv=None):
    """Parse bench.py's flags; all others are train_vq.py's, parsed into `training`."""
    parser = Parser(prog="bench.py", description=__doc__.splitlines()[0],
                    epilog="Any flag or recipe of train_vq.py chooses the network, the step and the device.")
    add = parser.add_argument
    add("--only", choices=PARTS, nargs="+", default=PARTS, metavar="PART", help="step, data, evaluation")
    add("--batch-size", type=COUNT, nargs="+", default=[64, 256], metavar="N",
        help="windows in a step, one measurement each; data takes the first")
    add("--amp", choices=("bf16", "fp16"), nargs="*", default=None, metavar="TYPE",
        help="precisions to measure beside float32; None: bf16 unless it is slow here")
    add("--clips", type=number(int, 2), nargs="+", default=[117], metavar="N",
        help="synthetic clips of 40 to 199 frames, one evaluation each; data takes the first")
    add("--rounds", type=COUNT, default=5, help="measurements of each number")
    args, rest = parser.parse_known_args(argv)
    args.training = get_args_parser(rest)
    return args


if __name__ == "__main__":  # before the slow imports, so that --help and refusals are instant
    ARGS = parse_args()

import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dataset.dataset_VQ import WindowFeed
from dataset.motion_folder import load_split
from evaluation.evaluate import evaluate_clips
from models.batches import BATCH_FRAMES, evaluating
from models.vqvae import HumanVQVAE
from training.step import AMP, build_objective, train_step
from utils.device import can_compile, is_slow_in_bf16, pick_device, set_precision
from utils.errors import exit_cleanly
from utils.motion_spec import get_spec


def in_turn(device, rounds, first, second):
    """Call two functions in turn. Return the median seconds of the second, and of its ratio to the first."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    seconds = {first: [], second: []}
    for _ in range(rounds + 1):
        for function in (first, second):
            wait()
            begin = time.perf_counter()
            function()
            wait()
            seconds[function].append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(seconds[first][1:], seconds[second][1:])]  # the first round warms up
    return statistics.median(seconds[second][1:]), statistics.median(ratios)


def make_step(args, device, amp):
    """Return a step of the training that args ask for, as a function of windows (B, T, D)."""
    args = SimpleNamespace(**{**vars(args), "amp": amp})
    net = HumanVQVAE.from_args(args).to(device).train()
    objective = build_objective(net, args, compiled=args.compile and not can_compile(device))
    optimizer = torch.optim.AdamW(net.parameters(), args.lr, betas=(0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    return lambda x: train_step(objective, net, optimizer, scaler, [x])


def measure_steps(args, device):
    """Time a step of every batch size and precision beside a large matrix product of that precision."""
    default = [] if is_slow_in_bf16(device) else ["bf16"]
    steps = {amp: make_step(args.training, device, amp) for amp in ["off", *(args.amp or default)]}
    size = PRODUCT * 4 if device.type == "cuda" else PRODUCT
    shape = args.training.window_size, get_spec(args.training.dataname).width
    for batch in args.batch_size:
        x = torch.randn(batch, *shape, device=device)
        steps["off"](x)
        with FlopCounterMode(display=False) as counter:
            steps["off"](x)
        products = counter.get_total_flops() / (2 * size ** 3)  # as much work as so many products
        for amp, step in steps.items():
            factor = torch.randn(size, size, device=device).to(AMP[amp] or torch.float32)
            product = partial(torch.matmul, factor, factor)
            seconds, over_product = in_turn(device, args.rounds, product, partial(step, x))
            name = f"batch {batch}, {'fp32' if amp == 'off' else amp}"
            yield f"{name}: share of the matrix product's rate", products / over_product
            yield f"{name}: ms a step", 1000 * seconds
            if amp != "off":
                _, over_fp32 = in_turn(device, args.rounds, partial(steps["off"], x), partial(step, x))
                yield f"{name}: times as fast as fp32", 1 / over_fp32


def make_clips(spec, count):
    """Return `count` random clips of 40 to 199 frames, as `load_split` does."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 200, count)
    frames = rng.standard_normal((lengths.sum(), spec.width), dtype=np.float32)
    return SimpleNamespace(names=list(map(str, range(count))), frames=frames, split="random",
                           offsets=np.cumsum([0, *lengths]))


def measure_data(args, device):
    """Time a start from the packed cache beside one without, and the feed beside a copy of as many bytes."""
    spec = get_spec(args.training.dataname)
    clips = make_clips(spec, args.clips[0])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "new_joint_vecs").mkdir()
        for name, frames in zip(clips.names, np.split(clips.frames, clips.offsets[1:-1])):
            np.save(Path(folder, "new_joint_vecs", f"{name}.npy"), frames)
        Path(folder, "train.txt").write_text("\n".join(clips.names))
        load = partial(load_split, Path(folder), "train", spec, np.zeros(spec.width), np.ones(spec.width))
        seconds, over_uncached = in_turn(device, args.rounds, partial(load, cache=False), load)
        yield f"{args.clips[0]} clips: cached start over an uncached one", over_uncached
        yield f"{args.clips[0]} clips: cached start, s", seconds
        feed = WindowFeed(load(), args.training.window_size, args.batch_size[0])
        windows, other, numbers = feed.batch(0), feed.batch(1), iter(range(1 << 30))
        seconds, over_copy = in_turn(device, 20 * args.rounds, lambda: other.copy_(windows),
                                     lambda: feed.batch(next(numbers)))
    yield "feed: time over a copy of as many bytes", over_copy
    yield "feed: windows/s", args.batch_size[0] / seconds


def measure_evaluation(args, device):
    """Time the evaluation of splits beside the bare forward pass over as many frames in full batches."""
    net = HumanVQVAE.from_args(args.training).to(device)
    net.mean, net.std = np.zeros(net.spec.width), np.ones(net.spec.width)
    for count in args.clips:
        clips = make_clips(net.spec, count)
        windows = torch.randn(-(-len(clips.frames) // 128), 128, net.spec.width, device=device)
        batches = windows.split(BATCH_FRAMES // 128)
        net.train()(batches[0])  # fills the codebook

        def forward(batches=batches):
            with evaluating(net):
                for x in batches:
                    net(x)

        seconds, cost = in_turn(device, args.rounds, forward, partial(evaluate_clips, net, clips, full=True))
        yield f"{count} clips: evaluation over the bare forward pass", cost
        yield f"{count} clips: evaluation, s", seconds


MEASURES = {"step": measure_steps, "data": measure_data, "evaluation": measure_evaluation}


@exit_cleanly
def main(args):
    """Measure what args ask for and print each number as it comes. Returns the exit code."""
    device = pick_device(args.training.device)
    set_precision(device, args.training.tf32)
    print(f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for part in args.only:
        for name, value in MEASURES[part](args, device):
            print(f"{name:<56} {value:12,.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
