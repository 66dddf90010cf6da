"""The SQL views: equal to a second implementation in plain Python, and to their files."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlglot

from imbrace_lake import Lake, ViewSettings
from imbrace_lake.errors import SettingsError
from imbrace_lake.query.dialects import DIALECTS
from imbrace_lake.query.views import SOURCES, scripts, views
from tests.acceptance.scale import IS_FULL
from tests.talks import BOT_TEXTS, EXTRA_BOT, make_entries, make_phones, make_rows, write_lake
from tests.talks_in_python import Book

ROOT = Path(__file__).parents[2]
CONVERSATIONS = 200 if IS_FULL else 100
KEYS = {
    "episodes": ("organization_id", "conversation_id", "episode"),
    "replies": ("organization_id", "conversation_id", "episode", "reply_number"),
    "response_times": ("organization_id", "week_start"),
    "daily_volumes": ("organization_id", "day"),
    "busiest_hours": ("organization_id", "weekday", "hour_of_day"),
    "quick_reply_funnel": ("organization_id",),
    "documents": ("organization_id", "conversation_id", "episode", "chunk"),
    "conversations": ("organization_id", "conversation_id"),
}
SETTINGS = {
    "Taipei": ViewSettings(time_zone="Asia/Taipei"),
    "Berlin": ViewSettings(
        time_zone="Europe/Berlin",
        gap=timedelta(hours=6),
        # Open while the clocks change, on Sundays at 02:00.
        business_hours=((0, 1440), None, (300, 301), None, (9 * 60, 1440), None, (60, 240)),
        bots=(EXTRA_BOT, "u_'"),
        document_characters=60,
    ),
    "New York": ViewSettings(time_zone="America/New_York", gap=timedelta(seconds=1), bots=(EXTRA_BOT,)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks") / "lake"
    write_lake(folder, make_rows(7, CONVERSATIONS), make_entries(CONVERSATIONS), make_phones())
    return folder


def by_key(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[Any, dict[str, Any]]:
    found = {tuple(row.pop(name) for name in names): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", SETTINGS)
def test_views_equal_plain_python(folder: Path, place: str) -> None:
    book = Book(make_rows(7, CONVERSATIONS), SETTINGS[place])
    expected = {view: getattr(book, view)() for view in KEYS if view != "conversations"}
    expected["conversations"] = book.conversations(make_entries(CONVERSATIONS))

    with Lake.open(str(folder), settings=SETTINGS[place]) as lake:
        for view, key in KEYS.items():
            found = by_key(lake.sql(f"FROM {view}").to_arrow().to_pylist(), key)
            assert found == expected[view]
            assert len(found) > 1


@pytest.mark.slow
def test_messages_have_roles_and_machine_messages(folder: Path) -> None:
    with Lake.open(str(folder), settings=SETTINGS["Berlin"]) as lake:
        rows = lake.sql("SELECT * FROM messages").to_arrow().to_pylist()

    assert len(rows) == len(make_rows(7, CONVERSATIONS))
    roles = {row["sender_id"]: row["sender_role"] for row in rows}
    assert roles == {
        "con_1": "contact", "u_ann": "user", "u_bob": "user", "pub_1": "bot", EXTRA_BOT: "bot",
        "sys": "unknown", None: "unknown",
    }  # fmt: skip
    for row in rows:
        expected = row["sender_role"] == "bot" and BOT_TEXTS.get(row["text"] or "", False)
        assert row["is_machine"] == expected


@pytest.mark.slow
def test_phones_have_their_latest_answer(folder: Path) -> None:
    with Lake.open(str(folder)) as lake:
        rows = lake.phones().to_arrow().to_pylist()

    assert {row["phone_hash"]: (row["status"], row["reason"], row["conversation_ids"]) for row in rows} == {
        "a": ("resolved", None, ["conv_0"]),
        "b": ("error", "400", None),
    }


def test_every_name_that_a_reader_sees_is_described(folder: Path) -> None:
    page = (ROOT / "docs/views.md").read_text("utf-8")

    with Lake.open(str(folder)) as lake:
        names = lake.sql("SHOW TABLES").to_arrow().column("name").to_pylist()

    assert len(names) > 20
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_files_are_up_to_date(dialect: Any) -> None:
    name = f"{dialect.name}.sql"

    assert (ROOT / "sql" / name).read_text("utf-8") == scripts()[name]
    assert "QUALIFY" not in scripts()[name].upper()


# sqlglot does not know DataFusion, with which tests/acceptance/test_views.py runs the file.
@pytest.mark.parametrize(
    "dialect", [one for one in DIALECTS if one.name != "datafusion"], ids=lambda dialect: dialect.name
)
def test_files_are_in_the_language_of_their_engine(dialect: Any) -> None:
    statements = [one for one in sqlglot.parse(scripts()[f"{dialect.name}.sql"], read=dialect.name) if one]

    assert len(statements) == len(dialect.preamble) + len(SOURCES) + len(views(dialect, ViewSettings()))
    # What sqlglot does not understand becomes a command.
    assert not any(isinstance(one, sqlglot.exp.Command) for one in statements[len(dialect.preamble) :])


@pytest.mark.parametrize(
    "given",
    [
        {"time_zone": "Taipei"},
        {"gap": timedelta(0)},
        {"business_hours": ((0, 1),)},
        {"business_hours": ((10, 9), *(None,) * 6)},
        {"business_hours": ((0, 1441), *(None,) * 6)},
        {"business_hours": ("09:00-18:00",) * 7},
        {"business_hours": ((9.5, 18.5),) * 7},
        {"business_hours": "09:00-18:00"},
        {"business_hours": 5},
        {"document_characters": 0},
        {"document_characters": "5"},
        {"time_zone": 5},
        {"time_zone": None},
        {"gap": 5},
        {"bots": [5]},
        {"bots": None},
        {"bots": ["\ud800"]},
    ],
)
def test_wrong_settings_are_rejected(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        ViewSettings(**given)


def test_bots_are_one_text_or_several() -> None:
    assert ViewSettings(bots="u_abc") == ViewSettings(bots=["u_abc"]) == ViewSettings(bots=("u_abc",))
