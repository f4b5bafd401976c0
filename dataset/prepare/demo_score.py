"""The score that the demo set's people move by: footsteps and control curves over time, and the curves to write on it.

Seconds, metres, degrees; left is positive. A score lasts FRAMES frames; what is written on it is animated by `dataset.prepare.demo`.
"""
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator

FPS, FRAMES = 20, 160
SIDES = {"left": 1, "right": -1}
OTHER = {"left": "right", "right": "left"}


class Step(NamedTuple):
    """One step of one foot. The foot lands beside where the root is at time over, plus an offset forward and left."""

    side: str
    lift: float             # seconds
    land: float
    over: float
    width: float = 0.085    # metres from the root's line, to the foot's own side
    forward: float = 0.0
    left: float = 0.0
    height: float = 0.08
    push: float = 40.0      # heel up at the toe's leaving
    early: float = 0.18     # the heel rises that long before
    strike: float = 10.0    # toe up at the landing
    linear: float = 0.3     # 0: starts and stops gently; 1: at constant speed, as in the air


class Score:
    """Controls over time: score["name"] is a track (160,), score.steps the footsteps. Starts as a person standing, never quite still."""

    def __init__(self, rng):
        self.t, self.tracks, self.steps = np.arange(FRAMES) / FPS, {}, []
        self.heading, self.width, self.toe_out, self.stand = rng.uniform(-180, 180), rng.uniform(0.08, 0.11), rng.uniform(4, 12), 0.0
        self.energy, self.swing = rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.25)
        self.add(balance=0.35, twist=1.0, bob=0.012, left_load=1.0, right_load=1.0, arm_swing=30 * self.swing)
        self.add(spine_forward=rng.uniform(-1, 5), head_forward=rng.uniform(-3, 6))
        out, elbow, turn = rng.uniform(6, 13), rng.uniform(10, 24), rng.uniform(5, 25)
        for side in SIDES:
            self.add(**arm(side, rng.uniform(-2, 5), out, turn, elbow))
        for name, size in dict(spine_forward=1.2, spine_left=1.2, spine_turn=1.5, head_turn=4, head_forward=2, root_left=0.006,
                               root_forward=0.006, left_arm_forward=1.5, right_arm_forward=1.5, left_elbow=2.5, right_elbow=2.5,
                               left_arm_out=1, right_arm_out=1).items():
            waves = rng.uniform(0.12, 0.5, 3)[:, None] * self.t + rng.uniform(0, 1, 3)[:, None]
            self.add(**{name: size * np.sin(2 * np.pi * waves).mean(0)})

    def __getitem__(self, name):
        return self.tracks.get(name, np.zeros(FRAMES))

    def add(self, **values):
        """Add a constant or a curve (160,) to each named track."""
        for name, value in values.items():
            self.tracks[name] = self[name] + value

    def pose(self, weight, **values):
        """Blend each named track to a value by weight (160,): 0 keeps it, 1 replaces it."""
        for name, value in values.items():
            self.tracks[name] = self[name] * (1 - weight) + weight * value


def arm(side, forward, out, turn, elbow):
    """An arm's pose: raised forward, out to its side, upper arm turned inward, elbow bent."""
    return {f"{side}_arm_forward": forward, f"{side}_arm_out": out, f"{side}_arm_turn": turn, f"{side}_elbow": elbow}


def ease(u):
    """0 → 1 with the least jerk; held outside of [0, 1]."""
    u = np.clip(u, 0, 1)
    return u ** 3 * (10 - 15 * u + 6 * u ** 2)


def pulse(t, start, end, rise=0.4, fall=None):
    """0, up to 1 within rise seconds of start, back at 0 at end."""
    return ease((t - start) / rise) * (1 - ease((t - end + (fall or rise)) / (fall or rise)))


def keyed(t, *keys):
    """A curve through (time, value) keys that never overshoots them and comes to rest at both ends."""
    times, values = np.array(keys, np.float64).T
    times, values = np.concatenate([[times[0] - 1], times, [times[-1] + 1]]), np.concatenate([values[:1], values, values[-1:]])
    return PchipInterpolator(times, values)(np.clip(t, times[0], times[-1]))


def pick(rng, *options):
    """One of the options."""
    return options[rng.integers(len(options))]
