"""Take the screenshots of docs/demo.md: `python docs/make_screenshots.py --model_path output/model`.

Needs the extras `demo` and `dev` (Playwright) and Debian's `chromium`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
SHOTS = (
    # file, (width, height), scheme, task, tab
    ("demo-desktop", (1100, 600), "light", "sentiment", "Sentiment"),
    ("demo-phone", (390, 844), "dark", "regression", "Price move"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_path", default="output/model")
    parser.add_argument("--port", type=int, default=7869)
    arguments = parser.parse_args()
    command = f"from fintune.demo.app import launch; launch({arguments.model_path!r}, {arguments.port})"
    server = subprocess.Popen([sys.executable, "-c", command])
    url = f"http://127.0.0.1:{arguments.port}/"
    try:
        wait(server, url)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            for name, (width, height), scheme, task, tab in SHOTS:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(url)
                use(page, task, tab)
                page.screenshot(path=IMAGES / f"{name}.png", full_page=True)
                page.close()
                print(f"Wrote {IMAGES / name}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def wait(server: subprocess.Popen, url: str) -> None:
    """Return once the demo answers."""
    while True:
        if server.poll() is not None:
            sys.exit("The demo did not start.")
        try:
            return urlopen(url, timeout=2).close()
        except (URLError, TimeoutError):
            time.sleep(0.3)


def use(page, task: str, tab: str) -> None:
    """Open a tab, choose its first example and wait for the answer."""
    page.wait_for_selector("#sentiment-run")
    entry = page.get_by_role("tab", name=tab, exact=True)
    if not entry.is_visible():
        page.get_by_role("button", name="More tabs").click()
        entry = page.locator(".overflow-dropdown button", has_text=tab)
    entry.click()
    page.locator(f"#{task}-examples button").first.click()
    page.wait_for_function(f"document.querySelector('#{task}-text textarea').value.length > 10")
    page.click(f"#{task}-run")
    page.locator(f"#{task}-answer").locator(".ft-answer, .output-class").first.wait_for(timeout=120_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # the bars grow in


if __name__ == "__main__":
    main()
