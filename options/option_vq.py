"""The flags of `train_vq.py` and the combinations that cannot work (T2M-GPT options/option_vq.py)."""
import argparse

from options.common import (
    ACTIVATIONS,
    COUNT,
    POSITIVE,
    QUANTIZERS,
    SEED,
    SHARE,
    WEIGHT,
    Parser,
    add_data_flags,
    add_device_flag,
    add_extractor_flags,
    norm,
    number,
)

RATIO = 2  # each of the --down-t steps halves the frame rate
DEAD_FLAGS = {  # upstream's flags that nothing reads
    "--results-dir": "pictures go to TensorBoard and the run folder (--nb-vis)",
    "--visual-name": "pictures go to TensorBoard and the run folder (--nb-vis)",
    "--vis-gt": "originals are always drawn beside reconstructions (--nb-vis)",
    "--resume-gpt": "this project trains the VQ-VAE only",
}


class DeadFlag(argparse.Action):
    """Refuse a flag of upstream's that does nothing."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} does nothing in upstream either: {DEAD_FLAGS[option_string]}")


def add_network_flags(parser):
    """Add the flags that make a network, but --dataname."""
    add = parser.add_argument_group("network").add_argument
    add("--code-dim", type=COUNT, default=512, help="channels of a code")
    add("--nb-code", type=COUNT, default=512, help="number of codes")
    add("--down-t", type=number(int, 1, 6), default=2,
        help="halvings of the frame rate; 2 gives one code for four frames")
    add("--stride-t", type=COUNT, default=2,
        help="stride of each halving; only 2 fits the decoder's upsampling")
    add("--width", type=COUNT, default=512, help="channels of the convolutions")
    add("--depth", type=COUNT, default=3, help="residual blocks at each frame rate")
    add("--dilation-growth-rate", type=COUNT, default=3,
        help="factor by which the dilation grows from block to block")
    add("--output-emb-width", type=COUNT, default=512, help="channels of the latents; equals --code-dim")
    add("--vq-act", choices=ACTIVATIONS, default="relu", help="activation of the residual blocks")
    add("--vq-norm", type=norm, default=None, metavar="none|LN|GN|BN",
        help="normalisation in the residual blocks")
    add = parser.add_argument_group("quantizer").add_argument
    add("--quantizer", choices=QUANTIZERS, default="ema_reset", help="how the codebook is learnt")
    add("--mu", type=SHARE, default=0.99, help="decay of the EMA statistics (ema, ema_reset)")
    add("--beta", type=WEIGHT, default=1.0, help="weight of the commitment term (orig)")


def add_step_flags(parser):
    """Add the flags of losses and precision, which an optimisation step reads."""
    add = parser.add_argument_group("losses").add_argument
    add("--recons-loss", choices=("l1_smooth", "l1", "l2"), default="l1_smooth", help="reconstruction loss")
    add("--commit", type=WEIGHT, default=0.02, help="weight of the commitment loss")
    add("--loss-vel", type=WEIGHT, default=0.5, help="weight of the loss over --vel-slice")
    add("--vel-slice", choices=("positions", "velocities"), default="positions",
        help="features under --loss-vel; upstream's slice is the joint positions")
    add = parser.add_argument_group("speed").add_argument
    add("--tf32", action="store_true", help="convolutions in TF32 on CUDA (faster, less exact)")
    add("--compile", action="store_true", help="compile with torch.compile")


def add_schedule_flags(parser):
    """Add the flags of batches and learning rate."""
    add = parser.add_argument_group("optimisation").add_argument
    add("--batch-size", type=COUNT, default=256, help="windows per step, over all ranks")
    add("--window-size", type=COUNT, default=64, help="frames in a window")
    add("--total-iter", type=COUNT, default=300000, help="iterations after the warm-up")
    add("--warm-up-iter", type=number(int, 0), default=1000,
        help="warm-up iterations of the learning rate (as upstream, one fewer is run)")
    add("--lr", type=POSITIVE, default=2e-4, help="learning rate")
    add("--lr-scheduler", type=COUNT, nargs="+", default=[200000], metavar="ITER",
        help="milestones: iterations after which the learning rate decays")
    add("--gamma", type=POSITIVE, default=0.05, help="learning-rate decay at each milestone")
    add("--weight-decay", type=WEIGHT, default=0.0, help="AdamW's weight decay")
    add("--seed", type=SEED, default=123, help="random seed")
    add("--amp", choices=("off", "bf16", "fp16"), default="off",
        help="precision of the convolutions; quantizer and losses stay float32")
    add("--grad-accum", type=COUNT, default=1, metavar="PARTS",
        help="split each batch into this many micro-batches, to save memory")
    add("--float64", action="store_true", help="train in float64 (slow; for debugging numerical differences)")


def add_run_flags(parser):
    """Add the flags of the run folder."""
    add = parser.add_argument_group("run").add_argument
    add("--out-dir", default="output", help="folder of all runs")
    add("--exp-name", default="VQVAE", help="name of the run's folder in --out-dir")
    add("--print-iter", type=COUNT, default=200, help="iterations between log lines")
    add("--eval-iter", type=COUNT, default=1000, help="iterations between validations")
    add("--save-iter", type=COUNT, default=1000,
        help="iterations between saved states, from which a run resumes exactly")
    add("--nb-vis", type=number(int, 0), default=2,
        help="validation clips drawn in TensorBoard and, at the end, as vis_*.gif; 0: none")
    add("--resume", choices=("auto",), default=None,
        help="go on with the run in the run folder, or start it if there is none")
    add("--resume-pth", metavar="CHECKPOINT", default=None,
        help="state_*.pth resumes exactly; another checkpoint gives the weights to start from")
    add("--overwrite", action="store_true", help="remove the folder's run and start anew")
    add("--force", action="store_true", help="resume although flags differ")


class Arguments(argparse.Namespace):
    """The flags of a run. `given`, not one of them, names those that the command line sets."""

    __slots__ = ("given",)


def get_args_parser(argv=None):
    """Parse the flags of `train_vq.py`; exit with code 2 and one line for what cannot work."""
    parser = Parser(prog="train_vq.py",
                    description="Train the motion VQ-VAE. @FILE reads a recipe, e.g. @options/t2m.args.")
    add_data_flags(parser)
    add_device_flag(parser)
    add_network_flags(parser)
    add_step_flags(parser)
    add_schedule_flags(parser)
    add_extractor_flags(parser)
    add_run_flags(parser)
    for flag in DEAD_FLAGS:
        parser.add_argument(flag, action=DeadFlag, nargs="?", default=argparse.SUPPRESS,
                            help=argparse.SUPPRESS)
    args = parser.parse_args(argv, Arguments())
    args.given = given_flags(parser, argv, vars(args))
    parser.refuse(*network_problems(args), *training_problems(args))
    return args


def given_flags(parser, argv, names):
    """Return those of `names` that the command line sets, to their default or not."""
    absent = object()
    parsed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent)))
    return [name for name in names if getattr(parsed, name) is not absent]


def network_problems(args):
    """Return (wrong, message) for each combination of network flags that cannot work."""
    unit = RATIO ** args.down_t
    return (
        (args.stride_t != RATIO,
         f"--stride-t {args.stride_t} cannot work: the decoder upsamples by 2; use --stride-t 2"),
        (args.output_emb_width != args.code_dim,
         f"--output-emb-width {args.output_emb_width} differs from --code-dim {args.code_dim}: "
         "latents and codes have one width"),
        (args.window_size % unit != 0,
         f"--window-size {args.window_size} is not a multiple of {unit} (2 ** --down-t); use one"),
        (args.vq_norm == "GN" and args.width % 32 != 0,
         f"--vq-norm GN needs a --width divisible by its 32 groups, not {args.width}"),
        (args.vq_norm == "BN" and args.window_size == unit and args.batch_size == 1,
         "--vq-norm BN cannot normalise one value per channel; use a larger --batch-size or --window-size"),
        (args.quantizer != "orig" and args.beta != 1.0,
         f"--beta acts only with --quantizer orig, not {args.quantizer}"),
        (not args.quantizer.startswith("ema") and args.mu != 0.99,
         f"--mu acts only with the ema quantizers, not {args.quantizer}"),
        (args.quantizer.startswith("ema") and not 0 < args.mu < 1,
         f"--mu {args.mu} is no decay: it must lie between 0 and 1"),
    )


def training_problems(args):
    """Return (wrong, message) for each other combination of training flags that cannot work."""
    return (
        (args.batch_size % args.grad_accum != 0,
         f"--grad-accum {args.grad_accum} does not divide --batch-size {args.batch_size}: "
         "micro-batches must be equal"),
        (args.grad_accum > 1 and args.vq_norm == "BN",
         "--grad-accum cannot work with --vq-norm BN: each micro-batch would be normalised by itself"),
        (args.float64 and (args.amp != "off" or args.tf32),
         "--float64 contradicts --amp and --tf32: give one of them"),
        (args.loss_vel == 0 and args.vel_slice != "positions",
         "--vel-slice acts only with a --loss-vel over 0"),
        (not args.exp_name or "/" in args.exp_name or args.exp_name in (".", ".."),
         f"--exp-name {args.exp_name!r} is not a folder name"),
        (args.resume and args.resume_pth,
         "--resume auto and --resume-pth both name a start: give one of them"),
        (args.overwrite and args.resume,
         "--overwrite removes the run that --resume auto would go on with: give one of them"),
        (args.force and not (args.resume or args.resume_pth),
         "--force acts only on a resumed run"),
    )
