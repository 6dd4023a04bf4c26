"""nnU-Net: what its planner makes of images, and that a campaign keeps to the plans."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import models
from bench import phantom
from cli import app
from loop.catalogue import Found
from loop.config import AppConfig
from loop.errors import BadInput, Conflict
from loop.planning import plan
from loop.rounds import Loop
from loop.store import Store
from loop.submitted import Submission
from loop.worker import run
from loop.workplace import Workplace, dimension
from models.nnunet import ct_normalised, output_weights, z_scored
from models.plans import Plans
from models.preprocess import prepare
from models.weights import check_plans
from trainers.nnunet_planner import Planned, make_plans

LABELS = ("a", "b")
FILE = Path(__file__).parent / "plans_2d.json"
pytestmark = pytest.mark.usefixtures("one_thread")


def written(folder: Path, name: str, array: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> Path:
    file = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), file)
    return file


def images(
    folder: Path, shape: tuple[int, ...], spacing: tuple[float, ...], n: int = 3, offset: float = 0
) -> list[Path]:
    rng = np.random.default_rng(0)
    return [written(folder, f"p{i}", rng.normal(100, 10, shape).astype(np.float32) + offset, spacing) for i in range(n)]


def planned(files: list[Path], lead: int = 2, **changes: Any) -> Plans:
    settings = {"configuration": "2d", "modality": "auto", "folder": files[0].parent / "model"}
    return make_plans([Planned(file, lead) for file in files], LABELS, **settings | changes)


# --- plans


def test_planning_leaves_nothing_behind_and_the_environment_alone(tmp_path: Path, capsys: Any) -> None:
    files = images(tmp_path, (16, 24, 6), (1, 1, 3))
    before, environment, told = {f: f.read_bytes() for f in files}, dict(os.environ), list[float]()
    plans = planned(files, report=told.append)
    assert told == [1 / 3, 2 / 3, 1]
    assert dict(os.environ) == environment
    assert not list((tmp_path / "model").iterdir())
    assert {f: f.read_bytes() for f in tmp_path.glob("*.nii.gz")} == before
    assert not capsys.readouterr().out
    assert plans == Plans.read(FILE), "the same images, the same plans; those of the other tests are what nnU-Net makes"
    assert planned(files).digest == plans.digest


@pytest.mark.parametrize("lead", [0, 2])
def test_the_network_of_volumes_has_the_axes_of_the_images(tmp_path: Path, lead: int) -> None:
    shape, spacing = [(32, 48, 8), (1, 1, 5)] if lead == 2 else [(8, 32, 48), (5, 1, 1)]
    plans = planned(images(tmp_path, shape, spacing), lead, configuration="3d_fullres")
    spec = models.get("nnunet", labels=LABELS, plans=plans)
    assert plans.used["patch_size"] == [8, 48, 32], "the slice axis first"
    assert spec.patch == shape
    assert spec.spacing == spacing
    assert spec.divisors[lead] < min(n for axis, n in enumerate(spec.divisors) if axis != lead)
    with torch.inference_mode():
        assert spec.network(0).eval()(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)


def test_ct_is_found_by_air_and_the_setting_overrules(tmp_path: Path) -> None:
    dark = images(tmp_path, (16, 24, 6), (1, 1, 3), offset=-1100)
    for modality, scheme in [("auto", "CTNormalization"), ("ct", "CTNormalization"), ("mr", "ZScoreNormalization")]:
        plans = planned(dark, modality=modality)
        assert plans.used["normalization_schemes"] == [scheme]
        assert plans.made_from["modality"].startswith("mr" if modality == "mr" else "ct")


def test_statistics_are_of_annotated_foreground_where_there_is_any(tmp_path: Path) -> None:
    files = images(tmp_path, (16, 24, 6), (1, 1, 3))
    mask = np.zeros((16, 24, 6), np.uint8)
    file = written(tmp_path, "mask", mask)
    cases = [Planned(files[0], 2, file), *(Planned(other, 2) for other in files[1:])]

    def mean() -> tuple[float, str]:
        plans = make_plans(cases, LABELS, configuration="2d", modality="ct", folder=tmp_path / "model")
        told = plans.content["foreground_intensity_properties_per_channel"]["0"]
        return told["mean"], plans.made_from["voxels"]

    assert mean() == (pytest.approx(100, abs=0.5), "not zero"), "background alone is no foreground"
    array = np.asanyarray(nib.load(files[0]).dataobj).copy()
    array[:4], mask[:4] = 300, 2
    written(tmp_path, "p0", array)
    written(tmp_path, "mask", mask)
    assert mean() == (300, "annotated foreground")


def test_images_that_cannot_be_read_are_named_and_left_out(tmp_path: Path) -> None:
    files, warnings = images(tmp_path, (16, 24, 6), (1, 1, 3)), list[str]()
    broken = [written(tmp_path, "zero", np.zeros((16, 24, 6), np.float32)), tmp_path / "missing.nii.gz"]
    broken.append(written(tmp_path, "holed", np.full((16, 24, 6), np.nan, np.float32)))
    plans = planned([*files, *broken], warn=warnings.append)
    assert plans.used == planned(files).used
    assert plans.made_from["images"] == 3
    assert [text.split()[0] for text in warnings] == ["zero.nii.gz", "missing.nii.gz", "holed.nii.gz"]
    with pytest.raises(BadInput, match="no image that can be read to plan on"):
        planned(broken)


def test_plans_that_are_there_stay(tmp_path: Path) -> None:
    file, plans = tmp_path / "model" / "plans.json", Plans.read(FILE)
    other = replace(plans, made_from={**plans.made_from, "images": 4})
    assert plans.keep(file) is plans
    assert other.keep(file) == plans == Plans.read(file)
    assert other.digest != plans.digest
    assert other.keep(file, replace=True) == Plans.read(file) == other
    (former,) = tmp_path.glob("model/plans-*.json")
    assert Plans.read(former) == plans
    for damage in ("", "[]", "{}", file.read_text().replace('"patch_size"', '"patch"')):
        file.write_text(damage)
        with pytest.raises(BadInput, match=r"is damaged .* plan again: nextslice plan --again"):
            Plans.read(file)


def test_the_hippocampus_is_planned_as_in_the_paper(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "hippocampus" / "images").glob("*.nii.gz"))
    plans = planned(files, folder=tmp_path)
    assert plans.used["patch_size"] == [56, 40]
    spec = models.get("nnunet", labels=("anterior", "posterior"), plans=plans)
    assert round(sum(p.numel() for p in spec.network(0).parameters()) / 1e6, 1) == 1.9
    # 366 for the paper's 260 cases, 5 % of all voxels.
    assert spec.batch_size == pytest.approx(366 * len(files) / 260, rel=0.02)


# --- the model


def test_the_model_needs_plans_and_takes_spacing_and_patch_from_them() -> None:
    with pytest.raises(Conflict, match=r"not been planned yet: the first training or sweep does it"):
        models.get("nnunet", labels=LABELS)
    for key, value in {"spacing": (1.0, 1.0), "patch": (16, 16)}.items():
        with pytest.raises(BadInput, match="takes spacing and patch from its plans"):
            models.get("nnunet", labels=LABELS, plans=Plans.read(FILE), **{key: value})


def test_outputs_are_weighted_as_in_nnunet() -> None:
    assert output_weights(1) == (1.0,)
    assert output_weights(2) == (1.0, 0.0)
    assert output_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))


@pytest.mark.parametrize("only_non_zero", [False, True])
def test_normalisation_equals_nnunets(only_non_zero: bool) -> None:
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ZScoreNormalization

    array = np.zeros((12, 14, 8), np.float32)
    array[2:9, 3:12, 1:7] = np.random.default_rng(0).normal(50, 20, (7, 9, 6))
    array[4, 5, 3] = 0  # a hole
    data, mask, _ = crop_to_nonzero(array[None])
    theirs = ZScoreNormalization(use_mask_for_norm=only_non_zero, intensityproperties={}).run(data[0].copy(), mask[0])
    found = z_scored(array, only_non_zero=only_non_zero)
    np.testing.assert_allclose(found[2:9, 3:12, 1:7], theirs, atol=1e-5)
    told = {"mean": 40.0, "std": 15.0, "percentile_00_5": 10.0, "percentile_99_5": 80.0}
    theirs = CTNormalization(use_mask_for_norm=False, intensityproperties=told).run(array.copy())
    np.testing.assert_allclose(ct_normalised(array, low=10, high=80, mean=40, std=15), theirs, atol=1e-5)
    assert not z_scored(np.zeros_like(array), only_non_zero=only_non_zero).any()
    with pytest.raises(BadInput, match="NaN or infinite"):
        z_scored(np.full((3, 3, 3), np.inf), only_non_zero=only_non_zero)


def test_small_images_are_padded_to_the_patch() -> None:
    spec = models.get("nnunet", labels=LABELS, plans=Plans.read(FILE))
    assert spec.patch == (16, 24)
    for shape, size in [((5, 30, 3), (16, 32)), ((17, 24, 3), (20, 24))]:
        array = np.random.default_rng(0).normal(size=shape)
        assert prepare(spec, array, (1, 1, 1), 2).data.shape == (3, 1, *size)


def test_weights_belong_to_their_plans() -> None:
    check_plans({"digest": "0" * 16, "plans": "a"}, "a")
    check_plans({"digest": "0" * 16}, "")
    for card, plans in [("a", "b"), ("", "b"), ("a", "")]:
        with pytest.raises(BadInput, match=r"trained under the plans .*: train again from scratch"):
            check_plans({"digest": "0" * 16, **({"plans": card} if card else {})}, plans)


def test_the_plans_must_be_of_the_configuration_that_is_set(tmp_path: Path) -> None:
    config = AppConfig(model="nnunet", unit="volume", labels=LABELS)
    place = Workplace(tmp_path, tmp_path, tmp_path, "", config.to_json())
    assert place.plans() is None
    assert dimension(config) == 3
    Plans.read(FILE).keep(place.plans_file)
    with pytest.raises(BadInput, match=r"plans are for 2d, but 3d_fullres is set: set --conf nnunet 2d, or plan again"):
        place.plans()
    both = Workplace(tmp_path, tmp_path, tmp_path, "", replace(config, nnunet="2d").to_json())
    assert both.plans() == Plans.read(FILE)
    assert both.spec().spatial_dims == dimension(replace(config, nnunet="2d")) == 2


def test_the_command_prints_the_plans_and_a_server_refuses_what_they_do_not_fit(tmp_path: Path) -> None:
    images(tmp_path, (16, 24, 6), (1, 1, 3))

    def told(command: str, *settings: str) -> tuple[int, str]:
        pairs = [part for setting in settings for part in ("--conf", setting)]
        found = CliRunner().invoke(app, [command, "--studies", str(tmp_path), *pairs])
        return found.exit_code, re.sub(r"\s+", " ", found.output)

    code, shown = told("plan", "labels=a,b")
    assert code == 0
    for line in ("patch_size [24, 16]", "batch_size 2", "parameters 0.5 M", "normalization ZScoreNormalization"):
        assert line in shown
    assert told("plan", "labels=a,b", "modality=ct") == (code, shown), "plans that are there stay"
    for command, setting, message in [
        ("plan", "model=unet", "'unet' follows from no plans"),
        ("plan", "spacing=1,1", "takes spacing and patch from its plans"),
        ("serve", "nnunet=3d_fullres", "The campaign's plans are for 2d"),
        ("serve", "nnunet=4d", "nnunet must be one of auto, 2d, 3d_fullres, got '4d'"),
    ]:
        code, shown = told(command, *(["model=nnunet"] if command == "serve" else []), setting)
        assert code == 2
        assert message in shown


# --- a campaign


@dataclass
class Campaign:
    """Phantom patients, the first annotated; jobs are done here as a child process does them."""

    folder: Path
    store: Store
    settings: dict[str, Any]

    @property
    def loop(self) -> Loop:
        return Loop(self.store, AppConfig(**self.settings))

    @property
    def place(self) -> Workplace:
        config = AppConfig(**self.settings).to_json()
        return Workplace(self.folder, self.folder / "state", self.folder / "labels", self.store.url, config)

    def done(self, kind: str, **request: Any) -> dict[str, Any]:
        job = self.loop.jobs.queue(kind, "nnunet", request, "asked for")["id"]
        run(self.place, job)
        return dict(self.loop.jobs.get(job))


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[Campaign]:
    settings = {
        "model": "nnunet", "epochs": 1, "steps_per_epoch": 2, "validation_share": 0.0, "labels": phantom.LABELS,
        "budget": 3,
    }  # fmt: skip
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    made, found = Campaign(tmp_path, store, settings), []
    (tmp_path / "labels" / "final").mkdir(parents=True)
    for number in range(2):
        drawn = phantom.make_phantom(np.random.default_rng(number), setting=0, shape=(32, 32, 8))
        written(tmp_path, f"p{number}", drawn.image, (1, 1, 3))
        written(tmp_path / "labels" / "final", f"p{number}", drawn.label, (1, 1, 3))
        found.append(Found(f"p{number}", f"p{number}.nii.gz", "1", (32, 32, 8), (1.0, 1.0, 3.0)))
    made.loop.catalogue.sync(found, [], 0.0)
    made.loop.submitted.composed({"p0": made.loop.tell("p0", Submission("", "d", "f", list(range(8)), None, {}))})
    yield made
    store.close()


def test_the_first_job_plans_and_all_others_keep_to_it(campaign: Campaign) -> None:
    assert campaign.done("sweep", strategies=["spread"])["state"] == "done"
    plans = campaign.place.plans()
    assert plans is not None
    assert plans.made_from["images"] == 2
    assert plans.made_from["voxels"] == "annotated foreground"
    campaign.settings["modality"] = "ct"
    for _ in range(2):
        assert campaign.done("train")["state"] == "done"
        card = campaign.place.weights().cards()[-1]
        assert card["plans"] == plans.digest
        assert card["settings"]["batch_size"] == plans.used["batch_size"]
    assert campaign.done("train", batch_size=3)["state"] == "done"
    assert campaign.place.weights().cards()[-1]["settings"]["batch_size"] == 3
    assert campaign.done("sweep", strategies=["max_entropy"])["state"] == "done"
    assert campaign.place.plans() == plans
    assert {file.suffix for file in campaign.place.model_folder.iterdir()} == {".json", ".jsonl", ".pt"}


def test_weights_of_other_plans_are_refused_until_a_training_from_scratch(campaign: Campaign) -> None:
    campaign.done("train")
    before = campaign.place.plans()
    campaign.settings["modality"] = "ct"
    after = plan(campaign.place, campaign.loop, again=True)
    assert campaign.place.plans() == after != before
    for kind, request in [("sweep", {"strategies": ["max_entropy"]}), ("train", {"train_from": "current"})]:
        job = campaign.done(kind, **request)
        assert job["state"] == "error"
        assert "train again from scratch" in job["message"]
    assert campaign.done("train")["state"] == "done"
    assert campaign.done("sweep", strategies=["max_entropy"])["state"] == "done"


def test_a_model_without_plans_is_refused_by_name(campaign: Campaign) -> None:
    campaign.settings["model"] = "unet"
    with pytest.raises(BadInput, match="'unet' follows from no plans: set --conf model nnunet"):
        plan(campaign.place, campaign.loop)


def answers(http: httpx.Client, method: str, path: str, **more: Any) -> Any:
    answer = http.request(method, path, **more)
    answer.raise_for_status()
    return answer.json()


def annotated(http: httpx.Client, server: Any, folder: Path) -> str:
    """One ticket's slices, labelled with the truth."""
    sample = answers(http, "POST", "/activelearning/spread", json={"client_id": "tester"})
    truth = nib.load(server.truth / f"{sample['id']}.nii.gz")
    file = folder / "answer.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(truth.dataobj, np.uint8), truth.affine), file)
    params = f'{{"client_id": "tester", "ticket": "{sample["ask"]["ticket"]}"}}'
    with open(file, "rb") as label:
        answers(
            http, "PUT", "/datastore/label", params={"image": sample["id"]}, files={"label": label},
            data={"params": params},
        )  # fmt: skip
    return str(sample["id"])


