"""Captions: a CSV of id and caption → HumanML3D's text lines `caption#word/POS word/POS#from#to`.

The part of speech comes from small tables and endings, not from a parser: near enough for the word features of the extractors, which look at it
beside the word itself. HumanML3D's own files hold lemmas with spaCy's tags; a line that already has the four fields is taken as it is.
"""
import csv
import re
from pathlib import Path

from utils.errors import UserError

TAGS = {
    "DET": "a an the this that these those his her its their my your our some any each every both all another no",
    "PRON": "he she it they him them i you we himself herself itself themselves someone something who which what",
    "ADP": "in on at to from with of by for into onto over under around through across along behind beside between against up down off out towards "
           "toward near past after before above below like about as",
    "CCONJ": "and or but then",
    "AUX": "is are was were be been being am has have had do does did can could will would should may might must",
    "PART": "not",
    "NUM": "one two three four five six seven eight nine ten once twice",
    "ADV": "forward forwards backward backwards slowly quickly again twice left-wards sideways clockwise counterclockwise counter-clockwise "
           "anticlockwise together apart back away very still there here while when",
    "ADJ": "left right happy sad angry tired old young slow quick fast big small high low wide straight proud active normal other same "
           "feminine masculine exhausted full half",
    "VERB": "walk run jump turn step sit stand kick punch wave bow dance squat raise lift lower throw catch move bend swing start stop take put "
            "hold look face lean crouch crawl climb hop jog march pick place spin stretch reach stumble fall lie kneel clap point push pull shake "
            "shuffle skip stomp swim sway twist pace limp do make go come get give keep return repeat perform stand-up dash strafe sidestep curve",
}
WORDS = {word: tag for tag, words in TAGS.items() for word in words.split()}
LEMMAS = dict(sat="sit", sits="sit", sitting="sit", stood="stand", ran="run", running="run", threw="throw", took="take", put="put", goes="go",
              does="do", made="make", got="get", getting="get", caught="catch", held="hold", bent="bend", swung="swing", fell="fall", lying="lie",
              lay="lie", went="go", came="come", stepping="step", hopping="hop", jogging="jog", squatting="squat", stopping="stop",
              spinning="spin", clapping="clap", moves="move", moving="move", raising="raise", waving="wave", dancing="dance", facing="face",
              taking="take", making="make", pacing="pace", shaking="shake", crouches="crouch", punches="punch", reaches="reach", catches="catch",
              marches="march", stretches="stretch", pushes="push", touches="touch", carries="carry", continues="continue")
OTHER_SIDE = {"left": "right", "clockwise": "counterclockwise", "leftward": "rightward", "leftwards": "rightwards"}
OTHER_SIDE |= {"right": "left", "counterclockwise": "clockwise", "counter-clockwise": "clockwise", "anticlockwise": "clockwise",
               "rightward": "leftward", "rightwards": "leftwards"}


def _tag(word):
    """(lemma, part of speech) of a lower-case word."""
    if word in WORDS:
        return word, WORDS[word]
    if word in LEMMAS:
        return LEMMAS[word], "VERB"
    if word.isdigit():
        return word, "NUM"
    for ending, bare in (("s", ""), ("es", ""), ("ies", "y"), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"), ("d", "")):
        stem = word[:-len(ending)] + bare
        if word.endswith(ending) and WORDS.get(stem) == "VERB":
            return stem, "VERB"
    if word.endswith("ly"):
        return word, "ADV"
    if word.endswith(("ing", "ed")) and len(word) > 4:
        return word, "VERB"
    return word, "NOUN"


def text_line(caption):
    """One line of a text file for a caption. A caption that already has HumanML3D's four fields is returned as it is."""
    caption = " ".join(caption.split())
    if caption.count("#") == 3:
        return caption
    caption = " ".join(caption.replace("#", " ").split())
    words = re.findall(r"[a-z0-9]+(?:[-'][a-z0-9]+)*", caption.lower())
    return f"{caption}#{' '.join('/'.join(_tag(word)) for word in words)}#0.0#0.0"


def mirror_line(line):
    """The line of the left-right mirrored clip: left and right, clockwise and counterclockwise change places."""

    def swap(match):
        word = OTHER_SIDE[match.group().lower()]
        return word.capitalize() if match.group()[0].isupper() else word

    names = "|".join(sorted(OTHER_SIDE, key=len, reverse=True))
    return re.sub(rf"(?<![\w-])(?:{names})(?![\w-])", swap, line, flags=re.IGNORECASE)


def read_csv(path):
    """{id: [caption, …]} of a CSV file of two columns, id and caption; a first row `id,caption` is a header, an id may have several rows.

    Raises UserError with the line for a row of another shape.
    """
    captions = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                if not row or (rows.line_num == 1 and [field.strip().lower() for field in row] == ["id", "caption"]):
                    continue
                if len(row) != 2 or not row[0].strip() or not row[1].strip():
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} fields ({','.join(row)[:50]!r}); expected id,caption "
                                    "(a caption with a comma stands in double quotes)")
                captions.setdefault(row[0].strip(), []).append(row[1].strip())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a CSV file of id,caption") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV text file ({error})") from None
    if not captions:
        raise UserError(f"{path}: holds no caption; expected rows of id,caption")
    return captions
