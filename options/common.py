"""What the command lines share: argument types, the @file parser, and groups of flags. No slow import."""
import argparse
import math
import shlex
from functools import partial

DATASETS = ("t2m", "kit", "demo")
ACTIVATIONS, NORMS = ("relu", "silu", "gelu"), ("none", "LN", "GN", "BN")
QUANTIZERS = ("ema_reset", "orig", "ema", "reset", "residual", "fsq")
NET_ARGS = {  # what rebuilds a network, at the published values
    "dataname": "t2m", "quantizer": "ema_reset", "mu": 0.99, "beta": 1.0, "block_dropout": 0.0,
    "num_quantizers": 6, "shared_codebook": False, "quantize_dropout_prob": 0.2, "sample_codebook_temp": 0.0,
    "fsq_levels": None,
    # the constructor's parameters after its `args`, in their order
    "nb_code": 512, "code_dim": 512, "output_emb_width": 512, "down_t": 2, "stride_t": 2, "width": 512,
    "depth": 3, "dilation_growth_rate": 3, "vq_act": "relu", "vq_norm": None,
}


class Parser(argparse.ArgumentParser):
    """A parser that refuses with one line and reads `@file` recipes with # comments."""

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def convert_arg_line_to_args(self, line):
        return shlex.split(line, comments=True)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, *checks):
        """Exit with the message of the first (wrong, message) whose `wrong` holds."""
        for wrong, message in checks:
            if wrong:
                self.error(message)


def number(kind, low, high=math.inf, within=False):
    """Return an argparse type: a finite number of `kind` from low to high; within: the ends left out."""

    def parse(text):
        value = kind(text)
        fits = low < value < high if within else low <= value <= high
        if not fits or math.isinf(value):
            least, most = ("over", "below") if within else ("at least", "at most")
            bound = f"{least} {low}" if math.isinf(high) else f"{least} {low} and {most} {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: expected {bound}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # argparse says so of other text
    return parse


COUNT, SEED = number(int, 1), number(int, 0, 2 ** 32 - 1)
POSITIVE, WEIGHT = number(float, 0, within=True), number(float, 0)
SHARE, DECAY = number(float, 0, 1), number(float, 0, 1, within=True)
NORM = dict(type=lambda name: None if name == "none" else name, choices=(None, *NORMS[1:]))


def add_data_flags(parser, dataname="t2m"):
    """Add the flags of a data folder and the device. dataname None: the checkpoint's own."""
    add = parser.add_argument_group("data and device").add_argument
    add("--dataname", choices=DATASETS, default=dataname, help="HumanML3D, KIT-ML or the demo set (as t2m)")
    add("--data-root", metavar="DIR", help="folder in the HumanML3D layout; None: the data set's in dataset/")
    add("--meta-dir", metavar="DIR", help="folder of mean.npy and std.npy; None: evaluator's or data's")
    add("--skip-bad-clips", action="store_true", help="leave out missing, unreadable or non-finite clips")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="where to run; auto takes CUDA, else MPS, else the CPU")


def add_extractor_flags(parser):
    """Add the folders of the official extractors."""
    add = parser.add_argument_group("extractors (FID, diversity, R-precision, matching score)").add_argument
    add("--evaluator-dir", metavar="DIR",
        help="folder of text_mot_match/model/finest.tar; None: checkpoints/t2m (or kit)")
    add("--glove-dir", metavar="DIR", help="folder of our_vab_{data.npy,words.pkl,idx.pkl}; None: glove")


def add_checkpoint_flags(parser, several=False):
    """Add checkpoints, for `given_checkpoints`, and what a file may not tell, for `network_overrides`."""
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT",
                        help="run folder, net_last.pth of a run or of upstream, or exported folder")
    parser.add_argument("--resume-pth", action="extend", nargs="+" if several else 1, metavar="CHECKPOINT",
                        default=[], help="the same, under upstream's name")
    group = parser.add_argument_group("network of a checkpoint that records none (upstream's)")
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add("--vq-act", choices=ACTIVATIONS, help="activation (default: relu)")
    add("--vq-norm", **NORM, metavar="none|LN|GN|BN",
        help="normalisation; LN and GN look alike in such a file (default: LN)")
    add("--dilation-growth-rate", type=COUNT, help="dilation growth (default: 3)")
    add("--quantizer", choices=QUANTIZERS, help="(default: ema_reset or orig)")


def given_checkpoints(args):
    """Return the checkpoints given as arguments and as --resume-pth, each once."""
    return list(dict.fromkeys(args.checkpoints + args.resume_pth))


def network_overrides(args):
    """Return what the command line says of the network, {name: value}, for `HumanVQVAE.from_checkpoint`."""
    names = ("vq_act", "vq_norm", "dilation_growth_rate", "quantizer")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}
