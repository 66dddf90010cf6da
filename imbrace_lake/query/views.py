"""The SQL views over a lake, from one source for all engines.

Each view has its definition beside it. The files in `sql/` and the models in `dbt/` have the same statements;
`./dev docs --write` writes them again. With an installed package, this module writes the files:

    python -m imbrace_lake.query.views FOLDER
"""

# The statements are built from constants of this module and from checked settings.
# ruff: noqa: S608

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from imbrace_lake.errors import SettingsError
from imbrace_lake.lake.schema import SCHEMA
from imbrace_lake.query.arguments import check_id, check_type, texts
from imbrace_lake.query.dialects import DIALECTS, Dialect

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAY_MINUTES = 24 * 60
# The folders of the lake that the views read, as `lake_messages` and so on.
SOURCES = ("messages", "conversations", "phones")
_OFFICE = (9 * 60, 18 * 60)


@dataclass(frozen=True)
class ViewSettings:
    """What the views cannot know.

    Attributes:
        time_zone: The zone of days, weeks and hours, `Asia/Taipei`.
        gap: A silence longer than this ends an episode.
        business_hours: Minutes from midnight at which the business opens and closes, from Monday to
            Sunday, in local time; None for a closed day.
        bots: Senders that are bots, besides those whose id begins with `pub_`; one as text, or several.
        document_characters: About how many characters a document has.

    Raises:
        SettingsError: A value cannot be used.
    """

    time_zone: str = "UTC"
    gap: timedelta = timedelta(hours=24)
    business_hours: tuple[tuple[int, int] | None, ...] = (*(_OFFICE,) * 5, None, None)
    bots: Sequence[str] = ()
    document_characters: int = 4_000

    def __post_init__(self) -> None:
        """Check the values."""
        for name, wanted, what in _TYPES:
            if (value := getattr(self, name)) is None:
                raise SettingsError(f"{name} must be {what}, and is None")
            check_type(name, value, wanted, what)
        object.__setattr__(self, "bots", tuple(texts("bots", self.bots, "u_…")))
        for bot in self.bots:
            check_id("the id of a bot", bot)
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise SettingsError(f"{self.time_zone!r} is not a time zone: write UTC, or Asia/Taipei") from None
        if self.gap <= timedelta(0):
            raise SettingsError("the gap between two episodes must be longer than 0")
        if len(self.business_hours) != len(WEEKDAYS):
            raise SettingsError("business hours have 7 days, from Monday to Sunday")
        for day, hours in zip(WEEKDAYS, self.business_hours, strict=True):
            if hours is not None and not _are_hours(hours):
                raise SettingsError(
                    f"the business hours of {day} must be two times of a day in minutes, first the earlier,"
                    " such as (540, 1080), or None"
                )
        if self.document_characters < 1:
            raise SettingsError("a document must have at least 1 character")


# The types of the settings that are one value, and what to write.
_TYPES: tuple[tuple[str, type, str], ...] = (
    ("time_zone", str, "the name of a time zone, such as 'Asia/Taipei'"),
    ("gap", timedelta, "a timedelta, such as timedelta(hours=24)"),
    ("business_hours", Sequence, "7 days, from Monday to Sunday"),
    ("document_characters", int, "a number"),
)


def _are_hours(hours: object) -> bool:
    """Whether a day has two times, first the earlier."""
    return (
        isinstance(hours, tuple | list)
        and len(hours) == 2
        and all(isinstance(minute, int) for minute in hours)
        and 0 <= hours[0] < hours[1] <= DAY_MINUTES
    )


@dataclass(frozen=True)
class View:
    """A view: its name, its definition for people, and its query."""

    name: str
    definition: str
    query: str


def views(dialect: Dialect, settings: ViewSettings) -> list[View]:
    """Return the views in one language; each uses only the sources and the views before it."""
    return [
        View(name, " ".join(definition.split()), textwrap.dedent(query).strip())
        for name, definition, query in _views(dialect, settings)
    ]


