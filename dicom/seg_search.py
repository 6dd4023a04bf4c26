"""Which DICOM SEGs are in an archive: by search in any, and by the change feed of an Orthanc, which costs it nothing.

An Orthanc deletes them too.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from dicom.archive import Account, Archive, is_uid, text_of
from dicom.seg_reader import SEG_CLASSES
from loop.errors import Unavailable

logger = logging.getLogger(__name__)

_SOP, _STUDY, _SERIES = "00080018", "0020000D", "0020000E"
_CHANGES = 500
_PAGE = 200
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class FoundSeg:
    """Where a SEG is."""

    study_uid: str
    series_uid: str
    sop_uid: str


def search_segs(archive: Archive, known: Mapping[str, int]) -> Iterator[FoundSeg]:
    """The SEGs of every series that has another number of instances than is known; some of them may be known.

    Args:
        known: {series UID: how many of its instances were seen}.

    Raises:
        Unavailable, BadInput: as `Archive.series`.
    """
    for series in archive.series(["SEG"]):
        if series.instances and known.get(series.series_uid) == series.instances:
            continue
        path, seen = f"/studies/{series.study_uid}/series/{series.series_uid}/instances", set[str]()
        while True:
            before = len(seen)
            for entry in archive.search(path, [("limit", str(_PAGE)), ("offset", str(before))]):
                sop = text_of(entry, _SOP)
                if is_uid(sop) and sop not in seen:
                    yield FoundSeg(series.study_uid, series.series_uid, sop)
                seen.add(sop)
            if len(seen) == before:
                break


def find_seg(archive: Archive, sop_uid: str) -> FoundSeg | None:
    """Where an instance is; None if the archive has none of this UID. Raises as `Archive.search`."""
    for entry in archive.search("/instances", [("SOPInstanceUID", sop_uid)]):
        found = FoundSeg(text_of(entry, _STUDY), text_of(entry, _SERIES), text_of(entry, _SOP))
        if found.sop_uid == sop_uid and is_uid(found.study_uid) and is_uid(found.series_uid):
            return found
    return None


class OrthancFeed:
    """The change feed of the Orthanc whose DICOMweb is at an address: what came in, in order.

    Args:
        url: of DICOMweb; Orthanc's own address is what is above it.
    """

    def __init__(self, url: str, account: Account | None = None, *, timeout: float = 30.0) -> None:
        self.root = url.rpartition("/")[0]
        login, headers = (account or Account()).credentials
        timeouts = httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
        self._http = httpx.Client(timeout=timeouts, auth=login, headers=headers)

    def close(self) -> None:
        self._http.close()

    def last(self) -> int | None:
        """Number of the last change; None where no Orthanc answers to us at this address, or not now."""
        try:
            answer = self._ask("GET", "/changes?last")
        except Unavailable:
            return None
        return None if answer is None else _position(answer)

    def since(self, position: int) -> tuple[list[FoundSeg], int, bool]:
        """(the SEGs that came in after a change, the number to go on from, whether that is all for now).

        Raises:
            Unavailable: it is down, or tells no changes any more.
        """
        answer = self._ask("GET", f"/changes?since={position}&limit={_CHANGES}")
        to = None if answer is None else _position(answer)
        if answer is None or to is None:
            raise Unavailable(f"The Orthanc at {self.root} tells no changes any more.")
        if to < position:  # its database was made anew: what it holds now is looked through once
            return [], 0, False
        changes = answer.get("Changes")
        ids = [
            change["ID"]
            for change in (changes if isinstance(changes, list) else [])
            if isinstance(change, dict)
            and change.get("ChangeType") == "NewInstance"
            and isinstance(change.get("ID"), str)
        ]
        return self._segs(list(dict.fromkeys(ids))), to, bool(answer.get("Done", True))

    def delete(self, sop_uid: str) -> bool:
        """Delete an instance; whether it is gone. DICOMweb has no such request, so only an Orthanc is asked.

        Raises:
            Unavailable: it is down.
        """
        try:
            found = self._http.post(f"{self.root}/tools/lookup", content=sop_uid)
            known = found.json() if found.status_code == 200 else []
            if not isinstance(known, list):
                return False
            ids = [one["ID"] for one in known if isinstance(one, dict) and one.get("Type") == "Instance"]
            return bool(ids) and all(
                self._http.delete(f"{self.root}/instances/{one}").status_code in (200, 404) for one in ids
            )
        except httpx.HTTPError as error:
            raise self._down(error) from None
        except (ValueError, KeyError):
            return False

    def _segs(self, ids: list[str]) -> list[FoundSeg]:
        """Of these instances, in Orthanc's ids, the SEGs; those that are gone again are left out."""
        if not ids:
            return []
        told = self._ask("POST", "/tools/bulk-content", {"Resources": ids, "Metadata": True})
        if not isinstance(told, list):
            raise Unavailable(f"The Orthanc at {self.root} does not tell what came in (tools/bulk-content).")
        found = []
        for one in told:
            if one.get("Metadata", {}).get("SopClassUid") not in SEG_CLASSES:
                continue
            sop = str(one.get("MainDicomTags", {}).get("SOPInstanceUID", ""))
            study, series = (self._text(f"/instances/{one['ID']}/content/{tag}") for tag in ("0020-000d", "0020-000e"))
            if all(map(is_uid, (sop, study, series))):
                found.append(FoundSeg(study, series, sop))
        return found

    def _text(self, path: str) -> str:
        try:
            answer = self._http.get(self.root + path)
        except httpx.HTTPError as error:
            raise self._down(error) from None
        return answer.text.strip("\0 ") if answer.status_code == 200 else ""

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers as JSON; None if that is no answer of an Orthanc that lets us in."""
        try:
            answer = self._http.request(method, self.root + path, json=body)
        except httpx.HTTPError as error:
            raise self._down(error) from None
        if answer.status_code >= 500:
            raise Unavailable(f"The Orthanc at {self.root} answers {answer.status_code}.")
        if answer.status_code != 200:
            return None
        try:
            return answer.json()
        except ValueError:
            return None

    def _down(self, error: httpx.HTTPError) -> Unavailable:
        return Unavailable(f"The archive at {self.root} cannot be reached ({str(error) or type(error).__name__}).")


def _position(answer: Any) -> int | None:
    """The number of the last change of an answer; None if it is none of an Orthanc's."""
    if not isinstance(answer, dict) or not isinstance(answer.get("Changes"), list):
        return None
    last = answer.get("Last")
    return last if isinstance(last, int) and not isinstance(last, bool) and last >= 0 else None
