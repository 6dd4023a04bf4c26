"""Dashboard and worklist in a real Chromium, on a real server: what they show, and what can be done with them."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest

from bench.phantom import SMALL, write_phantoms

HOSTILE = "<img src=x onerror=document.title=1>'&quot; Ünïcödé 漢字 " + "x" * 80
PEOPLE = "\"<script>document.title='owned'</script>' Ä " + "y" * 140
SETTINGS = {
    "epochs": "2", "steps_per_epoch": "2", "batch_size": "2", "budget": "14", "slices_per_ticket": "1", "retrain": "false",
    "strategy": "random", "cold_start": "random",
}  # fmt: skip
JSON_HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(live_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server whose pool is empty; `filled` puts images there."""
    root = tmp_path_factory.mktemp("pages")
    (root / "images").mkdir()
    write_phantoms(root / "phantoms", patients=5, seed=1, shape=SMALL)
    phantoms = sorted((root / "phantoms" / "images").glob("*.nii.gz"))
    phantoms[0].rename(phantoms[0].with_name(f"{HOSTILE}.nii.gz"))
    running = live_server(root, SETTINGS)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def driver(chromium: ModuleType) -> Iterator[Any]:
    """One window for all tests of this file."""
    with chromium.browser() as window:
        yield window


class Page:
    """A page as somebody sees it."""

    def __init__(self, driver: Any, chromium: ModuleType, server: Any) -> None:
        self.driver, self.chromium, self.server = driver, chromium, server

    def open(self, path: str) -> None:
        self.driver.get(self.server.url + path)
        self.wait("a live page", lambda: self.text("live") == "Live")

    def wait(self, what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
        return self.chromium.wait(self.driver, what, ready, seconds)

    def text(self, element: str) -> str:
        return str(self.chromium.text_of(self.driver, element))

    def run(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(code, *values)

    def count(self, element: str) -> int:
        """The large number of a cell of the dashboard."""
        text = self.run("return document.getElementById(arguments[0])?.firstChild?.textContent ?? '-1'", element)
        return int(text.replace(",", ""))

    def cards(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.run(
            "return [...document.querySelectorAll('.card')].map(c => ({title: c.querySelector('h3').textContent,"
            " state: c.dataset.state, by: c.querySelector('.by').textContent, why: c.querySelector('.why').textContent}))"
        )
        return found

    def press(self, selector: str) -> None:
        """Focus by the keyboard's way, and Enter."""
        from selenium.webdriver.common.keys import Keys

        found = self.driver.find_element("css selector", selector)
        self.run("arguments[0].focus()", found)
        found.send_keys(Keys.ENTER)

    def answer(self, text: str | None = None) -> None:
        """Fill in the dialog that is open, and agree."""
        from selenium.webdriver.common.keys import Keys

        self.wait("a dialog", lambda: self.run("return document.querySelector('dialog[open]') !== null"))
        if text is not None:
            self.driver.find_element("css selector", "dialog input").send_keys(text, Keys.ENTER)
        else:
            self.driver.find_element("css selector", "dialog .primary").send_keys(Keys.ENTER)
        self.wait("the dialog to close", lambda: self.run("return document.querySelector('dialog[open]') === null"))

    def mark(self) -> None:
        """So that `unchanged` can tell whether the page was loaded anew."""
        self.run("window.marked = true")

    def unchanged(self) -> bool:
        return bool(self.run("return window.marked === true"))


@pytest.fixture
def page(driver: Any, chromium: ModuleType, server: Any) -> Iterator[Page]:
    found = Page(driver, chromium, server)
    chromium.console_errors(driver)
    yield found
    # A missing picture is told by its card. Anything else in the console is a fault, a forbidden source most of all.
    errors = [line for line in chromium.console_errors(driver) if "/thumbnail/" not in line and "ERR_CONN" not in line]
    assert [line for line in errors if "ERR_INCOMPLETE" not in line and "409 (Conflict)" not in line] == []


@pytest.fixture
def filled(server: Any) -> Any:
    """The server with five images and an open round."""
    if not list(server.images.glob("*.nii.gz")):
        source = server.root / "phantoms" / "images"
        shutil.copy(source / "nextslice.json", server.images)
        for file in source.glob("*.nii.gz"):
            shutil.copy(file, server.images)
    server.wait_for("five images and a round", lambda seen: seen["counts"]["images"] == 5 and bool(seen["rounds"]))
    return server


def save(http: httpx.Client, image: str, slices: list[int], annotator: str, **params: Any) -> dict[str, Any]:
    """A label with a block in it, for those slices."""
    volume = nib.Nifti1Image.from_bytes(_unzipped(http.get("/datastore/image", params={"image": image}).content))
    mask = np.zeros(volume.shape, np.uint8)
    mask[10:40, 10:40, slices] = 1
    form = {"params": json.dumps({"client_id": annotator, "annotated_slices": slices, **params})}
    content = nib.Nifti1Image(mask, volume.affine).to_bytes()
    sent = http.put("/datastore/label", params={"image": image}, data=form, files={"label": ("label.nii", content)})
    assert sent.status_code == 200, sent.text
    return dict(sent.json())


def _unzipped(content: bytes) -> bytes:
    import gzip

    return gzip.GzipFile(fileobj=io.BytesIO(content)).read()


# --- files and policy, without a browser


def test_pages_and_their_parts_come_with_a_policy_and_are_sent_once(server: Any) -> None:
    with server.client() as http:
        for path in ("/", "/worklist", "/style.css", "/web/api.js", "/web/dashboard/main.js"):
            answer = http.get(path)
            assert answer.status_code == 200
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            again = http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert http.get("/docs").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/web/../server/app.py", "/web/%2e%2e/cli.py", "/web/dashboard.html", "/web/%00", "/web/no.js", "/web/fetch.py"],
)
def test_nothing_but_the_parts_of_pages_is_served(server: Any, path: str) -> None:
    with server.client() as http:
        assert http.get(path).status_code == 404


def test_no_page_names_a_foreign_source() -> None:
    web = Path(__file__).parent.parent / "web"
    for file in [
        *web.glob("*.html"),
        *web.glob("*.css"),
        *web.glob("*.js"),
        *web.glob("dashboard/*"),
        *web.glob("worklist/*"),
    ]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "") or "http" not in text, file


# --- dashboard


def test_an_empty_pool_is_told_and_images_appear_by_themselves(page: Page, server: Any, request: Any) -> None:
    page.open("/")
    if not list(server.images.glob("*.nii.gz")):
        page.wait("the empty pool", lambda: "There are no images" in page.text("situation"))
        assert page.count("pool") == 0
    page.mark()
    request.getfixturevalue("filled")
    page.wait("the images", lambda: page.count("pool") > 0)
    page.wait("the round", lambda: "wait for an annotator" in page.text("situation"))
    assert page.unchanged()


def test_a_label_changes_the_counts_without_a_reload(page: Page, filled: Any) -> None:
    page.open("/")
    page.wait("counts", lambda: page.count("pool") > 0)
    page.mark()
    before = page.count("labeled")
    with filled.client() as http:
        (ticket,) = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"]
        page.wait("the lease", lambda: page.count("leased") == 1)
        save(http, ticket["image"], ticket["slices"], "ann", ticket=ticket["ticket"])
    page.wait("the new count", lambda: page.count("labeled") == before + 1)
    page.wait("the annotator", lambda: "ann" in page.text("people"))
    assert page.count("leased") == 0
    assert ticket["image"] in page.text("labels")
    assert page.unchanged()


def test_a_retrain_started_from_the_page_ends_in_a_new_model_that_can_be_rolled_back(page: Page, filled: Any) -> None:
    with filled.client() as http:
        for image in ("patient002", "patient003", "patient004", "patient005"):
            save(http, image, [8, 9, 10], "ann")
    page.open("/")
    for version in (1, 2):
        with filled.client() as http:
            save(http, "patient002", [10 + version], "ann")  # the same labels would make the same weights
        page.wait("the button", lambda: page.run("return !document.getElementById('retrain').disabled"))
        page.press("#retrain")
        page.wait("progress", lambda: page.run("return document.querySelector('#jobs progress') !== null"))
        page.wait(
            "the new model",
            lambda: page.run("return document.querySelectorAll('#models tbody tr').length") == version,  # noqa: B023
            seconds=240,
        )
        page.wait("the end", lambda: "Last training" in page.text("jobs") and "done" in page.text("jobs"))
    page.wait("the curve", lambda: page.run("return document.querySelectorAll('#dice circle.c0').length") == 2)
    with filled.client() as http:
        first = http.get("/al/models").json()["models"][0]["digest"]
    page.press("#models tbody tr:last-child button")
    page.answer()
    with filled.client() as http:
        page.wait("the former weights", lambda: http.get("/al/models").json()["current"] == first)


def test_a_page_says_that_the_server_is_gone_and_goes_on_when_it_is_back(page: Page, filled: Any) -> None:
    page.open("/")
    page.wait("counts", lambda: page.count("pool") > 0)
    page.mark()
    before = page.count("labeled")
    filled.stop()
    page.wait("the loss", lambda: "does not answer" in page.text("live"))
    filled.start()
    with filled.client() as http:
        save(http, "patient002", [2], "bo")
    page.wait("the server", lambda: page.text("live") == "Live")
    page.wait("the label", lambda: page.count("labeled") == before + 1)
    assert page.unchanged()


# --- worklist


def test_the_worklist_is_filtered_by_state_annotator_and_image(page: Page, filled: Any) -> None:
    with filled.client() as http:
        (ticket,) = http.post("/al/ask", json={"annotator": "filter"}).json()["tickets"]
    page.open("/worklist")
    page.wait("cards", lambda: len(page.cards()) > 5)
    everything = page.cards()
    page.run("const s = document.getElementById('state'); s.value = 'leased'; s.dispatchEvent(new Event('change'))")
    page.wait("leased ones alone", lambda: {card["state"] for card in page.cards()} == {"leased"})
    assert "filter" in [card["by"] for card in page.cards()]
    assert "state=leased" in page.driver.current_url
    page.open(f"/worklist?annotator=filter&image={ticket['image'][:12].replace('<', '%3C')}")
    page.wait("one card", lambda: [card["by"] for card in page.cards()] == ["filter"])
    page.open("/worklist?image=patient003")
    page.wait("its cards", lambda: page.cards() and all("patient003" in card["title"] for card in page.cards()))
    assert len(page.cards()) < len(everything)
    with filled.client() as http:
        http.post(f"/al/tickets/{ticket['ticket']}/release")


def test_skip_and_release_by_keyboard_alone(page: Page, filled: Any) -> None:
    with filled.client() as http:
        (ticket,) = http.post("/al/ask", json={"annotator": "keys"}).json()["tickets"]
    page.open("/worklist?state=leased")
    page.wait("the card", lambda: "keys" in [card["by"] for card in page.cards()])
    page.press(".card [data-does=release]")
    page.answer()
    page.wait("its end", lambda: "keys" not in [card["by"] for card in page.cards()])
    with filled.client() as http:
        assert http.get(f"/al/tickets/{ticket['ticket']}").json()["state"] == "released"
    page.open("/worklist?state=open")
    page.wait("cards", page.cards)
    title = page.cards()[0]["title"]
    page.press(".card [data-does=skip]")
    page.answer("<b>too dark</b>")
    page.wait("the card to leave", lambda: title not in [card["title"] for card in page.cards()])
    page.open("/worklist?state=skipped")
    page.wait("the skipped one", lambda: [card["title"] for card in page.cards()] == [title])
    assert page.cards()[0]["why"] == "Skipped: <b>too dark</b>"


def test_pages_that_were_left_hold_no_connection(page: Page, filled: Any) -> None:
    """A browser has six for a server; a page that is kept for the way back would keep its stream of events."""
    for number in range(8):
        page.open(f"/worklist?shown={number}")
        page.wait("its cards", page.cards, seconds=20)
    page.driver.back()
    page.wait("a live page", lambda: page.text("live") == "Live", seconds=20)


def test_annotate_here_takes_that_very_slice(page: Page, filled: Any) -> None:
    page.open("/worklist?state=open")
    page.wait("cards", lambda: len(page.cards()) > 2)
    page.run("localStorage.removeItem('nextslice.annotator')")
    title = page.cards()[2]["title"]
    page.press(".card:nth-child(3) [data-does=annotate]")
    page.answer("Ann Here")
    page.wait("the annotate page", lambda: "/annotate/" in page.driver.current_url)
    with filled.client() as http:
        ticket = http.get(f"/al/tickets/{page.driver.current_url.rsplit('/', 1)[-1]}").json()
        http.post(f"/al/tickets/{ticket['ticket']}/release")
    assert title == f"{ticket['image']} · slice {ticket['slices'][0]}"
    assert ticket["annotator"] == "Ann Here"
    page.driver.get(page.server.url + "/style.css")
    page.run("localStorage.removeItem('nextslice.annotator')")
    page.chromium.console_errors(page.driver)  # the annotate page itself is tested elsewhere


def test_hostile_names_are_text(page: Page, filled: Any) -> None:
    with filled.client() as http:
        save(http, HOSTILE, [1], PEOPLE)
        wish = {"annotator": PEOPLE, "image": HOSTILE}
        held = http.post("/al/ask", json=wish)
    page.open("/")
    page.wait("the names", lambda: HOSTILE in page.text("labels") and PEOPLE in page.text("people"))
    assert page.driver.title == "Dashboard - NextSlice"
    page.open("/worklist")
    page.wait("cards", page.cards)
    page.run("const i = document.getElementById('image'); i.value = '<img'; i.dispatchEvent(new Event('input'))")
    page.wait("its cards", lambda: page.cards() and all(HOSTILE in card["title"] for card in page.cards()))
    if held.status_code == 200:
        page.wait("who has it", lambda: PEOPLE in [card["by"] for card in page.cards()])
        with filled.client() as http:
            http.post(f"/al/tickets/{held.json()['tickets'][0]['ticket']}/release")
    assert page.driver.title == "Worklist - NextSlice"
    assert page.run("return document.querySelectorAll('main img[src=x], main script').length") == 0
    wide = page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "a long name makes the page wider than the window"


@pytest.mark.parametrize("path", ["/", "/worklist"])
@pytest.mark.parametrize("width", [1280, 820])
def test_pages_fit_their_window_and_every_control_has_a_name(page: Page, filled: Any, path: str, width: int) -> None:
    page.chromium.resize(page.driver, width, 1000)
    page.open(path)
    page.wait("its content", lambda: page.count("pool") > 0 if path == "/" else page.cards())
    assert page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    nameless = page.run(
        "return [...document.querySelectorAll('button, a, select, input')].filter(e => e.offsetParent)"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert nameless == []
    small = page.run(
        "return [...document.querySelectorAll('button, select, input')].filter(e => e.offsetParent)"
        ".filter(e => e.getBoundingClientRect().height < 40).map(e => e.outerHTML)"
    )
    assert small == []
    page.chromium.resize(page.driver, 1280, 900)


# --- the REST behind them


def test_the_worklist_over_rest(filled: Any) -> None:
    with filled.client() as http:
        first = http.get("/al/worklist", params={"limit": 3}).json()
        assert len(first["entries"]) == 3
        assert first["server"] == filled.url
        rest = http.get("/al/worklist", params={"after": first["next"], "limit": 500}).json()
        assert rest["next"] is None
        assert len(first["entries"]) + len(rest["entries"]) == sum(first["counts"].values())
        entry = next(entry for entry in [*first["entries"], *rest["entries"]] if entry["state"] == "open")
        answer = http.post("/al/ask", json={"image": entry["image"], "slice": entry["slice"], "annotator": "pacs"})
        (ticket,) = answer.json()["tickets"]
        taken = http.post("/al/ask", json={"image": entry["image"], "slice": entry["slice"], "annotator": "other"})
        assert (taken.status_code, "pacs" in taken.json()["detail"]) == (409, True)
        (held,) = http.get("/al/worklist", params={"annotator": "pacs"}).json()["entries"]
        assert held["links"]["annotate"] == f"/annotate/{ticket['ticket']}"
        assert "client id pacs" in held["links"]["slicer"]
        skipping = http.post(f"/al/items/{entry['image']}/skip", json={"slices": [entry["slice"]], "reason": "no"})
        assert skipping.status_code == 409
        http.post(f"/al/tickets/{ticket['ticket']}/release")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/al/ask", {"image": "nowhere"}, 404),
        ("/al/ask", {"slice": 1}, 400),
        ("/al/ask", {"image": "patient002", "slice": -1}, 422),
        ("/al/items/nowhere/skip", {"slices": [1], "reason": "no"}, 404),
        ("/al/items/patient002/skip", {"slices": [9999], "reason": "no"}, 400),
        ("/al/items/patient002/skip", {"slices": [], "reason": "no"}, 422),
        ("/al/items/patient002/skip", {"slices": [1], "reason": ""}, 422),
    ],
)
def test_wrong_wishes_are_refused(filled: Any, path: str, body: dict[str, Any], status: int) -> None:
    with filled.client() as http:
        answer = http.post(path, json=body)
        assert (answer.status_code, bool(answer.json()["detail"])) == (status, True)


@pytest.mark.parametrize(
    ("query", "status"),
    [({"round": 99}, 404), ({"state": "lost"}, 422), ({"limit": 0}, 422), ({"after": -2}, 422), ({"image": "\0"}, 200)],
)
def test_wrong_worklists_are_refused(filled: Any, query: dict[str, Any], status: int) -> None:
    with filled.client() as http:
        assert http.get("/al/worklist", params=query).status_code == status
