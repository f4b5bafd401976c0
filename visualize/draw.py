"""A skeleton in motion as frames and GIFs."""
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter1d

from visualize.skeleton import body_height, bones, check_joints, foot_contacts, frame_error, unit_in_metres

LEFT, RIGHT, SPINE = (38, 120, 190), (224, 108, 28), (62, 68, 84)  # apart for colour-blind readers too
SIDES = {"left": LEFT, "right": RIGHT}
PAPER, GROUND, GRID = (255, 255, 255), (240, 242, 246), (208, 213, 222)
INK, FAINT = (52, 58, 70), (138, 146, 160)
CONTACT, TRAIL, GHOST = (126, 206, 148), (128, 110, 196), (176, 182, 192)
OVER = 2        # pictures are painted at twice their size and reduced, which smooths edges
TRAIL_POINTS = 48
DISTANCE = 4.5  # from camera to root, in skeleton heights
STAGE = 1.3     # radius of the ground disc, in skeleton heights
GRID_METRES = 0.5


@lru_cache(maxsize=16)
def font(size):
    """Return Pillow's own font at `size` pixels."""
    return ImageFont.load_default(size)


def fitting_font(text, size, width):
    """Return the font at `size` pixels, or smaller so that the text is no wider than `width`."""
    return font(size * min(1, width / max(1, font(size).getlength(text))))


class Camera:
    """A camera at a fixed angle (degrees) that follows the root of joints (T, J, 3) in metres."""

    def __init__(self, joints, height, floor, size, fps, azimuth, elevation):
        (ca, ce), (sa, se) = (f(np.radians([azimuth, elevation])) for f in (np.cos, np.sin))
        turn = np.array([[ca, 0, -sa], [0, 1, 0], [sa, 0, ca]])
        tilt = np.array([[1, 0, 0], [0, ce, -se], [0, se, ce]])
        self.rotation, self.distance, self.size = tilt @ turn, DISTANCE * height, size
        self.target = np.zeros((len(joints), 3))
        self.target[:, ::2] = gaussian_filter1d(joints[:, 0, ::2], 0.4 * fps, 0, mode="nearest", truncate=3)
        self.target[:, 1] = floor + 0.5 * max(0.95 * height, joints[..., 1].max() - floor)
        # everything in view, within limits: a stray joint must not shrink the body to a dot
        view = (joints - self.target[:, None]) @ self.rotation.T
        near = np.maximum(self.distance - view[..., 2:], 0.1 * self.distance)
        reach = (np.abs(view[..., :2]) / near).max() * self.distance
        self.focal = 0.43 * size * self.distance / np.clip(reach, 0.56 * height, 1.2 * height)

    def project(self, points, frame=None):
        """Return pixels (…, 2) and depths (…) of points (n, 3) in one frame, or of points (T, n, 3)."""
        target = self.target[:, None] if frame is None else self.target[frame]
        view = (points - target) @ self.rotation.T
        depth = self.distance - view[..., 2]
        scale = self.focal / np.maximum(depth, 0.1 * self.distance)
        return self.size / 2 + view[..., :2] * np.stack([scale, -scale], -1), depth


def grid_lines(centre, radius, floor):
    """Return chords of the ground disc along x and z at multiples of GRID_METRES, (n, 2, 3)."""
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


