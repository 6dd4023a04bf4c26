"""A real, headless Chromium that looks at the pages, for tests, pictures and figures."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = (
    "" if CHROMIUM and DRIVER else "chromium and chromedriver are not installed (Debian: chromium, chromium-driver)"
)
"""Why no browser can be started here; empty where one can."""

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-gpu-rasterization", "--no-first-run",
    "--disable-background-networking",
)  # fmt: skip
_SECONDS = 60

Found = TypeVar("Found")


@contextmanager
def browser(width: int = 1280, height: int = 900, *, theme: str = "dark") -> Iterator[webdriver.Chrome]:
    """A browser window of that size; its console is kept for `console_errors`."""
    assert CHROMIUM
    assert DRIVER
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        resize(driver, width, height)
        media = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        yield driver
    finally:
        driver.quit()


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    """Make the page itself so large; the window has borders."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(driver: webdriver.Chrome, what: str, ready: Callable[[], Found], seconds: float = _SECONDS) -> Found:
    """What `ready` finds, once it finds something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := ready():
            return found
        time.sleep(0.05)
    text = driver.execute_script("return document.body.innerText")
    raise AssertionError(f"waited {seconds} s for {what}; the page says {text[:2000]!r}; {console_errors(driver)}")


def text_of(driver: webdriver.Chrome, element: str) -> str:
    """The text in the element of that id; empty if it is not there."""
    code = "return document.getElementById(arguments[0])?.textContent ?? ''"
    return str(driver.execute_script(code, element))


def console_errors(driver: webdriver.Chrome) -> list[str]:
    """Errors in the console since the last call, such as scripts or sources that the policy forbids."""
    entries: list[dict[str, Any]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def screenshot(driver: webdriver.Chrome, file: Path, *, whole: bool = False) -> None:
    """What is seen; `whole` takes the page down to its end."""
    if not whole:
        driver.save_screenshot(str(file))
        return
    size = driver.execute_script("return [innerWidth, innerHeight, document.documentElement.scrollHeight]")
    resize(driver, size[0], max(size[1], size[2]))
    driver.save_screenshot(str(file))
    resize(driver, size[0], size[1])
