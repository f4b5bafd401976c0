"""A checkpoint for other tools, and clips too; docs/export.md describes the files.

    python export_vq.py output/VQVAE/net_last.pth --out model --onnx    # safetensors, and ONNX
    python export_vq.py model --to-pth net.pth                          # back, which upstream loads too
    python export_vq.py output/residual --to-momask checkpoints/t2m/rvq # what MoMask's second stage loads
    python export_vq.py --clips dataset/mine/new_joint_vecs/000001.npy --to bvh --out animation
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="export_vq.py", description="Convert a checkpoint, or clips.")
    common.add_checkpoint_flags(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", help="folder to write")
    add("--onnx", action="store_true", help="also write encoder.onnx and decoder.onnx")
    add("--to-pth", metavar="FILE", help="write one file that upstream loads instead")
    add("--to-momask", metavar="DIR", help="write a residual network as MoMask's own run folder instead")
    add("--meta-dir", metavar="DIR", help="mean.npy and std.npy for a checkpoint without, as upstream's")
    add = parser.add_argument_group("clips").add_argument
    add("--clips", nargs="+", metavar="PATH", help="convert .npy files of features or joints, or folders")
    add("--to", choices=("joints", "gif", "bvh"), help="what to write of each clip")
    add("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(argv)
    args.checkpoints = common.given_checkpoints(args)
    parser.refuse(
        (len(args.checkpoints) + bool(args.clips) != 1, "give one checkpoint, or clips (--clips PATH …)"),
        (args.clips and (args.onnx or args.meta_dir), "--onnx and --meta-dir need a checkpoint"),
        (bool(args.clips) != bool(args.to), "--clips and --to bvh, joints or gif come together"),
        ((args.onnx or args.clips) and not args.out, "--onnx and --clips write into a folder: give --out"),
        (sum(map(bool, (args.out, args.to_pth, args.to_momask))) != 1,
         "name what to write: --out DIR or, for a checkpoint, --to-pth FILE or --to-momask DIR"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = parse_args()

import os
import sys

import torch
from tqdm import tqdm

from dataset.motion_folder import find_statistics
from export.clips import find_arrays, plan_outputs, read_motion, write_motion
from export.hub import save_pair
from export.momask import save_momask
from export.onnx import write_onnx
from models.vqvae import HumanVQVAE
from utils.errors import UserError, exit_cleanly
from utils.files import atomic_write
from utils.motion_process import describe_statistics


def export_net(args):
    """Write a checkpoint as one file, as MoMask's files, or as the pair and, on demand, ONNX."""
    path, new = args.checkpoints[0], args.to_pth or args.to_momask
    if new and os.path.exists(new):
        raise UserError(f"{new}: is there already; name another place")
    net = HumanVQVAE.from_checkpoint(path, **common.network_overrides(args))
    if args.meta_dir and net.mean is not None:
        raise UserError(f"{path}: carries its own mean and std; leave out --meta-dir")
    if args.meta_dir:
        net.mean, net.std, _ = find_statistics(args, net.spec)
    if net.mean is None and (args.onnx or args.to_momask):
        raise UserError(f"{path}: no mean and std, which this needs; name their folder with --meta-dir")
    if "recons_loss" in net.recipe:
        net.args["recons_loss"] = net.recipe["recons_loss"]
    if args.to_momask:
        save_momask(args.to_momask, net)
    elif args.to_pth:
        content = dict(net=net.state_dict(), args=net.args, iter=net.iteration)
        if net.mean is not None:
            content.update(mean=torch.as_tensor(net.mean), std=torch.as_tensor(net.std))
        with atomic_write(args.to_pth) as file:
            torch.save(content, file)
    else:
        if args.onnx:
            write_onnx(net, args.out)
        save_pair(args.out, net)
    statistics = "no" if net.std is None else describe_statistics(net.std)
    print(f"wrote {new or args.out}: {net.vqvae.quant}, {net.nb_code} codes, iteration {net.iteration}, "
          f"{statistics} mean and std", *net.remarks, sep="\n  ")


def convert_clips(args):
    """Write clips as joints, GIF or BVH."""
    found = [item for path in args.clips for item in find_arrays(path).items()]
    if len(sources := dict(found)) < len(found):
        raise UserError(f"{args.out}: two clips would take one name; convert them apart")
    targets = plan_outputs(args.out, sources, args.to, args.overwrite)
    for name, file in tqdm(sources.items(), desc="convert", unit="clip", dynamic_ncols=True, disable=None):
        write_motion(targets[name], *read_motion(file), args.to)
    print(f"wrote {len(targets)} clips to {args.out} as {args.to}")


@exit_cleanly
def main(args):
    """Export a checkpoint or convert clips. Returns the exit code."""
    (convert_clips if args.clips else export_net)(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
