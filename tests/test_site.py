"""The pages that `make docs` has built, each opened in a browser at the width of a desktop and of a phone."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[1] / "build" / "docs"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (1280, 390)
# Loads every page in a frame of each width, and writes down what is wrong with it.
HARNESS = """<!doctype html><body><script>
const pages = PAGES, found = [];
async function look(page, width) {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: "/" + page, width, height: 900});
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  const root = frame.contentDocument.documentElement, wrong = text => found.push(`${page} at ${width}: ${text}`);
  if (!frame.contentDocument.querySelector("h1")) wrong("no heading");
  if (root.scrollWidth > width) wrong(`${root.scrollWidth} wide`);
  for (const image of frame.contentDocument.images) if (!image.naturalWidth) wrong(`no picture ${image.src}`);
  for (const each of frame.contentWindow.performance.getEntriesByType("resource"))
    if (!each.name.startsWith(location.origin)) wrong(`fetches ${each.name}`);
  frame.remove();
}
(async () => {
  for (const page of pages) await Promise.all(WIDTHS.map(width => look(page, width)));
  await fetch("/told", {method: "POST", body: JSON.stringify({looked: pages.length, found})});
})();
</script></body>"""


@contextlib.contextmanager
def served(harness: str, told: queue.Queue[Any]) -> Iterator[str]:
    """The site, the harness beside it, and what the harness tells."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/harness":
                return super().do_GET()
            return self.answer(harness.encode())

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"")

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/harness"
    finally:
        server.shutdown()
        server.server_close()


def test_an_option_in_the_text_does_not_end_a_line_after_its_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs" / "site")
    kept = importlib.import_module("hooks").on_page_content
    page = "<p>a --b, <code>kcd run --{}ask-multiple{} 2 a--b</code></p><pre><code>a <i>--b</i></code></pre>"
    assert kept(page.format("", "")) == page.replace("--{}", '<span class="whole">--').replace(
        "{}", "</span>"
    )


@pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built: make docs")
@pytest.mark.skipif(BROWSER is None, reason="there is no browser: apt-get install chromium")
def test_every_page_is_whole_on_a_desktop_and_on_a_phone(tmp_path: Path) -> None:
    pages = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if path.name != "404.html")
    harness = HARNESS.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--window-size=1400,1000",
    ]
    options.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    told: queue.Queue[Any] = queue.Queue()
    with served(harness, told) as address:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        browser = subprocess.Popen([str(BROWSER), *options, address], **quiet)
        try:
            looked = told.get(timeout=600)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    assert looked["looked"] == len(pages) > 20
    assert looked["found"] == []
