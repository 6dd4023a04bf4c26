"""/dicom-web: the configured archive through our server, and nothing else of it; a real Orthanc and a real server."""

import io
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest

from bench.dicom_phantom import Study, write_series
from bench.orthanc import Orthanc, missing
from dicom.stow import stored_in
from web.fetch import OHIF, PACKAGES

SHAPE = (6, 5, 4)


@pytest.fixture(scope="module")
def archive_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Two patients, one series each; the module's own, which its last test stops."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("proxy")
    with Orthanc(folder / "orthanc") as running:
        for patient in ("A", "B"):
            array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
            write_series(folder / patient, array, np.eye(4), Study(patient))
            running.upload(folder / patient)
        yield running


@pytest.fixture(scope="module")
def http(archive_of_two: Orthanc, tmp_path_factory: pytest.TempPathFactory, live_server: Any) -> Iterator[httpx.Client]:
    """Our server on that archive."""
    folder = tmp_path_factory.mktemp("server")
    settings = {
        "state": str(folder / "state"), "retrain": "false", "strategy": "random", "budget": "8", "archive_timeout": "5",
        "slices_per_ticket": "2",
    }  # fmt: skip

    def command(server: Any) -> list[str]:
        pairs = [part for key, value in settings.items() for part in ("--conf", key, value)]
        return [
            sys.executable,
            "-m",
            "cli",
            "serve",
            "--studies",
            archive_of_two.url,
            "--port",
            str(server.port),
            *pairs,
        ]

    server = live_server(folder, command=command).start()
    try:
        with server.client() as client:
            yield client
    finally:
        server.stop()


def related(*files: bytes) -> tuple[bytes, dict[str, str]]:
    """A STOW body and its header."""
    boundary = uuid.uuid4().hex
    parts = [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + b"\r\n" for file in files]
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), {"Content-Type": kind, "Accept": "application/dicom+json"}


def secondary(study: str, comment: str = "x") -> bytes:
    """Some small instance that is no image."""
    instance = pydicom.Dataset()
    instance.PatientID, instance.StudyInstanceUID, instance.SeriesInstanceUID = "A", study, pydicom.uid.generate_uid()
    instance.SOPClassUID, instance.SOPInstanceUID = pydicom.uid.RawDataStorage, pydicom.uid.generate_uid()
    instance.Modality, instance.TextValue = "OT", comment
    instance.file_meta = pydicom.dataset.FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    out = io.BytesIO()
    instance.save_as(out, enforce_file_format=True)
    return out.getvalue()


def studies(http: httpx.Client, **query: str) -> list[str]:
    found = http.get("/dicom-web/studies", params=query).json()
    return [one["0020000D"]["Value"][0] for one in found]


def test_a_search_keeps_its_conditions(http: httpx.Client) -> None:
    assert len(studies(http)) == 2
    assert len(studies(http, PatientID="A")) == 1
    assert (
        http.get("/dicom-web/studies", params={"PatientID": "A"})
        .headers["content-type"]
        .startswith("application/dicom+json")
    )


def test_accept_reaches_the_archive(http: httpx.Client) -> None:
    study = studies(http, PatientID="B")[0]
    pixels = f"/dicom-web/studies/{study}"
    whole = http.get(pixels, headers={"Accept": 'multipart/related; type="application/dicom"'})
    assert whole.headers["content-type"].startswith("multipart/related")
    assert b"DICM" in whole.content
    told = http.get(f"{pixels}/metadata", headers={"Accept": "application/dicom+json"}).json()
    assert len(told) == SHAPE[2]
    assert whole.headers["cache-control"] == "no-store"
    assert "sandbox" in whole.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "servers", "info", "", "../system", "..%2Fsystem", "%2e%2e/system", "studies/../servers", "studies/..%2f..%2fsystem",
        "/system", "studies//x", "http://127.0.0.1/", "studies/@x", "studies/%00", "tickets/x/servers", "rs/studies",
    ],
)  # fmt: skip
def test_nothing_else_of_the_archive_is_reached(http: httpx.Client, path: str) -> None:
    """Orthanc's DICOMweb address has more than images, and its own REST is beside it."""
    # As a raw path, because a client tidies dots away.
    url = http.base_url.copy_with(raw_path=f"/dicom-web/{path}".encode())
    assert http.get(url).status_code == 404
    assert http.post(url, content=b"").status_code in (403, 404)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_nothing_is_deleted_or_replaced(http: httpx.Client, method: str) -> None:
    study = studies(http, PatientID="A")[0]
    assert http.request(method, f"/dicom-web/studies/{study}").status_code == 405
    assert studies(http, PatientID="A") == [study]


def test_what_is_stored_is_in_the_archive(http: httpx.Client) -> None:
    study = studies(http, PatientID="A")[0]
    file = secondary(study, comment="long " * 400_000)  # more than a command may be
    body, headers = related(file)
    answer = http.post("/dicom-web/studies", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    uid = pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID
    assert stored_in(answer.content) == ((pydicom.uid.RawDataStorage, uid),)
    series = http.get(f"/dicom-web/studies/{study}/series", params={"Modality": "OT"}).json()
    assert len(series) == 1


def test_a_ticket_has_an_address_of_its_own(http: httpx.Client) -> None:
    ticket = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
    place = f"/dicom-web/tickets/{ticket['ticket']}"
    body, headers = related(secondary(studies(http)[0]))
    assert http.post(f"{place}/studies", content=body, headers=headers).status_code == 200
    assert len(http.get(f"{place}/studies").json()) == 2
    unknown = http.post("/dicom-web/tickets/nobody/studies", content=body, headers=headers)
    assert (unknown.status_code, "nobody" in unknown.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b"<x/>", b'{"00081199": {"Value": [{}]}}', b'{"00081199": 3}', b"[" * 99999]
)
def test_an_answer_that_names_nothing_is_nothing_stored(answer: bytes) -> None:
    assert stored_in(answer) == ()