def _text(value: str) -> str:
    """Return a text as SQL."""
    return "'" + value.replace("'", "''") + "'"


def _hours(settings: ViewSettings) -> str:
    """Return the query of `business_hours`."""
    minutes = [(0, 0) if hours is None else hours for hours in settings.business_hours]
    week = sum(closes - opens for opens, closes in minutes)
    rows, before = [], 0
    for weekday, (opens, closes) in enumerate(minutes, start=1):
        values = {"opens_ms": opens, "closes_ms": closes, "before_ms": before, "week_ms": week}
        columns = ", ".join(f"CAST({value * 60_000} AS BIGINT) AS {name}" for name, value in values.items())
        rows.append(f"SELECT {weekday} AS weekday, {columns}")
        before += closes - opens
    return "\nUNION ALL ".join(rows)


def _bots(dialect: Dialect, settings: ViewSettings) -> str:
    """Return the query of `bots`."""
    if not settings.bots:
        return f"SELECT CAST(NULL AS {dialect.text}) AS sender_id WHERE 1 = 0"
    return "\nUNION ALL ".join(f"SELECT {_text(one)} AS sender_id" for one in sorted({*settings.bots}))


# Patterns instead of a parser, because the parsers of engines accept different texts.
_JSON = """(m.bare LIKE '{%}' OR m.bare LIKE '[{%}]' OR m.bare LIKE '["%"]' OR m.bare = '[]')"""
_OFFER = """content LIKE '%"quick_replies":[{%'"""
_CONVERSATION = "organization_id, conversation_id"
_EPISODE = f"{_CONVERSATION}, episode"
_UNTIL_NOW = "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"


def _zone(dialect: Dialect, settings: ViewSettings) -> str:
    """Return the time zone as SQL, in a query with the settings as `s`."""
    return dialect.zone or _text(settings.time_zone)


def _open_since_start(dialect: Dialect, local: str, hours: str) -> str:
    """Return the milliseconds that the business was open from `FIRST_MONDAY` to a local time."""
    days, time = dialect.days(local), dialect.time_of_day(local)
    weeks = f"CAST(({days} - {days} % 7) / 7 AS BIGINT) * {hours}.week_ms"
    today = f"greatest(least({time}, {hours}.closes_ms) - {hours}.opens_ms, 0)"
    return f"({weeks} + {hours}.before_ms + {today})"


def _business(dialect: Dialect, zone: str, source: str, columns: str, start: str, end: str, name: str) -> str:
    """Return a query that adds the milliseconds of business hours between two times, null without an end."""
    opened, closed = (
        _open_since_start(dialect, f"t.{local}", hours)
        for local, hours in (("local_start", "b"), ("local_end", "e"))
    )
    return f"""
SELECT {columns},
       CASE WHEN t.{end} IS NOT NULL THEN greatest({closed} - {opened}, 0) END AS {name}
FROM (
    SELECT x.*, {dialect.local(f"x.{start}", zone)} AS local_start,
           {dialect.local(f"x.{end}", zone)} AS local_end
    FROM {source} AS x CROSS JOIN settings AS s
) AS t
LEFT JOIN business_hours AS b ON b.weekday = {dialect.days("t.local_start")} % 7 + 1
LEFT JOIN business_hours AS e ON e.weekday = {dialect.days("t.local_end")} % 7 + 1"""


