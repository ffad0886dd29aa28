"""The picture of a report in the README: parts of that of `make demo`, as a browser shows them.

make demo                                    # a minute; into runs/demo
python -m docs.recorded.report_picture       # seconds; needs chromium; writes docs/images/report.png
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT, SCALE, TOKEN, GUTTER = 690, 1180, 1.1, 5, 4
OUT = Path(__file__).parents[1] / "images" / "report.png"


def main(report: Path) -> None:
    """Two parts of the page, side by side."""
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE)
        page.goto(report.resolve().as_uri())
        # All 64 particles would fill the picture; of the charts the genealogy is shown.
        page.add_style_tag(
            content="#prefixes tbody tr:nth-child(n+6), #smc-charts > :first-child { display: none } h1 { margin: 0 }"
        )
        parts = []
        for place in ("h1", "#smc-title"):
            # Charts are drawn when they come into view, and push down what is below.
            for _ in range(2):
                page.evaluate("place => document.querySelector(place).scrollIntoView()", place)
                page.wait_for_timeout(2000)
            if place != "h1":
                page.locator("#step").fill(str(TOKEN - 1))
                page.wait_for_timeout(1000)
            parts.append(Image.open(io.BytesIO(page.screenshot())))
        browser.close()
    whole = Image.new("RGB", (sum(part.width for part in parts) + GUTTER, parts[0].height), "#bbbbbb")
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (parts[0].width + GUTTER, 0))
    whole.quantize(128).save(OUT, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/report.html"))
