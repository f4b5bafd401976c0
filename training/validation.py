"""Metrics of the validation split while a run trains."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataset.dataset_TM_eval import BATCH, draw, load_captioned
from dataset.motion_folder import load_split
from evaluation.evaluate import evaluate_clips, select_clips
from evaluation.metrics import code_perplexity
from evaluation.text import evaluate_text
from models.evaluator_wrapper import find_missing, load_extractors
from utils.motion_spec import MAX_EVAL_FRAMES


def load_validation(args, root, net, log):
    """Return the val split: its `clips` and, where there are `extractors`, its `captioned` clips.

    Returns None, and says why in the log, where there is no clip to evaluate.
    """
    spec, split, clips = net.spec, Path(root, "val.txt"), None
    if split.exists():
        clips = load_split(root, "val", spec, net.mean, net.std, args.skip_bad_clips)
    if clips is None or not len(select_clips(clips, spec)[0]):
        log.warning(f"No validation: {split} is missing or has no clip of "
                    f"{spec.min_eval_frames} to {MAX_EVAL_FRAMES - 1} frames.")
        return None
    folder, glove, missing = find_missing(spec, args.evaluator_dir, args.glove_dir)
    if not missing:
        extractors = load_extractors(spec, folder, glove)
        captioned = load_captioned(clips, Path(root, "texts"), spec, extractors.vectorizer)
        if len(captioned.clip) >= BATCH:
            return SimpleNamespace(clips=clips, extractors=extractors, captioned=captioned)
        missing = [f"under {BATCH} captioned clips"]
    log.info(f"Validation without FID and R-precision: {missing[0]}")
    return SimpleNamespace(clips=clips, extractors=None)


def validate(net, val, step, args):
    """Return the metrics of the validation split, over all ranks; of residual codes also layer by layer."""
    result = evaluate_clips(net, val.clips, loss=args.recons_loss)
    layers = net.vqvae.quantizer.num_layers
    for q, counts in enumerate(result["counts"] if layers > 1 else (), 1):
        part = result if q == layers else evaluate_clips(net, val.clips, loss=args.recons_loss, layers=q)
        result[f"MPJPE_of_{q}_layers"] = part["mpjpe"]
        result[f"Perplexity_layer_{q}"] = code_perplexity(counts)
        result[f"Codes_used_layer_{q}"] = int(np.count_nonzero(counts))
    if val.extractors:
        draws = [draw(val.captioned, np.random.default_rng([args.seed, step]))]
        result.update(evaluate_text(net, val.clips, val.captioned, draws, val.extractors, args.seed))
    return result


def best_scores(result):
    """Return {name: score}, smaller is better: net_best_NAME.pth holds the smallest."""
    scores = {"mpjpe": result["mpjpe"]}
    if "fid" in result:
        scores.update(fid=result["fid"], div=abs(result["diversity"] - result["diversity_real"]),
                      top1=-result["top1"], matching=result["matching_score"])
    return scores
