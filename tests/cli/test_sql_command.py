"""`imbrace-lake sql`: formats, settings of the views, the prompt, and what it reports about its data."""

from __future__ import annotations

import builtins
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imbrace_cli import sql
from imbrace_cli.interrupt import current_interrupt
from imbrace_cli.sql import Format
from imbrace_lake.lake.schema import SCHEMA
from tests.cli.conftest import Result, Run
from tests.talks import make_entries, make_phones, make_rows, write_lake


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "lake"
    write_lake(folder, make_rows(5, 20), make_entries(20), make_phones())
    return folder


@pytest.fixture(autouse=True)
def lake(made: Path, workdir: Path) -> None:
    shutil.copytree(made, workdir / "lake")


@pytest.fixture
def ask(run: Run) -> Callable[..., str]:
    """Run a query, and return its output."""

    def ask(*arguments: str) -> str:
        result = run("sql", "--lake", "lake", *arguments)
        assert result.code == 0, result.err
        return result.out

    return ask


@pytest.mark.slow
def test_csv_is_the_form_for_programs(run: Run) -> None:
    result = run(
        "sql",
        "--lake",
        "lake",
        "SELECT conversation_ids, phone, resolved_at, 1.5 AS n FROM phones WHERE phone_hash = 'a'",
    )

    names, values = csv.reader(io.StringIO(result.out))
    assert names == ["conversation_ids", "phone", "resolved_at", "n"]
    assert values == ['["conv_0"]', "", "2026-01-01T01:00:00.000Z", "1.5"]
    assert result.err == "read the ledgers; no run has ended yet\n"


@pytest.mark.slow
def test_json_has_a_line_for_each_row(ask: Callable[..., str]) -> None:
    rows = [*map(json.loads, ask("--format", "json", "FROM episodes").splitlines())]

    assert len(rows) > 20
    assert rows[0].keys() >= {"episode", "started_at", "first_response_ms"}


@pytest.mark.slow
def test_columns_with_one_name_are_all_written(ask: Callable[..., str]) -> None:
    query = "SELECT 1 AS a, 5 AS b, 2 AS a, 7 AS a_1, 8 AS a"

    assert ask(query) == "a,b,a,a_1,a\n1,5,2,7,8\n"
    assert json.loads(ask("--format", "json", query)) == {"a": 1, "b": 5, "a_2": 2, "a_1": 7, "a_3": 8}
    shown = ask("--format", "table", query).splitlines()[2]
    assert shown.split() == ["1", "│", "5", "│", "2", "│", "7", "│", "8"]


