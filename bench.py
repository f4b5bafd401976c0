"""Measure how near training comes to what this machine can do: a much shorter train_vq.py.

    python bench.py                                      # the published network; a few minutes on two cores
    python bench.py --only evaluation --clips 117 4384

A ratio is the median over rounds in which both sides ran in turn: a busy machine hardly changes it.
"""
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluation.evaluate import evaluate_clips
from models.batches import BATCH_FRAMES, evaluating
from models.vqvae import QUANTIZERS, HumanVQVAE
from options.common import COUNT, Parser, number
from options.option_vq import get_args_parser
from training.step import AMP, build_objective, train_step
from utils.device import is_slow_in_bf16, pick_device, set_precision
from utils.errors import exit_cleanly

FSQ = {"fsq_levels": (8, 8, 8), "nb_code": 512}  # as many codes as the published codebook's
PRODUCT = {"cuda": 8192}  # rows of the matrix product to compare with; 2048 elsewhere


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


def make_step(args, device, **changes):
    """Return a function that makes one training step, always of the same windows; changes: to `args`."""
    args = SimpleNamespace(**{**vars(args), **changes})
    net = HumanVQVAE.from_args(args).to(device).train()
    objective = build_objective(net, args)
    optimizer = torch.optim.AdamW(net.parameters(), args.lr, betas=(0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    x = torch.randn(args.batch_size, args.window_size, net.spec.width).to(device)
    return partial(train_step, objective, net, optimizer, scaler, [x])


def measure_steps(args, device):
    """Time steps in float32 and --amp (bf16 unless it is slow here) beside a large matrix product."""
    size, amp = PRODUCT.get(device.type, 2048), args.training.amp
    if amp == "off" and not is_slow_in_bf16(device):
        amp = "bf16"
    steps = {name: make_step(args.training, device, amp=name) for name in dict.fromkeys(["off", amp])}
    with FlopCounterMode(display=False) as counter:
        steps["off"]()
    products = counter.get_total_flops() / (2 * size ** 3)  # as much work as so many products
    for name, step in steps.items():
        factor = torch.randn(size, size, device=device).to(AMP[name] or torch.float32)
        ratio, seconds = in_turn(device, args.rounds, partial(torch.matmul, factor, factor), step)
        yield f"step with amp {name}: share of the matrix product's rate", products / ratio, seconds
    if amp != "off":
        ratio, seconds = in_turn(device, args.rounds, *steps.values())
        yield f"step with amp {amp}: times as fast as with off", 1 / ratio, seconds


def measure_quantizers(args, device):
    """Time a step of every other quantizer beside one of ema_reset."""
    steps = {name: make_step(args.training, device, quantizer=name, **(FSQ if name == "fsq" else {}))
             for name in QUANTIZERS}
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


def forward(net, batches):
    """Reconstruct batches of windows, and no more."""
    with evaluating(net):
        for x in batches:
            net(x)


def measure_evaluation(args, device):
    """Time the evaluation of splits beside the bare forward pass over as many frames in full batches."""
    net = HumanVQVAE.from_args(args.training).to(device)
    net.mean, net.std = np.zeros(net.spec.width), np.ones(net.spec.width)
    for count in args.clips:
        clips = make_clips(net.spec, count)
        windows = torch.randn(-(-len(clips.frames) // 128), 128, net.spec.width, device=device)
        batches = windows.split(BATCH_FRAMES // 128)
        net.train()(batches[0])  # fills the codebook
        evaluation = partial(evaluate_clips, net, clips, full=True)
        yield f"{count} clips: evaluation over the bare forward pass", *in_turn(
            device, args.rounds, partial(forward, net, batches), evaluation)


# each yields names, ratios, and the seconds of what was measured
PARTS = {"step": measure_steps, "quantizers": measure_quantizers, "evaluation": measure_evaluation}


def parse_args(argv=None):
    """Parse bench.py's flags; all others are train_vq.py's, parsed into `training`."""
    parser = Parser(prog="bench.py", description=__doc__.splitlines()[0],
                    epilog="Any flag or recipe of train_vq.py chooses the network, the step and the device.")
    add = parser.add_argument
    add("--only", choices=PARTS, nargs="+", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    add("--clips", type=number(int, 2), nargs="+", default=[117], metavar="N",
        help="synthetic clips of 40 to 199 frames, one evaluation each")
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
