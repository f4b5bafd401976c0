"""Motion as pictures, with NumPy and Pillow alone: frames, GIFs (TensorBoard too), PNG strips and films.

Each frame is drawn at twice its size and reduced, which is the antialiasing. All projection is done for the whole clip at once.
"""
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.errors import UserError
from visualize.gif import encode_gif
from visualize.skeleton import bones, check_joints, foot_contacts, frame_error, skeleton_height, unit_in_metres

LEFT, RIGHT, SPINE = (38, 120, 190), (224, 108, 28), (62, 68, 84)   # blue and orange stay apart for colour-blind readers
PAPER, GROUND, GRID, INK, FAINT = (255, 255, 255), (240, 242, 246), (208, 213, 222), (52, 58, 70), (138, 146, 160)
CONTACT, TRAIL, GHOST = (126, 206, 148), (128, 110, 196), (176, 182, 192)
OVER = 2               # drawn at OVER times the size
TRAIL_POINTS = 48
DISTANCE = 4.5         # camera to root, in skeleton heights
STAGE = 1.3            # radius of the ground disc, in skeleton heights
GRID_METRES = 0.5


def _bone_colours(spec):
    names = spec.joint_names
    return [LEFT if names[c].startswith("left") else RIGHT if names[c].startswith("right") else SPINE for c, _ in bones(spec)]


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
        reach = (np.abs(view[..., :2]) / np.maximum(self.distance - view[..., 2:], 0.1 * self.distance)).max() * self.distance
        self.focal = 0.43 * size * self.distance / np.clip(reach, 0.56 * height, 1.2 * height)

    def __call__(self, points, frame=None):
        target = self.target[:, None] if frame is None else self.target[frame]
        view = (points - target) @ self.rotation.T
        depth = self.distance - view[..., 2]
        scale = self.focal / np.maximum(depth, 0.1 * self.distance)
        return np.stack([self.size / 2 + view[..., 0] * scale, 0.5 * self.size - view[..., 1] * scale], -1), depth


# drawing

@lru_cache(maxsize=16)
def font(size):
    """Pillow's own face in that many pixels."""
    return ImageFont.load_default(size)


def fitting_font(text, size, width):
    """The font of that size, or the smaller one at which the text is no wider than width."""
    return font(size * min(1, width / max(1, font(size).getlength(text))))


@lru_cache(maxsize=4096)
def _stamp(text, size):
    """Text as a mask, kept because the same times and errors come again and again and setting type takes as long as drawing a figure."""
    face = font(size)
    mask = Image.new("L", (int(face.getlength(text)) + 1, int(1.5 * size)))
    ImageDraw.Draw(mask).text((mask.width, 1.1 * size), text, fill=255, font=face, anchor="rs")
    return mask


