"""Train the motion VQ-VAE.

    python train_vq.py @options/t2m.args                     # the published recipe, on dataset/HumanML3D
    python train_vq.py @options/t2m.args --resume auto       # go on exactly where it stopped
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

import torch
from tqdm import tqdm

from dataset.dataset_VQ import WindowFeed
from dataset.motion_folder import describe_statistics, find_statistics, load_split
from models.vqvae import HumanVQVAE, load_net
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError, exit_cleanly
from utils.evaluation import evaluate_clips
from utils.losses import ReConsLoss
from utils.motion_spec import get_spec
from utils.run_folder import Events, close_log, open_log, open_run, write_args

# flags that may differ between a run and its resumption: they do not change what is computed
FREE_FLAGS = {"data_root", "meta_dir", "no_cache", "out_dir", "exp_name", "eval_iter", "save_iter", "resume", "resume_pth", "overwrite",
              "force", "on_nan", "nan_limit", "total_iter"}
MEANS = ("L1", "Vel", "Commit", "PPL", "Grad_norm")  # averaged between prints, under these TensorBoard tags


def learning_rate(step, args):
    """Upstream's schedule as a function of the step, counted from 1 through warm-up and training.

    Warm-up steps 1 … w-1 (w = --warm-up-iter) run at lr·(step+1)/(w+1); training starts from the rate the warm-up ended at, times gamma
    for every milestone that training iteration step-(w-1) has passed.
    """
    warm_up = max(args.warm_up_iter - 1, 0)
    if step <= warm_up:
        return args.lr * (step + 1) / (args.warm_up_iter + 1)
    base = args.lr * (warm_up + 1) / (args.warm_up_iter + 1) if warm_up else args.lr
    return base * args.gamma ** sum(step - warm_up > milestone for milestone in args.lr_scheduler)


def pick_device(name):
    """torch.device of --device; raises UserError for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise UserError(f"--device {name}: this machine's torch has none; use --device auto or cpu")
    return torch.device(name)


def losses(net, loss_fn, x, args):
    """One forward pass of windows x (B, T, D): a dictionary of named scalars, `total` to descend on."""
    out, commit, perplexity = net(x)
    recons, vel = loss_fn(out, x), loss_fn.forward_vel(out, x)
    return dict(total=recons + args.commit * commit + args.loss_vel * vel, recons=recons, vel=vel, commit=commit, perplexity=perplexity)


def new_totals(args, device):
    """Sums of MEANS and their count, and the codes used, between two prints. On the device: nothing waits for them before the print."""
    return dict(sums=torch.zeros(len(MEANS) + 1, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device),
                used=torch.zeros(args.nb_code, dtype=torch.bool, device=device))


def find_state(args, path, log):
    """The state to resume from, or None. With --resume auto the newest that is whole, by its recorded iteration; damaged ones are named."""
    if args.resume_pth:
        checkpoint = load_checkpoint(args.resume_pth)
        return checkpoint if "optimizer" in checkpoint else None
    found = []
    for name in ("state_last.pth", "state_prev.pth") if args.resume else ():
        try:
            if os.path.exists(os.path.join(path, name)):
                found.append(load_checkpoint(os.path.join(path, name)))
        except UserError as error:
            log.warning(f"DAMAGED STATE: {error}; looking for the one before")
    if args.resume and not found and os.path.exists(os.path.join(path, "state_last.pth")):
        raise UserError(f"{path}: no state can be read; start from net_last.pth with --resume-pth, or anew with --overwrite")
    return max(found, key=lambda state: state["iter"], default=None)


def check_flags(args, state, log):
    """Refuse to resume under flags that would compute something else; --force reports them and goes on."""
    before, now = state["args"], vars(args)
    changed = [f"--{name.replace('_', '-')} {before[name]} → {now[name]}" for name in before
               if name in now and name not in FREE_FLAGS and before[name] != now[name]]
    if changed and not args.force:
        raise UserError(f"flags differ from the run's: {', '.join(changed)}; resume with the same ones, or with --force")
    if changed:
        log.warning(f"resuming with changed flags: {', '.join(changed)}")


@exit_cleanly
def main(args):
    """Train as `args` (of the options module) say. Returns the exit code."""
    own_state = args.resume_pth and os.path.basename(args.resume_pth).startswith("state_") and \
        os.path.abspath(os.path.dirname(args.resume_pth)) == os.path.abspath(os.path.join(args.out_dir, args.exp_name))
    path, lock = open_run(args.out_dir, args.exp_name, resume=bool(args.resume or own_state), overwrite=args.overwrite)
    log = open_log(path)
    try:
        return train(args, path, log)
    except UserError as error:
        log.error(error)
        raise
    finally:
        close_log(log)
        lock.close()


