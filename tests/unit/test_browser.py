"""report.html in a real browser, where one is installed: nothing on the console, and everything fits a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_latency_charts import Loaded, many, measured, rate

from edgekd.report.draw import draw

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
]  # fmt: skip
# The page itself runs no script: this one stands beside it, and tells what of it does not fit a phone.
PROBE = """<!doctype html><title>probe</title><body style="margin:0">
<iframe id="page" src="report.html" style="border:0;width:390px;height:800px"></iframe>
<script>
document.getElementById("page").onload = function () {
  const page = this.contentDocument, view = page.defaultView, wide = [];
  for (const one of page.body.querySelectorAll("h1,h2,p,li,figure,svg,.wide,pre"))
    if (one.getBoundingClientRect().right > 391) wide.push(one.tagName + ": " + one.textContent.slice(0, 60));
  const found = {
    title: page.title, wide, scrolls: page.documentElement.scrollWidth > 391,
    drawings: page.querySelectorAll("svg").length,
    flat: [...page.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().height < 100).length,
    ink: view.getComputedStyle(page.body).color, paper: view.getComputedStyle(page.body).backgroundColor,
  };
  document.title = "done";
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
};
</script>"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium is installed: the page is not looked at in a browser"
)


def look(file: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The page as it stands after it was loaded, and what the browser's console said."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={profile}", "--virtual-time-budget=4000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{file}"], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    report = measured(folder)
    more = {
        "throughput": [many(b, s, 1000 * b * s) for b in (1, 8) for s in (1, 2)],
        "load": [rate(10, 2.0), rate(20, 3.0, highest=True)],
    }
    draw(Loaded.model_validate({**report.model_dump(), **more}), folder)
    (folder / "manifest.json").write_text("{}")
    (folder / "probe.html").write_text(PROBE)
    return folder / "report.html"


def test_the_page_says_nothing_on_the_console_and_is_whole(page: Path, tmp_path: Path) -> None:
    dom, console = look(page, tmp_path)
    assert console == []
    assert dom.count("<svg") == page.read_text().count("<svg") > 6
    assert '<script type="application/json" id="report">' in dom and dom.rstrip().endswith("</html>")


def test_a_console_that_says_something_is_heard(page: Path, tmp_path: Path) -> None:
    broken = page.with_name("broken.html")
    broken.write_text(
        page.read_text().replace("</main>", "<img src=data:,x onerror=alert(1)></main><script>x()</script>")
    )
    assert look(broken, tmp_path)[1]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_nothing_stands_out_of_the_page_in_light_and_dark(dark: bool, page: Path, tmp_path: Path) -> None:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    dom, _ = look(page.with_name("probe.html"), tmp_path, "--allow-file-access-from-files", scheme)
    told = re.search(r"FOUND(.*)END", dom)
    assert told is not None, dom[-2000:]
    found = json.loads(told[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert found["title"] == "cifar10: passed"
    assert (found["wide"], found["scrolls"], found["flat"]) == ([], False, 0)
    ink, paper = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("ink", "paper"))
    assert (ink > paper) == dark and abs(ink - paper) > 400
