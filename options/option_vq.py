"""Every flag of the scripts, grouped. Imports argparse alone, so that --help and a refusal are instant."""
import argparse
import math
import shlex

DATASETS = ("t2m", "kit", "demo")
RATIO = 2  # each of down_t steps halves the frame rate

DEAD_FLAGS = {  # upstream's flags that nothing reads
    "--results-dir": "pictures go to TensorBoard and the run folder (--nb-vis)",
    "--visual-name": "pictures go to TensorBoard and the run folder (--nb-vis)",
    "--vis-gif": "the number of clips drawn is --nb-vis",
    "--resume-gpt": "this repository trains the VQ-VAE only",
}


class _Parser(argparse.ArgumentParser):
    """Refuses with one line; reads `@file` recipes with several words a line and # comments."""

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def convert_arg_line_to_args(self, line):
        return shlex.split(line, comments=True)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


class _Dead(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} does nothing in upstream either: {DEAD_FLAGS[option_string]}")


def _number(kind, low, high=math.inf, open_low=False):
    """A type for argparse: a finite number of `kind` within [low, high], or (low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from None
        if not (low < value if open_low else low <= value) or not value <= high or not math.isfinite(value):
            bound = f"{'over' if open_low else 'at least'} {low}" + (f" and at most {high}" if math.isfinite(high) else "")
            raise argparse.ArgumentTypeError(f"{text} is out of range: expected {bound}")
        return value

    return parse


def _norm(text):
    if text.lower() == "none":
        return None
    if text not in ("LN", "GN", "BN"):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of none, LN, GN, BN")
    return text


COUNT, POSITIVE = _number(int, 1), _number(float, 0, open_low=True)
SHARE, WEIGHT = _number(float, 0, 1), _number(float, 0)


def add_data_flags(parser):
    group = parser.add_argument_group("data")
    group.add_argument("--dataname", choices=DATASETS, default="t2m", help="HumanML3D (22 joints, 263 wide), KIT-ML (21, 251), or the demo set")
    group.add_argument("--data-root", metavar="DIR", default=None,
                       help="folder in the HumanML3D layout; None: dataset/HumanML3D, dataset/KIT-ML or dataset/demo")
    group.add_argument("--meta-dir", metavar="DIR", default=None,
                       help="folder of mean.npy and std.npy; None: the evaluator's meta folder when it is there, else the data folder")
    group.add_argument("--skip-bad-clips", action="store_true", help="leave out missing, unreadable or non-finite clips instead of stopping")
    group.add_argument("--no-cache", action="store_true", help="read the clips one by one instead of from the packed cache")


def add_device_flags(parser):
    group = parser.add_argument_group("device")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to run; auto takes the best there is")
    return group


def add_extractor_flags(parser):
    group = parser.add_argument_group("extractors (FID, diversity, R-precision, matching score)")
    group.add_argument("--evaluator-dir", metavar="DIR", default=None,
                       help="folder of text_mot_match/model/finest.tar; None: checkpoints/t2m or checkpoints/kit")
    group.add_argument("--glove-dir", metavar="DIR", default=None, help="folder of our_vab_data.npy, our_vab_words.pkl, our_vab_idx.pkl; None: glove")
    return group


def add_model_flags(parser):
    group = parser.add_argument_group("network")
    group.add_argument("--code-dim", type=COUNT, default=512, help="width of a code")
    group.add_argument("--nb-code", type=COUNT, default=512, help="number of codes")
    group.add_argument("--down-t", type=_number(int, 1, 6), default=2, help="halvings of the frame rate; 2: one code for four frames")
    group.add_argument("--stride-t", type=COUNT, default=2, help="stride of each halving; only 2 fits the decoder's upsampling")
    group.add_argument("--width", type=COUNT, default=512, help="channels of the convolutions")
    group.add_argument("--depth", type=COUNT, default=3, help="residual blocks at each rate")
    group.add_argument("--dilation-growth-rate", type=COUNT, default=3, help="growth of the dilation from block to block")
    group.add_argument("--output-emb-width", type=COUNT, default=512, help="channels of the latents; equals --code-dim")
    group.add_argument("--vq-act", choices=("relu", "silu", "gelu"), default="relu", help="activation inside the residual blocks")
    group.add_argument("--vq-norm", type=_norm, default=None, metavar="none|LN|GN|BN", help="normalisation inside the residual blocks")
    group = parser.add_argument_group("quantizer")
    group.add_argument("--quantizer", choices=("ema_reset", "orig", "ema", "reset"), default="ema_reset", help="how the codebook is learnt")
    group.add_argument("--mu", type=SHARE, default=0.99, help="decay of the moving averages (ema, ema_reset)")
    group.add_argument("--beta", type=WEIGHT, default=1.0, help="weight of the commitment term (orig)")


def add_training_flags(parser):
    group = parser.add_argument_group("optimisation")
    group.add_argument("--batch-size", type=COUNT, default=256, help="windows a step, over all devices together")
    _add_window_flag(group)
    group.add_argument("--total-iter", type=COUNT, default=300000, help="iterations after the warm-up")
    group.add_argument("--warm-up-iter", type=_number(int, 0), default=1000, help="the learning rate rises over this many iterations less one")
    group.add_argument("--lr", type=POSITIVE, default=2e-4, help="learning rate")
    group.add_argument("--lr-scheduler", type=COUNT, nargs="+", default=[200000], metavar="ITER", help="iterations after which the rate falls")
    group.add_argument("--gamma", type=POSITIVE, default=0.05, help="factor by which it falls")
    group.add_argument("--weight-decay", type=WEIGHT, default=0.0, help="AdamW's weight decay")
    group.add_argument("--commit", type=WEIGHT, default=0.02, help="weight of the commitment loss")
    group.add_argument("--loss-vel", type=WEIGHT, default=0.5, help="weight of the loss over --vel-slice")
    group.add_argument("--vel-slice", choices=("positions", "velocities"), default="positions",
                       help="what --loss-vel weighs; upstream's slice holds the joint positions, whatever its name says")
    group.add_argument("--recons-loss", choices=("l1_smooth", "l1", "l2"), default="l1_smooth", help="reconstruction loss")
    group.add_argument("--seed", type=_number(int, 0, 2 ** 32 - 1), default=123, help="of the weights and of the order of the windows")
    group = parser.add_argument_group("speed")
    group.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off",
                       help="precision of the convolutions; quantizer, statistics and losses stay float32")
    _add_step_flags(group)
    group.add_argument("--data-device", choices=("auto", "host", "device"), default="auto",
                       help="on CUDA, where the training frames live; auto: on the device when they take at most half of its free memory")
    group.add_argument("--grad-accum", type=COUNT, default=1, metavar="PARTS", help="take each batch in so many parts, for small devices")
    group.add_argument("--float64", action="store_true", help="train in float64: slow; tells logic from rounding")
    group = parser.add_argument_group("run")
    group.add_argument("--out-dir", default="output", help="folder of all runs")
    group.add_argument("--exp-name", default="VQVAE", help="name of this run's folder in it")
    group.add_argument("--print-iter", type=COUNT, default=200, help="iterations between log lines")
    group.add_argument("--eval-iter", type=COUNT, default=1000, help="iterations between validations, each with a net_last.pth")
    group.add_argument("--save-iter", type=COUNT, default=1000, help="iterations between saved states, from which a run resumes exactly")
    group.add_argument("--nb-vis", type=_number(int, 0), default=2,
                       help="validation clips drawn at each validation and, as vis_*.gif in the run folder, at the end; 0: no pictures")
    group.add_argument("--resume", choices=("auto",), default=None, help="go on with the run in the run folder, or start it if there is none")
    group.add_argument("--resume-pth", metavar="FILE", default=None,
                       help="a state_*.pth resumes exactly; any other checkpoint, upstream's too, gives the weights to start from")
    group.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run; its files are removed")
    group.add_argument("--force", action="store_true", help="resume although flags that matter have changed")
    group.add_argument("--on-nan", choices=("stop", "skip"), default="stop", help="what a non-finite loss or gradient does to the run")
    group.add_argument("--nan-limit", type=COUNT, default=10, help="skipped steps after which --on-nan skip stops all the same")


def get_args_parser(argv=None):
    """Parse and check the flags of `train_vq.py`; exits with code 2 and one line for what cannot work."""
    parser = _Parser(prog="train_vq.py", description="Train the motion VQ-VAE. @FILE reads flags from a recipe, e.g. @options/t2m.args.")
    add_data_flags(parser)
    add_device_flags(parser)
    add_model_flags(parser)
    add_training_flags(parser)
    add_extractor_flags(parser)
    for flag in DEAD_FLAGS:
        parser.add_argument(flag, action=_Dead, nargs="?", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    problem = find_problem(args)
    if problem:
        parser.error(problem)
    return args


def eval_args(argv=None):
    """Parse the flags of `eval_vq.py`; exits with code 2 and one line for what cannot work."""
    parser = _Parser(prog="eval_vq.py", description="Evaluate checkpoints on a split; several give one table. A checkpoint brings its own "
                     "network, data set and statistics.")
    parser.add_argument("checkpoints", nargs="*", metavar="FILE", help="checkpoints: net_last.pth of a run, or upstream's")
    parser.add_argument("--resume-pth", nargs="+", default=[], metavar="FILE", help="the same, under upstream's name")
    parser.add_argument("--split", default="test", metavar="NAME", help="evaluate the clips of NAME.txt in the data folder")
    add_data_flags(parser)
    _add_clip_batch_flag(add_device_flags(parser))
    group = add_extractor_flags(parser)
    group.add_argument("--repeat", type=COUNT, default=1, help="repetitions of the protocol's random draws; published tables use 20")
    group.add_argument("--seed", type=_number(int, 0, 2 ** 32 - 1), default=123, help="of these draws")
    group = parser.add_argument_group("output")
    group.add_argument("--breakdown", action="store_true", help="also print the errors of each joint and of the clips of each caption verb")
    group.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    group.add_argument("--out-json", metavar="FILE", default=None, help="where to write the numbers; None: eval_SPLIT.json beside each checkpoint")
    parser.set_defaults(dataname=None)
    args = parser.parse_args(argv)
    args.checkpoints = list(dict.fromkeys([*args.checkpoints, *args.resume_pth]))
    if not args.checkpoints:
        parser.error("no checkpoint given: python eval_vq.py output/VQVAE/net_last.pth")
    return args


def bench_args(argv=None):
    """Parse the flags of `bench.py`; exits with code 2 and one line for what cannot work."""
    parser = _Parser(prog="bench.py", description="How near training comes to what this machine can do.")
    add_device_flags(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--batch-sizes", type=COUNT, nargs="+", default=[64, 256], metavar="N", help="windows a step; parts and feed take the first")
    group.add_argument("--amps", choices=("off", "bf16", "fp16"), nargs="+", default=["off", "bf16"], help="precisions; off always comes first")
    group.add_argument("--rounds", type=COUNT, default=5, help="measurements of each number, after one of warm-up")
    group.add_argument("--only", choices=("step", "parts", "data", "evaluation"), nargs="+", default=["step", "parts", "data", "evaluation"],
                       help="what to measure")
    group.add_argument("--cpu-time", action="store_true", help="processor seconds instead of seconds, for a busy machine; with OMP_NUM_THREADS=1")
    group.add_argument("--clips", type=_number(int, 32), default=400, help="of the made data that feed, start-up and evaluation are measured on")
    group.add_argument("--frames", type=COUNT, nargs=2, default=[40, 200], metavar="N", help="of its shortest and longest clip")
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", default=None, help="also write the numbers here")
    group.add_argument("--compare", nargs=2, metavar="FILE", default=None, help="print two saved files side by side, and measure nothing")
    add_model_flags(parser)
    group = parser.add_argument_group("a step")
    _add_window_flag(group)
    _add_step_flags(group)
    parser.set_defaults(dataname="t2m", recons_loss="l1_smooth", commit=0.02, loss_vel=0.5, data_device="auto")
    args = parser.parse_args(argv)
    problem = _first_problem(*_model_checks(args))
    if problem:
        parser.error(problem)
    if args.frames[0] > args.frames[1]:
        parser.error(f"--frames {args.frames[0]} {args.frames[1]}: the shortest clip comes first")
    if args.cpu_time and args.device not in ("auto", "cpu"):
        parser.error(f"--cpu-time counts processor seconds; it says nothing about --device {args.device}")
    args.amps = list(dict.fromkeys(["off", *args.amps]))
    return args


def _model_checks(args):
    """(wrong, what to say) of each combination of a network's flags that cannot work."""
    unit = RATIO ** args.down_t
    return (
        (args.stride_t != RATIO, f"--stride-t {args.stride_t} cannot work: the decoder upsamples by 2; use --stride-t 2"),
        (args.output_emb_width != args.code_dim,
         f"--output-emb-width {args.output_emb_width} differs from --code-dim {args.code_dim}: latents and codes have one width"),
        (args.window_size % unit != 0,
         f"--window-size {args.window_size} is not a multiple of {unit} (2 ** --down-t): the last frames would be lost"),
        (args.vq_norm == "GN" and args.width % 32 != 0, f"--vq-norm GN needs a --width divisible by its 32 groups, not {args.width}"),
        (args.quantizer != "orig" and args.beta != 1.0, f"--beta acts only with --quantizer orig, not {args.quantizer}"),
        (not args.quantizer.startswith("ema") and args.mu != 0.99, f"--mu acts only with the ema quantizers, not {args.quantizer}"),
        (args.quantizer.startswith("ema") and not 0 < args.mu < 1, f"--mu {args.mu} is no decay: it must lie between 0 and 1"),
        (args.device in ("cpu", "mps") and args.tf32, f"--tf32 acts only on CUDA, not with --device {args.device}"))


