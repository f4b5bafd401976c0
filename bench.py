"""How near training comes to what this machine can do.

    python bench.py                              # the published network; a few minutes on two cores
    python bench.py --json before.json           # the same numbers, kept
    python bench.py --compare before.json after.json
    python bench.py --only data --clips 100000 --frames 64 80    # start-up, feed and memory of a large set (docs/scale.md)

Ratios and shares first, times second: every ratio is taken within one run, the two sides in turn, and the median of several rounds is shown, as
machines are noisy. A share is the step's own floating-point operations, over its time, over the rate of a large matrix product measured beside it.
"""
from options.option_vq import bench_args

if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = bench_args()

import collections
import json
import os
import platform
import resource
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
from evaluation.evaluate import evaluate_clips, select_clips
from models.batches_old import BATCH_FRAMES, evaluating
from models.vqvae import HumanVQVAE
from training.step import AMP, build_objective, train_step
from utils.device import can_compile, pick_device, set_precision
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.losses import ReConsLoss
from utils.motion_spec import get_spec


class Clock:
    """Times calls: the clock waits for the device on both sides of a call. `cpu_time` counts processor seconds, of all threads together."""

    def __init__(self, device, cpu_time=False):
        self.wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
        self.now = time.process_time if cpu_time else time.perf_counter

    def __call__(self, function, *args):
        self.wait()
        begin = self.now()
        result = function(*args)
        self.wait()
        return self.now() - begin, result

    def in_turn(self, rounds, **functions):
        """Seconds of each function, called in turn after one round of warm-up: {name: (rounds,) list}."""
        seconds = {name: [] for name in functions}
        for number in range(rounds + 1):
            for name, function in functions.items():
                taken, _ = self(function)
                if number:
                    seconds[name].append(taken)
        return seconds


def ratio(above, below):
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(above, below))


def training(args, device, amp):
    """A net of args with everything that one step takes, and its step as a function of windows."""
    args = SimpleNamespace(**{**vars(args), "amp": amp})
    torch.manual_seed(0)
    net = HumanVQVAE.from_args(args).to(device).train()
    objective = build_objective(net, ReConsLoss(args.recons_loss, net.nb_joints), args, compiled=args.compile and not can_compile(device))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0, fused=True)
    scaler, go = torch.amp.GradScaler(device.type, enabled=amp == "fp16"), torch.zeros((), dtype=torch.bool, device=device)
    return SimpleNamespace(net=net, objective=objective, optimizer=optimizer,
                           step=lambda x: train_step(objective, net, optimizer, scaler, [x], go))


