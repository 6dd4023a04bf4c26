"""`nextslice simulate`: what was asked for, turned into a campaign."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from bench.campaign.protocol import Protocol, preset, seeds_of
from bench.campaign.run import Campaign
from bench.campaign.simulate import simulate
from bench.campaign.study import Study
from loop.config import AppConfig


def simulate_command(
    images: Path,
    labels: Path,
    scribbles: Path | None,
    out: Path,
    *,
    names: str,
    preset_name: str,
    unit: str,
    start: int,
    budget: int,
    rounds: int,
    seeds: str,
    model: str,
    protocol: str,
    scale: float,
    most_pool: int,
    most_test: int,
    test_share: float,
    conf: Mapping[str, str],
    workers: int,
    devices: str,
    keep: bool,
    maps: bool,
    command: str,
) -> bool:
    """Run the campaign; True if a run failed.

    Raises:
        NotFound, BadInput: whatever of it is wrong, before anything is begun.
    """
    plan = (preset(preset_name) if preset_name else Protocol()).scaled(scale)
    plan = _changed(plan, unit=unit, start=start, budget=budget, rounds=rounds, model=model, protocol=protocol)
    own = {"unit": plan.unit} | ({"supervision": "scribble"} if scribbles else {})
    settings = {**own, **conf}
    study = Study.of(
        images, labels, AppConfig.from_conf({**plan.conf, **settings}, str(images)),
        scribbles=scribbles, test_share=test_share, most_pool=most_pool, most_test=most_test,
    )  # fmt: skip
    chosen = seeds_of(seeds)
    campaign = Campaign(out, study, plan, settings, keep, chosen[0] if maps else None)
    outcomes = simulate(
        campaign,
        names_of(names),
        chosen,
        workers=workers,
        devices=devices.split(","),
        command=command,
        say=tqdm.write,
    )
    return any(outcome.trouble for outcome in outcomes)


def names_of(text: str) -> list[str]:
    """Names that were given comma separated."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _changed(plan: Protocol, *, unit: str, start: int, budget: int, rounds: int, model: str, protocol: str) -> Protocol:
    """With everything that was given in place of the protocol's own."""
    budgets = plan.budgets
    if rounds:
        budgets = (budgets * rounds)[:rounds]
    if budget:
        budgets = (budget,) * len(budgets)
    shares = () if start or budget else plan.shares[: rounds + 1 if rounds else None]
    return replace(
        plan, budgets=budgets, shares=shares, start=start or plan.start,
        unit=unit or plan.unit, model=model or plan.model, protocol=protocol or plan.protocol,
    )  # fmt: skip
