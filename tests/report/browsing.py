"""A page in a real browser, and what it did."""

from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, Request

HOSTILE = '<script>window.hacked = 1</script> & <img src=x onerror="window.hacked = 2"> </script><b>bold</b>'


@dataclass
class Watched:
    """A page, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @staticmethod
    def open(browser: Browser, path: Path, **options: object) -> "Watched":
        watched = Watched(browser.new_context(**options).new_page())
        # Cores may be busy with other tests.
        watched.page.set_default_timeout(120_000)
        watched.page.on("request", lambda request: watched._requested(request))
        watched.page.on("console", lambda message: watched.complaints.append(message.text))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.goto(path.as_uri())
        return watched

    def _requested(self, request: Request) -> None:
        self.requests.append(request.url)
