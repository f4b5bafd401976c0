"""Captions: a CSV file of id and caption, and HumanML3D's text lines `caption#word/POS word/POS#from#to`."""
import csv
import re

from utils.errors import UserError
from utils.files import read_text

SIDES = {"left": "right", "leftward": "rightward", "leftwards": "rightwards", "clockwise": "counterclockwise"}
SIDES |= {right: left for left, right in SIDES.items()} | {"anticlockwise": "clockwise"}


def text_line(caption):
    """Return a caption's text line, its words tagged OTHER. One that has all four fields is kept as it is."""
    if caption.count("#") == 3:
        return caption
    caption = " ".join(caption.replace("#", " ").split())
    words = (f"{word}/OTHER" for word in re.findall(r"\w[\w'-]*", caption.lower()))
    return f"{caption}#{' '.join(words)}#0.0#0.0"


def mirror_line(line):
    """Return the text line of the mirrored clip: left and right, and senses of rotation, change places."""
    line = re.sub(r"(counter|anti)-(?=clockwise)", r"\1", line)
    swapped = SIDES | {name.capitalize(): other.capitalize() for name, other in SIDES.items()}
    return re.sub(rf"\b({'|'.join(swapped)})\b", lambda match: swapped[match[0]], line)


def read_csv(path):
    """Read {id: [caption, …]} from a CSV file of two columns. Raises UserError for any other row."""
    captions, expected = {}, "rows of id,caption"
    rows = csv.reader(read_text(path, expected).splitlines(keepends=True))
    try:
        for row in rows:
            row = [field.strip() for field in row]
            if len(row) not in (0, 2) or not all(row):
                raise UserError(f"{path}, line {rows.line_num}: {len(row)} fields; expected id,caption")
            if row and [field.lower() for field in row] != ["id", "caption"]:
                captions.setdefault(row[0], []).append(row[1])
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; expected {expected}") from None
    if not captions:
        raise UserError(f"{path}: holds no caption; expected {expected}")
    return captions
