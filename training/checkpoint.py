"""Start a run: from nothing, from a checkpoint's weights, or exactly where a saved state left it."""
import torch

from models.loading import NET_ARGS
from models.vqvae import HumanVQVAE, load_net
from utils.errors import UserError

# flags that may differ between a run and its resumption: they do not change what is computed
FREE_FLAGS = {"data_root", "meta_dir", "out_dir", "exp_name", "eval_iter", "save_iter", "resume",
              "resume_pth", "overwrite", "force", "total_iter", "evaluator_dir", "glove_dir", "nb_vis"}


def starting_network(args, state, log):
    """Return the net of a saved state, one with a checkpoint's weights, or a new one.

    Sets the network's arguments in `args` to the recorded ones. Raises UserError where a given flag differs.
    """
    given = {name: getattr(args, name) for name in NET_ARGS if name in args.given}
    if state:
        vars(args).update({name: state["args"].get(name, NET_ARGS[name]) for name in NET_ARGS}, **given)
        check_flags(args, state["args"], log)
        net = HumanVQVAE.from_args(args)
        load_net(net, state, "the saved state")
    elif args.resume_pth:
        net = HumanVQVAE.from_checkpoint(args.resume_pth, **given)
        vars(args).update(net.args)
        for remark in net.remarks:
            log.warning(f"{args.resume_pth}: {remark}")
        log.info(f"Weights from {args.resume_pth}; optimizer and schedule start anew.")
    else:
        net = HumanVQVAE.from_args(args)
    return net


def check_flags(args, recorded, log):
    """Refuse to resume under flags that change the result; with --force log them and go on."""
    changed = [f"--{name.replace('_', '-')} {recorded[name]} → {value}" for name, value in vars(args).items()
               if name in recorded and name not in FREE_FLAGS and recorded[name] != value]
    if changed and not args.force:
        raise UserError(f"{len(changed)} flags differ from the run's: {changed[0]}, …; resume with the same, "
                        "or with --force", details=changed)
    if changed:
        log.warning(f"Resuming with changed flags: {', '.join(changed)}")


def restore(state, parts, last, clips, log):
    """Put back `parts`, {name: optimizer, …}, and random numbers. Returns (step, best metrics)."""
    if not state:
        return 0, {}
    if state["iter"] > last:
        raise UserError(f"the saved state is at step {state['iter']} of {last}; use a larger --total-iter")
    if state["content"] != clips.content:
        log.warning("The training clips have changed since the state was saved; results will differ.")
    for name, part in parts.items():
        if state.get(name):
            part.load_state_dict(state[name])
    torch.set_rng_state(state["rng"])
    if state["rng_cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng_cuda"])
    return state["iter"], dict(state["best"])