def _write(image, x, y, text, size, fill):
    """Text that ends at x with its baseline at y."""
    mask = _stamp(text, size)
    image.paste(fill, (round(x) - mask.width, round(y - 1.1 * size)), mask)


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
    """One figure: projected once for the whole clip, then painted frame by frame on a copy of its background.

    beside: the panel of the original, whose scale this one shares and whose path lies beneath its own.
    """

    def __init__(self, joints, spec, contacts, size, angles, title, clock, beside=None):
        self.height = beside.height if beside else skeleton_height(joints, spec)
        self.spec, self.size, self.contacts = spec, size * OVER, contacts
        lowest = joints[..., 1].min()
        self.floor = 0.0 if abs(lowest) < 0.25 * self.height else lowest   # y = 0 unless the clip plainly stands elsewhere
        self.camera = _Camera(joints, self.height, self.floor, self.size, spec, *angles)
        if beside:
            self.floor, self.camera.focal, self.camera.target[:, 1] = beside.floor, beside.camera.focal, beside.camera.target[0, 1]
        self.pixels, depth = self.camera(joints)
        children, parents = np.array(bones(spec)).T
        self.segments = self.pixels[:, np.stack([children, parents], -1)].reshape(len(joints), -1, 4)
        self.order = np.argsort(-(depth[:, children] + depth[:, parents]), axis=1)              # far bones first
        self.colours, self.head = _bone_colours(spec), spec.joint_names.index("head")
        self.width = max(2, round(0.042 * self.height * self.camera.focal / self.camera.distance))
        feet = joints[:, list(spec.feet)].copy()
        feet[..., 1] = self.floor
        self.feet = self.camera(feet)[0]
        self.paths = ([(beside.paths[0][0], GHOST)] if beside else []) + [(joints[:, 0], TRAIL)]
        self.base = self._background(title, clock)

    def _background(self, title, clock):
        base = Image.new("RGB", (self.size, self.size), PAPER)
        draw, angle, radius = ImageDraw.Draw(base), np.linspace(0, 2 * np.pi, 73), STAGE * self.height
        rim = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], -1) * radius + self.camera.target[0] * (1, 0, 1)
        rim[:, 1] = self.floor
        draw.polygon(self.camera(rim, 0)[0].reshape(-1).tolist(), fill=GROUND)
        if title:
            face = fitting_font(str(title), self.size / 17, self.size * 0.92)
            draw.text((self.size * 0.04, self.size * 0.03), str(title), fill=INK, font=face)
        self.clock = clock
        return base

    def _ground(self, draw, frame):
        camera, radius = self.camera, STAGE * self.height
        for line in camera(_grid_lines(camera.target[frame], radius, self.floor), frame)[0].reshape(-1, 4).tolist():
            draw.line(line, fill=GRID, width=OVER)
        for path, colour in self.paths:
            past = path[frame::-max(1, frame // TRAIL_POINTS)].copy()
            past[:, 1] = self.floor
            away = np.hypot(*(past - camera.target[frame])[:, [0, 2]].T) > radius
            past = past[:np.argmax(away)] if away.any() else past                               # the trail ends at the disc's rim
            if len(past) > 1:
                draw.line(camera(past, frame)[0].reshape(-1).tolist(), fill=colour, width=2 * OVER)
        r = self.width
        for (x, y), touching in zip(self.feet[frame].tolist(), self.contacts[frame]):
            if touching:
                draw.ellipse((x - 1.3 * r, y - 0.6 * r, x + 1.3 * r, y + 0.6 * r), fill=CONTACT)

    def picture(self, frame):
        """The frame as an RGB image of the size asked for."""
        image = self.base.copy()
        draw = ImageDraw.Draw(image)
        self._ground(draw, frame)
        r = (self.width - 1) / 2
        order = self.order[frame]
        for bone, (x0, y0, x1, y1) in zip(order.tolist(), self.segments[frame, order].tolist()):
            colour = self.colours[bone]
            draw.line((x0, y0, x1, y1), fill=colour, width=self.width)
            draw.ellipse((x0 - r, y0 - r, x0 + r, y0 + r), fill=colour)                        # round ends
            draw.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=colour)
        x, y = self.pixels[frame, self.head].tolist()
        draw.ellipse((x - 2.9 * r, y - 2.9 * r, x + 2.9 * r, y + 2.9 * r), fill=SPINE)
        image = image.reduce(OVER)
        if self.clock:
            _write(image, image.width * 0.96, image.height * 0.97, f"{frame / self.spec.fps:.1f} s", image.width / 19, FAINT)
        return image


class _ErrorBar:
    """The strip beneath two figures: the root-aligned error over time, a point that runs along it, both errors as numbers."""

    def __init__(self, error, overall, size, title):
        self.error, self.width, self.height, self.size = error, 2 * size, size // 4, size / 18
        base = Image.new("RGB", (OVER * self.width, OVER * self.height), PAPER)
        draw = ImageDraw.Draw(base)
        base_line = OVER * self._point(0, 0)[1]
        draw.line((0.02 * base.width, base_line, 0.98 * base.width, base_line), fill=GRID, width=OVER)
        curve = [(OVER * x, OVER * y) for x, y in map(self._point, range(len(error)), error)]
        draw.line(curve * (1 if len(error) > 1 else 2), fill=FAINT, width=OVER)
        if title:
            face = fitting_font(str(title), OVER * self.size, 0.5 * base.width)
            draw.text((0.98 * base.width, 0.04 * base.height), str(title), fill=FAINT, font=face, anchor="ra")
        self.base = base.reduce(OVER)
        self._caption(("error ", error, " mm root-aligned, ", overall, " global"))

    def _caption(self, parts):
        """Words once for all frames; numbers right-aligned in fields as wide as their widest."""
        draw, face, x, y = ImageDraw.Draw(self.base), font(self.size), 0.02 * self.width, 0.04 * self.height + self.size
        self.fields = []
        for part in parts:
            if isinstance(part, str):
                draw.text((x, y), part, fill=INK, font=face, anchor="ls")
                x += face.getlength(part)
            else:
                texts = [f"{value:.0f}" for value in part]
                x += max(map(face.getlength, set(texts)))
                self.fields.append((x, y, texts))

    def _point(self, frame, error):
        x = self.width * (0.02 + 0.96 * frame / max(1, len(self.error) - 1))
        return x, self.height * (0.92 - 0.5 * error / max(self.error.max(), 1e-9))

    def picture(self, frame):
        image = self.base.copy()
        (x, y), r = self._point(frame, self.error[frame]), self.height / 20
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=RIGHT)
        for x, y, texts in self.fields:
            _write(image, x, y, texts[frame], self.size, INK)
        return image


