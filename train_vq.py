"""Train the motion VQ-VAE.

    python train_vq.py @options/t2m.args                     # the published recipe, on dataset/HumanML3D
    python train_vq.py @options/t2m.args --resume auto       # go on exactly where it stopped
    torchrun --nproc-per-node 4 train_vq.py @options/t2m.args --resume auto    # the same run on four devices
    tensorboard --logdir output

Reads top to bottom: flags → run folder → data → network → optimizer → one loop, warm-up included. The run folder gets args.json, run.log,
TensorBoard events, net_last.pth and net_best_mpjpe.pth (weights), state_last.pth and state_prev.pth (everything a resume needs).
Exit codes: 0 done, 1 stopped by bad numbers, 2 a mistake in the input, 128 + n stopped by signal n with the state saved.
"""
from options.option_vq import get_args_parser

if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = get_args_parser()

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from dataset.dataset_TM_eval import draw, load_captioned
from dataset.dataset_VQ import WindowFeed
from dataset.motion_folder import find_clips, find_statistics, load_split
from evaluation.evaluate import evaluate_clips, select_clips
from evaluation.text import evaluate_text
from models.evaluator_wrapper import find_missing, load_extractors
from models.loading import load_checkpoint
from models.vqvae import HumanVQVAE, load_net
from training.checkpoint import save_checkpoint
from training.dashboard import Dashboard
from training.distributed import equal_everywhere, from_rank_zero, rank_zero_first, start_ranks
from training.run_folder import Events, check_flags, close_log, find_state, open_log, open_run, write_args
from training.signals import Signals
from training.step import build_objective, learning_rate, train_step
from utils.device import all_reduce, can_compile, pick_device, rank_and_world, set_precision
from utils.errors import UserError, exit_cleanly
from utils.losses import ReConsLoss
from utils.motion_process import describe_statistics
from utils.motion_spec import MAX_EVAL_FRAMES, get_spec

MEANS = ("L1", "Vel", "Commit", "PPL", "Grad_norm")  # averaged between prints, under these TensorBoard tags
TEST_TAGS = {"fid": "FID", "diversity": "Diversity"}  # upstream's spelling; the others are logged by their own names
BEST = {  # net_best_NAME.pth: the smallest of
    "mpjpe": lambda result: result["mpjpe"],
    "fid": lambda result: result["fid"],
    "div": lambda result: abs(result["diversity"] - result["diversity_real"]),
    "top1": lambda result: -result["top1"],
    "matching": lambda result: result["matching_score"],
}


def new_totals(args, device):
    """Sums of MEANS and their count, and the codes used, between two prints. On the device: nothing waits for them before the print."""
    return dict(sums=torch.zeros(len(MEANS) + 1, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device),
                used=torch.zeros(args.nb_code, dtype=torch.bool, device=device))


def validate(net, val, mean, std, step, args):
    """Metrics of the validation split: `val` holds its clips and, where the extractors are there, them and its captions."""
    rank, world = rank_and_world()
    result = evaluate_clips(net, val.clips, net.spec, mean, std, loss=args.recons_loss, rank=rank, world_size=world, reduce=all_reduce)
    if val.extractors:
        draws = [draw(val.captioned, np.random.default_rng([args.seed, step]))]
        result.update(evaluate_text(net, val.clips, val.captioned, draws, val.extractors, mean, std, args.seed, rank=rank, world_size=world,
                                    reduce=all_reduce))
    return {name: float(value) if isinstance(value, (int, float)) else value for name, value in result.items()}


def load_validation(args, root, spec, mean, std, log):
    """The val split with everything `validate` needs, or None without one; what is missing is said."""
    if not os.path.exists(os.path.join(root, "val.txt")):
        log.warning(f"{root}/val.txt: no such file; the run goes without validation")
        return None
    val = SimpleNamespace(clips=load_split(root, "val", spec, mean, std, args.skip_bad_clips, cache=not args.no_cache), extractors=None)
    if not len(select_clips(val.clips, spec)[0]):
        log.warning(f"{root}/val.txt: no clip of at least {spec.min_eval_frames} and under {MAX_EVAL_FRAMES} frames; the run goes without validation")
        return None
    folder, glove, missing = find_missing(spec, args.evaluator_dir, args.glove_dir)
    if missing:
        log.info(f"validation goes without FID and R-precision: {'; '.join(missing)}")
    else:
        val.extractors = load_extractors(spec, folder, glove)
        val.captioned = load_captioned(val.clips, Path(root, "texts"), spec, val.extractors.vectorizer)
        if len(val.captioned.clip) < 32:
            log.warning(f"validation goes without FID and R-precision: {len(val.captioned.clip)} captioned clips, at least 32 are needed")
            val.extractors = None
    return val


