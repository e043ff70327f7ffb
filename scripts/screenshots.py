"""Take the pictures of README and docs/demo.md, or look at a whole page: `python scripts/screenshots.py`.

Needs a trained adapter, the extras `demo` and `dev` (Playwright) and Debian's `chromium`. `--all` takes every
tab on desk and phone, light and dark, into `--output_dir`. `--pages results.html drift.html` takes the first
screens of reports instead, and needs no adapter.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"desk": (1100, 700), "phone": (390, 844), "wide": (1200, 660)}
SETTINGS = ("desk-light", "desk-dark", "phone-light", "phone-dark")
ROWS = """id,text
r1,Operating profit rose to EUR 13.1 mn from EUR 8.7 mn a year earlier.
r2,The company cut its outlook after orders fell by a fifth.
r3,
r4,The annual meeting takes place on 14 April.
"""
COLOURS = 128
"""Of a picture's palette, so that the files stay small."""


def ask(task: str) -> Callable[[Page, Path], None]:
    """Choose a task's first example and wait for the answer."""

    def use(page: Page, folder: Path) -> None:
        page.locator(f"#{task}-examples button").first.click()
        page.wait_for_function(f"document.querySelector('#{task}-text textarea').value.length > 10")
        page.click(f"#{task}-run")
        page.locator(f"#{task}-answer .ft-answer").wait_for()

    return use


def compare(page: Page, folder: Path) -> None:
    page.get_by_label("Headline", exact=True).check()
    page.click("#compare-example")
    page.wait_for_function("document.querySelector('#compare-text textarea').value.length > 10")
    page.click("#compare-run")
    page.locator("#compare-tuned .ft-answer").wait_for()


def batch(page: Page, folder: Path) -> None:
    path = folder / "statements.csv"
    path.write_text(ROWS, encoding="utf-8")
    page.set_input_files("#batch-file input[type=file]", path)
    page.locator("#batch-file").get_by_label("statements.csv").wait_for()
    page.click("#batch-run")
    page.locator("#batch-result").get_by_label("statements-sentiment.csv").wait_for()


def report(page: Page, folder: Path) -> None:
    page.locator("#results-evaluation iframe, #results-evaluation .ft-missing").first.wait_for()


def part(name: str, key: str) -> Callable[[Page, Path], None]:
    """Open a part of the results tab."""

    def use(page: Page, folder: Path) -> None:
        page.get_by_role("tab", name=name, exact=True).click()
        page.locator(f"#results-{key} .ft-markdown").wait_for()

    return use


def live(page: Page, folder: Path) -> None:
    page.locator("#live-items table, #live-items .ft-missing").first.wait_for()


# name: the tab, what is done there, and in which settings it is part of the documentation
SHOTS = {
    "sentiment": ("Sentiment", ask("sentiment"), ["desk-light"]),
    "readme": ("Headline", ask("headline"), ["wide-light"]),
    "headline": ("Headline", ask("headline"), []),
    "summary": ("Summary", ask("summarization"), ["desk-light", "phone-light"]),
    "qa": ("Q&A", ask("qa"), ["desk-dark"]),
    "move": ("Price move", ask("regression"), ["phone-dark"]),
    "compare": ("Compare", compare, ["desk-light"]),
    "batch": ("Batch", batch, ["desk-light"]),
    "results": ("Results", report, ["desk-dark"]),
    "card": ("Results", part("Model card", "card"), []),
    "data": ("Results", part("Data and training", "data"), []),
    "live": ("Live", live, []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", default="output/model")
    parser.add_argument("--live_dir", default="output/live")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--port", type=int, default=7869)
    parser.add_argument("--all", action="store_true", help="every tab in every setting")
    parser.add_argument("--only", default=",".join(SHOTS), help="some of: %(default)s")
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="HTML reports, instead of the demo")
    arguments = parser.parse_args()
    if arguments.pages:
        return shoot_pages(arguments.pages, arguments.output_dir)
    settings = (arguments.model_path, arguments.port, "127.0.0.1", arguments.live_dir)
    command = f"from fintune.demo.app import launch; launch(*{settings!r})"
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([sys.executable, "-c", command])
    url = f"http://127.0.0.1:{arguments.port}/"
    try:
        wait(server, url)
        with sync_playwright() as playwright:
            browser = launch(playwright)
            for name in arguments.only.split(","):
                tab, use, kept = SHOTS[name]
                for setting in dict.fromkeys((*kept, *(SETTINGS if arguments.all else ()))):
                    page = new_page(browser, setting)
                    page.goto(url)
                    open_tab(page, tab)
                    use(page, Path(tempfile.mkdtemp()))
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(700)
                    file = "readme.png" if name == "readme" else f"demo-{name}-{setting}.png"
                    shoot(page, arguments.output_dir / file)
                    page.close()
            browser.close()
    finally:
        server.terminate()
        server.wait()


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium, without a window."""
    flags = ["--no-sandbox", "--disable-gpu"]
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)


def new_page(browser: Browser, setting: str, height: int | None = None) -> Page:
    """A page of the size and colours that a setting names, such as `phone-dark`."""
    device, scheme = setting.split("-")
    width, usual = SIZES[device]
    size: ViewportSize = {"width": width, "height": height or usual}
    page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(120_000)
    return page


def shoot_pages(pages: list[Path], folder: Path) -> None:
    """Take the first screens of reports in every setting."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for path in pages:
            for setting in SETTINGS:
                page = new_page(browser, setting, 2000)  # a whole report is taller than Chromium can take
                page.goto(path.resolve().as_uri())
                shoot(page, folder / f"{path.stem}-{setting}.png", full_page=False)
                page.close()
        browser.close()


def wait(server: subprocess.Popen[bytes], url: str) -> None:
    """Return once the demo answers."""
    direct = build_opener(ProxyHandler({}))
    while True:
        if server.poll() is not None:
            sys.exit("The demo did not start.")
        try:
            return direct.open(url, timeout=2).close()
        except (URLError, TimeoutError):
            time.sleep(0.3)


def open_tab(page: Page, name: str) -> None:
    """Go to a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def shoot(page: Page, path: Path, full_page: bool = True) -> None:
    """Take the page, in few colours."""
    page.screenshot(path=path, full_page=full_page)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"Wrote {path}")


if __name__ == "__main__":
    main()