def _views(dialect: Dialect, settings: ViewSettings) -> Iterator[tuple[str, str, str]]:
    zone = _zone(dialect, settings)
    silence = dialect.milliseconds("previous_at", "created_at")
    gap_ms = settings.gap // timedelta(milliseconds=1)
    yield (
        "settings",
        """The settings of the views, in one row: the time zone of days, weeks and hours; the silence in
        milliseconds after which a new episode begins; about how many characters a document has.""",
        f"""
        SELECT {_text(settings.time_zone)} AS time_zone, CAST({gap_ms} AS BIGINT) AS gap_ms,
               CAST({settings.document_characters} AS BIGINT) AS document_characters""",
    )
    yield (
        "bots",
        """Senders that are bots, besides those whose id begins with pub_.""",
        _bots(dialect, settings),
    )
    yield (
        "business_hours",
        """When the business is open, for each weekday from Monday (1) to Sunday (7): milliseconds since
        midnight, in local time; opens_ms = closes_ms for a closed day. A day has one span, which does not
        pass midnight; breaks and holidays are open. before_ms is the open time of
        the week before this day, week_ms that of the week.""",
        _hours(settings),
    )
    kept = ", ".join(
        "m.role AS sender_role" if name == "sender_role" else f"m.{name}" for name in SCHEMA.names
    )
    yield (
        "messages",
        """Every message of the lake, deleted ones included (is_deleted). A sender whose id begins with
        pub_, or that is in bots, has the role bot. is_machine: a bot's text that is nothing but JSON,
        an object or a list of objects or texts; no customer saw it. local_at: created_at in the time
        zone of the settings. Internal notes of the team are not messages: they are in extra, under
        comments.""",
        f"""
        SELECT {kept},
               CAST(coalesce(m.role = 'bot' AND {_JSON}, false) AS BOOLEAN) AS is_machine,
               {dialect.local("m.created_at", zone)} AS local_at
        FROM (
            SELECT raw.*, {dialect.bare("raw.text")} AS bare,
                   CASE WHEN substr(raw.sender_id, 1, 4) = 'pub_' OR b.sender_id IS NOT NULL THEN 'bot'
                        ELSE raw.sender_role END AS role
            FROM lake_messages AS raw LEFT JOIN bots AS b ON b.sender_id = raw.sender_id
        ) AS m
        CROSS JOIN settings AS s""",
    )
    yield (
        "turns",
        """The messages that a customer saw or wrote, in order of created_at and message_id: of contacts,
        users (persons of the team) and bots; without deleted and machine messages, unknown senders, and
        messages without a time. A silence longer than gap_ms begins a new episode. turn_number counts
        the messages of an episode; contacts_so_far those of the contact up to this one; replies_before
        the messages of persons before this one. A deleted message is left out, though it was there when
        it was answered: times can change when something is deleted.""",
        f"""
        WITH spoken AS (
            SELECT m.organization_id, m.conversation_id, m.message_id, m.sender_id, m.sender_role, m.type,
                   m.text, m.content, m.created_at, m.local_at,
                   lag(m.created_at) OVER (
                       PARTITION BY m.organization_id, m.conversation_id ORDER BY m.created_at, m.message_id
                   ) AS previous_at
            FROM messages AS m
            WHERE NOT m.is_deleted AND NOT m.is_machine AND m.created_at IS NOT NULL
              AND m.sender_role IN ('contact', 'user', 'bot')
        ),
        numbered AS (
            SELECT spoken.*,
                   1 + count(CASE WHEN {silence} > s.gap_ms THEN 1 END) OVER (
                       PARTITION BY {_CONVERSATION} ORDER BY created_at, message_id {_UNTIL_NOW}
                   ) AS episode
            FROM spoken CROSS JOIN settings AS s
        )
        SELECT organization_id, conversation_id, episode,
               row_number() OVER (PARTITION BY {_EPISODE} ORDER BY created_at, message_id) AS turn_number,
               message_id, sender_id, sender_role, type, text, content, created_at, local_at,
               count(CASE WHEN sender_role = 'contact' THEN 1 END)
                   OVER (PARTITION BY {_EPISODE} ORDER BY created_at, message_id {_UNTIL_NOW})
                   AS contacts_so_far,
               count(CASE WHEN sender_role = 'user' THEN 1 END)
                   OVER (PARTITION BY {_EPISODE} ORDER BY created_at, message_id
                         ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS replies_before
        FROM numbered""",
    )
    yield (
        "episodes",
        """One row for each episode of a conversation: messages with no silence longer than gap_ms between
        them. first_response_ms: the clock starts at the contact's first message of the episode and
        stops at the first reply after it by a person; bots, machine messages and internal notes do not
        stop it. Null: no person replied in this episode, or the contact did not write.
        first_response_business_ms counts only business hours. first_response_with_bots_ms: the same
        clock, which a bot's reply stops too. users: distinct persons who wrote. duration_ms is the time
        from the first message to the last, and not handling time.""",
        _business(
            dialect,
            zone,
            "(" + _episodes(dialect) + ")",
            "t.organization_id, t.conversation_id, t.episode, t.started_at, t.ended_at, t.duration_ms,"
            "\n       t.messages, t.contact_messages, t.user_messages, t.bot_messages, t.users, t.opened_by,"
            "\n       t.closed_by, t.first_contact_at, t.first_contact_message_id, t.first_reply_at,"
            "\n       t.first_reply_message_id, t.first_reply_with_bots_at,"
            "\n       t.first_reply_with_bots_message_id, t.first_response_ms, t.first_response_with_bots_ms",
            "first_contact_at",
            "first_reply_at",
            "first_response_business_ms",
        ),
    )
    yield (
        "replies",
        """One row for each wait of a contact: from the contact's first message that no person has answered
        yet to the next message of a person in the same episode, with the ids of both. Without a reply,
        the reply's columns are null. reply_business_ms counts only business hours. The columns with
        bots have the first message of a person or a bot instead.""",
        _business(
            dialect,
            zone,
            "(" + _replies(dialect) + ")",
            "t.organization_id, t.conversation_id, t.episode, t.reply_number, t.contact_message_id,"
            "\n       t.contact_at, t.contact_messages, t.reply_message_id, t.reply_at,"
            "\n       t.reply_sender_id, t.reply_ms, t.reply_with_bots_message_id, t.reply_with_bots_at,"
            "\n       t.reply_with_bots_role, t.reply_with_bots_ms",
            "contact_at",
            "reply_at",
            "reply_business_ms",
        ),
    )
    yield (
        "response_times",
        """First responses by week, for each organization: episodes in which the contact wrote, by the
        local week (from Monday) of the contact's first message; how many a person answered, and the
        share that no person answered; median and 90th percentile of the answered ones. A percentile is
        the smallest value that at least this share of the values do not exceed. The same with bots, and
        in business hours. Episodes that have just begun count as unanswered.""",
        _response_times(dialect, zone),
    )
    yield (
        "daily_volumes",
        """Messages that are not deleted by local day, for each organization, by role; machine messages
        count as those and not as the bot's. conversations: those with a message on this day;
        new_conversations: those whose first message is of this day. The row without a day counts
        messages without a readable time.""",
        f"""
        WITH dated AS (
            SELECT organization_id, conversation_id, sender_role, is_machine, CAST(local_at AS DATE) AS day,
                   CASE WHEN row_number() OVER (
                       PARTITION BY {_CONVERSATION} ORDER BY created_at NULLS LAST, message_id
                   ) = 1 THEN 1 END AS is_first
            FROM messages WHERE NOT is_deleted
        )
        SELECT organization_id, day, count(*) AS messages,
               count(CASE WHEN sender_role = 'contact' THEN 1 END) AS contact_messages,
               count(CASE WHEN sender_role = 'user' THEN 1 END) AS user_messages,
               count(CASE WHEN sender_role = 'bot' AND NOT is_machine THEN 1 END) AS bot_messages,
               count(CASE WHEN is_machine THEN 1 END) AS machine_messages,
               count(CASE WHEN sender_role NOT IN ('contact', 'user', 'bot') THEN 1 END) AS unknown_messages,
               count(DISTINCT conversation_id) AS conversations, count(is_first) AS new_conversations
        FROM dated GROUP BY organization_id, day""",
    )
    yield (
        "busiest_hours",
        """Messages of contacts by local weekday, from Monday (1) to Sunday (7), and hour of the day (0 to
        23), for each organization. An hour without any has no row.""",
        f"""
        SELECT organization_id, {dialect.days("local_at")} % 7 + 1 AS weekday,
               CAST(extract(hour FROM local_at) AS BIGINT) AS hour_of_day,
               count(*) AS contact_messages, count(DISTINCT conversation_id) AS conversations
        FROM messages
        WHERE NOT is_deleted AND sender_role = 'contact' AND local_at IS NOT NULL
        GROUP BY organization_id, {dialect.days("local_at")} % 7 + 1,
                 CAST(extract(hour FROM local_at) AS BIGINT)""",
    )
    yield (
        "quick_reply_funnel",
        """What followed each offer of quick replies in its episode, for each organization: the contact
        picked one, typed something instead, the next message of a person or bot overtook it, or the
        episode ended.""",
        f"""
        SELECT organization_id, count(*) AS offers,
               count(CASE WHEN next_role = 'contact' AND next_type = 'quick_reply' THEN 1 END) AS picked,
               count(CASE WHEN next_role = 'contact' AND coalesce(next_type, '') <> 'quick_reply' THEN 1 END)
                   AS typed_instead,
               count(CASE WHEN next_role IN ('user', 'bot') THEN 1 END) AS overtaken,
               count(CASE WHEN next_role IS NULL THEN 1 END) AS ended
        FROM (
            SELECT organization_id, sender_role, content,
                   lead(type) OVER (PARTITION BY {_EPISODE} ORDER BY turn_number) AS next_type,
                   lead(sender_role) OVER (PARTITION BY {_EPISODE} ORDER BY turn_number) AS next_role
            FROM turns
        ) AS t
        WHERE sender_role IN ('user', 'bot') AND {_OFFER}
        GROUP BY organization_id""",
    )
    yield (
        "conversations",
        """One row for each conversation of the lake or of the ledger: messages that are not deleted by
        role, deleted ones, first and last; its episodes, those in which the contact wrote, and those
        that a person answered. first_response_ms: the first response of the first episode in which the
        contact wrote; null if no person replied in it. longest_first_response_ms: the longest of all.
        is_waiting: the last message is the contact's. The verdict is the last entry of the ledger that
        is not about a window of time: status, proof_method, is_dead_letter, reason, server_count, and
        when (verified_at).""",
        _conversations(dialect),
    )
    yield (
        "phones",
        """The latest answer for each phone number: its status and its conversations. A request that failed
        is not an answer: the status error is that of a number for which no request has succeeded. Earlier
        answers, which can name other conversations, are in the ledger. Invalid numbers have no hash and
        are left out.""",
        """
        SELECT organization_id, phone_hash, phone_masked, phone, status, reason, conversation_ids,
               resolved_at, run_id
        FROM (
            SELECT p.*, row_number() OVER (
                       PARTITION BY organization_id, phone_hash
                       ORDER BY CASE WHEN status = 'error' THEN 1 ELSE 0 END,
                                resolved_at DESC NULLS LAST, run_id DESC, position
                   ) AS newest
            FROM lake_phones AS p WHERE status <> 'duplicate' AND phone_hash IS NOT NULL
        ) AS t
        WHERE newest = 1""",
    )
    yield (
        "documents",
        """Texts for search and language models: an episode as lines of time, role and text, cut between
        messages into chunks of about document_characters characters. A message without a text is its
        type in brackets. Texts are as they were written, and can contain personal data.""",
        f"""
        WITH spoken AS (
            SELECT t.*, {dialect.minute("local_at")} || ' ' || sender_role || ': '
                        || coalesce(text, '[' || coalesce(type, 'message') || ']') AS line
            FROM turns AS t
        ),
        placed AS (
            SELECT spoken.*, coalesce(CAST(sum({dialect.length}(line)) OVER (
                       PARTITION BY {_EPISODE} ORDER BY turn_number
                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS BIGINT), 0) AS begins
            FROM spoken
        ),
        chunked AS (
            SELECT placed.*,
                   1 + CAST((begins - begins % s.document_characters) / s.document_characters AS BIGINT)
                       AS chunk
            FROM placed CROSS JOIN settings AS s
        )
        SELECT organization_id, conversation_id, episode, chunk, min(created_at) AS started_at,
               max(created_at) AS ended_at, count(*) AS messages,
               {dialect.min_by("message_id", "turn_number")} AS first_message_id,
               {dialect.max_by("message_id", "turn_number")} AS last_message_id,
               {dialect.lines("line", "turn_number")} AS text
        FROM chunked GROUP BY {_EPISODE}, chunk""",
    )


