"""The demo set's people: procedural animation, no data of others. From a score of controls to 22 joints, feet first.

An action (`dataset.prepare.demo_actions`) writes footsteps, velocities and angles on a score. Here the root path is integrated, every
footstep is given its place on the floor, the pelvis is held within reach of the planted feet, the legs follow by two-bone inverse
kinematics and the rest of the body by forward kinematics: all frames of a clip at once, loops over steps and joints only.
World: metres, y up, floor at 0; the body faces +z at heading 0 and its left is +x. T frames, J joints; angles on the score in degrees.
"""
import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

from dataset.prepare.demo_actions import choreograph
from dataset.prepare.demo_score import FPS, FRAMES, OTHER, SIDES, Score, ease
from utils.motion_spec import T2M

MIN_FRAMES = 40
SOLE = 0.01          # height of the toe joint of a flat foot, in metres
FOOT_DROP = 0.33     # ankle above toe in a flat foot, in foot lengths
REACH = 0.9955       # of the leg's length: a knee never locks
PASSING = 0.10       # metres to its side at which a foot passes the other one
SHORTEST = 0.30      # of the leg's length: about the deepest a knee folds
# direction of each bone in its parent's frame, standing; the legs' own directions come from inverse kinematics
REST = {1: (.57, -.80, -.17), 2: (-.57, -.80, -.17), 3: (0, .955, -.29), 6: (0, .98, .19), 9: (0, 1, .05), 12: (0, .99, -.15),
        13: (.53, .84, -.14), 14: (-.53, .84, -.14), 15: (0, .87, .49), 16: (.93, .34, -.14), 17: (-.93, .34, -.14)}
LEGS = {"left": (1, 4, 7, 10), "right": (2, 5, 8, 11)}           # hip, knee, ankle, toe
ARMS = {"left": (13, 16, 18, 20), "right": (14, 17, 19, 21)}     # collar, shoulder, elbow, wrist


# rotations, (T, 3, 3) from angles (T,) in degrees