def matrix_product(device, dtype):
    """A large square product, and its floating-point operations."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * size ** 3


def measure_steps(args, device, clock):
    """Steps of every batch size and precision beside the matrix product of that precision."""
    result = {}
    runs = {amp: training(args, device, amp) for amp in args.amps}
    for batch in args.batch_sizes:
        x = torch.randn(batch, args.window_size, runs["off"].net.spec.width, device=device)
        runs["off"].step(x)
        with FlopCounterMode(display=False) as counter:
            runs["off"].step(x)
        operations = counter.get_total_flops()
        functions = {}
        for amp, run in runs.items():
            functions[f"product {amp}"], product_operations = matrix_product(device, AMP[amp] or torch.float32)
            functions[f"step {amp}"] = partial(run.step, x)
        seconds = clock.in_turn(args.rounds, **functions)
        for amp in runs:
            step, product = seconds[f"step {amp}"], seconds[f"product {amp}"]
            result[f"batch {batch} {amp}"] = dict(
                share_of_matrix_rate=ratio(product, step) * operations / product_operations,
                faster_than_fp32=ratio(seconds["step off"], step),
                ms=1000 * statistics.median(step), windows_per_s=batch / statistics.median(step),
                tflops=operations / statistics.median(step) / 1e12, matrix_tflops=product_operations / statistics.median(product) / 1e12)
    return result


def measure_parts(args, device, clock):
    """Where the time of an fp32 step goes: forward and backward of each part by itself, as shares of their sum."""
    run = training(SimpleNamespace(**{**vars(args), "compile": False}), device, "off")
    vqvae, loss_fn = run.net.vqvae, ReConsLoss(args.recons_loss, run.net.nb_joints)
    x = torch.randn(args.batch_sizes[0], args.window_size, run.net.spec.width, device=device)
    run.step(x)
    codes, rows = vqvae.quantizer.codes.detach(), vqvae.quantizer.to_rows(vqvae.encoder(x.transpose(1, 2))).detach()
    norms = codes.square().sum(1) / 2

    def leaf(tensor):
        return tensor.detach().requires_grad_()

    seconds = {}
    for number in range(args.rounds + 1):
        taken = {}
        taken["encoder"], z_e = clock(vqvae.encoder, x.transpose(1, 2))
        latent = leaf(z_e)
        taken["quantizer"], (z_q, commit, *seen) = clock(vqvae.quantizer.look_up, latent)
        taken["quantizer"] += clock(vqvae.quantizer.update, *seen)[0]
        taken["quantizer alone"] = taken["quantizer"]
        taken["distance product"] = clock(lambda: torch.addmm(norms, rows, codes.t(), alpha=-1))[0]
        quantized = leaf(z_q)
        taken["decoder"], out = clock(vqvae.decoder, quantized)
        motion = leaf(out.transpose(1, 2))
        taken["loss"], total = clock(lambda: loss_fn(motion, x) + args.loss_vel * loss_fn.forward_vel(motion, x))  # noqa: B023
        taken["loss"] += clock(total.backward)[0]
        taken["decoder"] += clock(out.backward, motion.grad.transpose(1, 2))[0]
        taken["quantizer"] += clock(lambda: torch.autograd.backward([z_q, commit], [quantized.grad, torch.full_like(commit, args.commit)]))[0]  # noqa: B023
        taken["encoder"] += clock(z_e.backward, latent.grad)[0]
        taken["optimizer"] = clock(run.optimizer.step)[0]
        run.optimizer.zero_grad(set_to_none=True)
        if number:
            for name, value in taken.items():
                seconds.setdefault(name, []).append(value)
    parts = ("encoder", "quantizer", "decoder", "loss", "optimizer")
    whole = [sum(values) for values in zip(*(seconds[name] for name in parts))]
    return dict({f"{name}_share": ratio(seconds[name], whole) for name in parts},
                quantizer_over_distance_product=ratio(seconds["quantizer alone"], seconds["distance product"]),
                outside_convolutions_share=outside_convolutions(run, x), **{f"{name}_ms": 1000 * statistics.median(seconds[name]) for name in parts})


def outside_convolutions(run, x):
    """Share of a step's operator time that no convolution takes, by torch's profiler."""
    activity = torch.profiler.ProfilerActivity.CUDA if x.is_cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        for _ in range(3):
            run.step(x)
    times = {event.key: event.self_device_time_total if x.is_cuda else event.self_cpu_time_total for event in profile.key_averages()}
    convolutions = sum(taken for name, taken in times.items() if any(word in name for word in ("conv", "xmma", "cutlass", "gemm", "implicit")))
    return 1 - convolutions / sum(times.values())


def make_folder(root, spec, clips, frames, seed=0):
    """A data folder of random clips of `frames` (shortest, longest) frames."""
    rng = np.random.default_rng(seed)
    (root / "new_joint_vecs").mkdir(parents=True)
    names = [f"{i:06d}" for i in range(clips)]
    pool = rng.standard_normal((frames[1] + 1000, spec.width), dtype=np.float32)
    for name in names:
        start = rng.integers(1000)
        np.save(root / "new_joint_vecs" / f"{name}.npy", pool[start:start + rng.integers(*frames, endpoint=True)])
    (root / "train.txt").write_text("\n".join(names))
    return root


def made_data(args, folder):
    """What `load_split` takes, for --clips random clips in a temporary folder."""
    spec = get_spec(args.dataname)
    return make_folder(Path(folder) / "data", spec, args.clips, args.frames), "train", spec, np.zeros(spec.width), np.ones(spec.width)


def measure_data(args, device, clock):
    """Start-up with and without the packed cache, the feed against a copy of as many bytes, and what stays in memory."""
    with tempfile.TemporaryDirectory() as folder:
        data = made_data(args, folder)
        cold, clips = clock(load_split, *data)
        del clips
        cached, clips = clock(load_split, *data)
        feed = WindowFeed(clips, args.window_size, args.batch_sizes[0], seed=1)
        epoch = -(-len(feed) // feed.batch_size)
        first_epoch, _ = clock(lambda: collections.deque(map(feed.batch, range(epoch)), 0))
        batch = feed.batch(0)
        copies, number = torch.empty_like(batch), iter(range(epoch, 1 << 30))
        seconds = clock.in_turn(20 * args.rounds, feed=lambda: feed.batch(next(number)), copy=lambda: copies.copy_(batch))
        memory = resident()
    return dict(start_cached_over_cold=cached / cold, feed_over_copy=ratio(seconds["copy"], seconds["feed"]),
                start_cold_s=cold, start_cached_s=cached, clips=args.clips,
                feed_first_epoch_windows_per_s=epoch * feed.batch_size / first_epoch,
                feed_windows_per_s=args.batch_sizes[0] / statistics.median(seconds["feed"]), **memory)


def measure_evaluation(args, device, clock):
    """A split's whole evaluation over the bare network's forward pass on the same frames in full batches."""
    with tempfile.TemporaryDirectory() as folder:
        _, _, spec, mean, std = data = made_data(args, folder)
        run, clips = training(args, device, "off"), load_split(*data, cache=False)
        run.net.mean, run.net.std = mean, std
        _, starts, lengths, _ = select_clips(clips, spec, 2 ** run.net.down_t)
        frames = np.concatenate([clips.frames[start:start + length] for start, length in zip(starts, lengths)])
        windows = torch.from_numpy(frames[:len(frames) // 128 * 128]).view(-1, 128, spec.width).split(BATCH_FRAMES // 128)

        def forward():
            with evaluating(run.net):
                for x in windows:
                    run.net(x.to(device))

        seconds = clock.in_turn(args.rounds, forward=forward,
                                evaluation=lambda: evaluate_clips(run.net, clips, full=True))
    return dict(evaluation_over_forward=ratio(seconds["evaluation"], seconds["forward"]) * (len(frames) // 128 * 128) / len(frames),
                clips_per_s=len(lengths) / statistics.median(seconds["evaluation"]))


MEASURES = {"step": measure_steps, "parts": measure_parts, "data": measure_data, "evaluation": measure_evaluation}


def machine(device):
    """What the numbers are numbers of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor()) \
        if os.path.exists("/proc/cpuinfo") else platform.processor()
    return dict(device=f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name, torch=torch.__version__)


