"""Evaluate checkpoints of the motion VQ-VAE on a split.

    python eval_vq.py output/VQVAE/net_last.pth --split test
    python eval_vq.py output/* --markdown               # one table, the best marked
    python eval_vq.py output/residual --by-layer        # decoded from 1, 2, … layers of residual codes

Prints a table and writes eval_SPLIT.json beside each checkpoint. docs/evaluation.md defines each number.
Exit codes: 0 done, 2 a mistake in the input.
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="eval_vq.py", description="Evaluate checkpoints on a split, in one table.")
    common.add_checkpoint_flags(parser, several=True)
    common.add_data_flags(parser, dataname=None)
    common.add_device_flag(parser)
    common.add_extractor_flags(parser)
    add = parser.add_argument_group("evaluation").add_argument
    add("--split", default="test", metavar="NAME", help="evaluate the clips of NAME.txt")
    add("--batch-size", type=common.COUNT, default=64, help="clips of 128 frames in a forward pass")
    add("--repeat", type=common.COUNT, default=1,
        help="repetitions of the random draws with the extractors; published tables use 20")
    add("--seed", type=common.SEED, default=123, help="random seed of these draws")
    add("--breakdown", action="store_true", help="add the errors of each joint to the JSON")
    add("--by-layer", action="store_true",
        help="also decode residual codes from their first 1, 2, … layers alone, one line each")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--out-json", metavar="FILE", default=None,
        help="where to write the numbers; None: eval_SPLIT.json beside each checkpoint")
    args = parser.parse_args(argv)
    args.checkpoints = common.given_checkpoints(args)
    parser.refuse((not args.checkpoints, "no checkpoint given: python eval_vq.py output/VQVAE/net_last.pth"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = parse_args()

import math
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

from dataset.dataset_TM_eval import draw, load_captioned
from dataset.motion_folder import find_data, load_split
from evaluation.evaluate import METRICS, describe_skipped, evaluate_clips
from evaluation.text import evaluate_text
from models.evaluator_wrapper import find_missing, load_extractors
from models.vqvae import HumanVQVAE
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.motion_process import describe_statistics

BY_LAYER = ("mpjpe", "mpjpe_global", "recons", "codes_used", "perplexity", "bits_per_second")


def evaluate(path, args, loaded):
    """Evaluate one checkpoint. Returns the content of its JSON; loaded: extractors in use, {data set: …}."""
    net = HumanVQVAE.from_checkpoint(path, pick_device(args.device), **common.network_overrides(args))
    spec, root, remarks = find_data(path, net, args)
    clips = load_split(root, args.split, spec, net.mean, net.std, args.skip_bad_clips, not args.no_cache)
    batch_frames, loss = args.batch_size * 128, net.recipe.get("recons_loss", "l1_smooth")
    measure = partial(evaluate_clips, net, clips, True, loss, batch_frames)
    result, layers = measure(), net.vqvae.quantizer.num_layers
    joints, skipped, *_ = (result.pop(name) for name in ("joints", "skipped", "counts", "per_clip"))
    if clips.bad:
        skipped["cannot be used"] = clips.bad
    if spec.name not in loaded:
        folder, glove, missing = find_missing(spec, args.evaluator_dir, args.glove_dir)
        loaded[spec.name] = None if missing else load_extractors(spec, folder, glove), missing
    extractors, missing = loaded[spec.name]
    if extractors:
        captioned = load_captioned(clips, Path(root, "texts"), spec, extractors.vectorizer)
        missing = captioned.problems
        draws = [draw(captioned, np.random.default_rng([args.seed, r, 1])) for r in range(args.repeat)]
        try:
            result.update(evaluate_text(net, clips, captioned, draws, extractors, args.seed, batch_frames))
        except UserError as error:  # the other numbers stand
            missing.append(str(error))
        if extractors.mean is None:
            remarks.append("no mean and std beside the extractors: they see the checkpoint's normalisation")
    remarks = [*net.remarks, *remarks, *([clips.warning] if clips.warning else [])]
    content = dict(
        checkpoint=str(path), iteration=net.iteration, warm_up=max(net.recipe.get("warm_up_iter", 0) - 1, 0),
        dataname=spec.name, quantizer=net.vqvae.quant, layers=layers, nb_code=net.nb_code, split=args.split,
        data_root=str(root), statistics=describe_statistics(net.std), clips=result.pop("clips"),
        frames=result.pop("frames"), skipped=skipped, remarks=remarks, missing=missing, metrics=result)
    if args.breakdown:
        content["joints"] = {name: dict(mpjpe=a, mpjpe_global=g) for name, (a, g) in joints.items()}
    if args.by_layer:
        if layers == 1:
            raise UserError(f"{path}: {net.vqvae.quant} has a single layer; --by-layer needs residual codes")
        parts = [*(measure(layers=q) for q in range(1, layers)), result]
        content["by_layer"] = {q + 1: {name: part[name] for name in BY_LAYER} for q, part in enumerate(parts)}
    return content


def show(values, key):
    """Return a number as text, with its 95 % interval where there is one; "" for a number not measured."""
    if key not in values:
        return ""
    digits = METRICS[key.removesuffix("_real")].digits
    repeated = values.get("repetitions", 1) > 1 and key in values["intervals"]
    return f"{values[key]:.{digits}f}" + (f" ± {values['intervals'][key]:.{digits}f}" if repeated else "")


def format_table(rows, markdown):
    """Return rows of cells, headings first, as aligned text or Markdown; names are left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    if markdown:
        rows = [rows[0], ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *rows[1:]]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" if markdown else "  ".join(line).rstrip() for line in lines)


