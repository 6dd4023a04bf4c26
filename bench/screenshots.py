"""Pictures of the pages in each of their states, for the documents: `python -m bench.screenshots`."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import typer
from PIL import Image
from selenium.webdriver.support.select import Select

from bench import browser
from bench.live import Server
from bench.phantom import write_phantoms
from bench.robot import Robot
from bench.serving import our_server

_OUT = Path(__file__).parent.parent / "docs" / "images"
_QUICK = {"epochs": "12", "steps_per_epoch": "25", "batch_size": "4", "budget": "12", "slices_per_ticket": "2"}
_SECONDS = 600
_QUALITY = 88


def main(out: Path = _OUT, patients: int = 8) -> None:
    """Serve phantoms, annotate them as two people, and take the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser.browser() as driver:
        gallery = Gallery(driver, out)
        with served(Path(folder) / "empty", {}) as server:
            gallery.take(server, "/", "dashboard-empty", "There are no images")
            gallery.take(server, "/worklist", "worklist-empty", "There is no round yet")
            gallery.take(server, "/map", "map-empty", "There is no model yet", live=False)
        write_phantoms(Path(folder) / "phantoms", patients=patients, seed=1)
        with (
            served(Path(folder) / "phantoms", _QUICK) as server,
            httpx.Client(base_url=server.url, timeout=600) as http,
        ):
            campaign(server, http, gallery, Path(folder) / "phantoms" / "labels")
            gallery.take(server, "/", "dashboard-running", "epoch")
            draw(server, gallery)
        gallery.lost("annotate-lost", "No connection", lambda: press(gallery.driver, "submit"))
        write_phantoms(Path(folder) / "few", patients=2, seed=2)
        with served(Path(folder) / "few", {**_QUICK, "retrain": "false"}) as server:
            with httpx.Client(base_url=server.url, timeout=600) as http:
                finish(http, Path(folder) / "few" / "labels")
            gallery.take(server, "/", "dashboard-finished", "Finished")
            name(server, driver, "Dr. Adler")
            gallery.take(server, "/annotate/next", "annotate-finished", "Nothing left", live=False)
            gallery.open(server, "/", "Finished")
        gallery.lost("dashboard-lost", "does not answer")


class Gallery:
    """The window, and the folder that its pictures go to."""

    def __init__(self, driver: Any, out: Path) -> None:
        self.driver, self.out = driver, out

    def open(self, server: Server, path: str, text: str, *, width: int = 1280, live: bool = True) -> None:
        """Open a page and wait until it says `text` and has loaded; `live` pages tell of their connection."""
        browser.resize(self.driver, width, 900)
        self.driver.get(server.url + path)
        self._wait(text)
        # What comes after the text: pictures of cards, and the connection that is told as live.
        if live:
            browser.wait(self.driver, "a live page", lambda: browser.text_of(self.driver, "live") == "Live")
        self._settle()

    def take(self, server: Server, path: str, name: str, text: str, *, whole: bool = True, **how: Any) -> None:
        """As `open`, and keep what it looks like."""
        self.open(server, path, text, **how)
        self._keep(name, whole)

    def look(self, name: str) -> None:
        """Keep what the open page looks like once it has loaded."""
        self._settle()
        self._keep(name, False)

    def lost(self, name: str, text: str, act: Callable[[], None] = lambda: None) -> None:
        """Do something on the open page, whose server is gone, and keep what it looks like once it says `text`."""
        act()
        self._wait(text)
        self._keep(name, True)

    def _settle(self) -> None:
        browser.wait(self.driver, "pictures", lambda: self.driver.execute_script(_NOTHING_LOADS), 180)

    def theme(self, theme: str) -> None:
        """Dark or light, as a system asks for."""
        media = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def _wait(self, text: str) -> None:
        browser.wait(
            self.driver, text, lambda: text in self.driver.execute_script("return document.body.innerText"), 120
        )

    def _keep(self, name: str, whole: bool) -> None:
        file, taken = self.out / f"{name}.webp", self.out / f"{name}.png"
        browser.screenshot(self.driver, taken, whole=whole)
        with Image.open(taken) as picture:
            picture.convert("RGB").save(file, quality=_QUALITY, method=6)
        taken.unlink()
        typer.echo(f"{file} ({file.stat().st_size / 1024:.0f} KiB)")


_NOTHING_LOADS = (
    "window.seen ??= [performance.getEntriesByType('resource').length, performance.now()];"
    "const n = performance.getEntriesByType('resource').length;"
    "if (n !== window.seen[0]) window.seen = [n, performance.now()];"
    "return performance.now() - window.seen[1] > 1500"
)
"""Nothing was loaded for a while."""


