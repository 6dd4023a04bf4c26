"""`nextslice recommend`: a small campaign on what is annotated in a studies folder, and which strategy it suggests there."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.campaign.annotated import Annotated, read_annotated
from bench.campaign.protocol import Protocol
from bench.campaign.report import write_report
from bench.campaign.run import Campaign
from bench.campaign.simulate import simulate
from bench.campaign.study import Study
from bench.campaign.tables import Tables, read_tables
from bench.campaign.verdict import Recommendation, recommend, reference_of
from bench.tables import table
from loop.config import AppConfig
from loop.durable import atomic
from loop.errors import BadInput

LEAST_PATIENTS = 6
"""Fewer, and one or two patients to measure on would decide."""

_ROUND_SHARE = 20
_COMPARED = ("random", "foreground_random", "core_set", "alges_img")
_NOT_OF_RUNS = frozenset({"state", "store_url", "strategy", "budget"})
_FROZEN = "annotated.json"


@dataclass(frozen=True)
class Wish:
    """What was asked for; names (): the usual ones and the one that is served. budget 0: by the pool's size."""

    studies: Path
    out: Path | None
    conf: Mapping[str, str]
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    budget: int
    workers: int
    command: str = ""


def recommend_command(wish: Wish, say: Callable[[str], None]) -> bool:
    """Run the campaign, and say what it suggests and where its page is; True if a run failed.

    Raises:
        NotFound: no such strategy.
        BadInput: too little is annotated, a setting breaks its rule, or `out` is used otherwise.
    """
    config = AppConfig.from_conf(wish.conf, str(wish.studies))
    if config.supervision != "mask":
        raise BadInput(
            "A recommendation measures on masks, and with supervision scribble annotators send none. With masks of the same "
            "images elsewhere: nextslice simulate --scribbles."
        )
    out = _out(wish, config)
    with TemporaryDirectory(prefix="nextslice-") as scratch:
        found = read_annotated(wish.studies, config, Path(scratch))
    if said := found.left_out():
        say(said)
    _check_enough(wish.studies, found)
    study = _study(wish.studies, out, found)
    plan = _plan(wish, config, found, study)
    names = wish.names or tuple(dict.fromkeys((*_COMPARED, config.strategy)))
    _freeze(found, out)
    say(
        f"{len(found.whole)} volumes of {found.patients} patients are annotated to the last slice: {len(study.pool)} to choose "
        f"from, {len(study.test)} to measure on. {len(names)} strategies, {len(wish.seeds)} seeds, {len(plan.budgets) + 1} "
        f"trainings each; a round is {plan.budgets[0]} {plan.unit}s. How long that takes is told after the first; the same "
        "command goes on where it was stopped."
    )
    settings = {key: value for key, value in wish.conf.items() if key not in _NOT_OF_RUNS}
    campaign = Campaign(out, study, plan, settings)
    outcomes = simulate(
        campaign, names, wish.seeds, workers=wish.workers, devices=[config.device], command=wish.command, say=say
    )
    tables = read_tables(out)
    advised = recommend(tables)
    say(evidence(advised))
    say(f"\nThe page with all figures: {write_report(out)}\n{conclusion(tables, advised)}")
    return any(outcome.trouble for outcome in outcomes)


def evidence(advised: Recommendation) -> str:
    """What is known of each strategy, as a table for a terminal."""
    header = ["strategy", "area under the curve", "over the reference", "seeds", "seconds to choose"]
    rows = [
        [row.strategy, str(row.area), "-" if row.over_reference.value != row.over_reference.value else str(row.over_reference),
         str(row.seeds), f"{row.seconds:.1f}"]
        for row in advised.evidence
    ]  # fmt: skip
    return table("Mean Dice, 95 % intervals", header, rows)


def conclusion(tables: Tables, advised: Recommendation) -> str:
    """One line: the strategy to use, or that nothing can be told."""
    if advised.strategy == reference_of(tables):
        return (
            f"Nothing here can be told to be better than {advised.strategy}, which is the safe choice. {advised.reason}"
        )
    return f"Use {advised.strategy}: --conf strategy {advised.strategy}. {advised.reason}"


def _out(wish: Wish, config: AppConfig) -> Path:
    """Where everything is written.

    Raises:
        BadInput: no studies folder, or the server would take what is written for images.
    """
    if not wish.studies.is_dir():
        raise BadInput(f"--studies must be a folder that is there, got {str(wish.studies)!r}.")
    root, state = wish.studies.resolve(), config.state_dir(str(wish.studies))
    out = (wish.out or state / "recommend").resolve()
    inside = out.is_relative_to(root) and not out.is_relative_to(state)
    if inside and not any(part.startswith(".") for part in out.relative_to(root).parts):
        raise BadInput(
            f"--out must not be among the images, got {str(out)!r}. Leave it out, or choose a folder elsewhere."
        )
    return out


def _check_enough(studies: Path, found: Annotated) -> None:
    if found.patients < LEAST_PATIENTS:
        raise BadInput(
            f"A recommendation needs volumes of at least {LEAST_PATIENTS} patients with every slice annotated; "
            f"{str(studies)!r} has {len(found.whole)} of {found.patients}, and {len(found.partial)} with a part annotated. "
            "Annotate more of them to the end, or try strategies on other data that has all masks: nextslice simulate."
        )


def _plan(wish: Wish, config: AppConfig, found: Annotated, study: Study) -> Protocol:
    """A start and rounds of one size: `budget`, or a twentieth of the pool and at least 2 (1 volume).

    Raises:
        BadInput: the pool has fewer items than are annotated.
    """
    whole = config.unit == "volume"
    items = len(study.pool) if whole else sum(found.whole[image_id].slices for image_id in study.pool)
    budget = wish.budget or max(1 if whole else 2, items // _ROUND_SHARE)
    wanted = budget * (wish.rounds + 1)
    if wanted > items:
        raise BadInput(
            f"The campaign annotates {wanted} {config.unit}s, {budget} at the start and in each of {wish.rounds} rounds; of the "
            f"volumes that are annotated to the last slice, {items} {config.unit}s can be chosen from. Ask for fewer --rounds or "
            "a smaller --budget, or annotate more volumes to the end."
        )
    protocol = "finetune" if config.train_from == "current" else "scratch"
    return Protocol(config.unit, budget, (budget,) * wish.rounds, model=config.model, protocol=protocol)


def _masks(out: Path) -> Path:
    return out / "labels"


def _study(studies: Path, out: Path, found: Annotated) -> Study:
    """Images where they are; masks as they are now, for annotators may go on."""
    masks = _masks(out)
    files = {image_id: (one.image, masks / f"{image_id}.nii.gz") for image_id, one in found.whole.items()}
    return Study.of_files(studies, masks, files, {image_id: one.patient for image_id, one in found.whole.items()})


def _freeze(found: Annotated, out: Path) -> None:
    """Copy the masks, unless they are there from an earlier command.

    Raises:
        BadInput: that one had other annotations, or the folder cannot be written.
    """
    kept, now = out / _FROZEN, {image_id: one.made_from for image_id, one in sorted(found.whole.items())}
    if kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before != now:
            raise BadInput(
                f"{str(out)!r} holds a recommendation from other annotations ({len(before)} volumes then, {len(now)} now). "
                "Delete it, or choose another --out."
            )
        return
    try:
        for image_id, one in found.whole.items():
            target = _masks(out) / f"{image_id}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.mask, target)
        with atomic(kept) as temporary:
            temporary.write_text(json.dumps(now, indent=1), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--out must be a folder that can be written, got {str(out)!r} ({error.strerror}).") from None
