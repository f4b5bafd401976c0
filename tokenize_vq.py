"""Motion to codes for a second stage, and codes back to motion; docs/export.md describes the files.

    python tokenize_vq.py output/VQVAE/net_last.pth --out tokens        # ID.npy of every clip, and a manifest
    python tokenize_vq.py output/VQVAE/net_last.pth --decode tokens --out motion --to bvh
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="tokenize_vq.py", description="Write the codes of clips, or decode codes.")
    common.add_checkpoint_flags(parser)
    common.add_data_flags(parser, dataname=None)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write: codes or motion")
    add = parser.add_argument_group("codes").add_argument
    add("--split", nargs="+", metavar="NAME", help="clips of NAME.txt; None: all, else train, val and test")
    add("--min-frames", type=common.COUNT, default=1, help="leave out shorter clips; T2M-GPT: 40, kit 24")
    add("--max-frames", type=common.COUNT, help="leave out clips of that many frames or more; T2M-GPT: 200")
    add("--layers", type=common.COUNT, help="first layers of residual codes; None: all; T2M-GPT: 1")
    add = parser.add_argument_group("motion").add_argument
    add("--decode", metavar="PATH", help="decode a folder of codes or of .npy rows, or one such file")
    add("--to", choices=("features", "joints", "gif", "bvh"), help="what to write of each row")
    add("--overwrite", action="store_true", help="replace motion that is there already")
    args = parser.parse_args(argv)
    args.checkpoints = common.given_checkpoints(args)
    parser.refuse(
        (len(args.checkpoints) != 1, "give one checkpoint: python tokenize_vq.py CHECKPOINT --out DIR"),
        (bool(args.decode) != bool(args.to), "--decode and --to features, joints, gif or bvh come together"),
        (args.layers and args.decode, "--layers acts only on codes that are written, not with --decode"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = parse_args()

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.motion_folder import find_data, load_split
from evaluation.evaluate import describe_skipped, select_clips
from export.clips import plan_outputs, write_motion
from export.hub import describe
from export.tokens import check_output, read_rows, weights_sha256, write_tokens
from models.batches import decode_rows, encode_clips
from models.vqvae import HumanVQVAE
from utils.errors import UserError, exit_cleanly
from utils.motion_process import describe_statistics


def tokenize(net, args):
    """Encode the clips of the splits, each once, and write their codes."""
    path, unit, about, codes, skipped = args.checkpoints[0], 2 ** net.down_t, describe(net), {}, {}
    if (layers := args.layers or about["layers"]) > about["layers"]:
        raise UserError(f"{path}: has {about['layers']} layers of codes, not {layers}")
    spec, root, remarks = find_data(path, net, args)
    there = [name for name in ("all", "train", "val", "test") if Path(root, f"{name}.txt").is_file()]
    splits = args.split or (["all"] if "all" in there or not there else there)
    for split in splits:
        clips = load_split(root, split, spec, net.mean, net.std, args.skip_bad_clips)
        index, starts, lengths, left_out = select_clips(clips, spec, unit, args.min_frames, args.max_frames)
        names = [clips.names[i] for i in index]
        codes.update(dict.fromkeys(names))  # in the order of the split
        batches = encode_clips(net, clips, index, starts, lengths)
        for batch, rows in tqdm(batches, f"encode {split}", unit="batch", dynamic_ncols=True, disable=None):
            kept = rows if rows.ndim == 2 else rows[..., 0] if layers == 1 else rows[..., :layers]
            codes.update(zip((names[i] for i in batch), kept))
        for reason, names in left_out.items():
            skipped[reason] = list(dict.fromkeys([*skipped.get(reason, []), *names]))
        remarks += filter(None, [clips.warning])
    remarks += describe_skipped(skipped)
    if not codes:
        raise UserError(f"{root}: no clip to tokenize in {', '.join(splits)}; {remarks[-1][:80]}")
    every = np.concatenate(list(codes.values())).reshape(-1, layers)
    used = len(np.unique(every + net.nb_code * np.arange(layers)))
    about.update(
        checkpoint=Path(path).resolve().name, weights_sha256=weights_sha256(net.state_dict()), layers=layers,
        end_token=net.nb_code, pad_token=net.nb_code + 1, statistics=describe_statistics(net.std),
        splits=splits, clips=len(codes), frames=len(every) * unit, codes=every.size,
        codes_used=used, skipped=skipped)
    write_tokens(args.out, codes, about)
    print(f"{path}: {net.vqvae.quant}, {every.size:,} codes, {used} of {layers} × {net.nb_code} used",
          f"{spec.name} {' + '.join(splits)} in {root}", *net.remarks, *remarks,
          f"wrote {len(codes)} files and manifest.json to {args.out}", sep="\n  ")


def decode(net, args):
    """Decode rows of codes and write each as one file of motion."""
    remarks = find_data(args.checkpoints[0], net, args)[2] if net.mean is None else []
    rows, sources = read_rows(args.decode, net)
    names, empty = [name for name in rows if len(rows[name])], [name for name in rows if not len(rows[name])]
    if not names:
        raise UserError(f"{args.decode}: no code before an end token in any of {len(empty)} rows")
    targets = plan_outputs(args.out, {name: sources[name] for name in names}, args.to, args.overwrite)
    batches = decode_rows(net, [rows[name] for name in names])
    for batch, features in tqdm(batches, "decode", unit="batch", dynamic_ncols=True, disable=None):
        for i, motion in zip(batch, features):
            write_motion(targets[names[i]], motion * net.std + net.mean, net.spec, args.to)
    remarks += describe_skipped({"no code before the end token": empty} if empty else {})
    print(f"decoded {len(names)} rows, {sum(map(len, rows.values())):,} codes, into {args.out} as {args.to}",
          *net.remarks, *remarks, sep="\n  ")


@exit_cleanly
def main(args):
    """Tokenize or decode. Returns the exit code."""
    if not args.decode:
        check_output(args.out)
    net = HumanVQVAE.from_checkpoint(args.checkpoints[0], args.device, **common.network_overrides(args))
    (decode if args.decode else tokenize)(net, args)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