def test_values_of_all_types_have_a_form_that_programs_read(ask: Callable[..., str]) -> None:
    query = (
        "SELECT sum(i) AS sum, 1/0 AS none, INTERVAL 3 DAYS AS span, TRUE AS yes, [TRUE] AS list,"
        " 1.25::DECIMAL(9, 2) AS exact, '\\xAA'::BLOB AS blob,"
        " TIMESTAMP '2026-01-01 00:00:00.123456' AS at,"
        " TIMESTAMP_NS '2026-01-01 00:00:00.123456789' AS ns FROM range(4) AS t(i)"
    )

    assert json.loads(ask("--format", "json", query)) == {
        "sum": 6, "none": None, "span": "P3D", "yes": True, "list": [True], "exact": 1.25, "blob": "aa",
        "at": "2026-01-01T00:00:00.123456", "ns": "2026-01-01T00:00:00.123456789",
    }  # fmt: skip
    _, row = csv.reader(io.StringIO(ask(query)))
    assert row == [
        "6", "inf", "P3D", "true", "[true]", "1.25", "aa", "2026-01-01T00:00:00.123456",
        "2026-01-01T00:00:00.123456789",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("INTERVAL '1160.221' SECOND", "PT1160.221S"),
        ("TIMESTAMP '2026-01-01 23:59:59.999' - TIMESTAMP '2026-01-01'", "PT86399.999S"),
        ("INTERVAL 1 MICROSECOND", "PT0.000001S"),
        ("INTERVAL 100000 HOURS + INTERVAL 1 MICROSECOND", "PT360000000.000001S"),
        ("INTERVAL 0 DAYS", "PT0S"),
        ("INTERVAL 14 MONTHS + INTERVAL 2 DAYS + INTERVAL 3 SECONDS", "P14M2DT3S"),
        ("-INTERVAL '1.5' SECOND", "-PT1.5S"),
        ("-INTERVAL 1 MONTH", "-P1M"),
        ("INTERVAL 1 DAY - INTERVAL '1.5' SECOND", "P1DT-1.5S"),
    ],
)
def test_intervals_are_exact(ask: Callable[..., str], value: str, text: str) -> None:
    query = f"SELECT {value} AS a, [{value}] AS b"

    assert json.loads(ask("--format", "json", query)) == {"a": text, "b": [text]}
    assert [*csv.reader(io.StringIO(ask(query)))][1] == [text, f'["{text}"]']
    assert text in ask("--format", "table", query)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "1234567890123456789.1234567890123456789::DECIMAL(38, 19)",
            "1234567890123456789.1234567890123456789",
        ),
        ("0.0000000000000000001::DECIMAL(38, 19)", "0.0000000000000000001"),
        ("-1.50::DECIMAL(9, 2)", "-1.50"),
        ("170141183460469231731687303715884105727::HUGEINT", "170141183460469231731687303715884105727"),
        ("18446744073709551615::UBIGINT", "18446744073709551615"),
        ("(-9223372036854775808)::BIGINT", "-9223372036854775808"),
    ],
)
def test_numbers_have_all_their_digits(ask: Callable[..., str], value: str, text: str) -> None:
    query = f"SELECT {value} AS a, [{value}] AS b"

    assert ask("--format", "json", query) == f'{{"a":{text},"b":[{text}]}}\n'
    assert [*csv.reader(io.StringIO(ask(query)))][1] == [text, f"[{text}]"]
    assert text in ask("--format", "table", query)


@pytest.mark.parametrize("value", ["DATE '10000-01-01'", "'infinity'::TIMESTAMP", "TIMESTAMP '290000-01-01'"])
def test_a_time_beyond_all_calendars_is_one_sentence(run: Run, value: str) -> None:
    result = run("sql", "--lake", "lake", f"SELECT {value}")

    assert result.code == 2
    assert "is not in the years 1 to 9999, or has nanoseconds: cast it to VARCHAR" in result.err


@pytest.mark.parametrize("hours", ["nan", "inf", "1e12", "0", "-1"])
def test_a_gap_that_is_not_a_span_of_time_is_one_sentence(run: Run, hours: str) -> None:
    result = run("sql", "--lake", "lake", "--gap-hours", hours, "FROM settings")

    assert result.code == 2
    assert "--gap-hours must be more than 0 and at most 87,600" in result.err


@pytest.mark.parametrize("hours", ["18:00-09:00", "09:00-09:00"])
def test_business_hours_end_on_the_same_day(run: Run, hours: str) -> None:
    result = run("sql", "--lake", "lake", "--hours", hours, "FROM settings")

    assert result.code == 2
    assert f"must end later on the same day, such as 09:00-18:00, not {hours}" in result.err


def test_a_table_has_the_first_rows(run: Run) -> None:
    result = run("sql", "--lake", "lake", "--format", "table", "SELECT i AS number FROM range(1000) AS t(i)")

    assert "number" in result.out
    assert " 99 " in result.out
    assert " 100 " not in result.out
    assert "the first 100 rows; --format csv writes all" in result.err


def test_the_source_can_be_chosen(run: Run) -> None:
    query = ("sql", "--lake", "lake", "SELECT count(*) FROM messages", "--source")

    assert run(*query, "auto").out == run(*query, "parts").out != ""
    result = run(*query, "table")
    assert result.code == 1
    assert "has no compacted table" in result.err


def test_it_states_what_was_read(run: Run) -> None:
    result = run("sql", "--lake", "lake", "SELECT count(*) FROM messages")

    assert result.err == "read the parts; no run has ended yet\n"


