"""`check` finds everything that can be wrong before a run, and reports it in a sentence."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imbrace_lake import check as checking
from imbrace_lake.check import Finding, run_checks
from imbrace_lake.errors import StoreUnavailable
from imbrace_lake.export.chunk import export_chunk
from imbrace_lake.export.run import close_run
from imbrace_lake.phones.numbers import PhoneNumber
from imbrace_lake.settings import Settings
from imbrace_lake.store.contract import Probe, StoreOptions
from imbrace_lake.store.local import LocalStore
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.core.certificates import make_certificate
from tests.core.raw_server import raw_server
from tests.core.test_broken_answers import answer
from tests.gateways import open_run, opener_of


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(SandboxOptions(conversations=0, sizes=(230, 1))) as box:
        yield box


def settings_of(box: Sandbox, lake: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "token": box.options.token,
        "organization": box.options.organization_id,
        "gateway": box.url,
        "lake": str(lake),
    }
    return Settings(_env_file=None, **{**values, **changes})


def look(settings: Settings, phone: str | None = None) -> dict[str, list[Finding]]:
    """Return the findings by name; assert that the check ends in time."""
    began = time.monotonic()
    findings: dict[str, list[Finding]] = {}
    for finding in asyncio.run(
        run_checks(settings, opener_of(settings), PhoneNumber(phone) if phone else None)
    ):
        findings.setdefault(finding.name, []).append(finding)
    assert time.monotonic() - began < 10
    return findings


def verdicts(findings: dict[str, list[Finding]]) -> dict[str, str]:
    return {name: found[0].verdict for name, found in findings.items()}


def phone_of(box: Sandbox, conversation_id: str) -> str:
    return next(phone for phone, ids in box.links.items() if ids[:1] == [conversation_id])


def test_without_faults_everything_is_ok(box: Sandbox, tmp_path: Path) -> None:
    longest = next(iter(box.conversations))

    findings = look(settings_of(box, tmp_path / "lake"), phone_of(box, longest))

    names = ["gateway", "token", "organization", "pages", "counts", "lake", "conditions"]
    assert verdicts(findings) == dict.fromkeys(names, "ok")
    assert findings["pages"][0].message == "a page has 100 messages, as requested"
    assert "`count` covers the conversation (230)" in findings["counts"][0].message
    assert "has no lake yet" in findings["lake"][0].message
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != ".tmp"] == []


def test_all_missing_settings_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "ORGANIZATION", "GATEWAY", "LAKE"):
        monkeypatch.delenv(f"IMBRACE_{name}", raising=False)

    findings = look(Settings(_env_file=None))

    assert verdicts(findings) == {
        "token": "error", "organization": "error", "gateway": "skipped", "lake": "error"
    }  # fmt: skip
    assert "set IMBRACE_ORGANIZATION" in findings["organization"][0].message


def test_an_invalid_address_is_reported(box: Sandbox, tmp_path: Path) -> None:
    findings = look(settings_of(box, tmp_path, gateway="app-gateway.imbrace.co"))

    assert [finding.verdict for finding in findings["gateway"]] == ["error", "skipped"]


@pytest.mark.parametrize(
    ("changes", "name", "reported"),
    [
        ({"token": "api_wrong"}, "token", "check IMBRACE_TOKEN"),
        ({"organization": "org_wrong"}, "organization", "belongs to organization org_sandbox"),
    ],
)
def test_a_wrong_token_and_a_wrong_organization_are_reported(
    changes: dict[str, str], name: str, reported: str, box: Sandbox, tmp_path: Path
) -> None:
    findings = look(settings_of(box, tmp_path, **changes))

    assert findings[name][0].verdict == "error"
    assert reported in findings[name][0].message
    assert "api_wrong" not in str(findings)
    assert "pages" not in findings
    assert findings["lake"][0].verdict == "ok"


def test_an_unreachable_gateway_is_reported(box: Sandbox, tmp_path: Path) -> None:
    findings = look(settings_of(box, tmp_path, gateway="http://127.0.0.1:9/3rd"))

    assert findings["gateway"][0].verdict == "error"
    assert "check IMBRACE_GATEWAY" in findings["gateway"][0].message


@pytest.mark.slow
def test_a_gateway_that_never_answers_is_reported_in_time(tmp_path: Path, box: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/3rd"

        findings = look(settings_of(box, tmp_path, gateway=url, timeout_seconds=0.3))

    assert "sent no complete answer in 0.3 s" in findings["gateway"][0].message


@pytest.mark.slow
def test_a_slow_gateway_is_reported_as_slow_and_not_as_an_error(
    tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "SLOW_SECONDS", 0.2)
    box.set_options(latency_seconds=0.5)
    longest = next(iter(box.conversations))
    said: list[str] = []

    settings = settings_of(box, tmp_path)
    phone = PhoneNumber(phone_of(box, longest))
    found = asyncio.run(run_checks(settings, opener_of(settings), phone, said.append))

    gateway, *others = [finding for finding in found if finding.name in ("gateway", "pages", "counts")]
    assert gateway.verdict == "note"
    assert re.search(r"answers after [5-9]\d\d ms: slow|answers after \d,\d\d\d ms: slow", gateway.message)
    assert [finding.verdict for finding in others] == ["ok", "ok"]
    assert said == [f"waiting for {box.url}, as an export would: up to 35 s"] * 2


@pytest.mark.slow
def test_a_wait_for_a_turn_is_not_reported_as_a_slow_gateway(
    tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "SLOW_SECONDS", 0.2)
    box.set_options(latency_seconds=0.5)

    findings = look(settings_of(box, tmp_path, requests_per_second=50))

    assert findings["gateway"][0].verdict == "ok"
    assert findings["gateway"][0].message.endswith(" ms, including the wait for a turn within the limit")


def test_a_check_waits_as_long_for_the_gateway_as_an_export(tmp_path: Path, box: Sandbox) -> None:
    """The time limit of every step covers the slowest answer that an export accepts."""
    settings = settings_of(box, tmp_path)
    options = checking._options(settings, [])

    assert options is not None
    assert options.timeout_seconds == settings.gateway_options().timeout_seconds == 35.0


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_redirect_is_an_error_with_its_target(status: str, box: Sandbox, tmp_path: Path) -> None:
    box.break_conversation("links", status)

    findings = look(settings_of(box, tmp_path))

    assert findings["gateway"][0].verdict == "error"
    assert (
        f"redirects with status {status} to https://login.example.invalid/sso"
        in findings["gateway"][0].message
    )
    assert "check IMBRACE_GATEWAY" in findings["gateway"][0].message


def test_an_untrusted_certificate_is_reported_once(box: Sandbox, tmp_path: Path) -> None:
    context, _ = make_certificate(tmp_path)
    with raw_server(lambda _: [answer()], context) as server:
        findings = look(settings_of(box, tmp_path / "lake", gateway=f"https://127.0.0.1:{server.port}/3rd"))

    [gateway] = findings["gateway"]
    assert gateway.verdict == "error"
    assert "is not trusted: set SSL_CERT_FILE" in gateway.message
    assert "IMBRACE_GATEWAY" not in gateway.message


def test_an_expired_token_is_reported_with_the_way_to_create_a_lasting_one(
    box: Sandbox, tmp_path: Path
) -> None:
    box.set_options(token_expired=True)

    findings = look(settings_of(box, tmp_path))

    assert findings["token"][0].verdict == "error"
    assert "which may have expired" in findings["token"][0].message
    assert "expire after 10 days unless `expired_at`" in findings["token"][0].message


def test_a_forbidden_conversation_is_not_reported_as_an_error_of_the_token(
    box: Sandbox, tmp_path: Path
) -> None:
    longest = next(iter(box.conversations))
    box.break_conversation(longest, "403")

    findings = look(settings_of(box, tmp_path), phone_of(box, longest))

    assert (findings["token"][0].verdict, findings["organization"][0].verdict) == ("ok", "ok")
    assert "forbids access to this conversation" in findings["pages"][0].message


def test_a_closed_budget_is_reported(box: Sandbox, tmp_path: Path) -> None:
    box.break_conversation("links", "429")

    findings = look(settings_of(box, tmp_path))

    assert "rate-limits every request at present (429)" in findings["gateway"][0].message


def test_temporary_failures_are_noted(box: Sandbox, tmp_path: Path) -> None:
    box.fail_next("500")

    findings = look(settings_of(box, tmp_path))

    assert [finding.verdict for finding in findings["gateway"]] == ["ok", "note"]


def test_a_number_without_a_conversation_is_noted(box: Sandbox, tmp_path: Path) -> None:
    without = next(phone for phone, ids in box.links.items() if not ids)

    findings = look(settings_of(box, tmp_path), without)

    assert findings["number"][0].verdict == "note"
    assert findings["pages"][0].verdict == "skipped"
    assert without not in str(findings)


def test_a_hidden_cap_and_swapped_counts_are_found(tmp_path: Path) -> None:
    options = SandboxOptions(
        conversations=0, sizes=(230,), page_cap=50, counts_swapped=True, without_has_more=True
    )
    with Sandbox(options) as box:
        findings = look(settings_of(box, tmp_path), phone_of(box, next(iter(box.conversations))))

    assert "has at most 50 messages, instead of 100" in findings["pages"][0].message
    assert "`total` covers the conversation (230)" in findings["counts"][0].message
    assert "`has_more` is missing" in findings["counts"][0].message


def test_a_short_conversation_is_reported_as_too_short_for_findings(box: Sandbox, tmp_path: Path) -> None:
    number = "+886911425977"
    box.put([{"_id": "msg_1"}], phone=number)

    findings = look(settings_of(box, tmp_path), number)

    assert "has 1 message, too few" in findings["pages"][0].message
    assert "too short" in findings["counts"][0].message


@pytest.mark.parametrize(
    ("fault", "reported"), [("404", "cannot be read"), ("stall", "sent no complete answer in 0.5 s")]
)
@pytest.mark.slow
def test_messages_that_cannot_be_read_are_reported(
    fault: str, reported: str, box: Sandbox, tmp_path: Path
) -> None:
    longest = next(iter(box.conversations))
    box.break_conversation(longest, fault)

    findings = look(settings_of(box, tmp_path, timeout_seconds=0.5), phone_of(box, longest))

    assert findings["pages"][0].verdict == "error"
    assert reported in findings["pages"][0].message


def test_a_failed_second_answer_is_not_an_error_of_the_gateway(box: Sandbox, tmp_path: Path) -> None:
    longest = next(iter(box.conversations))
    box.fail_next("ok", "ok", "html", "html", "html")

    findings = look(settings_of(box, tmp_path), phone_of(box, longest))

    assert findings["counts"][0].verdict == "skipped"


class _Odd:
    """A gateway that answers without counts, or with counts that do not match the messages."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.body = json.dumps({"items": [{"_id": "msg_1"}], "has_more": True, **counts}).encode()

    def __enter__(self) -> str:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        from threading import Thread

        body = self.body

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "/links" in self.path:
                    answer = [
                        {"phone_number": "12025550123", "conversation_links": [{"link": "x?conv_id=c"}]}
                    ]
                    sent = json.dumps(answer).encode()
                else:
                    sent = body
                self.send_response(200)
                self.send_header("content-length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/3rd"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("counts", "pages", "reported"),
    [
        ({}, "without counts", "is missing"),
        ({"count": 7, "total": 5}, "", "matches the page: walks cost more requests"),
    ],
)
def test_counts_that_do_not_match_the_page_are_noted(
    counts: dict[str, int], pages: str, reported: str, box: Sandbox, tmp_path: Path
) -> None:
    with _Odd(counts) as url:
        findings = look(settings_of(box, tmp_path, gateway=url), "+12025550123")

    assert pages in findings["pages"][0].message
    assert reported in findings["counts"][0].message


