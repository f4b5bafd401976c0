"""Motion to codes for a second stage, and codes back to motion.

    python tokenize_vq.py output/VQVAE/net_last.pth --out tokens        # ID.npy of every clip, and a manifest
    python tokenize_vq.py output/VQVAE/net_last.pth --decode tokens --out motion --to bvh

docs/export.md describes the files. Exit codes: 0 done, 2 a mistake in the input.
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="tokenize_vq.py", description="Write the codes of clips, or decode codes.")
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
    add("--layers", type=common.COUNT, default=None,
        help="write the first layers of residual codes; None: all; 1: what T2M-GPT's second stage reads")
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
        (args.layers and args.decode, "--layers acts only on codes that are written, not with --decode"),
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
from evaluation.evaluate import describe_skipped, select_clips
from evaluation.metrics import code_perplexity
from export.clips import plan_outputs, write_motion
from export.tokens import check_output, read_tokens, rows_of, weights_sha256, write_tokens
from models.batches import decode_rows, encode_clips
from models.vqvae import HumanVQVAE
from utils.device import pick_device
from utils.errors import UserError, exit_cleanly
from utils.motion_process import describe_statistics

progress = partial(tqdm, unit="batch", dynamic_ncols=True, disable=None)


def describe(net, path):
    """Return what the manifest says of the network and the layers of its codes."""
    return dict(checkpoint=Path(path).resolve().name, weights_sha256=weights_sha256(net.state_dict()),
                iteration=net.iteration, dataname=net.spec.name, fps=net.spec.fps,
                unit_length=2 ** net.down_t, quantizer=net.vqvae.quant, nb_code=net.nb_code,
                layers=net.vqvae.quantizer.num_layers,
                code_dim=net.vqvae.code_dim, end_token=net.nb_code, pad_token=net.nb_code + 1)


def tokenize(net, args):
    """Encode the clips of the splits, each once, and write their codes."""
    path, unit, codes, skipped = args.checkpoints[0], 2 ** net.down_t, {}, {}
    if (layers := args.layers or net.vqvae.quantizer.num_layers) > net.vqvae.quantizer.num_layers:
        raise UserError(f"{path}: has {net.vqvae.quantizer.num_layers} layers of codes, not {layers}")
    spec, root, remarks = find_data(path, net, args)
    there = [name for name in ("all", "train", "val", "test") if Path(root, f"{name}.txt").is_file()]
    splits = args.split or (["all"] if "all" in there or not there else there)
    for split in splits:
        clips = load_split(root, split, spec, net.mean, net.std, args.skip_bad_clips, not args.no_cache)
        index, starts, lengths, left_out = select_clips(clips, spec, unit, args.min_frames, args.max_frames)
        names = [clips.names[i] for i in index]
        codes.update(dict.fromkeys(names))  # in the order of the split
        batches = encode_clips(net, clips, index, starts, lengths, args.batch_size * 128)
        for batch, rows in progress(batches, desc=f"encode {split}"):
            kept = rows if rows.ndim == 2 else rows[..., 0] if layers == 1 else rows[..., :layers]
            codes.update(zip((names[i] for i in batch), kept))
        for reason, names in {**left_out, "cannot be used": clips.bad}.items():
            if names:
                skipped[reason] = list(dict.fromkeys([*skipped.get(reason, []), *names]))
        remarks += [clips.warning] if clips.warning else []
    remarks += describe_skipped(skipped)
    if not codes:
        raise UserError(f"{root}: no clip to tokenize in {', '.join(splits)}; {remarks[-1][:80]}")
    every = np.concatenate(list(codes.values())).reshape(-1, layers)
    counts = np.stack([np.bincount(column, minlength=net.nb_code) for column in every.T])
    total, used = every.size, int((counts > 0).sum())
    perplexity = float(np.mean([code_perplexity(row) for row in counts]))
    write_tokens(args.out, codes, dict(
        describe(net, path), layers=layers, statistics=describe_statistics(net.std), splits=splits,
        clips=len(codes), frames=len(every) * unit, codes=total, codes_used=used, perplexity=perplexity,
        skipped=skipped))
    print(f"{path}: {net.vqvae.quant}, {layers} × {net.nb_code} codes, one for {unit} frames "
          f"at {spec.fps:g} frames/s",
          f"{spec.name} {' + '.join(splits)} in {root}: {len(codes)} clips", *net.remarks, *remarks,
          f"{total:,} codes, {used} of {counts.size} used, perplexity {perplexity:.1f}",
          f"wrote {len(codes)} files and manifest.json to {args.out}", sep="\n  ")


def read_rows(net, args):
    """Read rows of codes of this network: ({name: (T',), residual (T', q)}, {name: its file})."""
    arrays, files, manifest = read_tokens(args.decode)
    here, rows, sources = describe(net, args.checkpoints[0]), {}, {}
    most = here["layers"]
    for name in ("dataname", "nb_code", "unit_length", "weights_sha256"):
        if manifest and manifest.get(name) != here[name]:
            other = f"{manifest.get('checkpoint')} at iteration {manifest.get('iteration')}"
            raise UserError(f"{args.decode}: codes of {other}, which has another {name}; decode with it")
    for name, array in arrays.items():
        coarse = array.ndim < 2 or (len(array) == 1 and array.shape[1] > most)
        layers = (manifest or {}).get("layers", 1 if coarse else most)
        found = rows_of(array, net.nb_code, files[name], (manifest or {}).get("rows", 1), layers)
        for i, row in enumerate(found):
            row = row[:, None] if row.ndim < net.vqvae.quantizer.clip_axes else row
            clip = name if len(found) == 1 else f"{name}_{i}"
            if clip in rows:
                raise UserError(f"{args.decode}: two rows would be called {clip}; rename one of the files")
            rows[clip], sources[clip] = row, files[name]
    return rows, sources


def decode(net, args):
    """Decode rows of codes and write each as one file of motion."""
    remarks = find_data(args.checkpoints[0], net, args)[2] if net.mean is None else []
    rows, sources = read_rows(net, args)
    names, empty = [name for name in rows if len(rows[name])], [name for name in rows if not len(rows[name])]
    if not names:
        raise UserError(f"{args.decode}: no code before an end token in any of {len(empty)} rows")
    targets = plan_outputs(args.out, {name: sources[name] for name in names}, args.to, args.overwrite)
    batches = decode_rows(net, [rows[name] for name in names], args.batch_size * 128)
    for batch, features in progress(batches, desc="decode"):
        for i, motion in zip(batch, features):
            write_motion(targets[names[i]], motion * net.std + net.mean, net.spec, args.to)
    if empty:
        remarks.append(f"skipped {len(empty)} (no code before the end token): {', '.join(empty[:5])}")
    print(f"decoded {len(names)} rows, {sum(map(len, rows.values())):,} codes, into {args.out} as {args.to}",
          *net.remarks, *remarks, sep="\n  ")


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
