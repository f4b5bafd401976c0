"""The demo set: people who walk, turn, jump, squat, wave and kick, animated without recorded data.

A clip is written as footsteps and curves over time.
The legs follow by inverse kinematics, the rest by forward kinematics.
Metres, seconds, degrees; y up, floor at 0. At heading 0 a body faces +z and its left is +x.
"""
from collections import namedtuple
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, uniform_filter1d
from scipy.spatial.transform import Rotation

from dataset.prepare.convert import DONE, write_dataset
from utils.errors import UserError
from utils.motion_spec import T2M

SEED, COUNT = 0, 480
FPS, MIN_FRAMES, MAX_FRAMES = 20, 64, 160
SOLE, REACH = 0.01, 0.9955      # height of a flat foot's toe; longest distance hip to ankle, in leg lengths
SIDES = {"left": 1, "right": -1}
LEGS = {"left": (1, 4, 7, 10), "right": (2, 5, 8, 11)}           # hip, knee, ankle, toe
ARMS = {"left": (13, 16, 18, 20), "right": (14, 17, 19, 21)}     # collar, shoulder, elbow, wrist
# direction of each bone of a standing body in its parent's frame
REST = np.array([
    (0, 1, 0), (.57, -.80, -.17), (-.57, -.80, -.17), (0, .955, -.29), (0, -1, 0), (0, -1, 0), (0, .98, .19),
    (0, -1, 0), (0, -1, 0), (0, 1, .05), (0, -.33, .944), (0, -.33, .944), (0, .99, -.15), (.53, .84, -.14),
    (-.53, .84, -.14), (0, .87, .49), (.93, .34, -.14), (-.93, .34, -.14), *[(0, -1, 0)] * 4])
# a foot leaves the floor at lift and lands, width to its own side, where the root is at time over
Step = namedtuple("Step", "side lift land over width height push")


def ease(u):
    """Return a curve from 0 at u = 0 to 1 at u = 1, constant outside, with the least jerk."""
    u = np.clip(u, 0, 1)
    return u ** 3 * (10 - 15 * u + 6 * u ** 2)


def pulse(t, start, end, rise=0.4):
    """Return a curve that goes from 0 up to 1 within `rise` seconds of start and is back at 0 at end."""
    return ease((t - start) / rise) * (1 - ease((t - end + rise) / rise))


def keyed(t, *keys):
    """Return a curve through (time, value) keys that never overshoots them and rests at both ends."""
    times, values = np.array([(keys[0][0] - 1, keys[0][1]), *keys, (keys[-1][0] + 1, keys[-1][1])]).T
    return PchipInterpolator(times, values)(np.clip(t, times[0], times[-1]))


def arm(forward, out, turn, elbow):
    """Return an arm's pose: raised forward, raised to its side, upper arm turned inward, elbow bent."""
    return dict(arm_forward=forward, arm_out=out, arm_turn=turn, elbow=elbow)


class Score:
    """Footsteps and named curves (T,) of a clip; at first of a person who stands, never quite still."""

    def __init__(self, rng):
        self.t, self.curves, self.steps = np.arange(MAX_FRAMES) / FPS, {}, []
        self.heading, self.width = rng.uniform(-180, 180), rng.uniform(0.09, 0.13)
        self.toe_out, self.arm_swing = rng.uniform(4, 12), rng.uniform(24, 37)
        self.add(balance=0.35, spine_forward=rng.uniform(-1, 5))
        out, turn, elbow = rng.uniform(6, 13), rng.uniform(5, 25), rng.uniform(10, 24)
        for side in SIDES:
            self.add(side, **arm(rng.uniform(-2, 5), out, turn, elbow), load=1)
        for name in ("spine_forward", "spine_turn", "head_turn", ("left", "elbow"), ("right", "elbow")):
            waves = rng.uniform(0.12, 0.5, 3)[:, None] * self.t + rng.uniform(0, 1, 3)[:, None]
            self.curves[name] = self[name] + 2 * np.sin(2 * np.pi * waves).mean(0)

    def __getitem__(self, name):
        return self.curves.get(name, np.zeros(MAX_FRAMES))

    def add(self, side=None, **values):
        """Add a constant or a curve to each named curve of the body, or of one of its sides."""
        for name, value in values.items():
            key = (side, name) if side else name
            self.curves[key] = self[key] + value

    def pose(self, weight, side, **values):
        """Move each named curve of a side towards a value: weight 0 keeps it, 1 replaces it."""
        for name, value in values.items():
            self.add(side, **{name: weight * (value - self[side, name])})


