"""The report of the demo: its lake as a tree, and a query with its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imbrace_cli.terminal import echo
from imbrace_lake.printable import plural

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

MAX_FOLDERS = 2
COLUMNS = ("type", "messages", "conversations", "latest")
Row = tuple[object, ...]


def show_report(folder: Path, folder_name: str) -> None:
    """Show the objects of a lake, and a query with its result."""
    echo("", "What landed:", "", _tree(folder, folder_name), "")
    question, rows = _asked(folder_name)
    echo("Any engine that reads Parquet reads it:", "", *(f"  {line}" for line in question.splitlines()), "")
    echo(_table(rows))


def _tree(folder: Path, folder_name: str) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from imbrace_lake.export.humanize import size

    tree = Tree(Text(folder_name, style="bold"))
    messages = tree.add("messages")
    for organization in sorted((folder / "messages").iterdir()):
        conversations = sorted(organization.iterdir())
        branch = messages.add(Text(organization.name))
        for conversation in conversations[:MAX_FOLDERS]:
            parts = branch.add(Text(conversation.name))
            for part in sorted(conversation.iterdir()):
                parts.add(_entry(part.name, size(part.stat().st_size)))
        if len(conversations) > MAX_FOLDERS:
            branch.add(_entry("", f"… {len(conversations) - MAX_FOLDERS:,} more"))
    for ledger, what in (("phones", "numbers"), ("conversations", "conversations"), ("runs", "runs")):
        count = sum(1 for _ in (folder / ledger).iterdir())
        tree.add(_entry(ledger, f"the ledger of {what}: {plural(count, 'file')}"))
    tree.add("lake.json")
    return tree


def _entry(name: str, remark: str) -> Text:
    from rich.text import Text

    return Text.assemble(name, "  " if name else "", (remark, "dim"))


def _asked(folder_name: str) -> tuple[str, Sequence[Row]]:
    try:
        import duckdb
    except ImportError:
        return _asked_pandas(folder_name)
    pattern = f"{folder_name}/messages/**/*.parquet".replace("'", "''")
    question = (
        "SELECT type, count(*) AS messages, count(DISTINCT conversation_id) AS conversations,\n"
        "       strftime(max(created_at), '%Y-%m-%d') AS latest\n"
        f"FROM read_parquet('{pattern}')\n"
        "WHERE NOT is_deleted GROUP BY type ORDER BY messages DESC, type LIMIT 8;"
    )
    with duckdb.connect() as connection:
        return f"-- DuckDB\n{question}", connection.execute(question).fetchall()


def _asked_pandas(folder_name: str) -> tuple[str, Sequence[Row]]:
    import pandas as pd

    question = (
        f"# pandas\nmessages = pd.read_parquet({folder_name + '/messages'!r})\n"
        'messages[~messages.is_deleted].groupby("type").agg(\n'
        '    messages=("message_id", "size"),\n'
        '    conversations=("conversation_id", "nunique"),\n'
        '    latest=("created_at", "max"),\n'
        ').sort_values(["messages", "type"], ascending=[False, True]).head(8)'
    )
    messages = pd.read_parquet(f"{folder_name}/messages")
    found = (
        messages[~messages["is_deleted"]]
        .groupby("type")
        .agg(
            messages=("message_id", "size"),
            conversations=("conversation_id", "nunique"),
            latest=("created_at", "max"),
        )
        .sort_values(["messages", "type"], ascending=[False, True])
        .head(8)
    )
    rows = [(kind, *row[:-1], f"{row[-1]:%Y-%m-%d}") for kind, *row in found.itertuples()]
    return question, rows


def _table(rows: Sequence[Row]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("type", "latest") else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    return table
