"""Recognise a person's joints in a hierarchy by its chains and bone lengths, with names as evidence."""
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from dataset.prepare.bvh import END
from utils.errors import UserError

LEG, ARM = ("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist")
SPINE = ("spine1", "spine2", "spine3")
SPINE_AT = (0.24, 0.50, 0.60)   # HumanML3D's spine joints, as shares of the way from pelvis to neck
BODY = "thigh|up|low|leg|hip|femur|shin|calf|tib|knee|ankle|foot|toe|clav|coll|should|shld|[uf]?arm|fore|" \
       "hum|elb|rad|hand|wrist|butt"
# what a name without its side speaks for; the first pattern that is found counts
WORDS = (
    (r"thumb|index|middle|^mid$|ring|pink|little|finger|carpal|eye|jaw|tongue|lip|brow", ("other",)),
    (r"toe|ball|forefoot|metatars|つま先", ("foot",)),
    (r"thigh|up(per)?leg|uleg|femur", ("hip",)),
    (r"shin|calf|lo(w|wer)?leg|knee|tibia|ひざ", ("knee",)),
    (r"ankle|足首", ("ankle",)),
    (r"foot", ("ankle", "foot")),
    (r"clav|collar|scap|肩", ("collar",)),
    (r"fore?arm|lo(w|wer)?arm|farm|elbow|radius|ulna|ひじ", ("elbow",)),
    (r"up(per)?arm|uarm|humer|shldr|bicep|腕", ("shoulder",)),
    (r"wrist|手首", ("wrist",)),
    (r"hand", ("wrist", "hand")),
    (r"shoulder", ("collar", "shoulder")),
    (r"arm(?!ature)", ("shoulder",)),
    (r"leg|足", ("knee", "hip")),
    (r"pelvis|hip", ("pelvis", "hip")),
    (r"neck|首", ("neck",)),
    (r"head|skull|頭", ("head",)),
)
PASSED_OVER = r"twist|roll"
PASSED_OVER_WORDS = {"end", "nub", "tip", "top", "null", "site", "ik", "pole", "target", "helper", "effector"}
SIDES = {**dict.fromkeys(("left", "l", "lft", "lt", "左"), "left"),
         **dict.fromkeys(("right", "r", "rgt", "rt", "右"), "right")}


@dataclass(frozen=True)
class Name:
    """What a joint's name says: its side or None, the roles it may have, whether it is passed over."""

    side: str
    roles: tuple
    passed_over: bool

    def score(self, role):
        """Return how far the name speaks for a role, from -1.5 to 1."""
        if self.passed_over:
            return -1.5
        if role in self.roles:
            return 1 if len(self.roles) == 1 else 0.6
        return -1 if self.roles else 0


def read_name(name, prefix=""):
    """Read a joint's name as a `Name`. prefix: what all names of the skeleton begin with."""
    bare = name.rsplit(":", 1)[-1].rsplit("|", 1)[-1]
    bare = bare[len(prefix):] if bare.startswith(prefix) else bare
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]", bare)]
    sides = [SIDES[word] for word in words if word in SIDES]
    rest = "".join(word for word in words if word not in SIDES)
    glued = re.match(rf"(left|right)|(l|r)(?={BODY})", rest)
    if not sides and glued:
        sides, rest = [SIDES[glued.group()]], rest[glued.end():]
    elif not sides and re.search("(left|right)$", rest):
        sides, rest = [SIDES[re.search("(left|right)$", rest).group()]], re.sub("(left|right)$", "", rest)
    roles = next((roles for pattern, roles in WORDS if re.search(pattern, rest)), ())
    passed_over = bool(re.search(PASSED_OVER, rest) or PASSED_OVER_WORDS & {*words} or name.endswith(END))
    return Name(sides[0] if sides else None, roles, passed_over)


def read_names(names):
    """Read all names of a skeleton, without the prefix that most share."""
    firsts = Counter(re.match(r"[A-Za-z]+\d*[_.\- ]+|", name.rsplit(":", 1)[-1]).group() for name in names)
    prefix, count = firsts.most_common(1)[0]
    return [read_name(name, prefix if count > 0.7 * len(names) else "") for name in names]