# actions: (score, start, rng) → (end, caption); each ends standing

def gait(score, start, count, period, first, forward=0.0, turn=0.0, width=0.1):
    """Write alternating steps, one every `period` seconds, that turn by `turn` in all. Return the end."""
    end = start + (count - 0.2) * period
    envelope = pulse(score.t, start - 0.2, end + 0.1, min(1.1 * period + 0.2, 0.5 * (end - start)))
    score.add(forward_speed=forward * envelope, turn_rate=turn * envelope / (envelope.sum() / FPS))
    height, push = (0.08, 36) if forward > 0 else (0.055, 20)
    for i in range(count):
        side = list(SIDES)[(i + (first == "right")) % 2]
        lift, land = start + i * period, start + (i + 0.8) * period
        over = end + 0.1 if i >= count - 2 else 0.5 * (land + lift + 2 * period)
        score.steps.append(Step(side, lift, land, over, width, height * (0.7 if i == 0 else 1), push))
    return end + 0.1


def walk(score, start, rng):
    way = rng.choice(("forward", "backward", "left", "right"))
    pace, period, speed = (("slowly", 0.62, 0.8), ("quickly", 0.46, 1.5))[rng.integers(2)]
    speed *= rng.uniform(0.9, 1.1) * (-0.5 if way == "backward" else 1)
    turn, count = SIDES.get(way, 0) * rng.uniform(50, 80), int(rng.uniform(2.2, 3.6) / period)
    end = gait(score, start, count, period, rng.choice(list(SIDES)), speed, turn, 0.12 if turn else 0.085)
    return end, f"walks {f'in a curve to the {way}' if turn else way} {pace}"


def turn(score, start, rng):
    side = rng.choice(list(SIDES))
    how, count, angle = (("a quarter", 3, 90), ("around", 5, 180))[rng.integers(2)]
    end = gait(score, start, count, rng.uniform(0.42, 0.55), side, turn=SIDES[side] * angle)
    score.add(head_turn=SIDES[side] * 20 * pulse(score.t, start - 0.2, end - 0.2, 0.5))
    return end, f"turns {how} to the {side}"


def jump(score, start, rng):
    t, high, distance = score.t, rng.uniform(0.14, 0.32), rng.choice((0, rng.uniform(0.4, 0.9)))
    air = np.sqrt(8 * high / 9.81)
    crouch, off, land, end = np.cumsum([start + 0.42, 0.2, air, 0.75])
    up = 0.5 * 9.81 * np.maximum((t - off) * (land - t), 0)
    squat = keyed(t, (start, 0), (crouch, -0.22), (off, 0.06), (land, 0.04), (land + 0.2, -0.17), (end, 0))
    heel = keyed(t, (crouch, 0), (off, 48), (off + 0.6 * air, 32), (land, 22), (land + 0.14, 0))
    raised = keyed(t, (start, 0), (crouch - 0.08, -38), (off + 0.6 * air, 115), (land + 0.1, 60), (end, 0))
    travel = keyed(t, (crouch, 0), (off, 0.16), (land, 0.84), (land + 0.3, 1))
    score.add(rise=squat + up, forward_speed=distance * np.gradient(travel) * FPS)
    score.add(spine_forward=-110 * squat, pelvis_forward=-80 * squat, root_forward=0.45 * squat)
    for side in SIDES:
        score.add(side, foot_up=up, foot_pitch=heel, arm_forward=raised, elbow=0.25 * np.abs(raised))
        score.steps.append(Step(side, off, land, end, score.width, 0, 0))
    return end, f"jumps {'forward' if distance else 'up'}"


