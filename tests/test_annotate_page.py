"""The annotate page in a real Chromium: what is painted on the screen is what is stored, and nothing drawn is lost."""

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

pytest.importorskip("selenium", reason="selenium is not installed (pip install -e .[dev])")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

ROOT = Path(__file__).parent.parent
NIIVUE = ROOT / "web" / "packages" / "niivue" / "index.js"
SECONDS = 60

pytestmark = pytest.mark.skipif(not NIIVUE.is_file(), reason="NiiVue was not fetched: python -m web.fetch")

Voxel = tuple[int, int, int]


class Page:
    """The annotate page as somebody sees it."""

    def __init__(self, driver: Any, artefacts: Path) -> None:
        self.driver, self.artefacts = driver, artefacts

    def wait(self, what: str, ready: Callable[[], Any]) -> Any:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            if found := ready():
                return found
            time.sleep(0.1)
        self.shot("failed")
        raise AssertionError(f"waited for {what}; the page says {self.text('message')!r} {self.text('sending')!r}")

    def text(self, element: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", element))

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.artefacts / f"{name}.png"))

    def open(self, url: str, ticket: str, name: str = "ann") -> None:
        self.driver.get(f"{url}/style.css")  # same origin, so that the name is known before the page asks
        self.driver.execute_script("localStorage.setItem('nextslice.annotator', arguments[0])", name)
        self.driver.get(f"{url}/annotate/{ticket}")
        self.is_open()

    def is_open(self, *, other_than: str = "") -> str:
        """The ticket that is open."""

        def ticket() -> str:
            found = str(self.driver.current_url).rsplit("/", 1)[-1]
            is_open = self.driver.execute_script("return document.body.dataset.state") == "open"
            return found if is_open and found != other_than else ""

        return str(self.wait("an open ticket", ticket))

    def click(self, element: str) -> None:
        self.driver.find_element(By.ID, element).click()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def show_all_values(self) -> None:
        """So that only the brightest voxels are white."""
        Select(self.driver.find_element(By.ID, "preset")).select_by_visible_text("All values")

    def brush(self, size: int) -> None:
        self.driver.find_element(By.ID, "surface").send_keys("[" * 70 + "]" * (size - 1))

    def bright_spots(self) -> list[tuple[float, float]]:
        """Middles of the white spots of the picture, in CSS pixels of the window, brightest area first."""
        from scipy import ndimage

        frame = self.driver.execute_script(
            "const b = document.getElementById('surface').getBoundingClientRect();"
            "return [b.left, b.top, b.right, b.bottom, window.innerWidth]"
        )
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        scale = shot.width / frame[4]
        picture = np.asarray(shot.crop([round(edge * scale) for edge in frame[:4]])).min(axis=2)
        labels, n = ndimage.label(picture > 200)
        sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, n + 1))
        middles = ndimage.center_of_mass(picture.astype(float), labels, range(1, n + 1))
        order = np.argsort(-sizes)
        return [(frame[0] + middles[i][1] / scale, frame[1] + middles[i][0] / scale) for i in order if sizes[i] > 20]

    def point(self, action: ActionChains, at: tuple[float, float]) -> ActionChains:
        action.w3c_actions.pointer_action.move_to_location(round(at[0]), round(at[1]))
        return action

    def drag(self, *points: tuple[float, float]) -> None:
        """The mouse, pressed at the first point and released at the last."""
        action = self.point(ActionChains(self.driver, duration=50), points[0])
        action.w3c_actions.pointer_action.pointer_down()
        for at in points[1:]:
            self.point(action, at)
        action.w3c_actions.pointer_action.pointer_up()
        action.perform()


@pytest.fixture(scope="module")
def page(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests of this file; its screenshots stay in pytest's folder."""
    with chromium.browser() as driver:
        yield Page(driver, tmp_path_factory.mktemp("annotate"))


def oblique() -> npt.NDArray[np.float64]:
    """A turn by 20 and 12 degrees."""
    a, b = np.deg2rad(20), np.deg2rad(12)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn: npt.NDArray[np.float64] = about_z @ about_x
    return turn


# The volume's axes in RAS order are these axes of the file, with a sign where they run the other way; and a turn.
VOLUMES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], bool]] = {
    "ras": ((0, 1, 2), (1, 1, 1), False),
    "lps": ((0, 1, 2), (-1, -1, 1), False),
    "oblique": ((2, 0, 1), (-1, 1, -1), True),
}
SHAPE, SPACING = (36, 30, 8), (2.0, 2.0, 7.0)


