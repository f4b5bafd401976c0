"""Turn motion capture or joint positions into a training folder in the HumanML3D layout.

    python -m dataset.prepare mocap/ --out dataset/mine             # every .bvh, .npy and .npz below mocap/
    python -m dataset.prepare --explain walk.bvh                    # what is recognised in a file
    python -m dataset.prepare --demo --out dataset/demo             # the demo set, animated here
    python train_vq.py --data-root dataset/mine
"""
import sys

from options.common import COUNT, POSITIVE, SEED, WEIGHT, Parser
from utils.errors import UserError, exit_cleanly


def parse_args(argv=None):
    """Return the arguments, or exit with code 2 and one line for a mistake."""
    parser = Parser(prog="python -m dataset.prepare", description=__doc__.splitlines()[0], epilog=(
        "A second run converts what is new or changed. "
        "Exit codes: 0 done, 2 nothing usable or a mistake in the input, 130 interrupted."))
    parser.add_argument("source", nargs="*",
                        help="folders or files: .bvh, or joints (T, 22, 3) as .npy or .npz")
    parser.add_argument("--out", metavar="DIR", help="training folder to write")
    parser.add_argument("--explain", action="store_true", help="print what is recognised; write nothing")
    parser.add_argument("--dataname", choices=("t2m", "kit"), default="t2m",
                        help="layout to write: 22 joints, 263 features, 20 fps; or 21, 251, 12.5")
    group = parser.add_argument_group("reading")
    group.add_argument("--joint-map", metavar="FILE", help="JSON of {target: source joint}, all or some")
    group.add_argument("--scale", type=POSITIVE, help="metres per unit of the source; None: found")
    group.add_argument("--up", type=str.strip, choices=("y", "z", "-y", "-z", "auto"), default="auto",
                       help="up axis of the source; auto: found from the motion")
    group.add_argument("--swap-sides", action="store_true", help="exchange left and right (mirrored sources)")
    group.add_argument("--fps", type=POSITIVE,
                       help="frames per second; None: a BVH file's own, for joints the data set's")
    group = parser.add_argument_group("writing")
    group.add_argument("--split", type=WEIGHT, nargs=3, metavar=("TRAIN", "VAL", "TEST"),
                       default=(0.8, 0.05, 0.15), help="shares of the splits")
    group.add_argument("--mirror", action="store_true", help="add the mirrored copy of each clip, M + id")
    group.add_argument("--captions", metavar="FILE", help="CSV of id,caption: writes texts/ID.txt")
    group.add_argument("--preview", type=COUNT, metavar="N", help="draw N clips as GIFs into OUT/previews")
    group.add_argument("--strict", action="store_true", help="stop at the first clip that cannot be used; "
                       "with --humanml3d: when sources are missing")
    group.add_argument("--workers", type=COUNT, help="processes; None: one for each core")
    group = parser.add_argument_group("demo set")
    group.add_argument("--demo", action="store_true", help="animate the demo set instead of reading a source")
    group.add_argument("--seed", type=SEED, help="random seed of the demo set; None: 0")
    group = parser.add_argument_group("AMASS")
    group.add_argument("--amass", metavar="DIR", help="folder of unpacked AMASS data sets (SMPL+H G) to read")
    group.add_argument("--body-models", metavar="DIR", help="folder of SMPL+H's male and female model.npz")
    group.add_argument("--humanml3d", metavar="REPO", help="clone of HumanML3D's repository: make that set")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([f" {word}" if word in ("-y", "-z") else word for word in argv])
    about_sources = any((args.joint_map, args.scale, args.fps, args.captions, args.up != "auto",
                         args.dataname != "t2m", args.swap_sides, args.explain))
    origins = bool(args.source) + args.demo + bool(args.amass)
    parser.refuse(
        (not args.out and not args.explain, "give --out DIR"),
        (origins != 1, "give a source or --demo or --amass" + ", not both" * (origins > 1)),
        (bool(args.amass) != bool(args.body_models), "--amass and --body-models go together"),
        (args.humanml3d and not args.amass, "--humanml3d goes with --amass and --body-models"),
        (args.amass and (about_sources or args.preview),
         "--amass takes no --preview and no flags about other sources"),
        (args.demo and about_sources, "--demo takes --out, --seed, --split, --mirror, --preview, --workers; "
                                      "the other flags are about reading sources"),
        (args.seed is not None and not args.demo, "--seed is the demo set's: give --demo with it"),
        (sum(args.split) == 0, "--split: the shares are all zero"))
    return args


