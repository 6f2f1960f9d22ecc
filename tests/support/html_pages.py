"""Pages in tests: their parts, and what a real browser makes of them in a window of a given width."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Text, tags, and attributes of a page; fails on a tag that is closed but not open."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.text += " " + " ".join(data.split())
        if self.open[-1:] in (["td"], ["th"]):
            self.cells[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        """The first row of a table that starts with these cells."""
        return next(cells for cells in self.cells if cells[: len(start)] == list(start))


def look_at(html: str, script: str, folder: Path, width: int, *, scripts: bool = True, address: str = "") -> Any:
    """What a function of the document ``doc`` returns for a page in a frame of a width, in a real browser.

    Without ``scripts`` the page's own do not run; ``address`` is what follows its file name, such as ``#part``.
    """
    assert CHROMIUM is not None
    (folder / "page.html").write_text(html, encoding="utf-8")
    sandbox = "" if scripts else 'frame.sandbox = "allow-same-origin";'
    look = f"""<body><div id=found></div><script>
      const frame = document.createElement("iframe");
      frame.width = {width}; frame.height = 900; {sandbox}
      frame.style.border = 0; frame.src = "page.html{address}";
      frame.onload = async () => {{
        const doc = frame.contentDocument; doc.wide = {width};
        let said;
        try {{ said = await (async doc => {{ {script} }})(doc); }} catch (error) {{ said = {{error: String(error)}}; }}
        document.getElementById("found").textContent = JSON.stringify(said);
      }};
      document.body.append(frame);</script>"""
    (folder / "look.html").write_text(look, encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--allow-file-access-from-files", "--enable-blink-features=ComputedAccessibilityInfo"]
    command += [
        "--window-size=1400,1000",
        "--virtual-time-budget=10000",
        "--dump-dom",
        f"file://{folder / 'look.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<div id="found">(.*?)</div>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    found = json.loads(unescape(match[1]))
    assert "error" not in found, found
    return found


class Browser:
    """A real browser that is driven by its debugging protocol, over pipes: keys, paper, widths below its own least."""

    def __init__(self, html: str, folder: Path, width: int) -> None:
        assert CHROMIUM is not None
        (folder / "page.html").write_text(html, encoding="utf-8")
        (read, self.out), (self.into, write) = os.pipe(), os.pipe()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={folder / 'browser'}", "about:blank"]
        start = f"import os; os.dup2({read}, 3); os.dup2({write}, 4); os.execv({CHROMIUM!r}, {command!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start], pass_fds=(read, write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self.answers, self.number, self.session = os.fdopen(self.into, "rb"), 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Page.enable")
        self.call("Page.navigate", url=f"file://{folder / 'page.html'}")
        self.wait("Page.loadEventFired")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.out)
        self.process.kill()
        self.process.wait()
        self.answers.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, in the page once there is one."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.wait(self.number)

    def wait(self, wanted: int | str) -> dict[str, Any]:
        """The answer to a call, or an event."""
        while True:
            text = bytearray()
            while (one := self.answers.read(1)) not in (b"\0", b""):
                text += one
            assert text, "the browser ended"
            found = json.loads(text)
            if found.get("id") == wanted or found.get("method") == wanted:
                assert "error" not in found, found
                return found.get("result", found)

    def ask(self, expression: str) -> Any:
        """The value of an expression of the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, by name, as in ``"Tab"``; one letter is typed."""
        codes = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
        text = {"text": {"Enter": "\r"}.get(key, key)} if len(key) == 1 or key == "Enter" else {}
        for _ in range(times):
            shared = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
            self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **shared)