def spots_of(axis: int, index: int) -> list[Voxel]:
    """Two file voxels of a slice that are white; where they are tells every slice and direction from every other."""
    found = []
    for place in ((6 + index, 8), (20, 17 + index)):
        voxel = list(place)
        voxel.insert(axis, index)
        found.append((voxel[0], voxel[1], voxel[2]))
    return found


def write_volume(path: Path, axes: tuple[int, int, int], signs: tuple[int, int, int], turned: bool) -> None:
    """A dark volume of `SHAPE` in RAS order, kept with other axes; across the coarse axis, each slice has its white voxels."""
    shape, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
    directions = np.zeros((3, 3))
    for world, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        shape[axis], spacing[axis] = SHAPE[world], SPACING[world]
        directions[world, axis] = sign
    affine = np.eye(4)
    affine[:3, :3] = (oblique() if turned else np.eye(3)) @ directions @ np.diag(spacing)
    affine[:3, 3] = -20.5, 31.25, 7
    coarse = axes[2]
    voxels = np.random.default_rng(0).integers(0, 60, shape).astype(np.int16)
    for index in range(shape[coarse]):
        for voxel in spots_of(coarse, index):
            voxels[voxel] = 1000
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    (root / "images").mkdir()
    for name, how in VOLUMES.items():
        write_volume(root / "images" / f"{name}.nii.gz", *how)
    config = {"labels": ["lesion", '<b>"wall"</b>', "vessel"]}
    (root / "images" / "nextslice.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def server(live_server: Any, studies: Path) -> Iterator[Any]:
    conf = {"strategy": "random", "slices_per_ticket": "1", "budget": "24", "retrain": "false"}
    running = live_server(studies, conf).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def asked(server: Any) -> dict[str, dict[str, Any]]:
    """{image: its open ticket}; each is with another annotator."""
    found = {}
    with server.client() as http:
        for number in range(len(VOLUMES)):
            (ticket,) = http.post("/al/ask", json={"annotator": f"annotator {number}"}).json()["tickets"]
            found[ticket["image"]] = ticket
    return found


def submitted(server: Any, page: Page, image: str, ticket: str) -> dict[str, Any]:
    """The record of what a ticket was answered with, once it is there."""

    def found() -> dict[str, Any] | None:
        with server.client() as http:
            sent = http.get(f"/al/items/{image}").json()["submissions"]
        return next((row for row in sent if row["ticket"] == ticket), None)

    row: dict[str, Any] = page.wait("the submission", found)
    return row


def stored(server: Any, image: str, folder: Path) -> Any:
    """The composite mask."""
    with server.client() as http:
        answer = http.get("/datastore/label", params={"label": image, "tag": "final"})
    assert answer.status_code == 200
    (folder / f"{image}.nii.gz").write_bytes(answer.content)
    return nib.load(folder / f"{image}.nii.gz")


def painted(mask: Any, value: int) -> set[Voxel]:
    return {(int(i), int(j), int(k)) for i, j, k in np.argwhere(np.asanyarray(mask.dataobj) == value)}


_A_DISK_THAT_NEVER_ANSWERS = """
const asked = () => ({});
IDBDatabase.prototype.transaction = () => ({ objectStore: () => ({ get: asked, put: asked, getAll: asked }), commit: asked });
"""


def open_and_find_spots(page: Page, server: Any, ticket: dict[str, Any]) -> list[tuple[float, float]]:
    """The two white spots of the asked slice, on the screen."""
    page.open(server.url, ticket["ticket"], name=ticket["annotator"])
    page.brush(1)
    page.show_all_values()
    found = page.wait("two white spots", lambda: spots if len(spots := page.bright_spots()) == 2 else None)
    return list(found)


@pytest.mark.parametrize("image", list(VOLUMES))
def test_what_is_painted_is_what_is_stored(
    image: str, server: Any, studies: Path, page: Page, asked: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    ticket = asked[image]
    (index,) = ticket["slices"]
    spots = open_and_find_spots(page, server, ticket)
    page.press("3")
    page.drag(spots[0])
    page.press("1")
    page.drag(spots[1])
    page.shot(image)
    page.press(Keys.ENTER)
    assert page.is_open(other_than=ticket["ticket"])

    row = submitted(server, page, image, ticket["ticket"])
    assert (row["slices"], row["annotator"]) == ([index], ticket["annotator"])
    mask, volume = stored(server, image, tmp_path), nib.load(studies / "images" / f"{image}.nii.gz")
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-4)
    assert mask.shape == volume.shape
    one, other = painted(mask, 1), painted(mask, 3)
    assert one | other == set(spots_of(ticket["axis"], index))
    assert (len(one), len(other)) == (1, 1)
    assert not painted(mask, 2)


def test_nothing_is_lost_when_the_server_goes_away(server: Any, page: Page, tmp_path: Path) -> None:
    """Drawn, the page opened anew before the disk has it, the server stopped, drawn on, submitted, the server started: all is
    there, once.
    """
    with server.client() as http:
        (ticket,) = http.post("/al/ask", json={"annotator": "offline"}).json()["tickets"]
    image, (index,) = ticket["image"], ticket["slices"]
    spots = open_and_find_spots(page, server, ticket)
    page.driver.execute_script(_A_DISK_THAT_NEVER_ANSWERS)
    page.drag(spots[0])
    page.driver.refresh()
    page.is_open()
    page.show_all_values()
    assert "is back" in page.text("message")
    page.brush(1)
    server.stop()
    page.drag(spots[1])
    page.press(Keys.ENTER)
    page.wait("the page to tell", lambda: "kept here and sent later" in page.text("sending"))
    page.shot("offline")
    server.start()
    row = submitted(server, page, image, ticket["ticket"])
    assert row["slices"] == [index]
    page.wait("the page to tell", lambda: "Saved" in page.text("sending"))
    assert painted(stored(server, image, tmp_path), 1) >= set(spots_of(ticket["axis"], index))
    page.is_open(other_than=ticket["ticket"])
    with server.client() as http:
        sent = http.get(f"/al/items/{image}").json()["submissions"]
    assert [each["ticket"] for each in sent].count(ticket["ticket"]) == 1


def test_everything_goes_by_keyboard_and_only_asked_slices_are_painted(
    live_server: Any, page: Page, tmp_path: Path
) -> None:
    """The name is asked for; another slice takes no paint; a cursor paints; the lease is renewed; nothing here is one key."""
    (tmp_path / "images").mkdir()
    hostile = "a'b & <img src=x onerror=alert(1)> ü"
    write_volume(tmp_path / "images" / f"{hostile}.nii.gz", *VOLUMES["lps"])
    (tmp_path / "images" / "nextslice.json").write_text(json.dumps({"labels": ["<script>alert(1)</script>"]}))
    conf = {"strategy": "random", "slices_per_ticket": "2", "budget": "8", "retrain": "false", "lease_minutes": "3"}
    server = live_server(tmp_path, conf).start()
    try:
        with server.client() as http:
            (ticket,) = http.post("/al/ask", json={"annotator": "<i>Zoë</i>"}).json()["tickets"]
            first, second = (item["slice"] for item in ticket["items"])
            page.driver.get(f"{server.url}/annotate/{ticket['ticket']}")
            page.wait("the question for the name", lambda: page.driver.find_element(By.ID, "name").is_displayed())
            page.press("<i>Zoë</i>", Keys.ENTER)
            page.is_open()
            assert (page.text("image"), page.text("who")) == (hostile, "<i>Zoë</i>")
            assert "<script>" in page.text("classes")
            assert not page.driver.find_elements(By.CSS_SELECTOR, "img, #classes script, #who i")

            def where() -> str:
                return page.text("where").split(",")[0]

            assert where() == f"Slice {first} of 0 to 7"
            other = next(index for index in range(8) if index not in (first, second))
            page.press(*([Keys.PAGE_UP] * (other - first) if other > first else [Keys.PAGE_DOWN] * (first - other)))
            page.wait("the other slice", lambda: where() == f"Slice {other} of 0 to 7")
            page.press(Keys.ARROW_UP, " ")
            assert "painting is off" in page.text("message")
            page.press("n")
            page.wait("an asked slice", lambda: page.text("asked-mark") == "Asked: paint here")
            here = int(where().split()[1])
            page.brush(1)
            page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_DOWN, " ")
            cursor = [int(part) for part in page.text("where").split("cursor ")[1].split(",")]
            page.press(Keys.ARROW_RIGHT, " ", "z")
            page.shot("keyboard")
            expires = http.get(f"/al/tickets/{ticket['ticket']}").json()["expires_at"]
            page.wait(
                "a renewed lease",
                lambda: (
                    http.get(f"/al/tickets/{ticket['ticket']}").json()["expires_at"] > expires
                    or page.press(Keys.ARROW_UP, "c", "z")
                ),
            )
            page.press("n")
            page.wait("the other asked slice", lambda: where() != f"Slice {here} of 0 to 7")
            page.press("x")
            page.is_open(other_than=ticket["ticket"])
            row = submitted(server, page, hostile, ticket["ticket"])
        assert sorted(row["slices"]) == sorted([first, second])
        assert row["annotator"] == "<i>Zoë</i>"
        voxel = list(cursor)
        voxel.insert(ticket["axis"], here)
        assert painted(stored(server, hostile, tmp_path), 1) == {tuple(voxel)}
    finally:
        server.stop()
