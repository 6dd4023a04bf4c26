"""What we say to an archive, and what we make of its answers, against a small HTTP server that misbehaves as asked."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from bench.dicom_phantom import uid
from dicom.archive import Account, Archive, checked_url, is_uid
from loop.errors import BadInput, NotFound, Unavailable

Answer = tuple[int, dict[str, str], bytes]


class Responder:
    """Answers each request with what `answer` makes of its path and query; keeps the requests."""

    def __init__(self, answer: Callable[[str, dict[str, list[str]]], Answer]) -> None:
        self.answer, self.asked, self.headers = answer, list[str](), list[dict[str, str]]()
        responder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                responder.asked.append(self.path)
                responder.headers.append(dict(self.headers))
                status, headers, body = responder.answer(parts.path, parse_qs(parts.query))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/dicom-web"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def respond() -> Iterator[Callable[..., Responder]]:
    started: list[Responder] = []

    def start(answer: Callable[[str, dict[str, list[str]]], Answer]) -> Responder:
        started.append(Responder(answer))
        return started[-1]

    yield start
    for responder in started:
        responder.stop()


@pytest.fixture
def reach() -> Iterator[Callable[..., Archive]]:
    """Archives that pause for nothing, and are closed after the test."""
    opened: list[Archive] = []

    def open_one(url: str, account: Account | None = None, **settings: Any) -> Archive:
        opened.append(Archive(url, account, **{"pauses": (0.0, 0.0), "sleep": lambda seconds: None, **settings}))
        return opened[-1]

    yield open_one
    for archive in opened:
        archive.close()


def entry(number: int, **changes: Any) -> dict[str, Any]:
    found = {
        "0020000D": {"vr": "UI", "Value": [uid("study", number)]},
        "0020000E": {"vr": "UI", "Value": [uid("series", number)]},
        "00100020": {"vr": "LO", "Value": [f"P{number}"]},
        "00201209": {"vr": "IS", "Value": [number + 1]},
    }
    return found | changes


def listing(entries: list[dict[str, Any]], *, cap: int = 10**6, offsets: bool = True) -> Callable[..., Answer]:
    """QIDO-RS that lists these, at most `cap` at once; without `offsets` it always begins anew."""

    def answer(path: str, query: dict[str, list[str]]) -> Answer:
        start = int(query["offset"][0]) if offsets else 0
        page = entries[start : start + min(cap, int(query["limit"][0]))]
        return 200, {"Content-Type": "application/dicom+json"}, json.dumps(page).encode()

    return answer


def nothing(status: int) -> Callable[..., Answer]:
    return lambda path, query: (status, {}, b"")


@pytest.mark.parametrize("cap", [7, 100, 10**6])
def test_all_pages_are_read_however_many_come_at_once(
    respond: Callable[..., Responder], reach: Callable[..., Archive], cap: int
) -> None:
    server = respond(listing([entry(number) for number in range(100)], cap=cap))
    found = list(reach(server.url).series(["MR"]))
    assert [(series.patient_id, series.instances) for series in found] == [(f"P{k}", k + 1) for k in range(100)]


def test_an_archive_without_offsets_does_not_trap_us(
    respond: Callable[..., Responder], reach: Callable[..., Archive]
) -> None:
    server = respond(listing([entry(number) for number in range(20)], offsets=False))
    assert len(list(reach(server.url).series(["MR"]))) == 20


def test_conditions_and_modalities_are_sent(respond: Callable[..., Responder], reach: Callable[..., Archive]) -> None:
    server = respond(listing([]))
    assert list(reach(server.url + "/").series(["MR", "CT"], [("PatientID", "A&B*")])) == []
    asked = [parse_qs(urlsplit(path).query) for path in server.asked]
    assert [(query["Modality"], query["PatientID"]) for query in asked] == [(["MR"], ["A&B*"]), (["CT"], ["A&B*"])]


def test_hostile_entries_are_left_out_or_made_harmless(
    respond: Callable[..., Responder], reach: Callable[..., Archive]
) -> None:
    hostile = [
        {}, {"0020000E": 3}, {"0020000D": {"Value": [{}]}, "0020000E": {"Value": None}},
        entry(1, **{"0020000E": {"Value": ["../../etc/passwd"]}}), entry(2, **{"0020000D": {"Value": [".."]}}),
        entry(3, **{"00100020": {"Value": ["<script>\u0000\ud800" + "x" * 5000]}, "00201209": {"Value": ["many"]}}),
    ]  # fmt: skip
    server = respond(listing(hostile, offsets=False))
    (found,) = reach(server.url).series(["MR"])
    assert found.patient_id.startswith("<script>xxx")
    assert len(found.patient_id) == 200
    assert found.instances == 0


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(500, "answers 500"), (503, "answers 503"), (302, "answers 302"), (401, "USERNAME"), (403, "USERNAME")],
)
def test_trouble_is_told_and_passes(
    respond: Callable[..., Responder], reach: Callable[..., Archive], status: int, sentence: str
) -> None:
    server = respond(nothing(status))
    with pytest.raises(Unavailable, match=sentence) as caught:
        list(reach(server.url).series(["MR"]))
    assert caught.value.status == 503
    assert len(server.asked) == (3 if status >= 500 else 1)
    server.answer = listing([entry(1)])
    assert len(list(reach(server.url).series(["MR"]))) == 1


def test_it_is_tried_again_until_it_answers(respond: Callable[..., Responder], reach: Callable[..., Archive]) -> None:
    answers = [nothing(503), nothing(500), listing([entry(1)]), listing([])]
    server = respond(lambda path, query: answers.pop(0)(path, query))
    pauses: list[float] = []
    archive = reach(server.url, pauses=(0.5, 2.0), sleep=pauses.append)
    assert len(list(archive.series(["MR"]))) == 1
    assert pauses == [0.5, 2.0]


def test_an_archive_that_is_not_there_is_unavailable(
    respond: Callable[..., Responder], reach: Callable[..., Archive]
) -> None:
    server = respond(listing([]))
    url = server.url
    server.stop()
    with pytest.raises(Unavailable, match="cannot be reached"):
        list(reach(url).series(["MR"]))


def test_a_slow_archive_is_given_up(respond: Callable[..., Responder], reach: Callable[..., Archive]) -> None:
    released = threading.Event()

    def slow(path: str, query: dict[str, list[str]]) -> Answer:
        released.wait(30)
        return 200, {}, b"[]"

    server = respond(slow)
    with pytest.raises(Unavailable, match="cannot be reached"):
        list(reach(server.url, timeout=0.2, pauses=()).series(["MR"]))
    released.set()


@pytest.mark.parametrize("body", [b"<html>", b'{"a": 1}', b"[1]", b"\xff\xfe"])
def test_what_is_no_archive_is_told_as_such(
    respond: Callable[..., Responder], reach: Callable[..., Archive], body: bytes
) -> None:
    server = respond(lambda path, query: (200, {}, body))
    with pytest.raises(Unavailable, match="no DICOMweb archive"):
        list(reach(server.url).series(["MR"]))


def test_accounts(respond: Callable[..., Responder], reach: Callable[..., Archive]) -> None:
    server = respond(listing([]))
    list(reach(server.url, Account("me", "secret")).series(["MR"]))
    list(reach(server.url, Account("me", "secret", "token")).series(["MR"]))
    assert [headers["Authorization"] for headers in server.headers] == ["Basic bWU6c2VjcmV0", "Bearer token"]
    environment = {"MONAI_LABEL_DATASTORE_USERNAME": "old", "MONAI_LABEL_DICOMWEB_PASSWORD": "p"}
    assert Account.from_environment(environment) == Account("old", "p", "")


def multipart(parts: list[bytes], ending: bytes = b"--\r\n") -> Answer:
    body = b"".join(b"--frontier\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
    kind = 'multipart/related; type="application/dicom"; boundary="frontier"'
    return 200, {"Content-Type": kind}, body + b"--frontier" + ending


def test_instances_come_as_files(
    respond: Callable[..., Responder], reach: Callable[..., Archive], tmp_path: Path
) -> None:
    parts = [b"one\r\n\r\n--two", b"", bytes(range(256)) * 300]
    server = respond(lambda path, query: multipart(parts))
    files = reach(server.url).fetch("1.2", "1.2.3", tmp_path, most=10**6)
    assert [file.read_bytes() for file in files] == parts
    assert sorted(tmp_path.iterdir()) == files
    assert server.asked == ["/dicom-web/studies/1.2/series/1.2.3"]
    assert "transfer-syntax=*" in server.headers[0]["Accept"]


def test_what_cannot_be_fetched_says_why(
    respond: Callable[..., Responder], reach: Callable[..., Archive], tmp_path: Path
) -> None:
    server = respond(lambda path, query: multipart([b"x" * 1000]))
    archive = reach(server.url)
    with pytest.raises(BadInput, match="more than 0 MiB"):
        archive.fetch("1.2", "1.2.3", tmp_path, most=500)
    server.answer = lambda path, query: multipart([b"x"], ending=b"")
    with pytest.raises(BadInput, match="cut off"):
        archive.fetch("1.2", "1.2.3", tmp_path, most=500)
    server.answer = lambda path, query: (200, {"Content-Type": "text/html"}, b"hello")
    with pytest.raises(BadInput, match="text/html"):
        archive.fetch("1.2", "1.2.3", tmp_path, most=500)
    server.answer = nothing(404)
    with pytest.raises(NotFound):
        archive.fetch("1.2", "1.2.3", tmp_path, most=500)
    server.answer = nothing(500)
    with pytest.raises(Unavailable):
        archive.fetch("1.2", "1.2.3", tmp_path, most=500)
    server.answer = lambda path, query: (500 if "studies" in path else 200, {}, b"")
    with pytest.raises(BadInput, match="answers 500 when it is asked for it"):
        archive.fetch("1.2", "1.2.3", tmp_path, most=500)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://me:secret@host/dicom-web", "no name and password"),
        ("ftp://host", "like http"),
        ("http://", "like http"),
        ("http://host:port/", "like http"),
        ("http://[::1", "like http"),
        ("http://host/dicom-web?a=b", "like http"),
    ],
)
def test_addresses_that_are_none(url: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        checked_url(url)
    assert "secret" not in str(caught.value)


def test_uids() -> None:
    assert is_uid("1.2.840.10008.1.2.1")
    assert not any(map(is_uid, ["", "..", "1..2", "1/2", "1.2\n", "a", "1" * 65, ".1"]))
