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

import sys
from os.path import samefile

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dataset.dataset_VQ import WindowFeed
from dataset.motion_folder import find_clips, find_statistics, load_split
from training.checkpoint import restore, starting_network
from training.distributed import Signals, check_ranks, from_rank_zero, rank_zero_first, start_ranks
from training.meter import Meter
from training.run_folder import open_run
from training.step import WeightAverage, build_objective, learning_rate, train_step, warm_up_steps
from training.validation import best_scores, load_validation, validate
from utils.device import check_compiler, is_slow_in_bf16, pick_device, set_precision
from utils.errors import exit_cleanly
from utils.motion_process import describe_statistics, weigh_root_and_contacts
from utils.motion_spec import get_spec


@exit_cleanly
def main(args):
    """Train as `args` say, alone or as one rank of torchrun. Returns the exit code."""
    rank, world = start_ranks()
    check_ranks(args, world)
    device = pick_device(args.device)
    set_precision(device, args.tf32)
    if args.compile:
        check_compiler(device)
    torch.manual_seed(args.seed)
    with open_run(args, rank) as run:
        if args.amp == "bf16" and is_slow_in_bf16(device):
            run.log.warning(f"--amp bf16 is slower than float32 on this {device.type}; leave it out.")
        return train(args, run, device, rank, world)


def train(args, run, device, rank, world):
    """Train in the open run folder. Returns the exit code."""
    # -------- network: of a saved state, with a checkpoint's weights, or new
    state = from_rank_zero(run.find_state())
    net = starting_network(args, state, run.log)

    # -------- data
    clips, feed, val = load_data(args, net, run.log)
    dtype = torch.float64 if args.float64 else torch.float32
    net.to(device, dtype).train()

    # -------- optimizer, and the rest of a saved state
    objective = build_objective(net, args)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99),
                                  weight_decay=args.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    meter, average = Meter(net.vqvae.quantizer, device), WeightAverage(net, args.ema_weights)
    parts = dict(optimizer=optimizer, scaler=scaler, totals=meter, ema=average)
    warm_up = warm_up_steps(args)
    last = warm_up + args.total_iter
    start, best = restore(state, parts, last, clips, run.log)
    run.start(net, parts, val, start)
    run.log.info(f"{args.quantizer} on {world} × {device}: steps {start + 1} to {last}, {warm_up} of warm-up")

    # -------- loop, warm-up included
    batches = feed.batches_on(device, start, rank, world, args.grad_accum)
    with Signals() as signals, logging_redirect_tqdm([run.log]):
        for step in tqdm(range(start + 1, last + 1), initial=start, total=last, disable=rank > 0 or None):
            rate = optimizer.param_groups[0]["lr"] = learning_rate(step, args)
            windows = [x.to(dtype) for x in next(batches)]
            meter.add(step, train_step(objective, net, optimizer, scaler, windows))
            average.update(step)

            # once in a while: look at the numbers, the only place that waits for the device
            stop, final, trained = signals.received(), step == last, step - warm_up
            prints = (trained if trained > 0 else step) % args.print_iter == 0 or trained == 0 or final
            validates = (trained > 0 and trained % args.eval_iter == 0) or final
            saves = step % args.save_iter == 0 or final or stop
            if (prints or validates or saves) and (bad := int(meter.bad_step)):
                names = [clips.names[i] for i in feed.select(bad - 1)[0]]
                run.log.error(f"Step {bad} has a non-finite loss or gradient. Its clips: {', '.join(names)}")
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
                run.save_state(step, best, clips.content)
            if stop and not final:
                run.log.info(f"Stopped by {stop.name} after step {step}; go on with --resume auto.")
                return 128 + stop
    with average.applied():
        run.finish()
    return 0


def load_data(args, net, log):
    """Return the training clips, their window feed and the validation split; give `net` mean and std."""
    spec = get_spec(args.dataname)
    root = args.data_root or spec.data_root
    if args.dataname == "demo":
        from dataset.prepare.demo import ensure_demo  # here, for only the demo needs its animation
        with rank_zero_first():
            if ensure_demo(root):
                log.info(f"{root}: made the demo set")
    find_clips(root)
    net.mean, net.std, meta = find_statistics(args, spec)
    variant, expected = describe_statistics(net.std), "data set" if samefile(meta, root) else "evaluator"
    log.info(f"Using mean and std from {meta} ({variant} variant).")
    if args.dataname == "t2m" and variant != expected:
        log.warning(f"{meta}: expected the {expected} variant, found the {variant} one; see --meta-dir.")
    net.std = weigh_root_and_contacts(net.std, spec, args.feat_bias)
    clips = load_split(root, "train", spec, net.mean, net.std, args.skip_bad_clips)
    feed = WindowFeed(clips, args.window_size, args.batch_size, args.seed, args.edge_frames)
    log.info(f"{args.dataname}: {len(feed)} of {len(clips.names)} clips are long enough for a window, "
             f"{clips.offsets[-1]} frames from {root}; {len(clips.bad)} bad ones left out")
    for message in filter(None, [*clips.bad, clips.warning]):
        log.warning(message)
    return clips, feed, load_validation(args, root, net, log)


if __name__ == "__main__":
    sys.exit(main(ARGS))
