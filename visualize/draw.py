"""A skeleton in motion as frames and GIFs."""
import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from utils.files import atomic_write
from visualize import skeleton

LEFT, RIGHT, SPINE = (38, 120, 190), (224, 108, 28), (62, 68, 84)  # apart for colour-blind readers too
SIDES = {"left": LEFT, "right": RIGHT}
PAPER, GROUND, GRID = (255, 255, 255), (240, 242, 246), (208, 213, 222)
INK, FAINT = (52, 58, 70), (138, 146, 160)
CONTACT, TRAIL, GHOST = (126, 206, 148), (128, 110, 196), (176, 182, 192)
OVER = 2        # pictures are painted at twice their size and reduced, which smooths edges
AZIMUTH, ELEVATION = 30, 14  # degrees; azimuth 0 looks into the face of a clip that starts facing +z
DISTANCE, STAGE = 4.5, 1.3   # from camera to root, and the ground disc's radius, in skeleton heights
GRID_METRES = 0.5

font = lru_cache(ImageFont.load_default)    # Pillow's own font, by its size in pixels


def fitting_font(text, size, width):
    """Return the font at `size` pixels, or smaller so that the text is no wider than `width`."""
    return font(size * min(1, width / max(1, font(size).getlength(text))))


def grid_lines(centre, radius, floor):
    """Return chords of the ground disc along x and z at multiples of GRID_METRES, (n, 2, 3)."""
    lines = []
    for axis, other in ((0, 2), (2, 0)):
        at = np.arange(np.ceil((centre[axis] - radius) / GRID_METRES) * GRID_METRES, centre[axis] + radius,
                       GRID_METRES)[:, None]
        line = np.full((len(at), 2, 3), floor)
        line[..., axis] = at
        half = np.sqrt(np.maximum(radius ** 2 - (at - centre[axis]) ** 2, 0))
        line[..., other] = centre[other] + half * (-1, 1)
        lines.append(line)
    return np.concatenate(lines)


