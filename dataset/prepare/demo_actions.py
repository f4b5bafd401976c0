"""What the demo set's people do, written on a score (`dataset.prepare.demo_score`), and the words for it.

One function an action, which is why this file is long.
An action is a function (score, start, limit, rng) → (end, phrases): it writes itself between two times in seconds, ends standing,
and says what happened in a few equivalent phrases. What it adds starts and ends at zero, so actions follow or overlap smoothly.
Metres, seconds, degrees. Left is positive; the sizes are those of the data set's skeleton and scale with the person.
"""
import numpy as np
from scipy.interpolate import CubicHermiteSpline

from dataset.prepare.demo_score import FPS, OTHER, SIDES, Step, arm, ease, keyed, pick, pulse

# on foot

def gait(score, start, count, period, first, forward=0.0, left=0.0, turn=0.0, swing=0.8, ramp=1.1, **step):
    """Count alternating steps, one every period seconds, from a stand to a stand. Speeds in metres a second, turn in degrees in all.

    swing: how long a foot is in the air, in periods; above 1 there is flight. Returns the end in seconds.
    """
    end = start + (count - 1 + swing) * period
    envelope = pulse(score.t, start - 0.2, end + 0.1, min(ramp * period + 0.2, 0.5 * (end - start)))
    score.add(forward_speed=forward * envelope, left_speed=left * envelope)
    score.add(turn_rate=turn * envelope / max(envelope.sum() / FPS, 1e-6))
    side = first
    for i in range(count):
        lift = start + i * period
        land = lift + swing * period
        over = end + 0.1 if i >= count - 2 else 0.5 * (land + lift + 2 * period)
        score.steps.append(Step(side, lift, land, over, **step))
        side = OTHER[side]
    score.steps[-count] = score.steps[-count]._replace(height=0.7 * score.steps[-count].height)     # the first is only half as long
    return end + 0.1


def walk(score, start, limit, rng):
    pace, adverbs = pick(rng, ("slow", ("slowly", "at a slow pace")), ("usual", ("", "casually")), ("quick", ("quickly", "briskly")))
    period, speed = dict(slow=(0.68, 0.75), usual=(0.54, 1.2), quick=(0.44, 1.6))[pace]
    period, speed, first = period * rng.uniform(0.95, 1.05), speed * rng.uniform(0.9, 1.1), pick(rng, *SIDES)
    most = int((limit - start) / period)
    way, turn, step = pick(rng, "forward", "forward", "backward", "left", "right", "circle", "return"), 0.0, dict(push=36, strike=14)
    if way == "backward":
        speed, period, step = -0.55 * speed, period * 1.05, dict(push=22, strike=0, height=0.06)
        words = ("walks backward", "steps backwards", "takes some steps back")
    elif way in SIDES:
        turn, step = SIDES[way] * rng.uniform(60, 110), step | dict(width=0.1)
        words = (f"walks forward and curves to the {way}", f"walks in a curve to the {way}", f"walks ahead, veering {way}")
    elif way == "circle" and most >= 10:
        side = pick(rng, *SIDES)
        turn, speed, step = SIDES[side] * rng.uniform(300, 360), min(speed, 1.1), dict(push=36, strike=12, width=0.11)
        words = ("walks in a circle", f"walks around in a circle to the {side}", "walks in a circular path")
    elif way == "return" and limit - start > 6.5:
        period, adverbs, side = 0.5, ("",), pick(rng, *SIDES)
        end = gait(score, start, 5, period, first, speed, **step)
        end = gait(score, end, 4, 0.45, side, turn=SIDES[side] * 180, width=0.1, height=0.05, push=20, early=0.1, strike=0)
        words = ("walks forward, turns around and walks back", "walks back and forth", f"walks, turns around to the {side} and walks back")
        start, most = end, 5
    else:
        words = ("walks forward", "walks straight ahead", "takes several steps forward")
    count = min(most, int(rng.integers(10, 14)) if abs(turn) > 200 else int(rng.integers(4, 10)))
    end = gait(score, start, count, period, first, speed, 0, turn, **step)
    envelope = pulse(score.t, start, end, 0.6)
    score.add(spine_forward=(3 if pace == "quick" else 0) * envelope, spine_left=-0.04 * turn * envelope)
    score.pose(envelope, arm_swing=score["arm_swing"] * (0.5 if speed < 0 else 1.15 if pace == "quick" else 0.9))
    return end, [f"{word} {adverb}".strip() for word in words for adverb in adverbs]


