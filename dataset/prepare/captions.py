"""Captions: a CSV file of id and caption, and HumanML3D's text lines `caption#word/POS word/POS#from#to`."""
import csv
import re
from pathlib import Path

from utils.errors import UserError

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
    captions = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                row = [field.strip() for field in row]
                if not row or (rows.line_num == 1 and list(map(str.lower, row)) == ["id", "caption"]):
                    continue
                if len(row) != 2 or not all(row):
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} fields; expected id,caption")
                captions.setdefault(row[0], []).append(row[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV text ({error}); expected rows of id,caption") from None
    if not captions:
        raise UserError(f"{path}: holds no caption; expected rows of id,caption")
    return captions
