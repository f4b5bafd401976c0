"""Motion to codes for a second stage, and codes back to motion.

    python tokenize_vq.py --resume-pth output/VQVAE/net_last.pth --out tokens                # ID.npy of every clip, and a manifest
    python tokenize_vq.py --resume-pth output/VQVAE/net_last.pth --out tokens --split train --min-frames 40 --max-frames 200
    python tokenize_vq.py --resume-pth output/VQVAE/net_last.pth --decode tokens --out motion --to bvh

The files are described in docs/tokens.md. Exit codes: 0 done, 2 a mistake in the input.
"""
from options.option_vq import tokenize_args

if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = tokenize_args()

import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.motion_folder import find_clips, find_data, load_split
from evaluation.evaluate import select_clips
from evaluation.metrics import code_perplexity
from export.clips import plan_outputs, write_motion
from export.tokens import check_output, files_of, read_tokens, rows_of, weights_sha256, write_tokens
from models.batches_old import decode_rows, encode_clips
from models.loading import load_checkpoint, model_file, sha256
from models.vqvae import HumanVQVAE
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.motion_process import describe_statistics

STAGE_TWO_CODES = 50  # T2M-GPT's published block of 51 holds a row and its end token


def describe(net, checkpoint, path):
    """What the manifest says of the checkpoint."""
    return dict(checkpoint=Path(path).resolve().name, checkpoint_sha256=sha256(model_file(path)), weights_sha256=weights_sha256(checkpoint["net"]),
                iteration=checkpoint.get("iter"), dataname=net.spec.name, fps=net.spec.fps, unit_length=2 ** net.down_t, quantizer=net.vqvae.quant,
                nb_code=net.nb_code, code_dim=net.vqvae.code_dim, end_token=net.nb_code, pad_token=net.nb_code + 1)


def pick_splits(root, names):
    """The splits to take: those named, else all, else whichever of train, val and test are there."""
    if names:
        return list(dict.fromkeys(names))
    find_clips(root)
    if Path(root, "all.txt").is_file():
        return ["all"]
    return [name for name in ("train", "val", "test") if Path(root, f"{name}.txt").is_file()] or ["all"]  # which load_split then misses


def tokenize(net, checkpoint, args, device):
    """Encode the clips of the splits, each once, and write their codes."""
    path, unit = args.resume_pth, 2 ** net.down_t
    spec, root, remarks = find_data(path, checkpoint.get("args") or {}, net, args)
    splits, chosen, skipped, taken = pick_splits(root, args.split), [], {}, set()
    for split in splits:
        clips = load_split(root, split, spec, net.mean, net.std, args.skip_bad_clips, cache=not args.no_cache)
        index, starts, lengths, left_out = select_clips(clips, spec, unit, args.min_frames, args.max_frames)
        new = np.array([clips.names[i] not in taken for i in index], bool)
        chosen.append((clips, index[new], starts[new], lengths[new]))
        taken.update(clips.names[i] for i in index)
        for reason, names in [*left_out.items(), *([("cannot be used", clips.bad)] if clips.bad else [])]:
            skipped[reason] = list(dict.fromkeys([*skipped.get(reason, []), *names]))
    ids = [clips.names[i] for clips, index, _, _ in chosen for i in index]
    if not ids:
        raise UserError(f"{root}: no clip to tokenize ({'; '.join(f'{len(names)} {reason}' for reason, names in skipped.items())})")
    check_output(args.out, files_of(ids, args.packed))
    print(f"{path}: {net.vqvae.quant}, {net.nb_code} codes, one for {unit} frames at {spec.fps:g} frames/s\n"
          f"  {spec.name} {' + '.join(splits)} in {root}: {len(ids)} clips, normalised with the {describe_statistics(net.std)}'s kind of std")
    for line in remarks:
        print(f"  {line}")
    for reason, names in skipped.items():
        print(f"  skipped {len(names)} ({reason}): {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")

    frames, rows, begun = sum(int(lengths.sum()) for _, _, _, lengths in chosen), [], time.monotonic()
    with tqdm(total=frames, desc="encode", unit="frame", unit_scale=True, dynamic_ncols=True, disable=None) as bar:
        for clips, index, starts, lengths in chosen:
            rows += encode_clips(net, clips, index, starts, lengths, device, args.batch_size * 128, bar.update)
    seconds = time.monotonic() - begun
    counts = np.bincount(np.concatenate(rows), minlength=net.nb_code)
    use = dict(codes_used=int((counts > 0).sum()), perplexity=code_perplexity(counts))
    manifest = dict(describe(net, checkpoint, path), statistics=describe_statistics(net.std), splits=splits, clips=len(ids), frames=frames,
                    codes=int(counts.sum()), **use, skipped=skipped)
    with tqdm(total=0 if args.packed else len(ids), desc="write", unit="file", dynamic_ncols=True, disable=True if args.packed else None) as bar:
        write_tokens(args.out, ids, rows, manifest, args.packed, bar.update)
    print(f"  encoded {frames:,} frames in {seconds:.1f} s: {counts.sum():,} codes, {use['codes_used']} of {net.nb_code} used, perplexity "
          f"{use['perplexity']:.1f}\n  wrote {'codes.npy and offsets.npy' if args.packed else f'{len(ids)} files'} and manifest.json to {args.out}")
    long = sum(len(row) > STAGE_TWO_CODES for row in rows)
    if long:
        print(f"  longer than the {STAGE_TWO_CODES} codes that T2M-GPT's transformer takes: {long} of {len(rows)} rows; --max-frames 200 leaves such "
              "clips out")


