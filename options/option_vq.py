"""The flags of `train_vq.py` and the combinations that cannot work (T2M-GPT options/option_vq.py)."""
import argparse
import math

from options import common
from options.common import COUNT, DECAY, NET_ARGS, POSITIVE, SEED, SHARE, WEIGHT, number

LAYERS = ("num_quantizers", "shared_codebook", "quantize_dropout_prob", "sample_codebook_temp")
ACTS_WITH = {  # flag → the quantizers that read it
    "mu": ("ema_reset", "ema", "residual"), "beta": ("orig",), "fsq_levels": ("fsq",),
    **dict.fromkeys(LAYERS, ("residual",)),
}
DEAD_FLAGS = ("--results-dir", "--visual-name", "--vis-gt", "--resume-gpt")  # nothing in upstream reads them


def dead(_):
    """Refuse a flag of DEAD_FLAGS."""
    raise argparse.ArgumentTypeError("does nothing in upstream either: --nb-vis draws, and no GPT is trained")


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
    add("--vq-act", choices=common.ACTIVATIONS, help="activation of the residual blocks")
    add("--vq-norm", **common.NORM, metavar="none|LN|GN|BN", help="normalisation in the residual blocks")
    add("--block-dropout", type=SHARE, help="dropout at the end of each residual block (MoMask: 0.2)")
    add = parser.add_argument_group("quantizer").add_argument
    add("--quantizer", choices=common.QUANTIZERS, help="how motion becomes codes")
    add("--mu", type=DECAY, help="decay of the EMA statistics (ema, ema_reset, residual)")
    add("--beta", type=WEIGHT, help="weight of the commitment term (orig)")
    add("--num-quantizers", type=number(int, 1, 64), help="layers of residual codes")
    add("--shared-codebook", action="store_true", help="one codebook for all residual layers")
    add("--quantize-dropout-prob", type=SHARE, help="share of batches that train only the first few layers")
    add("--sample-codebook-temp", type=WEIGHT, help="temperature of drawing residual codes; 0: the nearest")
    add("--fsq-levels", type=number(int, 2, 2 ** 20), nargs="+", metavar="LEVELS", help="e.g. 8 5 5 5 (fsq)")
    parser.set_defaults(**NET_ARGS)


def add_training_flags(parser):
    """Add the flags of the optimisation, its losses, its speed, and the run folder."""
    add = parser.add_argument_group("optimisation").add_argument
    add("--batch-size", type=COUNT, default=256, help="windows per step, over all ranks")
    add("--window-size", type=COUNT, default=64, help="frames in a window")
    add("--edge-frames", type=number(int, 0), default=0, metavar="FRAMES",
        help="draw windows from that far beyond a clip's ends, then move them inside: the ends are seen more")
    add("--total-iter", type=COUNT, default=300000, help="iterations after the warm-up")
    add("--warm-up-iter", type=number(int, 0), default=1000, help="warm-up iterations (one fewer is run)")
    add("--lr", type=POSITIVE, default=2e-4, help="learning rate")
    add("--lr-scheduler", type=COUNT, nargs="+", default=[200000], metavar="ITER", help="milestones of decay")
    add("--gamma", type=POSITIVE, default=0.05, help="learning-rate decay at each milestone")
    add("--ema-weights", type=DECAY, metavar="DECAY", help="decay of the weights' moving average, e.g. 0.999")
    add("--weight-decay", type=WEIGHT, default=0.0, help="AdamW's weight decay")
    add("--seed", type=SEED, default=123, help="random seed")
    add = parser.add_argument_group("losses").add_argument
    add("--recons-loss", choices=("l1_smooth", "l1", "l2"), default="l1_smooth", help="reconstruction loss")
    add("--commit", type=WEIGHT, default=0.02, help="weight of the commitment loss")
    add("--loss-vel", type=WEIGHT, default=0.5, help="weight of the loss over --vel-slice")
    add("--vel-slice", choices=("positions", "velocities"), default="positions", help="under --loss-vel")
    add("--loss-heading", type=WEIGHT, default=0.0, help="weight of the loss over the heading")
    add("--feat-bias", type=POSITIVE, default=1.0, metavar="FACTOR",
        help="weigh root and contact features that much more (MoMask: 5); the evaluator's std does already")
    add = parser.add_argument_group("speed").add_argument
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="precision of the convolutions")
    add("--tf32", action="store_true", help="convolutions in TF32 on CUDA (faster, less exact)")
    add("--compile", action="store_true", help="compile with torch.compile")
    add("--grad-accum", type=COUNT, default=1, metavar="PARTS", help="micro-batches, which save memory")
    add("--float64", action="store_true", help="train in float64 (slow; to debug numerical differences)")
    add = parser.add_argument_group("run").add_argument
    add("--out-dir", default="output", help="folder of all runs")
    add("--exp-name", default="VQVAE", help="name of the run's folder in --out-dir")
    add("--print-iter", type=COUNT, default=200, help="iterations between log lines")
    add("--eval-iter", type=COUNT, default=1000, help="iterations between validations")
    add("--save-iter", type=COUNT, default=1000, help="iterations between saved states, to resume from")
    add("--nb-vis", type=number(int, 0), default=2, help="validation clips to draw; 0: none")
    add("--resume", choices=("auto",), help="go on with the folder's run, or start it if there is none")
    add("--resume-pth", metavar="CHECKPOINT", help="state_*.pth resumes exactly; others give the weights")
    add("--overwrite", action="store_true", help="remove the folder's run and start anew")
    add("--force", action="store_true", help="resume although flags differ")