def squat(score, start, rng):
    down, deep = rng.uniform(0.65, 0.8), rng.uniform(0.26, 0.46)
    end = start + 2 * down + rng.uniform(0.05, 0.3)
    bend = deep * pulse(score.t, start, end, down)
    score.add(rise=-bend, root_forward=-0.42 * bend, pelvis_forward=70 * bend, spine_forward=35 * bend)
    score.add(head_forward=-40 * bend)
    for side in SIDES:      # level, however far the chest leans
        score.pose(bend / deep, side, **arm(80 + 105 * bend, 6, 10, 12))
    return end, "squats with the arms stretched forward"


def wave(score, start, rng):
    side, t = rng.choice(("left", "right", "both")), score.t
    rate, wide, high = rng.uniform(1.3, 2.2), rng.uniform(16, 30), rng.uniform(62, 112)
    end = start + rng.uniform(2.4, 3.4)
    beat = np.sin(2 * np.pi * rate * (t - start)) * pulse(t, start + 0.3, end - 0.25, 0.4)
    for name in SIDES if side == "both" else (side,):
        score.pose(pulse(t, start, end, 0.55), name, **arm(24, high, -78, 74 + wide * beat))
    return end, f"waves with {'both hands' if side == 'both' else f'the {side} hand'}"


def kick(score, start, rng):
    side, high, t, end = rng.choice(list(SIDES)), rng.uniform(0.75, 1.1), score.t - start, 1.42
    shape = keyed(t, (0.36, 0), (0.68, 1), (0.74, 1), (0.98, 0))
    gone = keyed(t, (0, 0), (0.48, 1), (0.98, 1), (end, 0))
    away = pulse(t, -0.15, end + 0.1, 0.45)
    score.add(side, foot_forward=0.08 * gone + 0.72 * shape, foot_up=0.4 * gone + 0.42 * high * shape)
    score.add(side, foot_pitch=25 * gone - 75 * shape, load=-away)
    score.add(pelvis_forward=-12 * shape, spine_forward=6 * gone, balance=0.5 * away)
    for name in SIDES:
        score.pose(0.9 * pulse(t, 0, end), name, **arm(30, 18, 20, 105))
    return start + end, f"kicks with the {side} foot"


ACTIONS = dict(walk=walk, turn=turn, jump=jump, squat=squat, wave=wave, kick=kick)


def rotations(axes, *degrees):
    """Return matrices (T, 3, 3) that turn about each of `axes` by angles (T,); the last axis turns first."""
    angles = np.stack(np.broadcast_arrays(*degrees), -1)
    return Rotation.from_euler(axes, angles, degrees=True).as_matrix().reshape(-1, 3, 3)


def place_feet(score, path, heading, bones):
    """Return curves of both feet, which step along the root's path (T, 3) and are still between two steps.

    base, ankle, to_toe (T, 3): place of the flat foot, ankle, vector to the toe; lift, heading (T,);
    swing (T,): 0 on the floor, 1 in the middle of a step.
    """
    feet, t = {}, score.t
    left, _, forward = np.moveaxis(rotations("Y", heading), -1, 0)
    for side, sign in SIDES.items():
        base = np.tile(path[0] + sign * score.width * left[0], (len(t), 1))
        yaw = np.full(len(t), heading[0] + sign * score.toe_out)
        lift, pitch, swing = score[side, "foot_up"], score[side, "foot_pitch"], np.zeros(len(t))
        for step in (step for step in score.steps if step.side == side):
            at, time = min(round(step.over * FPS), len(t) - 1), step.land - step.lift
            u = np.clip((t - step.lift) / time, 0, 1)
            base += ease(u)[:, None] * (path[at] + sign * step.width * left[at] - base[-1])
            yaw += ease(u) * (heading[at] + sign * score.toe_out - yaw[-1])
            lift = lift + step.height * u ** 1.6 * (1 - u) ** 2.2 / 0.0753      # divided by the maximum
            swing = np.maximum(swing, np.sin(np.pi * u) ** 2)
            heel = ease((t - step.lift + 0.15) / (0.15 + 0.15 * time)) * (1 - ease((u - 0.15) / 0.65))
            pitch = pitch + step.push * heel
        flat = bones[LEGS[side][3]]
        level, toe = (rotations("YX", yaw, angle) @ flat for angle in (0, pitch))
        ankle = base + score[side, "foot_forward"][:, None] * forward
        ankle[:, 1] += SOLE - flat[1] + lift
        ankle += (pitch > 0)[:, None] * (level - toe)       # the heel rises about the toe
        feet[side] = dict(base=base, ankle=ankle, to_toe=toe, lift=lift, heading=yaw, swing=swing)
    return feet


