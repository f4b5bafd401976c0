"""Train the motion VQ-VAE.

    python train_vq.py @options/t2m.args                     # the published recipe, on dataset/HumanML3D
    python train_vq.py @options/t2m.args --resume auto       # go on exactly where it stopped
    torchrun --nproc-per-node 4 train_vq.py @options/t2m.args --resume auto    # the same run on four devices
    tensorboard --logdir output

The run folder gets args.json, run.log, TensorBoard events, net_last.pth and net_best_mpjpe.pth (weights), and
state_last.pth and state_prev.pth (everything a resume needs).
Exit codes: 0 done, 1 stopped by a non-finite step, 2 a mistake in the input, 128 + n stopped by signal n.
"""
from options.option_vq import get_args_parser

if __name__ == "__main__":  # parse before the slow imports: --help and refusals are instant
    ARGS = get_args_parser()

import os
import signal
import sys

import torch
from tqdm import tqdm

from dataset.dataset_VQ import WindowFeed
from dataset.motion_folder import find_clips, find_statistics, load_split
from training.average import WeightAverage
from training.checkpoint import check_state, restore, starting_network
from training.distributed import Signals, check_ranks, from_rank_zero, rank_zero_first, start_ranks
from training.meter import Meter
from training.run_folder import open_run
from training.step import build_objective, set_learning_rate, train_step, warm_up_steps
from training.validation import best_scores, load_validation, validate
from utils.device import can_compile, is_slow_in_bf16, pick_device, set_precision
from utils.errors import exit_cleanly
from utils.motion_process import describe_statistics, weigh_root_and_contacts
from utils.motion_spec import get_spec


def load_data(args, net, log):
    """Return the training clips, their window feed and the validation split; give `net` mean and std."""
    spec = get_spec(args.dataname)
    root = args.data_root or spec.data_root
    if args.dataname == "demo":
        from dataset.prepare.demo import ensure_demo  # here, for only the demo needs its animation
        if ensure_demo(root):
            log.info(f"{root}: made the demo set")
    find_clips(root)
    net.mean, net.std, meta = find_statistics(args, spec)
    report_statistics(net.std, meta, root, spec, log)
    net.std = weigh_root_and_contacts(net.std, spec, args.feat_bias)
    clips = load_split(root, "train", spec, net.mean, net.std, args.skip_bad_clips, cache=not args.no_cache)
    feed = WindowFeed(clips, args.window_size, args.batch_size, args.seed)
    log.info(f"{args.dataname}: {len(feed)} training clips, {clips.offsets[-1]} frames, from {root}; "
             f"{feed.too_short} shorter than {args.window_size} frames, {len(clips.bad)} bad ones left out")
    for message in filter(None, [*clips.bad, clips.warning]):
        log.warning(message)
    return clips, feed, load_validation(args, root, net, log)


def report_statistics(std, meta, root, spec, log):
    """Log which of HumanML3D's two variants of mean and std is in use; warn of the unexpected one."""
    variant = describe_statistics(std)
    log.info(f"Using mean and std from {meta}" + (f" ({variant} variant)." if spec.name == "t2m" else "."))
    expected = "data set" if os.path.abspath(meta) == os.path.abspath(root) else "evaluator"
    if spec.name == "t2m" and variant != expected:
        log.warning(f"{meta}: expected the {expected} variant, found the {variant} one; see --meta-dir.")
    elif spec.name == "t2m" and variant == "data set":
        log.info("Published numbers use the evaluator variant: root and contact std ÷ 25 (--meta-dir).")


@exit_cleanly
def main(args):
    """Train as `args` say, alone or as one rank of torchrun. Returns the exit code."""
    rank, world = start_ranks()
    check_ranks(args, world)
    device = pick_device(args.device)
    set_precision(device, args.tf32)
    with open_run(args, silent=rank > 0) as run:
        warn_of_precision(args, device, run.log)
        return train(args, run, device, rank, world)