def test_the_longest_conversation_of_the_lake_is_checked(box: Sandbox, tmp_path: Path) -> None:
    settings = settings_of(box, tmp_path)

    async def export() -> None:
        async with open_run(settings, "earlier") as run:
            await export_chunk(run, "all", list(box.conversations))
            await close_run(run, {}, Counter())

    asyncio.run(export())

    findings = look(settings)

    assert "(230)" in findings["counts"][0].message
    assert "has a lake" in findings["lake"][0].message
    assert findings["ledgers"] == [
        Finding("ledgers", "ok", "the lake has 2 conversations of this organization")
    ]


def export_all(settings: Settings, *conversation_ids: str) -> None:
    async def export() -> None:
        async with open_run(settings, "earlier") as run:
            await export_chunk(run, "all", conversation_ids)
            await close_run(run, {}, Counter())

    asyncio.run(export())


def test_a_lake_without_conversations_is_reported_as_empty(box: Sandbox, tmp_path: Path) -> None:
    settings = settings_of(box, tmp_path)
    export_all(settings)

    findings = look(settings)

    assert verdicts(findings)["lake"] == verdicts(findings)["ledgers"] == "ok"
    assert "the lake has no conversation of this organization yet" in findings["ledgers"][0].message


def test_the_conversations_of_other_organizations_are_counted(box: Sandbox, tmp_path: Path) -> None:
    export_all(settings_of(box, tmp_path), *box.conversations)
    with Sandbox(SandboxOptions(conversations=0, organization_id="org_beta")) as other:
        findings = look(settings_of(other, tmp_path))

    own, others = findings["ledgers"]
    assert (own.verdict, others.verdict) == ("ok", "note")
    assert others.message == (
        f"the lake also has conversations of other organizations ({len(box.conversations)} of org_sandbox):"
        " runs with these settings read only org_beta and never update the others"
    )


