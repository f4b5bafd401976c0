"""Turn motion capture or joint positions into a training folder in the HumanML3D layout.

    python -m dataset.prepare mocap/ --out dataset/mine             # every .bvh and .npy below mocap/
    python -m dataset.prepare joints/ --out dataset/mine --mirror --captions captions.csv
    python -m dataset.prepare --demo --out dataset/demo             # the demo set, animated here
    python train_vq.py --data-root dataset/mine

Running it again converts what is new or changed. Exit codes: 0 done, 2 nothing usable or a mistake in the input, 130 interrupted.
"""
import argparse
import math
import sys

from utils.errors import UserError, exit_cleanly


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def _positive(text):
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is out of range: expected a finite number over 0")
    return value


def _share(text):
    return 0.0 if text.strip("0.") == "" and "0" in text else _positive(text)


def _count(text):
    value = _positive(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(value)


def parse_args(argv=None):
    parser = _Parser(prog="python -m dataset.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", nargs="*", help="folder or file: .bvh, or .npy joints (T, 22, 3), (T, 21, 3) for kit")
    parser.add_argument("--out", metavar="DIR", required=True, help="the training folder to write")
    parser.add_argument("--dataname", choices=("t2m", "kit"), default="t2m", help="22 joints, 263 features, 20 fps; or 21, 251, 12.5 (default: t2m)")
    group = parser.add_argument_group("reading (each is found out when not given)")
    group.add_argument("--joint-map", metavar="FILE", help="JSON of {target: source joint}; built in: Bandai Namco, CMU, LAFAN1, Mixamo, SMPL")
    group.add_argument("--scale", type=_positive, help="metres per unit of the source; otherwise found from the skeleton's height")
    group.add_argument("--up", choices=("y", "z"), default="y", help="the source's up axis (default: y)")
    group.add_argument("--fps", type=_positive, help="frame rate of .npy joints (default: the data set's own); BVH files say theirs")
    group = parser.add_argument_group("what is made")
    group.add_argument("--split", type=_share, nargs=3, metavar=("TRAIN", "VAL", "TEST"), default=(0.8, 0.05, 0.15),
                       help="shares of the splits; a clip's name decides (default: 0.8 0.05 0.15)")
    group.add_argument("--mirror", action="store_true", help="add the left-right mirrored copy of each clip, as M + its name")
    group.add_argument("--captions", metavar="FILE", help="CSV of id,caption: texts/ID.txt in HumanML3D's format")
    group.add_argument("--preview", type=_count, metavar="N", default=0, help="draw N clips as GIFs into OUT/previews")
    group = parser.add_argument_group("running")
    group.add_argument("--strict", action="store_true", help="stop at the first clip that cannot be used instead of leaving it out")
    group.add_argument("--workers", type=_count, help="processes (default: one for each core)")
    group = parser.add_argument_group("demo set")
    group.add_argument("--demo", action="store_true", help="animate the demo set instead of reading a source")
    group.add_argument("--seed", type=int, help="of the demo set (default: 0)")
    args = parser.parse_args(argv)
    if bool(args.source) == args.demo:
        parser.error("give a source or --demo" + (", not both" if args.demo else ""))
    if args.demo and any((args.joint_map, args.scale, args.fps, args.captions, args.up != "y", args.dataname != "t2m")):
        parser.error("--demo takes --out, --seed, --split, --mirror, --preview and --workers; the others are about reading sources")
    if args.seed is not None and not args.demo:
        parser.error("--seed is the demo set's: give --demo with it")
    if not sum(args.split) > 0:
        parser.error("--split: the shares are all zero")
    return args


@exit_cleanly
def main(argv=None):
    """Prepare as the command line `argv` says. Returns the exit code."""
    args = parse_args(argv)
    from dataset.prepare.captions import read_csv
    from dataset.prepare.convert import write_dataset
    from dataset.prepare.joint_maps import read_map
    from dataset.prepare.source import Reading, find_sources
    settings = dict(fractions=tuple(args.split), mirrored=args.mirror, workers=args.workers, strict=args.strict)
    captions = {}
    if args.demo:
        from dataset.prepare.demo import COUNT, SEED, make_clips
        report = write_dataset(args.out, make_clips(SEED if args.seed is None else args.seed, COUNT), "demo", **settings)
    else:
        reading = Reading(args.dataname, args.scale, args.up, args.fps, read_map(args.joint_map) if args.joint_map else None)
        captions = read_csv(args.captions) if args.captions else {}
        sources = find_sources(args.source)
        if captions and not captions.keys() & sources.keys():
            raise UserError(f"{args.captions}: none of its {len(captions)} ids is a clip's name; it has {next(iter(captions))}, the clips are "
                            f"called {', '.join(list(sources)[:3])}, …")
        report = write_dataset(args.out, ((name, path, captions.get(name, ())) for name, path in sources.items()), args.dataname,
                               reading=reading, **settings)
        captions = {name: lines for name, lines in captions.items() if name not in sources}
    _print_summary(args, report, unused_captions=list(captions))
    if args.preview:
        draw_previews(args.out, report, "demo" if args.demo else args.dataname, args.preview)
    return 0


def _print_summary(args, report, unused_captions):
    clips = sum(map(len, report.splits.values()))
    length = f"{report.seconds / 3600:.2f} hours" if report.seconds >= 3600 else f"{report.seconds / 60:.1f} minutes"
    print(f"{args.out}: {clips} clips, {report.frames} frames, {length} ({', '.join(f'{name} {len(ids)}' for name, ids in report.splits.items())})")
    print(f"sources: {report.converted} converted, {report.kept} unchanged since the last run, {len(report.rejected)} rejected"
          + (f"; {report.removed} earlier clips were removed: their sources were not given, are gone or went bad" if report.removed else ""))
    for what, values in report.found.items():
        print(f"{what}: {', '.join(f'{value} ({count})' for value, count in values.most_common())}")
    if args.captions or args.demo:
        print(f"captions: {report.without_caption} clips have none" + (f"; no clip for {len(unused_captions)} ids, the first {unused_captions[0]}"
                                                                      if unused_captions else ""))
    for why in report.rejected.values():
        print(f"rejected: {why}", file=sys.stderr)


def draw_previews(out, report, dataname, count):
    """GIFs of `count` clips, spread over all of them, in OUT/previews."""
    from pathlib import Path

    import numpy as np

    from dataset.prepare.convert import JOINTS
    from utils.motion_spec import get_spec
    from visualize.draw import save_gif
    names = sorted(name for ids in report.splits.values() for name in ids)
    folder = Path(out, "previews")
    folder.mkdir(exist_ok=True)
    for i in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)):
        save_gif(folder / f"{names[i]}.gif", np.load(Path(out, JOINTS, f"{names[i]}.npy")), get_spec(dataname), title=names[i])
    print(f"previews: {folder}")


if __name__ == "__main__":
    sys.exit(main())
