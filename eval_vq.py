"""Evaluate checkpoints of the motion VQ-VAE on a split.

    python eval_vq.py output/VQVAE/net_last.pth --split test
    python eval_vq.py output/*/net_last.pth --split test --markdown  # one table, the best marked
    python eval_vq.py output/VQVAE/net_last.pth --repeat 20             # 95 % intervals, with the extractors

Prints a table and writes eval_SPLIT.json beside each checkpoint. docs/evaluation.md defines each number.
Exit codes: 0 done, 2 a mistake in the input.
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="eval_vq.py", description="Evaluate checkpoints on a split; several give one "
                           "table. A checkpoint brings its own network, data set and statistics.")
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
    add = parser.add_argument_group("output").add_argument
    add("--breakdown", action="store_true", help="also print errors by joint and caption verb")
    add("--markdown", action="store_true", help="print the tables as Markdown")
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
from pathlib import Path

import numpy as np

from dataset.dataset_TM_eval import draw, load_captioned, verbs_of_clips
from dataset.motion_folder import find_data, load_split
from evaluation.evaluate import CLIP_METRICS, METRICS, break_down, evaluate_clips
from evaluation.text import evaluate_text
from models.evaluator_wrapper import find_missing, load_extractors
from models.vqvae import HumanVQVAE
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.motion_process import describe_statistics


def evaluate(path, args, loaded):
    """Evaluate one checkpoint. Returns the content of its JSON; loaded: extractors in use, {data set: …}."""
    net = HumanVQVAE.from_checkpoint(path, pick_device(args.device), **common.network_overrides(args))
    spec, root, remarks = find_data(path, net, args)
    clips = load_split(root, args.split, spec, net.mean, net.std, args.skip_bad_clips, not args.no_cache)
    batch_frames, loss = args.batch_size * 128, net.recipe.get("recons_loss", "l1_smooth")
    result = evaluate_clips(net, clips, full=True, loss=loss, batch_frames=batch_frames)
    joints, per_clip, skipped, _ = (result.pop(name) for name in ("joints", "per_clip", "skipped", "counts"))
    if clips.bad:
        skipped["cannot be used"] = clips.bad
    if spec.name not in loaded:
        folder, glove, missing = find_missing(spec, args.evaluator_dir, args.glove_dir)
        loaded[spec.name] = None if missing else load_extractors(spec, folder, glove), missing
    extractors, missing = loaded[spec.name]
    if extractors:
        captioned = load_captioned(clips, Path(root, "texts"), spec, extractors.vectorizer)
        missing = captioned.problems[:10]
        missing += [f"and {len(captioned.problems) - 10} more"] * (len(captioned.problems) > 10)
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
        dataname=spec.name, quantizer=net.vqvae.quant, nb_code=net.nb_code, split=args.split,
        data_root=str(root), statistics=describe_statistics(net.std), clips=result.pop("clips"),
        frames=result.pop("frames"), skipped=skipped, remarks=remarks, missing=missing, metrics=result)
    if args.breakdown:
        content["joints"] = {name: dict(mpjpe=a, mpjpe_global=g) for name, (a, g) in joints.items()}
        content["verbs"] = break_down(per_clip, verbs_of_clips(per_clip, Path(root, "texts")))
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


def single_table(content, markdown):
    """Return the numbers of one checkpoint, a line each, reconstructed beside real motion."""
    values = content["metrics"]
    rows = [[metric.heading, show(values, name), show(values, f"{name}_real")]
            for name, metric in METRICS.items() if name in values]
    return format_table([["metric", "reconstructed", "real"], *rows], markdown)


def comparison_table(contents, markdown):
    """Return the numbers of several checkpoints side by side, the best marked, beside the real motion's."""
    every, plain, best = [content["metrics"] for content in contents], "{}  ", "{} *"
    if markdown:
        plain, best = "{}", "**{}**"
    names = ["/".join(Path(content["checkpoint"]).parts[-2:]) for content in contents]
    columns = [["checkpoint", *names, "real motion"],
               ["quantizer", *(content["quantizer"] for content in contents), ""],
               ["iteration", *(str(content["iteration"] or "") for content in contents), ""]]
    for name, (heading, digits, better, _) in METRICS.items():
        numbers = [values[name] for values in every if math.isfinite(values.get(name, math.nan))]
        winner = f"{(max if better > 0 else min)(numbers):.{digits}f}" if better and numbers else None
        texts = [show(values, name) for values in every]
        real = {show(values, f"{name}_real") for values in every}  # one text, unless the data sets differ
        if any(texts):
            cells = [(best if text.split(" ")[0] == winner else plain).format(text) for text in texts]
            columns.append([heading, *cells, plain.format(real.pop() if len(real) == 1 else "")])
    if markdown:
        return format_table(list(zip(*columns)), markdown)
    return format_table(columns, markdown) + "\n* the best"


def report(content):
    """Return what a checkpoint's numbers are numbers of."""
    about = {**content, **content["metrics"]}
    about["warm_up"] = f" ({content['warm_up']} of warm-up)" if content["warm_up"] else ""
    lines = ["{checkpoint}: {quantizer}, {nb_code} codes, iteration {iteration}{warm_up}",
             "  {dataname} {split} in {data_root}: {clips} clips, {frames} frames; {statistics} mean and std"]
    if "fid" in about:
        lines.append("  extractors: {repetitions} × {text_clips} captioned clips in batches of 32, "
                     "diversity over {diversity_pairs} pairs")
    lines = [line.format(**about) for line in lines]
    lines += [f"  skipped {len(names)} ({reason}): {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
              for reason, names in content["skipped"].items()]
    return "\n".join([*lines, *(f"  {remark}" for remark in content["remarks"])])


def breakdown_tables(content, markdown):
    """Return the errors of each joint, and of the clips of each caption verb."""
    joints = [["joint", *(METRICS[name].heading for name in CLIP_METRICS[1:])]]
    joints += [[joint, *(show(row, name) for name in CLIP_METRICS[1:])]
               for joint, row in content["joints"].items()]
    verbs = [["caption verb", "clips", *(METRICS[name].heading for name in CLIP_METRICS)]]
    verbs += [[verb, str(row["clips"]), *(show(row, name) for name in CLIP_METRICS)]
              for verb, row in content["verbs"].items()]
    return "\n\n".join(format_table(table, markdown) for table in (joints, verbs) if len(table) > 1)


@exit_cleanly
def main(args):
    """Evaluate the checkpoints. Returns the exit code."""
    contents, files, loaded, unwritten = [], {}, {}, []
    for path in args.checkpoints:
        contents.append(evaluate(path, args, loaded))
        print(report(contents[-1]), flush=True)
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        target = args.out_json or os.path.join(folder, f"eval_{args.split}.json")
        same = files.setdefault(target, [])  # checkpoints of one folder share its file, as a list
        same.append(contents[-1])
        try:
            write_json(target, same if len(same) > 1 else same[0])
        except UserError as error:  # the table is printed all the same
            unwritten.append(str(error))
    missing = list(dict.fromkeys(line for content in contents for line in content["missing"]))
    if missing:
        text = any("fid" in content["metrics"] for content in contents)
        print(f"  {'remarks on captions' if text else 'no extractor metrics'}:", *missing, sep="\n    ")
    one = len(contents) == 1
    print()
    print(single_table(contents[0], args.markdown) if one else comparison_table(contents, args.markdown))
    for content in contents if args.breakdown else ():
        print(f"\n{content['checkpoint']}\n\n{breakdown_tables(content, args.markdown)}")
    for line in unwritten:
        print(f"no JSON written: {line}")
    return 2 if unwritten and args.out_json else 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