@pytest.mark.slow
def test_options_are_the_settings_of_the_views(ask: Callable[..., str]) -> None:
    options = ("--time-zone", "Asia/Taipei", "--gap-hours", "0.5", "--hours", "08:30-24:00", "--days", "17")

    assert (
        ask(*options, "SELECT time_zone, gap_ms FROM settings") == "time_zone,gap_ms\nAsia/Taipei,1800000\n"
    )
    hours = ask(
        *options, "SELECT weekday FROM business_hours WHERE opens_ms = 30600000 AND closes_ms = 86400000"
    )
    assert hours.split() == ["weekday", "1", "7"]
    assert ask("--bot", "u_ann", "--bot", "u_'", "SELECT count(*) AS n FROM bots").split() == ["n", "2"]
    assert ask("--organization", "org_1", "SELECT DISTINCT organization_id AS o FROM turns").split() == [
        "o",
        "org_1",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--time-zone", "Mars", "SELECT 1"], 2, "'Mars' is not a time zone"),
        (["--hours", "9-5", "SELECT 1"], 2, "are not business hours"),
        (["--hours", "18:00-09:00", "SELECT 1"], 2, "business hours must end later on the same day"),
        (["--hours", "09:00:30-18:00", "SELECT 1"], 2, "are not business hours"),
        (["--hours", "09:00+02:00-18:00", "SELECT 1"], 2, "are not business hours"),
        (["--hours", "", "SELECT 1"], 2, "are not business hours"),
        (["--days", "0", "SELECT 1"], 2, "are not business days"),
        (["--days", "", "SELECT 1"], 2, "are not business days"),
        (["--days", "11", "SELECT 1"], 2, "are not business days"),
        (["--bot", "", "SELECT 1"], 2, "the id of a bot is empty"),
        (
            ["--organization", "nope", "SELECT 1"],
            1,
            "the lake has no organization 'nope': it has org_0, org_1",
        ),
        (["--organization", "", "SELECT 1"], 2, "the organization's id is empty"),
        (["SELECT nothing FROM turns"], 1, 'Referenced column "nothing" not found'),
        (["DROP VIEW turns"], 1, "a lake is only read here"),
        (["FROM read_text('lake/lake.json')"], 1, "queries reach only the lake"),
    ],
)
def test_mistakes_end_with_a_sentence(run: Run, arguments: list[str], code: int, message: str) -> None:
    result = run("sql", "--lake", "lake", *arguments)

    assert result.code == code
    assert message in result.err
    assert result.err.startswith("error: ")


def test_a_query_can_come_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one;\n"))
    assert run("sql", "--lake", "lake").out == "one\n1\n"

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("sql", "--lake", "lake").out == ""


@pytest.mark.slow
def test_the_prompt_reads_queries_until_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["", "SELECT 41", "+ 1 AS answer;", "SELEC;", "DELETE FROM turns;", "SELECT 2 AS two;"])
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    result = run("sql", "--lake", "lake", "--format", "csv")

    assert result.code == 0
    assert result.out == "answer\n42\ntwo\n2\n\n"
    assert "syntax error" in result.err
    assert "a lake is only read here" in result.err
    assert prompts[:4] == [sql.PROMPT, sql.PROMPT, sql.CONTINUED, sql.PROMPT]