def _episodes(dialect: Dialect) -> str:
    """Return the episodes without business hours."""
    person = "CASE WHEN sender_role = 'user' AND contacts_so_far > 0 THEN {} END"
    anyone = "CASE WHEN sender_role IN ('user', 'bot') AND contacts_so_far > 0 THEN {} END"
    contact = "CASE WHEN sender_role = 'contact' THEN {} END"
    return f"""
        SELECT e.*, {dialect.milliseconds("started_at", "ended_at")} AS duration_ms,
               {dialect.milliseconds("first_contact_at", "first_reply_at")} AS first_response_ms,
               {dialect.milliseconds("first_contact_at", "first_reply_with_bots_at")}
                   AS first_response_with_bots_ms
        FROM (
            SELECT organization_id, conversation_id, episode, min(created_at) AS started_at,
                   max(created_at) AS ended_at, count(*) AS messages,
                   count({contact.format(1)}) AS contact_messages,
                   count(CASE WHEN sender_role = 'user' THEN 1 END) AS user_messages,
                   count(CASE WHEN sender_role = 'bot' THEN 1 END) AS bot_messages,
                   count(DISTINCT CASE WHEN sender_role = 'user' THEN sender_id END) AS users,
                   {dialect.min_by("sender_role", "turn_number")} AS opened_by,
                   {dialect.max_by("sender_role", "turn_number")} AS closed_by,
                   min({contact.format("created_at")}) AS first_contact_at,
                   {dialect.min_by("message_id", contact.format("turn_number"))} AS first_contact_message_id,
                   min({person.format("created_at")}) AS first_reply_at,
                   {dialect.min_by("message_id", person.format("turn_number"))} AS first_reply_message_id,
                   min({anyone.format("created_at")}) AS first_reply_with_bots_at,
                   {dialect.min_by("message_id", anyone.format("turn_number"))}
                       AS first_reply_with_bots_message_id
            FROM turns GROUP BY {_EPISODE}
        ) AS e
    """


