"""What one clip's features tell about the capture they came from: jumps, frozen stretches, floors, bones."""
import numpy as np

ROOT_JUMP = 10.0        # metres per second of the root: sprinters reach 12, clips of HumanML3D 5
JOINT_JUMP = 20.0       # of any joint
FROZEN = 1.0            # seconds in which no feature changes by a millionth
SUNK, AFLOAT = -0.1, 0.3    # metres: the lowest joint of a clip stands on the floor
DRIFT = 0.02            # share by which a bone's length may change within a clip
KINDS = {
    "unreadable": ("error", "cannot be read"),
    "shape": ("error", "have the wrong shape, expected (frames, {width})"),
    "dtype": ("warning", "are not float32"),
    "nan": ("error", "hold NaN or Inf"),
    "known": ("error", "are the published bad clips (NaN); leave them out with --skip-bad-clips"),
    "jump": ("warning", f"have a root faster than {ROOT_JUMP:g} m/s: they jump"),
    "leap": ("warning", f"have a joint faster than {JOINT_JUMP:g} m/s: a glitch of the capture"),
    "frozen": ("warning", f"stand perfectly still for over {FROZEN:g} s: frozen capture"),
    "floor": ("warning", f"have their lowest joint outside {SUNK:g} to {AFLOAT:g} m: they do not stand on the floor"),
    "drift": ("warning", f"have bones whose length changes by over {DRIFT:.0%}"),
}


def measure(data, spec):
    """What the checks need of one clip (T, D): sums for the statistics, and physical extremes."""
    wide = data.astype(np.float64)
    mean = wide.mean(0)
    heights = data[:, spec.slices["positions"]][:, 1::3].min(1)     # (T,) the lowest joint
    moving = np.abs(np.diff(data, axis=0)).max(1, initial=0) > 1e-6 if len(data) > 1 else np.ones(1, bool)
    positions = np.concatenate([np.zeros((len(data), 1, 3), np.float32), data[:, spec.slices["positions"]].reshape(len(data), -1, 3)], 1)
    positions[:, 0, 1] = data[:, 3]
    bones = positions[:, 1:] - positions[:, spec.parents[1:]]
    lengths = np.sqrt(np.einsum("tji,tji->tj", bones, bones))
    middle = np.median(lengths[::max(1, len(lengths) // 16)], 0)
    drift = np.abs(lengths / np.maximum(middle, 1e-6) - 1)
    step = np.sqrt(np.square(data[:, 1:3]).sum(1))
    velocities = data[:, spec.slices["velocities"]].reshape(len(data), -1, 3)
    leap = np.sqrt(np.einsum("tji,tji->tj", velocities, velocities).max(1))
    return dict(mean=mean, square=np.square(wide - mean).sum(0), lowest=float(heights.min()), jump=float(step.max()), at=int(step.argmax()),
                leap=float(leap.max()), leap_at=int(leap.argmax()),
                frozen=_longest_still(moving), drift=float(drift.max()), drift_at=int(drift.max(1).argmax()), bone=int(drift.max(0).argmax()) + 1,
                unit=0.001 if middle.sum() > 50 else 1.0)


def _longest_still(moving):
    """Frames of the longest stretch without any motion."""
    edges = np.flatnonzero(np.concatenate([[True], moving, [True]]))
    return int(np.diff(edges).max() - 1)


def find_odd(clip, spec):
    """(kind, text) for what is physically odd about a clip."""
    unit = clip["unit"]
    if clip["jump"] * unit * spec.fps > ROOT_JUMP:
        yield "jump", f"{clip['jump'] * unit * spec.fps:.1f} m/s at frame {clip['at']}"
    elif clip["leap"] * unit * spec.fps > JOINT_JUMP:
        yield "leap", f"{clip['leap'] * unit * spec.fps:.1f} m/s at frame {clip['leap_at']}"
    if clip["frozen"] > FROZEN * spec.fps:
        yield "frozen", f"{clip['frozen'] / spec.fps:.1f} s"
    if not SUNK <= clip["lowest"] * unit <= AFLOAT:
        yield "floor", f"{clip['lowest'] * unit:.2f} m"
    if clip["drift"] > DRIFT:
        yield "drift", f"{spec.joint_names[clip['bone']]} by {clip['drift']:.0%} at frame {clip['drift_at']}"


def ranges(frames):
    """`3-7, 12 and 4 more`."""
    parts = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)]
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
