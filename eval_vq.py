"""Evaluate checkpoints of the motion VQ-VAE on a split.

    python eval_vq.py output/VQVAE/net_last.pth --split test
    python eval_vq.py output/*/net_last.pth --split test --markdown     # one table, the best of each column marked
    python eval_vq.py output/VQVAE/net_last.pth --repeat 20             # 95 % intervals, where the extractors are there

Prints a table and writes eval_SPLIT.json beside each checkpoint. What each number is: docs/evaluation.md.
Exit codes: 0 done, 2 a mistake in the input.
"""
from options.option_vq import eval_args

if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = eval_args()

import math
import os
import sys
from pathlib import Path

import numpy as np

from dataset.dataset_TM_eval import draw, load_captioned, verbs_of_clips
from dataset.motion_folder import find_data, load_split
from evaluation.evaluate import CLIP_METRICS, break_down, evaluate_clips
from evaluation.text import evaluate_text
from models.evaluator_wrapper import find_missing, load_extractors
from models.loading import load_checkpoint
from models.vqvae import HumanVQVAE
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.files import write_json
from utils.motion_process import describe_statistics

# metric → (heading with unit, digits, which is better: -1 less, 1 more, 0 neither)
COLUMNS = {
    "recons": ("recons loss", 4, -1), "mpjpe": ("MPJPE root-aligned mm", 2, -1), "mpjpe_global": ("MPJPE global mm", 1, -1),
    "pa_mpjpe": ("PA-MPJPE mm", 2, -1), "velocity_error": ("velocity error mm/frame", 2, -1),
    "acceleration_error": ("acceleration error mm/frame²", 2, -1), "root_drift": ("root drift mm", 1, -1),
    "jerk": ("jerk mm/frame³", 2, 0), "jerk_real": ("jerk, real", 2, 0),
    "skating": ("skating, share of contacts", 3, -1), "skating_real": ("skating, real", 3, 0),
    "slide": ("foot slide mm/frame", 2, -1), "slide_real": ("foot slide, real", 2, 0), "penetration": ("penetration mm", 2, -1),
    "penetration_real": ("penetration, real", 2, 0), "kinetic_frechet": ("kinetic Fréchet (no extractor)", 3, -1),
    "codes_used": ("codes used", 0, 1), "dead_codes": ("dead codes", 0, -1), "perplexity": ("perplexity", 1, 1),
    "bits_per_second": ("bits/s", 1, 0), "entropy_bits_per_second": ("bits/s, entropy", 1, 0),
    "fid": ("FID", 4, -1), "diversity": ("diversity", 3, 0), "diversity_real": ("diversity, real", 3, 0),
    "top1": ("top 1", 3, 1), "top2": ("top 2", 3, 1), "top3": ("top 3", 3, 1), "matching_score": ("matching score", 3, -1),
    "top1_real": ("top 1, real", 3, 0), "top2_real": ("top 2, real", 3, 0), "top3_real": ("top 3, real", 3, 0),
    "matching_score_real": ("matching score, real", 3, 0),
}
COMPARED = [name for name in COLUMNS if not name.endswith("_real") and name not in ("bits_per_second", "dead_codes")]