def _replies(dialect: Dialect) -> str:
    """Return the replies without business hours.

    The messages after a person's message, up to and including the next one, are a block. It is a wait if the
    contact wrote in it; the wait ends with the block's message of a person, if it has one.
    """
    contact = "CASE WHEN sender_role = 'contact' THEN {} END"
    person = "CASE WHEN sender_role = 'user' THEN {} END"
    anyone = "CASE WHEN sender_role IN ('user', 'bot') AND waiting > 0 THEN {} END"
    return f"""
        SELECT w.*, row_number() OVER (PARTITION BY {_EPISODE} ORDER BY replies_before) AS reply_number,
               {dialect.milliseconds("contact_at", "reply_at")} AS reply_ms,
               {dialect.milliseconds("contact_at", "reply_with_bots_at")} AS reply_with_bots_ms
        FROM (
            SELECT organization_id, conversation_id, episode, replies_before,
                   {dialect.min_by("message_id", contact.format("turn_number"))} AS contact_message_id,
                   min({contact.format("created_at")}) AS contact_at,
                   count({contact.format(1)}) AS contact_messages,
                   {dialect.min_by("message_id", person.format("turn_number"))} AS reply_message_id,
                   min({person.format("created_at")}) AS reply_at,
                   {dialect.min_by("sender_id", person.format("turn_number"))} AS reply_sender_id,
                   {dialect.min_by("message_id", anyone.format("turn_number"))} AS reply_with_bots_message_id,
                   min({anyone.format("created_at")}) AS reply_with_bots_at,
                   {dialect.min_by("sender_role", anyone.format("turn_number"))} AS reply_with_bots_role
            FROM (
                SELECT turns.*, count({contact.format(1)}) OVER (
                           PARTITION BY {_EPISODE}, replies_before ORDER BY turn_number {_UNTIL_NOW}
                       ) AS waiting
                FROM turns
            ) AS b
            GROUP BY {_EPISODE}, replies_before
            HAVING count({contact.format(1)}) > 0
        ) AS w
    """


