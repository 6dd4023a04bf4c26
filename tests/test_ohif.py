"""OHIF, served by us, in a real Chromium with a real archive: from a ticket's link to a DICOM SEG that holds the painted slice.

Pictures of what was seen are in the folder `artefacts` of the test's folder.
"""

import base64
import io
import re
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
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from bench.dicom_phantom import Study, write_series
from bench.orthanc import Orthanc
from web.fetch import OHIF, PACKAGES

_SECONDS = 120
LABELS = ("anterior", "posterior")
SHAPE = (51, 35, 8)
"""Odd rows times odd columns: what OHIF's own code cannot store."""
BRIGHT = (slice(6, 22), slice(4, 14), slice(None))
"""A box far from every mirror of itself."""

pytestmark = [
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
        return (
            {one["00080018"]["Value"][0] for one in found.json()}
            if found.status_code == 200 and found.content
            else set()
        )

    def instance(self, sop: str) -> pydicom.Dataset:
        found = httpx.post(f"{self.archive.root}/tools/lookup", content=sop, timeout=30).json()
        content = httpx.get(f"{self.archive.root}/instances/{found[0]['ID']}/file", timeout=30).content
        return pydicom.dcmread(io.BytesIO(content))


@pytest.fixture
def place(own_archive: Orthanc, tmp_path: Path, live_server: Any) -> Iterator[Place]:
    rng = np.random.default_rng(0)
    for patient in ("P1", "P2"):
        array = (rng.random(SHAPE) * 80).astype(np.int16)
        array[BRIGHT] += np.arange(100, 100 + 40 * SHAPE[2], 40, dtype=np.int16)
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
        found = re.search(r"I:\s*(\d+)\s*\(\d+/\d+\)", self.text())
        return int(found[1]) if found else None

    def press(self, name: str) -> None:
        """A button of our bar."""
        self.element(f"#nextslice-{name}").click()

    def click_row(self, label: str) -> None:
        """A segment's row in OHIF's list."""
        self.driver.find_element(By.XPATH, f"//*[text()='{label}']").click()

    def scroll(self) -> None:
        """One turn of the wheel over the image."""
        canvas = self.element("canvas.cornerstone-canvas")
        ActionChains(self.driver).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, 100).perform()

    def painted_slices(self) -> list[str]:
        """SOP UIDs, as our extension sees them."""
        script = "return window.NextSlice?.viewer && window.cornerstone ? [...NextSlice.viewer.painted()] : []"
        found: list[str] = self.driver.execute_script(script)
        return found

    def brush_mm(self) -> float:
        """The brush's radius, as OHIF's panel shows it."""
        label = self.driver.find_element(By.XPATH, "//*[text()='Radius (mm)']/ancestor::*[.//input][1]")
        return float(str(label.find_element(By.TAG_NAME, "input").get_attribute("value")))

    def bright_voxel(self) -> tuple[float, float]:
        """(i, j) of the volume at the middle of what is bright on the screen, by OHIF's own way from there to the patient."""
        canvas = self.element("canvas.cornerstone-canvas")
        address: str = self.driver.execute_script("return arguments[0].toDataURL('image/png')", canvas)
        picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L")
        grey = np.asarray(picture, float)
        rows, columns = np.nonzero(grey > (grey.min() + grey.max()) / 2)
        scale = canvas.size["width"] / picture.width
        at = [float(columns.mean() * scale), float(rows.mean() * scale)]
        world = self.driver.execute_script(
            "return [...cornerstone.getEnabledElements()[0].viewport.canvasToWorld(arguments[0])]", at
        )
        return -world[0], -world[1]  # the phantom's voxels are 1 mm in RAS, and DICOM's patient is LPS

    def drag(self, dx: int = 60) -> None:
        """Paint a stroke through the middle of the viewport."""
        canvas = self.element("canvas.cornerstone-canvas")
        ActionChains(self.driver).move_to_element(canvas).click_and_hold().move_by_offset(dx, 0).move_by_offset(
            0, 20
        ).release().perform()

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def browser(chromium: Any, tmp_path: Path) -> Iterator[Browser]:
    with chromium.browser(1080, 720) as driver:
        yield Browser(driver, tmp_path / "artefacts")


def test_an_asked_slice_is_painted_in_ohif_and_comes_back_as_seg(place: Place, browser: Browser) -> None:
    """One session, because the first image takes long: paint and store; edit what was stored; nothing there."""
    first = place.http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
    assert first["ohif"] == f"/al/tickets/{first['ticket']}/ohif", "the series is not fetched yet: this link fetches it"
    browser.driver.get(place.url + first["ohif"])
    browser.wait("the bar", lambda: "Asked slice 1 of 2: paint here" in browser.bar())
    first = place.http.get(f"/al/tickets/{first['ticket']}").json()
    assert first["ohif"].startswith("/ohif/segmentation?")
    stored = paint_and_store(place, browser, first)
    check_recorded(place, browser, first)
    edit(browser, place.url + first["ohif"] + f"&startSeg={stored.SeriesInstanceUID}", first)
    begin_with_the_mask_so_far(place, browser, first)
    say_nothing(place, browser)
    # OHIF says this of itself when a page is left while its viewport is being made.
    assert [line for line in browser.console() if "stack viewport has been destroyed" not in line] == []