def _rotation(axis, degrees):
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.zeros((*angle.shape, 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1
    matrix[..., i, i] = matrix[..., j, j] = cos
    matrix[..., i, j], matrix[..., j, i] = -sin, sin
    return matrix


def _lean(forward, left, turn=None):
    """Bend forward, then to the left, then turn to the left."""
    matrix = _rotation(0, forward) @ _rotation(2, -left)
    return matrix if turn is None else matrix @ _rotation(1, turn)


def _swing(forward, out):
    """Shortest rotation that raises a hanging arm forward and to its +x side, from an exponential map: no preferred order, no lock."""
    vector = np.radians(np.stack([-forward, 0 * forward, out], -1))
    angle = np.linalg.norm(vector, axis=-1)[:, None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    cross = np.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], -1).reshape(-1, 3, 3)
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (cross @ cross)


# footsteps

def _ground_axes(heading):
    """Forward and left on the floor (..., 3) at a heading in degrees."""
    sin, cos = np.sin(np.radians(heading)), np.cos(np.radians(heading))
    return np.stack([sin, 0 * sin, cos], -1), np.stack([cos, 0 * cos, -sin], -1)


def plan_feet(score, path, heading):
    """Where each foot is: side → dict of base (T, 3) the flat ankle's place on the floor, lift (T,), heading (T,), pitch (T,), swing (T,).

    path (T, 3) and heading (T,) of the root. A foot is put down where the root passes at the middle of its stance, to its own side. Between
    its steps it does not move: stance is exact. swing is 0 on the ground and 1 in the middle of a step; pitch is positive with the heel up.
    """
    feet, t = {}, score.t
    for side, sign in SIDES.items():
        forward, left = _ground_axes(heading[0])
        here = path[0] + sign * score.width * left
        angle = heading[0] + sign * score.toe_out
        base, yaw = np.tile(here, (len(t), 1)), np.full(len(t), angle)
        lift, pitch, swing = np.zeros(len(t)), np.zeros(len(t)), np.zeros(len(t))
        for step in (step for step in score.steps if step.side == side):
            at = min(round(step.over * FPS), len(t) - 1)
            forward, left = _ground_axes(heading[at])
            there = path[at] + (sign * step.width + step.left) * left + step.forward * forward
            turned = heading[at] + sign * score.toe_out
            u = np.clip((t - step.lift) / (step.land - step.lift), 0, 1)
            share = np.clip((u - 0.04) / 0.94, 0, 1)
            share = step.linear * share + (1 - step.linear) * share ** 2 * (3 - 2 * share)
            base += share[:, None] * (there - here)
            yaw += share * (turned - angle)
            here, angle = there, turned
            lift += step.height * u ** 1.6 * (1 - u) ** 2.2 / 0.0753      # 1 at its top, u = 0.42
            swing = np.maximum(swing, np.sin(np.pi * u) ** 2)
            time = step.land - step.lift
            pitch += step.push * ease((t - step.lift + step.early) / (step.early + 0.15 * time)) \
                * (1 - ease((t - step.lift - 0.15 * time) / (0.65 * time)))
            pitch -= step.strike * ease((t - step.lift - 0.55 * time) / (0.4 * time)) * (1 - ease((t - step.land) / 0.12))
        feet[side] = dict(base=base, lift=lift, heading=yaw, pitch=pitch, swing=swing)
    forward, left = _ground_axes(heading)
    for side, sign in SIDES.items():        # on its way a foot goes around the other one, where the path is bent
        away = feet[side]["base"] - feet[OTHER[side]]["base"]
        near = feet[side]["swing"] * np.exp(-np.square((away * forward).sum(-1) / 0.2))
        feet[side]["base"] += (sign * near * np.maximum(PASSING - sign * (away * left).sum(-1), 0))[:, None] * left
    return feet


def _foot(foot, score, side, length, axes):
    """Ankle (T, 3) and the vector ankle → toe (T, 3). The heel rises about the toe, the toe about the heel."""
    forward, left = axes
    push = {name: score[f"{side}_foot_{name}"] for name in ("forward", "left", "up", "pitch")}
    pitch = foot["pitch"] + push["pitch"]
    flat = np.array([0, -FOOT_DROP, np.sqrt(1 - FOOT_DROP ** 2)]) * length
    turned = _rotation(1, foot["heading"] + score[f"{side}_foot_turn"])
    toe_flat, toe = turned @ flat, (turned @ _rotation(0, pitch)) @ flat
    ankle = foot["base"] + push["forward"][:, None] * forward + push["left"][:, None] * left
    ankle[:, 1] = SOLE + FOOT_DROP * length + foot["lift"] + push["up"]
    return ankle + np.where(pitch > 0, 1, 0)[:, None] * (toe_flat - toe), toe


# the body

def _two_bones(hip, ankle, thigh, shin, side_axis):
    """Knee and ankle (T, 3): the knee in the plane across side_axis (T, 3), always to the front. The ankle is pulled into reach softly."""
    line = ankle - hip
    distance = np.linalg.norm(line, axis=-1, keepdims=True)
    direction, full, soft = line / distance, thigh + shin, 0.004 * (thigh + shin)
    reach = 0.9995 * full
    over = np.maximum(distance - (reach - soft), 0)
    kept = np.maximum(distance - over + soft * np.tanh(over / soft), SHORTEST * full)
    front = np.cross(direction, side_axis)
    front /= np.linalg.norm(front, axis=-1, keepdims=True)
    along = (thigh ** 2 - shin ** 2 + kept ** 2) / (2 * kept)
    knee = hip + along * direction + np.sqrt(np.maximum(thigh ** 2 - along ** 2, 0)) * front
    return knee, hip + kept * direction


def proportions(torso, arms, spec=T2M):
    """(J,) bone lengths with legs as specified, torso and arms times a factor."""
    lengths = np.array(spec.bone_lengths, np.float64)
    lengths[[3, 6, 9, 12, 15]] *= torso
    lengths[[13, 14, 16, 17, 18, 19, 20, 21]] *= arms
    return lengths


def animate(score, lengths):
    """Score → (joints (T, 22, 3) float64 in metres, planted (T, 2) bool: the left and right foot bear no step and no swing).

    lengths: (22,) bone lengths in metres. Bones keep them exactly; the whole foot of a planted step stays where it was put.
    """
    t, rest = score.t, {j: lengths[j] * np.array(d) / np.linalg.norm(d) for j, d in REST.items()}
    heading = score.heading + np.cumsum(score["turn_rate"]) / FPS
    forward, left = axes = _ground_axes(heading)
    velocity = score["forward_speed"][:, None] * forward + score["left_speed"][:, None] * left
    path = np.cumsum(velocity, 0) / FPS
    feet = plan_feet(score, path, heading)

    # the pelvis: over the foot that carries, twisted by the stride, up and down with the step
    base = {side: foot["base"] for side, foot in feet.items()}
    stride = np.tanh(((base["left"] - base["right"]) * forward).sum(-1) / 0.6)      # positive with the left foot in front
    load = {side: score[f"{side}_load"] * (1 - ease(1.6 * foot["swing"])) + 0.02 for side, foot in feet.items()}
    middle = 0.5 * (base["left"] + base["right"])
    carried = (load["left"][:, None] * base["left"] + load["right"][:, None] * base["right"]) / (load["left"] + load["right"])[:, None]
    shift = gaussian_filter1d(score["balance"] * ((carried - middle) * left).sum(-1), 2.5, mode="nearest")
    root = path + (shift + score["root_left"])[:, None] * left + score["root_forward"][:, None] * forward
    drop = gaussian_filter1d(feet["left"]["swing"] - feet["right"]["swing"], 1.0, mode="nearest")  # the hip sinks on the swinging side
    pelvis = _rotation(1, heading - 6 * stride * score["twist"] + score["pelvis_turn"]) @ \
        _lean(score["pelvis_forward"], score["pelvis_left"] + 3 * drop * score["twist"])
    hips = {side: pelvis @ rest[LEGS[side][0]] for side in SIDES}
    ankles, toes = {}, {}
    limit = np.full(len(t), np.inf)
    for side in SIDES:
        hip, knee, ankle, toe = LEGS[side]
        ankles[side], toes[side] = _foot(feet[side], score, side, lengths[toe], axes)
        away = ankles[side] - root - hips[side]
        off = feet[side]["lift"] + score[f"{side}_foot_up"]
        reach = (REACH * (lengths[knee] + lengths[ankle])) ** 2 - np.square(away[:, [0, 2]]).sum(-1)
        limit = np.minimum(limit, ankles[side][:, 1] + np.sqrt(np.maximum(reach, 0.04)) - hips[side][:, 1] + 3 * off)
    step = feet["left"]["swing"] + feet["right"]["swing"]
    height = score.stand + score["rise"] + score["bob"] * step
    excess = np.maximum(height - limit, 0)
    # a window's maximum, then its mean: never less than the excess, and smooth
    excess = np.convolve(np.pad(maximum_filter1d(excess, 5, mode="nearest"), 2, mode="edge"), np.array([1, 2, 3, 2, 1]) / 9, "valid")
    root[:, 1] = height - excess

    joints = np.zeros((len(t), T2M.joints, 3))
    joints[:, 0] = root
    for side in SIDES:
        hip, knee, ankle, toe = LEGS[side]
        joints[:, hip] = root + hips[side]
        facing = _rotation(1, 0.5 * (feet[side]["heading"] - heading + score[f"{side}_foot_turn"]))
        side_axis = (facing @ pelvis @ np.array([1.0, 0, 0]))
        joints[:, knee], joints[:, ankle] = _two_bones(joints[:, hip], ankles[side], lengths[knee], lengths[ankle], side_axis)
        joints[:, toe] = joints[:, ankle] + toes[side]

    # spine, in three equal parts; the shoulders turn against the hips
    third = _lean(score["spine_forward"] / 3, score["spine_left"] / 3 - drop * score["twist"],
                  (score["spine_turn"] + 12 * stride * score["twist"]) / 3)
    frame = pelvis
    for joint, parent in ((3, 0), (6, 3), (9, 6)):
        joints[:, joint] = joints[:, parent] + frame @ rest[joint]
        frame = frame @ third
    chest = frame
    bent = score["pelvis_forward"] + score["spine_forward"]
    neck = _rotation(1, heading + 0.4 * score["spine_turn"] + score["head_turn"]) @ \
        _lean(0.55 * bent + score["head_forward"], 0.3 * (score["spine_left"] + score["pelvis_left"]) + score["head_left"])
    joints[:, 12] = joints[:, 9] + chest @ rest[12]
    joints[:, 15] = joints[:, 12] + neck @ rest[15]

    for side, sign in SIDES.items():
        collar, shoulder, elbow, wrist = ARMS[side]
        swung = -sign * stride * score["arm_swing"]                                    # against the leg of its side
        ahead, out = score[f"{side}_arm_forward"] + swung, score[f"{side}_arm_out"]
        flexed = np.clip(score[f"{side}_elbow"] + 0.5 * np.maximum(swung, 0), 2, 145)
        raised = ease((np.hypot(ahead, out) - 50) / 110) * 22                           # the shoulder blade goes with a raised arm
        joints[:, collar] = joints[:, 9] + chest @ rest[collar]
        joints[:, shoulder] = joints[:, collar] + (chest @ _rotation(2, sign * raised)) @ rest[shoulder]
        upper = chest @ _swing(ahead, sign * out) @ _rotation(1, -sign * score[f"{side}_arm_turn"])
        joints[:, elbow] = joints[:, shoulder] + upper @ np.array([0, -lengths[elbow], 0])
        joints[:, wrist] = joints[:, elbow] + (upper @ _rotation(0, -flexed)) @ np.array([0, -lengths[wrist], 0])
    planted = np.stack([(feet[s]["swing"] == 0) & (score[f"{s}_foot_up"] == 0) & (score[f"{s}_foot_forward"] == 0)
                        & (score[f"{s}_foot_left"] == 0) for s in SIDES], 1)
    return joints, planted


def standing_height(lengths, width):
    """Pelvis height with both knees a little soft, feet width to each side of the middle."""
    heights = []
    for (hip, knee, ankle, toe), sign in ((LEGS["left"], 1), (LEGS["right"], -1)):
        offset = lengths[hip] * np.array(REST[hip]) / np.linalg.norm(REST[hip])
        leg = 0.994 * (lengths[knee] + lengths[ankle])
        heights.append(SOLE + FOOT_DROP * lengths[toe] + np.sqrt(leg ** 2 - (sign * width - offset[0]) ** 2 - offset[2] ** 2) - offset[1])
    return min(heights)


# clips

def make_clip(seed, index):
    """(name, joints (T, 22, 3) float64, captions, planted (T, 2) bool) of one clip; 40 to 160 frames."""
    rng = np.random.default_rng((seed, index))
    size, torso, arms = rng.uniform(0.86, 1.12), rng.uniform(0.94, 1.06), rng.uniform(0.94, 1.06)
    lengths = proportions(torso, arms)
    score = Score(rng)
    name, begin, end, captions = choreograph(score, rng, index)
    score.stand = standing_height(lengths, score.width)
    first = round(begin * FPS)
    last = int(np.clip(np.ceil(end * FPS), first + MIN_FRAMES, FRAMES))
    joints, planted = animate(score, lengths)
    start = rng.uniform(-1, 1, 3) * (1, 0, 1)
    return f"{name}_{index:04d}", size * (joints[first:last] + start), captions, planted[first:last]


def make_clips(seed=0, count=420):
    """Iterator of (clip_id, joints (T, 22, 3) float64 in metres at 20 fps, y up, floor at 0, joints in SMPL's order; captions list[str]).

    40 to 160 frames each. Clip i depends on seed and i alone, so a larger count only adds clips.
    """
    for index in range(count):
        name, joints, captions, _ = make_clip(seed, index)
        yield name, joints, captions
