"""/datastore: images and labels, in MONAI Label's paths."""

from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Query, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, JSONResponse
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import file_checksum, get_mime_type

from datastore.rules import FINAL, check_id, label_suffix
from datastore.volume_io import suffix_of
from loop.errors import BadInput, NotFound
from server.door import Admin, Annotator, AnyUser, annotator_of, parse_params, parts, received

router = APIRouter(prefix="/datastore", tags=["Datastore"])


@router.get("/", summary="All images and labels, or their counts")
def datastore(output: Literal["train", "stats", "all"] = "stats", user: User = Depends(AnyUser)) -> Any:
    """`all` has every image with its labels' names; `train` the annotated ones; `stats` the counts."""
    store = parts().datastore
    return {"all": store.json, "train": store.datalist, "stats": store.status}[output]()


@router.put("/", include_in_schema=False)
@router.put("/image", summary="Add a volume under a new id")
def add_image(
    file: Annotated[UploadFile, File()],
    image: str | None = None,
    params: Annotated[str, Form()] = "{}",
    user: User = Depends(Annotator),
) -> dict[str, str]:
    """The id defaults to the file's name. An id that exists answers 409: images are never overwritten."""
    info = parse_params(params)
    name = PureWindowsPath(file.filename or "").name  # MONAI Label's client sends whole paths, of its own system
    suffix = suffix_of(name)
    image_id = image if image else name[: -len(suffix)]
    check_id(image_id)
    with received(file, suffix) as path:
        return {"image": parts().datastore.add_image(image_id, str(path), info)}


@router.delete("/", include_in_schema=False)
@router.delete("/image", summary="Refused: images are never deleted")
def remove_image(id: str, user: User = Depends(Admin)) -> None:
    """404 for an unknown id, 403 for a known one."""
    parts().datastore.remove_image(id)


@router.head("/image", include_in_schema=False)
def check_image(image: str, check_sum: str | None = None, user: User = Depends(AnyUser)) -> None:
    """404 if there is no such image, or its content has another checksum."""
    path = parts().datastore.image_path(image)
    if check_sum:
        algorithm, _, digest = check_sum.rpartition(":")
        if (algorithm or "SHA256") not in ("SHA256", "SHA512", "MD5"):
            raise BadInput(
                f"check_sum must be SHA256:, SHA512: or MD5: and hexadecimal digits, got {check_sum[:40]!r}."
            )
        if file_checksum(path, algo=algorithm or "SHA256").rpartition(":")[2] != digest:
            raise NotFound(f"The image {image!r} has another checksum.")


@router.get("/image", summary="Download a volume")
def download_image(image: str, user: User = Depends(AnyUser)) -> FileResponse:
    """The file as it is in the studies folder; of an archive, the series as .nii.gz."""
    return _file(parts().datastore.image_path(image))


@router.get("/image/info", summary="Notes kept about an image")
def image_info(image: str, user: User = Depends(AnyUser)) -> dict[str, Any]:
    """What was written with PUT /datastore/image/info."""
    return parts().datastore.get_image_info(image)


@router.put("/image/info", summary="Add notes about an image")
def update_image_info(image: str, info: Annotated[str, Form()] = "{}", user: User = Depends(Annotator)) -> None:
    """A JSON object of notes; they have no influence on what is asked."""
    parts().datastore.update_image_info(image, parse_params(info))


@router.put("/label", summary="Submit a label")
def save_label(
    image: str,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = FINAL,
    user: User = Depends(Annotator),
) -> JSONResponse:
    """Checked, kept for ever, and counted; durable when this answers.

    `params`: `client_id` (who), `annotated_slices` (which slices this label answers for; default: those the open ticket
    asked for, else the whole volume), `ticket`, `label_info` (the viewer's names of the voxel values).
    """
    wishes = parse_params(params)
    slices, ticket = wishes.get("annotated_slices"), wishes.get("ticket")
    if slices is not None and not isinstance(slices, list):
        raise BadInput(f"annotated_slices must be a list of slice numbers, got {str(slices)[:40]!r}.")
    if ticket is not None and not isinstance(ticket, str):
        raise BadInput(f"ticket must be a ticket's id, got {str(ticket)[:40]!r}.")
    here = parts()
    annotator = annotator_of(user, wishes.get("client_id"))
    with received(label, label_suffix(label.filename or "label.nii.gz")) as path:
        kept = here.datastore.submit(
            image, path, annotator=annotator, tag=tag or FINAL, ticket=ticket, slices=slices, params=wishes
        )
    here.conductor.wake()
    # As a response, because FastAPI validates and writes a plain dict in one more thread.
    return JSONResponse(
        {"image": image, "label": image, "tag": tag or FINAL, **kept, "message": _thanks(image, kept["slices"])}
    )


def _thanks(image: str, slices: list[int]) -> str:
    shown = ", ".join(map(str, slices[:20])) + (" ..." if len(slices) > 20 else "")
    return f"Saved. Annotated slices of {image}: {shown or 'none'}."


@router.delete("/label", summary="Refused: labels are kept")
def remove_label(id: str, tag: str, user: User = Depends(Admin)) -> None:
    """404 for an unknown label, 403 for a known one."""
    parts().datastore.remove_label(id, tag)


@router.head("/label", include_in_schema=False)
def check_label(
    tag: str, label: str | None = None, image: Annotated[str | None, Query()] = None, user: User = Depends(AnyUser)
) -> None:
    """404 if there is no such label. MONAI Label's own name of the parameter is `image`; `label` is accepted too."""
    parts().datastore.label_file(label or image or "", tag)


@router.get("/label", summary="Download a composite mask")
def download_label(label: str, tag: str, user: User = Depends(AnyUser)) -> FileResponse:
    """`final`: every annotated slice from its newest submission. `original`: the same over the start mask, if one was sent."""
    return _file(parts().datastore.label_file(label, tag))


@router.get("/label/info", summary="Names of a mask's values, and notes")
def label_info(label: str, tag: str, user: User = Depends(AnyUser)) -> dict[str, Any]:
    """{"params": {"label_names": {name: value}}} and what was written with PUT /datastore/label/info."""
    return parts().datastore.get_label_info(label, tag)


@router.put("/updatelabelinfo", include_in_schema=False)
def update_label_info_by_params(
    label: str, tag: str, params: Annotated[str, Form()] = "{}", user: User = Depends(Annotator)
) -> None:
    """The older path of PUT /datastore/label/info."""
    parts().datastore.update_label_info(label, tag, parse_params(params))


@router.put("/label/info", summary="Add notes about a mask")
def update_label_info(
    label: str, tag: str, info: Annotated[str, Form()] = "{}", user: User = Depends(Annotator)
) -> None:
    """A JSON object of notes."""
    parts().datastore.update_label_info(label, tag, parse_params(info))


@router.get("/dataset", summary="Download the annotated images and masks as a ZIP")
def dataset(
    tasks: BackgroundTasks, limit_cases: Annotated[int | None, Query(ge=1)] = None, user: User = Depends(Annotator)
) -> FileResponse:
    """With annotated_slices.json: which slices of each mask are annotated."""
    path = Path(parts().datastore.get_dataset_archive(limit_cases))
    tasks.add_task(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")


def _file(path: Path) -> FileResponse:
    return FileResponse(path, media_type=get_mime_type(str(path)), filename=path.name)