def report_statistics(std, meta, root, spec, log):
    """Say which mean and std are in use, and warn when they look like the wrong one of HumanML3D's two kinds."""
    kind = describe_statistics(std)
    if spec.name != "t2m":
        log.info(f"mean and std of {meta}")
        return
    log.info(f"mean and std of {meta}: the {kind}'s kind (root and contacts {'divided by 25' if kind == 'evaluator' else 'as measured'})")
    if (kind == "evaluator") != (os.path.abspath(meta) != os.path.abspath(root)):
        log.warning(f"{meta} was expected to hold the {'data set' if kind == 'evaluator' else 'evaluator'}'s statistics, but its std looks like "
                    f"the {kind}'s: published numbers need the evaluator's (see --meta-dir)")
    elif kind == "data set":
        log.info("published numbers are made with the evaluator's statistics; these are the data folder's own")


@exit_cleanly
def main(args):
    """Train as `args` (of the options module) say, alone or as one rank of a torchrun. Returns the exit code."""
    if start_ranks()[0]:  # rank 0 keeps the run folder and speaks for all
        return train(args, None, open_log(None))
    own_state = args.resume_pth and os.path.basename(args.resume_pth).startswith("state_") and \
        os.path.abspath(os.path.dirname(args.resume_pth)) == os.path.abspath(os.path.join(args.out_dir, args.exp_name))
    path, lock = open_run(args.out_dir, args.exp_name, resume=bool(args.resume or own_state), overwrite=args.overwrite)
    log = open_log(path)
    try:
        return train(args, path, log)
    except UserError as error:
        log.error(error, extra={"file_only": True})
        raise
    finally:
        close_log(log)
        lock.close()


def load_data(args, root, spec, log):
    """Everything read from the data folder: training clips, their feed, validation, mean, std and where these are from."""
    if args.dataname == "demo":
        from dataset.prepare.demo import ensure_demo  # here, for the preparation is slow to import
        if ensure_demo(root):
            log.info(f"{root}: made the demo set")
    find_clips(root)
    mean, std, meta = find_statistics(args, spec)
    clips = load_split(root, "train", spec, mean, std, args.skip_bad_clips, cache=not args.no_cache)
    feed = WindowFeed(clips, args.window_size, args.batch_size, args.seed)
    return clips, feed, load_validation(args, root, spec, mean, std, log), mean, std, meta