def find_problem(args):
    """The first combination of training flags that cannot work, as one line; None when all can."""
    return _first_problem(
        *_model_checks(args),
        (args.on_nan != "skip" and args.nan_limit != 10, "--nan-limit acts only with --on-nan skip"),
        (args.on_nan == "skip" and args.vq_norm == "BN", "--on-nan skip cannot work with --vq-norm BN: its averages have seen the bad batch"),
        (args.batch_size % args.grad_accum != 0,
         f"--grad-accum {args.grad_accum} does not divide --batch-size {args.batch_size}: the parts must be equal"),
        (args.grad_accum > 1 and args.vq_norm == "BN", "--grad-accum cannot work with --vq-norm BN: each part would be normalised by itself"),
        (args.float64 and (args.amp != "off" or args.tf32), "--float64 contradicts --amp and --tf32: give one of them"),
        (args.device in ("cpu", "mps") and args.data_device != "auto", f"--data-device acts only on CUDA, not with --device {args.device}"),
        (args.loss_vel == 0 and args.vel_slice != "positions", "--vel-slice acts only with a --loss-vel over 0"),
        (not args.exp_name or "/" in args.exp_name or args.exp_name in (".", ".."), f"--exp-name {args.exp_name!r} is not a folder name"),
        (args.resume and args.resume_pth, "--resume auto and --resume-pth both name a start: give one of them"),
        (args.overwrite and args.resume, "--overwrite removes the run that --resume auto would go on with: give one of them"),
        (args.force and not (args.resume or args.resume_pth), "--force acts only on a resumed run"))