TRAIN = {"params": {"run_sync": True, "enqueue": True}, "json": {}}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dcan", "nnunet", "unet", "unet_r18"])
def test_a_model_is_trained_and_predicts_through_the_server(
    demo: Path, serve: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    server = serve(demo, model=model, retrain="false", budget="4", validation_share="0")
    with server.client() as http:
        assert answers(http, "GET", "/al/model")["plans"] is None
        server.wait_for("the first round", lambda p: bool(p["rounds"]))
        image = annotated(http, server, tmp_path)
        assert http.post(f"/infer/{model}", params={"image": image}).status_code == 409
        done = answers(http, "POST", f"/train/{model}", **TRAIN)
        assert done["status"] == "DONE"
        mask = http.post(f"/infer/{model}", params={"image": image, "output": "image"})
        assert mask.status_code == 200
        answers(http, "POST", "/scoring/max_entropy", **TRAIN)
        first = answers(http, "GET", "/al/model")
        info = answers(http, "GET", "/info/")["models"][model]
        card = answers(http, "GET", f"/model/info/{model}")
    if model != "nnunet":
        assert first["plans"] is None
        return
    assert first["plans"] == info["plans"]
    assert first["plans"]["made_from"]["images"] == 8
    assert card["plans"] == first["plans"]["digest"]
    keeps_to_the_plans(server, first, image)


def keeps_to_the_plans(server: Any, first: dict[str, Any], image: str) -> None:
    """After a restart the plans are the same; under others, the weights are refused."""
    server.stop()
    server.start()
    with server.client() as http:
        assert answers(http, "GET", "/al/model") == first
        assert http.post("/infer/nnunet", params={"image": image, "output": "image"}).status_code == 200
    server.stop()
    arguments = ["plan", "--studies", str(server.images), "--conf", "modality=ct"]
    shown = CliRunner().invoke(app, arguments)
    assert first["plans"]["digest"] in shown.output, "plans that are there stay"
    shown = CliRunner().invoke(app, [*arguments, "--again"])
    assert "CTNormalization" in shown.output
    assert first["plans"]["digest"] not in shown.output
    server.start()
    with server.client() as http:
        refused = http.post("/infer/nnunet", params={"image": image})
        assert refused.status_code == 400
        assert "train again from scratch" in refused.json()["detail"]
        assert http.post(f"/al/models/{first['digest']}/rollback").status_code == 400
        answers(http, "POST", "/train/nnunet", **TRAIN)
        assert http.post("/infer/nnunet", params={"image": image, "output": "image"}).status_code == 200
