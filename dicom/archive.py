"""A DICOMweb archive over HTTP: which series it has, and their instances as files. It may be slow, refuse, or be down."""

import hashlib
import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx

from loop.errors import BadInput, NotFound, Unavailable

logger = logging.getLogger(__name__)
# It logs every address it asks, and a search may name a patient.
logging.getLogger("httpx").setLevel(logging.WARNING)

Result = TypeVar("Result")


class NotGiven(BadInput):
    """The archive did not give a series that it lists, though it is well otherwise; another time it may."""


AS_STORED, PLAIN = "*", "1.2.840.10008.1.2.1"
"""Transfer syntaxes to ask for: as the archive has it, or uncompressed."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECT_SECONDS = 5.0
_PAGE = 500
_PIECE = 1 << 20
_LARGEST_PAGE = 64 << 20
_WANTED = ("NumberOfSeriesRelatedInstances", "StudyDate", "StudyTime", "PatientID", "Modality", "SeriesDescription")
_TAGS = {
    "PatientID": "00100020", "Modality": "00080060", "StudyDate": "00080020", "StudyTime": "00080030",
    "SeriesDescription": "0008103E", "RetrieveURL": "00081190", "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E", "NumberOfSeriesRelatedInstances": "00201209",
}  # fmt: skip
_UID = re.compile(r"[0-9.]{1,64}")
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Account:
    """How we show the archive who we are: name and password, or a bearer token; all empty is nobody."""

    user: str = ""
    password: str = ""
    token: str = ""

    @property
    def credentials(self) -> tuple[tuple[str, str] | None, dict[str, str]]:
        """What to log in with, and the headers to send."""
        login = (self.user, self.password) if self.user and not self.token else None
        return login, {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Secrets are no settings, because every user of the machine sees a command line."""

        def first(*names: str) -> str:
            return next((environment[name] for name in names if environment.get(name)), "")

        return cls(
            first("MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DATASTORE_USERNAME"),
            first("MONAI_LABEL_DICOMWEB_PASSWORD", "MONAI_LABEL_DATASTORE_PASSWORD"),
            first("MONAI_LABEL_DICOMWEB_TOKEN"),
        )


@dataclass(frozen=True)
class ListedSeries:
    """A series as the archive's list has it; nothing of it was looked at.

    Attributes:
        instances: how many there are; 0 where the archive does not say.
        facts: what viewers are told of it, under DICOM's names.
    """

    study_uid: str
    series_uid: str
    patient_id: str
    instances: int
    facts: Mapping[str, str]