@exit_cleanly
def main(argv=None):
    """Prepare as the command line `argv` says. Returns the exit code."""
    args = parse_args(argv)
    if args.amass:
        from dataset.prepare.humanml3d import build
        build(args.out, args.amass, args.body_models, args.humanml3d, args.split,
              args.mirror or bool(args.humanml3d), args.workers, args.strict)
        return 0
    if args.explain:
        return explain(args)
    from dataset.prepare.convert import write_dataset  # here, for --help to be instant
    settings = dict(fractions=args.split, mirrored=args.mirror, workers=args.workers, strict=args.strict)
    unused = []
    if args.demo:
        from dataset.prepare.demo import COUNT as CLIPS
        from dataset.prepare.demo import make_clips
        report = write_dataset(args.out, make_clips(args.seed or 0, CLIPS), "demo", **settings)
    else:
        clips, reading, unused = read_sources(args)
        report = write_dataset(args.out, clips, args.dataname, reading=reading, **settings)
    print_summary(args, report, unused)
    if args.preview:
        draw_previews(args.out, report, "demo" if args.demo else args.dataname, args.preview)
    return 0


def how_to_read(args):
    """Return the `Reading` of the flags."""
    from dataset.prepare.joint_maps import read_map
    from dataset.prepare.source import Reading
    joint_map = read_map(args.joint_map) if args.joint_map else None
    return Reading(args.dataname, args.scale, args.up, args.fps, joint_map, args.swap_sides)


def explain(args):
    """Print what is recognised in each source as a table. Returns 0, or 2 where one cannot be used."""
    from dataset.prepare.joint_maps import describe_entry
    from dataset.prepare.source import find_sources, read_clip
    code = 0
    for path in find_sources(args.source).values():
        found, why = {}, None
        try:
            read_clip(path, how_to_read(args), found)
        except UserError as error:
            code, why = 2, str(error)
        joints = found.pop("map", {})
        print(path)
        for what, value in (*found.items(), *joints.items()):
            print(f"    {what:<16}{describe_entry(value)}")
        print(f"    {'cannot be used' if why else 'usable'}{': ' + why if why else ''}")
    return code


def read_sources(args):
    """Return the clips [(id, path, captions)], how to read them, and the ids of captions without a clip."""
    from dataset.prepare.captions import read_csv
    from dataset.prepare.source import find_sources
    captions = read_csv(args.captions) if args.captions else {}
    sources = find_sources(args.source)
    if captions and not captions.keys() & sources.keys():
        raise UserError(f"{args.captions}: none of its {len(captions)} ids is a clip's name; it has "
                        f"{next(iter(captions))}, the clips are called {', '.join(list(sources)[:3])}, …")
    clips = [(name, path, captions.get(name, ())) for name, path in sources.items()]
    return clips, how_to_read(args), [name for name in captions if name not in sources]


def print_summary(args, report, unused):
    """Print what was made, what was found in the sources, and each rejected file in a line on stderr."""
    hours = report.seconds / 3600
    length = f"{hours:.2f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    sizes = ", ".join(f"{name} {len(ids)}" for name, ids in report.splits.items())
    clips = sum(map(len, report.splits.values()))
    print(f"{args.out}: {clips} clips, {report.frames} frames, {length} ({sizes})")
    removed = f"; removed {report.removed} earlier clips without a usable source" if report.removed else ""
    print(f"sources: {report.converted} converted, {report.kept} unchanged since the last run, "
          f"{len(report.rejected)} rejected{removed}")
    for what, values in report.found.items():
        print(f"{what}: {', '.join(f'{value} ({count})' for value, count in values.most_common())}")
    if args.captions:
        without = f"; no clip for {len(unused)} ids, the first {unused[0]}" if unused else ""
        print(f"captions: {report.without_caption} clips have none{without}")
    for why in report.rejected.values():
        print(f"rejected: {why}", file=sys.stderr)


def draw_previews(out, report, dataname, count):
    """Draw `count` clips, spread over all of them, as GIFs in OUT/previews."""
    from pathlib import Path

    import numpy as np

    from dataset.prepare.convert import JOINTS
    from utils.motion_spec import get_spec
    from visualize.draw import save_gif
    names = sorted(name for ids in report.splits.values() for name in ids)
    folder = Path(out, "previews")
    folder.mkdir(exist_ok=True)
    for i in np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)):
        joints = np.load(Path(out, JOINTS, f"{names[i]}.npy"))
        save_gif(folder / f"{names[i]}.gif", joints, get_spec(dataname), title=names[i])
    print(f"previews: {folder}")


if __name__ == "__main__":
    sys.exit(main())
