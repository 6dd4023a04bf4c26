"""Trainings and sweeps as a child process does them, over a real store and real files: ensembles and auxiliary heads."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bench.phantom import LABELS, make_phantom
from datastore.volume_io import read_volume
from infers.engine import Segmenter
from loop.catalogue import Found
from loop.conductor import Conductor
from loop.config import AppConfig
from loop.forking import fork_context
from loop.rounds import Loop
from loop.store import Store
from loop.submitted import Submission
from loop.worker import run, train
from loop.workplace import Worker, Workplace
from models.heads import of_heads
from models.preprocess import prepare

pytestmark = pytest.mark.usefixtures("one_thread")
SLICES = 8


@dataclass
class Office:
    """Two phantom patients, the first annotated."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fast: dict[str, Any] = {
            "epochs": 1,
            "steps_per_epoch": 2,
            "batch_size": 2,
            "validation_share": 0.0,
            "labels": LABELS,
            "budget": 3,
        }
        config = AppConfig(**fast | self.settings)
        self.store = Store(f"sqlite:///{self.folder / 'store.sqlite'}")
        self.loop = Loop(self.store, config)
        labels = self.folder / "labels"
        (labels / "final").mkdir(parents=True, exist_ok=True)
        self.workplace = Workplace(self.folder, self.folder / "state", labels, self.store.url, config.to_json())
        self.weights, found = self.workplace.weights(), []
        for number in range(2):
            phantom = make_phantom(np.random.default_rng(number), setting=0, shape=(32, 32, SLICES))
            name = f"patient{number}"
            nib.save(nib.Nifti1Image(phantom.image, phantom.affine), self.folder / f"{name}.nii.gz")
            nib.save(nib.Nifti1Image(phantom.label, phantom.affine), labels / "final" / f"{name}.nii.gz")
            found.append(Found(name, f"{name}.nii.gz", "1", (32, 32, SLICES), (1.0, 1.0, 3.0)))
        self.loop.catalogue.sync(found, [], 0.0)

    def label(self, image_id: str = "patient0", slices: Sequence[int] = range(SLICES)) -> None:
        number = self.loop.tell(image_id, Submission("", "d", "f", list(slices), None, {}))
        self.loop.submitted.composed({image_id: number})  # the masks are there from the start

    def queued(self, kind: str, **request: Any) -> str:
        return str(self.loop.jobs.queue(kind, "unet2d", request, "asked for")["id"])

    def done(self, kind: str, **request: Any) -> dict[str, Any]:
        """The job, after it was done here."""
        job_id = self.queued(kind, **request)
        run(self.workplace, job_id)
        job = self.loop.jobs.get(job_id)
        assert job["state"] == "done", job["message"]
        return job

    def round_of(self, strategy: str) -> dict[str, Any]:
        """The newest round of a strategy, after a sweep for it."""
        self.done("sweep", strategies=[strategy])
        return self.loop.round(self.loop.newest_rounds()[strategy]["id"])


@pytest.fixture
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path, getattr(request, "param", {}))
    yield opened
    opened.store.close()


def votes_apart(office: Office, members: Sequence[str], item: dict[str, Any]) -> float:
    """mean_S( 1 - modal votes / M ) of an item, each network asked by itself."""
    spec = office.workplace.spec()
    volume = read_volume(office.folder / f"{item['image']}.nii.gz")
    data = prepare(spec, volume.array, volume.spacing, 2).data[[item["slice"]]]
    segmenters = [Segmenter(spec, office.weights.load(digest), device=torch.device("cpu")) for digest in members]
    votes = torch.stack([one.probabilities(data)[0].argmax(0) for one in segmenters])
    modal = torch.stack([(votes == k).sum(0) for k in range(spec.channels_out)]).amax(0)
    return float(1 - (modal / len(members)).mean())


# --- ensembles


@pytest.mark.parametrize("office", [{"ensemble": 3, "parameters": {"variance_ratio": {"members": 3}}}], indirect=True)
def test_an_ensemble_is_trained_on_the_same_labels_and_votes(office: Office) -> None:
    office.label()
    result = office.done("train")["result"]
    members = result["members"]
    first = members[0]
    assert (first, len(set(members))) == (result["digest"], 3)
    assert office.weights.current() == office.loop.current_model() == first
    assert office.weights.members(first) == members
    cards = [office.weights.card(digest) for digest in members]
    assert [(card["member"], card["ensemble"], card.get("of")) for card in cards] == [
        (0, 3, None), (1, 3, first), (2, 3, first),
    ]  # fmt: skip
    assert len({card["seed"] for card in cards}) == 3
    assert (
        len({card["submission"] for card in cards}) == len({card["metrics"]["training_items"] for card in cards}) == 1
    )
    assert [entry["digest"] for entry in office.weights.history()] == [first]
    job_id = office.queued("sweep", strategies=["variance_ratio"])
    run(office.workplace, job_id)
    job = office.loop.jobs.get(job_id)
    assert (job["state"], job["warnings"]) == ("done", [])
    chosen = office.loop.round(job["result"]["rounds"]["variance_ratio"])
    assert chosen["selected_by"] == "variance_ratio"
    for item in chosen["items"]:
        assert item["score"] == pytest.approx(votes_apart(office, members, item), rel=1e-4)
    # The next training begins each member where it was, or anew.
    again = office.done("train", train_from="current")["result"]["members"]
    assert [office.weights.card(digest)["parent"] for digest in again] == members
    assert office.weights.current() == again[0]
    assert not set(again) & set(members)


