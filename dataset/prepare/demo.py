"""The demo set: people who walk, turn, jump, squat, wave and kick, animated without recorded data.

A clip is written as footsteps and curves over time: the legs follow by inverse kinematics, the rest by
forward kinematics. Metres, seconds, degrees; y up, floor at 0; at heading 0 a body faces +z, its left is +x.
"""
from collections import defaultdict, namedtuple
from itertools import accumulate
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, uniform_filter1d
from scipy.spatial.transform import Rotation

from dataset.prepare.convert import DONE, write_dataset
from utils.errors import UserError
from utils.motion_spec import T2M

FPS, MIN_FRAMES, MAX_FRAMES = 20, 64, 160
SOLE, REACH = 0.01, 0.9955      # height of a flat foot's toe; longest distance hip to ankle, in leg lengths
SIDES = {"left": 1, "right": -1}
LEGS = ((1, 4, 7, 10), (2, 5, 8, 11))           # hip, knee, ankle, toe of each
ARM = ("arm_forward", "arm_out", "arm_turn", "elbow")   # raised forward, to its side, turned inward, bent
# direction of each bone of a standing body in its parent's frame
REST = np.array([
    (0, 1, 0), (.57, -.80, -.17), (-.57, -.80, -.17), (0, .955, -.29), (0, -1, 0), (0, -1, 0), (0, .98, .19),
    (0, -1, 0), (0, -1, 0), (0, 1, .05), (0, -.33, .944), (0, -.33, .944), (0, .99, -.15), (.53, .84, -.14),
    (-.53, .84, -.14), (0, .87, .49), (.93, .34, -.14), (-.93, .34, -.14), *[(0, -1, 0)] * 4])
# a foot leaves the floor at lift and lands, width to its own side, where the root is at time over
Step = namedtuple("Step", "side lift land over width height push")
# (T, 3): place of the flat foot, ankle, vector to the toe; (T,): the toe's height, heading, 1 amid a step
Foot = namedtuple("Foot", "base ankle to_toe lift heading swing")


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


def rotations(axes, *degrees):
    """Return matrices (T, 3, 3) that turn about each of `axes` by angles (T,); the last axis turns first."""
    angles = np.stack(np.broadcast_arrays(*degrees), -1)
    return Rotation.from_euler(axes, angles, degrees=True).as_matrix().reshape(-1, 3, 3)


class Score(defaultdict):
    """Footsteps, and curves (T,) by name or (side, name), at first of a person who stands, but not still."""

    def __init__(self, rng):
        super().__init__(lambda: np.zeros(MAX_FRAMES))
        self.t, self.steps = np.arange(MAX_FRAMES) / FPS, []
        self.heading, self.width = rng.uniform(-180, 180), rng.uniform(0.09, 0.13)
        self.toe_out, self.arm_swing = rng.uniform(4, 12), rng.uniform(24, 37)
        self.add(balance=0.35, spine_forward=rng.uniform(-1, 5))
        arm = rng.uniform(6, 13), rng.uniform(5, 25), rng.uniform(10, 24)
        for side in SIDES:
            self.pose(1, side, rng.uniform(-2, 5), *arm)
            self.add(side, load=1)
        for name in ("spine_forward", "spine_turn", "head_turn", ("left", "elbow"), ("right", "elbow")):
            waves = rng.uniform(0.12, 0.5, 3)[:, None] * self.t + rng.uniform(0, 1, 3)[:, None]
            self[name] = self[name] + 2 * np.sin(2 * np.pi * waves).mean(0)

    def add(self, side=None, **values):
        """Add a constant or a curve to each named curve of the body, or of one of its sides."""
        for name, value in values.items():
            key = (side, name) if side else name
            self[key] = self[key] + value

    def pose(self, weight, side, *arm):
        """Move an arm towards a pose: weight 0 keeps its own, 1 replaces it."""
        for name, value in zip(ARM, arm):
            self.add(side, **{name: weight * (value - self[side, name])})


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
    score.add(rise=squat + up, forward_speed=distance * np.gradient(travel) * FPS,
              spine_forward=-110 * squat, pelvis_forward=-80 * squat, root_forward=0.45 * squat)
    for side in SIDES:
        score.add(side, foot_up=up, foot_pitch=heel, arm_forward=raised, elbow=0.25 * np.abs(raised))
        score.steps.append(Step(side, off, land, end, score.width, 0, 0))
    return end, f"jumps {'forward' if distance else 'up'}"


