"""A checkpoint for other tools, and clips too.

    python export_vq.py --resume-pth output/VQVAE/net_last.pth --out model                  # model.safetensors and config.json
    python export_vq.py --resume-pth output/VQVAE/net_last.pth --out model --onnx           # and encoder.onnx, decoder.onnx
    python export_vq.py --resume-pth model --to-pth net.pth                                 # back: {'net': …}, which upstream loads
    python export_vq.py --clips dataset/mine/new_joint_vecs/000001.npy --to bvh --out animation

The files are described in docs/export.md. Exit codes: 0 done, 2 a mistake in the input.
"""
from options.option_vq import export_args

if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    ARGS = export_args()

import os
import sys
from types import SimpleNamespace

import torch
from tqdm import tqdm

from dataset.motion_folder import find_statistics
from export.clips import find_arrays, plan_outputs, read_motion, write_motion
from export.hub import save_pair
from export.onnx import check_onnx, write_onnx
from models.loading import load_checkpoint, network_args
from models.vqvae import HumanVQVAE
from utils.errors import UserError, exit_cleanly
from utils.files import write_atomically
from utils.motion_process import describe_statistics
from utils.motion_spec import get_spec


def read_checkpoint(path, meta_dir):
    """A checkpoint with what an export carries: 'net', the network's 'args' and the loss, 'iter', 'mean', 'std' (None where unknown)."""
    checkpoint = load_checkpoint(path)
    saved = checkpoint.get("args") or {}
    args = {**network_args(checkpoint, path, {})[0], **{name: saved[name] for name in ("recons_loss",) if name in saved}}
    mean, std = checkpoint.get("mean"), checkpoint.get("std")
    if meta_dir and mean is not None:
        raise UserError(f"{path}: carries its own mean and std; leave out --meta-dir")
    if meta_dir:
        mean, std, _ = find_statistics(SimpleNamespace(data_root=None, meta_dir=meta_dir), get_spec(args["dataname"]))
    return dict(net=checkpoint["net"], args=args, iter=checkpoint.get("iter"), mean=mean, std=std)


def to_pth(checkpoint, path):
    """Write {'net': …} as training does; upstream loads it with strict=True."""
    if os.path.exists(path):
        raise UserError(f"{path}: is there already; name another file with --to-pth")
    content = {key: value for key, value in checkpoint.items() if value is not None}
    try:
        write_atomically(path, lambda file: torch.save(content, file))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with --to-pth") from None
    print(f"wrote {path}: {len(checkpoint['net'])} tensors under 'net', iteration {checkpoint['iter']}")


def export_model(checkpoint, args):
    """Write the pair, and ONNX on demand."""
    if args.onnx:
        check_onnx()
        if checkpoint["mean"] is None:
            raise UserError(f"{args.resume_pth}: carries no mean and std, and ONNX takes and gives raw features; name their folder with --meta-dir")
    net = HumanVQVAE.from_checkpoint(args.resume_pth)
    spec = net.spec
    about = dict(dataname=spec.name, fps=spec.fps, joints=spec.joints, features=spec.width, unit_length=2 ** net.down_t)
    save_pair(args.out, checkpoint, about)
    print(f"wrote model.safetensors and config.json to {args.out}: {net.vqvae.quant}, {net.nb_code} codes, {spec.name}, iteration "
          f"{checkpoint['iter']}, " + ("no mean and std" if checkpoint["std"] is None else
                                       f"mean and std of the {describe_statistics(checkpoint['std'])}'s kind"))
    if args.onnx:
        net.mean, net.std = checkpoint["mean"], checkpoint["std"]
        for path, size in write_onnx(net, args.out, {**about, "iteration": checkpoint["iter"]}):
            print(f"wrote {path}, {size / 1e6:.1f} MB")


def convert_clips(args):
    """Clips as joints, GIF or BVH."""
    sources = {}
    for path in args.clips:
        for name, file in find_arrays(path).items():
            if name in sources and not file.samefile(sources[name]):
                raise UserError(f"{file} and {sources[name]} would both become {name}; convert them into two folders")
            sources[name] = file
    targets = plan_outputs(args.out, sources, args.to, args.overwrite)
    for name, file in tqdm(sources.items(), desc=f"to {args.to}", unit="clip", dynamic_ncols=True, disable=None):
        write_motion(targets[name], *read_motion(file), args.to)
    print(f"wrote {len(targets)} clips to {args.out} as {args.to}")


@exit_cleanly
def main(args):
    """Export as `args` (of the options module) say. Returns the exit code."""
    if args.clips:
        convert_clips(args)
        return 0
    checkpoint = read_checkpoint(args.resume_pth, args.meta_dir)
    if args.to_pth:
        to_pth(checkpoint, args.to_pth)
    else:
        export_model(checkpoint, args)
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