def tokenize_args(argv=None):
    """Parse the flags of `tokenize_vq.py`; exits with code 2 and one line for what cannot work."""
    parser = _Parser(prog="tokenize_vq.py", description="Write the codes of every clip of a data folder, or decode codes back into motion. A "
                     "checkpoint brings its own network, data set and statistics.")
    _add_checkpoint_flag(parser, required=True)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write: codes and a manifest, or the decoded motion")
    group = parser.add_argument_group("codes")
    group.add_argument("--split", nargs="+", default=None, metavar="NAME",
                       help="take the clips of NAME.txt; None: all, or, where there is no all.txt, train, val and test")
    group.add_argument("--min-frames", type=COUNT, default=1, help="leave out shorter clips; T2M-GPT takes 40 for t2m, 24 for kit")
    group.add_argument("--max-frames", type=COUNT, default=None, help="leave out clips of that many frames or more; T2M-GPT takes 200")
    group.add_argument("--packed", action="store_true", help="write all codes as one array with offsets instead of a file per clip")
    add_data_flags(parser)
    group = parser.add_argument_group("motion")
    group.add_argument("--decode", metavar="PATH", default=None, help="decode instead: a folder that this command wrote, a folder of .npy rows, or "
                       "one such file")
    _add_motion_flags(group, ("features", "joints", "gif", "bvh"))
    _add_clip_batch_flag(add_device_flags(parser))
    parser.set_defaults(dataname=None)
    args = parser.parse_args(argv)
    problem = _first_problem(
        (args.decode and not args.to, "--decode wants to know what to write: --to features, joints, gif or bvh"),
        ((args.to or args.overwrite) and not args.decode, "--to and --overwrite act only with --decode"),
        (args.decode and (args.packed or args.split or args.skip_bad_clips or args.min_frames != 1 or args.max_frames),
         "--split, --min-frames, --max-frames, --skip-bad-clips and --packed act only without --decode"),
        (args.max_frames and args.max_frames <= args.min_frames, f"--max-frames {args.max_frames} leaves no clip of --min-frames {args.min_frames}"))
    if problem:
        parser.error(problem)
    return args