class Tree:
    """A hierarchy with the length of each bone, and what the joints' names say."""

    def __init__(self, names, parents, lengths):
        self.names, self.parents, self.lengths = read_names(names), parents, lengths
        self.children = [[] for _ in names]
        for joint, parent in enumerate(parents):
            if parent >= 0:
                self.children[parent].append(joint)
        self.reach = [0.0] * len(names)                 # the longest way down from each joint
        for joint in reversed(range(len(names))):
            self.reach[joint] = max(map(self.way_down, self.children[joint]), default=0)

    def way_down(self, joint):
        """Return the length of the longest way from a joint's parent over it down."""
        return self.lengths[joint] + self.reach[joint]

    def path_down(self, joint):
        """Return the joints on the longest way down from a joint, itself first."""
        path = [joint]
        while self.children[path[-1]]:
            path.append(max(self.children[path[-1]], key=self.way_down))
        return path

    def path_up(self, joint):
        """Return a joint and all joints above it, up to the root."""
        path = [joint]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path

    def arc(self, path):
        """Return the length of the way along a path of joints, each the parent of the next."""
        return sum(self.lengths[joint] for joint in path[1:])

    def side(self, path):
        """Return the side of a limb: the first that its names say, unless they say it late."""
        return self.names[path[0]].side or self.names[path[1]].side


def _fit_limb(tree, path, roles):
    """Return (score, indices in `path`) of the three joints that best make a leg or an arm.

    Two long bones of like length, with little after them, and names that fit.
    """
    along = list(itertools.accumulate(tree.lengths[joint] for joint in path))
    named = [[tree.names[joint].score(role) for joint in path] for role in roles]
    best = (-math.inf, None)
    for a, b, c in itertools.combinations(range(len(path)), 3):
        upper, lower = along[b] - along[a], along[c] - along[b]
        if min(upper, lower) <= 0.05 * along[-1]:
            continue
        score = named[0][a] + named[1][b] + named[2][c] + (upper + lower) / along[-1] - 0.02 * a
        score -= along[a] < 0.03 * along[-1]    # hips and shoulders lie apart from the trunk
        score -= min(4 * math.log(upper / lower) ** 2, 1.5)    # names in full outweigh a strange ratio
        if score > best[0]:
            best = (score, (a, b, c))
    return best


def _find_pairs(tree):
    """Return pairs of limbs, (joint they hang on, left path, right path, whether names tell the sides)."""
    pairs = []
    for joint, children in enumerate(tree.children):
        paths = [tree.path_down(child) for child in children]
        for one, other in itertools.combinations([path for path in paths if len(path) > 2], 2):
            bones = [[tree.lengths[joint] for joint in path] for path in (one, other)]
            reach, sides = max(map(sum, bones)), (tree.side(one), tree.side(other))
            if sides in (("left", "right"), ("right", "left")) and reach < 2 * min(map(sum, bones)):
                pairs.append((joint, *((one, other) if sides[0] == "left" else (other, one)), True))
            elif sides == (None, None) and len(one) == len(other) and \
                    max(abs(a - b) for a, b in zip(*bones)) < 0.05 * reach:
                pairs.append((joint, one, other, False))
    return pairs


def _choose_limbs(tree):
    """Return (legs, arms), each (pair, left fit, right fit), or None where there are no such limbs."""
    fits = []
    for pair in _find_pairs(tree):
        fits.append([(pair, *(_fit_limb(tree, path, roles) for path in pair[1:3])) for roles in (LEG, ARM)])
    best, found = -math.inf, None
    for (legs, _), (_, arms) in itertools.permutations(fits, 2):
        if None in (legs[1][1], legs[2][1], arms[1][1], arms[2][1]):
            continue
        base, chest = legs[0][0], arms[0][0]
        above = tree.path_up(chest)
        below = tree.path_up(base)
        trunk = [joint for joint in above if joint not in below]
        if not trunk:
            continue    # the arms hang where the legs do, or below them
        leg = tree.arc(legs[0][1])
        score = legs[1][0] + legs[2][0] + arms[1][0] + arms[2][0]
        score -= max(0.0, tree.arc(arms[0][1]) / max(leg, 1e-9) - 1.2)
        score -= 5 * (sum(tree.lengths[joint] for joint in trunk) < 0.15 * leg)
        if score > best:
            best, found = score, (legs, arms)
    return found


def _limb_map(tree, limb, roles):
    """Return {side_role: joint} of a pair of limbs, with collars and feet where there are any."""
    (_, *paths, _), *fits = limb
    joints = {}
    for side, path, (_, chosen) in zip(("left", "right"), paths, fits):
        joints |= {f"{side}_{role}": path[index] for role, index in zip(roles, chosen)}
        upper = tree.arc(path[chosen[0]:chosen[1] + 1])
        if roles is ARM:
            before = [i for i in range(chosen[0]) if not tree.names[path[i]].passed_over]
            far = [i for i in before if tree.arc(path[i:chosen[0] + 1]) >= 0.2 * upper]
            if before:
                joints[f"{side}_collar"] = path[far[-1] if far else before[-1]]
        else:
            after = range(chosen[2] + 1, len(path))
            far = [i for i in after if tree.arc(path[chosen[2]:i + 1]) >= 0.1 * upper]
            named = [i for i in after if tree.names[path[i]].score("foot") > 0]
            if named or far:
                joints[f"{side}_foot"] = path[(named or far)[0]]
    return joints


