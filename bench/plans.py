"""nnU-Net's plans of a campaign without a server, for `nextslice plan`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loop.assembly import Assembly
from loop.planning import plan


def planned_campaign(
    studies: Path, settings: Mapping[str, str], again: bool, warn: Callable[[str], None]
) -> dict[str, Any]:
    """The summary of the plans that are kept, made now if there are none, and the number of the network's parameters.

    Args:
        again: plans that are there are replaced.
        warn: told of an image that is left out.

    Raises:
        BadInput: a setting breaks its rule, or there is nothing to plan on.
    """
    parts = Assembly.of(str(studies), settings)
    try:
        parts.datastore.refresh()
        found = None if again else parts.workplace.plans()
        found = found or plan(parts.workplace, parts.loop, again=again, warn=warn)
        network = parts.spec.network(0)
        summary = found.summary()
        made_from = summary.pop("made_from")
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return {**summary, "parameters": f"{parameters / 1e6:.1f} M ({parameters})", **made_from}
    finally:
        parts.store.close()
