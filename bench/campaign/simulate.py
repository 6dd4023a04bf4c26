"""Whole campaigns: every strategy with every seed, over processes and devices, resumable, into one set of tables."""

import csv
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

import strategies
from bench.campaign.kept import UPPER_BOUND, map_file
from bench.campaign.progress import Progress
from bench.campaign.run import Campaign, Run
from loop.durable import atomic
from loop.errors import BadInput, unknown
from loop.forking import fork_context

_POLL_SECONDS = 1.0
_LOCK_SECONDS = 5.0
"""As long as the processes of a command that was killed may need to end."""

_PACKAGES = ("torch", "monai", "numpy", "scikit-learn")
_MAY_CHANGE = ("strategies", "seeds", "command", "versions", "images", "masks", "scribbles")
"""What a later command in the same folder may add to, have anew, or find elsewhere: the digest says whether data are the same."""

_TABLES = {
    "scores": "scores.csv",
    "picks": "picks.csv",
    "round": "rounds.csv",
    "timings": "timings.csv",
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended; trouble is "" where it is done, or its error."""

    strategy: str
    seed: int
    trouble: str


def simulate(
    campaign: Campaign,
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    workers: int = 1,
    devices: Sequence[str] = ("auto",),
    command: str = "",
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Do every run that is not done, and write the tables of all that there are.

    Args:
        workers: processes at once; each gets its share of the cores, and the devices in turn.

    Raises:
        NotFound: no such strategy. BadInput: the folder holds another campaign.
    """
    for name in set(names) - {UPPER_BOUND}:
        if name not in strategies.names():
            raise unknown("strategy", name, [*strategies.names(), UPPER_BOUND])
    for name in names:
        campaign.config(name, seeds[0], devices[0])  # settings are checked before anything is begun
    describe(campaign, names, seeds, command)
    # Seed by seed: what is there of a campaign that was stopped has every strategy.
    tasks = [(name, seed) for seed in seeds for name in names]
    outcomes = list[Outcome]()
    for outcome in _run_all(campaign, tasks, workers, devices, say):
        outcomes.append(outcome)
        collect(campaign.out)  # what there is can be judged while the others run
    say(overhead(campaign.out))
    _tell_of_maps(campaign, names, say)
    return outcomes


def _tell_of_maps(campaign: Campaign, names: Sequence[str], say: Callable[[str], None]) -> None:
    """A run that was done before has no model any more to make its map with."""
    if campaign.maps is None:
        return
    done = [name for name in names if name != UPPER_BOUND and campaign.ended(name, campaign.maps)]
    lacking = [name for name in done if not map_file(campaign.out, name, campaign.maps).is_file()]
    if lacking:
        say(f"No map of {', '.join(lacking)}: the run was done before, or its features are all alike.")


def describe(campaign: Campaign, names: Sequence[str], seeds: Sequence[int], command: str) -> None:
    """Write campaign.json, with the strategies and seeds of earlier commands in the same folder too.

    Raises:
        BadInput: the folder holds a campaign of other data or settings.
    """
    config = campaign.config(names[0], seeds[0], "auto")
    protocol = campaign.protocol
    facts: dict[str, Any] = {
        "title": f"{len(campaign.study.pool)} volumes of {campaign.study.images.name}, {protocol.unit} by {protocol.unit}",
        "unit": protocol.unit, "start": protocol.start, "budget": protocol.budgets[0], "budgets": list(protocol.budgets),
        "shares": list(protocol.shares), "rounds": len(protocol.budgets), "protocol": protocol.protocol,
        "model": protocol.model, "labels": list(config.labels), "scale": protocol.scale, **campaign.study.to_json(),
        "pool_slices": campaign.study.slices(config),
        "settings": {**protocol.conf, **campaign.conf}, "strategies": list(names), "seeds": list(seeds), "command": command,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }  # fmt: skip
    file = campaign.out / "campaign.json"
    if file.is_file():
        before = json.loads(file.read_text())
        now = json.loads(json.dumps(facts))
        other = sorted(
            key for key in now.keys() | before.keys() if key not in _MAY_CHANGE and now.get(key) != before.get(key)
        )
        if other:
            told = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in other)
            raise BadInput(f"{str(campaign.out)!r} holds another campaign ({told[:600]}). Choose another --out.")
        for key in ("strategies", "seeds"):
            facts[key] = list(dict.fromkeys([*before[key], *facts[key]]))
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(facts, indent=1))


