"""Asks a headless browser how it lays a page out."""

import html
import json
import re
import shutil
import subprocess

import pytest


#: Puts what it finds into the body as JSON.
_PROBE = """
<script>
const box = element => { const r = element.getBoundingClientRect();
                         return {width: r.width, height: r.height}; };
const found = {
  title: document.title, text: document.body.innerText,
  width: document.documentElement.clientWidth, needs: document.documentElement.scrollWidth,
  font: getComputedStyle(document.body).fontSize,
  panels: [...document.querySelectorAll("figure, .panel")].map(
    e => ({id: e.id, has: e.clientWidth, needs: e.scrollWidth})),
  pictures: [...document.querySelectorAll("figure")].map(e => ({
    id: e.id, ...box(e.querySelector("svg")), bars: e.querySelectorAll("svg path").length,
    words: [...e.querySelectorAll("svg text")].map(t => t.textContent.trim())})),
  doubled: [...document.querySelectorAll("[id]")].map(e => e.id).filter(
    (id, k, all) => all.indexOf(id) !== k),
  dangling: [...document.querySelectorAll("use")].map(e => e.getAttribute("xlink:href")).filter(
    h => !document.querySelector(h)),
  fetched: performance.getEntriesByType("resource").map(e => e.name),
};
document.body.textContent = "PROBE" + JSON.stringify(found) + "END";
</script></body>"""
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def find_browser():
    """Command of an installed browser, ``None`` without one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                "google-chrome"))), None)


def lay_out(page, folder, *, width=1200):
    """What the browser makes of the HTML file ``page``: sizes, words, requests."""
    command = find_browser()
    if command is None:
        pytest.skip("no browser: install chromium to test how pages are laid out")
    text, count = _POLICY.subn("", page.read_text())
    assert count == 1 and text.count("</body>") == 1
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", _PROBE))
    result = subprocess.run(
        [command, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--no-first-run", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1000",
         "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search("PROBE(.*)END", result.stdout, re.DOTALL)
    assert found, result.stdout[-2000:] + result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