def test_a_slow_lake_is_reported_as_slow_and_not_as_an_error(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "SLOW_SECONDS", 0.2)
    real = LocalStore.probe

    async def slowly(store: LocalStore) -> Probe:
        await asyncio.sleep(0.3)
        return await real(store)

    monkeypatch.setattr(LocalStore, "probe", slowly)

    findings = look(settings_of(box, tmp_path))

    assert [one.verdict for one in findings["lake"]] == ["ok", "note"]
    assert "is slow" in findings["lake"][1].message


def test_ledgers_that_take_too_long_are_skipped_and_not_an_error(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(box, tmp_path)
    export_all(settings)

    async def never(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(checking, "LEDGER_SECONDS", 0.1)
    monkeypatch.setattr(checking, "read_state", never)

    findings = look(settings)

    assert verdicts(findings)["lake"] == "ok"
    assert verdicts(findings)["ledgers"] == "skipped"


def test_damaged_ledger_objects_are_noted(box: Sandbox, tmp_path: Path) -> None:
    settings = settings_of(box, tmp_path)
    export_all(settings, *box.conversations)
    damaged = next(tmp_path.glob("conversations/*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])

    findings = look(settings)

    assert [one.verdict for one in findings["ledgers"]] == ["ok", "note"]
    assert damaged.name in findings["ledgers"][1].message


def test_a_lake_without_its_marker_is_an_error(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "x").write_text("x")

    findings = look(settings_of(box, tmp_path))

    assert findings["lake"][0].verdict == "error"
    assert "has lost its lake.json" in findings["lake"][0].message


def test_a_lake_that_cannot_be_written_is_reported(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("in the way")

    findings = look(settings_of(box, tmp_path / "lake"))

    assert findings["lake"][0].verdict == "error"
    assert "is a file where the lake needs a folder" in findings["lake"][0].message
    assert findings["token"][0].verdict == "ok"


def test_a_store_that_never_answers_is_reported_in_time(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "StoreOptions", lambda: StoreOptions(timeout_seconds=0.3))

    class Stalled:
        async def __aenter__(self) -> None:
            await asyncio.sleep(60)

        async def __aexit__(self, *_: object) -> None:
            raise AssertionError

    monkeypatch.setattr(checking, "open_store", lambda *_: Stalled())

    findings = look(settings_of(box, Path("s3://bucket/lake")))

    assert "did not answer within 0.3 s" in findings["lake"][0].message


@pytest.mark.parametrize(
    ("note", "reported"), [("one run at a time", "one run at a time"), (None, "has no conditional writes")]
)
def test_a_store_without_conditional_writes_is_noted(
    note: str | None, reported: str, box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(_: object) -> Probe:
        return Probe(is_conditional=False, note=note)

    monkeypatch.setattr("imbrace_lake.store.local.LocalStore.probe", probe)

    findings = look(settings_of(box, tmp_path))

    assert findings["conditions"][0].verdict == "note"
    assert reported in findings["conditions"][0].message


def test_a_temporary_failure_of_the_store_is_reported(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(_: object) -> Probe:
        raise StoreUnavailable("the disk fails temporarily")

    monkeypatch.setattr("imbrace_lake.store.local.LocalStore.probe", probe)

    assert look(settings_of(box, tmp_path))["lake"] == [
        Finding("lake", "error", "the disk fails temporarily")
    ]
