"""The loop in MONAI Label's forms: a strategy that serves tickets, a scoring method that sweeps and opens a round."""

from collections.abc import Mapping, Sequence
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

import strategies
from loop.conductor import Conductor
from loop.errors import BadInput, NextSliceError
from loop.rounds import Loop
from loop.tickets import Ticket, Wanted
from loop.worker import run

_AXIS_NAMES = ("i", "j", "k")
_ANNOTATOR_LENGTH = 200


def check_annotator(name: object) -> str:
    """An annotator's name as clients send it; None and "" are nobody in particular.

    Raises:
        BadInput: not text, too long, or with control characters.
    """
    if name is None:
        return ""
    if not isinstance(name, str) or len(name) > _ANNOTATOR_LENGTH or not name.isprintable():
        raise BadInput(f"An annotator (client_id) must be printable text of at most {_ANNOTATOR_LENGTH} characters.")
    return name.strip()


class ServedStrategy(Strategy):
    """POST /activelearning/<name>: one ticket of the strategy's open round.

    Args:
        strategy: the query strategy behind the served name.
    """

    def __init__(self, strategy: str, loop: Loop, conductor: Conductor) -> None:
        chosen = strategies.get(strategy)
        super().__init__(f"{type(chosen).__name__}: {chosen.asks_for}")
        self.strategy, self.loop, self.conductor = strategy, loop, conductor

    def info(self) -> dict[str, Any]:
        # Slicer shows `config` under its options, and sends the first entry unless the user picks another.
        return {"description": self.description, "config": {"next": ["resume", "another"]}}

    def __call__(self, request: Mapping[str, Any], datastore: object = None) -> dict[str, Any]:
        """The next ticket as viewers read it; {} makes Slicer say that there are no samples.

        Request keys: client_id (the annotator), next: "resume" (an open ticket is given again) or "another".
        """
        how = request.get("next", "resume")
        how = how[0] if isinstance(how, list) and how else how
        if how not in ("resume", "another"):
            raise BadInput(f"next must be resume or another, got {str(how)[:40]!r}.")
        tickets = self.ask(check_annotator(request.get("client_id")), another=how == "another")
        return sample_of(tickets[0]) if tickets else {}

    def ask(
        self, annotator: str, n: int = 1, *, resume: bool = True, another: bool = False, of: Wanted | None = None
    ) -> list[Ticket]:
        """Tickets, after making sure that a round of this strategy is there or under way."""
        self.conductor.want(self.strategy)
        return self.loop.ask(self.strategy, annotator, n, resume=resume, another=another, of=of)


def sample_of(ticket: Ticket) -> dict[str, Any]:
    """A ticket in the keys that viewers read: id, name, PatientID (the text Slicer shows), and ours under `ask`."""
    whole = ticket.items[0]["slice"] is None
    where = where_of([] if whole else ticket.slices, ticket.axis)
    return {
        "id": ticket.image_id,
        "PatientID": f"{ticket.patient}: {where}",
        "checksum": None,
        "ask": {
            "ticket": ticket.id,
            "round": ticket.round,
            "strategy": ticket.strategy,
            "selected_by": ticket.selected_by,
            "unit": "volume" if whole else "slice",
            "axis": ticket.axis,
            "slices": ticket.slices,
            "items": ticket.items,
            "score": ticket.items[0]["score"],
            "why": ticket.items[0]["why"],
            "patient": ticket.patient,
            "annotator": ticket.annotator,
            "expires_at": ticket.expires_at,
        },
    }


def where_of(slices: Sequence[int], axis: int) -> str:
    """What is asked of a volume, for people; no slices are the whole volume."""
    return f"slice {', '.join(map(str, slices))} ({_AXIS_NAMES[axis]})" if slices else "whole volume"


class SweepScoring(ScoringMethod):
    """POST /scoring/<name>: sweep the pool with the current model, and open a round of this strategy."""

    def __init__(self, strategy: str, conductor: Conductor) -> None:
        super().__init__(f"Sweep the pool and open a round of {strategy}")
        self.strategy, self.conductor = strategy, conductor

    def __call__(self, request: Mapping[str, Any], datastore: object = None) -> dict[str, Any]:
        """Sweep here and now; the server uses child processes instead. Raises NextSliceError if it failed."""
        job = self.conductor.loop.jobs.queue("sweep", self.strategy, self.request_of(request), "asked for")
        run(self.conductor.workplace, job["id"])
        ended = self.conductor.loop.jobs.get(job["id"])
        if ended["state"] != "done":
            raise NextSliceError(str(ended["message"]))
        return dict(ended["result"])

    def request_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The job's request from a client's: budget, and parameters of the strategy.

        Raises:
            BadInput: budget is no positive whole number, or a parameter does not exist or fit.
        """
        budget, parameters = params.get("budget"), params.get("parameters") or {}
        if budget is not None and (type(budget) is not int or not 1 <= budget <= 1_000_000):
            raise BadInput(f"budget must be a whole number from 1 to 1000000, got {str(budget)[:40]!r}.")
        if not isinstance(parameters, Mapping):
            raise BadInput(f"parameters must be a JSON object, got {type(parameters).__name__}.")
        self.conductor.loop.strategy(self.strategy, parameters)
        return {"strategies": [self.strategy], "budget": budget, "parameters": dict(parameters)}