def run(score, start, limit, rng):
    pace = pick(rng, "jog", "run")
    period, speed = dict(jog=(0.37, 2.0), run=(0.33, 3.0))[pace]
    period, speed, first = period * rng.uniform(0.96, 1.04), speed * rng.uniform(0.9, 1.1), pick(rng, *SIDES)
    count = min(int((limit - start) / period), int(rng.integers(8, 15)))
    side = pick(rng, None, None, "left", "right")
    turn = SIDES[side] * rng.uniform(50, 110) if side else 0.0
    end = gait(score, start, count, period, first, speed, 0, turn, swing=1.3, ramp=2.6, width=0.08 if side else 0.06, height=0.16 + 0.04 * speed,
               push=60 + 6 * speed, early=0.1, strike=4, linear=0.5)
    envelope = pulse(score.t, start - 0.15, end + 0.1, 0.6)
    score.pose(envelope, bob=-0.055, arm_swing=13 * speed * score.swing, balance=0.25, twist=1.2)
    score.add(spine_forward=(3 + 3 * speed) * envelope, rise=-0.02 * envelope, spine_left=-0.05 * turn * envelope,
              pelvis_forward=2 * speed * envelope)
    for name in SIDES:
        score.pose(envelope, **arm(name, 4, 12, 22, 82))
    words = ("jogs", "runs at a slow pace") if pace == "jog" else ("runs", "runs fast")
    where = (f"and curves to the {side}", f"in a curve to the {side}") if side else ("forward", "straight ahead")
    return end, [f"{word} {place}" for word in words for place in where]


