"""What an archive says when something was stored in it (STOW-RS)."""

import json

_REFERENCED_SOPS, _SOP_CLASS, _SOP_INSTANCE = "00081199", "00081150", "00081155"


def stored_in(answer: bytes) -> tuple[tuple[str, str], ...]:
    """(SOP class UID, SOP instance UID) of what an archive says it took; () if it says nothing of the kind."""
    try:
        told = json.loads(answer)
        entries = told[_REFERENCED_SOPS].get("Value", [])
        return tuple((str(one[_SOP_CLASS]["Value"][0]), str(one[_SOP_INSTANCE]["Value"][0])) for one in entries)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ()
