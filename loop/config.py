"""What a user can set with `--conf key value`, checked before anything starts."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from loop.errors import BadInput

DATASET_FILE = "nextslice.json"
"""A studies folder may describe itself: {"labels": [...], "patient_pattern": "..."}. --conf overrides it."""

_MOST_LABELS = 254
"""Masks are bytes, 0 is background, and 255 marks voxels that nobody annotated."""

BACKGROUND_STROKES = "background_strokes"
"""A viewer's 0 is "nothing drawn": with scribbles, strokes of background are a segment of this name."""

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def is_archive(studies: str) -> bool:
    """Whether studies are named by the address of a DICOMweb archive, and not by a folder."""
    return studies.startswith(("http://", "https://"))


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A configuration key: its default, its meaning, and what it may be."""
    return field(default=default, metadata=_described_as(help, choices, low, high))


def _described_as(
    help: str, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    return {"help": help, "choices": choices, "low": low, "high": high}


@dataclass(frozen=True)
class AppConfig:
    """All settings of an app. `from_conf` reads MONAI Label's string pairs; field metadata holds the help."""

    labels: tuple[str, ...] = setting(
        ("structure_1", "structure_2", "structure_3"),
        "names of the classes, comma separated, in the order of their values from 1; background is not named",
    )
    patient_pattern: str = setting(
        r"sub-[A-Za-z0-9]+|[Pp]atient[-_]?\d+",
        "regular expression; its match (or first group) in the image id names the patient; no match: every image its own",
    )
    unit: str = setting("slice", "what is asked for", choices=("slice", "volume"))
    axis: str = setting(
        "auto",
        "slice axis; auto is the axis of coarsest spacing, the last among equals",
        choices=("auto", "0", "1", "2"),
    )
    state: str = setting(
        "",
        "folder for records, submissions, models; empty is .nextslice in the studies folder, of an archive a folder in "
        "~/.local/share/nextslice",
    )
    store_url: str = setting("", "database URL (SQLAlchemy); empty is a SQLite file in the state folder")
    rescan_seconds: float = setting(
        30.0,
        "look for new images at least this often, besides file events; an archive that takes long, less often",
        low=1,
    )

    archive_modalities: tuple[str, ...] = setting(
        ("CT", "MR", "PT"), "of an archive: modalities of the series to take, comma separated"
    )
    archive_conditions: str = setting(
        "", "of an archive: more conditions of the search, as in an address: StudyDate=20240101-&PatientID=A*"
    )
    archive_cache_mb: int = setting(
        20480, "of an archive: MiB of fetched volumes kept in the state folder; the least recently used go first", low=1
    )
    archive_timeout: float = setting(30.0, "of an archive: seconds to wait for the next piece of an answer", low=0.1)
    returns: bool = setting(
        True, "of an archive: take DICOM SEGs that are stored there, by a viewer or a workstation, as labels"
    )
    returns_seconds: float = setting(
        5.0, "of an archive: look for new DICOM SEGs this often, besides those stored through this server", low=0.2
    )
    store_predictions: bool = setting(
        False, "of an archive: store the model's mask of each series that comes after the first model as a DICOM SEG"
    )
    start_mask: str = setting(
        "prediction",
        "of an archive: what OHIF begins with: annotations, the mask so far; prediction, the model's where there is none; off",
        choices=("off", "annotations", "prediction"),
    )

    strategy: str = setting("sb_max_entropy", "the default query strategy")
    parameters: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata=_described_as(
            "of strategies, one key each: STRATEGY.PARAMETER, such as bald.passes; `nextslice strategies` lists them"
        ),
    )
    cold_start: str = setting("spread", "opens the rounds while there is no model; must need none")
    random_serves_default: bool = setting(
        False, "answer requests for `random` with the default strategy (OHIF always asks for `random`)"
    )
    budget: int = setting(10, "items asked for in a round", low=1, high=1_000_000)
    slices_per_ticket: int = setting(4, "most slices of one image handed out at once", low=1)
    lease_minutes: float = setting(60.0, "how long an item stays with the annotator who asked for it", low=0.001)
    seed: int = setting(0, "seed of every random step", low=0)

    model: str = setting("auto", "network; auto is unet2d for slices and unet3d for volumes")
    nnunet: str = setting(
        "auto",
        "configuration of the model nnunet; auto is 2d for slices and 3d_fullres for volumes",
        choices=("auto", "2d", "3d_fullres"),
    )
    modality: str = setting(
        "auto",
        "what nnunet takes the images for when it plans; auto is ct where at least half of them reach down to -500",
        choices=("auto", "ct", "mr"),
    )
    spacing: tuple[float, ...] = setting(
        (), "resample to this spacing in mm, comma separated, along the model's axes; empty keeps the image's own"
    )
    patch: tuple[int, ...] = setting(
        (), "training patch in pixels or voxels, comma separated; empty is the largest case up to 256 (2D) or 96 (3D)"
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    gpus: str = setting(
        "1", "GPUs that train together, by one process each: a number, or auto for all; of the CPU, processes"
    )
    sweep_batch: int = setting(64, "most slices in one forward pass of a sweep or an inference", low=1)

    retrain: bool = setting(True, "retrain by itself when labels come in")
    retrain_after: int = setting(
        0, "retrain after this many newly labelled slices; 0: only when a round is done", low=0
    )
    retrain_when_round_done: bool = setting(True, "retrain when every item of the round is labelled or skipped")
    retrain_min_interval: float = setting(0.0, "seconds between two automatic trainings", low=0)
    train_from: str = setting("scratch", "where a training starts", choices=("scratch", "current"))
    epochs: int = setting(12, "training epochs", low=1)
    steps_per_epoch: int = setting(25, "optimiser steps in an epoch", low=1)
    batch_size: int = setting(
        0, "items in an optimiser step; 0 is the model's own: 8, and for nnunet what its plans say", low=0
    )
    learning_rate: float = setting(1e-2, "peak learning rate of AdamW", low=1e-8, high=1)
    patience: int = setting(
        0,
        "stop when the validation Dice was not better for so many epochs, and use the best epoch's weights; 0: never",
        low=0,
    )
    amp: str = setting(
        "auto", "half precision in training, on CUDA: bfloat16, or float16 on older devices", choices=("auto", "off")
    )
    compile: bool = setting(False, "train a network compiled by torch.compile, where a compiler is there")
    prepared_cache_mb: int = setting(
        4096, "MiB of preprocessed slices kept in the state folder for the next training; 0: none", low=0
    )
    previews: int = setting(
        200, "most images of which a prediction is made ahead and kept for people to see; 0: none", low=0
    )
    supervision: str = setting(
        "mask",
        "what annotators send: mask, every voxel of an annotated slice has its class; scribble, strokes, and the others stay "
        "unlabelled",
        choices=("mask", "scribble"),
    )
    unlabeled_value: int = setting(
        0, "with scribbles, the value of voxels without a stroke; 0 is the number of labels + 1", low=0, high=255
    )
    scribble_method: str = setting(
        "dual_branch",
        "with scribbles, what teaches the voxels without a stroke: dual_branch, a second decoder's opinion; partial_ce, nothing",
        choices=("dual_branch", "partial_ce"),
    )
    scribble_outside: bool = setting(
        True, "with scribbles, take some voxels outside strokes of background that enclose the others for background"
    )
    loss: str = setting(
        "dice_ce",
        "loss on annotated voxels; weighted_ce has inverse class frequencies",
        choices=("dice_ce", "ce", "weighted_ce"),
    )
    heads: tuple[str, ...] = setting(
        (),
        "auxiliary heads trained along with the network, comma separated, besides those that served strategies need",
        choices=("deal", "learning_loss"),
    )
    ensemble: int = setting(
        1,
        "networks trained in each training, the first of them for use and all to vote; at least as many as served "
        "strategies let vote",
        low=1,
        high=100,
    )
    representation_epochs: int = setting(
        0, "training epochs of representation learners; 0 is each learner's own number", low=0, high=1_000_000
    )
    validation_share: float = setting(
        0.2, "share of the patients whose labels validate and never train", low=0, high=0.9
    )

    share_paths: bool = setting(
        False, "tell viewers the image's path on the server, so that Slicer on the same machine opens it directly"
    )
    allow_model_upload: bool = setting(False, "let PUT and DELETE /model replace the network's weights")
    allow_reload: bool = setting(False, "let POST /reload rebuild the app")
    allow_logs: bool = setting(False, "serve the server's log at /logs/")
    max_upload_mb: int = setting(2048, "largest upload in MiB", low=1)
    cors_origins: tuple[str, ...] = setting(
        (), "origins of web pages that may call the server from a browser, comma separated"
    )

    @classmethod
    def from_conf(cls, conf: Mapping[str, str], studies: str, ignore: frozenset[str] = frozenset()) -> Self:
        """The configuration of a start: defaults, then the studies folder's own description, then `--conf`.

        Raises:
            BadInput: an unknown key (the right ones are listed), or a value that breaks its rule.
        """
        known = {spec.name: spec for spec in fields(cls)}
        values: dict[str, Any] = _described(studies)
        for key, text in conf.items():
            if key in ignore:
                continue
            strategy, dot, parameter = key.partition(".")
            if dot:
                values.setdefault("parameters", {}).setdefault(strategy, {})[parameter] = str(text)
                continue
            if key == "parameters":
                raise BadInput("Parameters of strategies are set one by one: --conf STRATEGY.PARAMETER value.")
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise BadInput(f"There is no configuration key {key!r}.{hint} Known: {', '.join(known)}.")
            values[key] = _parse(key, str(text), known[key].default)
        config = cls(**values)
        config.check()
        return config

    def check(self) -> None:
        """Raise BadInput for the first value that breaks its rule."""
        for spec in fields(self):
            value, rules = getattr(self, spec.name), spec.metadata
            for part in value if isinstance(value, tuple) else (value,):
                if rules["choices"] and part not in rules["choices"]:
                    raise BadInput(f"{spec.name} must be one of {', '.join(rules['choices'])}, got {part!r}.")
            _check_range(spec.name, value, rules["low"], rules["high"])
        if not re.fullmatch(r"auto|[1-9]\d{0,2}", self.gpus):
            raise BadInput(f"gpus must be auto or a number from 1 to 999, got {self.gpus!r}.")
        self._check_labels()
        try:
            re.compile(self.patient_pattern)
        except re.error as error:
            raise BadInput(
                f"patient_pattern must be a regular expression, got {self.patient_pattern!r}: {error}."
            ) from None

    def _check_labels(self) -> None:
        if not 1 <= len(self.labels) <= _MOST_LABELS:
            raise BadInput(f"labels must name 1 to {_MOST_LABELS} classes, got {len(self.labels)}.")
        if len(set(self.labels)) != len(self.labels) or "" in self.labels:
            raise BadInput(f"labels must be distinct and not empty, got {', '.join(self.labels)!r}.")
        if "background" in (name.lower() for name in self.labels):
            raise BadInput("labels must not name the background: it is value 0 and viewers count from 1.")

        if 0 < self.unlabeled_value <= len(self.labels):
            raise BadInput(
                f"unlabeled_value must be above the labels' values 1 to {len(self.labels)}, got {self.unlabeled_value}."
            )

    def label_values(self) -> dict[str, int]:
        """{name: voxel value}, in the order of the values."""
        return {name: value for value, name in enumerate(self.labels, 1)}

    def viewer_values(self) -> dict[str, int]:
        """As `label_values`, with the segment for strokes of background where scribbles are asked for."""
        mark = self.unlabeled()
        return self.label_values() | ({} if mark is None else {BACKGROUND_STROKES: mark})

    def unlabeled(self) -> int | None:
        """The value of voxels without a stroke; None where masks are asked for."""
        return (self.unlabeled_value or len(self.labels) + 1) if self.supervision == "scribble" else None

    def state_dir(self, studies: str) -> Path:
        """Where everything of ours lives; of an archive, in the user's home, under the address."""
        if self.state:
            return Path(self.state).resolve()
        if is_archive(studies):
            name = re.sub(r"[^A-Za-z0-9.]+", "-", studies.partition("://")[2])[:80].strip("-.")
            digest = hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:12]
            return Path.home() / ".local" / "share" / "nextslice" / f"{name}-{digest}"
        return Path(studies).resolve() / ".nextslice"

    def patient_of(self, image_id: str) -> str:
        """The patient that `patient_pattern` finds in the id, else the id itself."""
        match = re.search(self.patient_pattern, image_id)
        if not match:
            return image_id
        return match.group(1 if match.groups() else 0) or image_id

    def axis_of(self, spacing: Sequence[float]) -> int:
        """The slice axis: as configured, else that of coarsest spacing, the last among equals (within 1 %)."""
        if self.axis != "auto":
            return int(self.axis)
        coarsest = max(spacing)
        return max(axis for axis in range(3) if spacing[axis] >= 0.99 * coarsest)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_json, after JSON turned tuples into lists."""
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**known)


def _described(studies: str) -> dict[str, Any]:
    """labels and patient_pattern from the studies folder's own description, where it has one."""
    file = Path(studies) / DATASET_FILE
    if is_archive(studies) or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise BadInput(f"{file} must be JSON: {error}.") from None
    if not isinstance(found, dict):
        raise BadInput(f"{file} must be JSON with an object in it, got {type(found).__name__}.")
    values: dict[str, Any] = {}
    if "labels" in found:
        labels = found["labels"]
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            raise BadInput(f"labels must be a list of names in {file}, got {str(labels)[:100]}.")
        values["labels"] = tuple(labels)
    if "patient_pattern" in found:
        if not isinstance(found["patient_pattern"], str):
            raise BadInput(f"patient_pattern must be a string in {file}, got {str(found['patient_pattern'])[:100]}.")
        values["patient_pattern"] = found["patient_pattern"]
    return values


