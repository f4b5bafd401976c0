"""Turn motion capture or joint positions into a training folder in the HumanML3D layout.

    python -m dataset.prepare mocap/ --out dataset/mine             # every .bvh, .npy and .npz below mocap/
    python -m dataset.prepare --explain walk.bvh                    # what is recognised in a file
"""
import sys

from options.common import COUNT, POSITIVE, SEED, WEIGHT, Parser


def parse_args(argv=None):
    """Return the arguments, or exit with code 2 and one line for a mistake."""
    parser = Parser(prog="python -m dataset.prepare", description=__doc__.splitlines()[0],
                    epilog="Exit codes: 0 done, 2 nothing usable or a mistake in the input, 130 interrupted.")
    add = parser.add_argument
    add("source", nargs="*", help="folders or files: .bvh, or joints (T, 22, 3) as .npy or .npz")
    add("--out", metavar="DIR", help="training folder to write")
    add("--explain", action="store_true", help="print what is recognised; write nothing")
    add("--dataname", choices=("t2m", "kit"), default="t2m",
        help="layout to write: 22 joints, 263 features, 20 fps; or 21, 251, 12.5")
    add = parser.add_argument_group("reading").add_argument
    add("--joint-map", metavar="FILE", help="JSON of {target: source joint}, all or some")
    add("--scale", type=POSITIVE, help="metres per unit of the source; None: found")
    add("--up", type=str.strip, choices=("y", "z", "-y", "-z", "auto"), default="auto",
        help="up axis of the source; auto: found from the motion")
    add("--swap-sides", action="store_true", help="exchange left and right (mirrored sources)")
    add("--fps", type=POSITIVE, help="frames per second; None: a BVH file's own, for joints the data set's")
    add("--captions", metavar="FILE", help="CSV of id,caption: writes texts/ID.txt")
    add = parser.add_argument_group("writing").add_argument
    add("--split", type=WEIGHT, nargs=3, metavar=("TRAIN", "VAL", "TEST"), default=(0.8, 0.05, 0.15),
        help="shares of the splits")
    add("--mirror", action="store_true", help="add the mirrored copy of each clip, M + id")
    add("--preview", type=COUNT, metavar="N", help="draw N clips as GIFs into OUT/previews")
    add("--strict", action="store_true", help="stop at the first clip that cannot be used; "
        "with --humanml3d: when sources are missing")
    add("--workers", type=COUNT, help="processes; None: one for each core")
    add = parser.add_argument_group("instead of a source").add_argument
    add("--demo", action="store_true", help="animate the demo set")
    add("--seed", type=SEED, default=0, help="random seed of the demo set")
    add("--amass", metavar="DIR", help="folder of unpacked AMASS data sets (SMPL+H G)")
    add("--body-models", metavar="DIR", help="folder of SMPL+H's male and female model.npz, for --amass")
    add("--humanml3d", metavar="REPO", help="clone of HumanML3D's repository: make that set of AMASS")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([f" {word}" if word in ("-y", "-z") else word for word in argv])
    about_sources = any((args.joint_map, args.scale, args.fps, args.captions, args.up != "auto", args.explain,
                         args.dataname != "t2m", args.swap_sides, args.amass and args.preview))
    origins = bool(args.source) + args.demo + bool(args.amass)
    parser.refuse(
        (not args.out and not args.explain, "give --out DIR"),
        (origins != 1, "give a source or --demo or --amass" + ", not both" * (origins > 1)),
        (bool(args.amass) != bool(args.body_models), "--amass and --body-models go together"),
        (args.humanml3d and not args.amass, "--humanml3d goes with --amass and --body-models"),
        (not args.source and about_sources,
         "--demo and --amass take no flags about reading other sources, and --amass no --preview"),
        (args.seed and not args.demo, "--seed is the demo set's: give --demo with it"),
        (sum(args.split) == 0, "--split: the shares are all zero"))
    return args


if __name__ == "__main__":  # before the slow imports: --help and refusals are instant
    parse_args()

from collections import Counter
from pathlib import Path

from dataset.prepare.captions import read_csv
from dataset.prepare.convert import JOINTS, describe, write_dataset
from dataset.prepare.demo import make_clips
from dataset.prepare.humanml3d import build
from dataset.prepare.joint_maps import read_map
from dataset.prepare.source import Reading, find_sources, read_clip
from utils.errors import UserError, exit_cleanly
from utils.files import load_array
from utils.motion_spec import get_spec


@exit_cleanly
def main(argv=None):
    """Prepare as the command line `argv` says. Returns the exit code."""
    args = parse_args(argv)
    settings = dict(fractions=args.split, mirrored=args.mirror or bool(args.humanml3d), workers=args.workers,
                    strict=args.strict)
    if args.amass:
        build(args.out, args.amass, args.body_models, args.humanml3d, **settings)
        return 0
    spec = get_spec("demo" if args.demo else args.dataname)
    joint_map = args.joint_map and read_map(args.joint_map)
    reading = Reading(spec.name, args.scale, args.up, args.fps, joint_map, args.swap_sides)
    if args.explain:
        return explain(args.source, reading)
    clips = make_clips(args.seed) if args.demo else find_clips(args)
    report = write_dataset(args.out, clips, spec.name, reading=reading, **settings)
    print_summary(args, report, spec)
    if args.preview:
        from visualize.draw import save_gif  # here, for only pictures need Pillow
        names = list(report.records)
        for name in names[::max(1, len(names) // args.preview)][:args.preview]:
            joints = load_array(Path(args.out, JOINTS, f"{name}.npy"))
            save_gif(Path(args.out, "previews", f"{name}.gif"), joints, spec, title=name)
    return 0


def explain(sources, reading):
    """Print what is recognised in each source as a table. Returns 0, or 2 where one cannot be used."""
    code = 0
    for path in find_sources(sources).values():
        found, verdict = {}, "usable"
        try:
            read_clip(path, reading, found)
        except UserError as error:
            code, verdict = 2, f"cannot be used: {error}"
        print(path, *describe(found), f"    {verdict}", sep="\n")
    return code


def find_clips(args):
    """Return the clips of the sources, [(id, path, captions)]."""
    sources, captions = find_sources(args.source), read_csv(args.captions) if args.captions else {}
    unknown = captions.keys() - sources.keys()
    if captions and len(unknown) == len(captions):
        raise UserError(f"{args.captions}: none of its ids is a clip's name, as {next(iter(sources))} is")
    if captions:
        print(f"captions: {len(sources.keys() - captions)} clips have none; {len(unknown)} ids are no clip's")
    return [(name, path, captions.get(name, ())) for name, path in sources.items()]


def print_summary(args, report, spec):
    """Print what was made, what was found in the sources, and each rejected file in a line on stderr."""
    records = report.records.values()
    frames = sum(record["frames"] for record in records) * (1 + args.mirror)
    sizes = ", ".join(f"{split} {len(ids)}" for split, ids in report.splits.items())
    print(f"{args.out}: {sizes} clips; {frames} frames, {frames / spec.fps / 3600:.2f} hours")
    print(f"sources: {len(records) - report.kept} converted, {report.kept} unchanged since the last run, "
          f"{len(report.rejected)} rejected, {report.removed} earlier ones removed")
    found = [(what, value) for record in records for what, value in record["found"].items() if what != "map"]
    for (what, value), count in sorted(Counter(found).items()):
        print(f"{what}: {value} ({count})")
    for why in report.rejected.values():
        print(f"rejected: {why}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