def peak_memory(device):
    """GiB: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30


def resident():
    """GiB this process holds now, on Linux: memory of its own, and pages of mapped files, which the system takes back when it needs room."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    names = {"RssAnon:": "own_memory_GiB", "RssFile:": "mapped_pages_GiB"}
    return {names[line.split()[0]]: int(line.split()[1]) / 2 ** 20 for line in lines if line.startswith(tuple(names))}


def flatten(results, prefix=""):
    """{"batch 64 off": {"ms": 1.0}} → {"batch 64 off, ms": 1.0}."""
    flat = {}
    for name, value in results.items():
        flat.update(flatten(value, f"{prefix}{name}, ") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def show(flat):
    """Ratios and shares first, times second."""
    times = ("_s", "ms", "GiB", "flops", "clips")
    for title, wanted in (("ratios and shares", False), ("times and rates", True)):
        print(f"\n{title}")
        for name, value in flat.items():
            if not isinstance(value, str) and name.endswith(times) == wanted:
                print(f"  {name:<56} {value:10.3f}" if abs(value) < 1000 else f"  {name:<56} {value:10,.0f}")


def compare(paths):
    """Print two saved runs side by side. Raises UserError for a file that is none."""
    runs = []
    for path in paths:
        try:
            runs.append(flatten(json.loads(Path(path).read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a saved bench ({error}); expected a file of python bench.py --json FILE") from None
    print(f"  {'':<56} {'first':>10} {'second':>10} {'second/first':>13}")
    for name, value in runs[0].items():
        other = runs[1].get(name)
        if isinstance(value, str):
            print(f"  {name:<56} {value} | {other}")
        elif other is not None:
            print(f"  {name:<56} {value:10.3f} {other:10.3f} {other / value if value else float('nan'):13.3f}")
    return 0


@exit_cleanly
def main(args):
    """Measure, print and save as `args` (of the options module) say. Returns the exit code."""
    if args.compare:
        return compare(args.compare)
    device = pick_device(args.device)
    set_precision(args, device)
    clock, results = Clock(device, args.cpu_time), machine(device)
    print(f"{results['device']}, torch {results['torch']}")
    for name in args.only:
        results[name] = MEASURES[name](args, device, clock)
    results["peak memory, GiB"] = peak_memory(device)
    show(flatten(results))
    if args.json:
        write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