class Figure:
    """A moving skeleton: projected once for the whole clip, then painted frame by frame.

    joints (T, J, 3), metres or millimetres. beside: the original's figure, whose scale, floor and path count.
    """

    def __init__(self, joints, title, spec, size, beside=None):
        self.contacts = skeleton.foot_contacts(joints, spec)
        self.joints = joints = joints * skeleton.unit_in_metres(joints, spec)
        self.size, self.paths = size * OVER, [(joints[:, 0], TRAIL)]
        self.height = beside.height if beside else skeleton.body_height(joints, spec)
        self.floor = beside.floor if beside else skeleton.floor_height(joints, self.height)
        self.aim_camera(spec.fps)
        if beside:
            self.focal, self.target[:, 1] = beside.focal, beside.target[0, 1]
            self.paths.insert(0, (beside.joints[:, 0], GHOST))
        self.pixels, depth = self.project(joints)
        children, parents = np.array(skeleton.bones(spec)).T
        self.segments = np.concatenate([self.pixels[:, children], self.pixels[:, parents]], -1)
        self.order = np.argsort(-(depth[:, children] + depth[:, parents]), axis=1)  # far bones first
        self.colours = [SIDES.get(name.split("_")[0], SPINE) for name in np.take(spec.joint_names, children)]
        self.head = self.pixels[:, spec.joint_names.index("head")]
        self.width = max(2, round(0.042 * self.height * self.focal / self.distance))
        self.feet = self.project(self.on_floor(joints[:, list(spec.feet)]))[0]
        self.base = self.background(title)

    def aim_camera(self, fps):
        """Let a camera at a fixed angle follow the root."""
        joints, top = self.joints, max(0.95 * self.height, self.joints[..., 1].max() - self.floor)
        self.rotation = Rotation.from_euler("yx", (-AZIMUTH, ELEVATION), degrees=True).as_matrix()
        self.target = gaussian_filter1d(joints[:, 0], 0.4 * fps, 0, mode="nearest", truncate=3)
        self.target[:, 1] = self.floor + 0.5 * top
        self.distance, self.focal = DISTANCE * self.height, 1
        # everything in view, within limits: a stray joint must not shrink the body to a dot
        reach = np.abs(self.project(joints)[0] - self.size / 2).max() * DISTANCE  # in skeleton heights
        self.focal = 0.43 * self.size * DISTANCE / np.clip(reach, 0.56, 1.2)

    def project(self, points, frame=...):
        """Return pixels (…, 2) and depths (…) of points (n, 3) in one frame, or of points (T, n, 3)."""
        view = (points - self.target[:, None][frame]) @ self.rotation.T
        depth = self.distance - view[..., 2]
        scale = self.focal / np.maximum(depth, 0.1 * self.distance)
        return self.size / 2 + view[..., :2] * np.stack([scale, -scale], -1), depth

    def on_floor(self, points):
        """Return points (…, 3) moved down to the floor."""
        return points * (1, 0, 1) + (0, self.floor, 0)

    def background(self, title):
        """Return the disc and the title, which all frames share."""
        base = Image.new("RGB", (self.size, self.size), PAPER)
        draw, angle = ImageDraw.Draw(base), np.linspace(0, 2 * np.pi, 73)
        rim = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], -1) * STAGE * self.height
        rim = self.on_floor(rim + self.target[0])
        draw.polygon(self.project(rim, 0)[0].reshape(-1).tolist(), fill=GROUND)
        face = fitting_font(title, self.size / 17, self.size * 0.92)
        draw.text((self.size * 0.04, self.size * 0.03), title, fill=INK, font=face)
        return base

    def paint_ground(self, draw, frame):
        """Paint the grid, the paths so far within the disc, and the feet that stand."""
        centre, radius = self.target[frame], STAGE * self.height
        lines = self.project(grid_lines(centre, radius, self.floor), frame)[0]
        for line in lines.reshape(-1, 4).tolist():
            draw.line(line, fill=GRID, width=OVER)
        for path, colour in self.paths:
            past = self.on_floor(path[frame::-max(1, frame // 48)])
            past = past[np.hypot(*(past - centre)[:, [0, 2]].T) < radius]
            draw.line(self.project(past, frame)[0].reshape(-1).tolist(), fill=colour, width=2 * OVER)
        rx, ry = 1.3 * self.width, 0.6 * self.width
        for x, y in self.feet[frame, self.contacts[frame]].tolist():
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=CONTACT)

    def picture(self, frame, note):
        """Return the frame as an (H, W, 3) array, with a note in a corner."""
        image = self.base.copy()
        draw = ImageDraw.Draw(image)
        self.paint_ground(draw, frame)
        r, order = (self.width - 1) / 2, self.order[frame]
        for bone, (x0, y0, x1, y1) in zip(order.tolist(), self.segments[frame, order].tolist()):
            draw.line((x0, y0, x1, y1), fill=self.colours[bone], width=self.width)
            draw.circle((x0, y0), r, fill=self.colours[bone])  # round ends
            draw.circle((x1, y1), r, fill=self.colours[bone])
        draw.circle(self.head[frame].tolist(), 2.9 * r, fill=SPINE)
        at, face = (self.size * 0.96, self.size * 0.97), fitting_font(note, self.size / 19, self.size * 0.92)
        draw.text(at, note, fill=FAINT, font=face, anchor="rs")
        return np.asarray(image.reduce(OVER))


def draw_frames(joints, spec, *, size=256, reference=None, alone=False, title=""):
    """Return a skeleton in motion as pictures, (T, H, W, 3) uint8, H = W = size.

    joints (T, J, 3), metres or millimetres, y up; spec: MotionSpec.
    reference (T, J, 3): the original, drawn on the left (W = 2·size), with its path in grey on the right too,
    and the errors in mm. alone: draw the right figure only. Raises UserError for joints that cannot be drawn.
    """
    joints, left = skeleton.check_joints(joints, spec), None
    notes = [f"{frame / spec.fps:.1f} s" for frame in range(len(joints))]
    if reference is not None:
        reference = skeleton.check_joints(reference, spec, "reference joints", len(joints))
        left = Figure(reference, title or "original", spec, size)
    pair = left and not alone
    right = Figure(joints, "reconstruction" if pair else title, spec, size, left)
    figures = [(right, notes)]
    if pair:
        errors = zip(*skeleton.frame_error(right.joints, left.joints))
        texts = [f"{aligned:.0f} mm root-aligned, {overall:.0f} mm global" for aligned, overall in errors]
        figures = [(left, notes), (right, texts)]
    return np.concatenate([[figure.picture(*each) for each in enumerate(texts)]
                           for figure, texts in figures], 2)


def encode_gif(frames, fps):
    """Return frames (T, H, W, 3) uint8 as the bytes of an endless GIF with one palette.

    GIF counts time in 1/100 s: each frame's end is rounded, so that times do not drift.
    """
    palette = Image.fromarray(np.concatenate(frames[::-(-len(frames) // 4)])).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    steps, stream = np.diff(np.round(np.arange(len(frames) + 1) * 100 / fps)), io.BytesIO()
    durations = (10 * np.maximum(steps, 2)).tolist()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return stream.getvalue()


def gif_bytes(joints, spec, **drawing):
    """Return joints (T, J, 3) as the bytes of a GIF at the data set's frame rate; drawing: `draw_frames`'."""
    return encode_gif(draw_frames(joints, spec, **drawing), spec.fps)


def save_gif(path, joints, spec, **drawing):
    """Write `gif_bytes` to a file."""
    with atomic_write(path) as file:
        file.write(gif_bytes(joints, spec, **drawing))


def add_gif(writer, tag, gif, step=None):
    """Log the bytes of a GIF with a SummaryWriter as an image, which TensorBoard plays."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    width, height = Image.open(io.BytesIO(gif)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
