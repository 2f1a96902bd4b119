"""A headless Chromium for tests, and pages that remember everything they did wrong.

The browser is Debian's (`make browser`); it is started once per session and only for tests that ask for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

_ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
_LOST = "net::ERR_"
"""What the browser itself says of a server that is away."""
PATIENCE = 120_000


@dataclass
class Tab:
    """A page with what happened in it: `complaints` are errors of scripts, of the console, and breaches of policy."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning") and _LOST not in message.text:
            self.complaints.append(message.text)

    def shows(self, *texts: str) -> None:
        """Wait until all of these are to be seen."""
        for text in texts:
            self.page.get_by_text(text).filter(visible=True).first.wait_for()

    def lacks(self, text: str) -> None:
        """Wait until this is nowhere."""
        expect(self.page.locator("body")).not_to_contain_text(text, timeout=PATIENCE)

    def counts(self, selector: str, number: int) -> None:
        """Wait until there are so many elements."""
        expect(self.page.locator(selector)).to_have_count(number, timeout=PATIENCE)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser."""
    program = shutil.which("chromium")
    assert program, "there is no chromium: `make browser`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS), timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens an address; options are those of a browser's context. At the end no tab may have complaints."""
    tabs: list[Tab] = []
    contexts = []

    def begin(url: str, **options: Any) -> Tab:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        tabs.append(Tab(context.new_page()))
        tabs[-1].page.goto(url)
        return tabs[-1]

    yield begin
    for context in contexts:
        context.close()
    assert [tab.complaints for tab in tabs] == [[] for _ in tabs]
    assert {host for tab in tabs for host in tab.hosts} <= {"127.0.0.1", "localhost"}
