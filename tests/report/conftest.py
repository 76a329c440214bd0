"""A real headless Chromium for the report's page, offline and with a profile of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


class Chromium:
    """One browser: opens a page and tells what it asked the network for and what it complained about."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, path: Path) -> None:
        """Load a page and wait until its answers are unpacked."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.resolve().as_uri())
        self.wait("return !document.getElementById('browser').hidden")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 30) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, seconds).until(lambda _: self.run(script))

    def choose(self, name: str, value: str) -> None:
        """Set a filter as a reader does, and tell the page."""
        event = "input" if name == "text" else "change"
        self.run(
            "const control = document.getElementById('f-' + arguments[0]); control.value = arguments[1];"
            "control.dispatchEvent(new Event(arguments[2]))",
            name,
            value,
            event,
        )

    @property
    def found(self) -> str:
        return self.run("return document.getElementById('found').textContent")

    @property
    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    @property
    def requests(self) -> list[str]:
        """Addresses asked for since the last call, the page's own left out."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        page = self.driver.current_url.partition("#")[0]
        # The browser's own pages (a new tab) ask for things of theirs.
        asked = [each["request"]["url"] for each in sent if each["documentURL"].partition("#")[0] == page]
        return [address for address in asked if address.partition("#")[0] != page]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = next((found for name in BINARIES if (found := shutil.which(name))), None)
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip("no chromium and chromedriver on this machine (apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=chromedriver))
    try:
        yield Chromium(driver)
    finally:
        driver.quit()