class Figure:
    """A moving skeleton: projected once for the whole clip, then painted frame by frame.

    joints (T, J, 3), metres or millimetres. clock: show the time.
    beside: the original's figure, which gives scale, floor and a grey path.
    """

    def __init__(self, joints, title, spec, size, azimuth, elevation, clock=True, beside=None):
        self.contacts = foot_contacts(joints, spec)
        self.joints = joints = joints * unit_in_metres(joints, spec)
        self.fps, self.size, self.clock = spec.fps, size * OVER, clock
        self.height = beside.height if beside else body_height(joints, spec)
        lowest = joints[..., 1].min()
        self.floor = 0.0 if abs(lowest) < 0.25 * self.height else lowest  # y = 0 unless plainly elsewhere
        camera = Camera(joints, self.height, self.floor, self.size, spec.fps, azimuth, elevation)
        self.camera, self.paths = camera, [(joints[:, 0], TRAIL)]
        if beside:
            self.floor, camera.focal = beside.floor, beside.camera.focal
            camera.target[:, 1] = beside.camera.target[0, 1]
            self.paths.insert(0, (beside.paths[0][0], GHOST))
        self.pixels, depth = camera.project(joints)
        children, parents = np.array(bones(spec)).T
        self.segments = np.concatenate([self.pixels[:, children], self.pixels[:, parents]], -1)
        self.order = np.argsort(-(depth[:, children] + depth[:, parents]), axis=1)  # far bones first
        self.colours = [SIDES.get(name.split("_")[0], SPINE) for name in np.take(spec.joint_names, children)]
        self.head = spec.joint_names.index("head")
        self.width = max(2, round(0.042 * self.height * camera.focal / camera.distance))
        feet = joints[:, list(spec.feet)].copy()
        feet[..., 1] = self.floor
        self.feet = camera.project(feet)[0]
        self.base = self.background(title)

    def background(self, title):
        """Return the disc and the title, which all frames share."""
        base = Image.new("RGB", (self.size, self.size), PAPER)
        draw, angle = ImageDraw.Draw(base), np.linspace(0, 2 * np.pi, 73)
        rim = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], -1) * STAGE * self.height
        rim += self.camera.target[0]
        rim[:, 1] = self.floor
        draw.polygon(self.camera.project(rim, 0)[0].reshape(-1).tolist(), fill=GROUND)
        face = fitting_font(title, self.size / 17, self.size * 0.92)
        draw.text((self.size * 0.04, self.size * 0.03), title, fill=INK, font=face)
        return base

    def paint_ground(self, draw, frame):
        """Paint the grid, the paths so far within the disc, and the feet that stand."""
        centre, radius = self.camera.target[frame], STAGE * self.height
        lines = self.camera.project(grid_lines(centre, radius, self.floor), frame)[0]
        for line in lines.reshape(-1, 4).tolist():
            draw.line(line, fill=GRID, width=OVER)
        for path, colour in self.paths:
            past = path[frame::-max(1, frame // TRAIL_POINTS)].copy()
            past[:, 1] = self.floor
            away = np.hypot(*(past - centre)[:, [0, 2]].T) > radius
            past = past[:np.argmax(away)] if away.any() else past
            if len(past) > 1:
                line = self.camera.project(past, frame)[0].reshape(-1).tolist()
                draw.line(line, fill=colour, width=2 * OVER)
        rx, ry = 1.3 * self.width, 0.6 * self.width
        for x, y in self.feet[frame, self.contacts[frame]].tolist():
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=CONTACT)

    def picture(self, frame):
        """Return the frame as an RGB image."""
        image = self.base.copy()
        draw = ImageDraw.Draw(image)
        self.paint_ground(draw, frame)
        r, order = (self.width - 1) / 2, self.order[frame]
        for bone, (x0, y0, x1, y1) in zip(order.tolist(), self.segments[frame, order].tolist()):
            draw.line((x0, y0, x1, y1), fill=self.colours[bone], width=self.width)
            draw.circle((x0, y0), r, fill=self.colours[bone])  # round ends
            draw.circle((x1, y1), r, fill=self.colours[bone])
        draw.circle(self.pixels[frame, self.head].tolist(), 2.9 * r, fill=SPINE)
        image = image.reduce(OVER)
        if self.clock:
            at, text = (round(image.width * 0.96), round(image.height * 0.97)), f"{frame / self.fps:.1f} s"
            ImageDraw.Draw(image).text(at, text, fill=FAINT, font=font(image.width / 19), anchor="rs")
        return image


def error_strips(error, overall, size, title, frames):
    """Return what stands beneath two figures, (n, size // 4, 2·size, 3) uint8: both errors, and their curve.

    error, overall: root-aligned and global MPJPE in mm, (T,) each.
    """
    width, height, face = 2 * size, size // 4, font(size / 18)
    x = np.linspace(0.02 * width, 0.98 * width, len(error))
    y = height * (0.92 - 0.5 * error / max(error.max(), 1e-9))
    base = Image.new("RGB", (OVER * width, OVER * height), PAPER)
    draw = ImageDraw.Draw(base)
    for level, colour in ((0 * y + 0.92 * height, GRID), (y, FAINT)):
        line = (OVER * np.stack([x, level], -1)).reshape(-1).tolist()
        draw.line(line * (1 if len(x) > 1 else 2), fill=colour, width=OVER)
    title_face = fitting_font(title, OVER * size / 18, 0.48 * base.width)
    draw.text((0.98 * base.width, 0.04 * base.height), title, fill=FAINT, font=title_face, anchor="ra")
    base, strips, line = base.reduce(OVER), [], round(0.04 * height + size / 18)
    ends = [round(0.04 * size + ems * size / 18) for ems in (4.2, 13.8)]  # where the numbers end
    for at, words in zip((0.04 * size, *ends), ("error", " mm root-aligned,", " mm global")):
        ImageDraw.Draw(base).text((at, line), words, fill=INK, font=face, anchor="ls")
    for frame in frames:
        strip = base.copy()
        draw = ImageDraw.Draw(strip)
        draw.circle((x[frame], y[frame]), height / 20, fill=RIGHT)
        for end, values in zip(ends, (error, overall)):
            draw.text((end, line), f"{values[frame]:.0f}", fill=INK, font=face, anchor="rs")
        strips.append(strip)
    return np.stack(strips)


def draw_frames(joints, spec, *, size=256, reference=None, alone=False, title="", frames=None,
                azimuth=30, elevation=14):
    """Return a skeleton in motion as pictures, (n, H, W, 3) uint8, n = T or len(frames).

    joints (T, J, 3), metres or millimetres, y up; spec: MotionSpec. One figure: H = W = size.
    reference (T, J, 3): the original, drawn on the left (W = 2·size), with its path in grey on the right too,
    and the errors in mm beneath (H = size + size // 4). alone: draw the right figure only.
    azimuth, elevation: degrees; 0 looks into the face of a clip that starts facing +z.
    frames: indices to draw; None: all. Raises UserError for joints that cannot be drawn.
    """
    joints, title = check_joints(joints, spec), str(title or "")
    frames = range(len(joints)) if frames is None else frames
    camera = dict(spec=spec, size=size, azimuth=azimuth, elevation=elevation)
    if reference is None:
        figures = [Figure(joints, title, **camera)]
    else:
        reference = check_joints(reference, spec, "reference joints", len(joints))
        left = Figure(reference, "original", clock=False, **camera)
        right = Figure(joints, title if alone else "reconstruction", beside=left, **camera)
        figures = [right] if alone else [left, right]
    pictures = np.concatenate([[figure.picture(frame) for frame in frames] for figure in figures], 2)
    if len(figures) == 1:
        return pictures
    strips = error_strips(*frame_error(right.joints, left.joints), size, title, frames)
    return np.concatenate([pictures, strips], 1)


def encode_gif(frames, fps):
    """Return frames (T, H, W, 3) uint8 as the bytes of an endless GIF with one palette.

    GIF counts time in 1/100 s: each frame's end is rounded, so that times do not drift.
    """
    frames = np.asarray(frames)
    few = frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).astype(int)]
    sample = Image.fromarray(np.concatenate(list(few)))
    common = [rgb for _, rgb in sorted(sample.getcolors(sample.width * sample.height), reverse=True)[:16]]
    colours = sample.quantize(112, method=Image.Quantize.MEDIANCUT).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for rgb in common for value in rgb] + colours)
    # the palette's nearest colour to each of 32 × 32 × 32; the most common ones, paper and limbs, stay exact
    levels = np.linspace(0, 255, 32).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(128, 256, 3)
    nearest = np.array(Image.fromarray(cube).quantize(palette=palette, dither=Image.Dither.NONE)).reshape(-1)
    for index, (r, g, b) in reversed(list(enumerate(common))):
        nearest[r >> 3 << 10 | g >> 3 << 5 | b >> 3] = index
    images = []
    for frame in frames:
        r, g, b = (frame >> 3).astype(np.uint16).transpose(2, 0, 1)
        images.append(Image.fromarray(nearest[r << 10 | g << 5 | b]))
        images[-1].putpalette(palette.getpalette())
    ends = np.round(np.arange(1, len(frames) + 1) * 100 / fps).astype(int)
    durations = (np.maximum(np.diff(ends, prepend=0), 2) * 10).tolist()
    stream = io.BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return stream.getvalue()


def gif_bytes(joints, spec, fps=None, **drawing):
    """Return joints (T, J, 3) as the bytes of a GIF. fps: the data set's if None. drawing: `draw_frames`'."""
    return encode_gif(draw_frames(joints, spec, **drawing), fps or spec.fps)


def save_gif(path, joints, spec, fps=None, **drawing):
    """Write `gif_bytes` to path, whose folder must exist. Return the path."""
    path = Path(path)
    path.write_bytes(gif_bytes(joints, spec, fps, **drawing))
    return path


def add_gif(writer, tag, gif, step=None):
    """Log the bytes of a GIF with a SummaryWriter as an image, which TensorBoard plays."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    width, height = Image.open(io.BytesIO(gif)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
