"""The demo set: people who walk, jump, squat, wave and kick, animated without recorded data.

Each bone follows angles over time; the lower foot stays where it is. Metres, seconds, degrees; y up, floor at
0; at heading 0 a body faces +z, its left is +x.
"""
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation
from scipy.special import softmax

from dataset.prepare.convert import DONE, write_dataset
from utils.errors import UserError
from utils.motion_spec import T2M

FPS, MIN_FRAMES, MAX_FRAMES = 20, 65, 160
SOLE, CARRIES = 0.01, 0.01      # height of a flat foot's toe; how much higher a foot is that carries little
SIDES = {"left": 1, "right": -1}
# how far the bone to each joint bends with the torso
TORSO = dict(spine1=0.3, spine2=0.65, spine3=1, neck=1, head=0.5, left_collar=1, right_collar=1,
             left_shoulder=1, right_shoulder=1)
# direction of each bone of a standing body
REST = np.array([
    (0, 1, 0), (.57, -.80, -.17), (-.57, -.80, -.17), (0, .955, -.29), (0, -1, 0), (0, -1, 0), (0, .98, .19),
    (0, -1, 0), (0, -1, 0), (0, 1, .05), (0, -.33, .944), (0, -.33, .944), (0, .99, -.15), (.53, .84, -.14),
    (-.53, .84, -.14), (0, .87, .49), (.93, .34, -.14), (-.93, .34, -.14), *[(0, -1, 0)] * 4])
# thigh forwards, knee bent and toe up at each tenth of a stride, which begins as the foot lands
GAIT = CubicSpline(np.linspace(0, 1, 11), [
    (25, 3, 10), (21, 13, 0), (14, 14, 0), (5, 10, 0), (-5, 6, -4), (-13, 9, -18), (-9, 34, -42),
    (8, 58, -45), (22, 53, -20), (28, 21, 2), (25, 3, 10)], bc_type="periodic")


def keyed(t, *keys):
    """Return a curve through (time, value) keys that never overshoots them and rests at both ends."""
    times, values = np.array([(keys[0][0] - 1, keys[0][1]), *keys, (keys[-1][0] + 1, keys[-1][1])]).T
    return PchipInterpolator(times, values)(np.clip(t, times[0], times[-1]))


def pulse(t, start, end, rise=0.5):
    """Return a curve that goes from 0 up to 1 within `rise` seconds of start and is back at 0 at end."""
    return keyed(t, (start, 0), (start + rise, 1), (end - rise, 1), (end, 0))


class Score:
    """The angles of a body over time, at first of a person who stands, but not still."""

    def __init__(self, rng):
        self.t = np.arange(MAX_FRAMES) / FPS
        self.angles = np.zeros((T2M.joints, 3, MAX_FRAMES))     # of the bone to each joint, about y, z and x
        self.angles[:, 0] = rng.uniform(-180, 180)
        self.air = np.zeros(MAX_FRAMES)                         # height of the lower foot above the floor
        self.arm_swing = rng.uniform(0.5, 1)
        rate, phase = rng.uniform(0.12, 0.5, (4, 3, 1)), rng.uniform(0, 1, (4, 3, 1))
        lean, twist, *sway = 3 * np.sin(2 * np.pi * (rate * self.t + phase)).mean(1)
        self.bend(rng.uniform(-1, 5) + lean, twist)
        upper, out, elbow = rng.uniform(-5, 2), rng.uniform(6, 13), rng.uniform(10, 24)
        for side, own in zip(SIDES, sway):
            self.leg(side, 3, 7, 0, 1.5)
            self.arm(side, upper + own, out, upper + elbow + 2 * own, 0.5 * out)

    def turn(self, joint, x=0, y=0, z=0):
        """Turn the bone that ends in a joint about the axes x, y and z."""
        for own, angle in zip(self.angles[T2M.joint_names.index(joint)], (y, z, x)):
            own += angle

    def bend(self, forwards, twist=0):
        """Bend the torso forwards, and turn it to the left."""
        for joint, share in TORSO.items():
            self.turn(joint, share * forwards, share * twist)

    def leg(self, side, thigh, knee, toe, out=0):
        """Swing a thigh forwards, bend the knee, lift the toe, and move the leg to its side."""
        for joint, angle in (("knee", thigh), ("ankle", thigh - knee)):
            self.turn(f"{side}_{joint}", -angle, 0, SIDES[side] * out)
        self.turn(f"{side}_foot", -toe)

    def arm(self, side, upper, out, lower, lower_out, weight=1):
        """Swing upper arm and forearm forwards and out: weight 0 keeps their own angles, 1 replaces them."""
        for joint, angle, outwards in (("elbow", upper, out), ("wrist", lower, lower_out)):
            _, z, x = self.angles[T2M.joint_names.index(f"{side}_{joint}")]
            self.turn(f"{side}_{joint}", -weight * (angle + x), 0, weight * (SIDES[side] * outwards - z))