def _check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    """Raise BadInput unless low <= value <= high and it is finite; a bound of None is no bound."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"between {low} and {high}"
        raise BadInput(f"{name} must be {rule}, got {value!r}.")


def _parse(key: str, text: str, default: Any) -> Any:
    """The text in the type of the default."""
    if isinstance(default, bool):
        if text.lower() not in _TRUE | _FALSE:
            raise BadInput(f"{key} must be true or false, got {text!r}.")
        return text.lower() in _TRUE
    if isinstance(default, tuple):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        kind = {"spacing": float, "patch": int}.get(key, str)
        return tuple(_number(key, part, kind) if kind is not str else part for part in parts)
    if isinstance(default, int | float):
        return _number(key, text, type(default))
    return text


def _number(key: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise BadInput(f"{key} must be {'a whole number' if kind is int else 'a number'}, got {text!r}.") from None


def settings_from(conf: Iterable[str]) -> dict[str, str]:
    """Settings as they are typed, `key=value` each.

    Raises:
        BadInput: one has no "=".
    """
    pairs = [text.partition("=") for text in conf]
    if wrong := [text for text, equals, _ in pairs if not equals]:
        raise BadInput(f"--conf needs key=value, got {wrong[0]!r}.")
    return {key: value for key, _, value in pairs}
