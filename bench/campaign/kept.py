"""Names of what a campaign keeps, for those that write it and those that read it."""

from pathlib import Path

UPPER_BOUND = "all"
"""The name of the run that annotates the whole pool at once."""

POOL, LABELED, PICKED = range(3)
"""State of an item on a map."""


def map_file(out: Path, strategy: str, seed: int) -> Path:
    return out / "maps" / f"{strategy}-seed{seed}.npz"