def walk(score, start, rng):
    way, first = rng.choice(("forward", "backward", "left", "right")), rng.choice(list(SIDES))
    pace, count, period, size = (("slowly", 2, 1.3, 0.75), ("quickly", 3, 1.0, 1.1))[rng.integers(2)]
    period, turn = period * rng.uniform(0.92, 1.08), SIDES.get(way, 0) * rng.uniform(50, 80)
    size, onwards = (0.6 * size, -1) if way == "backward" else (size, 1)
    end = start + count * period
    weight = pulse(score.t, start, end, 0.7 * period)
    score.angles[:, 0] += turn * np.cumsum(weight) / weight.sum()
    for side, sign in SIDES.items():
        phase = 0.3 + 0.5 * (side == first) + onwards * (score.t - start) / period
        thigh, knee, toe = size * weight * GAIT(phase % 1).T
        score.leg(side, thigh, knee, toe, 3 * sign * weight * np.cos(2 * np.pi * (phase - 0.3)))
        score.turn(f"{side}_elbow", score.arm_swing * thigh)
        score.turn(f"{side}_wrist", score.arm_swing * thigh - 8 * weight)
    return end, f"walks {f'in a curve to the {way}' if turn else way} {pace}"


def jump(score, start, rng):
    high, off = rng.uniform(0.14, 0.3), start + 0.7
    land = off + np.sqrt(8 * high / 9.81)
    end = land + 0.75
    crouch = keyed(score.t, (start, 0), (off - 0.24, 1), (off, 0), (land, 0.1), (land + 0.2, 0.8), (end, 0))
    heel = keyed(score.t, (off - 0.2, 0), (off, 48), (land, 22), (land + 0.14, 0))
    arms = keyed(score.t, (start, 0), (off - 0.25, -38), (off + 0.2, 115), (land + 0.1, 60), (end, 0))
    score.air += 0.5 * 9.81 * np.maximum((score.t - off) * (land - score.t), 0)
    score.bend(32 * crouch)
    for side in SIDES:
        score.leg(side, 45 * crouch, 80 * crouch, -heel)
        score.turn(f"{side}_elbow", -arms)
        score.turn(f"{side}_wrist", -arms - 0.25 * np.abs(arms))
    return end, "jumps up"


def squat(score, start, rng):
    down = rng.uniform(0.65, 0.8)
    end = start + 2 * down + rng.uniform(0.05, 0.3)
    shape = pulse(score.t, start, end, down)
    bent = rng.uniform(0.7, 1) * shape
    score.bend(45 * bent)
    for side in SIDES:
        score.leg(side, 85 * bent, 120 * bent, 0, 8 * bent)
        score.arm(side, 85, 6, 95, 2, shape)
    return end, "squats with the arms stretched forward"


def wave(score, start, rng):
    side, end = rng.choice(("left", "right", "both")), start + rng.uniform(2.4, 3.4)
    rate, wide, high = rng.uniform(1.3, 2.2), rng.uniform(16, 30), rng.uniform(70, 110)
    beat = wide * np.sin(2 * np.pi * rate * (score.t - start)) * pulse(score.t, start + 0.3, end - 0.25)
    for name in SIDES if side == "both" else (side,):
        score.arm(name, 10, high, 15, 155 + beat, pulse(score.t, start, end, 0.6))
    return end, f"waves with {'both hands' if side == 'both' else f'the {side} hand'}"


def kick(score, start, rng):
    side, high, t, end = rng.choice(list(SIDES)), rng.uniform(60, 85), score.t - start, 1.42
    thigh = keyed(t, (0, 0), (0.4, 40), (0.68, high), (0.76, high), (1.05, 35), (end, 0))
    knee = keyed(t, (0, 0), (0.4, 85), (0.68, 2), (0.76, 2), (1.05, 70), (end, 0))
    away = pulse(t, -0.15, end + 0.1)
    score.leg(side, thigh, knee, -25 * away)
    score.bend(-0.1 * thigh)
    for name in SIDES:
        score.leg(name, 0, 0, 0, away * (4 if name == side else -4))    # over the foot that carries
        score.arm(name, 30, 18, 110, -5, 0.9 * pulse(t, 0, end))
    return start + end, f"kicks with the {side} foot"


ACTIONS = dict(walk=walk, jump=jump, squat=squat, wave=wave, kick=kick)  # each ends standing


def animate(score, lengths):
    """Turn a score into joints (T, 22, 3) float64 in metres. lengths: (22,) of the bones, in metres."""
    bones = lengths[:, None] * REST / np.linalg.norm(REST, axis=1, keepdims=True)
    turned = Rotation.from_euler("YZX", np.moveaxis(score.angles, 2, 0).reshape(-1, 3), degrees=True)
    joints = turned.apply(np.tile(bones, (MAX_FRAMES, 1))).reshape(MAX_FRAMES, -1, 3)
    joints[:, 0] = 0
    for joint, parent in enumerate(T2M.parents[1:], 1):
        joints[:, joint] += joints[:, parent]
    toes = joints[:, [10, 11]]
    carries = softmax(-toes[..., 1:2] / CARRIES, axis=1)
    root = -np.cumsum((carries * np.diff(toes, axis=0, prepend=toes[:1])).sum(1), axis=0)
    root[:, 1] = SOLE + score.air - (carries * toes).sum(1)[:, 1]
    return joints + root[:, None]


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
        names = names[:1 if names[0] == names[1] or rng.random() < 0.3 else 2]
        score, end, phrases = Score(rng), rng.uniform(0.25, 0.6), []
        for name in names:
            end, phrase = ACTIONS[name](score, end + 0.1, rng)
            phrases.append(phrase)
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
