"""OHIF, served by us, in a real Chromium with a real archive: from a ticket's link to a DICOM SEG that holds the painted slice.

Pictures of what was seen are in the folder `artefacts` of the test's folder.
"""

import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from bench.dicom_phantom import Study, write_series
from bench.orthanc import Orthanc
from web.fetch import OHIF, PACKAGES

_CHROMIUM, _DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--window-size=1280,900", "--disable-background-networking",
)  # fmt: skip
_SECONDS = 120
LABELS = ("anterior", "posterior")
SHAPE = (51, 35, 8)
"""Odd rows times odd columns: what OHIF's own code cannot store."""

pytestmark = [
    pytest.mark.skipif(not _CHROMIUM.exists() or not _DRIVER.exists(), reason="Chromium and chromedriver are not installed"),
    pytest.mark.skipif(not (PACKAGES / OHIF.folder).is_dir(), reason="OHIF was not fetched: make web/packages/fetched"),
    pytest.mark.slow,
]


@dataclass
class Place:
    """An archive with series, and our server on it."""

    archive: Orthanc
    url: str
    http: httpx.Client

    def seg_instances(self) -> set[str]:
        """SOP instance UIDs of the segmentations in the archive."""
        found = httpx.get(f"{self.archive.url}/instances", params={"Modality": "SEG"}, timeout=30)
        return {one["00080018"]["Value"][0] for one in found.json()} if found.status_code == 200 and found.content else set()

    def instance(self, sop: str) -> pydicom.Dataset:
        found = httpx.post(f"{self.archive.root}/tools/lookup", content=sop, timeout=30).json()
        content = httpx.get(f"{self.archive.root}/instances/{found[0]['ID']}/file", timeout=30).content
        return pydicom.dcmread(io.BytesIO(content))


@pytest.fixture
def place(own_archive: Orthanc, tmp_path: Path, live_server: Any) -> Iterator[Place]:
    rng = np.random.default_rng(0)
    for patient in ("P1", "P2"):
        array = (rng.random(SHAPE) * 80).astype(np.int16)
        array[15:35, 10:25, :] += np.arange(100, 100 + 40 * SHAPE[2], 40, dtype=np.int16)
        write_series(tmp_path / patient, array, np.diag([1.0, 1.0, 3.0, 1.0]), Study(patient))
        own_archive.upload(tmp_path / patient)
    settings = {
        "state": str(tmp_path / "state"), "labels": ",".join(LABELS), "retrain": "false", "slices_per_ticket": "2",
        "budget": "16", "strategy": "random",
    }  # fmt: skip

    def command(server: Any) -> list[str]:
        pairs = [part for key, value in settings.items() for part in ("--conf", key, value)]
        return [sys.executable, "-m", "cli", "serve", "--studies", own_archive.url, "--port", str(server.port), *pairs]

    server = live_server(tmp_path, command=command).start()
    try:
        with server.client() as http:
            yield Place(own_archive, server.url, http)
    finally:
        server.stop()


@dataclass
class Browser:
    """Chromium, and what a person does with it."""

    driver: webdriver.Chrome
    artefacts: Path

    def picture(self, name: str) -> None:
        self.artefacts.mkdir(exist_ok=True)
        self.driver.save_screenshot(str(self.artefacts / f"{name}.png"))

    def wait(self, what: str, ready: Callable[[], Any]) -> Any:
        """What `ready` gives once it gives something."""
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            if found := ready():
                return found
            time.sleep(0.1)
        self.picture("timeout")
        raise AssertionError(f"Waited {_SECONDS} s for {what}; the page says: {self.text()[-1500:]}; {self.console()}")

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def element(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def bar(self) -> str:
        found = self.driver.find_elements(By.CSS_SELECTOR, "#nextslice-bar")
        return found[0].text if found else ""

    def instance_number(self) -> int | None:
        """As OHIF writes it into the picture's corner: "I: 7 (16/22)"."""
        import re

        found = re.search(r"I:\s*(\d+)\s*\(\d+/\d+\)", self.text())
        return int(found[1]) if found else None

    def drag(self, dx: int = 60) -> None:
        """Paint a stroke through the middle of the viewport."""
        canvas = self.element(".cornerstone-canvas, canvas")
        ActionChains(self.driver).move_to_element(canvas).click_and_hold().move_by_offset(dx, 0).move_by_offset(
            0, 20
        ).release().perform()

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(_CHROMIUM)
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(_DRIVER)))
    try:
        yield Browser(driver, tmp_path / "artefacts")
    finally:
        driver.quit()
        shutil.rmtree(tmp_path / "chromium", ignore_errors=True)


def test_an_asked_slice_is_painted_in_ohif_and_comes_back_as_seg(place: Place, browser: Browser) -> None:
    ticket = place.http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
    # Before the series is fetched, the link fetches it.
    browser.driver.get(place.url + ticket["ohif"])
    browser.wait("an asked slice", lambda: "paint here" in browser.bar())
    ticket = place.http.get(f"/al/tickets/{ticket['ticket']}").json()
    assert ticket["ohif"].startswith("/ohif/segmentation?")
    asked = [index + 1 for index in ticket["slices"]]
    browser.wait("the first asked slice", lambda: browser.instance_number() == asked[0])
    browser.picture("1-asked")
    browser.drag()
    browser.picture("2-painted")
    browser.element("#nextslice-done").click()
    browser.wait("the second asked slice", lambda: browser.instance_number() == asked[1])
    browser.picture("3-second")
    browser.element("#nextslice-nothing").click()
    browser.wait("a SEG in the archive", place.seg_instances)
    browser.picture("4-saved")
    (stored,) = place.seg_instances()
    seg = place.instance(stored)
    print(browser.bar(), browser.console())
    references = {
        source.ReferencedSOPInstanceUID
        for frame in seg.PerFrameFunctionalGroupsSequence
        for image in frame.DerivationImageSequence
        for source in image.SourceImageSequence
    }
    assert references == {ticket["sop_instances"][0]}