def _response_times(dialect: Dialect, zone: str) -> str:
    week = f"CAST(date_trunc('week', {dialect.local('e.first_contact_at', zone)}) AS DATE)"
    measures = {
        "": "first_response_ms",
        "_with_bots": "first_response_with_bots_ms",
        "_business": "first_response_business_ms",
    }
    ranks = ",\n".join(
        f"""                   row_number() OVER (
                       PARTITION BY organization_id, week_start ORDER BY {value} NULLS LAST
                   ) AS rank{suffix},
                   count({value}) OVER (PARTITION BY organization_id, week_start) AS answered{suffix}"""
        for suffix, value in measures.items()
    )
    figures = ",\n".join(
        f"""               min(CASE WHEN rank{suffix} * 100 >= answered{suffix} * {share} THEN {value} END)
                   AS {name}{suffix}_ms"""
        for suffix, value in measures.items()
        for name, share in (("median", 50), ("p90", 90))
    )
    return f"""
        WITH started AS (
            SELECT e.*, {week} AS week_start
            FROM episodes AS e CROSS JOIN settings AS s WHERE e.first_contact_at IS NOT NULL
        ),
        ranked AS (
            SELECT started.*,
{ranks}
            FROM started
        )
        SELECT organization_id, week_start, count(*) AS episodes, count(first_response_ms) AS answered,
               1 - CAST(count(first_response_ms) AS DOUBLE) / count(*) AS share_unanswered,
               count(first_response_with_bots_ms) AS answered_with_bots,
               1 - CAST(count(first_response_with_bots_ms) AS DOUBLE) / count(*)
                   AS share_unanswered_with_bots,
{figures}
        FROM ranked GROUP BY organization_id, week_start
    """