def results_table(contents, markdown):
    """Return a line for each metric: the checkpoints', the best of several marked, and the real motion's."""
    several, every = len(contents) > 1, [content["metrics"] for content in contents]
    plain, best = ("{}", "**{}**") if markdown else ("{}  ", "{} *") if several else ("{}", "{}")
    names = ["/".join(Path(content["checkpoint"]).parts[-2:]) for content in contents]
    rows = [["metric", *names, "real motion"]]
    for name, (heading, digits, better, _) in METRICS.items():
        numbers = [values[name] for values in every if math.isfinite(values.get(name, math.nan))]
        marked = several and better and numbers
        winner = f"{better * max(better * number for number in numbers):.{digits}f}" if marked else None
        texts = [show(values, name) for values in every]
        real = {show(values, f"{name}_real") for values in every}  # one text, unless the data sets differ
        if any(texts):
            cells = [(best if text.split(" ")[0] == winner else plain).format(text) for text in texts]
            rows.append([heading, *cells, real.pop() if len(real) == 1 else ""])
    return format_table(rows, markdown)


def layers_table(by_layer, markdown):
    """Return a line for each number of layers decoded, of {number of layers: {metric: value}}."""
    rows = [["layers", *(METRICS[name].heading for name in BY_LAYER)]]
    rows += [[str(layers), *(show(values, name) for name in BY_LAYER)] for layers, values in by_layer.items()]
    return format_table(rows, markdown)


def report(content):
    """Return what a checkpoint's numbers are numbers of."""
    lines = ["{checkpoint}: {quantizer}, {layers} × {nb_code} codes, "
             "iteration {iteration} ({warm_up} of warm-up)",
             "{dataname} {split} in {data_root}: {clips} clips, {frames} frames; {statistics} mean and std"]
    if "fid" in content["metrics"]:
        lines.append("extractors: {repetitions} × {text_clips} captioned clips in batches of 32, "
                     "diversity over {diversity_pairs} pairs")
    lines = [line.format(**content, **content["metrics"]) for line in lines]
    lines += describe_skipped(content["skipped"])
    return "\n  ".join([*lines, *content["remarks"]])


@exit_cleanly
def main(args):
    """Evaluate the checkpoints. Returns the exit code."""
    contents, files, loaded, code = [], {}, {}, 0
    for path in args.checkpoints:
        contents.append(evaluate(path, args, loaded))
        print(report(contents[-1]), flush=True)
        if args.by_layer:
            print(f"\n{layers_table(contents[-1]['by_layer'], args.markdown)}\n", flush=True)
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        target = args.out_json or os.path.join(folder, f"eval_{args.split}.json")
        same = files.setdefault(target, [])  # checkpoints of one folder share its file, as a list
        same.append(contents[-1])
        try:
            write_json(target, same if len(same) > 1 else same[0])
        except UserError as error:  # the table is printed all the same
            print(f"no JSON written: {error}")
            code = 2 if args.out_json else 0
    missing = list(dict.fromkeys(line for content in contents for line in content["missing"]))
    if missing:
        print(f"  without extractor metrics or captions ({len(missing)}):", *missing[:10], sep="\n    ")
    print(f"\n{results_table(contents, args.markdown)}")
    return code


if __name__ == "__main__":
    sys.exit(main(ARGS))