def place_pelvis(score, feet, path, heading, bones):
    """Return the root (T, 3), over the foot that carries, and the rotation of the pelvis (T, 3, 3)."""
    left, _, forward = np.moveaxis(rotations("Y", heading), -1, 0)
    load = [score[side, "load"] * (1 - ease(1.6 * feet[side]["swing"])) + 0.02 for side in SIDES]
    spread = ((feet["left"]["base"] - feet["right"]["base"]) * left).sum(-1)
    shift = gaussian_filter1d(score["balance"] * spread * (load[0] / sum(load) - 0.5), 2.5)
    root = path + shift[:, None] * left + score["root_forward"][:, None] * forward
    pelvis = rotations("YXZ", heading - 6 * score["stride"], score["pelvis_forward"], -3 * score["drop"])
    limit = np.full(len(root), np.inf)
    for side, (hip, knee, ankle, _) in LEGS.items():        # no foot may be out of reach
        away = feet[side]["ankle"] - root - pelvis @ bones[hip]
        reach = (REACH * (bones[knee] + bones[ankle])[1]) ** 2 - np.square(away[:, [0, 2]]).sum(-1)
        limit = np.minimum(limit, away[:, 1] + np.sqrt(np.maximum(reach, 0.04)) + 3 * feet[side]["lift"])
    standing = SOLE - (bones[1] + 0.98 * (bones[4] + bones[7]) + bones[10])[1]
    height = standing + score["rise"] + 0.012 * (feet["left"]["swing"] + feet["right"]["swing"])
    excess = maximum_filter1d(np.maximum(height - limit, 0), 5)
    root[:, 1] = height - gaussian_filter1d(uniform_filter1d(excess, 3), 0.5)   # smooth, and never too high
    return root, pelvis


def place_legs(joints, feet, pelvis, heading, bones):
    """Fill in hips, knees, ankles and toes. A knee points halfway between pelvis and foot."""
    for side, (hip, knee, ankle, toe) in LEGS.items():
        thigh, shin = -bones[knee][1], -bones[ankle][1]
        joints[:, hip] = joints[:, 0] + pelvis @ bones[hip]
        line = feet[side]["ankle"] - joints[:, hip]
        distance = np.linalg.norm(line, axis=-1, keepdims=True)
        kept, line = np.clip(distance, 0.3 * (thigh + shin), 0.9995 * (thigh + shin)), line / distance
        axis = rotations("Y", 0.5 * (feet[side]["heading"] - heading)) @ pelvis @ np.array([1.0, 0, 0])
        front = np.cross(line, axis)
        along = (thigh ** 2 - shin ** 2 + kept ** 2) / (2 * kept)
        front *= np.sqrt(np.maximum(thigh ** 2 - along ** 2, 0)) / np.linalg.norm(front, axis=1)[:, None]
        joints[:, knee] = joints[:, hip] + along * line + front
        joints[:, ankle] = joints[:, hip] + kept * line
        joints[:, toe] = joints[:, ankle] + feet[side]["to_toe"]