def test_a_served_strategy_that_lets_networks_vote_has_them_trained(office: Office) -> None:
    office.label()
    assert len(office.done("train")["result"]["members"]) == 1
    office.round_of("ensemble_entropy")
    office.loop.ask("ensemble_entropy")
    assert len(office.done("train")["result"]["members"]) == 5


@pytest.mark.parametrize("office", [{"ensemble": 3, "parameters": {"variance_ratio": {"members": 3}}}], indirect=True)
def test_an_ensemble_whose_training_is_killed_votes_with_what_is_there(office: Office) -> None:
    office.label()
    older = office.done("train")["result"]["members"]
    job_id = office.queued("train", steps_per_epoch=60)
    child = fork_context().Process(target=run, args=(office.workplace, job_id))
    child.start()
    until = time.monotonic() + 60
    while office.weights.current() == older[0] and time.monotonic() < until:
        time.sleep(0.01)
    child.kill()
    child.join()
    first = office.weights.current()
    assert first is not None
    assert first not in older
    assert office.loop.jobs.get(job_id)["state"] == "running"
    office.loop.jobs.end(job_id, "lost")
    left = office.weights.members(first)
    assert len(left) < 3
    for item in (chosen := office.round_of("variance_ratio"))["items"]:
        voters = [*left, *reversed(older)][:3]
        assert item["score"] == pytest.approx(votes_apart(office, voters, item), rel=1e-4)
    # With the members that the next training adds, the same weights' votes are other ones: nothing old is taken for them.
    spec = office.workplace.spec()
    added = office.weights.publish(
        spec.network(99).state_dict(),
        {"labels": list(LABELS), "member": 2, "of": first},
        office.loop.clock(),
        current=False,
    )
    for item in office.round_of("variance_ratio")["items"]:
        voters = [*left, added, *reversed(older)][:3]
        assert item["score"] == pytest.approx(votes_apart(office, voters, item), rel=1e-4)
    assert chosen["model"] == first


@pytest.mark.parametrize("office", [{"ensemble": 3}], indirect=True)
def test_progress_is_that_of_all_members(office: Office) -> None:
    reports = list[dict[str, Any]]()

    class Listening(Worker):
        def report(self, **progress: Any) -> None:
            reports.append(progress)

    office.label()
    job = office.loop.jobs.get(office.queued("train"))
    train(Listening(office.workplace, office.loop, job))
    assert [report["fraction"] for report in reports] == pytest.approx([step / 6 for step in range(1, 7)])
    assert [(report["member"], report["members"]) for report in reports] == [(n, 3) for n in (1, 1, 2, 2, 3, 3)]
    assert reports[0]["eta"] > 0
    assert reports[-1]["eta"] == 0


# --- heads


@pytest.mark.parametrize("name", ["learning_loss", "deal", "sb_learning_loss"])
def test_a_strategy_whose_head_is_missing_is_stood_in_for_until_a_training(office: Office, name: str) -> None:
    office.label(slices=range(4))
    office.done("train")
    job = office.done("sweep", strategies=["max_entropy", name])
    assert len(job["warnings"]) == 1
    assert "spread stands in until a training" in job["warnings"][0]
    number = office.loop.newest_rounds()[name]["id"]
    assert office.loop.round(number)["selected_by"] == "spread"
    assert office.loop.round(office.loop.newest_rounds()["max_entropy"]["id"])["selected_by"] == "max_entropy"
    conductor = Conductor(office.loop, office.workplace)
    assert conductor.due() is None, "nobody was served from it yet"
    office.loop.ask(name)
    reason = conductor.due()
    assert reason is not None
    assert name in reason
    office.done("train")
    assert conductor.due() is None
    chosen = office.round_of(name)
    assert chosen["selected_by"] == name
    assert conductor.due() is None