def evaluate(path, args, device, extractors_of):
    """One checkpoint → the content of its eval_SPLIT.json. `extractors_of(spec)` → (extractors or None, what is missing)."""
    checkpoint = load_checkpoint(path)
    saved = checkpoint.get("args") or {}
    net = HumanVQVAE.from_checkpoint(path, device=device)
    spec, root, remarks = find_data(path, saved, net, args)
    clips = load_split(root, args.split, spec, net.mean, net.std, args.skip_bad_clips, cache=not args.no_cache)
    batch_frames = args.batch_size * 128
    result = evaluate_clips(net, clips, spec, net.mean, net.std, device, full=True, loss=saved.get("recons_loss", "l1_smooth"),
                            batch_frames=batch_frames)
    joints, per_clip, skipped, _ = (result.pop(name) for name in ("joints", "per_clip", "skipped", "counts"))
    if clips.bad:
        skipped["cannot be used"] = clips.bad
    extractors, missing = extractors_of(spec)
    if extractors:
        captioned = load_captioned(clips, Path(root, "texts"), spec, extractors.vectorizer)
        missing = captioned.problems[:10] + [f"and {len(captioned.problems) - 10} more"] * (len(captioned.problems) > 10)
        draws = [draw(captioned, np.random.default_rng([args.seed, r, 1])) for r in range(args.repeat)]
        try:
            result.update(evaluate_text(net, clips, captioned, draws, extractors, net.mean, net.std, args.seed, device, batch_frames))
            if extractors.mean is None:
                remarks.append("no mean and std beside the extractors: they see the checkpoint's normalisation, "
                               f"of the {describe_statistics(net.std)}'s kind")
        except UserError as error:
            missing.append(str(error))
    groups = verbs_of_clips(per_clip, Path(root, "texts")) if args.breakdown else {}
    content = dict(checkpoint=str(path), iteration=checkpoint.get("iter"), warm_up=max(saved.get("warm_up_iter", 0) - 1, 0), dataname=spec.name,
                   quantizer=net.vqvae.quant, nb_code=net.nb_code, split=args.split, data_root=str(root),
                   statistics=describe_statistics(net.std), clips=result.pop("clips"), frames=result.pop("frames"), skipped=skipped,
                   remarks=remarks, missing=missing, metrics=result)
    if args.breakdown:
        content.update(joints={name: dict(mpjpe=a, mpjpe_global=g) for name, (a, g) in joints.items()}, verbs=break_down(per_clip, groups))
    return content


def show(value, name, intervals=None):
    """A metric as text, with its 95 % interval where there is one."""
    digits = COLUMNS[name][1]
    text = f"{value:.{digits}f}"
    return f"{text} ± {intervals[name]:.{digits}f}" if intervals and name in intervals else text


def format_table(rows, markdown):
    """Rows of cells, the first being the heading, as aligned text or Markdown lines; the first column is a name, the others are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))] for row in rows]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def single_table(content, markdown):
    """The numbers of one checkpoint: a line per metric, reconstructed beside real where both are measured."""
    values = content["metrics"]
    intervals = values.get("intervals") if values.get("repetitions", 1) > 1 else None
    rows = [["metric", "reconstructed", "real"]]
    for name, (heading, _, _) in COLUMNS.items():
        if name in values and not name.endswith("_real"):
            real = f"{name}_real"
            rows.append([heading, show(values[name], name, intervals), show(values[real], real, intervals) if real in values else ""])
    return format_table(rows, markdown)


def comparison_table(contents, markdown):
    """The numbers of several checkpoints: a row each, the best of each column marked."""
    names = [name for name in COMPARED if any(name in content["metrics"] for content in contents)]
    labels = _labels(contents)
    rows = [["checkpoint", "quantizer", "iteration", *(COLUMNS[name][0] for name in names)]]
    best = {}
    for name in names:
        values = [content["metrics"][name] for content in contents if math.isfinite(content["metrics"].get(name, math.nan))]
        sign = COLUMNS[name][2]
        best[name] = show(sign * max(sign * value for value in values), name) if sign and values else None
    for label, content in zip(labels, contents):
        values, row = content["metrics"], [label, content["quantizer"], str(content["iteration"] or "")]
        intervals = values.get("intervals") if values.get("repetitions", 1) > 1 else None
        for name in names:
            text = show(values[name], name, intervals) if name in values else ""
            marked = name in values and show(values[name], name) == best[name]
            row.append(f"**{text}**" if marked and markdown else f"{text} *" if marked else text if markdown else f"{text}  ")
        rows.append(row)
    real = [[show(content["metrics"][f"{name}_real"], name) if f"{name}_real" in content["metrics"] else "" for name in names]
            for content in contents]
    if any(real[0]) and all(row == real[0] for row in real):  # one data set: what its real motion measures
        rows.append(["real motion", "", "", *(text if markdown or not text else f"{text}  " for text in real[0])])
    return format_table(rows, markdown) if markdown else format_table(_turned(rows), False) + "\n* the best"


def _turned(rows):
    """Columns as rows: a terminal is narrow, and metrics are many."""
    return [[row[i] if i else row[0] for row in rows] for i in range(len(rows[0]))]


def _labels(contents):
    """Names of the checkpoints without the folders that all of them share."""
    parts = [Path(content["checkpoint"]).absolute().parts for content in contents]
    shared = next((i for i, level in enumerate(zip(*parts)) if len(set(level)) > 1), 0)
    names = [list(part[shared:]) for part in parts]
    if all(name[-1] == names[0][-1] and len(name) > 1 for name in names):  # OUT/RUN/net_last.pth each: the run is the name
        names = [name[:-1] for name in names]
    return ["/".join(name) for name in names]


def report(content, markdown):
    """What a checkpoint's numbers are numbers of."""
    iteration = "unknown" if content["iteration"] is None else content["iteration"]
    iteration = f"{iteration} ({content['warm_up']} of warm-up)" if content["warm_up"] else iteration
    lines = [f"{content['checkpoint']}: {content['quantizer']}, {content['nb_code']} codes, iteration {iteration}",
             f"  {content['dataname']} {content['split']} in {content['data_root']}: {content['clips']} clips, {content['frames']} frames; "
             f"normalised with the {content['statistics']}'s kind of std"]
    lines += [f"  skipped {len(names)} ({reason}): {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
              for reason, names in content["skipped"].items()]
    lines += [f"  {remark}" for remark in content["remarks"]]
    values = content["metrics"]
    if "fid" in values:
        lines.append(f"  extractors: {values['repetitions']} × {values['text_clips']} captioned clips in batches of 32, diversity over "
                     f"{values['diversity_pairs']} pairs" + (", ± the 95 % interval" if values["repetitions"] > 1 else ""))
    return "\n".join(line.replace("\n", " ") for line in lines) + ("\n" if markdown else "")


