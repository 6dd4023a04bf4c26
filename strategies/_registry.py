"""Strategies by the name they are served under."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from loop.errors import BadInput, unknown
from loop.views import Augmented, Dropout, Ensemble, Gradients, View
from strategies._base import Strategy


@dataclass(frozen=True)
class _Entry:
    make: Callable[[], Strategy]
    open_inner: bool


_entries: dict[str, _Entry] = {}


def register(name: str, make: Callable[[], Strategy], *, open_inner: bool = False) -> None:
    """Serve `make()` under `name`.

    Args:
        open_inner: a wrapper whose parameter `inner` may name another strategy.

    Raises:
        ValueError: the name is taken, or is no URL path part and drop-down entry ([a-z0-9_]+).
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"A strategy's name must match [a-z0-9_]+, got {name!r}.")
    if name in _entries:
        raise ValueError(f"A strategy named {name!r} is already registered.")
    _entries[name] = _Entry(make, open_inner)


def names() -> list[str]:
    """The names of all registered strategies, sorted."""
    return sorted(_entries)


def get(name: str, parameters: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy of that name, with some of its parameters changed; a wrapper has those of what it wraps too.

    Raises:
        NotFound: no such strategy; the known ones are listed.
        BadInput: no such parameter, or a value of the wrong type or out of its range.
    """
    if name not in _entries:
        raise unknown("strategy", name, names())
    strategy, rest = _entries[name].make(), dict(parameters or {})
    if _entries[name].open_inner and "inner" in rest:
        strategy = _wrapping(name, strategy, rest.pop("inner"))
    known = {spec: default for spec, default, _ in _parameters(strategy)}
    for key, value in rest.items():
        if key not in known:
            raise BadInput(f"Strategy {name!r} has no parameter {key!r}. Known: {', '.join(known) or 'none'}.")
        kind = type(known[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise BadInput(f"Parameter {key!r} of {name!r} must be {kind.__name__}, got {value!r}.")
    changed = _changed(strategy, rest)
    try:
        changed.check_parameters()
    except ValueError as error:
        raise BadInput(str(error)) from None
    return changed


def parse(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters that came as text, in their types; checked by `get`.

    Raises:
        NotFound, BadInput: as `get`; or a text that is none of the parameter's type.
    """
    values: dict[str, Any] = {"inner": texts["inner"]} if "inner" in texts else {}
    known = {spec: default for spec, default, _ in _parameters(get(name, values))}
    for key, text in texts.items():
        if key in known:
            values[key] = _typed(name, key, text, known[key])
        elif key != "inner":
            get(name, {key: text})
    get(name, values)
    return values


def _typed(name: str, key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise BadInput(f"Parameter {key!r} of {name!r} must be true or false, got {text!r}.")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise BadInput(f"Parameter {key!r} of {name!r} must be {type(default).__name__}, got {text!r}.") from None


def _wrapping(name: str, wrapper: Strategy, inner: Any) -> Strategy:
    """The wrapper around another strategy."""
    kind = next(spec.type for spec in fields(wrapper) if spec.name == "inner")
    assert isinstance(kind, type), "dataclasses keep the class, as long as annotations are evaluated"
    made = {other: _entries[other].make() for other in names() if other != name}
    fitting = [other for other, strategy in made.items() if isinstance(strategy, kind) and wrapper.may_wrap(strategy)]
    if inner not in fitting:
        raise BadInput(f"Parameter 'inner' of {name!r} must be one of {', '.join(fitting)}, got {inner!r}.")
    changes: dict[str, Any] = {"inner": made[inner]}
    return replace(wrapper, **changes)


def _parameters(strategy: Strategy) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """(name, value, metadata) of what can be set: the strategy's own fields, then those of what it wraps."""
    own, wrapped = [], list[tuple[str, Any, Mapping[str, Any]]]()
    for spec in fields(strategy):
        value = getattr(strategy, spec.name)
        if isinstance(value, Strategy):
            wrapped += _parameters(value)
        else:
            own.append((spec.name, value, spec.metadata))
    return own + [entry for entry in wrapped if entry[0] not in {name for name, _, _ in own}]


def _changed(strategy: Strategy, values: Mapping[str, Any]) -> Strategy:
    changes: dict[str, Any] = {}
    for spec in fields(strategy):
        value = getattr(strategy, spec.name)
        if spec.name in values:
            changes[spec.name] = values[spec.name]
        elif isinstance(value, Strategy):
            changes[spec.name] = _changed(value, values)
    return replace(strategy, **changes)


def table() -> list[dict[str, Any]]:
    """What each strategy is, for people: name, asks_for, needs, needs_model, cost, dimensions, parameters, source."""
    return [_row(name, get(name)) for name in names()]


def _row(name: str, strategy: Strategy) -> dict[str, Any]:
    parameters = [
        {"name": key, "default": value, "help": metadata["help"]}
        | {bound: metadata[bound] for bound in ("choices", "low", "high") if metadata[bound] not in (None, ())}
        for key, value, metadata in _parameters(strategy)
    ]
    if _entries[name].open_inner:
        inner = next(getattr(strategy, spec.name) for spec in fields(strategy) if spec.name == "inner")
        parameters.insert(0, {"name": "inner", "default": inner.name, "help": "the strategy that is wrapped"})
    views = list(dict.fromkeys(need.view for need in strategy.needs))
    return {
        "name": name,
        "asks_for": strategy.asks_for,
        "needs": ", ".join(need.name for need in strategy.needs) or "nothing",
        "needs_model": strategy.needs_task_model,
        "cost": "; ".join([_cost(views, strategy), strategy.selection_cost]),
        "dimensions": "2D, 3D",
        "parameters": parameters,
        "source": strategy.source,
    }


def _cost(views: list[View], strategy: Strategy) -> str:
    """What a sweep computes an item, in forward passes."""
    if not views:
        return "no sweep"
    parts = []
    for view in views:
        match view:
            case Dropout():
                parts.append(f"{view.passes} passes from the first dropout on")
            case Augmented():
                parts.append(f"{view.count} passes")
            case Ensemble():
                parts.append(f"{view.members} networks' passes")
            case Gradients():
                parts.append("a forward and a backward pass")
    shared = any(not isinstance(view, Dropout | Augmented | Ensemble | Gradients) for view in views)
    return ", ".join([*(["1 pass"] if shared else []), *parts, *strategy.further_cost])
