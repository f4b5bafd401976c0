"""Motion to codes for a second stage, and codes back to motion.

    python tokenize_vq.py output/VQVAE/net_last.pth --out tokens        # ID.npy of every clip, and a manifest
    python tokenize_vq.py output/VQVAE/net_last.pth --out tokens --split train --max-frames 200
    python tokenize_vq.py output/VQVAE/net_last.pth --decode tokens --out motion --to bvh

docs/tokens.md describes the files. Exit codes: 0 done, 2 a mistake in the input.
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="tokenize_vq.py", description="Write the codes of the clips of a folder, "
                           "or decode codes. A checkpoint brings its network, data set and statistics.")
    common.add_checkpoint_flags(parser)
    common.add_data_flags(parser, dataname=None)
    common.add_device_flag(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder to write: codes or motion")
    add("--batch-size", type=common.COUNT, default=64, help="clips of 128 frames in a forward pass")
    add = parser.add_argument_group("codes").add_argument
    add("--split", nargs="+", default=None, metavar="NAME",
        help="take the clips of NAME.txt; None: all, or else train, val and test")
    add("--min-frames", type=common.COUNT, default=1,
        help="leave out shorter clips; T2M-GPT takes 40 for t2m, 24 for kit")
    add("--max-frames", type=common.COUNT, default=None,
        help="leave out clips of that many frames or more; T2M-GPT takes 200")
    add = parser.add_argument_group("motion").add_argument
    add("--decode", metavar="PATH", default=None,
        help="decode instead: a folder of codes, a folder of .npy rows, or one such file")
    add("--to", choices=("features", "joints", "gif", "bvh"), default=None,
        help="what to write of each row: an array, a moving picture, or an animation")
    add("--overwrite", action="store_true", help="replace motion that is there already")
    args = parser.parse_args(argv)
    args.checkpoints, low, high = common.given_checkpoints(args), args.min_frames, args.max_frames
    parser.refuse(
        (len(args.checkpoints) != 1, "give one checkpoint: python tokenize_vq.py CHECKPOINT --out DIR"),
        (args.decode and not args.to, "name what to decode to: --to features, joints, gif or bvh"),
        (args.to and not args.decode, "--to acts only with --decode"),
        (high and high <= low, f"--max-frames {high} leaves no clip of --min-frames {low}"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = parse_args()

import sys
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.motion_folder import find_data, load_split
from evaluation.evaluate import select_clips
from evaluation.metrics import code_perplexity
from export.clips import plan_outputs, write_motion
from export.tokens import check_output, read_tokens, rows_of, weights_sha256, write_tokens
from models.batches import decode_rows, encode_clips
from models.vqvae import HumanVQVAE
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.motion_process import describe_statistics

progress = partial(tqdm, dynamic_ncols=True, disable=None)
STAGE_TWO_CODES = 50  # T2M-GPT's published block of 51 holds a row and its end token


def describe(net, path):
    """Return what the manifest says of the network."""
    return dict(checkpoint=Path(path).resolve().name, weights_sha256=weights_sha256(net.state_dict()),
                iteration=net.iteration, dataname=net.spec.name, fps=net.spec.fps,
                unit_length=2 ** net.down_t, quantizer=net.vqvae.quant, nb_code=net.nb_code,
                code_dim=net.vqvae.code_dim, end_token=net.nb_code, pad_token=net.nb_code + 1)


def pick_splits(root, names):
    """Return the splits to take: those named, else all, else whichever of train, val and test are there."""
    there = [name for name in ("train", "val", "test") if Path(root, f"{name}.txt").is_file()]
    if Path(root, "all.txt").is_file() or not there:
        there = ["all"]
    return list(dict.fromkeys(names or there))


def tokenize(net, args):
    """Encode the clips of the splits, each once, and write their codes."""
    path, unit = args.checkpoints[0], 2 ** net.down_t
    spec, root, remarks = find_data(path, net, args)
    splits, codes, skipped = pick_splits(root, args.split), {}, {}
    for split in splits:
        clips = load_split(root, split, spec, net.mean, net.std, args.skip_bad_clips, not args.no_cache)
        index, starts, lengths, left_out = select_clips(clips, spec, unit, args.min_frames, args.max_frames)
        names = [clips.names[i] for i in index]
        codes.update(dict.fromkeys(names))  # in the order of the split
        with progress(total=int(lengths.sum()), desc=f"encode {split}", unit="frame", unit_scale=True) as bar:
            for batch, rows in encode_clips(net, clips, index, starts, lengths, args.batch_size * 128):
                codes.update(zip((names[i] for i in batch), rows))
                bar.update(int(lengths[batch].sum()))
        for reason, names in {**left_out, "cannot be used": clips.bad}.items():
            skipped[reason] = list(dict.fromkeys([*skipped.get(reason, []), *names]))
        remarks += [clips.warning] if clips.warning else []
    remarks += [f"skipped {len(names)} ({reason}): {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
                for reason, names in skipped.items() if names]
    if not codes:
        raise UserError(f"{root}: no clip to tokenize in {', '.join(splits)}; {remarks[-1][:80]}")
    counts = np.bincount(np.concatenate(list(codes.values())), minlength=net.nb_code)
    total, used, perplexity = int(counts.sum()), int((counts > 0).sum()), code_perplexity(counts)
    write_tokens(args.out, codes, dict(
        describe(net, path), statistics=describe_statistics(net.std), splits=splits, clips=len(codes),
        frames=total * unit, codes=total, codes_used=used, perplexity=perplexity,
        skipped={reason: names for reason, names in skipped.items() if names}))
    long = sum(len(row) > STAGE_TWO_CODES for row in codes.values())
    print(f"{path}: {net.vqvae.quant}, {net.nb_code} codes, one for {unit} frames at {spec.fps:g} frames/s",
          f"{spec.name} {' + '.join(splits)} in {root}: {len(codes)} clips", *net.remarks, *remarks,
          f"{total:,} codes, {used} of {net.nb_code} used, perplexity {perplexity:.1f}",
          f"{long} of {len(codes)} rows are longer than the {STAGE_TWO_CODES} codes of T2M-GPT's transformer",
          f"wrote {len(codes)} files and manifest.json to {args.out}", sep="\n  ")


def check_manifest(manifest, net, args):
    """Raise UserError for codes of another network: they would decode into motion without meaning."""
    here = describe(net, args.checkpoints[0])
    for name in ("dataname", "nb_code", "unit_length", "weights_sha256"):
        if manifest.get(name) != here[name]:
            other = f"{manifest.get('checkpoint')} at iteration {manifest.get('iteration')}"
            raise UserError(f"{args.decode}: codes of {other}, which has another {name}; decode with it")


def decode(net, args):
    """Decode rows of codes and write each as one file of motion."""
    arrays, files, manifest = read_tokens(args.decode)
    if manifest:
        check_manifest(manifest, net, args)
    remarks = find_data(args.checkpoints[0], net, args)[2] if net.mean is None else []
    rows, sources, empty = {}, {}, []
    for name, array in arrays.items():
        found = rows_of(array, net.nb_code, files[name], (manifest or {}).get("rows", 1))
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
    with progress(total=len(rows), desc="decode", unit="clip") as bar:
        for batch, features in decode_rows(net, list(rows.values()), args.batch_size * 128):
            for i, motion in zip(batch, features):
                if not np.isfinite(motion).all():
                    raise UserError(f"{names[i]}: decodes to NaN or Inf; use an earlier checkpoint")
                write_motion(targets[names[i]], motion * net.std + net.mean, net.spec, args.to)
                bar.update()
    print(f"decoded {len(rows)} rows, {sum(map(len, rows.values())):,} codes, into {args.out} as {args.to}",
          *net.remarks, *remarks, sep="\n  ")
    if empty:
        print(f"  skipped {len(empty)} (no code before the end token): {', '.join(empty[:5])}")


@exit_cleanly
def main(args):
    """Tokenize or decode. Returns the exit code."""
    if not args.decode:
        check_output(args.out)
    device = pick_device(args.device)
    net = HumanVQVAE.from_checkpoint(args.checkpoints[0], device, **common.network_overrides(args))
    (decode if args.decode else tokenize)(net, args)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
