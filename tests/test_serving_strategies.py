"""Every strategy serves through the real server: a round by its own choice, a ticket with score and reason, a label back."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import strategies
from bench.phantom import write_phantoms

_BUDGET = 4


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three small phantom patients: a sweep is as long as the pool."""
    write_phantoms(tmp_path / "demo", patients=3, seed=1, shape=(40, 40, 16))
    return tmp_path / "demo"


def submit(http: Any, server: Any, folder: Path, sample: dict[str, Any]) -> None:
    """The ground truth of the asked slices."""
    file = folder / "answer.nii.gz"
    truth = nib.load(server.truth / f"{sample['id']}.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(truth.dataobj, np.uint8), truth.affine), file)
    with open(file, "rb") as label:
        params = f'{{"client_id": "tester", "ticket": "{sample["ask"]["ticket"]}"}}'
        http.put(
            "/datastore/label", params={"image": sample["id"]}, files={"label": label}, data={"params": params}
        ).raise_for_status()


def with_a_model(server: Any, folder: Path) -> None:
    """Annotate the cold start's round and train once."""
    with server.client() as http:
        server.wait_for("the first round", lambda p: bool(p["rounds"]))
        while sample := http.post("/activelearning/max_entropy", json={"client_id": "tester"}).json():
            submit(http, server, folder, sample)
            if http.get("/al/progress").json()["counts"]["labeled_slices"] >= _BUDGET:
                break
        trained = http.post("/train/unet2d", params={"run_sync": True, "enqueue": True}, json={})
        trained.raise_for_status()


@pytest.mark.slow
def test_every_strategy_has_a_round_of_its_own(few: Path, serve: Callable[..., Any], tmp_path: Path) -> None:
    settings = {
        "usim_c.passes": "3", "usim_f.passes": "3", "mc_variance.passes": "4", "tta.views": "3", "bsq.passes": "3",
        "representation_epochs": "1", "heads": "deal,learning_loss", "ensemble": "2",
    }  # fmt: skip
    server = serve(
        few, budget=str(_BUDGET), slices_per_ticket="1", retrain="false", epochs="4", steps_per_epoch="10", **settings
    )
    with_a_model(server, tmp_path)
    names = strategies.names()
    random.Random(0).shuffle(names)  # none may lean on what another left behind
    with server.client() as http:
        for name in names:
            http.post(f"/scoring/{name}", params={"run_sync": True, "enqueue": True}, json={}).raise_for_status()
            newest = next(row for row in http.get("/al/rounds").json() if row["strategy"] == name)
            assert newest["selected_by"] == name
            items = http.get(f"/al/rounds/{newest['id']}").json()["items"]
            assert len({(item["image"], item["slice"]) for item in items}) == _BUDGET
            sample = http.post(f"/activelearning/{name}", json={"client_id": f"tester of {name}"}).json()
            ask = sample["ask"]
            assert ask["round"] == newest["id"]
            first = next(item for item in items if item["slice"] in ask["slices"] and item["image"] == sample["id"])
            assert (ask["score"], ask["why"]) == (first["score"], first["why"])
            assert ask["why"]
            submit(http, server, tmp_path, sample)

        def statuses() -> set[str]:
            return {job["status"] for job in http.get("/scoring/", params={"all": True}).json()}

        # Rounds that the labels above have ended are followed by others.
        server.wait_for("the sweeps that follow", lambda _: not statuses() & {"SUBMITTED", "RUNNING"})
        assert statuses() == {"DONE"}
        listed = {row["name"]: row for row in http.get("/al/strategies").json()}
        assert listed.keys() == set(names)
        assert listed["bald"]["parameters"][0] == {
            "name": "passes", "default": 10, "help": "stochastic forward passes, T", "low": 2, "high": 1000,
        }  # fmt: skip


def test_parameters_of_a_request_count_for_that_round_and_are_checked(
    few: Path, serve: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve(few, budget=str(_BUDGET), retrain="false", **{"bald.passes": "3"})
    with_a_model(server, tmp_path)
    with server.client() as http:

        def round_of(body: dict[str, Any]) -> dict[str, Any]:
            answer = http.post("/scoring/bald", params={"run_sync": True, "enqueue": True}, json=body)
            answer.raise_for_status()
            found: dict[str, Any] = next(row for row in http.get("/al/rounds").json() if row["strategy"] == "bald")
            return found

        assert round_of({"parameters": {"rate": 0.4}})["parameters"] == {"passes": 3, "rate": 0.4}
        assert round_of({"parameters": {"passes": 2}, "budget": 2})["parameters"] == {"passes": 2}
        assert round_of({})["parameters"] == {"passes": 3}
        for parameters, told in [
            ({"steps": 2}, "no parameter 'steps'"),
            ({"passes": "2"}, "must be int"),
            ({"passes": 1}, "between 2 and 1000"),
        ]:
            answer = http.post("/scoring/bald", json={"parameters": parameters})
            assert answer.status_code == 400
            assert told in answer.json()["detail"]