def train(args, path, log):
    """`main` inside its locked run folder."""
    state = find_state(args, path, log)
    if state:
        check_flags(args, state, log)
    device, spec = pick_device(args.device), get_spec(args.dataname)
    warm_up = max(args.warm_up_iter - 1, 0)
    last = warm_up + args.total_iter
    if state and state["iter"] > last:
        raise UserError(f"the state is at step {state['iter']}, past the end ({last}); give a --total-iter of at least {state['iter'] - warm_up}")

    # data: every clip once in memory, normalised; which windows make up a batch follows from the step
    root = args.data_root or spec.data_root
    mean, std, meta = find_statistics(args, spec)
    clips = load_split(root, "train", spec, mean, std, args.skip_bad_clips, cache=not args.no_cache)
    feed = WindowFeed(clips, args.window_size, args.batch_size, args.seed)
    val = None
    if os.path.exists(os.path.join(root, "val.txt")):
        val = load_split(root, "val", spec, mean, std, args.skip_bad_clips, cache=not args.no_cache)
    else:
        log.warning(f"{root}/val.txt: no such file; the run goes without validation")
    if state and state["content"] != clips.content:
        log.warning(f"the training clips in {root} have changed since the state was saved; later values will differ from the first run's")

    # network: new, from a state, or from any checkpoint's weights
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True
    net = HumanVQVAE.from_args(args)
    start = state or (load_checkpoint(args.resume_pth) if args.resume_pth else None)
    if start:
        load_net(net, start, args.resume_pth or path)
    net.mean, net.std = mean, std
    net.to(device).train()
    quantizer = net.vqvae.quantizer
    quantizer.deferred = True  # the codebook moves after the loss and the gradient have been looked at
    loss_fn = ReConsLoss(args.recons_loss, spec.joints, args.vel_slice)
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True)
    totals, best, step, skipped = new_totals(args, device), {}, 0, 0
    if state:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if device.type == "cuda" and state.get("rng_cuda") is not None:
            torch.cuda.set_rng_state(state["rng_cuda"])
        totals = {name: value.to(device) for name, value in state["totals"].items()}
        best, step, skipped = dict(state["best"]), state["iter"], state["skipped"]

    write_args(path, args)
    events = Events(path, log, (state or args.resume) and (lambda tag, at: at <= (step if tag.startswith("./Warmup") else step - warm_up)))
    log.info(f"{args.dataname}: {len(feed)} training clips, {clips.offsets[-1]} frames, from {root}"
             + (f"; {feed.too_short} clips are shorter than a window of {args.window_size}" if feed.too_short else "")
             + (f"; {len(clips.bad)} bad clips left out" if clips.bad else ""))
    kind = describe_statistics(std)
    log.info(f"mean and std of {meta}: the {kind}'s kind (root and contacts {'divided by 25' if kind == 'evaluator' else 'as measured'})")
    if (kind == "evaluator") != (os.path.abspath(meta) != os.path.abspath(root)) and args.dataname != "demo":
        log.warning(f"{meta} was expected to hold the {'data set' if kind == 'evaluator' else 'evaluator'}'s statistics, but its std looks like "
                    f"the {kind}'s: published numbers need the evaluator's (see --meta-dir)")
    elif kind != "evaluator" and args.dataname == "t2m":
        log.info("published numbers are made with the evaluator's statistics; these are the data folder's own")
    log.info(f"{args.quantizer} codebook of {args.nb_code} × {args.code_dim}, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, "
             f"{device}, steps {step + 1} to {last} ({warm_up} of warm-up)")
    if start and not state:
        log.info(f"weights from {args.resume_pth}; the optimizer and the schedule start anew")

    def whole_state():
        return dict(checkpoint(), optimizer=optimizer.state_dict(), totals=totals, skipped=skipped, rng=torch.get_rng_state(),
                    rng_cuda=torch.cuda.get_rng_state() if device.type == "cuda" else None, content=clips.content)

    def checkpoint():
        return dict(net=net.state_dict(), args=vars(args), iter=step,
                    mean=torch.from_numpy(mean), std=torch.from_numpy(std), quantizer=quantizer.training_state(), best=best)

    def save_state():
        save_checkpoint(os.path.join(path, "state_last.pth"), whole_state(), keep_previous="state_prev.pth")

    def stop_on_bad_numbers():
        """Read the bad steps since the last look from the device; returns the last good step when the run must stop there, else None."""
        nonlocal skipped
        count, first = bad.tolist()
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

    # signals: finish the step, save, leave; a second one quits at once
    caught = []

    def catch(number, _):
        caught.append(number)
        for number in handlers:
            signal.signal(number, signal.SIG_DFL)

    handlers = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    bad = torch.zeros(2, dtype=torch.int64, device=device)  # bad steps since the last look, and the first of them
    last_good, saved, since, since_step = None, step, time.monotonic(), step
    bar = tqdm(total=last, initial=step, desc=args.exp_name, unit="it", dynamic_ncols=True, disable=None)
    try:
        while step < last and not caught:
            step += 1
            lr = learning_rate(step, args)
            for group in optimizer.param_groups:
                group["lr"] = lr
            x = feed.batch(step - 1).to(device)

            # one step: look at loss and gradient first; a bad one moves neither weights nor codebook, decided on the device
            values = losses(net, loss_fn, x, args)
            optimizer.zero_grad(set_to_none=True)
            values["total"].backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
            refuse = ~torch.isfinite(values["total"].detach() + norm)
            if args.on_nan == "stop":  # nothing moves any more until somebody has looked
                refuse = refuse | (bad[0] > 0)
            counts = quantizer.update(refuse)
            optimizer.found_inf = refuse.float()
            optimizer.step()
            bad += torch.stack([refuse.long(), torch.where(refuse & (bad[1] == 0), step, 0)])
            row = torch.stack([values["recons"].detach(), values["vel"].detach(), values["commit"].detach(), quantizer.perplexity(counts), norm,
                               torch.ones_like(norm)])
            totals["sums"] += torch.where(refuse, 0, row.to(totals["sums"].dtype))
            totals["used"] |= counts > 0
            bar.update()
            if device.type == "cpu":  # elsewhere reading these would wait for the device
                bar.set_postfix(loss=f"{float(row[0]):.4f}", ppl=f"{float(row[3]):.1f}", refresh=False)
                if bool(refuse) and (last_good := stop_on_bad_numbers()) is not None:
                    break

            # once in a while: the log line
            iteration, phase = (step, "Warmup") if step <= warm_up else (step - warm_up, "Train")
            if iteration % args.print_iter == 0 or step == warm_up or step == last:
                if (last_good := stop_on_bad_numbers()) is not None:
                    break
                means = dict(zip(MEANS, (totals["sums"] / totals["sums"][-1]).tolist()))
                use = totals["used"].sum().item() / args.nb_code
                rate = args.batch_size * (step - since_step) / (time.monotonic() - since)
                events.scalars(iteration, {f"./{phase}/{tag}": value for tag, value in
                                           {**means, "LR": lr, "Codebook_use": use, "Windows_per_s": rate}.items()})
                log.info(f"{phase} iter {iteration}: lr {lr:.6f} recons {means['L1']:.5f} vel {means['Vel']:.5f} commit {means['Commit']:.5f} "
                         f"ppl {means['PPL']:.2f} codes used {use:.0%} grad {means['Grad_norm']:.3f} | {rate:.0f} windows/s")
                bar.set_postfix(loss=f"{means['L1']:.4f}", ppl=f"{means['PPL']:.1f}", clips_s=f"{rate:.0f}", refresh=False)
                totals, since, since_step = new_totals(args, device), time.monotonic(), step

            # once in a while: validation, and the weights
            evaluates = (iteration % args.eval_iter == 0 and phase == "Train") or step == last
            saves = step % args.save_iter == 0 or step == last
            if (evaluates or saves) and (last_good := stop_on_bad_numbers()) is not None:
                break
            if evaluates:
                if val is not None:
                    result = evaluate_clips(net, val, spec, mean, std)
                    events.scalars(iteration, {f"./Test/{name}": value for name, value in result.items() if isinstance(value, (int, float))})
                    log.info(f"val after {iteration}: recons {result['recons']:.5f}, MPJPE {result['mpjpe']:.2f} mm root-aligned, "
                             f"{result['mpjpe_global']:.1f} mm global, codes used {result['codes_used']}, perplexity {result['perplexity']:.1f}")
                    if result["mpjpe"] < best.get("mpjpe", float("inf")):
                        best["mpjpe"] = float(result["mpjpe"])
                        save_checkpoint(os.path.join(path, "net_best_mpjpe.pth"), checkpoint())
                save_checkpoint(os.path.join(path, "net_last.pth"), checkpoint())
                events.flush()
            if saves:
                save_state()
                saved = step
        if last_good is not None:
            step = last_good
        if step != saved and not (last_good is not None and args.vq_norm == "BN"):  # batch norm's averages have seen the bad batch
            save_state()
    finally:
        bar.close()
        events.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if last_good is not None:
        return 1
    if caught:
        log.info(f"stopped by {signal.Signals(caught[0]).name} after step {step}; the state is saved: go on with --resume auto")
        return 128 + caught[0]
    log.info(f"done: {step} steps; weights in {path}/net_last.pth, curves with: tensorboard --logdir {args.out_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
