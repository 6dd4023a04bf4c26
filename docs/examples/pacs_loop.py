"""A turn of the loop from outside: new studies, tickets, labels as DICOM SEG, a training, next tickets, a SEG in the archive.

    python pacs_loop.py --server http://127.0.0.1:8000 --archive http://127.0.0.1:8042/dicom-web

In place of an annotator it takes what is bright for the first structure. The archive's account is that of the server:
MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD, or _TOKEN. Needs httpx, dicomweb-client, highdicom and numpy.
"""

import argparse
import io
import json
import os
import time
from typing import Any

import highdicom as hd
import httpx
import numpy as np
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

ANNOTATOR = "threshold"
TRAINING_SECONDS = 1800
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""What highdicom wants of an instance, and some scanners and anonymisers leave out."""


def place(instance: Dataset) -> float:
    """Where an instance is along its series' normal: slice k of NextSlice is the k-th in this order."""
    row, column = np.array(instance.ImageOrientationPatient, float).reshape(2, 3)
    return float(np.cross(row, column) @ np.array(instance.ImagePositionPatient, float))


def annotate(instances: list[Dataset], label: str) -> bytes:
    """A DICOM SEG of the asked instances; a slice with nothing on it keeps its frame, and so says that it was looked at."""
    for instance in instances:
        for keyword in MAY_BE_EMPTY:
            instance.setdefault(keyword, "")
    pixels = np.stack([instance.pixel_array for instance in instances])
    mask = (pixels > pixels.mean() + pixels.std()).astype(np.uint8)
    segment = SegmentDescription(1, label, codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
    seg = Segmentation(
        instances, mask, hd.seg.SegmentationTypeValues.BINARY, [segment], hd.UID(), 300, hd.UID(), 1, "Example", "pacs_loop",
        "1", "0", omit_empty_frames=False, series_description="pacs_loop", content_creator_name="Threshold^Example",
    )  # fmt: skip
    file = io.BytesIO()
    seg.save_as(file)
    return file.getvalue()


def answer(response: httpx.Response) -> Any:
    """The JSON, or the server's sentence why not."""
    if response.is_error:
        raise SystemExit(
            f"{response.request.method} {response.request.url}: {response.status_code} {response.text[:500]}"
        )
    return response.json()


def turn(http: httpx.Client, archive: DICOMwebClient, tickets: int) -> None:
    known = answer(http.post("/al/studies"))
    print(f"The server knows {known['counts']['images']} series, {len(known['new'])} of them new.")

    asked = answer(http.post("/al/ask", json={"annotator": ANNOTATOR, "n": tickets}))
    if not asked["tickets"]:
        raise SystemExit(f"Nothing is asked for: {asked['reason']}")
    before = answer(http.get("/al/progress"))
    files, items = [], {}
    for ticket in asked["tickets"]:
        study = answer(http.get("/datastore/image/info", params={"image": ticket["image"]}))["StudyInstanceUID"]
        instances = sorted(archive.retrieve_series(study, ticket["image"]), key=place)
        print(f"{ticket['patient']}: slices {ticket['slices']}, because: {ticket['why']}")
        name = f"{ticket['ticket']}.dcm"
        files.append(("labels", (name, annotate([instances[k] for k in ticket["slices"]], before["labels"][0]))))
        items[name] = {"ticket": ticket["ticket"]}

    params = json.dumps({"client_id": ANNOTATOR, "items": items})
    told = answer(http.post("/al/tell", files=files, data={"params": params}))
    print(f"{told['saved']} labels were saved, {told['refused']} refused.")
    for result in told["results"]:
        if "error" in result:
            print(f"  {result['file']}: {result['error']}")

    http.post("/train/")  # the server trains by itself when its round is done; 429 says that it does already
    digest, until = (before["model"] or {}).get("digest"), time.monotonic() + TRAINING_SECONDS
    while (model := answer(http.get("/al/progress"))["model"]) is None or model["digest"] == digest:
        if time.monotonic() > until:
            raise SystemExit(f"No new model after {TRAINING_SECONDS} s; GET /train/ says why.")
        time.sleep(1)
    print(f"Model {model['digest']} is in use.")

    following = answer(http.post("/al/ask", json={"annotator": ANNOTATOR, "n": tickets}))
    print(f"Next: {[(one['patient'], one['slices']) for one in following['tickets']] or following['reason']}")
    image = asked["tickets"][0]["image"]
    stored = answer(http.post(f"/al/items/{image}/store", json={"what": "composite"}))
    print(f"The mask of {asked['tickets'][0]['patient']} is in the archive as series {stored['series']}.")


def connected(archive: str) -> DICOMwebClient:
    """The archive, with the account of the environment."""
    user, password, token = (
        os.environ.get(f"MONAI_LABEL_DICOMWEB_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN")
    )
    session = create_session_from_user_pass(user, password or "") if user and not token else create_session()
    return DICOMwebClient(archive, session, headers={"Authorization": f"Bearer {token}"} if token else None)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--server", default="http://127.0.0.1:8000")
    options.add_argument("--archive", default="http://127.0.0.1:8042/dicom-web")
    options.add_argument("--tickets", type=int, default=3)
    chosen = options.parse_args()
    with httpx.Client(base_url=chosen.server, timeout=600) as http:
        turn(http, connected(chosen.archive), chosen.tickets)


if __name__ == "__main__":
    main()
