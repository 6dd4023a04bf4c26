"""The map in a real Chromium: its states, hover, choice by mouse and keys, and hostile names as text."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.phantom import SMALL, write_phantoms

selenium = pytest.importorskip("selenium", reason="selenium is not installed (pip install -e .[dev])")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

SECONDS = 120
HOSTILE = "<img src=x onerror=document.title='owned'>é\"' " + "x" * 120

_ASKED = "return document.querySelectorAll('#asked button').length"
_CHOOSE_FIRST = """
const first = document.querySelector('#asked button'), name = first.innerText;
first.click();
return name;
"""


class Page:
    """The map as somebody sees it."""

    def __init__(self, driver: Any, shots: Path) -> None:
        self.driver, self.shots = driver, shots

    def until(self, what: str, ready: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if found := ready():
                return found
            time.sleep(0.1)
        self.shot("failed")
        raise AssertionError(f"waited for {what}; the page says {self.driver.find_element(By.TAG_NAME, 'body').text}")

    def state(self, wanted: str) -> None:
        script = "return document.body.dataset.state"
        self.until(f"the state {wanted}", lambda: self.driver.execute_script(script) == wanted)

    def text(self, element: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", element))

    def has_picture(self, element: str) -> bool:
        script = "const i = document.getElementById(arguments[0]); return i.complete && i.naturalWidth > 0"
        return bool(self.driver.execute_script(script, element))

    def press(self, *keys: str) -> None:
        self.driver.find_element(By.ID, "plane").send_keys(*keys)

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.shots / f"map-{name}.png"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, live_server: type) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("map") / "demo"
    write_phantoms(root, patients=3, seed=1, shape=SMALL)
    shutil.copy(root / "images" / "patient002.nii.gz", root / "images" / f"{HOSTILE}.nii.gz")
    started = live_server(root, {"epochs": "1", "steps_per_epoch": "2", "batch_size": "2", "retrain": "false"}).start()
    yield started
    started.stop()


@pytest.fixture
def page(chromium: Any, tmp_path: Path) -> Iterator[Page]:
    with chromium.browser(theme="light") as driver:
        yield Page(driver, tmp_path)


def test_the_map_from_no_model_to_the_chosen_slice(server: Any, chromium: Any, page: Page) -> None:
    page.driver.get(f"{server.url}/map")
    page.state("nothing")
    assert "no model yet" in page.text("wait-text")
    page.shot("no-model")

    with server.client() as http:
        for image in ("patient001", "patient003"):
            with open(server.truth / f"{image}.nii.gz", "rb") as mask:
                sent = http.put(f"/datastore/label?image={image}", files={"label": (f"{image}.nii.gz", mask)})
            assert sent.status_code == 200, sent.text
        assert http.post("/train/unet2d?run_sync=true", json={}).status_code == 200
    # The page learns of the model by itself, and waits while the map is made.
    page.state("ready")
    page.until("what the round asks for", lambda: page.driver.find_elements(By.CSS_SELECTOR, "#asked button"))
    page.shot("ready")
    with server.client() as http:
        # The list is drawn anew when the new model's round comes: what it holds is read in one go, as often as it takes.
        page.until(
            "all that is asked for",
            lambda: page.driver.execute_script(_ASKED) == len(http.get("/al/map").json()["asked"]),
        )
        found = http.get("/al/map").json()
    assert page.text("count") == f"{len(found['x'])} items"

    # A click on an item chooses it.
    name = page.driver.execute_script(_CHOOSE_FIRST)
    page.until("the chosen item's picture", lambda: page.has_picture("chosen-picture"))
    assert page.text("chosen-name") == name
    assert "asked for" in page.text("chosen-facts")
    at = page.driver.execute_script(
        "const { Plane } = await import('/map/plane.js'); const c = document.getElementById('plane');"
        "const side = Math.min(c.clientWidth, c.clientHeight) - 72, [x, y] = arguments[0];"
        "return [Math.round((x - 0.5) * side), Math.round((0.5 - y) * side)]",
        [found["x"][0], found["y"][0]],
    )
    plane = page.driver.find_element(By.ID, "plane")
    ActionChains(page.driver).move_to_element_with_offset(plane, *at).perform()
    page.until("a hint with its picture", lambda: page.has_picture("hint-picture"))
    page.shot("hint")
    ActionChains(page.driver).click().perform()
    assert page.text("hint-text").startswith(page.text("chosen-name"))

    # By keys: to a neighbour, back to everything, on to what can be done with it.
    before = page.text("chosen-name")
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ARROW_UP):
        page.press(key)
    assert page.text("told").startswith(page.text("chosen-name"))
    page.press("+", "+", Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP)
    page.until("another item", lambda: page.text("chosen-name") != before)
    page.press("0", Keys.ENTER)
    assert page.driver.switch_to.active_element.get_attribute("id") in ("annotate", "worklist")

    Select(page.driver.find_element(By.ID, "colour")).select_by_value("score")
    assert "entropy" in page.text("legend")
    Select(page.driver.find_element(By.ID, "method")).select_by_value("pca")
    page.state("ready")
    page.until("the chosen item's picture", lambda: page.has_picture("chosen-picture"))
    page.shot("score")
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    chromium.resize(page.driver, 820, 1100)
    page.until("the narrow page", lambda: page.driver.execute_script("return innerWidth") < 900)
    page.shot("tablet")

    assert page.driver.execute_script("return document.title") == "Map - NextSlice", "a name was taken for markup"
    assert not page.driver.find_elements(By.CSS_SELECTOR, "img[src='x']")
    refused = [entry["message"] for entry in page.driver.get_log("browser") if "Content Security" in entry["message"]]
    assert not refused
