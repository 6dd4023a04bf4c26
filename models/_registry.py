"""Model specs by the name they are served under."""

import re
from collections.abc import Callable

from loop.errors import unknown
from models.plans import Plans
from models.spec import ModelSpec

SpecFactory = Callable[..., ModelSpec]
_factories: dict[str, SpecFactory] = {}
_planned: set[str] = set()


def register(name: str, factory: SpecFactory, *, planned: bool = False) -> None:
    """Serve `factory(labels=..., spacing=..., patch=...)` under `name`.

    Args:
        planned: the network follows from plans of the campaign, which the factory is given as `plans`.

    Raises:
        ValueError: the name is taken, or is no URL path part ([a-z0-9_]+).
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"A model's name must match [a-z0-9_]+, got {name!r}.")
    if name in _factories:
        raise ValueError(f"A model named {name!r} is already registered.")
    _factories[name] = factory
    if planned:
        _planned.add(name)


def names() -> list[str]:
    """The names of all registered models, sorted."""
    return sorted(_factories)


def is_planned(name: str) -> bool:
    """Whether the model's network follows from plans of the campaign.

    Raises:
        NotFound: no such model; the known ones are listed.
    """
    if name not in _factories:
        raise unknown("model", name, names())
    return name in _planned


def get(
    name: str,
    *,
    labels: tuple[str, ...],
    spacing: tuple[float, ...] = (),
    patch: tuple[int, ...] = (),
    plans: Plans | None = None,
) -> ModelSpec:
    """The spec of that name.

    Args:
        plans: of the campaign, for a model that follows from them.

    Raises:
        NotFound: no such model; the known ones are listed. BadInput: spacing or patch do not fit its dimensions.
        Conflict: the model follows from plans, and there are none yet.
    """
    if is_planned(name):
        return _factories[name](labels=labels, spacing=spacing, patch=patch, plans=plans)
    return _factories[name](labels=labels, spacing=spacing, patch=patch)
