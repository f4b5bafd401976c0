"""Save a run, and start or resume one from what was saved."""
import os

import torch

from models.loading import NET_ARGS, load_checkpoint
from models.vqvae import HumanVQVAE, load_net
from utils.errors import UserError
from utils.files import atomic_write

LAST, PREVIOUS, NEXT = "state_last.pth", "state_prev.pth", "state_next.pth"
# flags that may differ between a run and its resumption: they do not change what is computed
FREE_FLAGS = {"data_root", "meta_dir", "no_cache", "out_dir", "exp_name", "eval_iter", "save_iter", "resume",
              "resume_pth", "overwrite", "force", "total_iter", "evaluator_dir", "glove_dir", "nb_vis"}


def save_checkpoint(path, checkpoint):
    """Write tensors and primitives atomically. Raises UserError where they cannot be written."""
    try:
        with atomic_write(path, flush=True) as file:
            torch.save(checkpoint, file)
    except RuntimeError:  # so torch reports a full disk
        raise UserError(f"{path}: cannot be saved; free space, then go on with --resume auto") from None


def save_state(folder, state):
    """Write state_last.pth; the one before becomes state_prev.pth."""
    last, previous, following = (os.path.join(folder, name) for name in (LAST, PREVIOUS, NEXT))
    save_checkpoint(following, state)
    if os.path.exists(last):
        os.replace(last, previous)
    os.replace(following, last)


def is_state(path):
    """Return whether a checkpoint's name is that of a saved state, which resumes exactly."""
    return bool(path) and os.path.basename(path).startswith("state_")


def find_state(args, folder, log):
    """Return the state that --resume or --resume-pth names, the newest readable one, or None.

    Raises UserError when there are states and none can be read.
    """
    if is_state(args.resume_pth):
        return load_checkpoint(args.resume_pth)
    paths = [os.path.join(folder, name) for name in (LAST, PREVIOUS)] if args.resume else []
    paths = [path for path in paths if os.path.exists(path)]
    for path in paths:
        try:
            return load_checkpoint(path)
        except UserError as error:
            log.warning(f"cannot read a state: {error}")
    if paths:
        raise UserError(f"{folder}: no state can be read; use net_last.pth with --resume-pth, or --overwrite")
    return None


def network_content(net, average, args, step, best):
    """Return what net_*.pth holds: weights, arguments, step, statistics, quantizer state and best metrics."""
    return dict(net=net.state_dict(), ema=average.values, args=vars(args), iter=step, best=best,
                mean=torch.as_tensor(net.mean), std=torch.as_tensor(net.std),
                quantizer=net.vqvae.quantizer.training_state())


def whole_state(network, optimizer, scaler, meter, **more):
    """Return what state_*.pth holds: `network_content`, and everything else that an exact resume needs."""
    cuda = next(iter(network["net"].values())).is_cuda
    return dict(network, optimizer=optimizer.state_dict(),
                scaler=scaler.state_dict(), totals=meter.state_dict(), rng=torch.get_rng_state(),
                rng_cuda=torch.cuda.get_rng_state() if cuda else None, **more)


def restore(state, optimizer, scaler, meter, average):
    """Put back all but the network: optimizer, averages, random numbers, … Returns (step, best metrics)."""
    optimizer.load_state_dict(state["optimizer"])
    if state.get("scaler") and scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    meter.load_state_dict(state["totals"])
    average.load_state_dict(state.get("ema", {}))
    torch.set_rng_state(state["rng"])
    if state.get("rng_cuda") is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng_cuda"])
    return state["iter"], dict(state["best"])


def starting_network(args, state, log):
    """Return the net to start from, and set the network's arguments in `args` to what its file records.

    Raises UserError for a flag on the command line that contradicts the file.
    """
    if state:
        adopt_network(args, state["args"], "the saved state")
        check_flags(args, state["args"], log)
        net = HumanVQVAE.from_args(args)
        load_net(net, state, "the saved state")
        return net
    if not args.resume_pth:
        return HumanVQVAE.from_args(args)
    given = {name: getattr(args, name) for name in NET_ARGS if name in args.given}
    net = HumanVQVAE.from_checkpoint(args.resume_pth, **given)
    adopt_network(args, net.args, args.resume_pth)
    for remark in net.remarks:
        log.warning(f"{args.resume_pth}: {remark}")
    log.info(f"Weights from {args.resume_pth}; optimizer and schedule start anew.")
    return net


def adopt_network(args, recorded, source):
    """Set the network's arguments to the recorded ones. Raises UserError for a given flag that differs."""
    for name in NET_ARGS:
        given, value = getattr(args, name), recorded.get(name, getattr(args, name))
        if name in args.given and value != given:
            raise UserError(f"--{name.replace('_', '-')} {given} contradicts {source}: {value}; leave it out")
        setattr(args, name, value)


def check_flags(args, recorded, log):
    """Refuse to resume under flags that change the result; with --force log them and go on."""
    changed = [f"--{name.replace('_', '-')} {recorded[name]} → {value}" for name, value in vars(args).items()
               if name in recorded and name not in FREE_FLAGS and recorded[name] != value]
    if changed and not args.force:
        raise UserError(f"{len(changed)} flags differ from the run's: {changed[0]}, …; resume with the same, "
                        "or with --force", details=changed)
    if changed:
        log.warning(f"Resuming with changed flags: {', '.join(changed)}")


def check_state(state, last, clips, log):
    """Refuse a state past the end of the run; warn when the training clips have changed."""
    if state["iter"] > last:
        raise UserError(f"the saved state is at step {state['iter']} of {last}; use a larger --total-iter")
    if state["content"] != clips.content:
        log.warning("The training clips have changed since the state was saved; results will differ.")
