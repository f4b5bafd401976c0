"""The flags of `train_vq.py` and the combinations that cannot work (T2M-GPT options/option_vq.py)."""
import argparse
import math

from options.common import (
    ACTIVATIONS,
    COUNT,
    NET_ARGS,
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
MOST_CODES = 1 << 20
ACTS_WITH = {  # flag → the quantizers that read it
    "mu": ("ema_reset", "ema", "residual"), "beta": ("orig",), "fsq_levels": ("fsq",),
    **dict.fromkeys(("num_quantizers", "shared_codebook", "quantize_dropout_prob", "sample_codebook_temp"),
                    ("residual",)),
}
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
    add("--code-dim", type=COUNT, help="channels of a code")
    add("--nb-code", type=COUNT, help="number of codes; of fsq, the product of its levels")
    add("--down-t", type=number(int, 1, 6), help="halvings of the frame rate; 2: one code for four frames")
    add("--stride-t", type=COUNT, help="stride of each halving; only 2 fits the decoder's upsampling")
    add("--width", type=COUNT, help="channels of the convolutions")
    add("--depth", type=COUNT, help="residual blocks at each frame rate")
    add("--dilation-growth-rate", type=COUNT, help="factor by which the dilation grows from block to block")
    add("--output-emb-width", type=COUNT, help="channels of the latents; equals --code-dim")
    add("--vq-act", choices=ACTIVATIONS, help="activation of the residual blocks")
    add("--vq-norm", type=norm, metavar="none|LN|GN|BN", help="normalisation in the residual blocks")
    add("--block-dropout", type=SHARE, help="dropout at the end of each residual block (MoMask: 0.2)")
    add = parser.add_argument_group("quantizer").add_argument
    add("--quantizer", choices=QUANTIZERS, help="how motion becomes codes")
    add("--mu", type=SHARE, help="decay of the EMA statistics (ema, ema_reset, residual)")
    add("--beta", type=WEIGHT, help="weight of the commitment term (orig)")
    add("--num-quantizers", type=number(int, 1, 64), help="layers of residual codes")
    add("--shared-codebook", action="store_true", help="one codebook for all residual layers")
    add("--quantize-dropout-prob", type=SHARE,
        help="share of the batches that train only the first of the residual layers, a random number of them")
    add("--sample-codebook-temp", type=WEIGHT,
        help="temperature of drawing residual codes in training (MoMask: 0.5); 0: take the nearest")
    add("--fsq-levels", type=number(int, 2, 1 << 20), nargs="+", metavar="LEVELS",
        help="levels of each finite scalar (fsq), e.g. 8 5 5 5 for 1,000 codes")
    parser.set_defaults(**NET_ARGS)


def add_step_flags(parser):
    """Add the flags of losses and precision, which an optimisation step reads."""
    add = parser.add_argument_group("losses").add_argument
    add("--recons-loss", choices=("l1_smooth", "l1", "l2"), default="l1_smooth", help="reconstruction loss")
    add("--commit", type=WEIGHT, default=0.02, help="weight of the commitment loss")
    add("--loss-vel", type=WEIGHT, default=0.5, help="weight of the loss over --vel-slice")
    add("--vel-slice", choices=("positions", "velocities"), default="positions",
        help="features under --loss-vel; upstream's slice is the joint positions")
    add("--feat-bias", type=POSITIVE, default=1.0, metavar="FACTOR",
        help="weigh root and contact features that much more (MoMask: 5); the evaluator's std does already")
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
    add("--lr-decay", choices=("milestones", "cosine"), default="milestones",
        help="steps down at --lr-scheduler, or a half cosine from --lr to 0 over --total-iter")
    add("--ema-weights", type=number(float, 0, 1, open_low=True), default=None, metavar="DECAY",
        help="evaluate and save a moving average of the weights too, e.g. 0.999; None: none")
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
    if args.fsq_levels and "nb_code" not in args.given:
        args.nb_code = math.prod(args.fsq_levels)
    defaults = {name: parser.get_default(name) for name in vars(args)}
    parser.refuse(*idle_flags(args, defaults), *network_problems(args), *training_problems(args))
    return args


def given_flags(parser, argv, names):
    """Return those of `names` that the command line sets, to their default or not."""
    absent = object()
    parsed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent)))
    return [name for name in names if getattr(parsed, name) is not absent]


def idle_flags(args, defaults):
    """Return (wrong, message) for each flag that the chosen quantizer does not read."""
    for name, quantizers in ACTS_WITH.items():
        idle = args.quantizer not in quantizers and getattr(args, name) != defaults[name]
        yield idle, (f"--{name.replace('_', '-')} acts only with --quantizer {' or '.join(quantizers)}, "
                     f"not {args.quantizer}")


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
        (args.quantizer in ACTS_WITH["mu"] and not 0 < args.mu < 1,
         f"--mu {args.mu} is no decay: it must lie between 0 and 1"),
        (args.quantizer == "fsq" and not args.fsq_levels,
         "--quantizer fsq needs --fsq-levels, e.g. 8 5 5 5"),
        (args.quantizer == "fsq" and args.nb_code != math.prod(args.fsq_levels or ()),
         f"--nb-code {args.nb_code} is not the product of --fsq-levels; leave it out"),
        (args.quantizer == "fsq" and args.nb_code > MOST_CODES,
         f"--fsq-levels make {args.nb_code:,} codes; at most {MOST_CODES:,} work"),
    )


def training_problems(args):
    """Return (wrong, message) for each other combination of training flags that cannot work."""
    return (
        (args.batch_size % args.grad_accum != 0,
         f"--grad-accum {args.grad_accum} does not divide --batch-size {args.batch_size}: "
         "micro-batches must be equal"),
        (args.grad_accum > 1 and args.vq_norm == "BN",
         "--grad-accum cannot work with --vq-norm BN: each micro-batch would be normalised by itself"),
        (args.grad_accum > 1 and args.shared_codebook,
         "--grad-accum cannot work with --shared-codebook, which moves within a batch"),
        (args.ema_weights == 1, "--ema-weights 1 would keep the first weights: give a decay below 1"),
        (args.lr_decay == "cosine" and "lr_scheduler" in args.given,
         "--lr-scheduler acts only with --lr-decay milestones"),
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
