"""The player in a real browser: clicked and dragged with its mouse through the DevTools pipe."""
import json
import shutil
import subprocess
import time

import numpy as np
import pytest

from tests.test_draw import dance
from utils.motion_spec import T2M
from visualize.player import beside, player

BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium-headless-shell or chromium on PATH"),
]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=900,700")
GREY, BLUE, DARK = [0xb4, 0xba, 0xc5], [0x26, 0x78, 0xbe], [0x3e, 0x44, 0x54]  # original, left side, head
LOOK = """
const all = name => document.querySelectorAll(name);
const frame = i => +all(".said")[i].textContent.match(/(\\d+) \\/ \\d+$/)[1];
const picture = i => all(".view")[i].toDataURL();
const count = (name, i, colour) => {
  const canvas = all(name)[i], [w, h] = [canvas.width, canvas.height];
  const copy = new OffscreenCanvas(w, h).getContext("2d", {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const data = copy.getImageData(0, 0, w, h).data;
  let sum = 0;
  for (let k = 0; k < data.length; k += 4)
    sum += data[k + 3] > 0 && (!colour || colour.every((c, j) => data[k + j] === c));
  return sum;
};
"""


class Browser:
    """Headless Chromium with one page. It reads JSON from descriptor 3, answers on 4, each ended by a 0."""

    def __init__(self, folder):
        self.folder, self.sent, self.session, self.errors = folder, 0, {}, []
        pipes = ["timeout", "300", "sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh"]
        self.process = subprocess.Popen([*pipes, BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Return the browser's answer to a DevTools method. Keep the errors of its console."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            answer = self.receive()
            if answer.get("id") == self.sent:
                return answer["result"]
            said = answer.get("params", {})
            level = said.get("entry", said).get("level", said.get("type"))
            if answer["method"] == "Runtime.exceptionThrown" or level in ("error", "assert"):
                self.errors.append(said)

    def receive(self):
        text = bytearray()
        while not text.endswith(b"\0"):
            byte = self.process.stdout.read(1)
            assert byte, "the browser has ended"
            text += byte
        return json.loads(text[:-1])

    def open(self, html):
        page = self.folder / "page.html"
        page.write_text(html, encoding="utf-8")
        self.call("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete'")
        self.js(LOOK)

    def js(self, code):
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, code):
        """Wait until `code` is true."""
        end = time.monotonic() + 20
        while not self.js(code):
            assert time.monotonic() < end, code
            time.sleep(0.02)

    def drag(self, name, which, *stops):
        """Press the mouse at the first of `stops`, release it at the last, move it to the right end.

        They are shares of the element's width."""
        box = self.js(f"all({name!r})[{which}].getBoundingClientRect().toJSON()")
        y, held = box["y"] + box["height"] / 2, dict(button="left", buttons=1, clickCount=1)
        across = [box["x"] + stop * box["width"] for stop in stops]
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=across[0], y=y, **held)
        for x in across[1:]:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, **held)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=across[-1], y=y, **held)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 0.98 * box["width"], y=y)

    def click(self, name, which=0):
        self.drag(name, which, 0.5)

    def key(self, name):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name)

    def rests(self):
        """Return whether ten repaints leave every picture and frame counter as they are."""
        now = "JSON.stringify([...all('.view')].map((_, i) => [picture(i), frame(i)]))"
        repaints = "for (let k = 0; k < 10; k++) await new Promise(requestAnimationFrame);"
        return self.js(f"(async () => {{ const before = {now}; {repaints} return before === {now}; }})()")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.call("Browser.close")
    browser.process.communicate()


@pytest.fixture
def browser(started):
    started.errors.clear()
    yield started
    assert started.errors == []


@pytest.fixture(scope="module")
def page():
    joints, reference = dance(T2M, 81, seed=1), dance(T2M, 81, seed=2)
    return player(joints, T2M, reference=reference, codes=np.arange(21) + 100, title="a dance").html


def test_it_plays_and_pauses(browser, page):
    browser.open(page)
    browser.until("frame(0) > 5")  # by itself
    assert not browser.rests() and browser.js("all('.play')[0].textContent") == "pause"
    browser.click(".play")
    assert browser.rests() and browser.js("all('.play')[0].textContent") == "play"
    browser.click(".play")
    assert not browser.rests()
    browser.until("frame(0) < 5")  # from the start again


def test_the_time_line_is_clicked_and_dragged(browser, page):
    browser.open(page)
    browser.click(".play")
    browser.click(".line")
    look = f"[picture(0), count('.line', 0, {BLUE}), all('.said')[0].textContent]"
    picture, filled, said = browser.js(look)
    assert said.startswith("code 110 · error ") and said.endswith("2.00 s · 41 / 81")
    browser.drag(".line", 0, 0.9, 0.6, 0.25)
    assert browser.js("frame(0)") in range(18, 23)  # and not where the mouse went afterwards
    new, less, _ = browser.js(look)
    assert new != picture and less < 0.7 * filled


def test_each_figure_is_seen_and_can_be_hidden(browser, page):
    browser.open(page)
    browser.click(".play")
    figures = f"[count('.view', 0, {GREY}), count('.view', 0, {BLUE}), count('.view', 0, {DARK})]"
    whole = browser.js(figures)
    assert min(whole) > 50 and browser.js("count('.view', 0)") > 2000
    browser.click(".o")
    original, *others = browser.js(figures)
    assert original == 0 and min(others) > 50
    browser.click(".r")
    assert browser.js(figures) == [0, 0, 0] and browser.js("count('.view', 0)") > 500  # the ground stays
    browser.click(".o")
    original, *others = browser.js(figures)
    assert original > 50 and others == [0, 0]
    browser.click(".r")
    assert browser.js(figures) == whole


def test_keys_step_and_the_wheel_zooms(browser, page):
    browser.open(page)
    browser.click(".view")  # a page scrolls past a player that was not clicked
    browser.key(" ")
    assert browser.rests()
    now = browser.js("frame(0)")
    browser.key("ArrowRight")
    assert browser.js("frame(0)") == now + 1
    browser.key("ArrowLeft")
    assert browser.js("frame(0)") == now
    small = browser.js("count('.view', 0)")
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=150, deltaX=0, deltaY=-300)
    browser.until(f"count('.view', 0) > 1.2 * {small}")


def test_two_beside_each_other_share_clock_and_camera(browser):
    row = beside(player(dance(T2M, 81, seed=1), T2M), player(dance(T2M, 41, seed=2), T2M, title="short"))
    browser.open(row.html)
    assert browser.js("all('.o')[0].offsetWidth + all('.r')[1].offsetWidth") == 0  # one figure each
    browser.until("frame(0) > 5 && frame(1) > 5")
    browser.click(".play", 1)
    assert browser.rests() and browser.js("[...all('.play')].map(e => e.textContent)") == ["play", "play"]
    browser.click(".line", 1)
    assert browser.js("frame(0)") == browser.js("frame(1)") == 21
    browser.drag(".line", 0, 0.8)
    assert browser.js("frame(0)") > 60 and browser.js("frame(1)") == 41  # the shorter one waits at its end
    before = browser.js("[picture(0), picture(1)]")
    browser.drag(".view", 0, 0.3, 0.5)
    after = browser.js("[picture(0), picture(1)]")
    assert before[0] != after[0] and before[1] != after[1] and browser.js(f"count('.view', 1, {DARK})") > 50
