"""Save the state of a run and restore it exactly."""
import os

import torch

from models.loading import load_checkpoint
from utils.errors import UserError
from utils.files import atomic_write

LAST, PREVIOUS, NEXT = "state_last.pth", "state_prev.pth", "state_next.pth"


def save_checkpoint(path, checkpoint):
    """Write a checkpoint of tensors and primitives atomically.

    Raises UserError where it cannot be written.
    """
    try:
        with atomic_write(path, flush=True) as file:
            torch.save(checkpoint, file)
    except RuntimeError:  # so torch reports a full disk
        raise UserError(f"{path}: cannot be saved; free space on the disk, then go on with --resume auto") from None


def save_state(folder, state):
    """Write state_last.pth; the one before becomes state_prev.pth."""
    path = {name: os.path.join(folder, name) for name in (LAST, PREVIOUS, NEXT)}
    save_checkpoint(path[NEXT], state)
    if os.path.exists(path[LAST]):
        os.replace(path[LAST], path[PREVIOUS])
    os.replace(path[NEXT], path[LAST])


def find_state(folder, log):
    """Return the newest readable state of a run folder, or None without one.

    Logs a warning for a damaged state. Raises UserError when there are states and none can be read.
    """
    names = [name for name in (LAST, PREVIOUS) if os.path.exists(os.path.join(folder, name))]
    for name in names:
        try:
            return load_checkpoint(os.path.join(folder, name))
        except UserError as error:
            log.warning(f"cannot read a state: {error}")
    if names:
        raise UserError(f"{folder}: no state can be read; start from net_last.pth with --resume-pth, "
                        "or anew with --overwrite")
    return None


def network_content(net, args, step, best):
    """Return what net_*.pth holds: weights, arguments, step, statistics, quantizer state and best metrics."""
    return dict(net=net.state_dict(), args=vars(args), iter=step, best=best,
                mean=torch.as_tensor(net.mean), std=torch.as_tensor(net.std),
                quantizer=net.vqvae.quantizer.training_state())


def whole_state(net, args, step, best, optimizer, scaler, meter, **more):
    """Return what state_*.pth holds: everything that an exact resume needs."""
    cuda = next(net.parameters()).is_cuda
    return dict(network_content(net, args, step, best), optimizer=optimizer.state_dict(),
                scaler=scaler.state_dict(), totals=meter.state_dict(), rng=torch.get_rng_state(),
                rng_cuda=torch.cuda.get_rng_state() if cuda else None, **more)


def restore(state, optimizer, scaler, meter):
    """Put optimizer, loss scale, running totals and random numbers back.

    Returns the step and the best metrics.
    """
    optimizer.load_state_dict(state["optimizer"])
    if state.get("scaler") and scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])
    meter.load_state_dict(state["totals"])
    torch.set_rng_state(state["rng"])
    if state.get("rng_cuda") is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng_cuda"])
    return state["iter"], dict(state["best"])
