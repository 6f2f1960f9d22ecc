"""Pages in tests: their parts, and what a real browser makes of them in a window of a given width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
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
