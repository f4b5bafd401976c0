"""Motion as pictures, with NumPy and Pillow alone: frames, GIFs, PNG strips, and the small figures of a dashboard.

Each frame is drawn at twice its size and reduced, which is the antialiasing. All projection is done for the whole clip at once.
"""
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError

LEFT, RIGHT, SPINE = (38, 120, 190), (224, 108, 28), (62, 68, 84)   # blue and orange stay apart for colour-blind readers
PAPER, GROUND, GRID, INK, FAINT = (255, 255, 255), (240, 242, 246), (208, 213, 222), (52, 58, 70), (138, 146, 160)
CONTACT, TRAIL, GHOST = (60, 176, 92), (128, 110, 196), (176, 182, 192)
OVER = 2               # drawn at OVER times the size
TRAIL_POINTS = 48
DISTANCE = 4.5         # camera to root, in skeleton heights
STAGE = 1.3            # radius of the ground disc, in skeleton heights
GRID_METRES = 0.5


# geometry

def skeleton_height(joints, spec):
    """Leg and spine bones end to end, in the unit of joints (T, J, 3): the median over the clip of the longest chains up and down."""
    length = np.zeros(joints.shape[:2])
    for child, parent in _bones(spec):   # parents come first
        length[:, child] = length[:, parent] + np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
    leg = length[:, list(spec.feet)].max(1)
    head = length[:, [chain[-1] for chain in spec.chains if chain[0] == 0]].max(1)
    return float(np.median(leg + head)) * 0.9   # the foot lies flat and the hips go sideways


def unit_in_metres(joints, spec):
    """1.0 for joints in metres, 0.001 for millimetres (KIT-ML): no skeleton is 20 m tall."""
    return 0.001 if skeleton_height(joints, spec) > 20 else 1.0


def foot_contacts(joints, spec):
    """(T, 4) bool: squared displacement of each foot joint to the next frame below the data set's threshold; the last frame repeats.

    Order: left ankle, left toe, right ankle, right toe. The same rule as the contact features (HumanML3D), in the data's unit.
    """
    if len(joints) < 2:
        return np.zeros((len(joints), 4), bool)
    step = np.square(np.diff(joints[:, list(spec.feet)], axis=0)).sum(-1) < spec.contact_threshold
    return np.concatenate([step, step[-1:]])


def check_joints(joints, spec, name="joints"):
    """joints as a finite float64 array (T, J, 3) with T at least 1. Raises UserError, which names the first bad frame."""
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1:] != (spec.joints, 3) or len(joints) == 0:
        raise UserError(f"{name} have shape {joints.shape}; {spec.name} wants (frames, {spec.joints}, 3) with at least one frame")
    bad = np.flatnonzero(~np.isfinite(joints).all((1, 2)))
    if len(bad):
        raise UserError(f"{name} hold NaN or infinity in {len(bad)} of {len(joints)} frames, first in frame {bad[0]}: nothing to draw there")
    return joints


def _bones(spec):
    """(child, parent) pairs, parents before their children."""
    return [(child, parent) for chain in spec.chains for parent, child in zip(chain, chain[1:])]


def _bone_colours(spec):
    names = spec.joint_names
    return [LEFT if names[c].startswith("left") else RIGHT if names[c].startswith("right") else SPINE for c, _ in _bones(spec)]


def _smooth(path, sigma):
    """Gaussian over time of (T, k), the ends held."""
    radius = max(1, int(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.concatenate([path[:1].repeat(radius, 0), path, path[-1:].repeat(radius, 0)])
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], -1)