@contextmanager
def served(folder: Path, conf: Mapping[str, str]) -> Iterator[Server]:
    """Our server on folder/images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with our_server(folder / "images", folder / "home", conf) as server:
        yield server


def campaign(server: Server, http: httpx.Client, gallery: Gallery, truth: Path) -> None:
    """Two people annotate until there are some models; a training runs, and one fails."""
    people = [Robot(http, truth, "", name) for name in ("Dr. Adler", "Dr. Bär")]
    strategy = progress(http)["strategy"]
    until(http, "a round", lambda now: bool(now["rounds"]))
    http.post("/train/" + next(iter(http.get("/info/").json()["trainers"])))
    until(http, "a training without labels to fail", lambda now: bool(now["last_training"]) and idle(now))
    gallery.take(server, "/", "dashboard-error", "failed")
    for models in (1, 2, 3, 4):
        work_on(http, people, strategy)
        wait_for_model(http, models)
    half_done(http, people, strategy)
    gallery.take(server, "/", "dashboard", "in use")
    gallery.take(server, "/worklist", "worklist", "being annotated", whole=False)
    gallery.take(server, "/worklist?state=labeled", "worklist-tablet", "items shown", width=820, whole=False)
    maps(server, gallery)
    gallery.theme("light")
    gallery.take(server, "/", "dashboard-light", "in use", width=820)
    gallery.theme("dark")
    http.post("/train/" + next(iter(http.get("/info/").json()["trainers"])), json={"epochs": 60})
    until(http, "some epochs", lambda now: any(job["progress"].get("epoch", 0) > 1 for job in now["running"]["train"]))


def maps(server: Server, gallery: Gallery) -> None:
    """The map while it is made, and coloured both ways."""
    gallery.open(server, "/map", "The map is being made", live=False)
    gallery.look("map-waiting")
    browser.wait(gallery.driver, "the map", lambda: state(gallery.driver) == "ready", 300)
    gallery.look("map")
    Select(gallery.driver.find_element("id", "colour")).select_by_value("score")
    gallery.driver.find_element("css selector", "#asked button").click()
    gallery.look("map-uncertainty")
    gallery.open(server, "/map", "Asked for", width=820, live=False)
    browser.wait(gallery.driver, "the map", lambda: state(gallery.driver) == "ready")
    gallery.look("map-tablet")


def draw(server: Server, gallery: Gallery) -> None:
    """The annotate page: a ticket with nothing drawn, the uncertainty over it, the prediction as a beginning; an old address."""
    driver = gallery.driver
    name(server, driver, "Dr. Bär")
    gallery.take(server, "/annotate/no-such-ticket", "annotate-error", "Nothing to annotate", whole=False, live=False)
    gallery.open(server, "/annotate/next", "Asked: paint here", live=False)
    gallery.look("annotate")
    press(driver, "heat")
    gallery.look("annotate-uncertainty")
    press(driver, "heat")
    press(driver, "predict")
    gallery.look("annotate-prediction")
    browser.resize(driver, 820, 900)
    gallery.look("annotate-tablet")
    browser.resize(driver, 1280, 900)
    press(driver, "next")
    press(driver, "predict")


def name(server: Server, driver: Any, annotator: str) -> None:
    """Who works in this browser, said before a page asks."""
    driver.get(server.url + "/style.css")  # any part of the same origin
    driver.execute_script("localStorage.setItem('nextslice.annotator', arguments[0])", annotator)


def state(driver: Any) -> str:
    """What the page says of itself."""
    return str(driver.execute_script("return document.body.dataset.state ?? ''"))


def press(driver: Any, element: str) -> None:
    driver.find_element("id", element).click()


def work_on(http: httpx.Client, people: list[Robot], strategy: str) -> None:
    """They take turns until the round is done."""
    while True:
        for person in people:
            person.strategy = strategy
            sample = person.next_sample()
            if not sample:
                return
            person.submit(sample)


def half_done(http: httpx.Client, people: list[Robot], strategy: str) -> None:
    """Some of the round's items are labelled, one is skipped, two are with somebody."""
    for person in people:
        person.strategy = strategy
        person.submit(person.next_sample())
    tickets = http.post("/al/ask", json={"annotator": "Dr. Adler", "n": 1}).json()["tickets"]
    tickets += http.post("/al/ask", json={"annotator": "Dr. Bär", "n": 1}).json()["tickets"]
    if len(tickets) == 2:
        open_items = http.get("/al/worklist", params={"state": "open"}).json()["entries"]
        for entry in open_items[:1]:
            body = {"slices": [entry["slice"]], "reason": "motion artefact", "annotator": "Dr. Bär"}
            http.post(f"/al/items/{entry['image']}/skip", json=body)


def finish(http: httpx.Client, truth: Path) -> None:
    """Every slice is labelled."""
    until(http, "a round", lambda now: bool(now["rounds"]))
    for file in sorted(truth.glob("*.nii.gz")):
        image = file.name.removesuffix(".nii.gz")
        answer = http.put(
            "/datastore/label",
            params={"image": image},
            data={"params": '{"client_id": "Dr. Adler"}'},
            files={"label": (file.name, file.read_bytes())},
        )
        answer.raise_for_status()


def progress(http: httpx.Client) -> dict[str, Any]:
    return dict(http.get("/al/progress").json())


def idle(now: Mapping[str, Any]) -> bool:
    """No training and no sweep runs."""
    return not (now["running"]["train"] or now["running"]["sweep"])


def wait_for_model(http: httpx.Client, n: int) -> None:
    """Until there are n models, and a round by the last one."""

    def ready(now: dict[str, Any]) -> bool:
        return idle(now) and bool(now["rounds"]) and len(http.get("/al/models").json()["models"]) >= n

    until(http, f"{n} models and a round", ready)


def until(http: httpx.Client, what: str, ready: Callable[[dict[str, Any]], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if ready(progress(http)):
            return
        time.sleep(0.2)
    raise RuntimeError(f"waited {_SECONDS} s for {what}: {progress(http)}")


if __name__ == "__main__":
    typer.run(main)
