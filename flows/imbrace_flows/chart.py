"""A chart of a run as SVG: new messages by day, conversations by status.

It has its own background, so that it is legible in the light and the dark UI. It contains only counts and
dates.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

from imbrace_lake.printable import plural

WIDTH, HEIGHT = 720, 300
MAX_BARS = 60
_LEFT, _RIGHT = 24, WIDTH - 24
_TOP, _BASE = 56, 176
_STRIPE = 224
# In the order of the outcomes: complete, unchanged, gone, incomplete, failed, not reached.
_COLORS = ("#1a7f37", "#6e7781", "#9a6700", "#bc4c00", "#cf222e", "#8250df")


def chart_markdown(days: Mapping[date, int], conversations: Sequence[tuple[int, str]]) -> str:
    """Return the chart as Markdown with the image in it, which needs no storage and no network."""
    image = b64encode(chart(days, conversations).encode()).decode()
    return f"![New messages by day, conversations by status](data:image/svg+xml;base64,{image})"


def chart(days: Mapping[date, int], conversations: Sequence[tuple[int, str]]) -> str:
    """Draw the chart of a run.

    Args:
        days: New messages by the day they were created, UTC.
        conversations: The number of conversations with each outcome, and its name (`RunSummary.outcomes`).

    Returns:
        SVG; at most 60 bars, so never more than a few kilobytes.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
            f' viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="#24292f">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#f6f8fa"/>',
            *_bars(days),
            *_stripe(conversations),
            "</svg>",
        ]
    )


def _bars(days: Mapping[date, int]) -> Iterator[str]:
    if not days:
        yield _text(_LEFT, 32, "No new messages", weight="bold")
        return
    first, last = min(days), max(days)
    step = -(-((last - first).days + 1) // MAX_BARS)
    bars = [0] * (((last - first).days // step) + 1)
    for day, count in days.items():
        bars[(day - first).days // step] += count
    by = "day" if step == 1 else f"{step:,} days"
    title = f"{sum(bars):,} new messages; a bar for every {by}, at most {max(bars):,} in one"
    yield _text(_LEFT, 32, title, weight="bold")
    # The bar of a single day is narrower than the chart.
    slot = min(40.0, (_RIGHT - _LEFT) / len(bars))
    for number, count in enumerate(bars):
        height = (_BASE - _TOP) * count / max(bars)
        begins = first + timedelta(days=number * step)
        yield (
            f'<rect x="{_LEFT + number * slot:.1f}" y="{_BASE - height:.1f}" width="{max(1.0, slot - 2):.1f}"'
            f' height="{height:.1f}" fill="#0969da"><title>{begins}: {count:,}</title></rect>'
        )
    yield f'<path d="M{_LEFT} {_BASE}H{_RIGHT}" stroke="#6e7781"/>'
    yield _text(_LEFT, _BASE + 18, f"{first}")
    if last > first:
        yield _text(_RIGHT, _BASE + 18, f"{last}", anchor="end")


def _stripe(conversations: Sequence[tuple[int, str]]) -> Iterator[str]:
    total = sum(count for count, _ in conversations)
    yield _text(_LEFT, _STRIPE, plural(total, "conversation"), weight="bold")
    x, legend = float(_LEFT), _LEFT
    for (count, name), color in zip(conversations, _COLORS, strict=False):
        if not count:
            continue
        width = (_RIGHT - _LEFT) * count / total
        yield f'<rect x="{x:.1f}" y="{_STRIPE + 12}" width="{width:.1f}" height="20" fill="{color}"/>'
        yield f'<rect x="{legend}" y="{_STRIPE + 44}" width="12" height="12" fill="{color}"/>'
        yield _text(legend + 18, _STRIPE + 55, f"{count:,} {name}")
        x += width
        legend += (_RIGHT - _LEFT) // len(_COLORS)


def _text(x: int, y: int, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>'