def _run_all(
    campaign: Campaign,
    tasks: Sequence[tuple[str, int]],
    workers: int,
    devices: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Outcome]:
    total = sum(1 if name == UPPER_BOUND else 1 + len(_budgets(campaign)) for name, _ in tasks)
    done = sum(campaign.done(name, seed) for name, seed in tasks)
    progress = Progress(total, done, say)
    threads = max(1, (os.cpu_count() or 1) // workers)
    there = [(name, seed) for name, seed in tasks if campaign.ended(name, seed)]
    for name, seed in there:
        yield Outcome(name, seed, "")
    # Processes are started with the first run that is handed in: none where everything is there.
    left = [task for task in tasks if task not in there]
    with (
        tqdm(total=total, initial=done, desc="campaign", unit="round", disable=None) as bar,
        ProcessPoolExecutor(
            workers, mp_context=fork_context(), initializer=_prepare_process, initargs=(threads,)
        ) as pool,
    ):
        waiting: dict[Future[str], tuple[str, int]] = {
            pool.submit(_run_one, campaign, name, seed, devices[index % len(devices)]): (name, seed)
            for index, (name, seed) in enumerate(left)
        }
        try:
            while waiting:
                for future in [future for future in waiting if future.done()]:
                    name, seed = waiting.pop(future)
                    outcome = Outcome(name, seed, future.result())
                    if outcome.trouble:
                        say(f"{name}, seed {seed}: {outcome.trouble}")
                    yield outcome
                done = sum(campaign.done(name, seed) for name, seed in tasks)
                bar.update(done - bar.n)
                progress.update(done)
                time.sleep(_POLL_SECONDS if waiting else 0)
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()  # what is under way is done again by the next command
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _budgets(campaign: Campaign) -> Sequence[float]:
    return campaign.protocol.shares[1:] or campaign.protocol.budgets


def _prepare_process(threads: int) -> None:
    torch.set_num_threads(threads)


def _run_one(campaign: Campaign, name: str, seed: int, device: str) -> str:
    """The reason why a run failed, "" if it did not: the others go on."""
    folder = campaign.folder(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=_LOCK_SECONDS):
            Run(campaign, name, seed, device)()
    except Timeout:
        return "another process is at it"
    except Exception as error:  # noqa: BLE001 - one strategy's failure must not end the campaign
        return f"{type(error).__name__}: {error}"
    return ""


# --- tables


def collect(out: Path) -> None:
    """Write scores.csv, picks.csv, rounds.csv and timings.csv from the results of all rounds.

    The first three are the same for the same command; timings are not.
    """
    rows: dict[str, list[dict[str, Any]]] = {key: [] for key in _TABLES}
    for file in sorted(out.glob("runs/*/seed*/round*.json")):
        result = json.loads(file.read_text())
        where = {
            "strategy": file.parent.parent.name, "seed": int(file.parent.name.removeprefix("seed")),
            "round": int(file.stem.removeprefix("round")),
        }  # fmt: skip
        for key, kept in rows.items():
            entries = result[key] if isinstance(result[key], list) else [result[key]]
            labeled = {"labeled": result["round"]["labeled"]} if key == "scores" else {}
            kept += [where | labeled | entry for entry in entries]
    for key, name in _TABLES.items():
        _write(out / name, rows[key])


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: (row["strategy"], row["seed"], row["round"]))
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic(file) as temporary:
        temporary.write_text(text.getvalue())


def overhead(out: Path) -> str:
    """How the time of all rounds was spent, in a sentence."""
    spent: dict[str, float] = {}
    with open(out / "timings.csv", newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if key.endswith("_s"):
                    spent[key] = spent.get(key, 0.0) + float(value)
    total = sum(spent.values())
    if not total:
        return "No round was run."
    names = {
        "train_s": "training",
        "sweep_s": "sweeping",
        "select_s": "choosing",
        "measure_s": "measuring",
        "other_s": "other",
    }
    parts = ", ".join(f"{names[key]} {value / total:.1%}" for key, value in sorted(spent.items(), key=lambda x: -x[1]))
    return f"{total / 3600:.2f} hours of rounds: {parts}."
