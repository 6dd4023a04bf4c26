"""Whether the learned metric does what it is for: slices of one patient closer to each other than to other patients'."""

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench.phantom import write_phantoms
from bench.tables import table
from datastore.volume_io import read_volume
from infers.engine import pick_device
from loop.signals import FloatArray
from models.contrastive import CONTRASTIVE
from models.representation import Representation, slices_of
from models.weights import load_into
from trainers import contrastive
from trainers.representation import RepresentationSettings, Slices

_ACDC = Path(__file__).parents[2] / "shared" / "data" / "acdc" / "images"
_AXIS = 2
"""The slice axis of all the data here."""


def volumes_by_patient(folder: Path) -> dict[str, list[Path]]:
    """{patient: its volumes}, both in order of their names."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("patient*.nii.gz")):
        if match := re.match(r"patient\d+", file.name):
            found.setdefault(match.group(), []).append(file)
    return found


def read_slices(learner: Representation, patients: Sequence[Sequence[Path]]) -> Slices:
    """All slices of these patients' volumes."""
    data, volume, patient, position = [], list[int](), list[int](), list[int]()
    for number, files in enumerate(tqdm(patients, desc="read", unit="patient", disable=None)):
        for file in files:
            data.append(slices_of(read_volume(file).array, _AXIS, learner.size))
            n = len(data[-1])
            volume += [len(data) - 1] * n
            patient += [number] * n
            position += range(n)
    volumes, owners, positions = (np.array(values, np.int64) for values in (volume, patient, position))
    return Slices(torch.cat(data), volumes, owners, positions, np.zeros(len(volumes), bool))


def features_of(network: torch.nn.Module, slices: Slices, device: torch.device) -> FloatArray:
    """(N, D) what the signals of the metric are made of."""
    network = network.to(device).eval()
    with torch.inference_mode():
        found: FloatArray = torch.cat(
            [network(part.to(device)).float().cpu() for part in slices.data.split(64)]
        ).numpy()
    return found


def mean_distances(features: FloatArray, slices: Slices) -> dict[str, float]:
    """Mean Euclidean distance of two slices: of one volume, of two volumes of one patient, of two patients; NaN if none."""
    distances = torch.cdist(torch.from_numpy(features).double(), torch.from_numpy(features).double()).numpy()
    same_volume, same_patient = (n[:, None] == n for n in (slices.volume, slices.patient))
    pairs = np.triu(np.ones_like(same_volume), 1)
    chosen = {
        "volume": same_volume & pairs,
        "patient": same_patient & ~same_volume & pairs,
        "other": ~same_patient & pairs,
    }
    return {name: float(distances[mask].mean()) if mask.any() else float("nan") for name, mask in chosen.items()}


def row_of(name: str, distances: dict[str, float]) -> list[str]:
    """Distances, and those within as a share of those between patients."""
    volume, patient, other = (distances[key] for key in ("volume", "patient", "other"))
    return [name, *(f"{d:.3g}" for d in (volume, patient, other)), f"{volume / other:.2f}", f"{patient / other:.2f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on some patients, measure there and on as many others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=_ACDC, help="a folder of patient<number>*.nii.gz")
    parser.add_argument("--patients", type=int, default=10, help="to train on; as many others are only measured")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=CONTRASTIVE.size[0], help="pixels along a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(arguments)
    learner, device = replace(CONTRASTIVE, size=(args.size, args.size)), pick_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        if args.images.is_dir():
            name, images = args.images.parent.name, args.images
        else:
            name, images = "phantoms", Path(folder) / "images"
            write_phantoms(Path(folder), patients=2 * args.patients, volumes_per_patient=2)
        patients = list(volumes_by_patient(images).values())[: 2 * args.patients]
        parts = {
            "trained on": read_slices(learner, patients[: args.patients]),
            "others": read_slices(learner, patients[args.patients :]),
        }
    network = learner.network(args.seed)
    rows = [row_of(f"{part}, before", mean_distances(features_of(network, s, device), s)) for part, s in parts.items()]
    slices = parts["trained on"]
    began = time.perf_counter()
    settings = RepresentationSettings(args.epochs, args.seed)
    load_into(network, contrastive.train(learner, slices, settings, device, lambda **progress: None), learner.name)
    seconds = time.perf_counter() - began
    rows += [row_of(f"{part}, after", mean_distances(features_of(network, s, device), s)) for part, s in parts.items()]
    title = (
        f"Mean distance of two slices, {name}: {args.epochs} epochs on {len(slices)} slices of {args.patients} patients at "
        f"{args.size} x {args.size}, {seconds:.0f} s on {device.type}"
    )
    header = ["patients", "same volume", "same patient", "other patient", "volume / other", "patient / other"]
    print(table(title, header, sorted(rows, key=lambda row: row[0].split(",")[0], reverse=True)))


if __name__ == "__main__":
    main()