def train(args, path, log):
    """`main` inside its locked run folder; on every rank but 0 `path` is None and `log` silent."""
    rank, world = rank_and_world()
    lead = rank == 0
    if args.batch_size % (world * args.grad_accum):
        raise UserError(f"--batch-size {args.batch_size} does not divide into {world} ranks × --grad-accum {args.grad_accum} equal parts")
    if world > 1 and args.vq_norm == "BN":
        raise UserError("--vq-norm BN cannot work on several ranks: each would normalise its own windows")
    state = from_rank_zero(find_state(args, path, log) if lead else None)
    if state:
        check_flags(args, state, log)
    device, spec = pick_device(args.device), get_spec(args.dataname)
    set_precision(args, device)
    dtype = torch.float64 if args.float64 else torch.float32
    warm_up = max(args.warm_up_iter - 1, 0)
    last = warm_up + args.total_iter
    if state and state["iter"] > last:
        raise UserError(f"the state is at step {state['iter']}, past the end ({last}); give a --total-iter of at least {state['iter'] - warm_up}")

    # data: every clip once in memory, normalised; which windows make up a batch follows from the step
    root = args.data_root or spec.data_root
    with rank_zero_first():
        clips, feed, val, mean, std, meta = load_data(args, root, spec, log)
    if state and state["content"] != clips.content:
        log.warning(f"the training clips in {root} have changed since the state was saved; later values will differ from the first run's")

    # network: new, from a state, or from any checkpoint's weights
    torch.manual_seed(args.seed)
    net = HumanVQVAE.from_args(args)
    start = state or (from_rank_zero(load_checkpoint(args.resume_pth) if lead else None) if args.resume_pth else None)
    if start:
        load_net(net, start, args.resume_pth or path)
    net.mean, net.std = mean, std
    net.to(device, dtype).train()
    quantizer = net.vqvae.quantizer
    why_not = can_compile(device) if args.compile else None
    if why_not:
        log.warning(f"--compile: torch.compile does not work here ({why_not}); the run goes on without")
    objective = build_objective(net, ReConsLoss(args.recons_loss, spec.joints, args.vel_slice), args, compiled=args.compile and not why_not)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    totals, best, step, skipped = new_totals(args, device), {}, 0, 0
    if state:
        optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler") and scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if device.type == "cuda" and state.get("rng_cuda") is not None:
            torch.cuda.set_rng_state(state["rng_cuda"])
        totals = {name: value.to(device) for name, value in state["totals"].items()}
        best, step, skipped = dict(state["best"]), state["iter"], state["skipped"]

    if lead:
        write_args(path, args)
    events = Events(path, log, (state or args.resume) and (lambda tag, at: at <= (step if tag.startswith("./Warmup") else step - warm_up)))
    board = Dashboard(events, net, val, args.nb_vis, state.get("usage", ()) if state else ())
    log.info(f"{args.dataname}: {len(feed)} training clips, {clips.offsets[-1]} frames, from {root}"
             + (f"; {feed.too_short} clips are shorter than a window of {args.window_size}" if feed.too_short else "")
             + (f"; {len(clips.bad)} bad clips left out" if clips.bad else ""))
    report_statistics(std, meta, root, spec, log)
    log.info(f"{args.quantizer} codebook of {args.nb_code} × {args.code_dim}, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, "
             f"{f'{world} ranks on ' if world > 1 else ''}{device}, steps {step + 1} to {last} ({warm_up} of warm-up)")
    if start and not state:
        log.info(f"weights from {args.resume_pth}; the optimizer and the schedule start anew")

    def whole_state():
        return dict(checkpoint(), optimizer=optimizer.state_dict(), scaler=scaler.state_dict(), totals=totals, skipped=skipped, usage=board.usage,
                    rng=torch.get_rng_state(), rng_cuda=torch.cuda.get_rng_state() if device.type == "cuda" else None, content=clips.content)

    def checkpoint():
        return dict(net=net.state_dict(), args=vars(args), iter=step,
                    mean=torch.from_numpy(mean), std=torch.from_numpy(std), quantizer=quantizer.training_state(), best=best)

    def save(name, content, **keep):
        if lead:
            save_checkpoint(os.path.join(path, name), content, **keep)

    def stop_on_bad_numbers():
        """Read the bad steps since the last look from the device; returns the last good step when the run must stop there, else None."""
        nonlocal skipped
        count, first = bad.tolist()
        if scaler.is_enabled() and scaler.get_scale() < 1:
            log.error(f"--amp fp16: by step {step} the gradient is not finite at any scale; go on from an earlier state with --amp bf16 or off")
            return step
        if count == 0:
            return None
        names = [clips.names[i] for i in feed.select(first - 1)[0]]
        at = f"step {first} has a non-finite loss, latent or gradient; its clips: {', '.join(names[:8])}, … ({len(names)})"
        bad.zero_()
        skipped += count
        if args.on_nan == "skip" and skipped <= args.nan_limit:
            log.warning(f"{at}; skipped ({skipped} of at most {args.nan_limit})")
            return None
        log.error(f"{at}; stopped, codebook and weights are those of the last good step")
        return first - 1 if args.on_nan == "stop" else step

    bad = torch.zeros(2, dtype=torch.int64, device=device)  # bad steps since the last look, and the first of them
    last_good, stopped_by, diverged, saved, since, since_step = None, 0, False, step, time.monotonic(), step
    batches = feed.on_device(step, device, args.data_device, rank, world, args.grad_accum)
    bar = tqdm(total=last, initial=step, desc=args.exp_name, unit="it", dynamic_ncols=True, disable=None if lead else True)
    signals = Signals(ask_every=1 if device.type == "cpu" else 20)  # finish the step, save, leave; a second one quits at once
    try:
        while step < last and not stopped_by:
            step += 1
            lr = learning_rate(step, args)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # one step; a bad one moves neither weights nor codebook, and with --on-nan stop nothing moves until somebody has looked
            done = train_step(objective, net, optimizer, scaler, [x.to(dtype) for x in next(batches)], (bad[0] > 0) & (args.on_nan == "stop"))
            is_bad = done.refused if args.amp != "fp16" else done.refused & ~torch.isfinite(done.values[-1])  # else the scale was too large
            bad += torch.stack([is_bad.long(), torch.where(is_bad & (bad[1] == 0), step, 0)])
            row = torch.stack([*done.values[:3], quantizer.perplexity(done.counts), done.norm, torch.ones_like(done.norm)])
            totals["sums"] += torch.where(done.refused, 0, row.to(totals["sums"].dtype))
            totals["used"] |= done.counts > 0
            bar.update()
            if device.type == "cpu":  # elsewhere reading these would wait for the device
                rate = args.batch_size * (step - since_step) / (time.monotonic() - since)
                bar.set_postfix(loss=f"{float(row[0]):.4f}", ppl=f"{float(row[3]):.1f}", clips_s=f"{rate:.0f}", refresh=False)
                if bool(is_bad) and (last_good := stop_on_bad_numbers()) is not None:
                    break

            # once in a while: the log line
            iteration, phase = (step, "Warmup") if step <= warm_up else (step - warm_up, "Train")
            if iteration % args.print_iter == 0 or step == warm_up or step == last:
                if (last_good := stop_on_bad_numbers()) is not None:
                    break
                if diverged := not equal_everywhere([quantizer.codes]):
                    break
                means = dict(zip(MEANS, (totals["sums"] / totals["sums"][-1]).tolist()))
                use = totals["used"].sum().item() / args.nb_code
                rate = args.batch_size * (step - since_step) / (time.monotonic() - since)
                events.scalars(iteration, {f"./{phase}/{tag}": value for tag, value in
                                           {**means, "LR": lr, "Codebook_use": use, "Windows_per_s": rate,
                                            **({"Loss_scale": scaler.get_scale()} if scaler.is_enabled() else {})}.items()})
                log.info(f"{phase} iter {iteration}: lr {lr:.6f} recons {means['L1']:.5f} vel {means['Vel']:.5f} commit {means['Commit']:.5f} "
                         f"ppl {means['PPL']:.2f} codes used {use:.0%} grad {means['Grad_norm']:.3f} | {rate:.0f} windows/s")
                bar.set_postfix(loss=f"{means['L1']:.4f}", ppl=f"{means['PPL']:.1f}", clips_s=f"{rate:.0f}", refresh=False)
                totals, since, since_step = new_totals(args, device), time.monotonic(), step

            # once in a while: validation, and the weights
            evaluates = (iteration % args.eval_iter == 0 and phase == "Train") or step == last
            saves = step % args.save_iter == 0 or step == last
            if evaluates or saves:
                if (last_good := stop_on_bad_numbers()) is not None:
                    break
                if diverged := not equal_everywhere(net.state_dict().values()):
                    break
            if evaluates:
                if val is not None:
                    result = validate(net, val, mean, std, step, args)
                    events.scalars(iteration, {f"./Test/{TEST_TAGS.get(name, name)}": value for name, value in result.items()
                                               if isinstance(value, float) and name not in ("clips", "frames")})
                    board.evaluation(result, iteration)
                    log.info(f"val after {iteration}: recons {result['recons']:.5f}, MPJPE {result['mpjpe']:.2f} mm root-aligned, "
                             f"{result['mpjpe_global']:.1f} mm global, codes used {result['codes_used']:.0f}, perplexity {result['perplexity']:.1f}"
                             + (f", FID {result['fid']:.4f}, top 1 {result['top1']:.3f}" if "fid" in result else ""))
                    for name, value in ((name, score(result)) for name, score in BEST.items() if name == "mpjpe" or "fid" in result):
                        if value < best.get(name, float("inf")):
                            best[name] = value
                            save(f"net_best_{name}.pth", checkpoint())
                save("net_last.pth", checkpoint())
                events.flush()
            if saves:
                save("state_last.pth", whole_state(), keep_previous="state_prev.pth")
                saved = step
            stopped_by = signals.stop(step)
        if last_good is not None:
            step = last_good
        if step != saved and not diverged and not (last_good is not None and args.vq_norm == "BN"):  # batch norm's averages have seen the bad batch
            save("state_last.pth", whole_state(), keep_previous="state_prev.pth")
        if lead and step == last and last_good is None and not diverged:
            board.finish(args, path, log)
    finally:
        bar.close()
        events.close()
        signals.release()
    if diverged:
        log.error(f"the ranks hold different weights or codebooks after step {step}; nothing was saved of it: go on from the last state with "
                  "--resume auto, on machines of one kind")
    if diverged or last_good is not None:
        return 1
    if stopped_by:
        log.info(f"stopped by {signal.Signals(stopped_by).name} after step {step}; the state is saved: go on with --resume auto")
        return 128 + stopped_by
    log.info(f"done: {step} steps; weights in {path}/net_last.pth, curves with: tensorboard --logdir {args.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
