"""Small figures as (H, W, 3) uint8 arrays: error bars, codebook use over time, strips of codes."""
import colorsys

import numpy as np
from PIL import Image, ImageDraw

from utils.errors import UserError
from visualize.draw import FAINT, INK, OVER, PAPER, SIDES, SPINE, fitting_font, font

# even steps of lightness; an unused code has a colour of its own
RAMP = np.array([(44, 30, 84), (58, 76, 138), (42, 120, 142), (46, 160, 128), (120, 196, 84), (250, 226, 62)])
UNUSED = (236, 238, 242)


def ramp_colour(share):
    """Return RAMP's colour at each share (…), (…, 3)."""
    return np.stack([np.interp(share, np.linspace(0, 1, len(RAMP)), channel) for channel in RAMP.T], -1)


def bar_figure(labels, values, title="", *, width=560):
    """Draw horizontal bars of n values ≥ 0 in mm beside their labels; left_X and right_X are coloured."""
    row, top, left, face = 15 * OVER, 34 * OVER, 118 * OVER, font(12 * OVER)
    image = Image.new("RGB", (width * OVER, top + row * len(labels) + 8 * OVER), PAPER)
    draw, title_face = ImageDraw.Draw(image), fitting_font(title, 15 * OVER, (width - 20) * OVER)
    draw.text((10 * OVER, 8 * OVER), title, fill=INK, font=title_face)
    for y, label, value in zip(range(top, image.height, row), labels, values):
        end = left + (image.width - left - 84 * OVER) * value / max(*values, 1e-12)
        colour = SIDES.get(label.split("_")[0], SPINE)
        draw.rectangle((left, y + 1.5 * OVER, end, y + row - 1.5 * OVER), colour)
        draw.text((left - 8 * OVER, y + row / 2), label.replace("_", " "), fill=INK, font=face, anchor="rm")
        draw.text((end + 6 * OVER, y + row / 2), f"{value:.1f} mm", fill=FAINT, font=face, anchor="lm")
    return np.asarray(image.reduce(OVER))


def usage_figure(usage, steps=None, title="codebook use", *, width=560):
    """Draw how often each code is used: a column per evaluation, a row per code, the most used on top.

    usage (S, K): counts. steps: S iteration numbers. Colour spans two decades either side of 1/K.
    """
    share = usage / np.maximum(usage.sum(1, keepdims=True), 1)
    ordered = share[:, np.argsort(share[-1], kind="stable")[::-1]].T  # (K, S)
    colour = ramp_colour((np.log10(np.maximum(ordered * len(ordered), 1e-12)) + 2) / 4)
    colour[ordered == 0] = UNUSED
    left, top, height, edge, face = 12, 34, 260, width - 122, font(12)
    heat = Image.fromarray(colour.astype(np.uint8)).resize((edge - left, height - 60), Image.Resampling.BOX)
    image = Image.new("RGB", (width, height), PAPER)
    image.paste(heat, (left, top))
    draw = ImageDraw.Draw(image)
    draw.text((left, 8), title, fill=INK, font=fitting_font(title, 15, width - 24))
    fills = [*ramp_colour(np.linspace(1, 0, 5)).astype(int).tolist(), UNUSED]
    names = ("100 times", "10 times", "equal use", "1/10", "1/100 or less", "not used")
    for y, fill, name in zip(range(top, height, 17), fills, names):
        draw.rectangle((edge + 10, y + 2, edge + 21, y + 13), tuple(fill))
        draw.text((edge + 28, y), name, fill=FAINT, font=face)
    if steps is not None:
        draw.text((left, height - 20), f"iteration {steps[0]}", fill=FAINT, font=face)
        draw.text((edge, height - 20), f"{steps[-1]}", fill=FAINT, font=face, anchor="ra")
    return np.asarray(image)


def code_colour(code):
    """Return the (r, g, b) of a code, always the same; neighbours in the codebook differ much in hue."""
    lightness = (0.62, 0.72, 0.8)[code % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(code * 0.61803398875 % 1, lightness, 0.55))


def code_strip(rows, nb_code, labels, wrap=32):
    """Draw rows of codes, integers below nb_code, as `wrap` numbered cells a line beneath their labels."""
    rows = [np.asarray(row).tolist() for row in rows]
    if wrong := [code for row in rows for code in row if not 0 <= code < nb_code]:
        raise UserError(f"code {wrong[0]} is outside the codebook of {nb_code} codes (0 … {nb_code - 1})")
    cell, tall, caption, y = 30, 24, 20, 8
    heights = [caption + -(-len(row) // wrap) * tall + 8 for row in rows]
    image = Image.new("RGB", (min(wrap, max(map(len, rows))) * cell + 16, sum(heights) + 8), PAPER)
    draw = ImageDraw.Draw(image)
    for row, label, height in zip(rows, labels, heights):
        draw.text((8, y), label, fill=INK, font=font(13))
        for at, code in enumerate(row):
            x, up = 8 + at % wrap * cell, y + caption + at // wrap * tall
            face = fitting_font(str(code), 12, cell - 4)
            draw.rectangle((x, up, x + cell - 2, up + tall - 2), code_colour(code))
            draw.text((x + cell / 2 - 1, up + tall / 2 - 1), str(code), fill=INK, font=face, anchor="mm")
        y += height
    return np.asarray(image)
