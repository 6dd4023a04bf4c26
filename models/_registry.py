"""Model specs by the name they are served under."""

import re
from collections.abc import Callable

from loop.errors import unknown
from models.spec import ModelSpec

SpecFactory = Callable[..., ModelSpec]
_factories: dict[str, SpecFactory] = {}


def register(name: str, factory: SpecFactory) -> None:
    """Serve `factory(labels=..., spacing=..., patch=...)` under `name`.

    Raises:
        ValueError: the name is taken, or is no URL path part ([a-z0-9_]+).
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"A model's name must match [a-z0-9_]+, got {name!r}.")
    if name in _factories:
        raise ValueError(f"A model named {name!r} is already registered.")
    _factories[name] = factory


def names() -> list[str]:
    """The names of all registered models, sorted."""
    return sorted(_factories)


def get(
    name: str, *, labels: tuple[str, ...], spacing: tuple[float, ...] = (), patch: tuple[int, ...] = ()
) -> ModelSpec:
    """The spec of that name.

    Raises:
        NotFound: no such model; the known ones are listed. BadInput: spacing or patch do not fit its dimensions.
    """
    if name not in _factories:
        raise unknown("model", name, names())
    return _factories[name](labels=labels, spacing=spacing, patch=patch)