def place_upper_body(joints, score, pelvis, heading, bones):
    """Fill in spine, head and arms. The shoulders turn against the hips, an arm swings against its leg."""
    turned = score["spine_turn"] / 3 + 4 * score["stride"]
    chest, third = pelvis, rotations("XZY", score["spine_forward"] / 3, score["drop"], turned)
    for joint, parent in ((3, 0), (6, 3), (9, 6)):
        joints[:, joint] = joints[:, parent] + chest @ bones[joint]
        chest = chest @ third
    bent = 0.55 * (score["pelvis_forward"] + score["spine_forward"]) + score["head_forward"]
    neck = rotations("YX", heading + score["head_turn"], bent)
    joints[:, 12] = joints[:, 9] + chest @ bones[12]
    joints[:, 15] = joints[:, 12] + neck @ bones[15]
    for side, sign in SIDES.items():
        collar, shoulder, elbow, wrist = ARMS[side]
        swing = -sign * score["stride"] * score.arm_swing
        ahead, out = score[side, "arm_forward"] + swing, score[side, "arm_out"]
        bend = np.clip(score[side, "elbow"] + 0.5 * np.maximum(swing, 0), 2, 145)
        joints[:, collar] = joints[:, 9] + chest @ bones[collar]
        joints[:, shoulder] = joints[:, collar] + chest @ bones[shoulder]
        raised = Rotation.from_rotvec(np.stack([-ahead, 0 * ahead, sign * out], -1), degrees=True).as_matrix()
        upper = chest @ raised @ rotations("Y", -sign * score[side, "arm_turn"])
        joints[:, elbow] = joints[:, shoulder] + upper @ bones[elbow]
        joints[:, wrist] = joints[:, elbow] + upper @ rotations("X", -bend) @ bones[wrist]


def animate(score, lengths):
    """Turn a score into joints (T, 22, 3) float64 in metres. lengths: (22,) of the bones, in metres."""
    bones = lengths[:, None] * REST / np.linalg.norm(REST, axis=1, keepdims=True)
    heading = score.heading + np.cumsum(score["turn_rate"]) / FPS
    forward = rotations("Y", heading)[..., 2]
    path = np.cumsum(score["forward_speed"][:, None] * forward, 0) / FPS
    feet = place_feet(score, path, heading, bones)
    ahead = ((feet["left"]["base"] - feet["right"]["base"]) * forward).sum(-1)
    swing = gaussian_filter1d(feet["left"]["swing"] - feet["right"]["swing"], 1.0)
    score.add(stride=np.tanh(ahead / 0.6), drop=swing)      # of the left foot: ahead, in the air
    joints = np.zeros((MAX_FRAMES, T2M.joints, 3))
    joints[:, 0], pelvis = place_pelvis(score, feet, path, heading, bones)
    place_legs(joints, feet, pelvis, heading, bones)
    place_upper_body(joints, score, pelvis, heading, bones)
    return joints


def make_clips(seed=SEED, count=COUNT):
    """Yield (name, joints (T, 22, 3) float64 in metres at 20 fps, captions) of `count` clips.

    A clip holds one action, or two in turn, in 64 to 160 frames, and depends on the seed and its index alone.
    """
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        lengths = np.array(T2M.bone_lengths)
        lengths[[3, 6, 9, 12, 15]] *= rng.uniform(0.94, 1.06)       # torso, then arms, beside the legs
        lengths[[13, 14, *range(16, 22)]] *= rng.uniform(0.94, 1.06)
        names = [list(ACTIONS)[index % len(ACTIONS)], rng.choice(list(ACTIONS))]
        names = names[:1 if names[0] == names[1] or rng.random() < 0.4 else 2]
        score, end, phrases = Score(rng), rng.uniform(0.25, 0.6), []
        for name in names:
            own, twice = rng.integers(2 ** 32), rng.random() < 0.5 and name in ("jump", "squat", "kick")
            for _ in range(1 + twice):
                end, phrase = ACTIONS[name](score, end + 0.1, np.random.default_rng(own))
            phrases.append(phrase + " twice" * twice)
        frames = int(np.clip((end + rng.uniform(0.2, 0.5)) * FPS, MIN_FRAMES, MAX_FRAMES))
        joints = rng.uniform(0.86, 1.12) * animate(score, lengths)[:frames]
        yield f"{'_'.join(names)}_{index:04d}", joints, ["a person " + " and then ".join(phrases)]


def ensure_demo(root, seed=SEED, count=COUNT, progress=True):
    """Make the demo set in the folder `root`. Return its Report, or None when it was there already.

    Raises UserError when `root` cannot be written or holds something else.
    """
    root = Path(root)
    if (root / "all.txt").is_file():        # written last
        return None
    if root.is_dir() and not (root / DONE).exists() and any(root.iterdir()):
        raise UserError(f"{root}: holds something else than the demo set; name an empty folder")
    return write_dataset(root, make_clips(seed, count), "demo", progress=progress)
