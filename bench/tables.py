"""Benchmark figures as text."""

import statistics
from collections.abc import Sequence


def median_of(values: Sequence[float]) -> str:
    """`median (min-max)`."""
    return f"{_short(statistics.median(values))} ({_short(min(values))}-{_short(max(values))})"


def ratio_of(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of `above` over the median of `below`."""
    return statistics.median(above) / statistics.median(below)


def times(ratio: float) -> str:
    """A ratio as `12x`."""
    return f"{_short(ratio)}x"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False) -> str:
    """A Markdown table that is also aligned in a terminal: the first column left, the others right, or all left if `text`."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(w) if text or i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = [f"{'-' * widths[0]}", *("-" * (width - 1) + ("-" if text else ":") for width in widths[1:])]
    return "\n".join(["", f"## {title}", "", line(header), line(rule), *map(line, rows)])


def _short(value: float) -> str:
    """Three significant digits, and whole numbers from 100 up."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
