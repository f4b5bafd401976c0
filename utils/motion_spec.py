"""The facts of each data set, from HumanML3D (its notebook `motion_representation`) and T2M-GPT."""
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

UNIT_LENGTH = 4          # clips are evaluated at a multiple of four frames: one code is four frames
MAX_EVAL_FRAMES = 200    # evaluation takes clips shorter than this
MAX_MOTION_LENGTH = 196  # the extractors' padded length
UP, DOWN, AHEAD = (0, 1, 0), (0, -1, 0), (0, 0, 1)


@dataclass(frozen=True)
class MotionSpec:
    """One data set's skeleton and feature layout. Rates are in frames per second."""

    name: str
    joints: int
    fps: float
    unit: float              # metres in one unit of its features and joints
    joint_names: tuple
    chains: tuple            # kinematic chains of joint indices, each from its root outwards
    raw_offsets: tuple       # (J, 3) unit direction of each bone in the rest pose
    bone_lengths: tuple      # (J,) of the target skeleton in that unit; None: a clip keeps its own
    face_joints: tuple       # right hip, left hip, right shoulder, left shoulder
    feet: tuple              # left ankle, left toe, right ankle, right toe, as in the contact features
    leg: tuple               # the two joints whose bones give the leg-length ratio
    contact_threshold: float  # squared displacement per frame, in that unit, below which a foot is in contact
    min_eval_frames: int     # evaluation takes clips of at least this length
    data_root: str           # upstream's folder
    meta_dirs: tuple         # where upstream's archives put the statistics it trains with

    @property
    def width(self):
        """Features per frame: 263 or 251."""
        return 12 * self.joints - 1

    @cached_property
    def slices(self):
        """Feature name → slice of the last axis, in the order of the vector."""
        others = self.joints - 1
        sizes = dict(yaw=1, root_xz=2, height=1, positions=3 * others, rotations=6 * others,
                     velocities=3 * self.joints, contacts=4)
        ends = accumulate(sizes.values())
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}

    @cached_property
    def parents(self):
        """(J,) parent of each joint; -1 for the root."""
        parents = {child: parent for chain in self.chains for parent, child in zip(chain, chain[1:])}
        return tuple(parents.get(joint, -1) for joint in range(self.joints))


T2M = MotionSpec(
    name="t2m", joints=22, fps=20.0, unit=1.0,
    joint_names=tuple(
        "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 "
        "left_foot right_foot neck left_collar right_collar head left_shoulder right_shoulder left_elbow "
        "right_elbow left_wrist right_wrist".split()),
    chains=((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21),
            (9, 13, 16, 18, 20)),
    raw_offsets=((0, 0, 0), (1, 0, 0), (-1, 0, 0), UP, DOWN, DOWN, UP, DOWN, DOWN, UP, AHEAD, AHEAD, UP,
                 (1, 0, 0), (-1, 0, 0), AHEAD, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN),
    bone_lengths=(0, .103074, .109883, .131568, .393623, .390188, .143190, .432433, .425643, .057365, .143382,
                  .149419, .219360, .137487, .143383, .103039, .131614, .122984, .256840, .263092, .266012,
                  .269876),
    face_joints=(2, 1, 17, 16), feet=(7, 10, 8, 11), leg=(5, 8), contact_threshold=0.002,
    min_eval_frames=40, data_root="dataset/HumanML3D",
    meta_dirs=("checkpoints/t2m/VQVAEV3_CB1024_CMT_H1024_NRES3/meta", "checkpoints/t2m/Comp_v6_KLD005/meta"))

KIT = MotionSpec(
    name="kit", joints=21, fps=12.5, unit=0.001,
    joint_names=("root", "spine", "chest", "neck", "head", "right_shoulder", "right_elbow", "right_wrist",
                 "left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle",
                 "right_foot", "right_toe", "left_hip", "left_knee", "left_ankle", "left_foot", "left_toe"),
    chains=((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4), (3, 5, 6, 7), (3, 8, 9, 10)),
    raw_offsets=((0, 0, 0), UP, UP, UP, UP, (1, 0, 0), DOWN, DOWN, (-1, 0, 0), DOWN, DOWN, (1, 0, 0), DOWN,
                 DOWN, AHEAD, AHEAD, (-1, 0, 0), DOWN, DOWN, AHEAD, AHEAD),
    bone_lengths=None,
    face_joints=(11, 16, 5, 8), feet=(19, 20, 14, 15), leg=(17, 18), contact_threshold=0.05,
    min_eval_frames=24, data_root="dataset/KIT-ML",
    meta_dirs=("checkpoints/kit/VQVAEV3_CB1024_CMT_H1024_NRES3/meta", "checkpoints/kit/Comp_v6_KLD005/meta"))

# the set that `python -m dataset.prepare --demo` animates itself: HumanML3D's skeleton and layout
DEMO = replace(T2M, name="demo", data_root="dataset/demo", meta_dirs=())

SPECS = {spec.name: spec for spec in (T2M, KIT, DEMO)}


def get_spec(dataname):
    """MotionSpec of `t2m`, `kit` or `demo`. Raises KeyError for any other name."""
    return SPECS[dataname]