def sidestep(score, start, limit, rng):
    side = pick(rng, *SIDES)
    quick = bool(rng.integers(2))
    period, reach = (0.34, 0.24) if quick else (0.48, 0.22)
    count = min(int((limit - start) / period) // 2 * 2, int(rng.integers(3, 6)) * 2)
    end = gait(score, start, count, period, side, left=SIDES[side] * reach / period, width=0.17, height=0.06, push=18, early=0.1,
               strike=0, swing=0.75)
    envelope = pulse(score.t, start, end, 0.4)
    score.add(rise=(-0.10 if quick else -0.05) * envelope, spine_forward=8 * envelope, pelvis_forward=5 * envelope)
    for name in SIDES:
        score.pose(0.8 * envelope, **arm(name, 15, 22, 25, 60 if quick else 35))
    speed = ("quickly", "fast") if quick else ("", "slowly")
    return end, [f"{word} {adverb}".strip() for adverb in speed
                 for word in (f"sidesteps to the {side}", f"steps sideways to the {side}", f"takes side steps to the {side}")]


def turn(score, start, limit, rng):
    side, angle = pick(rng, *SIDES), pick(rng, 90, 180, 180, 360)
    period = rng.uniform(0.4, 0.55)
    count = max(3, int(angle / 48) + 2)
    if start + count * period > limit:
        angle, count = 90, 4
    end = gait(score, start, count, period, side, turn=SIDES[side] * angle, width=0.1, height=0.05, push=20, early=0.1, strike=0)
    envelope = pulse(score.t, start - 0.2, end - 0.2, 0.5)
    score.add(head_turn=SIDES[side] * 18 * envelope, spine_turn=SIDES[side] * 8 * envelope)
    words = {90: (f"turns to the {side}", f"makes a quarter turn to the {side}"),
             180: (f"turns around to the {side}", "turns around", f"makes a half turn to the {side}"),
             360: (f"turns in a full circle to the {side}", "turns all the way around in place")}[angle]
    return end, list(words)


# off the ground, and down

def jump(score, start, limit, rng):
    t, high = score.t, rng.uniform(0.14, 0.32) * score.energy
    air = 2 * np.sqrt(2 * high / 9.81)
    distance = pick(rng, 0.0, 0.0, rng.uniform(0.4, 0.9))
    once = 0.42 + 0.2 + air + 0.75
    count = max(1, min(int(rng.integers(1, 4)), int((limit - start) / once)))
    for _ in range(count):
        crouch, off = start + 0.42, start + 0.62
        land, rest = off + air, off + air + 0.75
        speed = 9.81 * air / 2
        knots = np.array([(start, 0, 0), (crouch, -0.22, 0), (off, 0.085, speed), (land, 0.085, -speed), (land + 0.22, -0.17, 0),
                          (rest, 0, 0)])      # (seconds, metres, metres a second): between off and land a parabola
        score.add(rise=CubicHermiteSpline(*knots.T)(np.clip(t, start, rest)))
        u = np.clip((t - off) / air, 0, 1)
        up = 4 * u * (1 - u) * high
        heel = keyed(t, (crouch, 0), (off, 48), (off + 0.6 * air, 32), (land, 22), (land + 0.14, 0))
        for side in SIDES:
            score.add(**{f"{side}_foot_up": up, f"{side}_foot_pitch": heel})
            score.add(**{f"{side}_arm_forward": keyed(t, (start, 0), (crouch - 0.08, -38), (off, 55), (off + 0.6 * air, 115),
                (land + 0.1, 60), (rest, 0)),
                         f"{side}_elbow": keyed(t, (start, 0), (crouch, 15), (off, 40), (land, 25), (rest, 0)),
                         f"{side}_arm_out": keyed(t, (crouch, 0), (off + 0.5 * air, 12), (rest, 0))})
            if distance:
                score.steps.append(Step(side, off, land, rest, width=score.width, height=0, push=0, strike=0, linear=0.8))
        bend = keyed(t, (start, 0), (crouch, 1), (off, 0.1), (off + 0.6 * air, 0.15), (land + 0.2, 0.8), (rest, 0))
        score.add(spine_forward=24 * bend, pelvis_forward=18 * bend, root_forward=-0.10 * bend, head_forward=-12 * bend)
        travel = keyed(t, (crouch, 0), (off, 0.16), (land, 0.84), (land + 0.3, 1.0))
        score.add(forward_speed=distance * np.gradient(travel) * FPS)
        score.pose(pulse(t, start, rest, 0.2), arm_swing=0, twist=0)
        start = rest - 0.1
    times = {1: "", 2: " twice", 3: " three times"}[count]
    words = ("jumps forward", "makes a jump forward") if distance else ("jumps up", "jumps in place", "jumps into the air")
    return rest, [word + times for word in words]


def squat(score, start, limit, rng):
    down, hold, t = rng.uniform(0.7, 1.1), rng.uniform(0.1, 0.8), score.t
    once = 2 * down + hold
    count = max(1, min(int(rng.integers(1, 4)), int((limit - start) / once)))
    deep = rng.uniform(0.26, 0.46)
    if not score.steps:
        score.width = 0.15
    arms = pick(rng, "forward", "hips", "crossed")
    pose = dict(forward=(80, 6, 10, 12), hips=(-22, 40, 55, 95), crossed=(46, 8, 62, 105))[arms]
    end = start + count * once
    for i in range(count):
        bend = pulse(t, start + i * once, start + (i + 1) * once, down)
        score.add(rise=-deep * bend, root_forward=-0.42 * deep * bend, pelvis_forward=70 * deep * bend, spine_forward=35 * deep * bend,
                  head_forward=-40 * deep * bend)
        for side in SIDES:
            if arms == "forward":       # and level, whatever the chest does
                score.pose(bend, **arm(side, pose[0] + 105 * deep * bend, *pose[1:]))
    for side in SIDES:
        if arms != "forward":
            score.pose(pulse(t, start - 0.2, end + 0.2, 0.6), **arm(side, *pose))
    if arms == "crossed":
        score.add(left_arm_forward=22 * pulse(t, start - 0.2, end + 0.2, 0.6))      # one arm over the other
    times = {1: "", 2: " twice", 3: " three times"}[count]
    how = dict(forward=" with the arms stretched forward", hips=" with the hands on the hips", crossed=" with the arms crossed")[arms]
    return end + 0.1, [f"squats{times}", f"does a squat{times}", f"squats down and stands back up{times}", f"squats{times}{how}"]


def sit(score, start, limit, rng):
    t, down, up = score.t, rng.uniform(1.0, 1.4), rng.uniform(0.9, 1.3)
    hold = np.clip(rng.uniform(0.7, 2.6), 0.7, max(0.7, limit - start - down - up))
    end = start + down + hold + up
    seat = rng.uniform(0.34, 0.44)
    if not score.steps:
        score.width = 0.11
    bend = pulse(t, start, end, down, up)
    back = ease((t - start) / (0.9 * down)) * (1 - ease((t - end + 0.9 * up) / (0.9 * up)))
    score.add(rise=-seat * bend, root_forward=-0.40 * back)
    lean = keyed(t, (start, 0), (start + 0.55 * down, 1), (start + down + 0.25, 0.05), (end - up - 0.15, 0.05), (end - 0.6 * up, 1),
                 (end, 0))
    score.add(pelvis_forward=24 * lean - 4 * bend, spine_forward=20 * lean + 5 * bend, head_forward=-16 * lean)
    for side in SIDES:
        score.pose(pulse(t, start + 0.3 * down, end - 0.2 * up, 0.7 * down, 0.7 * up), **arm(side, 12, 8, 18, 36))
    return end, ["sits down and stands up again", "sits down on a chair, then stands up", "sits down, waits and stands back up",
                 "takes a seat and gets up again"]


def bow(score, start, limit, rng):
    t, down, hold = score.t, rng.uniform(0.7, 1.1), rng.uniform(0.2, 0.9)
    deep = rng.uniform(0.5, 0.95)
    once = 2 * down + hold
    count = max(1, min(int(rng.integers(1, 3)), int((limit - start) / once)))
    hands = pick(rng, "sides", "front", "chest")
    end = start + count * once
    bend = sum(pulse(t, start + i * once, start + (i + 1) * once, down) for i in range(count))
    score.add(spine_forward=46 * deep * bend, pelvis_forward=36 * deep * bend, root_forward=-0.11 * deep * bend, head_forward=12 * bend)
    held = pulse(t, start - 0.1, end + 0.1, 0.6)
    for side in SIDES:
        if hands == "chest" and side == "right":
            score.pose(held, **arm(side, 34, 16, 66, 108))
            continue
        if hands == "front":
            score.pose(held, **arm(side, 22, 4, 45, 38))
        score.add(**{f"{side}_arm_forward": 45 * deep * bend})      # hangs, and does not point back
    adverb = "deeply" if deep > 0.75 else "politely"
    times = " twice" if count == 2 else ""
    how = dict(sides="with the arms at the sides", front="with the hands together", chest="with one hand on the chest")[hands]
    return end + 0.1, [f"bows{times}", f"bows {adverb}{times}", f"takes a bow{times}", f"bows forward {how}{times}"]


# arms and legs

def wave(score, start, limit, rng):
    side, t = pick(rng, "left", "right", "right", "both"), score.t
    rate, wide = rng.uniform(1.3, 2.2), rng.uniform(16, 30)
    hold = min(rng.uniform(1.6, 3.6), max(1.2, limit - start - 1.0))
    end = start + hold + 1.0
    held = pulse(t, start, end, 0.55)
    beat = np.sin(2 * np.pi * rate * (t - start)) * pulse(t, start + 0.3, end - 0.25, 0.4)
    high = rng.uniform(62, 112)
    for name in SIDES if side == "both" else (side,):
        score.pose(held, **arm(name, 24, high, -78, 80 - 0.25 * (high - 62) + wide * beat))
        score.add(**{f"{name}_arm_out": 5 * beat, f"{name}_arm_turn": 10 * beat})
    if side != "both":
        score.add(spine_left=-4 * SIDES[side] * held, head_turn=3 * SIDES[side] * held)
    who = "both hands" if side == "both" else f"the {side} hand"
    pace = "quickly" if rate > 1.9 else "slowly" if rate < 1.5 else "happily"
    arms = "both arms" if side == "both" else f"the {side} arm"
    return end, [f"waves with {who}", f"waves {pace} with {who}", f"raises {arms} and waves", f"waves hello with {who}"]


def punch(score, start, limit, rng):
    lead, t = pick(rng, *SIDES), score.t
    every = rng.uniform(0.5, 0.75)
    count = max(1, min(int(rng.integers(2, 6)), int((limit - start - 1.6) / every)))
    only = pick(rng, None, None, lead, OTHER[lead])
    begin, ends = start + 0.7, start + 0.7 + count * every
    end = ends + 0.75
    score.steps.append(Step(lead, start, start + 0.42, start, width=0.10, forward=0.24, push=15, height=0.06, early=0.05, strike=5))
    score.steps.append(Step(lead, ends + 0.15, end - 0.15, end, push=25, height=0.06, early=0.1, strike=0))
    guard = pulse(t, start + 0.1, end, 0.55)
    score.add(root_forward=0.11 * guard, rise=-0.05 * guard, spine_forward=6 * guard)
    score.pose(guard, arm_swing=0, twist=0.3)
    for name in SIDES:
        score.pose(guard, **arm(name, 38, 14, 20, 122))
    side, sides = only or lead, []
    for i in range(count):
        at = begin + i * every
        out = keyed(t, (at, 0), (at + 0.2, 1), (at + 0.26, 1), (at + min(0.52, every), 0))
        score.pose(out, **arm(side, 88, 3, 35, 8))
        score.add(spine_turn=-26 * SIDES[side] * out, pelvis_turn=-9 * SIDES[side] * out, root_forward=0.04 * out)
        sides.append(side)
        side = only or OTHER[side]
    with_ = f"with the {sides[0]} hand" if len(set(sides)) == 1 else "with both hands in turn"
    word = "throws a punch" if count == 1 else "throws several punches" if count > 2 else "throws two punches"
    return end, [f"punches {with_}", f"{word} {with_}", "punches forward like a boxer", f"steps forward and punches {with_}"]


def kick(score, start, limit, rng):
    side, kind, t = pick(rng, *SIDES), pick(rng, "front", "front", "side", "ball"), score.t
    sign, once = SIDES[side], 1.55
    count = max(1, min(int(rng.integers(1, 4)), int((limit - start) / once)))
    high = rng.uniform(0.75, 1.1)
    for i in range(count):
        at = start + i * once
        chamber, out, back, end = at + 0.48, at + 0.68, at + 0.98, at + 1.42
        shape = keyed(t, (chamber - 0.12, 0), (out, 1), (out + 0.06, 1), (back, 0))
        gone = keyed(t, (at, 0), (chamber, 1), (back, 1), (end, 0))
        away = pulse(t, at - 0.15, end + 0.1, 0.45)
        if kind == "front":
            move = dict(forward=0.08 * gone + 0.72 * shape, up=0.40 * gone + 0.42 * high * shape, pitch=25 * gone - 75 * shape)
            score.add(pelvis_forward=-12 * shape, spine_forward=6 * gone, root_forward=-0.03 * shape)
        elif kind == "side":
            move = dict(left=sign * (0.02 * gone + 0.60 * shape), up=0.38 * gone + 0.30 * high * shape, pitch=10 * gone - 20 * shape)
            score.add(pelvis_left=-sign * 22 * shape, spine_left=-sign * 8 * shape, root_left=-sign * 0.05 * shape)
        else:
            swing = keyed(t, (at, 0), (chamber - 0.02, -0.42), (out, 0.55), (out + 0.08, 0.6), (end, 0))
            move = dict(forward=swing, up=0.24 * gone * (1 - shape) + (0.12 + 0.2 * high) * shape,
                        pitch=45 * gone * (1 - shape) + 10 * shape)
            score.add(pelvis_forward=8 * gone - 14 * shape, spine_forward=4 * gone)
        score.add(**{f"{side}_foot_{name}": value for name, value in move.items()}, **{f"{side}_load": -away})
        score.pose(away, balance=0.85, arm_swing=0)
        score.add(rise=-0.015 * away)
        if kind == "ball":
            score.add(**{f"{OTHER[side]}_arm_forward": 40 * shape - 10 * gone, f"{side}_arm_forward": -32 * shape,
                         "left_arm_out": 22 * gone, "right_arm_out": 22 * gone})
        else:
            for name in SIDES:
                score.pose(0.9 * pulse(t, at, end, 0.4), **arm(name, 30, 18, 20, 105))
    times = {1: "", 2: " twice", 3: " three times"}[count]
    where = dict(front="forward", side="to the side", ball="as if at a ball")[kind]
    words = [f"kicks {where} with the {side} leg{times}", f"kicks with the {side} foot{times}", f"does a {side} leg kick{times}"]
    return end + 0.1, words + ([f"kicks a ball with the {side} foot{times}"] if kind == "ball" else [])


def dance(score, start, limit, rng):
    t, beat, lead = score.t, rng.uniform(0.42, 0.58), pick(rng, *SIDES)
    bars = max(1, min(int(rng.integers(2, 5)), int((limit - start) / (4 * beat))))
    end, sign, wide = start + bars * 4 * beat, SIDES[lead], rng.uniform(0.26, 0.36)
    envelope = pulse(t, start - 0.1, end + 0.15, 0.5)
    phase = np.pi * (t - start) / beat
    kind = pick(rng, "step", "step", "sway", "twist")
    score.add(rise=-(0.035 + 0.03 * score.energy * np.sin(phase) ** 2) * envelope)
    if kind == "step":
        keys = [(start, 0)]
        for bar in range(bars):
            at = start + 4 * bar * beat
            for i, (side, left) in enumerate(((lead, wide), (OTHER[lead], wide), (OTHER[lead], 0), (lead, 0))):
                score.steps.append(Step(side, at + i * beat, at + (i + 0.7) * beat, start, width=0.09, left=sign * left, height=0.07,
                                        push=25, early=0.1, strike=0))
            keys += [(at + 1.3 * beat, sign * wide), (at + 2 * beat, sign * wide), (at + 3.3 * beat, 0), (at + 4 * beat, 0)]
        score.add(root_left=keyed(t, *keys))
        for name, turned in SIDES.items():
            ahead = 22 + 26 * score.energy * np.sin(phase / 2 + turned * np.pi / 2)
            score.pose(envelope, **arm(name, ahead, 16, 28, 85 - 18 * np.cos(phase)))
        score.add(spine_turn=10 * np.sin(phase / 2) * envelope)
        words = ("dances from side to side", "does a dance step to the side and back", f"dances, stepping to the {lead} and back")
    elif kind == "twist":
        twist = np.sin(phase) * envelope * sign
        score.add(pelvis_turn=20 * twist, spine_turn=-34 * twist, rise=-0.05 * envelope, root_left=0.03 * np.sin(phase / 2) * envelope)
        for name, turned in SIDES.items():
            score.pose(envelope, **arm(name, 18 + turned * 24 * twist, 24, 30, 88))
        words = ("dances and twists the hips", "dances the twist", "twists from side to side as in a dance")
    else:
        sway = np.sin(phase / 2) * envelope * sign
        score.add(root_left=0.07 * sway, pelvis_left=-7 * sway, spine_left=11 * sway, head_left=4 * sway, pelvis_turn=6 * sway)
        high = rng.uniform(105, 140)
        for name in SIDES:
            score.pose(envelope, **arm(name, 20, high + 10 * sway, -60, 50 + 18 * np.cos(phase)))
        words = ("dances with the arms in the air", "dances, swaying from side to side", "sways and dances with raised arms")
    score.add(head_forward=4 * np.sin(phase) ** 2 * envelope)
    return end + 0.15, list(words)


ACTIONS = dict(walk=walk, run=run, sidestep=sidestep, turn=turn, jump=jump, squat=squat, sit=sit, wave=wave, punch=punch, kick=kick,
               bow=bow, dance=dance)
# what may follow another action, and the seconds it takes at least
AFTER = dict(walk=2.4, turn=2.2, wave=2.3, bow=2.9, punch=2.9, kick=1.8, jump=2.1, squat=3.2, sit=3.5, dance=2.6)
LATEST = 7.6    # seconds: every action has ended by then, and the clip by 8
MOODS = dict(tiredly=dict(spine_forward=13, head_forward=14), proudly=dict(spine_forward=-5, head_forward=-6),
             calmly=dict(spine_forward=2))
LIVELY = ("quick", "brisk", "fast", "happily")


def choreograph(score, rng, index):
    """Write one clip on the score: an action by turns, often with one or two more after it, or a wave on the way.

    Returns (name, begin and end in seconds, captions): the clip is what lies between, at least 2 s.
    """
    names, mood = [list(ACTIONS)[index % len(ACTIONS)]], pick(rng, *[None] * 6, *MOODS)
    if mood:
        score.add(**MOODS[mood], arm_swing=-0.4 * score["arm_swing"] if mood == "tiredly" else 0)
    count, start, begin = pick(rng, 1, 1, 1, 2, 2, 3), rng.uniform(0.25, 0.6), 0.0
    end, phrases = ACTIONS[names[0]](score, start, (LATEST, 4.6, 3.3)[count - 1], rng)
    said, together = [phrases], False
    if names[0] in ("walk", "run") and count == 1 and end > 3.6:
        together = rng.random() < 0.25
        if together:
            said.append(wave(score, start + 0.6, end - 0.2, rng)[1])
            names.append("wave")
        elif rng.random() < 0.4:
            begin = start + 1.0     # already on the way
    for _ in range(count - 1):
        fitting = [name for name, least in AFTER.items() if name != names[-1] and end + 0.3 + least < LATEST]
        if not fitting:
            break
        names.append(pick(rng, *fitting))
        end, phrases = ACTIONS[names[-1]](score, end + rng.uniform(-0.1, 0.3), LATEST if count == 2 else min(LATEST, end + 3.2), rng)
        said.append(phrases)
    return "_".join(names), begin, end + rng.uniform(0.2, 0.5), write_captions(said, together, mood, rng)


def write_captions(said, together, mood, rng):
    """Two to four different captions. said: for each action the list of its phrases; together: the second goes on during the first."""
    captions = []
    for _ in range(12):
        words = [pick(rng, *phrases) for phrases in said]
        if together:
            words = [words[0] + " while " + words[1].replace("waves", "waving").replace("raises", "raising")]
        text = words[0]
        for later in words[1:]:
            text += pick(rng, ", then ", " and then ", " and ") + later
        if mood and not captions and not any(word in text for word in LIVELY):
            text = f"{mood} {text}"
        text = pick(rng, "a person ", "a person ", "the person ", "someone ") + text
        if text not in captions:
            captions.append(text)
    return captions[:rng.integers(2, 5)]