def check_manifest(manifest, net, checkpoint, args):
    """Refuse codes of another network: they would decode without an error into motion that means nothing."""
    here = describe(net, checkpoint, args.resume_pth)
    differing = [f"{name} {manifest.get(name)}, the checkpoint's is {here[name]}" for name in ("dataname", "nb_code", "unit_length")
                 if manifest.get(name) != here[name]]
    differing += ["other weights"] * (manifest.get("weights_sha256") != here["weights_sha256"])
    if differing:
        raise UserError(f"{args.decode}: codes of another checkpoint ({manifest.get('checkpoint')}, iteration {manifest.get('iteration')}): "
                        f"{differing[0]}; decode with that one")


def decode(net, checkpoint, args, device):
    """Decode rows of codes and write each as one file of motion."""
    arrays, files, manifest = read_tokens(args.decode)
    if manifest:
        check_manifest(manifest, net, checkpoint, args)
    if net.mean is None:
        find_data(args.resume_pth, checkpoint.get("args") or {}, net, args)
    rows, sources, empty = {}, {}, []
    for name, array in arrays.items():
        found = rows_of(array, net.nb_code, files[name] if files[name].stem == Path(name).name else f"{files[name]}, {name}")
        for i, row in enumerate(found):
            clip = name if len(found) == 1 else f"{name}_{i}"
            if clip in rows:
                raise UserError(f"{args.decode}: two rows would be called {clip}; rename one of the files")
            if len(row):
                rows[clip], sources[clip] = row, files[name]
            else:
                empty.append(clip)
    if not rows:
        raise UserError(f"{args.decode}: no code before an end token in any of {len(empty)} rows")
    names, targets = list(rows), plan_outputs(args.out, sources, args.to, args.overwrite)
    with tqdm(total=len(rows), desc=f"decode to {args.to}", unit="clip", dynamic_ncols=True, disable=None) as bar:
        for i, features in decode_rows(net, list(rows.values()), device, args.batch_size * 128):
            if not np.isfinite(features).all():
                raise UserError(f"{names[i]}: decodes to NaN or Inf; use an earlier checkpoint")
            write_motion(targets[names[i]], features * np.asarray(net.std) + np.asarray(net.mean), net.spec, args.to)
            bar.update()
    print(f"decoded {len(rows)} rows, {sum(map(len, rows.values())):,} codes of {2 ** net.down_t} frames, into {args.out} as {args.to}")
    if empty:
        print(f"  skipped {len(empty)} (no code before the end token): {', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}")


@exit_cleanly
def main(args):
    """Tokenize or decode as `args` (of the options module) say. Returns the exit code."""
    if not args.decode:
        check_output(args.out)
    device = pick_device(args.device)
    checkpoint = load_checkpoint(args.resume_pth)
    net = HumanVQVAE.from_checkpoint(args.resume_pth, device=device)
    (decode if args.decode else tokenize)(net, checkpoint, args, device)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
