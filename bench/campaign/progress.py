"""How long a campaign will take, told from the rounds that it has done."""

import time
from collections.abc import Callable


class Progress:
    """Tells the time that is left after the first round, and then each time another tenth of the rounds is done.

    Args:
        total: rounds in all. done: those that an earlier command did, whose time says nothing.
        clock: seconds.
    """

    def __init__(
        self, total: int, done: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._before, self._say, self._clock = total, done, say, clock
        self._began, self._next = clock(), done + 1

    def update(self, done: int) -> None:
        """So many rounds are done now, the earlier ones among them."""
        if not self._next <= done < self._total:
            return
        left = (self._clock() - self._began) / (done - self._before) * (self._total - done)
        self._say(f"{done} of {self._total} rounds are done; about {_spelled(left)} left.")
        self._next = done + max(1, self._total // 10)


def _spelled(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