class _Camera:
    """A camera at a fixed angle that glides along with the root. Positions (…, 3) in metres → pixels (…, 2) and depth (…)."""

    def __init__(self, joints, height, floor, size, spec, azimuth, elevation):
        azimuth, elevation = np.radians(azimuth), np.radians(elevation)
        turn = np.array([[np.cos(azimuth), 0, -np.sin(azimuth)], [0, 1, 0], [np.sin(azimuth), 0, np.cos(azimuth)]])
        tilt = np.array([[1, 0, 0], [0, np.cos(elevation), -np.sin(elevation)], [0, np.sin(elevation), np.cos(elevation)]])
        self.rotation, self.distance, self.size = tilt @ turn, DISTANCE * height, size
        self.target = np.zeros((len(joints), 3))
        self.target[:, [0, 2]] = _smooth(joints[:, 0, [0, 2]], 0.4 * spec.fps)
        self.target[:, 1] = floor + 0.5 * max(0.95 * height, joints[..., 1].max() - floor)
        # everything in view, but never closer than the usual frame nor so far that a stray joint shrinks the body to a dot
        view = (joints - self.target[:, None]) @ self.rotation.T
        reach = (np.abs(view[..., :2]) / (self.distance - view[..., 2:])).max() * self.distance
        self.focal = 0.43 * size * self.distance / np.clip(reach, 0.56 * height, 1.2 * height)

    def __call__(self, points, frame=None):
        target = self.target[:, None] if frame is None else self.target[frame]
        view = (points - target) @ self.rotation.T
        depth = self.distance - view[..., 2]
        scale = self.focal / np.maximum(depth, 0.1 * self.distance)
        return np.stack([self.size / 2 + view[..., 0] * scale, 0.5 * self.size - view[..., 1] * scale], -1), depth


# drawing

@lru_cache(maxsize=16)
def _font(size):
    return ImageFont.load_default(size)


def _grid_lines(centre, radius, floor):
    """Chords of the ground disc along x and z at multiples of GRID_METRES: (n, 2, 3)."""
    lines = []
    for axis, other in ((0, 2), (2, 0)):
        first = np.ceil((centre[axis] - radius) / GRID_METRES)
        at = np.arange(first, np.floor((centre[axis] + radius) / GRID_METRES) + 1) * GRID_METRES
        half = np.sqrt(np.maximum(radius ** 2 - (at - centre[axis]) ** 2, 0))
        line = np.full((len(at), 2, 3), floor)
        line[..., axis] = at[:, None]
        line[..., other] = centre[other] + half[:, None] * (-1, 1)
        lines.append(line)
    return np.concatenate(lines)


