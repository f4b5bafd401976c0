"""Measure how near training comes to what this machine can do: a much shorter train_vq.py.

    python bench.py                                      # the published network; a few minutes on two cores
    python bench.py --only evaluation --clips 117 4384

A ratio is the median over rounds in which both sides ran in turn: a busy machine hardly changes it.
"""
import itertools
import math
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
from models.vqvae import QUANTIZERS, HumanVQVAE
from options.common import COUNT, Parser, number
from options.option_vq import get_args_parser
from training.step import AMP, build_objective, train_step
from utils.device import is_slow_in_bf16, pick_device, set_precision
from utils.errors import exit_cleanly
from utils.motion_spec import get_spec

FSQ_LEVELS = (8, 8, 8)  # 512 codes, as many as the published codebook's


def in_turn(device, rounds, first, second):
    """Call two functions in turn. Return the medians of the second's time over the first's, and of it."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    seconds = []
    for function in [first, second] * (rounds + 1):
        wait()
        begin = time.perf_counter()
        function()
        wait()
        seconds.append(time.perf_counter() - begin)
    first, second = np.reshape(seconds[2:], (-1, 2)).T  # the first round warms up
    return np.median(second / first), np.median(second)


def make_step(args, device, amp):
    """Return a step of the training that args ask for, as a function of windows (B, T, D)."""
    args = SimpleNamespace(**{**vars(args), "amp": amp})
    net = HumanVQVAE.from_args(args).to(device).train()
    objective = build_objective(net, args)
    optimizer = torch.optim.AdamW(net.parameters(), args.lr, betas=(0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    return lambda x: train_step(objective, net, optimizer, scaler, [x])


def measure_steps(args, device):
    """Time steps in float32 and --amp (bf16 unless it is slow here) beside a large matrix product."""
    training, size = args.training, 8192 if device.type == "cuda" else 2048
    default = "off" if is_slow_in_bf16(device) else "bf16"
    other = default if training.amp == "off" else training.amp
    x = torch.randn(training.batch_size, training.window_size, get_spec(training.dataname).width).to(device)
    plain = partial(make_step(training, device, "off"), x)
    with FlopCounterMode(display=False) as counter:
        plain()
    products = counter.get_total_flops() / (2 * size ** 3)  # as much work as so many products
    for amp in dict.fromkeys(["off", other]):
        name, step = "fp32", plain
        if amp != "off":
            name, step = amp, partial(make_step(training, device, amp), x)
            ratio, seconds = in_turn(device, args.rounds, plain, step)
            yield f"{name} step: times as fast as fp32", 1 / ratio, seconds
        factor = torch.randn(size, size, device=device).to(AMP[amp] or torch.float32)
        ratio, seconds = in_turn(device, args.rounds, partial(torch.matmul, factor, factor), step)
        yield f"{name} step: share of the matrix product's rate", products / ratio, seconds


def measure_quantizers(args, device):
    """Time a step of every other quantizer beside one of ema_reset."""
    training, steps = args.training, {}
    x = torch.randn(training.batch_size, training.window_size, get_spec(training.dataname).width).to(device)
    for name in QUANTIZERS:
        more = dict(fsq_levels=FSQ_LEVELS, nb_code=math.prod(FSQ_LEVELS)) if name == "fsq" else {}
        steps[name] = partial(make_step(
            SimpleNamespace(**{**vars(training), "quantizer": name, **more}), device, training.amp), x)
    base = steps.pop("ema_reset")
    for name, step in steps.items():
        yield f"{name} step over an ema_reset step", *in_turn(device, args.rounds, base, step)


def make_clips(spec, count):
    """Return `count` random clips of 40 to 199 frames, as `load_split` does."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 200, count)
    frames = rng.standard_normal((lengths.sum(), spec.width), dtype=np.float32)
    return SimpleNamespace(names=list(map(str, range(count))), frames=frames, split="random",
                           offsets=np.cumsum([0, *lengths]), bad=[])


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
        name = f"{args.clips[0]} clips: cached start over an uncached one"
        yield name, *in_turn(device, args.rounds, partial(load, cache=False), load)
        feed = WindowFeed(load(), args.training.window_size, args.training.batch_size)
        windows, other, numbers = feed.batch(0), feed.batch(1), itertools.count()
        yield "a batch of the feed over a copy of as many bytes", *in_turn(
            device, 20 * args.rounds, partial(other.copy_, windows), lambda: feed.batch(next(numbers)))


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

        evaluation = partial(evaluate_clips, net, clips, full=True)
        yield f"{count} clips: evaluation over the bare forward pass", *in_turn(
            device, args.rounds, forward, evaluation)


# each yields names, ratios, and the seconds of what was measured
PARTS = {"step": measure_steps, "quantizers": measure_quantizers, "data": measure_data,
         "evaluation": measure_evaluation}


def parse_args(argv=None):
    """Parse bench.py's flags; all others are train_vq.py's, parsed into `training`."""
    parser = Parser(prog="bench.py", description=__doc__.splitlines()[0],
                    epilog="Any flag or recipe of train_vq.py chooses the network, the step and the device.")
    add = parser.add_argument
    add("--only", choices=PARTS, nargs="+", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    add("--clips", type=number(int, 2), nargs="+", default=[117], metavar="N",
        help="synthetic clips of 40 to 199 frames, one evaluation each; data takes the first")
    add("--rounds", type=COUNT, default=5, help="measurements of each number")
    args, rest = parser.parse_known_args(argv)
    args.training = get_args_parser(rest)
    return args


@exit_cleanly
def main(args):
    """Measure what args ask for and print each number as it comes. Returns the exit code."""
    device = pick_device(args.training.device)
    set_precision(device, args.training.tf32)
    print(f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for part in args.only:
        for name, ratio, seconds in PARTS[part](args, device):
            print(f"{name:<56} {ratio:8,.3f} {1000 * seconds:12,.2f} ms", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