class Archive:
    """The archive at a DICOMweb address.

    Args:
        url: such as http://127.0.0.1:8042/dicom-web.
        timeout: seconds to wait for the next piece of an answer.
        pauses: seconds before each further try, when the archive is not reached or is in trouble.

    Raises:
        BadInput: the address is none, or has a password in it.
    """

    def __init__(
        self,
        url: str,
        account: Account | None = None,
        *,
        timeout: float = 30.0,
        pauses: Sequence[float] = (0.2, 1.0),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self._pauses, self._sleep = checked_url(url), pauses, sleep
        login, headers = (account or Account()).credentials
        timeouts = httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
        self._http = httpx.Client(timeout=timeouts, auth=login, headers=headers)

    def close(self) -> None:
        self._http.close()

    def series(self, modalities: Sequence[str], conditions: Sequence[tuple[str, str]] = ()) -> Iterator[ListedSeries]:
        """Every series of these modalities, page by page: archives give as many at once as they like.

        Args:
            conditions: further ones, as QIDO-RS names them, such as ("StudyDate", "20240101-").

        Raises:
            Unavailable: the archive is down, or refuses. BadInput: it does not understand the conditions.
        """
        for modality in modalities:
            seen: set[str] = set()
            while True:
                before = len(seen)
                for entry in self._page(modality, conditions, offset=before):
                    found = _listed(entry)
                    if found is None:
                        logger.warning("The archive lists a series without usable UIDs, which is left out")
                    elif found.series_uid not in seen:
                        yield found
                    seen.add(found.series_uid if found else repr(entry))
                # Not by the size of the page: some archives cap it; others know no offset, and begin again.
                if len(seen) == before:
                    break

    def _page(self, modality: str, conditions: Sequence[tuple[str, str]], offset: int) -> list[dict[str, Any]]:
        query = [("Modality", modality), *conditions, ("limit", str(_PAGE)), ("offset", str(offset))]
        return self.search("/series", query + [("includefield", name) for name in _WANTED])

    def search(self, path: str, query: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """One answer to a search, in DICOM's JSON form; archives may leave some of it for the next page.

        Args:
            path: such as /series or /studies/UID/series/UID/instances.

        Raises:
            Unavailable: the archive is down, or refuses. BadInput: it does not understand the query.
        """

        def listed(answer: httpx.Response) -> list[dict[str, Any]]:
            if answer.status_code == 204:
                return []
            body = bytearray()
            for piece in answer.iter_bytes(_PIECE):
                body += piece
                if len(body) > _LARGEST_PAGE:
                    raise Unavailable(
                        f"The archive {self.url} answers a search with more than {_LARGEST_PAGE >> 20} MiB."
                    )
            try:
                found = httpx.Response(200, content=bytes(body)).json() if body else []
            except ValueError:
                found = None
            if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
                raise Unavailable(
                    f"What answers at {self.url} is no DICOMweb archive: it lists no {path.rpartition('/')[2]}."
                )
            return found

        return self._get(path, query, "application/dicom+json", listed)

    def fetch(
        self, study_uid: str, series_uid: str, folder: Path, *, most: int, syntax: str = AS_STORED, sop_uid: str = ""
    ) -> list[Path]:
        """The instances of a series, as one file each in a folder.

        Args:
            most: bytes, of all together.
            syntax: the transfer syntax to ask for.
            sop_uid: of the only instance that is wanted.

        Raises:
            Unavailable: the archive is down, or refuses. NotFound: it has no such series, or instance, any more.
            NotGiven: it is well, but not this one is given. BadInput: it has more than `most`.
        """
        body = folder / "body"

        def kept(answer: httpx.Response) -> str:
            size = 0
            with open(body, "wb") as out:
                for piece in answer.iter_bytes(_PIECE):
                    size += len(piece)
                    if size > most:
                        raise BadInput(f"it has more than {most >> 20} MiB.")
                    out.write(piece)
            return str(answer.headers.get("content-type", ""))

        path = f"/studies/{study_uid}/series/{series_uid}" + (f"/instances/{sop_uid}" if sop_uid else "")
        accept = f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'
        try:
            boundary = _boundary(self._get(path, [], accept, kept, of_one=True))
            return _split(body, boundary, folder)
        finally:
            body.unlink(missing_ok=True)

    def store(self, study_uid: str, content: bytes) -> None:
        """Store an instance; one that is there already stays as it is, so that this may be tried again.

        Args:
            content: of its file.

        Raises:
            Unavailable: the archive is down, or lets nobody store. BadInput: it refuses this instance.
        """
        boundary = hashlib.sha256(content).hexdigest()
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        sent = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        body = head + content + f"\r\n--{boundary}--\r\n".encode()
        trouble = ""
        for pause in (*self._pauses, None):
            try:
                answer = self._http.post(f"{self.url}/studies/{study_uid}", content=body, headers=sent)
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble = f"cannot be reached ({str(error) or type(error).__name__})"
            else:
                if answer.status_code in (200, 202):
                    return
                trouble = f"answers {answer.status_code} when it is to store an instance"
                if answer.status_code in (401, 403, 405):
                    break
                if answer.status_code not in _PASSING:
                    raise BadInput(f"The archive {self.url} {trouble}: {answer.text[:200]!r}")
            if pause is not None:
                self._sleep(pause)
        raise Unavailable(f"The archive {self.url} {trouble}. Nothing was stored there; try again later.")

    def check(self) -> None:
        """Raise Unavailable unless the archive answers a search."""
        self._get("/series", [("limit", "1")], "application/dicom+json", lambda answer: None, pauses=())

    def _get(
        self,
        path: str,
        query: Sequence[tuple[str, str]],
        accept: str,
        into: Callable[[httpx.Response], Result],
        *,
        of_one: bool = False,
        pauses: Sequence[float] | None = None,
    ) -> Result:
        """What `into` makes of the answer; asked again after each of the pauses.

        Args:
            of_one: trouble may be that of the one series that is asked for.
        """
        # Orthanc takes an encoded * for a letter.
        address = f"{self.url}{path}" + (f"?{urlencode(list(query), safe='*')}" if query else "")
        for pause in (*(self._pauses if pauses is None else pauses), None):
            status = None
            try:
                with self._http.stream("GET", address, headers={"Accept": accept}) as answer:
                    status = answer.status_code
                    if status < 300:
                        return into(answer)
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble = f"cannot be reached ({str(error) or type(error).__name__})"
            else:
                trouble = f"answers {status}"
                if status in (401, 403):
                    raise Unavailable(
                        f"The archive {self.url} does not let us in ({status}): set MONAI_LABEL_DICOMWEB_USERNAME and "
                        "MONAI_LABEL_DICOMWEB_PASSWORD, or MONAI_LABEL_DICOMWEB_TOKEN."
                    )
                if status not in _PASSING:
                    break
            if pause is not None:
                self._sleep(pause)
        if of_one and status is not None:
            if status in (404, 410):
                raise NotFound("the archive has it no more.")
            self.check()  # it is well otherwise
            raise NotGiven(f"the archive {trouble} when it is asked for it.")
        if status == 400:
            raise BadInput(f"The archive {self.url} does not understand the search (400): look at archive_conditions.")
        raise Unavailable(f"The archive {self.url} {trouble}. What needs it goes on when it is back.")


def checked_url(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        BadInput: none of http or https, or one with a name and password in it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        secret = parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError:
        usable, secret = False, False
    if secret:
        raise BadInput(
            "An archive's address must have no name and password in it, for everybody would see them: set "
            "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD."
        )
    if not usable:
        raise BadInput(f"An archive's address must be like http://127.0.0.1:8042/dicom-web, got {url[:200]!r}.")
    return url.rstrip("/")


def is_uid(text: str) -> bool:
    """Whether a text is a UID: digits and dots only, safe as a file's name."""
    return bool(_UID.fullmatch(text)) and ".." not in text and not text.startswith(".")


def _listed(entry: Mapping[str, Any]) -> ListedSeries | None:
    facts = {name: text_of(entry, tag) for name, tag in _TAGS.items()}
    study, series = facts["StudyInstanceUID"], facts["SeriesInstanceUID"]
    count = facts.pop("NumberOfSeriesRelatedInstances")
    if not is_uid(study) or not is_uid(series):
        return None
    number = int(count) if re.fullmatch(r"[0-9]{1,6}", count) else 0
    return ListedSeries(study, series, facts["PatientID"], number, facts)


def text_of(entry: Mapping[str, Any], tag: str) -> str:
    """The first value of an element of DICOM's JSON form, as text without control characters; "" where there is none."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    value = values[0] if isinstance(values, list) and values else ""
    if not isinstance(value, str | int | float):
        return ""
    shown = "".join(character for character in str(value) if character.isprintable())
    return shown.strip()[:_LONGEST_TEXT]


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_maintype() != "multipart" or not isinstance(boundary, str):
        raise NotGiven(f"the archive gives {content_type[:100]!r} for it, not its instances.")
    return boundary.encode()


def _split(body: Path, boundary: bytes, folder: Path) -> list[Path]:
    """The parts of a multipart body, a file each."""
    files: list[Path] = []
    if not body.stat().st_size:
        return files
    mark = b"--" + boundary
    with open(body, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        at = held.find(mark)
        while at >= 0:
            start = at + len(mark)
            if held[start : start + 2] == b"--":
                return files
            end = held.find(b"\r\n" + mark, start)
            head = held.find(b"\r\n\r\n", start, end)
            if end < 0 or head < 0:
                break
            files.append(folder / f"{len(files):06d}.dcm")
            files[-1].write_bytes(held[head + 4 : end])
            at = end + 2
    raise NotGiven("the archive's answer for it is cut off.")
