"""Recognise a person's joints in a hierarchy by its chains and bone lengths, with names as evidence."""
import itertools
import math
import re
from collections import Counter, namedtuple

import numpy as np

from utils.errors import UserError

LEG, ARM = ("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist")
SPINE = ("spine1", "spine2", "spine3")
SPINE_AT = (0.24, 0.50, 0.60)   # HumanML3D's spine joints, as shares of the way from pelvis to neck
PASSED = ("passed over",)
# what a name without its side speaks for; the first pattern that is found counts
WORDS = (
    ("twist|roll", PASSED),
    (r"thumb|index|middle|^mid$|ring|pink|little|finger|carpal|eye|jaw|tongue|lip|brow", ("other",)),
    (r"toe|ball|forefoot|metatars|つま先", ("foot",)),
    (r"thigh|up(per)?leg|uleg|femur", ("hip",)),
    (r"shin|calf|lo(w|wer)?leg|knee|tibia|ひざ", ("knee",)),
    (r"ankle|足首", ("ankle",)),
    (r"foot", ("ankle", "foot")),
    (r"clav|collar|scap|肩", ("collar",)),
    (r"fore?arm|lo(w|wer)?arm|farm|elbow|radius|ulna|ひじ", ("elbow",)),
    (r"wrist|手首", ("wrist",)),
    (r"hand", ("wrist", "hand")),
    (r"shoulder", ("collar", "shoulder")),
    (r"u?arm(?!ature)|humer|shldr|bicep|腕", ("shoulder",)),
    (r"leg|足", ("knee", "hip")),
    (r"pelvis|hip", ("pelvis", "hip")),
    (r"neck|首", ("neck",)),
    (r"head|skull|頭", ("head",)),
)
PASSED_WORDS = {"end", "nub", "tip", "top", "null", "site", "ik", "pole", "target", "helper", "effector"}
BODY = "up|low|butt|" + "|".join(pattern for pattern, _ in WORDS)
SIDES = {**dict.fromkeys(("left", "l", "lft", "lt", "左"), "left"),
         **dict.fromkeys(("right", "r", "rgt", "rt", "右"), "right")}
# A pair of legs or arms: the joint they hang on; left and right, the joints from below it to the tip, and the
# indices among those of hip, knee and ankle, or shoulder, elbow and wrist; how well they fit; whether names
# tell the sides
Limbs = namedtuple("Limbs", "base paths chosen score sided")


def read_name(name, prefix=""):
    """Return (side or None, roles) of what a joint's name says after the prefix that all names have."""
    bare = re.split("[:|]", name)[-1].removeprefix(prefix)
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]", bare)]
    sides = [SIDES[word] for word in words if word in SIDES]
    rest = "".join(word for word in words if word not in SIDES)
    glued = re.search(rf"^(left|right)|^[lr](?={BODY})|(left|right)$", rest)
    if not sides and glued:
        sides, rest = [SIDES[glued.group()]], rest[:glued.start()] + rest[glued.end():]
    roles = next((roles for pattern, roles in WORDS if re.search(pattern, rest)), ())
    return (*sides, None)[0], PASSED if PASSED_WORDS & {*words} else roles


class Tree:
    """A hierarchy with the length of each bone, and what the joints' names say."""

    def __init__(self, names, parents, lengths):
        firsts = Counter(re.match(r"[A-Za-z]+\d*[_.\- ]+|", name.split(":")[-1]).group() for name in names)
        prefix, count = firsts.most_common(1)[0]
        prefix = prefix if count > 0.7 * len(names) else ""
        self.sides, self.roles = zip(*(read_name(name, prefix) for name in names))
        self.lengths = lengths
        self.up, self.down = [], [[joint] for joint in range(len(names))]
        for joint, parent in enumerate(parents):        # each joint and all above it
            self.up.append([joint, *(self.up[parent] if parent >= 0 else ())])
        for joint in range(len(names) - 1, 0, -1):      # each joint and all on the longest way down from it
            below = self.down[parents[joint]]
            if self.length(self.down[joint]) >= self.length(below[1:]):
                below[1:] = self.down[joint]

    def length(self, path):
        """Return the length of the bones that end in the joints of a path."""
        return sum(self.lengths[joint] for joint in path)

    def score(self, joint, role):
        """Return how far a joint's name speaks for a role: from -1.5, of one to pass over, to 1."""
        roles = self.roles[joint]
        if role in roles:
            return 1 if len(roles) == 1 else 0.6
        return -1.5 if roles == PASSED else -1 if roles else 0