def squat(score, start, rng):
    down, deep = rng.uniform(0.65, 0.8), rng.uniform(0.26, 0.46)
    end = start + 2 * down + rng.uniform(0.05, 0.3)
    bend = deep * pulse(score.t, start, end, down)
    score.add(rise=-bend, root_forward=-0.42 * bend, pelvis_forward=70 * bend, spine_forward=35 * bend,
              head_forward=-40 * bend)
    for side in SIDES:      # level, however far the chest leans
        score.pose(bend / deep, side, 80 + 105 * bend, 6, 10, 12)
    return end, "squats with the arms stretched forward"


def wave(score, start, rng):
    side, t = rng.choice(("left", "right", "both")), score.t
    rate, wide, high = rng.uniform(1.3, 2.2), rng.uniform(16, 30), rng.uniform(62, 112)
    end = start + rng.uniform(2.4, 3.4)
    beat = np.sin(2 * np.pi * rate * (t - start)) * pulse(t, start + 0.3, end - 0.25, 0.4)
    for name in SIDES if side == "both" else (side,):
        score.pose(pulse(t, start, end, 0.55), name, 24, high, -78, 74 + wide * beat)
    return end, f"waves with {'both hands' if side == 'both' else f'the {side} hand'}"


def kick(score, start, rng):
    side, high, t, end = rng.choice(list(SIDES)), rng.uniform(0.75, 1.1), score.t - start, 1.42
    shape = keyed(t, (0.36, 0), (0.68, 1), (0.74, 1), (0.98, 0))
    gone = keyed(t, (0, 0), (0.48, 1), (0.98, 1), (end, 0))
    away = pulse(t, -0.15, end + 0.1, 0.45)
    score.add(side, foot_forward=0.08 * gone + 0.72 * shape, foot_up=0.4 * gone + 0.42 * high * shape,
              foot_pitch=25 * gone - 75 * shape, load=-away)
    score.add(pelvis_forward=-12 * shape, spine_forward=6 * gone, balance=0.5 * away)
    for name in SIDES:
        score.pose(0.9 * pulse(t, 0, end), name, 30, 18, 20, 105)
    return start + end, f"kicks with the {side} foot"


ACTIONS = dict(walk=walk, turn=turn, jump=jump, squat=squat, wave=wave, kick=kick)  # each ends standing


def place_feet(score, path, heading, bones):
    """Return the left and the right Foot, which step along the root's path (T, 3) and else are still."""
    feet, t = [], score.t
    left, _, forward = np.moveaxis(rotations("Y", heading), -1, 0)
    for (side, sign), (*_, toe) in zip(SIDES.items(), LEGS):
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
        level, to_toe = (rotations("YX", yaw, angle) @ bones[toe] for angle in (0, pitch))
        ankle = base + score[side, "foot_forward"][:, None] * forward
        ankle[:, 1] += SOLE - bones[toe][1] + lift
        ankle += (pitch > 0)[:, None] * (level - to_toe)       # the heel rises about the toe
        feet.append(Foot(base, ankle, to_toe, lift, yaw, swing))
    return feet