def draw_frames(joints, spec, *, size=256, reference=None, alone=False, contacts=None, title=None, labels=("original", "reconstruction"),
                azimuth=30, elevation=14, frames=None):
    """A skeleton in motion as pictures, (n, H, W, 3) uint8, n = T or len(frames).

    joints (T, J, 3), metres or millimetres, y up; spec: MotionSpec. One figure: H = W = size. With `reference` (T, J, 3) the original
    stands left of the reconstruction, each followed by its own camera (W = 2·size), and the error in mm runs beneath (H = size + size//4),
    root-aligned and global MPJPE; the original's path lies in grey beneath the reconstruction's. With `alone` only the reconstruction's
    figure is drawn, at the original's scale and over its path.
    contacts (T, 4) marks the feet of `joints`; by default they are told from its motion. azimuth and elevation in degrees: 0 looks into
    the face of a clip that starts facing +z. frames: indices to draw, all by default. Raises UserError for joints that cannot be drawn.
    """
    joints = check_joints(joints, spec)
    contacts = foot_contacts(joints, spec) if contacts is None else np.asarray(contacts) > 0.5
    if contacts.shape != (len(joints), 4):
        raise UserError(f"contacts have shape {contacts.shape}; {len(joints)} frames of joints want ({len(joints)}, 4)")
    unit = unit_in_metres(joints, spec)
    metres, angles, bar = joints * unit, (azimuth, elevation), None
    if reference is None:
        panels = [_Panel(metres, spec, contacts, size, angles, title, True)]
    else:
        reference = check_joints(reference, spec, "reference joints")
        if len(reference) != len(joints):
            raise UserError(f"the reference has {len(reference)} frames and the joints {len(joints)}: cut them to the same length")
        original = reference * unit_in_metres(reference, spec)
        left = _Panel(original, spec, foot_contacts(reference, spec), size, angles, labels[0], False)
        panels = [left, _Panel(metres, spec, contacts, size, angles, title if alone else labels[1], True, left)]
        bar = _ErrorBar(*frame_error(metres, original), size, title)
        if alone:
            panels, bar = panels[1:], None
    frames = range(len(joints)) if frames is None else [int(f) for f in frames]
    pictures = np.empty((len(frames), size + (bar.height if bar else 0), size * len(panels), 3), np.uint8)
    for out, frame in zip(pictures, frames):
        for n, panel in enumerate(panels):
            out[:size, n * size:(n + 1) * size] = np.asarray(panel.picture(frame))
        if bar:
            out[size:] = np.asarray(bar.picture(frame))
    return pictures


# files

def gif_bytes(joints, spec, fps=None, **drawing):
    """An animated GIF of joints (T, J, 3) as bytes; fps: the data set's by default; the rest goes to `draw_frames`."""
    return encode_gif(draw_frames(joints, spec, **drawing), fps or spec.fps)


def save_gif(path, joints, spec, fps=None, **drawing):
    """Write `gif_bytes` to path, whose folder must exist. Returns the path."""
    path = Path(path)
    path.write_bytes(gif_bytes(joints, spec, fps, **drawing))
    return path


def save_strip(path, joints, spec, *, count=8, **drawing):
    """Write `count` stills at even times side by side as one PNG. The rest goes to `draw_frames`. Returns the path."""
    path = Path(path)
    frames = np.linspace(0, len(joints) - 1, min(count, len(joints))).round().astype(int)
    Image.fromarray(np.concatenate(list(draw_frames(joints, spec, frames=frames, **drawing)), 1)).save(path, "PNG")
    return path


def save_mp4(path, joints, spec, fps=None, **drawing):
    """Write an H.264 film of the motion; the rest goes to `draw_frames`. Raises UserError where imageio-ffmpeg is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError("writing an MP4 needs imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg, or write a GIF") from None
    frames = draw_frames(joints, spec, **drawing)
    frames = frames[:, :frames.shape[1] // 2 * 2, :frames.shape[2] // 2 * 2]   # H.264 halves the colour planes: even sizes
    film = imageio_ffmpeg.write_frames(str(path), frames.shape[2:0:-1], fps=fps or spec.fps, macro_block_size=2, quality=8)
    film.send(None)
    for frame in frames:
        film.send(np.ascontiguousarray(frame))
    film.close()
    return Path(path)


# TensorBoard

def add_gif(writer, tag, frames, step=None, fps=20):
    """Log an animated GIF as an image summary, which the image tab plays (`add_video` needs moviepy).

    writer: torch's SummaryWriter; frames (T, H, W, 3) uint8, or the bytes of a GIF.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    data = frames if isinstance(frames, bytes) else encode_gif(frames, fps)
    width, height = Image.open(io.BytesIO(data)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
