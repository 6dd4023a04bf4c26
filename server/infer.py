"""POST /infer/{model}: a mask for the viewer, without stopping anybody else."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse, JSONResponse, Response
from monailabel.endpoints.user.auth import User
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder

from datastore.volume_io import suffix_of
from loop.errors import BadInput
from server.door import AnyUser, parse_params, parts, received
from server.session import session_image

router = APIRouter(prefix="/infer", tags=["Infer"])

# Predictions wait here, not in the pool of threads that all other requests share.
predictions = ThreadPoolExecutor(2, thread_name_prefix="infer")
_SETTABLE = ("result_extension", "result_dtype")


@router.post("/{model}", summary="Predict a mask")
async def infer(
    model: str,
    tasks: BackgroundTasks,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: Literal["image", "json", "all"] = "all",
    user: User = Depends(AnyUser),
) -> Response:
    """Of an image by id, of a session's image, or of an uploaded file.

    `params`: `result_extension` (.nrrd by default), `result_dtype`. The answer is multipart: the mask and
    `params.label_names` {name: value}; `output=image` sends the mask alone, `output=json` the params alone.
    """
    task = asyncio.get_running_loop().run_in_executor(predictions, _predict, model, image, session_id, params, file)
    path, answer = await task
    tasks.add_task(path.unlink, missing_ok=True)
    if output == "json":
        return JSONResponse(answer, background=tasks)
    if output == "image":
        return FileResponse(path, media_type=get_mime_type(str(path)), filename=path.name, background=tasks)
    with open(path, "rb") as mask:
        fields = {
            "params": (None, json.dumps(answer), "application/json"),
            "image": (path.name, mask, get_mime_type(str(path))),
        }
        message = MultipartEncoder(fields=fields)
        return Response(message.to_string(), media_type=message.content_type, background=tasks)


def _predict(
    model: str, image: str, session_id: str, params: str, file: UploadFile | None
) -> tuple[Path, dict[str, Any]]:
    task = parts().infer_task(model)
    wishes = parse_params(params)
    request = {key: wishes[key] for key in _SETTABLE if key in wishes}
    with ExitStack() as stack:
        if file is not None:
            source = stack.enter_context(received(file, suffix_of(file.filename or "image.nii.gz")))
        elif session_id:
            source = session_image(session_id)
        elif image:
            source = parts().datastore.readable_path(image)
        else:
            raise BadInput("Name an image by `image`, a session by `session_id`, or send a `file`.")
        path, answer = task({**request, "image": source})
    return Path(path), answer