def place_body(score, feet, root, pelvis, heading, bones):
    """Return all joints (T, 22, 3). Knees point halfway between pelvis and foot, arms swing against legs."""
    joints = np.repeat(root[:, None], T2M.joints, 1)
    for foot, (hip, knee, ankle, toe) in zip(feet, LEGS):
        thigh, shin = -bones[knee][1], -bones[ankle][1]
        joints[:, hip] = root + pelvis @ bones[hip]
        line = foot.ankle - joints[:, hip]
        distance = np.linalg.norm(line, axis=-1, keepdims=True)
        kept, line = np.clip(distance, 0.3 * (thigh + shin), 0.9995 * (thigh + shin)), line / distance
        axis = rotations("Y", 0.5 * (foot.heading - heading)) @ pelvis @ np.array([1.0, 0, 0])
        front = np.cross(line, axis)
        along = (thigh ** 2 - shin ** 2 + kept ** 2) / (2 * kept)
        front *= np.sqrt(np.maximum(thigh ** 2 - along ** 2, 0)) / np.linalg.norm(front, axis=1)[:, None]
        joints[:, knee] = joints[:, hip] + along * line + front
        joints[:, ankle] = joints[:, hip] + kept * line
        joints[:, toe] = joints[:, ankle] + foot.to_toe
    turned = score["spine_turn"] / 3 + 4 * score["stride"]
    third = rotations("XZY", score["spine_forward"] / 3, score["drop"], turned)
    bent = 0.55 * (score["pelvis_forward"] + score["spine_forward"]) + score["head_forward"]
    *spine, chest = accumulate((pelvis, third, third, third), np.matmul)
    frames = dict(zip((3, 6, 9), spine)) | dict.fromkeys((12, 13, 14, 16, 17), chest)   # joint → its bone's
    frames[15] = rotations("YX", heading + score["head_turn"], bent)
    for (side, sign), elbow in zip(SIDES.items(), (18, 19)):
        swing = -sign * score["stride"] * score.arm_swing
        ahead, out = score[side, "arm_forward"] + swing, score[side, "arm_out"]
        bend = np.clip(score[side, "elbow"] + 0.5 * np.maximum(swing, 0), 2, 145)
        raised = Rotation.from_rotvec(np.stack([-ahead, 0 * ahead, sign * out], -1), degrees=True).as_matrix()
        frames[elbow] = chest @ raised @ rotations("Y", -sign * score[side, "arm_turn"])
        frames[elbow + 2] = frames[elbow] @ rotations("X", -bend)
    for joint in sorted(frames):
        joints[:, joint] = joints[:, T2M.parents[joint]] + frames[joint] @ bones[joint]
    return joints


def animate(score, lengths):
    """Turn a score into joints (T, 22, 3) float64 in metres. lengths: (22,) of the bones, in metres."""
    bones = lengths[:, None] * REST / np.linalg.norm(REST, axis=1, keepdims=True)
    heading = score.heading + np.cumsum(score["turn_rate"]) / FPS
    side, _, forward = np.moveaxis(rotations("Y", heading), -1, 0)
    path = np.cumsum(score["forward_speed"][:, None] * forward, 0) / FPS
    left, right = feet = place_feet(score, path, heading, bones)
    apart = left.base - right.base
    score.add(stride=np.tanh((apart * forward).sum(-1) / 0.6),      # how far the left foot is ahead
              drop=gaussian_filter1d(left.swing - right.swing, 1.0))    # and in the air
    pelvis = rotations("YXZ", heading - 6 * score["stride"], score["pelvis_forward"], -3 * score["drop"])
    load = [score[name, "load"] * (1 - ease(1.6 * foot.swing)) + 0.02 for name, foot in zip(SIDES, feet)]
    shift = score["balance"] * (apart * side).sum(-1) * (load[0] / sum(load) - 0.5)
    # the root is over the foot that carries, and no foot out of reach
    root = path + gaussian_filter1d(shift, 2.5)[:, None] * side + score["root_forward"][:, None] * forward
    standing = SOLE - (bones[1] + 0.98 * (bones[4] + bones[7]) + bones[10])[1]
    height = standing + score["rise"] + 0.012 * (left.swing + right.swing)
    excess = np.zeros(MAX_FRAMES)
    for foot, (hip, knee, ankle, _) in zip(feet, LEGS):
        away = foot.ankle - root - pelvis @ bones[hip]
        reach = (REACH * (bones[knee] + bones[ankle])[1]) ** 2 - np.square(away[:, [0, 2]]).sum(-1)
        limit = away[:, 1] + np.sqrt(np.maximum(reach, 0.04)) + 3 * foot.lift
        excess = np.maximum(excess, height - limit)
    excess = maximum_filter1d(excess, 5)
    root[:, 1] = height - gaussian_filter1d(uniform_filter1d(excess, 3), 0.5)   # smooth, and never too high
    return place_body(score, feet, root, pelvis, heading, bones)


def make_clips(seed=0, count=480):
    """Yield (name, joints (T, 22, 3) float64 in metres at 20 fps, captions) of `count` clips.

    A clip holds one action, or two in turn, and depends on the seed and its index alone.
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


def ensure_demo(root, count=480):
    """Make the demo set in a folder. Return its report, or None where it is there already.

    Raises UserError for a folder that cannot be written or holds something else.
    """
    made, root = Path(root, "all.txt").is_file(), Path(root)    # all.txt is written last
    if not made and not Path(root, DONE).exists() and any(root.glob("*")):
        raise UserError(f"{root}: holds something else than the demo set; name an empty folder")
    return None if made else write_dataset(root, make_clips(count=count), "demo")