def breakdown_tables(content, markdown):
    """Errors of each joint, and of the clips of each caption verb."""
    joints = [["joint", "MPJPE root-aligned mm", "MPJPE global mm"]]
    joints += [[name, f"{row['mpjpe']:.2f}", f"{row['mpjpe_global']:.1f}"] for name, row in content["joints"].items()]
    verbs = [["caption verb", "clips", *(COLUMNS[name][0] for name in CLIP_METRICS)]]
    verbs += [[verb, str(row["clips"]), *(show(row[name], name) for name in CLIP_METRICS)] for verb, row in content["verbs"].items()]
    return "\n\n".join(format_table(table, markdown) for table in (joints, verbs) if len(table) > 1)


@exit_cleanly
def main(args):
    """Evaluate as `args` (of the options module) say. Returns the exit code."""
    device, loaded = pick_device(args.device), {}

    def extractors_of(spec):
        if spec.name not in loaded:
            folder, glove, missing = find_missing(spec, args.evaluator_dir, args.glove_dir)
            loaded[spec.name] = (None if missing else load_extractors(spec, folder, glove)), missing
        return loaded[spec.name]

    contents, files = [], {}
    if args.out_json and not os.path.isdir(os.path.dirname(args.out_json) or "."):
        raise UserError(f"{args.out_json}: cannot be written (no such folder); name another file with --out-json")
    for path in args.checkpoints:
        contents.append(evaluate(path, args, device, extractors_of))
        print(report(contents[-1], args.markdown), flush=True)
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        target = args.out_json or os.path.join(folder, f"eval_{args.split}.json")
        files.setdefault(target, []).append(contents[-1])
        try:  # after each, so that nothing measured is lost; several checkpoints of one folder share its file, as a list
            write_json(target, contents[-1] if len(files[target]) == 1 else files[target])
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror}); name another file with --out-json") from None
    missing = list(dict.fromkeys(line for content in contents for line in content["missing"]))
    if missing:
        print(f"  {'remarks on captions' if any('fid' in content['metrics'] for content in contents) else 'no extractor metrics'}:")
        print("\n".join(f"    {line}" for line in missing))
    print()
    print(single_table(contents[0], args.markdown) if len(contents) == 1 else comparison_table(contents, args.markdown))
    if args.breakdown:
        for content in contents:
            print(f"\n{content['checkpoint']}\n\n{breakdown_tables(content, args.markdown)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
