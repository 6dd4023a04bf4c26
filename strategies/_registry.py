"""Strategies by the name they are served under."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from loop.errors import BadInput, unknown
from strategies._base import Strategy

_factories: dict[str, Callable[[], Strategy]] = {}


def register(name: str, factory: Callable[[], Strategy]) -> None:
    """Serve `factory()` under `name`.

    Raises:
        ValueError: the name is taken, or is no URL path part and drop-down entry ([a-z0-9_]+).
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"A strategy's name must match [a-z0-9_]+, got {name!r}.")
    if name in _factories:
        raise ValueError(f"A strategy named {name!r} is already registered.")
    _factories[name] = factory


def names() -> list[str]:
    """The names of all registered strategies, sorted."""
    return sorted(_factories)


def get(name: str, parameters: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy of that name, with some of its parameters changed.

    Raises:
        NotFound: no such strategy; the known ones are listed.
        BadInput: no such parameter, or a value of the wrong type or out of its range.
    """
    if name not in _factories:
        raise unknown("strategy", name, names())
    strategy = _factories[name]()
    known = {spec.name: getattr(strategy, spec.name) for spec in fields(strategy) if spec.name != "inner"}
    for key, value in (parameters or {}).items():
        if key not in known:
            raise BadInput(f"Strategy {name!r} has no parameter {key!r}. Known: {', '.join(known) or 'none'}.")
        if not isinstance(value, type(known[key])) and not (isinstance(known[key], float) and type(value) is int):
            raise BadInput(f"Parameter {key!r} of {name!r} must be {type(known[key]).__name__}, got {value!r}.")
    changed = replace(strategy, **(parameters or {}))
    try:
        changed.check_parameters()
    except ValueError as error:
        raise BadInput(str(error)) from None
    return changed


def table() -> list[dict[str, Any]]:
    """What each strategy is, for people: name, asks_for, needs_model, parameters, source."""
    return [_row(name, get(name)) for name in names()]


def _row(name: str, strategy: Strategy) -> dict[str, Any]:
    parameters = [
        {"name": spec.name, "default": getattr(strategy, spec.name), "help": spec.metadata["help"]}
        for spec in fields(strategy)
        if spec.name != "inner"
    ]
    return {
        "name": name,
        "asks_for": strategy.asks_for,
        "needs_model": bool(strategy.needs),
        "parameters": parameters,
        "source": strategy.source,
    }