@pytest.mark.parametrize("office", [{"heads": ("deal",), "strategy": "learning_loss", "ensemble": 2}], indirect=True)
def test_the_heads_of_the_settings_and_of_the_default_strategy_are_trained(office: Office) -> None:
    office.label()
    first, second = office.done("train")["result"]["members"]
    assert office.weights.card(first)["heads"] == ["deal", "learning_loss"]
    assert set(of_heads(office.weights.load(first))) == {"deal", "learning_loss"}
    assert of_heads(office.weights.load(second)) == {}, "further members only vote"
    for name in ("deal", "learning_loss"):
        assert office.round_of(name)["selected_by"] == name


def test_weights_that_a_person_went_back_to_stay_in_use(office: Office) -> None:
    office.label(slices=range(4))
    plain = office.done("train")["result"]["digest"]
    office.round_of("deal")
    office.loop.ask("deal")
    office.done("train", seed=1)
    office.weights.rollback(plain, office.loop.clock())
    office.loop.published("unet2d", plain, {}, how="rolled back")
    assert office.round_of("deal")["selected_by"] == "spread"
    assert Conductor(office.loop, office.workplace).due() is None


@pytest.mark.parametrize("office", [{"retrain_after": 1, "retrain_min_interval": 0}], indirect=True)
def test_a_training_that_was_lost_begins_anew_but_not_at_once(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    for part in (office.loop, office.loop.jobs):
        monkeypatch.setattr(part, "clock", lambda: now[0])
    office.label()
    conductor, jobs = Conductor(office.loop, office.workplace), office.loop.jobs
    conductor._retrain_if_due()
    (first,) = jobs.queued("train")
    jobs.end(first["id"], "lost", message="the archive is down")
    now[0] += 0.9
    conductor._retrain_if_due()
    assert not jobs.active("train")
    now[0] += 0.2
    conductor._retrain_if_due()
    assert len(jobs.queued("train")) == 1


# --- trainings that are killed


def killed(office: Office, prepare: Callable[[], None], seconds: float, seed: int) -> None:
    """Start a training in a process of its own and kill it after that long, if it has not been killed before."""
    job_id = office.queued("train", seed=seed)

    def work() -> None:
        prepare()
        run(office.workplace, job_id)

    # Forked, so that it can be told when to die; a server's jobs come from a fork server.
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    office.loop.jobs.end(job_id, "lost", message="killed")  # as the conductor does


def die_at_rename(number: int, *, after: bool) -> None:
    """This process is killed at its n-th rename of a file that was written."""
    rename, seen = os.replace, list[object]()

    def replace(source: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == number:
            if after:
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]


def check_published(office: Office, known: set[str]) -> None:
    """What is in use is whole, and everything that is listed can be loaded."""
    current = office.weights.current()
    assert current in office.weights.digests()
    assert known <= set(office.weights.digests())
    for digest in office.weights.digests():
        Segmenter(office.workplace.spec(), office.weights.load(digest), device=torch.device("cpu"))
        assert office.weights.card(digest)["digest"] == digest


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_training_killed_at_any_moment_leaves_whole_weights_and_the_next_one_publishes(office: Office) -> None:
    office.label()
    began = time.monotonic()
    first = office.done("train")["result"]["digest"]
    took = time.monotonic() - began
    for number, after in [(number, after) for number in (1, 2, 3) for after in (False, True)]:
        # Weights, their card, and the name of what is in use: the new ones are in use from the last rename on.
        killed(office, partial(die_at_rename, number, after=after), 60, seed=10 * number + after)
        check_published(office, {first})
        assert (office.weights.current() == first) == ((number, after) != (3, True))
    rng = random.Random(0)
    for number in range(6):
        killed(office, lambda: None, rng.uniform(0, 1.2 * took), seed=100 + number)
        check_published(office, {first})
    last = office.done("train", seed=7)["result"]["digest"]
    assert office.weights.current() == office.loop.current_model() == last
    check_published(office, {first, last})


@pytest.mark.parametrize(
    "office", [{"gpus": "2", "device": "cpu", "patience": 3, "epochs": 2, "validation_share": 0.5}], indirect=True
)
def test_a_job_trains_with_two_processes_and_its_card_says_how_well(office: Office) -> None:
    office.label()
    office.label("patient1")
    digest = office.done("train")["result"]["digest"]
    card = next(card for card in office.weights.cards() if card["digest"] == digest)
    assert [entry["epoch"] for entry in card["curve"]] == [1, 2]
    assert (card["settings"]["patience"], card["settings"]["amp"], card["settings"]["compile"]) == (3, "auto", False)
    measured = card["metrics"]["validation"]
    assert (measured["volumes"], measured["distances_in"]) == (1, 3)
    assert measured["classes"].keys() == set(LABELS)
    assert list((office.workplace.state / "prepared").glob("*.npz"))
