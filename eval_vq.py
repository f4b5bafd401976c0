"""Evaluate checkpoints on a split: a table, and eval_SPLIT.json beside each (docs/evaluation.md).

    python eval_vq.py output/VQVAE/net_last.pth --split test
    python eval_vq.py output/* --markdown               # one table, the best marked
    python eval_vq.py output/residual --by-layer        # decoded from 1, 2, … layers of residual codes
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="eval_vq.py", description="Evaluate checkpoints on a split, in one table.")
    common.add_checkpoint_flags(parser, several=True)
    common.add_data_flags(parser, dataname=None)
    common.add_extractor_flags(parser)
    add = parser.add_argument_group("evaluation").add_argument
    add("--split", default="test", metavar="NAME", help="evaluate the clips of NAME.txt")
    add("--repeat", type=common.COUNT, default=1, help="draws for the extractors; published tables use 20")
    add("--seed", type=common.SEED, default=123, help="random seed of these draws")
    add("--breakdown", action="store_true", help="add the errors of each joint to the JSON")
    add("--by-layer", action="store_true", help="also decode residual codes from 1, 2, … layers")
    add("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    args.checkpoints = common.given_checkpoints(args)
    parser.refuse((not args.checkpoints, "no checkpoint given: python eval_vq.py output/VQVAE/net_last.pth"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = parse_args()

import functools
import sys
from pathlib import Path

import numpy as np

from dataset.dataset_TM_eval import draw, load_captioned
from dataset.motion_folder import find_data, load_split
from evaluation.evaluate import METRICS, describe_skipped, evaluate_clips
from evaluation.text import evaluate_text
from models.evaluator_wrapper import find_missing, load_extractors
from models.vqvae import HumanVQVAE
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.motion_process import describe_statistics

load_once = functools.cache(load_extractors)  # every checkpoint of one data set has the same


def evaluate(path, args):
    """Evaluate one checkpoint. Returns the content of its JSON."""
    net = HumanVQVAE.from_checkpoint(path, args.device, **common.network_overrides(args))
    layers = net.vqvae.quantizer.num_layers
    if args.by_layer and layers == 1:
        raise UserError(f"{path}: {net.vqvae.quant} has a single layer; --by-layer needs residual codes")
    spec, root, remarks = find_data(path, net, args)
    clips = load_split(root, args.split, spec, net.mean, net.std, args.skip_bad_clips)
    loss = net.recipe.get("recons_loss", "l1_smooth")
    results = [evaluate_clips(net, clips, full=True, loss=loss, layers=q)
               for q in (*range(1, layers if args.by_layer else 0), None)]
    for part in results:
        facts = {name: part.pop(name) for name in ("clips", "frames", "skipped")}
        joints, _ = part.pop("joints"), part.pop("counts")
    if args.breakdown:
        facts["joints"] = joints
    folder, glove, missing = find_missing(spec, args.evaluator_dir, args.glove_dir)
    if not missing:
        extractors = load_once(spec, folder, glove)
        captioned = load_captioned(clips, Path(root, "texts"), spec, extractors.vectorizer)
        missing = captioned.problems
        draws = [draw(captioned, np.random.default_rng([args.seed, r, 1])) for r in range(args.repeat)]
        try:
            results[-1].update(evaluate_text(net, clips, captioned, draws, extractors, args.seed))
        except UserError as error:  # the other numbers stand
            missing.append(str(error))
        if extractors.mean is None:
            remarks.append("no mean and std beside the extractors: they see the checkpoint's normalisation")
    return dict(
        checkpoint=str(path), iteration=net.iteration, warm_up=max(net.recipe.get("warm_up_iter", 0) - 1, 0),
        dataname=spec.name, quantizer=net.vqvae.quant, layers=layers, nb_code=net.nb_code, split=args.split,
        data_root=str(root), statistics=describe_statistics(net.std), **facts, missing=missing,
        remarks=[*net.remarks, *remarks, *filter(None, [clips.warning])], metrics=results[-1],
        **({"by_layer": dict(enumerate(results, 1))} if args.by_layer else {}))


def show(values, key):
    """Return a number as text, with its 95 % interval where there is one; "" for a number not measured."""
    digits = METRICS[key.removesuffix("_real")].digits
    numbers = [values.get(key), values["intervals"].get(key) if values.get("repetitions", 1) > 1 else None]
    return " ± ".join(f"{number:.{digits}f}" for number in numbers if number is not None)


def format_table(names, every, markdown):
    """Return a line for each metric of the results `every`, the best marked, and of the real motion."""
    several = len(names) > 1
    plain, best = ("{}", "**{}**") if markdown else ("{}  ", "{} *") if several else ("{}", "{}")
    rows = [["metric", *names, "real motion"]]
    for name, (heading, _, better, _) in METRICS.items():
        texts = [show(values, name) for values in every]
        scores = [better * float((text or "nan").split()[0]) for text in texts]
        real = {show(values, f"{name}_real") for values in every}  # one text, unless the data sets differ
        if any(texts):
            marked = [several and better and score == np.nanmax(scores) for score in scores]
            cells = [(best if mark else plain).format(text) for text, mark in zip(texts, marked)]
            rows.append([heading, *cells, real.pop() if len(real) == 1 else ""])
    widths = [max(map(len, column)) for column in zip(*rows)]
    if markdown:
        rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" if markdown else "  ".join(line).rstrip() for line in lines)


def report(content):
    """Return what a checkpoint's numbers are numbers of."""
    lines = ["{checkpoint}: {quantizer}, {layers} × {nb_code} codes",
             "iteration {iteration}, after {warm_up} of warm-up; {statistics} mean and std",
             "{dataname} {split} in {data_root}: {clips} clips, {frames} frames"]
    if "fid" in content["metrics"]:
        lines.append("extractors: {repetitions} × {text_clips} captioned clips in batches of 32")
    lines = [line.format(**content, **content["metrics"]) for line in lines]
    return "\n  ".join([*lines, *describe_skipped(content["skipped"]), *content["remarks"]])


@exit_cleanly
def main(args):
    """Evaluate the checkpoints. Returns the exit code."""
    contents, files = [], {}
    for path in args.checkpoints:
        content = evaluate(path, args)
        contents.append(content)
        print(report(content), flush=True)
        if args.by_layer:
            names = [f"{q} layer{'s' * (q > 1)}" for q in content["by_layer"]]
            print(f"\n{format_table(names, content['by_layer'].values(), args.markdown)}\n", flush=True)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        same = files[folder] = [*files.get(folder, []), content]  # checkpoints of one folder share its file
        try:
            write_json(folder / f"eval_{args.split}.json", same if len(same) > 1 else content)
        except UserError as error:  # the table is printed all the same
            print(f"no JSON written: {error}")
    missing = list(dict.fromkeys(line for content in contents for line in content["missing"]))
    if missing:
        print(f"  without extractor metrics or captions ({len(missing)}):", *missing[:10], sep="\n    ")
    names = ["/".join(Path(content["checkpoint"]).parts[-2:]) for content in contents]
    print(f"\n{format_table(names, [content['metrics'] for content in contents], args.markdown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
