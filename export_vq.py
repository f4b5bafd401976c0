"""A checkpoint for other tools, and clips too.

    python export_vq.py output/VQVAE/net_last.pth --out model           # model.safetensors and config.json
    python export_vq.py output/VQVAE/net_last.pth --out model --onnx    # and encoder.onnx, decoder.onnx
    python export_vq.py model --to-pth net.pth                          # back, which upstream loads too
    python export_vq.py output/residual --to-momask checkpoints/t2m/rvq # what MoMask's second stage loads
    python export_vq.py --clips dataset/mine/new_joint_vecs/000001.npy --to bvh --out animation

docs/export.md describes the files. Exit codes: 0 done, 2 a mistake in the input.
"""
from options import common


def parse_args(argv=None):
    """Parse the flags; exits with code 2 and one line for what cannot work."""
    parser = common.Parser(prog="export_vq.py", description="Convert a checkpoint, or clips.")
    common.add_checkpoint_flags(parser)
    add = parser.add_argument
    add("--out", metavar="DIR", default=None, help="folder to write")
    add("--onnx", action="store_true", help="also write encoder.onnx and decoder.onnx")
    add("--to-pth", metavar="FILE", default=None, help="write one file that upstream loads instead")
    add("--to-momask", metavar="DIR", default=None,
        help="write a residual network as MoMask's own files: opt.txt, model/ and meta/")
    add("--meta-dir", metavar="DIR", default=None,
        help="folder of mean.npy and std.npy for a checkpoint without, as upstream's")
    add = parser.add_argument_group("clips").add_argument
    add("--clips", nargs="+", default=None, metavar="PATH",
        help="convert clips instead: .npy files of features or joints, or folders of them")
    add("--to", choices=("joints", "gif", "bvh"), default=None,
        help="what to write of each clip: an array, a moving picture, or an animation")
    add("--overwrite", action="store_true", help="replace files that are there already")
    args = parser.parse_args(argv)
    args.checkpoints, targets = common.given_checkpoints(args), [args.out, args.to_pth, args.to_momask]
    parser.refuse(
        (len(args.checkpoints) + bool(args.clips) != 1, "give one checkpoint, or clips (--clips PATH …)"),
        (args.clips and (args.onnx or any(targets[1:]) or args.meta_dir),
         "--onnx, --to-pth, --to-momask and --meta-dir need a checkpoint"),
        (bool(args.clips) != bool(args.to), "--clips and --to bvh, joints or gif come together"),
        (args.onnx and not args.out, "--onnx writes into a folder: give --out"),
        (sum(map(bool, targets)) != 1,
         "name what to write: --out DIR or, for a checkpoint, --to-pth FILE or --to-momask DIR"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = parse_args()

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from dataset.motion_folder import find_statistics
from export.clips import find_arrays, plan_outputs, read_motion, require_folder, write_motion
from export.hub import save_pair
from export.momask import save_momask
from export.onnx import check_onnx, write_onnx
from models.vqvae import HumanVQVAE
from utils.errors import UserError, exit_cleanly
from utils.files import atomic_write
from utils.motion_process import describe_statistics


def read_checkpoint(args):
    """Return the net, and what an export carries: 'net', 'args', 'iter', and 'mean' and 'std' or None."""
    net = HumanVQVAE.from_checkpoint(args.checkpoints[0], **common.network_overrides(args))
    if args.meta_dir:
        if net.mean is not None:
            raise UserError(f"{args.checkpoints[0]}: carries its own mean and std; leave out --meta-dir")
        folder = SimpleNamespace(data_root=None, meta_dir=args.meta_dir)
        net.mean, net.std, _ = find_statistics(folder, net.spec)
    loss = {"recons_loss": net.recipe["recons_loss"]} if "recons_loss" in net.recipe else {}
    mean, std = (None if array is None else torch.as_tensor(array) for array in (net.mean, net.std))
    return net, dict(net=net.state_dict(), args={**net.args, **loss}, iter=net.iteration, mean=mean, std=std)


def export_model(net, checkpoint, args):
    """Write the pair, and ONNX on demand."""
    if args.onnx and net.mean is None:
        raise UserError(f"{args.checkpoints[0]}: no mean and std for ONNX; name their folder with --meta-dir")
    about = dict(dataname=net.spec.name, fps=net.spec.fps, joints=net.spec.joints, features=net.spec.width,
                 unit_length=2 ** net.down_t)
    save_pair(args.out, checkpoint, about)
    statistics = "no" if net.std is None else describe_statistics(net.std)
    print(f"wrote model.safetensors and config.json to {args.out}: {net.vqvae.quant}, {net.nb_code} codes, "
          f"iteration {net.iteration}, {statistics} mean and std", *net.remarks, sep="\n  ")
    for path, size in write_onnx(net, args.out, {**about, "iteration": net.iteration}) if args.onnx else ():
        print(f"wrote {path}, {size / 1e6:.1f} MB")


def convert_clips(args):
    """Write clips as joints, GIF or BVH."""
    sources = {}
    for name, file in (item for path in args.clips for item in find_arrays(path).items()):
        if name in sources:
            raise UserError(f"{file} and {sources[name]} would both become {name}; convert them apart")
        sources[name] = file
    targets = plan_outputs(args.out, sources, args.to, args.overwrite)
    for name, file in tqdm(sources.items(), desc="convert", unit="clip", dynamic_ncols=True, disable=None):
        write_motion(targets[name], *read_motion(file), args.to)
    print(f"wrote {len(targets)} clips to {args.out} as {args.to}")


@exit_cleanly
def main(args):
    """Export a checkpoint or convert clips. Returns the exit code."""
    if args.clips:
        convert_clips(args)
        return 0
    if args.onnx:
        check_onnx()
    if args.to_pth and Path(args.to_pth).exists():
        raise UserError(f"{args.to_pth}: is there already; name another file with --to-pth")
    if args.out:
        require_folder(args.out)
    net, checkpoint = read_checkpoint(args)
    if args.out:
        export_model(net, checkpoint, args)
        return 0
    if args.to_momask:
        save_momask(args.to_momask, net)
        print(f"wrote opt.txt, model/ and meta/ to {args.to_momask}, iteration {net.iteration}")
        return 0
    with atomic_write(args.to_pth) as file:
        torch.save({key: value for key, value in checkpoint.items() if value is not None}, file)
    print(f"wrote {args.to_pth}, iteration {net.iteration}")
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
