"""Pages in a real browser: Chromium without a window, driven by its DevTools protocol over a pipe.

What the protocol's commands and events are: https://chromedevtools.github.io/devtools-protocol/.
Messages are JSON, each ended by a zero byte; Chromium reads them from descriptor 3 and writes to 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

WIDTHS = {"phone": 390, "tablet": 800, "desktop": 1280}
WHY_NONE = "no Chromium here: apt-get install -y chromium"
_KEYS = {"Enter": 13, " ": 32, "Tab": 9, "Home": 36, "End": 35, "ArrowLeft": 37, "ArrowUp": 38,
         "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
_TYPED = {"Enter": "\r", " ": " "}
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking",
            "--remote-debugging-pipe")  # fmt: skip

# Elements that say more than eight characters in a box that holds fewer.
_NARROW = """
[...document.querySelectorAll("td, th")].filter(cell => {
  const text = cell.innerText.trim();
  if (text.length <= 8 || !cell.getClientRects().length) return false;
  const probe = document.createElement("span");
  probe.style.cssText = "position:absolute;visibility:hidden;white-space:nowrap";
  cell.append(probe);
  const wide = said => (probe.textContent = said, probe.getBoundingClientRect().width);
  const eight = Math.min(wide("00000000"), wide(text));  // or slim letters that do not wrap
  probe.remove();
  const style = getComputedStyle(cell);
  const inside = cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return inside < eight - 1;
}).map(cell => cell.innerText.trim())
"""
# Last cells of rows, and labels of figures, that no scrolling of theirs brings into sight.
_LOST = """
(() => {
  const lost = [], limit = innerWidth + 1;
  const reach = e => {
    let { left, right } = e.getBoundingClientRect();
    for (let box = e.parentElement; box; box = box.parentElement) {
      const style = getComputedStyle(box), room = box.getBoundingClientRect();
      if (style.overflowX === "visible" || box === document.body) continue;
      if (style.overflowX === "hidden" || style.overflowX === "clip") {
        if (right > room.right + 1 || left < room.left - 1) return false;
      } else {
        if (right - room.left + box.scrollLeft > box.scrollWidth + 1) return false;
        ({ left, right } = room);
      }
    }
    return right <= limit && left >= -1;
  };
  const last = [...document.querySelectorAll("tr > :last-child, .tokens > :last-child")];
  const drawn = [...document.querySelectorAll(".js-plotly-plot text")].filter(
    t => t.getClientRects().length && t.textContent.trim() && !t.closest(".hoverlayer"));
  for (const e of last) if (e.getClientRects().length && !reach(e)) lost.push(e.innerText || e.tagName);
  for (const e of drawn) if (!reach(e)) lost.push("figure: " + e.textContent);
  return lost;
})()
"""  # noqa: E501
# Boxes that go on to the right, cut without a sign of it, or figures that go on below.
_CUT = """
[...document.querySelectorAll("body *")].filter(box => {
  const style = getComputedStyle(box);
  return ["auto", "scroll"].includes(style.overflowX) && style.maskImage === "none" &&
    box.checkVisibility() &&
    box.scrollWidth - box.clientWidth - box.scrollLeft > 2 ||
    box.tagName === "FIGURE" && box.scrollHeight - box.clientHeight > 2;
}).map(box => box.innerText.slice(0, 60) || box.className)
"""
# Level texts of a figure that lie on one another.
_OVERLAPPING = """
[...document.querySelectorAll(".js-plotly-plot")].flatMap(plot => {
  const level = t => [...function*(e) { for (; e && e !== plot; e = e.parentElement) yield e; }(t)]
    .every(e => !/rotate\\((?!0[,)])/.test(e.getAttribute("transform") || ""));
  const texts = [...plot.querySelectorAll("text")].filter(t => t.getClientRects().length &&
    t.textContent.trim() && !t.closest(".hoverlayer") && level(t) &&
    getComputedStyle(t).visibility === "visible");
  const boxes = texts.map(t => t.getBoundingClientRect()), found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
      found.push(`${texts[j].textContent} | ${texts[i].textContent}`);
  }
  return found;
})
"""
# Text whose contrast with what lies behind it is below 4.5 (3 for large text), by WCAG's formula.
_FAINT = """
(() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number), of = c.startsWith("color(") ? 255 : 1;
    return [...m.slice(0, 3).map(v => v * of), m[3] ?? 1]; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const light = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { const up = []; for (; e; e = e.parentElement) up.push(parse(getComputedStyle(e).backgroundColor));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return up.reverse().reduce((under, c) => over(c, under), dark ? [18, 18, 18] : [255, 255, 255]); };
  const found = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest("svg, script, style, option, [disabled]")) continue;
    const style = getComputedStyle(e), under = ground(e), ink = over(parse(style.color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x), size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700) ? 3 : 4.5;
    if ((a + .05) / (b + .05) < least) found.add(text.slice(0, 40) + " " + ((a + .05) / (b + .05)).toFixed(2));
  }
  return [...found];
})()
"""  # noqa: E501


def chromium() -> str | None:
    """Where Chromium is, if anywhere."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Browser:
    """One Chromium; each page that it opens is a tab of its own."""

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
        command = [chromium(), *_OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]

        def descriptors() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            command, preexec_fn=descriptors, pass_fds=(3, 4), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._count, self._held, self.events = 0, b"", []
        return self

    def __exit__(self, *raised: Any) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def open(self, page: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False,
             fragment: str = "", offline: bool = False) -> Page:  # fmt: skip
        """A page from a file or an address, loaded; offline, nothing that it asks for is there."""
        url = (page if isinstance(page, str) else page.resolve().as_uri()) + fragment
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        opened = Page(self, target, url)
        opened.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        opened.ask("Emulation.setEmulatedMedia", features=[scheme])
        opened.ask("Emulation.setFocusEmulationEnabled", enabled=True)
        if offline:
            opened.ask("Network.emulateNetworkConditions", offline=True, latency=0,
                       downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
        opened.ask("Page.navigate", url=url)
        opened.wait('document.readyState === "complete" && location.href !== "about:blank"')
        return opened

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict:
        """A command's answer."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(60)
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def drain(self, seconds: float) -> None:
        """Takes in the events of some time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self.events.append(self._next(left))
            except TimeoutError:
                return

    def _next(self, seconds: float) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._held:
            ready, *_ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium says nothing for {seconds:.0f} seconds")
            read = os.read(self._from, 1 << 20)
            if not read:
                raise RuntimeError("Chromium has ended")
            self._held += read
        message, self._held = self._held.split(b"\0", 1)
        return json.loads(message)


class Page:
    """A tab, or a frame in one."""

    def __init__(self, browser: Browser, target: str, url: str):
        self._browser, self._target, self.url = browser, target, url
        attached = browser.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._browser.ask("Target.closeTarget", targetId=self._target)

    def ask(self, method: str, **params: Any) -> dict:
        return self._browser.ask(method, self._session, **params)

    def js(self, expression: str) -> Any:
        """The value of an expression; of a promise what it brings."""
        found = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )  # fmt: skip
        if "exceptionDetails" in found:
            raise AssertionError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def frame(self) -> Page:
        """The frame within the page that is a world of its own, as a sandboxed one is."""
        targets = self._browser.ask("Target.getTargets")["targetInfos"]
        [target] = [t["targetId"] for t in targets if t["type"] == "iframe"]
        return Page(self._browser, target, "about:srcdoc")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(f"!!({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} seconds: {condition}")
            self._browser.drain(0.05)

    def settle(self, seconds: float = 10) -> None:
        """Until the page's height and what it holds have stayed the same for a while."""
        shape = "document.body.scrollHeight + ' ' + document.querySelectorAll('*').length"
        end, before, same = time.monotonic() + seconds, None, 0
        while same < 4 and time.monotonic() < end:
            now = self.js(shape)
            same, before = (same + 1 if now == before else 0), now
            self._browser.drain(0.1)

    def resize(self, width: int, height: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def press(self, key: str, times: int = 1) -> None:
        """A key, down and up."""
        for _ in range(times):
            about = {"key": key, "code": key if key != " " else "Space",
                     "windowsVirtualKeyCode": _KEYS[key]}  # fmt: skip
            typed = {"text": _TYPED[key]} if key in _TYPED else {}
            self.ask("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **about,
                     **typed)  # fmt: skip
            self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def point(self, selector: str) -> None:
        """The pointer over the middle of an element."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView("
            "{block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    # ------------------------------------------------------------------ what is wrong with it

    def _events(self, method: str) -> list[dict]:
        self.js("1")  # what was sent before its answer is here now
        return [e["params"] for e in self._browser.events
                if e.get("method") == method and e.get("sessionId") == self._session]  # fmt: skip

    @property
    def errors(self) -> list[str]:
        """Errors of scripts, and what the console shows as errors or warnings."""
        thrown = [e["exceptionDetails"] for e in self._events("Runtime.exceptionThrown")]
        logged = [e["entry"] for e in self._events("Log.entryAdded")]
        said = self._events("Runtime.consoleAPICalled")
        return [
            *(str(e.get("exception", {}).get("description", e["text"])) for e in thrown),
            *(e["text"] for e in logged if e["level"] in ("error", "warning")),
            *(str(e["args"]) for e in said if e["type"] in ("error", "warning", "assert")),
        ]

    @property
    def fetched(self) -> list[str]:
        """What was asked for beside the page itself and what it holds."""
        asked = [e["request"]["url"] for e in self._events("Network.requestWillBeSent")]
        own = self.url.partition("#")[0]
        return [u for u in asked if u.partition("#")[0] != own and not u.startswith("data:")]

    @property
    def wider_than_screen(self) -> int:
        """By how many pixels the page has to be scrolled sideways."""
        return self.js("document.documentElement.scrollWidth - innerWidth")

    @property
    def narrow_cells(self) -> list[str]:
        """Table cells that hold more than eight characters in less than their width."""
        return self.js(_NARROW)

    @property
    def out_of_reach(self) -> list[str]:
        """Last cells of rows and labels of figures that cannot be brought into sight."""
        return self.js(_LOST)

    @property
    def cut(self) -> list[str]:
        """Boxes that can be scrolled to the right and do not show it."""
        return self.js(_CUT)

    @property
    def overlapping(self) -> list[str]:
        """Pairs of texts of a figure of which one lies on the other."""
        return self.js(_OVERLAPPING)

    @property
    def faint(self) -> list[str]:
        """Texts below the contrast of WCAG 2.1 AA, with theirs."""
        return self.js(_FAINT)