@pytest.fixture
def type_(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Enter lines at the prompt; an error is raised instead."""

    def enter(*lines: str | type[BaseException]) -> Result:
        rest = iter(lines)

        def answer(_: str) -> str:
            if isinstance(line := next(rest, EOFError), str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        return run("sql", "--lake", "lake", "--format", "csv")

    return enter


@pytest.mark.parametrize("leave", ["exit", "quit;", ".quit", ".exit"])
def test_the_prompt_has_the_usual_commands(type_: Callable[..., Result], leave: str) -> None:
    result = type_("help", ".help;", ".tables", ".mode x", leave, "SELECT 1 AS not_reached;")

    assert result.code == 0
    assert "response_times" in result.out.split()
    assert "not_reached" not in result.out
    assert result.err.count("leave with Ctrl-D") == 3
    assert "there is no command .mode: .help shows what there is" in result.err


@pytest.mark.slow
def test_the_prompt_knows_where_a_query_ends(type_: Callable[..., Result]) -> None:
    result = type_(
        "SELECT 'a;", "b' AS text -- not here;", "; -- but there", "-- nothing", ";", "SELECT 1; SELECT 2;"
    )

    assert result.out == 'text\n"a;\nb"\n\n'
    assert "there is no query: write SELECT …" in result.err
    assert "there are 2 queries: write one" in result.err


@pytest.mark.slow
def test_ctrl_c_clears_the_lines_and_stays_at_the_prompt(type_: Callable[..., Result]) -> None:
    result = type_(
        "SELECT 1,", KeyboardInterrupt, "SELECT 2 AS two;", KeyboardInterrupt, "SELECT 3 AS three;"
    )

    assert (result.code, result.out) == (0, "\ntwo\n2\n\nthree\n3\n\n")


def test_sigterm_ends_the_prompt(type_: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminated(KeyboardInterrupt):
        def __init__(self) -> None:
            current_interrupt().is_requested = True

    result = type_(Terminated, "SELECT 1;")

    assert (result.code, result.out) == (130, "")


@pytest.mark.parametrize("text", ["", " ", ";", "-- a comment", "/* another */"])
def test_a_text_without_a_query_is_one_sentence(run: Run, text: str) -> None:
    result = run("sql", "--lake", "lake", "--", text)

    assert (result.code, result.out, result.err) == (1, "", "error: there is no query: write SELECT …\n")


def test_a_query_that_looks_like_an_option_is_one_sentence(run: Run) -> None:
    result = run("sql", "--lake", "lake", "-- the first\nSELECT 1")

    assert result.code == 2
    assert (
        "a query that begins with a comment looks like an option: write -- before it, as in imbrace-lake"
        ' sql --lake lake -- "-- a comment" …' in result.err
    )


@pytest.mark.usefixtures("terminal")
def test_a_row_that_is_wider_than_the_terminal_has_a_line_for_each_column(run: Run) -> None:
    result = run("sql", "--lake", "lake", "--format", "table", "FROM messages LIMIT 2")

    lines = [re.sub("\x1b[^m]*m", "", line).rstrip() for line in result.out.splitlines()]
    assert len(lines) == 2 * (1 + 19)
    assert [line for line in lines if "row" in line] == ["row 1", "row 2"]
    assert [line.split("│")[0].strip() for line in lines[1:20]] == [*SCHEMA.names, "is_machine", "local_at"]
    assert max(map(len, lines)) <= 100

    # A column with long texts does not need their length.
    assert (
        "━━━"
        in run("sql", "--lake", "lake", "--format", "table", "SELECT 1 AS n, repeat('word ', 99) AS t").out
    )


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
def test_texts_of_messages_do_not_control_the_terminal(run: Run) -> None:
    text = "chr(27) || ']0;title' || chr(7) || 'a' || chr(13) || chr(155) || chr(8238) || 'b\nc'"
    table = ("sql", "--lake", "lake", "--format", "table")

    for query in (f"SELECT {text} AS t", f"SELECT {text} AS t, repeat('x', 90) AS u, 1 AS v, 2 AS w"):
        lines = re.sub("\x1b\\[[0-9;]*m", "", run(*table, query).out)
        assert r"\x1b]0;title\x07a\r\x9b\u202eb" in lines
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", lines)

    error = run(*table, f"SELECT ({text})::INT").err
    assert r"Could not convert string '\x1b]0;title" in error
    assert "\x1b]" not in error


def test_a_table_in_a_pipe_has_its_full_width(ask: Callable[..., str]) -> None:
    assert len(ask("--format", "table", "SELECT repeat('-', 300) AS a, 1 AS b").splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("query", ["FROM range(1000000)", "SELECT 1"])
@pytest.mark.parametrize("form", Format)
def test_a_pipe_that_is_closed_ends_the_command_without_a_word(form: Format, query: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    result = subprocess.run(
        [sys.executable, "-m", "imbrace_cli", "sql", "--lake", "lake", "--format", form, query],
        stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writes)

    assert (result.returncode, result.stderr) == (141, "")