def test_nothing_on_the_asked_slices_is_an_answer(http: httpx.Client) -> None:
    """Of a series that nobody has fetched yet."""
    ticket = http.post("/al/ask", json={"annotator": "nil"}).json()["tickets"][0]
    kept = http.post(f"/al/tickets/{ticket['ticket']}/nothing").json()
    assert kept["slices"] == ticket["slices"]
    items = http.get(f"/al/items/{ticket['image']}").json()
    assert [row["annotator"] for row in items["submissions"]] == ["nil"]
    assert [row["slice"] for row in items["slices"] if row["state"] == "labeled"] == ticket["slices"]
    again = http.post(f"/al/tickets/{ticket['ticket']}/nothing")
    assert (again.status_code, "submitted" in again.json()["detail"]) == (409, True)
    assert http.post("/al/tickets/unknown/nothing").status_code == 404


def test_a_ticket_leads_to_its_slice_in_ohif(http: httpx.Client) -> None:
    ticket = http.post("/al/ask", json={"annotator": "link"}).json()["tickets"][0]
    led = http.get(f"/al/tickets/{ticket['ticket']}/ohif", follow_redirects=False)
    assert led.status_code == 307
    query = httpx.URL(led.headers["location"]).params
    told = http.get(f"/al/tickets/{ticket['ticket']}").json()
    assert told["ohif"] == led.headers["location"]
    assert told["sop_instances"][0] == query["initialSopInstanceUID"]
    assert (query["ticket"], query["initialSeriesInstanceUID"]) == (ticket["ticket"], ticket["image"])
    listed = http.get("/al/worklist", params={"annotator": "link"}).json()["entries"]
    assert {entry["links"]["ohif"] for entry in listed} == {f"/al/tickets/{ticket['ticket']}/ohif"}
    sample = http.post("/activelearning/random", json={"client_id": "link"}).json()
    assert sample["RetrieveURL"] == sample["ask"]["ohif"] == told["ohif"]


def test_an_archive_that_is_down_is_told_and_passes(http: httpx.Client, archive_of_two: Orthanc) -> None:
    """Last, because it stops the module's archive; a connection that was kept is dead then, and a search goes on all the same."""
    study = studies(http, PatientID="A")[0]
    archive_of_two.stop()
    body, headers = related(secondary(study))
    for answer in (http.get("/dicom-web/studies"), http.post("/dicom-web/studies", content=body, headers=headers)):
        assert answer.status_code == 503
        assert "does not answer" in answer.json()["detail"]
    archive_of_two.start()
    assert study in studies(http)
    assert http.post("/dicom-web/studies", content=body, headers=headers).status_code == 200


def test_a_folder_has_no_archive(demo: Path, serve: Callable[..., Any]) -> None:
    """One server on files: no proxy, no OHIF for tickets, but "nothing here" and the pages of OHIF themselves."""
    with serve(demo, retrain="false", strategy="random", budget="4").client() as http:
        assert http.get("/dicom-web/studies").status_code == 404
        assert http.post("/dicom-web/studies").status_code == 404
        ticket = http.post("/al/ask", json={"annotator": "ann"}).json()["tickets"][0]
        assert "ohif" not in ticket
        assert http.get(f"/al/tickets/{ticket['ticket']}/ohif").status_code == 409
        assert http.post(f"/al/tickets/{ticket['ticket']}/nothing").json()["slices"] == ticket["slices"]
        check_the_pages(http)


def check_the_pages(http: httpx.Client) -> None:
    stock = http.get("/ohif-monailabel/monai-label")
    assert b"/ohif-monailabel/app.bundle" in stock.content
    assert b'"/ohif/' not in stock.content
    config = http.get("/ohif-monailabel/app-config.js").text
    assert "routerBasename: '/ohif-monailabel/'" in config
    assert "wadoRoot: '/dicom-web'" in config
    page = http.get("/ohif/segmentation", params={"ticket": "x"})
    if not (PACKAGES / OHIF.folder).is_dir():
        assert (page.status_code, "make web/packages/fetched" in page.json()["detail"]) == (404, True)
        return
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script>" not in page.text
    bundle = page.text.split('src="/ohif/app.bundle.')[1].split('"')[0]
    sent = http.get(f"/ohif/app.bundle.{bundle}")
    assert sent.headers["content-encoding"] == "gzip"
    assert sent.headers["content-type"].startswith("text/javascript")
    again = http.get(f"/ohif/app.bundle.{bundle}", headers={"If-None-Match": sent.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = http.get(f"/ohif/app.bundle.{bundle}", headers={"Accept-Encoding": "identity"})
    assert plain.content == sent.content
    assert http.get("/ohif/nextslice/app-config.js").text.count("/dicom-web") >= 2
    assert http.get("/ohif/nextslice/..%2f..%2ffetch.py").status_code == 404
    assert http.get("/ohif/missing.js").status_code == 404
    for path in ("/ohif/..%2fniivue%2findex.js", "/ohif/%2e%2e/%2e%2e/fetch.py", "/ohif/%00.js"):
        assert http.get(http.base_url.copy_with(raw_path=path.encode())).status_code == 404