def paint_and_store(place: Place, browser: Browser, ticket: dict[str, Any]) -> pydicom.Dataset:
    """The first asked slice painted, nothing on the second; the SEG that is in the archive then."""
    numbers = [index + 1 for index in ticket["slices"]]
    browser.wait("the first asked slice", lambda: browser.instance_number() == numbers[0])
    browser.picture("1-asked")
    assert browser.bright_voxel() == pytest.approx((13.5, 8.5), abs=1.5)
    browser.scroll()
    browser.wait("the bar to notice", lambda: "not asked for" in browser.bar())
    browser.picture("2-elsewhere")
    browser.press("back")
    browser.wait("the asked slice again", lambda: browser.instance_number() == numbers[0])
    browser.click_row("posterior")  # OHIF alone would jump to another slice
    browser.drag()
    browser.picture("3-painted")
    assert browser.instance_number() == numbers[0]
    browser.press("done")
    browser.wait("the second asked slice", lambda: browser.instance_number() == numbers[1])
    assert place.seg_instances() == set(), "the second slice has no answer yet"
    browser.press("nothing")
    (uid,) = browser.wait("a SEG in the archive", place.seg_instances)
    seg = place.instance(uid)
    references = [
        source.ReferencedSOPInstanceUID
        for frame in seg.PerFrameFunctionalGroupsSequence
        for image in frame.DerivationImageSequence
        for source in image.SourceImageSequence
    ]
    assert references == ticket["sop_instances"][:1]
    assert {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence} == dict(enumerate(LABELS, 1))
    assert set(np.unique(seg.pixel_array)) == {0, 2}
    assert "ann" in seg.SeriesDescription
    return seg


def check_recorded(place: Place, browser: Browser, ticket: dict[str, Any]) -> None:
    """The server took the SEG out of the archive by itself, and the page went on."""
    browser.wait("the record", lambda: place.http.get(f"/al/tickets/{ticket['ticket']}").json()["state"] == "submitted")
    states = place.http.get(f"/al/items/{ticket['image']}").json()
    assert [row["slice"] for row in states["slices"] if row["state"] == "labeled"] == ticket["slices"]
    assert [(row["annotator"], row["ticket"]) for row in states["submissions"]] == [("ann", ticket["ticket"])]
    browser.wait("the next ticket", lambda: f"ticket={ticket['ticket']}" not in browser.driver.current_url)
    # A page that is left while OHIF arranges itself complains of its own viewport.
    browser.wait("its slice", lambda: "Asked slice 1 of 2: paint here" in browser.bar())


def begin_with_the_mask_so_far(place: Place, browser: Browser, before: dict[str, Any]) -> None:
    """A ticket of an image that somebody annotated opens with what is there, without anybody naming it."""
    asked = place.http.post("/al/ask", json={"annotator": "cat", "image": before["image"]}).json()["tickets"][0]
    browser.driver.get(place.url + asked["ohif"])
    browser.wait("the mask so far", lambda: browser.painted_slices() == before["sop_instances"][:1])
    browser.wait("its slice", lambda: browser.instance_number() == asked["slices"][0] + 1)
    browser.wait("the bar", lambda: "Asked slice 1 of 2: paint here" in browser.bar())
    browser.picture("5b-the-mask-so-far")


def edit(browser: Browser, link: str, ticket: dict[str, Any]) -> None:
    """What was stored opens as the mask to begin with, on the asked slice, under the same names."""
    browser.driver.get(link)
    browser.wait("the mask so far", lambda: browser.painted_slices() == ticket["sop_instances"][:1])
    browser.wait("the asked slice", lambda: browser.instance_number() == ticket["slices"][0] + 1)
    browser.picture("4-start-mask")
    assert all(label in browser.text() for label in LABELS)
    browser.press("following")
    browser.wait("the second asked slice", lambda: browser.instance_number() == ticket["slices"][1] + 1)
    # With a mask OHIF shows a volume, turned as radiologists read it, and no longer the instances as they are stored.
    assert browser.bright_voxel() == pytest.approx((13.5, 8.5), abs=1.5)
    browser.drag()
    browser.wait("paint on it", lambda: sorted(browser.painted_slices()) == sorted(ticket["sop_instances"]))
    browser.picture("5-edited")
    assert browser.brush_mm() < 5


def say_nothing(place: Place, browser: Browser) -> None:
    """Two clicks answer a ticket of two slices, and the next one opens."""
    ticket = place.http.post("/al/ask", json={"annotator": "bob"}).json()["tickets"][0]
    browser.driver.get(place.url + ticket["ohif"])
    for number in ("1", "2"):
        browser.wait("an asked slice", lambda number=number: f"Asked slice {number} of 2: paint here" in browser.bar())
        browser.press("nothing")
    browser.wait("the next ticket", lambda: f"ticket={ticket['ticket']}" not in browser.driver.current_url)
    browser.wait("its slice", lambda: "Asked slice 1 of 2: paint here" in browser.bar())
    browser.picture("6-next-ticket")
    ended = place.http.get(f"/al/tickets/{ticket['ticket']}").json()
    assert ended["state"] == "submitted"
    states = place.http.get(f"/al/items/{ticket['image']}").json()["slices"]
    assert {row["slice"] for row in states if row["state"] == "labeled"} >= set(ticket["slices"])
