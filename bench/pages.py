"""How fast and how heavy the pages are, by Chromium's own entries: `python -m bench.pages`."""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import typer

from bench import browser
from bench.live import Server
from bench.phantom import write_phantoms
from bench.screenshots import served
from bench.tables import table

_PAGES = ("/", "/worklist", "/map", "/annotate")
_DRAWING_SECONDS = 5.0
"""As long as somebody looks at a slice at the very least; meanwhile the page fetches the next volume."""

_MEASURE = """
const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .filter(e => !e.name.includes('/al/events'));
const own = all.filter(e => !new URL(e.name).pathname.startsWith('/al/') && !new URL(e.name).pathname.startsWith('/datastore'));
return {
  paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null,
  loaded: performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd,
  files: own.length, weight: own.reduce((sum, e) => sum + e.encodedBodySize, 0),
  requests: all.length - own.length,
  foreign: all.filter(e => new URL(e.name).origin !== location.origin && !e.name.startsWith('blob:')).length,
};
"""

_IS_OPEN = "return document.body.dataset.state === 'open'"
_TOOK = "return performance.getEntriesByName('submit to next').map(e => e.duration)"


def main(patients: int = 8, repeats: int = 7, submits: int = 6) -> None:
    """Open every page several times in a new window each, so that nothing is in the browser's cache; then hand in slices."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "phantoms", patients=patients, seed=1)
        with served(Path(folder) / "phantoms", {"retrain": "false", "slices_per_ticket": "1"}) as server:
            rows = []
            for path in _PAGES:
                found = [measured(server.url + path) for _ in range(repeats)]
                if None not in found:
                    rows.append(_row(path, [one for one in found if one]))
            handed_in = submit_to_next(server, submits)
    header = [
        "page",
        "first paint, ms",
        "document ready, ms",
        "files",
        "KiB of files",
        "REST requests",
        "foreign requests",
    ]
    typer.echo(table(f"Pages of a pool of {patients} phantoms, median of {repeats} cold loads", header, rows))
    shown = ", ".join(f"{took:.0f}" for took in handed_in)
    typer.echo(
        f"\nFrom Submit to the next slice on the screen, {_DRAWING_SECONDS:.0f} s after a slice was shown: "
        f"{statistics.median(handed_in):.0f} ms, median of {shown}. WebGL in software."
    )


def measured(url: str) -> dict[str, Any] | None:
    """Times and sizes of a page; None if the server has no such page."""
    with browser.browser() as driver:
        driver.get(url)
        if driver.execute_script("return document.contentType") != "text/html":
            return None
        browser.wait(driver, "the first paint", lambda: driver.execute_script(_MEASURE)["paint"])
        browser.wait(
            driver, "an end of loading", lambda: driver.execute_script("return document.readyState") == "complete"
        )
        return dict(driver.execute_script(_MEASURE))


def submit_to_next(server: Server, submits: int) -> list[float]:
    """Milliseconds, by the page's own entries, of so many slices with nothing on them."""
    with browser.browser() as driver:
        driver.get(server.url + "/style.css")  # same origin, so that the name is known before the page asks
        driver.execute_script("localStorage.setItem('nextslice.annotator', 'bench')")
        driver.get(server.url + "/annotate/next")
        browser.wait(driver, "an open ticket", lambda: driver.execute_script(_IS_OPEN))
        for number in range(1, submits + 1):
            time.sleep(_DRAWING_SECONDS)
            driver.find_element("id", "nothing").click()
            browser.wait(driver, "the next slice", partial(_has_shown, driver, number))
        return [float(took) for took in driver.execute_script(_TOOK)]


def _has_shown(driver: Any, slices: int) -> bool:
    return len(driver.execute_script(_TOOK)) >= slices


def _row(path: str, found: list[dict[str, Any]]) -> list[str]:
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return [
        path, f"{middle['paint']:.0f}", f"{middle['loaded']:.0f}", f"{middle['files']:.0f}", f"{middle['weight'] / 1024:.1f}",
        f"{middle['requests']:.0f}", f"{middle['foreign']:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