def _conversations(dialect: Dialect) -> str:
    counts = ",\n".join(
        f"                   count(CASE WHEN NOT is_deleted AND {condition} THEN 1 END) AS {name}_messages"
        for name, condition in {
            "contact": "sender_role = 'contact'",
            "user": "sender_role = 'user'",
            "bot": "sender_role = 'bot' AND NOT is_machine",
            "machine": "is_machine",
            "unknown": "sender_role NOT IN ('contact', 'user', 'bot')",
        }.items()
    )
    names = ("messages", "deleted_messages", "contact_messages", "user_messages", "bot_messages",
             "machine_messages", "unknown_messages")  # fmt: skip
    numbers = ", ".join(f"coalesce(m.{name}, 0) AS {name}" for name in names)
    episodes = ", ".join(
        f"coalesce(e.{name}, 0) AS {name}" for name in ("episodes", "contact_episodes", "answered_episodes")
    )
    return f"""
        WITH counted AS (
            SELECT organization_id, conversation_id, count(CASE WHEN NOT is_deleted THEN 1 END) AS messages,
                   count(CASE WHEN is_deleted THEN 1 END) AS deleted_messages,
{counts},
                   min(CASE WHEN NOT is_deleted THEN created_at END) AS first_message_at,
                   max(CASE WHEN NOT is_deleted THEN created_at END) AS last_message_at
            FROM messages GROUP BY {_CONVERSATION}
        ),
        answered AS (
            SELECT organization_id, conversation_id, count(*) AS episodes,
                   count(first_contact_at) AS contact_episodes, count(first_response_ms) AS answered_episodes,
                   max(CASE WHEN contact_rank = 1 THEN first_response_ms END) AS first_response_ms,
                   max(first_response_ms) AS longest_first_response_ms,
                   {dialect.max_by("closed_by", "episode")} AS last_role
            FROM (
                SELECT e.*, row_number() OVER (
                           PARTITION BY {_CONVERSATION}
                           ORDER BY CASE WHEN first_contact_at IS NULL THEN 1 ELSE 0 END, episode
                       ) AS contact_rank
                FROM episodes AS e
            ) AS r
            GROUP BY {_CONVERSATION}
        ),
        verdicts AS (
            SELECT c.*, row_number() OVER (
                       PARTITION BY {_CONVERSATION} ORDER BY finished_at DESC NULLS LAST, run_id DESC
                   ) AS newest
            FROM lake_conversations AS c WHERE coalesce(proof_method, '') <> 'window'
        )
        SELECT coalesce(m.organization_id, v.organization_id) AS organization_id,
               coalesce(m.conversation_id, v.conversation_id) AS conversation_id,
               {numbers},
               m.first_message_at AS first_message_at, m.last_message_at AS last_message_at, e.last_role,
               CAST(coalesce(e.last_role = 'contact', false) AS BOOLEAN) AS is_waiting,
               {episodes}, e.first_response_ms, e.longest_first_response_ms,
               v.status, v.proof_method, v.is_dead_letter, v.reason, v.server_count,
               v.finished_at AS verified_at
        FROM counted AS m
        FULL JOIN (SELECT * FROM verdicts WHERE newest = 1) AS v
          ON v.organization_id = m.organization_id AND v.conversation_id = m.conversation_id
        LEFT JOIN answered AS e
          ON e.organization_id = m.organization_id AND e.conversation_id = m.conversation_id
    """