def _head_path(tree, trunk, limbs):
    """Return the joints from the trunk to the head, the trunk's left out. trunk: from the chest down."""
    best, found = 0, []
    for depth, joint in enumerate(trunk):
        for child in tree.children[joint]:
            if child in trunk or child in limbs:
                continue
            below = [child]
            for one in below:
                below += tree.children[one]
            heads = [one for one in below if tree.names[one].score("head") > 0]
            ends = heads[:1] or [one for one in tree.path_down(child) if not tree.names[one].passed_over][-1:]
            path = tree.path_up(ends[0])[::-1] if ends else []
            path = path[path.index(child):] if child in path else []
            score = len(path) and 3 * bool(heads) + any(tree.names[one].score("neck") > 0 for one in path) + \
                tree.arc([joint, *path]) / max(tree.reach[joint], 1e-9) - depth
            if path and score > best:
                best, found = score, path
    return found


def _spine_map(tree, chain, rest):
    """Return {spine1 … spine3: joint} of the joints between pelvis and neck. rest: length after the last."""
    along = np.cumsum([tree.lengths[joint] for joint in chain])
    shares = along / max(along[-1] + rest, 1e-9) if len(chain) else along
    if len(chain) == 2:
        return dict(spine1=chain[0], spine3=chain[1])
    slots = itertools.combinations(range(3), min(3, len(chain)))
    picks = list(itertools.combinations(range(len(chain)), min(3, len(chain))))
    choices = [(sum(abs(shares[i] - SPINE_AT[slot]) for i, slot in zip(pick, own)), pick, own)
               for own in slots for pick in picks]
    _, pick, own = min(choices)
    return {SPINE[slot]: chain[i] for i, slot in zip(pick, own)}


def recognise(names, parents, lengths):
    """Return ({target joint: index}, confidence from 0 to 1, whether names tell the sides).

    names: J. parents: J indices, a parent before its children, -1 for the root. lengths: J, of the bones.
    Targets that the skeleton lacks are left out. Raises UserError for a hierarchy that has no person's limbs.
    """
    tree = Tree(names, parents, lengths)
    limbs = _choose_limbs(tree)
    if limbs is None:
        raise UserError("no human skeleton: found no two legs and two arms on a trunk; give --joint-map FILE")
    legs, arms = limbs
    joints = _limb_map(tree, legs, LEG) | _limb_map(tree, arms, ARM)
    base, chest = legs[0][0], arms[0][0]
    below = tree.path_up(base)
    fork = next(joint for joint in tree.path_up(chest) if joint in below)
    leg = tree.arc(legs[0][1])
    near = [joint for joint in below[below.index(fork):]
            if tree.arc(below[below.index(fork):below.index(joint) + 1][::-1]) < 0.3 * leg]
    hips = [joint for joint in (*near, *below[:below.index(fork)]) if tree.names[joint].score("pelvis") > 0]
    joints["pelvis"] = hips[0] if hips else fork
    up = tree.path_up(chest)
    start = joints["pelvis"] if joints["pelvis"] in up else fork
    trunk = up[:up.index(start)]                        # from the chest down, without the pelvis
    head = _head_path(tree, [*trunk, start], {path[0] for path in (*legs[0][1:3], *arms[0][1:3])})
    if not head:
        raise UserError("no human skeleton: found no head above the arms; give --joint-map FILE")
    joints["head"] = head[-1]
    necks = [joint for joint in trunk[::-1] if tree.names[joint].score("neck") > 0]
    chain = [joint for joint in trunk[::-1] if joint not in necks]
    necks += head[:-1]
    if necks:
        joints["neck"] = necks[0]
    joints |= _spine_map(tree, chain, tree.arc([0, *(necks[:1] or head)]))
    limbs = {target.split("_")[1]: joint for target, joint in joints.items() if "_" in target}
    named = [tree.names[joint].score(role) > 0 for role, joint in limbs.items()]
    confidence = 0.5 + 0.5 * sum(named) / len(named)
    return joints, round(confidence, 2), legs[0][3] and arms[0][3]