class _Panel:
    """One figure's drawing lists: projected once for the whole clip, then painted frame by frame at an offset."""

    def __init__(self, joints, spec, contacts, size, ghost, angles):
        self.height = skeleton_height(joints, spec)
        lowest = joints[..., 1].min()
        self.floor = 0.0 if abs(lowest) < 0.25 * self.height else lowest   # y = 0 unless the clip plainly stands elsewhere
        self.camera = _Camera(joints, self.height, self.floor, size, spec, *angles)
        self.pixels, depth = self.camera(joints)
        children, parents = np.array(_bones(spec)).T
        self.segments = self.pixels[:, np.stack([children, parents], -1)]                       # (T, bones, 2, 2)
        self.order = np.argsort(-(depth[:, children] + depth[:, parents]), axis=1)              # far bones first
        self.colours, self.size = _bone_colours(spec), size
        self.width = max(2, round(0.046 * self.height * self.camera.focal / self.camera.distance))
        self.contacts, feet = contacts, joints[:, list(spec.feet)].copy()
        feet[..., 1] = self.floor
        self.feet = self.camera(feet)[0]
        self.paths = [(path, colour) for path, colour in ((ghost, GHOST), (joints, TRAIL)) if path is not None]
        angle = np.linspace(0, 2 * np.pi, 73)
        radius = STAGE * self.height
        rim = self.camera.target[0] + radius * np.stack([np.cos(angle), 0 * angle, np.sin(angle)], -1)
        rim[:, 1] = self.floor
        self.rim = self.camera(rim, 0)[0]

    def background(self, draw, left):
        draw.polygon([(x + left, y) for x, y in self.rim], fill=GROUND)

    def _line(self, draw, points, left, colour, width):
        points[..., 0] += left
        draw.line(points.reshape(-1).tolist(), fill=colour, width=width)

    def paint(self, draw, frame, left):
        camera, radius = self.camera, STAGE * self.height
        grid = camera(_grid_lines(camera.target[frame], radius, self.floor), frame)[0]
        grid[..., 0] += left
        for line in grid.reshape(-1, 4).tolist():
            draw.line(line, fill=GRID, width=OVER)
        for path, colour in self.paths:
            past = path[:frame + 1, 0][::-1][::max(1, frame // TRAIL_POINTS)].copy()
            past[:, 1] = self.floor
            away = np.hypot(*(past - camera.target[frame])[:, [0, 2]].T) > radius
            past = past[:np.argmax(away)] if away.any() else past                               # the trail ends at the disc's rim
            if len(past) > 1:
                self._line(draw, camera(past, frame)[0], left, colour, 2 * OVER)
        r = 0.9 * self.width
        for (x, y), touching in zip(self.feet[frame].tolist(), self.contacts[frame]):
            if touching:
                draw.ellipse((x + left - 1.6 * r, y - 0.7 * r, x + left + 1.6 * r, y + 0.7 * r), fill=CONTACT)
        r = self.width / 2
        segments = self.segments[frame].reshape(-1, 4)[self.order[frame]]
        segments = (segments + (left, 0, left, 0)).tolist()
        for bone, (x0, y0, x1, y1) in zip(self.order[frame].tolist(), segments):
            colour = self.colours[bone]
            draw.line((x0, y0, x1, y1), fill=colour, width=self.width)
            draw.ellipse((x0 - r, y0 - r, x0 + r, y0 + r), fill=colour)                        # round ends
            draw.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=colour)
        x, y = self.pixels[frame, 15 if len(self.pixels[0]) == 22 else 4].tolist()              # the head
        draw.ellipse((x + left - 1.9 * r, y - 1.9 * r, x + left + 1.9 * r, y + 1.9 * r), fill=SPINE)


def draw_frames(joints, spec, *, size=256, reference=None, contacts=None, title=None, labels=("original", "reconstruction"),
                azimuth=30, elevation=14, frames=None):
    """A skeleton in motion as pictures, (n, H, W, 3) uint8, n = T or len(frames).

    joints (T, J, 3), metres or millimetres, y up; spec: MotionSpec. One figure: H = W = size. With `reference` (T, J, 3) the original
    stands left of the reconstruction, each followed by its own camera (W = 2·size), and the error in mm runs beneath (H = size + size/4):
    root-aligned MPJPE, and global in brackets; the original's path lies in grey beneath the reconstruction's.
    contacts (T, 4) marks the feet of `joints`; by default they are told from its motion. azimuth and elevation in degrees: 0 looks into
    the face of a clip that starts facing +z. frames: indices to draw, all by default. Raises UserError for joints that cannot be drawn.
    """
    joints = check_joints(joints, spec)
    unit = unit_in_metres(joints, spec)
    angles, big = (azimuth, elevation), OVER * size
    contacts = foot_contacts(joints, spec) if contacts is None else np.asarray(contacts) > 0.5
    if len(contacts) != len(joints):
        raise UserError(f"contacts have {len(contacts)} frames and the joints {len(joints)}: give one row of four for each frame")
    error = None
    if reference is None:
        panels = [_Panel(joints * unit, spec, contacts, big, None, angles)]
    else:
        reference = check_joints(reference, spec, "reference joints")
        if len(reference) != len(joints):
            raise UserError(f"the reference has {len(reference)} frames and the joints {len(joints)}: cut them to the same length")
        original = _Panel(reference * unit, spec, foot_contacts(reference, spec), big, None, angles)
        panels = [original, _Panel(joints * unit, spec, contacts, big, reference * unit, angles)]
        error = _frame_error(joints * unit, reference * unit)
    base = Image.new("RGB", (big * len(panels), big + (big // 4 if error else 0)), PAPER)
    draw = ImageDraw.Draw(base)
    for n, panel in enumerate(panels):
        panel.background(draw, n * big)
    names = (title,) if reference is None else labels
    small, tiny = _font(big / 17), _font(size / 19)
    for n, name in enumerate(names):
        if name:
            draw.text((n * big + big * 0.04, big * 0.03), str(name), fill=INK, font=small)
    if reference is not None and title:
        draw.text((2 * big - big * 0.04, big * 0.03), str(title), fill=FAINT, font=small, anchor="ra")
    if error:
        _error_curve(draw, error[0], big)
    frames = range(len(joints)) if frames is None else [int(f) for f in frames]
    pictures = np.empty((len(frames), base.height // OVER, base.width // OVER, 3), np.uint8)
    for out, frame in zip(pictures, frames):
        image = base.copy()
        draw = ImageDraw.Draw(image)
        for n, panel in enumerate(panels):
            panel.paint(draw, frame, n * big)
        if error:
            x, y = _curve_point(error[0], frame, big)
            draw.ellipse((x - 4 * OVER, y - 4 * OVER, x + 4 * OVER, y + 4 * OVER), fill=RIGHT)
        image = image.reduce(OVER)
        draw = ImageDraw.Draw(image)
        draw.text((image.width - size * 0.04, size * 0.97), f"{frame / spec.fps:.1f} s", fill=FAINT, font=tiny, anchor="rs")
        if error:
            draw.text((size * 0.04, size * 0.99), f"error {error[0][frame]:.0f} mm  (global {error[1][frame]:.0f})", fill=INK, font=tiny,
                      anchor="ls")
        out[:] = np.asarray(image)
    return pictures


def _frame_error(joints, reference):
    """Root-aligned and global MPJPE of each frame in mm, (T,) each, from metres."""
    difference = joints - reference
    return [1000 * np.linalg.norm(d, axis=-1).mean(1) for d in (difference - difference[:, :1], difference)]


def _curve_point(error, frame, big):
    left, width, top, tall = 0.04 * big, 1.92 * big, 1.03 * big, 0.18 * big
    x = left + width * frame / max(1, len(error) - 1)
    return x, top + tall * (1 - error[frame] / max(error.max(), 1e-9))


def _error_curve(draw, error, big):
    draw.line((0.04 * big, 1.21 * big, 1.96 * big, 1.21 * big), fill=GRID, width=OVER)
    draw.line([_curve_point(error, frame, big) for frame in range(len(error))] * (1 if len(error) > 1 else 2), fill=FAINT, width=OVER)


# files

def encode_gif(frames, fps):
    """(T, H, W, 3) uint8 → the bytes of an endless GIF with one palette. GIF counts time in 1/100 s: rounded, without drift."""
    frames = np.asarray(frames)
    sample = frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).astype(int)]
    palette = Image.fromarray(np.concatenate(list(sample))).quantize(128, method=Image.Quantize.MEDIANCUT)
    levels = (np.arange(32) << 3 | 4).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(128, 256, 3)
    nearest = np.asarray(Image.fromarray(cube).quantize(palette=palette, dither=Image.Dither.NONE)).reshape(-1)
    images = []
    for frame in frames:
        r, g, b = (frame >> 3).astype(np.uint16).transpose(2, 0, 1)
        image = Image.fromarray(nearest[r << 10 | g << 5 | b])
        image.putpalette(palette.getpalette())
        images.append(image)
    ends = np.round(np.arange(1, len(frames) + 1) * 100 / fps).astype(int)
    durations = (np.maximum(np.diff(ends, prepend=0), 2) * 10).tolist()
    stream = io.BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)
    return stream.getvalue()


def gif_bytes(joints, spec, fps=None, **drawing):
    """An animated GIF of joints (T, J, 3) as bytes; fps: the data set's by default; the rest goes to `draw_frames`."""
    return encode_gif(draw_frames(joints, spec, **drawing), fps or spec.fps)


def save_gif(path, joints, spec, fps=None, **drawing):
    """Write `gif_bytes` to path, whose folder must exist. Returns the path."""
    path = Path(path)
    path.write_bytes(gif_bytes(joints, spec, fps, **drawing))
    return path
