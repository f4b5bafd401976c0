"""Where a run starts: at a saved state, from a checkpoint's weights, or with new weights."""
from models.vqvae import HumanVQVAE, load_net
from options.option_vq import NETWORK
from utils.errors import UserError

# flags that may differ between a run and its resumption: they do not change what is computed
FREE_FLAGS = {"data_root", "meta_dir", "no_cache", "out_dir", "exp_name", "eval_iter", "save_iter",
              "resume", "resume_pth", "overwrite", "force", "total_iter", "evaluator_dir",
              "glove_dir", "nb_vis"}


def starting_network(args, state, log):
    """Return the net to start from, and set the network's arguments in `args` to what the file records.

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
    given = {name: getattr(args, name) for name in args.given}
    net = HumanVQVAE.from_checkpoint(args.resume_pth, **given)
    adopt_network(args, net.args, args.resume_pth)
    for remark in net.remarks:
        log.warning(f"{args.resume_pth}: {remark}")
    log.info(f"Weights from {args.resume_pth}; optimizer and schedule start anew.")
    return net


def adopt_network(args, recorded, source):
    """Set the network's arguments to the recorded ones. Raises UserError for a given flag that differs."""
    for name in NETWORK:
        value = recorded.get(name, getattr(args, name))
        if name in args.given and value != getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            found = getattr(args, name)
            raise UserError(f"{flag} {found} contradicts {source}, which has {value}; leave it out")
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