def train(args, run, device, rank, world):
    """Train in the open run folder. Returns the exit code."""
    # -------- network: of a saved state, with a checkpoint's weights, or new
    torch.manual_seed(args.seed)
    state = from_rank_zero(run.find_state())
    net = starting_network(args, state, run.log)
    dtype = torch.float64 if args.float64 else torch.float32

    # -------- data
    with rank_zero_first():
        clips, feed, val = load_data(args, net, run.log)
    net.to(device, dtype).train()

    # -------- optimizer, and the rest of a saved state
    objective = build_objective(net, args, compiled=args.compile and compiles(device, run.log))
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99),
                                  weight_decay=args.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    meter, start, best = Meter(net.vqvae.quantizer, device), 0, {}
    average = WeightAverage(net, args.ema_weights)
    warm_up = warm_up_steps(args)
    last = warm_up + args.total_iter
    if state:
        check_state(state, last, clips, run.log)
        start, best = restore(state, optimizer, scaler, meter, average)
    run.start(net, average, val, start, state["usage"] if state else ())
    run.log.info(describe(net, args, device, world, start, last))

    # -------- loop, warm-up included
    batches = feed.batches_on(device, start, rank, world, args.grad_accum)
    with Signals() as signals:
        for step in progress_bar(start, last, rank):
            rate = set_learning_rate(optimizer, step, args)
            parts = [x.to(dtype) for x in next(batches)]
            meter.add(step, train_step(objective, net, optimizer, scaler, parts))
            average.update(step)

            # once in a while: look at the numbers, the only place that waits for the device
            stop, final, trained = signals.received(), step == last, step - warm_up
            prints = (trained if trained > 0 else step) % args.print_iter == 0 or trained == 0 or final
            validates = (trained > 0 and trained % args.eval_iter == 0) or final
            saves = step % args.save_iter == 0 or final or stop
            if (prints or validates or saves) and (bad := meter.bad_step()):
                run.log.error(describe_bad_step(bad, clips, feed))
                return 1
            if prints:
                run.report(step, rate, meter.read())
            if validates and val:
                with average.applied():
                    result = validate(net, val, step, args)
                    run.report_validation(step, result)
                run.save_best(best_scores(result), best, step)
            if validates:
                run.save_network("net_last.pth", step, best)
            if saves:
                run.save_state(step, best, optimizer, scaler, meter, clips.content)
            if stop and not final:
                name = signal.Signals(stop).name
                run.log.info(f"Stopped by {name} after step {step}; go on with --resume auto.")
                return 128 + stop
    with average.applied():
        run.finish()
    run.log.info(f"Done: {last} steps; weights in {run.path}/net_last.pth.")
    return 0


def progress_bar(start, last, rank):
    """Return the steps start + 1 … last; on a terminal, rank 0 shows a progress bar."""
    return tqdm(range(start + 1, last + 1), total=last, initial=start, unit="it", dynamic_ncols=True,
                disable=None if rank == 0 else True)


def warn_of_precision(args, device, log):
    """Log a warning where --amp bf16 makes training slower."""
    if args.amp == "bf16" and is_slow_in_bf16(device):
        log.warning(f"--amp bf16: bfloat16 is slower than float32 on this {device.type}; leave --amp out.")


def describe(net, args, device, world, start, last):
    """Return a line on the network, the device and the steps to do."""
    size = sum(p.numel() for p in net.parameters()) / 1e6
    where = f"{world} ranks on {device}" if world > 1 else device
    layers = f"{args.num_quantizers} layers, " if args.quantizer == "residual" else ""
    return (f"{args.quantizer}, {layers}{args.nb_code} codes of width {args.code_dim}, "
            f"{size:.2f} M parameters, {where}, "
            f"steps {start + 1} to {last} ({warm_up_steps(args)} of warm-up)")


def describe_bad_step(step, clips, feed):
    """Return the log line of a step that was not finite, with its clips."""
    names = [clips.names[i] for i in feed.select(step - 1)[0]]
    return (f"Step {step} has a non-finite loss, latent or gradient; stopped. The last saved state stands. "
            f"Its {len(names)} clips: {', '.join(names)}")


def compiles(device, log):
    """Return whether torch.compile works here; log why not."""
    problem = can_compile(device)
    if problem:
        log.warning(f"--compile: torch.compile does not work here ({problem}); training without it.")
    return not problem


if __name__ == "__main__":
    sys.exit(main(ARGS))