def export_args(argv=None):
    """Parse the flags of `export_vq.py`; exits with code 2 and one line for what cannot work."""
    parser = _Parser(prog="export_vq.py", description="A checkpoint as model.safetensors and config.json, and back; as ONNX; clips as BVH, "
                     "joints or GIF.")
    _add_checkpoint_flag(parser, required=False)
    parser.add_argument("--out", metavar="DIR", default=None, help="folder to write")
    parser.add_argument("--onnx", action="store_true", help="also write encoder.onnx and decoder.onnx, raw features in and out")
    parser.add_argument("--to-pth", metavar="FILE", default=None, help="write {'net': state-dict, …}, which upstream loads, instead of a folder")
    parser.add_argument("--meta-dir", metavar="DIR", default=None,
                        help="folder of mean.npy and std.npy for a checkpoint that carries none, as upstream's")
    group = parser.add_argument_group("clips")
    group.add_argument("--clips", nargs="+", default=None, metavar="PATH",
                       help="convert clips instead of a checkpoint: .npy files of features (T, D) or joints (T, J, 3), or folders of them")
    _add_motion_flags(group, ("joints", "gif", "bvh"))
    args = parser.parse_args(argv)
    problem = _first_problem(
        (bool(args.resume_pth) == bool(args.clips), "give a checkpoint (--resume-pth FILE) or clips (--clips PATH …), one of them"),
        (args.clips and (args.onnx or args.to_pth or args.meta_dir), "--onnx, --to-pth and --meta-dir act only on a checkpoint"),
        (args.clips and not args.to, "--clips wants to know what to write: --to bvh, joints or gif"),
        (args.resume_pth and (args.to or args.overwrite), "--to and --overwrite act only with --clips; decode codes with tokenize_vq.py --decode"),
        (args.to_pth and args.onnx, "--to-pth writes one file: give --onnx with --out"),
        (bool(args.out) == bool(args.to_pth), "name what to write: a folder (--out DIR) or, for a checkpoint, a file (--to-pth FILE)"))
    if problem:
        parser.error(problem)
    return args


def _add_window_flag(group):
    group.add_argument("--window-size", type=COUNT, default=64, help="frames a window")


def _add_step_flags(group):
    group.add_argument("--tf32", action="store_true", help="convolutions in TF32 on CUDA: faster, ten bits of mantissa")
    group.add_argument("--compile", action="store_true", help="compile the forward and backward pass with torch.compile")


def _add_clip_batch_flag(group):
    group.add_argument("--batch-size", type=COUNT, default=64,
                       help="clips of 128 frames in a forward pass; clips are batched by length, and the result does not depend on it")


def _add_checkpoint_flag(parser, required):
    parser.add_argument("--resume-pth", metavar="FILE", required=required, default=None,
                        help="checkpoint: net_last.pth of a run, upstream's, or a folder of model.safetensors and config.json")


def _add_motion_flags(group, kinds):
    group.add_argument("--to", choices=kinds, default=None,
                       help="what to write of each clip: an .npy array in the data's unit, a moving picture, or an animation for other tools")
    group.add_argument("--overwrite", action="store_true", help="replace motion that is there already")


def _first_problem(*checks):
    return next((message for wrong, message in checks if wrong), None)
