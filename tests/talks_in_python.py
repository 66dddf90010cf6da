"""The views a second time, in plain Python: loops over the messages of one conversation, no SQL."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from imbrace_lake.query.views import ViewSettings

Row = dict[str, Any]
PEOPLE = ("contact", "user", "bot")
WHITE_SPACE = " \t\n\r\u00a0\u3000\ufeff"
MILLISECOND = timedelta(milliseconds=1)


def role_of(row: Row, settings: ViewSettings) -> str:
    sender = row["sender_id"] or ""
    if sender.startswith("pub_") or sender in settings.bots:
        return "bot"
    return str(row["sender_role"])


def is_machine(row: Row, settings: ViewSettings) -> bool:
    if role_of(row, settings) != "bot":
        return False
    try:
        found = json.loads((row["text"] or "").strip(WHITE_SPACE))
    except ValueError:
        return False
    return isinstance(found, dict | list)


class Book:
    """All views over some rows."""

    def __init__(self, rows: Iterable[Row], settings: ViewSettings) -> None:
        self.settings = settings
        self.zone = ZoneInfo(settings.time_zone)
        self.rows = [
            {**row, "role": role_of(row, settings), "is_machine": is_machine(row, settings)} for row in rows
        ]
        self.talks: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            self.talks[row["organization_id"], row["conversation_id"]].append(row)

    def local(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None)

    def episodes_of(self, rows: Iterable[Row]) -> list[list[Row]]:
        spoken = [row for row in rows if row["role"] in PEOPLE and row["created_at"] is not None]
        spoken = [row for row in spoken if not row["is_deleted"] and not row["is_machine"]]
        spoken.sort(key=lambda row: (row["created_at"], row["message_id"]))
        found: list[list[Row]] = [[row] for row in spoken[:1]]
        for before, row in pairwise(spoken):
            if row["created_at"] - before["created_at"] > self.settings.gap:
                found.append([])
            found[-1].append(row)
        return found

    def business_ms(self, start: datetime, end: datetime) -> int:
        """Add up the overlap with the business hours of every day."""
        first, last = self.local(start), self.local(end)
        total, day = 0, first.date()
        while day <= last.date():
            hours = self.settings.business_hours[day.weekday()]
            if hours is not None:
                midnight = datetime.combine(day, time())
                opens, closes = (midnight + timedelta(minutes=minutes) for minutes in hours)
                overlap = min(closes, last) - max(opens, first)
                total += max(0, overlap // MILLISECOND)
            day += timedelta(days=1)
        return total

    def each_episode(self) -> Iterator[tuple[tuple[str, str, int], list[Row]]]:
        for owner, rows in self.talks.items():
            for number, episode in enumerate(self.episodes_of(rows), start=1):
                yield (*owner, number), episode

    def episodes(self) -> dict[Any, Row]:
        found = {}
        for key, episode in self.each_episode():
            row: Row = dict.fromkeys(
                ("first_contact_at", "first_contact_message_id", "first_reply_at", "first_reply_message_id",
                 "first_reply_with_bots_at", "first_reply_with_bots_message_id", "first_response_ms",
                 "first_response_with_bots_ms", "first_response_business_ms")
            )  # fmt: skip
            roles = [message["role"] for message in episode]
            row |= {
                "started_at": episode[0]["created_at"],
                "ended_at": episode[-1]["created_at"],
                "duration_ms": (episode[-1]["created_at"] - episode[0]["created_at"]) // MILLISECOND,
                "messages": len(episode),
                "contact_messages": roles.count("contact"),
                "user_messages": roles.count("user"),
                "bot_messages": roles.count("bot"),
                "users": len({message["sender_id"] for message in episode if message["role"] == "user"}),
                "opened_by": roles[0],
                "closed_by": roles[-1],
            }
            asked = None
            for message in episode:
                if message["role"] == "contact":
                    if asked is None:
                        asked = message
                        row["first_contact_at"] = message["created_at"]
                        row["first_contact_message_id"] = message["message_id"]
                elif asked is not None:
                    waited = (message["created_at"] - asked["created_at"]) // MILLISECOND
                    if row["first_reply_with_bots_at"] is None:
                        row["first_reply_with_bots_at"] = message["created_at"]
                        row["first_reply_with_bots_message_id"] = message["message_id"]
                        row["first_response_with_bots_ms"] = waited
                    if message["role"] == "user":
                        row["first_reply_at"] = message["created_at"]
                        row["first_reply_message_id"] = message["message_id"]
                        row["first_response_ms"] = waited
                        row["first_response_business_ms"] = self.business_ms(
                            asked["created_at"], message["created_at"]
                        )
                        break
            found[key] = row
        return found

    def replies(self) -> dict[Any, Row]:
        found = {}
        for key, episode in self.each_episode():
            waits: list[Row] = []
            wait: Row | None = None
            for message in episode:
                if message["role"] == "contact":
                    if wait is None:
                        wait = {"asked": message, "count": 0, "reply": None, "any": None}
                        waits.append(wait)
                    wait["count"] += 1
                elif wait is not None:
                    wait["any"] = wait["any"] or message
                    if message["role"] == "user":
                        wait["reply"] = message
                        wait = None
            for number, wait in enumerate(waits, start=1):
                asked, reply, first = wait["asked"], wait["reply"], wait["any"]
                found[(*key, number)] = {
                    "contact_message_id": asked["message_id"],
                    "contact_at": asked["created_at"],
                    "contact_messages": wait["count"],
                    "reply_message_id": reply and reply["message_id"],
                    "reply_at": reply and reply["created_at"],
                    "reply_sender_id": reply and reply["sender_id"],
                    "reply_ms": reply and (reply["created_at"] - asked["created_at"]) // MILLISECOND,
                    "reply_with_bots_message_id": first and first["message_id"],
                    "reply_with_bots_at": first and first["created_at"],
                    "reply_with_bots_role": first and first["role"],
                    "reply_with_bots_ms": first
                    and (first["created_at"] - asked["created_at"]) // MILLISECOND,
                    "reply_business_ms": reply and self.business_ms(asked["created_at"], reply["created_at"]),
                }
        return found

    def response_times(self) -> dict[Any, Row]:
        weeks: dict[tuple[str, date], list[Row]] = defaultdict(list)
        for (organization, _, _), row in self.episodes().items():
            if row["first_contact_at"] is not None:
                day = self.local(row["first_contact_at"]).date()
                weeks[organization, day - timedelta(days=day.weekday())].append(row)
        found = {}
        for key, rows in weeks.items():
            values = {
                suffix: sorted(row[name] for row in rows if row[name] is not None)
                for suffix, name in {
                    "": "first_response_ms",
                    "_with_bots": "first_response_with_bots_ms",
                    "_business": "first_response_business_ms",
                }.items()
            }
            times: Row = {
                "episodes": len(rows),
                "answered": len(values[""]),
                "share_unanswered": 1 - len(values[""]) / len(rows),
                "answered_with_bots": len(values["_with_bots"]),
                "share_unanswered_with_bots": 1 - len(values["_with_bots"]) / len(rows),
            }
            for suffix, numbers in values.items():
                for name, share in (("median", 50), ("p90", 90)):
                    place = -(-len(numbers) * share // 100) - 1
                    times[f"{name}{suffix}_ms"] = numbers[place] if numbers else None
            found[key] = times
        return found

    def daily_volumes(self) -> dict[Any, Row]:
        days: dict[tuple[str, date | None], list[Row]] = defaultdict(list)
        firsts: dict[tuple[str, date | None], int] = defaultdict(int)
        last = datetime.max.replace(tzinfo=UTC)
        for rows in self.talks.values():
            current = [row for row in rows if not row["is_deleted"]]
            current.sort(key=lambda row: (row["created_at"] or last, row["message_id"]))
            for place, row in enumerate(current):
                day = self.local(row["created_at"]).date() if row["created_at"] else None
                days[row["organization_id"], day].append(row)
                firsts[row["organization_id"], day] += place == 0
        return {
            key: {
                "messages": len(rows),
                "contact_messages": sum(row["role"] == "contact" for row in rows),
                "user_messages": sum(row["role"] == "user" for row in rows),
                "bot_messages": sum(row["role"] == "bot" and not row["is_machine"] for row in rows),
                "machine_messages": sum(row["is_machine"] for row in rows),
                "unknown_messages": sum(row["role"] not in PEOPLE for row in rows),
                "conversations": len({row["conversation_id"] for row in rows}),
                "new_conversations": firsts[key],
            }
            for key, rows in days.items()
        }

    def busiest_hours(self) -> dict[Any, Row]:
        hours: dict[tuple[str, int, int], list[str]] = defaultdict(list)
        for row in self.rows:
            if row["role"] == "contact" and row["created_at"] is not None and not row["is_deleted"]:
                local = self.local(row["created_at"])
                hours[row["organization_id"], local.isoweekday(), local.hour].append(row["conversation_id"])
        return {
            key: {"contact_messages": len(ids), "conversations": len({*ids})} for key, ids in hours.items()
        }

    def quick_reply_funnel(self) -> dict[Any, Row]:
        names = ("offers", "picked", "typed_instead", "overtaken", "ended")
        found: dict[Any, Row] = defaultdict(lambda: dict.fromkeys(names, 0))
        for (organization, _, _), episode in self.each_episode():
            for message, after in zip(episode, [*episode[1:], None], strict=True):
                if message["role"] == "contact" or not json.loads(message["content"]).get("quick_replies"):
                    continue
                if after is None:
                    outcome = "ended"
                elif after["role"] != "contact":
                    outcome = "overtaken"
                else:
                    outcome = "picked" if after["type"] == "quick_reply" else "typed_instead"
                found[(organization,)]["offers"] += 1
                found[(organization,)][outcome] += 1
        return found

    def documents(self) -> dict[Any, Row]:
        found = {}
        for key, episode in self.each_episode():
            chunks: dict[int, list[tuple[Row, str]]] = defaultdict(list)
            begins = 0
            for message in episode:
                text = message["text"] if message["text"] is not None else f"[{message['type'] or 'message'}]"
                line = f"{self.local(message['created_at']):%Y-%m-%d %H:%M} {message['role']}: {text}"
                chunks[begins // self.settings.document_characters + 1].append((message, line))
                begins += len(line)
            for chunk, lines in chunks.items():
                found[(*key, chunk)] = {
                    "started_at": lines[0][0]["created_at"],
                    "ended_at": lines[-1][0]["created_at"],
                    "messages": len(lines),
                    "first_message_id": lines[0][0]["message_id"],
                    "last_message_id": lines[-1][0]["message_id"],
                    "text": "\n".join(line for _, line in lines),
                }
        return found

    def conversations(self, entries: Iterable[Row]) -> dict[Any, Row]:
        verdicts: dict[Any, Row] = {}
        for entry in sorted(entries, key=lambda entry: (entry["finished_at"], entry["run_id"])):
            if entry.get("proof_method") != "window":
                verdicts[entry["organization_id"], entry["conversation_id"]] = entry
        episodes: dict[Any, list[Row]] = defaultdict(list)
        for (*owner, _), row in self.episodes().items():
            episodes[tuple(owner)].append(row)
        found = {}
        for key in {*self.talks, *verdicts}:
            own = episodes[key]
            current = [row for row in self.talks.get(key, ()) if not row["is_deleted"]]
            times = [row["created_at"] for row in current if row["created_at"] is not None]
            asked = [row for row in own if row["first_contact_at"] is not None]
            answered = [row["first_response_ms"] for row in own if row["first_response_ms"] is not None]
            last_role = own[-1]["closed_by"] if own else None
            verdict = verdicts.get(key, {})
            found[key] = {
                "messages": len(current),
                "deleted_messages": len(self.talks.get(key, ())) - len(current),
                "contact_messages": sum(row["role"] == "contact" for row in current),
                "user_messages": sum(row["role"] == "user" for row in current),
                "bot_messages": sum(row["role"] == "bot" and not row["is_machine"] for row in current),
                "machine_messages": sum(row["is_machine"] for row in current),
                "unknown_messages": sum(row["role"] not in PEOPLE for row in current),
                "first_message_at": min(times, default=None),
                "last_message_at": max(times, default=None),
                "last_role": last_role,
                "is_waiting": last_role == "contact",
                "episodes": len(own),
                "contact_episodes": len(asked),
                "answered_episodes": len(answered),
                "first_response_ms": asked[0]["first_response_ms"] if asked else None,
                "longest_first_response_ms": max(answered, default=None),
                "status": verdict.get("status"),
                "proof_method": verdict.get("proof_method"),
                "is_dead_letter": verdict.get("is_dead_letter"),
                "reason": verdict.get("reason"),
                "server_count": verdict.get("server_count"),
                "verified_at": verdict.get("finished_at"),
            }
        return found