def used_by(sql: str, defined: Iterable[View], sources: Iterable[str]) -> frozenset[str]:
    """Return the names of the views and sources that a query may use, directly or through views.

    Only names in the text of the query count; if there are none, the query may be about all of them.
    """
    queries = {view.name: view.query for view in defined}
    known = {*queries, *sources}
    remaining = [*(_words(sql) & known)] or [*known]
    used: set[str] = set()
    while remaining:
        if (name := remaining.pop()) not in used:
            used.add(name)
            remaining += _words(queries.get(name, "")) & known
    return frozenset(used)


def _words(sql: str) -> set[str]:
    return {*re.findall(r"\w+", sql.lower())}


def script(dialect: Dialect, settings: ViewSettings | None = None) -> str:
    """Return the file with all views for one engine."""
    head = [
        "-- The views over a lake, written from imbrace_lake/query/views.py; see docs/views.md.",
        "-- Change the folder `lake` in the sources, and the values in the views `settings`, `bots` and",
        "-- `business_hours`.",
    ]
    statements = [*dialect.preamble]
    statements += map(dialect.source_statement, SOURCES)
    for view in views(dialect, settings or ViewSettings()):
        comment = textwrap.fill(view.definition, 110, initial_indent="-- ", subsequent_indent="-- ")
        statements.append(f"{comment}\n{dialect.create} {view.name} AS\n{view.query}")
    return "\n".join(head) + "\n\n" + ";\n\n".join(statements) + ";\n"


def scripts() -> Mapping[str, str]:
    """Return the files in `sql/` by name."""
    return {f"{dialect.name}.sql": script(dialect) for dialect in DIALECTS}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, text in scripts().items():
        (folder / name).write_text(text, "utf-8")
