"""The data dictionary and the entity diagrams, from the schemas of the lake and of the views."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from columns import SCHEMAS
from views import KEYS, described_views

IMAGES = Path(__file__).resolve().parents[1] / "images"
_WIDTH, _GUTTER, _SPACE, _LINE, _MARGIN = 260, 100, 34, 19, 14
_VERSION = ("organization_id", "conversation_id", "message_id", "replaced_at")


@dataclass(frozen=True)
class Entity:
    """A table of the lake, or a view: what a row is, and its key."""

    row: str
    key: Sequence[str]
    shown: Sequence[str] = ()


@dataclass(frozen=True)
class Link:
    """A line of a diagram: how many rows of one entity belong to how many of the other."""

    first: str
    ends: str
    second: str


@dataclass(frozen=True)
class Diagram:
    """A picture: the entities in columns, from left to right."""

    title: str
    columns: Sequence[Sequence[str]]
    links: Sequence[Link]


TABLES: Mapping[str, Entity] = {
    "messages": Entity("message", ("organization_id", "conversation_id", "message_id"), ("run_id",)),
    "conversations": Entity(
        "conversation that a run touched", ("run_id", "organization_id", "conversation_id")
    ),
    "phones": Entity("input number of a run", ("run_id", "position"), ("phone_hash", "conversation_ids")),
    "runs": Entity("run that ended", ("run_id",), ("parent_run_id",)),
    "revisions": Entity("earlier version of a message", _VERSION, ("replaced_by_run_id",)),
    "shapes": Entity("field or value that was new", ("run_id", "organization_id", "shape")),
}
_ROWS: Mapping[str, str] = {
    "settings": "lake",
    "bots": "sender that is a bot",
    "business_hours": "weekday",
    "messages": "message",
    "turns": "message that the customer saw",
    "episodes": "episode of a conversation",
    "replies": "wait of a contact",
    "response_times": "week",
    "daily_volumes": "day",
    "busiest_hours": "weekday and hour",
    "quick_reply_funnel": "organization",
    "conversations": "conversation",
    "phones": "phone number",
    "documents": "chunk of an episode",
}
_SHOWN: Mapping[str, Sequence[str]] = {
    "turns": ("message_id",),
    "replies": ("contact_message_id", "reply_message_id"),
    "documents": ("first_message_id", "last_message_id"),
    "episodes": ("first_contact_message_id", "first_reply_message_id"),
    "phones": ("conversation_ids",),
}
VIEWS = {name: Entity(row, KEYS[name], _SHOWN.get(name, ())) for name, row in _ROWS.items()}

DIAGRAMS: Mapping[str, Diagram] = {
    "tables": Diagram(
        "The messages and the ledgers of a lake",
        (("phones", "runs"), ("conversations", "shapes"), ("messages", "revisions")),
        (
            Link("phones", "n n", "conversations"),
            Link("runs", "1 n", "conversations"),
            Link("runs", "1 n", "shapes"),
            Link("conversations", "n n", "messages"),
            Link("messages", "1 n", "revisions"),
        ),
    ),
    "views": Diagram(
        "The views",
        (
            ("phones", "conversations", "daily_volumes", "busiest_hours"),
            ("messages", "episodes", "response_times", "quick_reply_funnel"),
            ("turns", "replies", "documents"),
        ),
        (
            Link("phones", "n n", "conversations"),
            Link("conversations", "1 n", "messages"),
            Link("conversations", "1 n", "episodes"),
            Link("daily_volumes", "1 n", "messages"),
            Link("busiest_hours", "1 n", "messages"),
            Link("messages", "1 0..1", "turns"),
            Link("episodes", "1 n", "turns"),
            Link("episodes", "1 n", "replies"),
            Link("episodes", "1 n", "documents"),
            Link("episodes", "n 1", "response_times"),
            Link("quick_reply_funnel", "1 n", "turns"),
        ),
    ),
}


@cache
def _columns_of_views() -> Mapping[str, Sequence[str]]:
    return {view.name: [name for name, _, _ in columns] for view, columns in described_views()}


def files() -> Iterator[tuple[Path, str]]:
    """Yield the pictures."""
    columns = {
        "tables": {name: schema.names for name, schema in SCHEMAS.items()},
        "views": _columns_of_views(),
    }
    entities = {"tables": TABLES, "views": VIEWS}
    for name, diagram in DIAGRAMS.items():
        yield IMAGES / f"{name}.svg", _picture(diagram, entities[name], columns[name])


def dictionary() -> str:
    """Return what a row of each table and view is, and where each column is."""
    rows = [
        "| name | one row for each | key |",
        "| --- | --- | --- |",
        *(_row(f"[{name}](columns.md#{name})", entity) for name, entity in TABLES.items()),
        *(_row(f"view [{name}](views.md#{name})", entity) for name, entity in VIEWS.items()),
    ]
    where: dict[str, list[str]] = defaultdict(list)
    for table, schema in SCHEMAS.items():
        for column in schema.names:
            where[column].append(f"[{table}](columns.md#{table})")
    for view, columns in _columns_of_views().items():
        for column in columns:
            where[column].append(f"view [{view}](views.md#{view})")
    rows += ["", "## Every column", "", "| column | where |", "| --- | --- |"]
    rows += (f"| `{column}` | {', '.join(found)} |" for column, found in sorted(where.items()))
    return "\n".join(rows)


def _row(name: str, entity: Entity) -> str:
    return f"| {name} | {entity.row} | {', '.join(f'`{column}`' for column in entity.key)} |"


def _picture(diagram: Diagram, entities: Mapping[str, Entity], columns: Mapping[str, Sequence[str]]) -> str:
    """Return a diagram as SVG: a box for each entity, with its key, and a line for each link."""
    boxes: dict[str, tuple[int, int, int]] = {}
    parts: list[str] = []
    bottom = 0
    for position, names in enumerate(diagram.columns):
        x, y = _MARGIN + position * (_WIDTH + _GUTTER), _MARGIN
        for name in names:
            lines = [(column, "key") for column in entities[name].key]
            lines += [(column, "column") for column in entities[name].shown]
            if others := len(columns[name]) - len(lines):
                lines.append((f"{others} other columns", "others"))
            height = (len(lines) + 2) * _LINE + 8
            boxes[name] = (x, y, height)
            parts += _box(name, entities[name].row, lines, x, y, height)
            y += height + _SPACE
        bottom = max(bottom, y - _SPACE)
    width = 2 * _MARGIN + len(diagram.columns) * (_WIDTH + _GUTTER) - _GUTTER
    height = bottom + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-label="{escape(diagram.title)}">',
            "<style>text{font:13px sans-serif;fill:#222}.name{font-weight:bold;fill:#fff}.row,.others"
            "{fill:#666;font-style:italic}.key{font-weight:bold}.end{fill:#1f5f8b}path{stroke:#1f5f8b;fill:none;"
            "stroke-width:1.4}</style>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *_lines(diagram.links, boxes),
            *parts,
            "</svg>\n",
        ]
    )


def _box(name: str, row: str, lines: Sequence[tuple[str, str]], x: int, y: int, height: int) -> Iterator[str]:
    yield f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{height}" rx="4" fill="#f6f8fa" stroke="#1f5f8b"/>'
    yield f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_LINE + 5}" rx="4" fill="#1f5f8b"/>'
    yield f'<text class="name" x="{x + 10}" y="{y + 17}">{escape(name)}</text>'
    texts = [(f"row: {row}", "row"), *lines]
    for number, (text, kind) in enumerate(texts, start=2):
        yield f'<text class="{kind}" x="{x + 10}" y="{y + number * _LINE + 2}">{escape(text)}</text>'


def _lines(links: Sequence[Link], boxes: Mapping[str, tuple[int, int, int]]) -> Iterator[str]:
    """Draw each link from the right side of one box to the left side of another, or straight down."""
    used: dict[tuple[str, bool], int] = defaultdict(int)
    for number, link in enumerate(links):
        (x, y, height), (to_x, to_y, _) = boxes[link.first], boxes[link.second]
        first, second = link.ends.split()
        if x == to_x:
            middle = x + _WIDTH // 2
            yield f'<path d="M{middle} {y + height}V{to_y}"/>'
            yield f'<text class="end" x="{middle + 5}" y="{y + height + 13}">{first}</text>'
            yield f'<text class="end" x="{middle + 5}" y="{to_y - 4}">{second}</text>'
            continue
        start, end = (side for side in ((link.first, True), (link.second, False)))
        # Lines at one side of a box are beside each other, and so are those in a gutter.
        y, to_y = y + 44 + 20 * used[start], to_y + 44 + 20 * used[end]
        used[start] += 1
        used[end] += 1
        turn = x + _WIDTH + _GUTTER // 2 - 20 + 10 * (number % 5)
        yield f'<path d="M{x + _WIDTH} {y}H{turn}V{to_y}H{to_x}"/>'
        yield f'<text class="end" x="{x + _WIDTH + 4}" y="{y - 4}">{first}</text>'
        yield f'<text class="end" text-anchor="end" x="{to_x - 4}" y="{to_y - 4}">{second}</text>'