def _fit_limb(tree, path, roles):
    """Return (score, indices in `path`) of the two long and like bones that best make a leg or an arm."""
    along = list(itertools.accumulate(tree.lengths[joint] for joint in path))
    named = [[tree.score(joint, role) for joint in path] for role in roles]
    best = (-math.inf, None)
    for a, b, c in itertools.combinations(range(len(path)), 3):
        upper, lower = along[b] - along[a], along[c] - along[b]
        if min(upper, lower) <= 0.05 * along[-1]:
            continue
        score = named[0][a] + named[1][b] + named[2][c] + (upper + lower) / along[-1] - 0.02 * a
        score -= along[a] < 0.03 * along[-1]    # hips and shoulders lie apart from the trunk
        score -= min(4 * math.log(upper / lower) ** 2, 1.5)    # names in full outweigh a strange ratio
        best = max(best, (score, (a, b, c)), key=lambda fit: fit[0])
    return best


def _find_limbs(tree, roles):
    """Return the pairs of ways down from one joint, left and right by name or alike, that may be limbs."""
    found = []
    for pair in itertools.combinations([path for path in tree.down if len(path) > 2], 2):
        base, same = (tree.up[path[0]][1:2] for path in pair)
        if base != same:
            continue
        bones = [[tree.lengths[joint] for joint in path] for path in pair]
        reach = max(map(sum, bones))
        sides = [tree.sides[path[0]] or tree.sides[path[1]] for path in pair]
        sided = {*sides} == {"left", "right"} and reach < 2 * min(map(sum, bones))
        alike = sides == [None, None] and len(pair[0]) == len(pair[1]) and \
            max(abs(a - b) for a, b in zip(*bones)) < 0.05 * reach
        if sided or alike:
            pair = pair[::-1] if sides[0] == "right" else pair
            scores, chosen = zip(*(_fit_limb(tree, path, roles) for path in pair))
            if None not in chosen:
                found.append(Limbs(base[0], pair, chosen, sum(scores), sided))
    return found


def _choose_limbs(tree):
    """Return legs and arms that hang on a trunk. Raises UserError where there are none."""
    best, found = -math.inf, None
    for legs, arms in itertools.product(_find_limbs(tree, LEG), _find_limbs(tree, ARM)):
        trunk = [joint for joint in tree.up[arms.base] if joint not in tree.up[legs.base]]
        leg, arm = (tree.length(limbs.paths[0][1:]) for limbs in (legs, arms))
        score = legs.score + arms.score - max(0.0, arm / max(leg, 1e-9) - 1.2)
        score -= 5 * (tree.length(trunk) < 0.15 * leg)
        if trunk and score > best:
            best, found = score, (legs, arms)
    if not found:
        raise UserError("no human skeleton: found no two legs and two arms on a trunk; give --joint-map FILE")
    return found


def _limb_map(tree, limbs, roles):
    """Return {side_role: joint} of a pair of limbs, with collars and feet where there are any."""
    joints = {}
    for side, path, (a, b, c) in zip(("left", "right"), limbs.paths, limbs.chosen):
        joints |= {f"{side}_{role}": path[i] for role, i in zip(roles, (a, b, c))}
        upper = tree.length(path[a + 1:b + 1])
        if roles is ARM:
            before = [i for i in range(a) if tree.roles[path[i]] != PASSED]
            far = [i for i in before if tree.length(path[i + 1:a + 1]) >= 0.2 * upper]
            if before:
                joints[f"{side}_collar"] = path[(far or before)[-1]]
        else:
            after = range(c + 1, len(path))
            far = [i for i in after if tree.length(path[c + 1:i + 1]) >= 0.1 * upper]
            named = [i for i in after if tree.score(path[i], "foot") > 0]
            if named or far:
                joints[f"{side}_foot"] = path[(named or far)[0]]
    return joints


