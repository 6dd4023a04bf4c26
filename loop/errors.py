"""The errors a user or a client can cause, each with the HTTP status it becomes.

NextSliceError (500)
  BadInput (400)        the request or the file breaks a rule
  Forbidden (403)       switched off by configuration, or never allowed
  NotFound (404)        no such image, strategy, model, ticket
  Conflict (409)        right request, wrong moment
  Gone (410)            the lease was lost
  TooLarge (413)        over a size limit
  Unavailable (503)     what we depend on is down; the same request may succeed later
"""

from collections.abc import Iterable


class NextSliceError(Exception):
    """Base of all errors that carry a sentence for the person who caused them."""

    status = 500


class BadInput(NextSliceError):
    status = 400


class Forbidden(NextSliceError):
    status = 403


class NotFound(NextSliceError):
    status = 404


class Conflict(NextSliceError):
    status = 409


class Gone(NextSliceError):
    status = 410


class TooLarge(NextSliceError):
    status = 413


class Unavailable(NextSliceError):
    status = 503


def unknown(kind: str, name: object, known: Iterable[str]) -> NotFound:
    """The one sentence for a name that is not registered: what was got and what there is."""
    return NotFound(f"There is no {kind} {str(name)[:100]!r}. Known: {', '.join(known) or 'none'}.")