class Arguments(argparse.Namespace):
    """The flags of a run. `given`, not one of them, names those that the command line sets."""

    __slots__ = ("given",)


def get_args_parser(argv=None):
    """Parse the flags of `train_vq.py`; exit with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="train_vq.py", description="Train the motion VQ-VAE. @FILE reads a recipe.")
    common.add_data_flags(parser)
    add_network_flags(parser)
    add_training_flags(parser)
    common.add_extractor_flags(parser)
    parser.add_argument(*DEAD_FLAGS, nargs="?", const="", type=dead, default=argparse.SUPPRESS,
                        help=argparse.SUPPRESS)
    defaults = vars(parser.parse_args([]))
    parsed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, ...)))
    given = {name: value for name, value in vars(parsed).items() if value is not ...}
    args = Arguments(**{**defaults, **given})
    args.given = list(given)
    if args.fsq_levels and "nb_code" not in given:
        args.nb_code = math.prod(args.fsq_levels)
    parser.refuse(*problems(args, defaults))
    return args


def problems(args, defaults):
    """Return (wrong, message) for each flag that the quantizer ignores, and each that cannot work."""
    unit, codes, fsq = 2 ** args.down_t, math.prod(args.fsq_levels or ()), args.quantizer == "fsq"
    return (
        *((args.quantizer not in quantizers and getattr(args, name) != defaults[name],
           f"--{name.replace('_', '-')} acts only with --quantizer {' or '.join(quantizers)}; "
           f"leave it at {defaults[name]}")
          for name, quantizers in ACTS_WITH.items()),
        (args.stride_t != 2, "--stride-t must be 2: the decoder upsamples by 2"),
        (args.output_emb_width != args.code_dim, "--output-emb-width must equal --code-dim, a code's width"),
        (args.window_size % unit != 0, f"--window-size must be a multiple of {unit}, 2 ** --down-t"),
        (args.vq_norm == "GN" and args.width % 32 != 0, "--vq-norm GN needs a --width divisible by 32"),
        (args.vq_norm == "BN" and args.window_size == unit and args.batch_size == 1,
         "--vq-norm BN cannot normalise one value per channel; use a larger --batch-size or --window-size"),
        (fsq and not args.fsq_levels, "--quantizer fsq needs --fsq-levels, e.g. 8 5 5 5"),
        (fsq and (args.nb_code != codes or codes > 2 ** 20),
         f"--fsq-levels make {codes:,} codes: at most {2 ** 20:,} work; leave --nb-code out"),
        (args.float64 and (args.amp != "off" or args.tf32), "--float64 contradicts --amp and --tf32"),
        (args.loss_vel == 0 and args.vel_slice != "positions", "--vel-slice acts only with --loss-vel"),
        (args.force and not (args.resume or args.resume_pth), "--force acts only on a resumed run"),
        (not args.exp_name or "/" in args.exp_name or args.exp_name in (".", ".."),
         f"--exp-name {args.exp_name!r} is not a folder name"),
        (args.resume and (args.resume_pth or args.overwrite),
         "--resume auto goes on with the folder's run: leave out --resume-pth and --overwrite"),
    )