def _head_path(tree, trunk, limbs):
    """Return the joints above the trunk, to the first named a head or to the furthest. trunk: chest first.

    Raises UserError where there is none.
    """
    best, found = 0, None
    for end, up in enumerate(tree.up):
        path = list(itertools.takewhile(lambda joint: joint not in trunk, up))[::-1]
        as_head, as_neck = tree.score(end, "head"), tree.score(end, "neck")
        if not path or path[0] == 0 or path[0] in limbs or as_head + as_neck < 0:
            continue
        base = up[len(path)]
        far = tree.length(path) / max(tree.length(tree.down[base][1:]), 1e-9)
        score = (4 if as_head > 0 else far) - trunk.index(base)
        score += any(tree.score(joint, "neck") > 0 for joint in path)
        if score > best:
            best, found = score, path
    if not found:
        raise UserError("no human skeleton: found no head above the arms; give --joint-map FILE")
    return found


def _spine_map(tree, chain, rest):
    """Return {spine1 … spine3: joint} of the joints between pelvis and neck. rest: length after the last."""
    if len(chain) == 2:
        return dict(spine1=chain[0], spine3=chain[1])
    count, shares = min(3, len(chain)), np.cumsum([tree.lengths[joint] for joint in chain])
    shares /= max(tree.length(chain) + rest, 1e-9)
    choices = [(sum(abs(shares[i] - SPINE_AT[slot]) for i, slot in zip(pick, slots)), pick, slots)
               for slots in itertools.combinations(range(3), count)
               for pick in itertools.combinations(range(len(chain)), count)]
    _, pick, slots = min(choices)
    return {SPINE[slot]: chain[i] for i, slot in zip(pick, slots)}


def recognise(names, parents, lengths):
    """Return ({target joint: index}, confidence from 0 to 1, whether names tell the sides).

    names: J. parents: J indices, a parent before its children, -1 for the root. lengths: J, of the bones.
    Targets that the skeleton lacks are left out. Raises UserError for a hierarchy that has no person's limbs.
    """
    tree = Tree(names, parents, lengths)
    legs, arms = _choose_limbs(tree)
    joints = _limb_map(tree, legs, LEG) | _limb_map(tree, arms, ARM)
    confidence = np.mean([tree.score(joint, target.split("_")[1]) > 0 for target, joint in joints.items()])
    below, up = tree.up[legs.base], tree.up[arms.base]
    fork = next(i for i, joint in enumerate(below) if joint in up)
    leg = tree.length(legs.paths[0][1:])
    near = [i for i in range(fork, len(below)) if tree.length(below[fork:i]) < 0.3 * leg]
    hips = [below[i] for i in (*near, *range(fork)) if tree.score(below[i], "pelvis") > 0]
    joints["pelvis"] = (hips or [below[fork]])[0]
    start = joints["pelvis"] if joints["pelvis"] in up else below[fork]
    trunk = up[:up.index(start)]                        # from the chest down, without the pelvis
    head = _head_path(tree, [*trunk, start], {path[0] for path in (*legs.paths, *arms.paths)})
    necks = [joint for joint in trunk[::-1] if tree.score(joint, "neck") > 0]
    chain = [joint for joint in trunk[::-1] if joint not in necks]
    necks += head[:-1]
    joints |= {"head": head[-1], **({"neck": necks[0]} if necks else {})}
    joints |= _spine_map(tree, chain, tree.length(necks[:1] or head))
    return joints, round(0.5 + 0.5 * confidence, 2), legs.sided and arms.sided
