"""The names of runs: the deployment or the command, and what the run reads.

A name contains no phone number, no credentials and no time at which the run began, so that a run that is
resumed or restarted keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from prefect.context import FlowRunContext
from prefect.runtime import deployment
from pydantic import BaseModel

from imbrace_flows.best_effort import best_effort
from imbrace_flows.deployment_run import is_deployment_run
from imbrace_flows.params import UNUSABLE
from imbrace_lake.phones.sources import STAGED
from imbrace_lake.printable import without_numbers

LONGEST_FILE_NAME = 60
# Prefect makes up two words for a run without a name (`sandy-dragonfly`), the form of the new UI likewise
# (`Handmade-Horse`), and that of the classic UI a star (`omega2-orionis-vector`).
_MADE_UP = re.compile(r"[a-z]+\d*(-[a-z]+){1,2}", re.IGNORECASE)
# Its end, because the ids of scheduled runs begin with a time.
_RUN_ID = re.compile(
    r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}([0-9a-f]{8})\b", re.IGNORECASE
)
_BEGIN_OF_TIME = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2})?")


def run_name() -> str:
    """Return the name of the current run; Prefect asks for it whenever the run starts."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow is None:
        return ""
    # A flow gets no parameters that cannot be used; the run has them.
    parameters = context.parameters or {}
    if not isinstance(parameters.get("params"), BaseModel):
        parameters = context.flow_run.parameters
    return choose_name(context.flow_run.name, context.flow.name, parameters, name_of_deployment())


def choose_name(present: str, flow_name: str, parameters: object, deployment_name: str | None) -> str:
    """Return the name of a run.

    Args:
        present: Its present name, which stays if a person or an earlier start of the run has chosen it.
        flow_name: The name of its flow, which begins with the name of its command.
        parameters: Its parameters, valid or not.
        deployment_name: The name of its deployment, if it has one.
    """
    if present and not is_made_up(present):
        return present
    given = _fields(parameters)
    command = flow_name.partition("-")[0]
    words = [deployment_name or command]
    subject = _subject(given) if command in ("export", "backfill") else ""
    if not subject and given.get("rerun"):
        found = _RUN_ID.search(str(given["rerun"]))
        subject = f"of {found[1].lower()}" if found else ""
        if command == "backfill":
            subject = f"failures {subject}"
        elif deployment_name is None:
            words = ["retry-failed"]
    elif command == "backfill":
        subject = subject or "everything"
    elif command == "verify" and given.get("counts") is True:
        subject = "with counts"
    elif command == "compact" and given.get("dry_run") is True:
        subject = "dry run"
    words.append(subject)
    if window := _window(given.get("since"), given.get("until")):
        words.append(window)
    return " ".join(filter(None, words))


def is_made_up(name: str) -> bool:
    """Return whether Prefect made this name up, because the run was not given one."""
    return _MADE_UP.fullmatch(name) is not None


def name_of_deployment() -> str | None:
    """Return the name of the deployment of the current run; None without one, or if it is not known."""
    if is_deployment_run():
        with best_effort("the name of the deployment of this run"):
            return deployment.name or None
    return None


def _fields(parameters: object) -> dict[str, Any]:
    """Return the fields of the parameters of a flow, as far as they can be read."""
    given = parameters if isinstance(parameters, Mapping) else {}
    params = given.get("params", given)
    try:
        return dict(params)
    except (TypeError, ValueError):
        return {}


def _subject(given: Mapping[str, Any]) -> str:
    if given.get("numbers"):
        return "typed numbers"
    for kind in ("phones", "conversations"):
        address = given.get(kind)
        if kind == "phones" and str(address).strip() == UNUSABLE:
            return "without a list"
        if address:
            return list_name(str(address), kind)
    return ""


def list_name(address: str, kind: str = "phones") -> str:
    """Return the name of a list without phone numbers and credentials, `list` if its own has either.

    Args:
        address: Its path or URL.
        kind: What it lists, `phones` or `conversations`.
    """
    if address.startswith(STAGED):
        return f"typed {'numbers' if kind == 'phones' else kind}"
    parts = [part for part in re.split(r"[/\\]", address.partition("://")[2] or address) if part.strip()]
    # The name of a pattern alone does not identify the list.
    shown = "/".join(parts[-2:] if parts and re.search(r"[*?\[]", parts[-1]) else parts[-1:])
    has_secret = "://" in address and re.search(r"[@?#]", address)
    if not shown or has_secret or not shown.isprintable() or without_numbers(shown) != shown:
        return "list"
    return shown if len(shown) <= LONGEST_FILE_NAME else shown[: LONGEST_FILE_NAME - 1] + "…"


def _window(since: object, until: object) -> str:
    begin, end = _moment(since), _moment(until)
    return f"{begin}…{end}" if begin or end else ""


def _moment(given: object) -> str:
    """Return a day, with the time unless it is midnight."""
    text = given.isoformat() if isinstance(given, date | datetime) else str(given or "")
    found = _BEGIN_OF_TIME.match(text)
    return found[0].removesuffix("T00:00") if found else ""
