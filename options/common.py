"""What the command lines share: argument types, the @file parser, and groups of flags.

Imports nothing slow.
"""
import argparse
import math
import re
import shlex
import sys

DATASETS = ("t2m", "kit", "demo")
ACTIVATIONS, NORMS = ("relu", "silu", "gelu"), ("none", "LN", "GN", "BN")
QUANTIZERS = ("ema_reset", "orig", "ema", "reset", "residual", "fsq")
NET_ARGS = {  # what rebuilds a network, at the published values
    "dataname": "t2m", "quantizer": "ema_reset", "mu": 0.99, "beta": 1.0,
    # residual and fsq alone
    "num_quantizers": 6, "shared_codebook": False, "quantize_dropout_prob": 0.2, "sample_codebook_temp": 0.0,
    "fsq_levels": None,
    # the constructor's parameters after its `args`, in their order
    "nb_code": 512, "code_dim": 512, "output_emb_width": 512, "down_t": 2, "stride_t": 2, "width": 512,
    "depth": 3, "dilation_growth_rate": 3, "vq_act": "relu", "vq_norm": None, "block_dropout": 0.0,
}


class Parser(argparse.ArgumentParser):
    """A parser that refuses with one line and reads `@file` recipes with # comments."""

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        # argparse takes -1e-4 for a flag; a blank in front makes it a value
        args = [f" {word}" if re.fullmatch(r"-[\d.]+e[-+]?\d+", word, re.I) else word for word in args]
        return super().parse_args(args, namespace)

    def convert_arg_line_to_args(self, line):
        return shlex.split(line, comments=True)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, *checks):
        """Exit with the message of the first (wrong, message) whose `wrong` holds."""
        for wrong, message in checks:
            if wrong:
                self.error(message)


def number(kind, low, high=math.inf, open_low=False):
    """Return an argparse type: a finite number of `kind` within [low, high], or (low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        within = low < value if open_low else low <= value
        if not (within and value <= high and math.isfinite(value)):
            bound = f"{'over' if open_low else 'at least'} {low}"
            bound += f" and at most {high}" if math.isfinite(high) else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: expected {bound}")
        return value

    return parse


def norm(text):
    """Return an argparse value of --vq-norm: None, LN, GN or BN."""
    if text not in NORMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(NORMS)}")
    return None if text == "none" else text


COUNT, POSITIVE = number(int, 1), number(float, 0, open_low=True)
SHARE, WEIGHT, SEED = number(float, 0, 1), number(float, 0), number(int, 0, 2 ** 32 - 1)


def add_data_flags(parser, dataname="t2m"):
    """Add the flags that name a data folder and its statistics. dataname None: the checkpoint's own."""
    add = parser.add_argument_group("data").add_argument
    add("--dataname", choices=DATASETS, default=dataname,
        help="HumanML3D (22 joints, 263 features), KIT-ML (21, 251), or the demo set (as t2m)")
    add("--data-root", metavar="DIR", default=None,
        help="folder in the HumanML3D layout; None: HumanML3D, KIT-ML or demo in dataset/")
    add("--meta-dir", metavar="DIR", default=None,
        help="folder of mean.npy and std.npy; None: the evaluator's, else the data folder")
    add("--skip-bad-clips", action="store_true",
        help="leave out missing, unreadable or non-finite clips instead of stopping")
    add("--no-cache", action="store_true",
        help="read the clips one by one instead of from the packed cache in DATA_ROOT/.packed")


def add_device_flag(parser):
    """Add --device."""
    add = parser.add_argument_group("device").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="where to run; auto takes CUDA, else MPS, else the CPU")


def add_extractor_flags(parser):
    """Add the folders of the official extractors."""
    add = parser.add_argument_group("extractors (FID, diversity, R-precision, matching score)").add_argument
    add("--evaluator-dir", metavar="DIR", default=None,
        help="folder of text_mot_match/model/finest.tar; None: checkpoints/t2m (or kit)")
    add("--glove-dir", metavar="DIR", default=None,
        help="folder of our_vab_data.npy, our_vab_words.pkl and our_vab_idx.pkl; None: glove")


def add_checkpoint_flags(parser, several=False):
    """Add checkpoints as arguments, and what a file without recorded arguments cannot tell of its network.

    `checkpoints` is a list after `given_checkpoints(args)`. several: whether more than one may be given.
    """
    many = "+" if several else None
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT",
                        help="run folder, net_last.pth of a run or of upstream, or exported folder")
    parser.add_argument("--resume-pth", nargs=many, metavar="CHECKPOINT", default=None,
                        help="the same, under upstream's name")
    add = parser.add_argument_group("network of a checkpoint that records none (upstream's)").add_argument
    add("--vq-act", choices=ACTIVATIONS, default=None, help="activation; None: relu")
    add("--vq-norm", type=norm, metavar="none|LN|GN|BN", default=argparse.SUPPRESS,
        help="normalisation; LN and GN look alike in such a file (default: LN)")
    add("--dilation-growth-rate", type=COUNT, default=None, help="dilation growth; None: 3")
    add("--quantizer", choices=QUANTIZERS, default=None, help="None: ema_reset or orig")


def given_checkpoints(args):
    """Return the checkpoints given as arguments and as --resume-pth, each once."""
    named = args.resume_pth or []
    return list(dict.fromkeys([*args.checkpoints, *([named] if isinstance(named, str) else named)]))


def network_overrides(args):
    """Return what the command line says of the network, {name: value}, for `HumanVQVAE.from_checkpoint`."""
    names = ("vq_act", "dilation_growth_rate", "quantizer")
    overrides = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return {**overrides, **({"vq_norm": args.vq_norm} if hasattr(args, "vq_norm") else {})}
