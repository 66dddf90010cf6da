"""`imbrace-lake verify` and `imbrace-lake freshness`, which need no Prefect."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from imbrace_lake.gateway import client
from imbrace_lake.gateway.models import parse_page
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.cli.conftest import Run
from tests.core.lake_runs import Bench


@pytest.fixture
def bench(settings: dict[str, str], box: Sandbox) -> Bench:
    """Make a lake whose conversations were proven two days ago."""
    made = Bench(box, settings["IMBRACE_LAKE"], now=datetime.now(UTC) - timedelta(days=2))
    made.run()
    return made


def parts(bench: Bench) -> list[Path]:
    return sorted(Path(bench.lake).glob("messages/**/*.parquet"))


def damage(path: Path) -> str:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))
    return path.name


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide only the lake: no token, no organization, no Prefect."""
    for name in ("IMBRACE_TOKEN", "IMBRACE_ORGANIZATION", "IMBRACE_GATEWAY"):
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("bench", "alone")
def test_a_sound_lake_is_verified_without_token_organization_or_server(
    run: Run, bench: Bench, workdir: Path
) -> None:
    result = run("verify")

    assert result.code == 0
    assert result.out == ""
    assert result.err.startswith(f"sound: {len(parts(bench))} parts and ")
    assert not (workdir.parent / "home").exists()


def test_each_difference_is_a_line_and_the_exit_code_is_3(run: Run, bench: Bench) -> None:
    first, second = parts(bench)[:2]
    damage(first)
    second.unlink()

    result = run("verify")
    reported = run("verify", "--json")

    names = [str(path.relative_to(bench.lake)) for path in (first, second)]
    assert (result.code, reported.code) == (3, 3)
    assert [line.partition(": ")[0] for line in result.out.splitlines()] == names
    assert result.err.startswith("2 differ: ")
    values = json.loads(reported.out)
    assert values["sound"] is False
    assert [one["name"] for one in values["differences"]] == names


@pytest.mark.usefixtures("bench", "alone")
def test_a_copy_of_one_object_is_verified_without_its_lake(run: Run, bench: Bench, workdir: Path) -> None:
    original = parts(bench)[0]
    copy = workdir / "copy"
    shutil.copy(original, copy)
    shutil.rmtree(bench.lake)

    sound, reported = run("verify", "--object", "copy"), run("verify", "--object", "copy", "--json")
    damage(copy)
    damaged = run("verify", "--object", "copy")

    conversation = original.parent.name.removeprefix("conv=")
    assert (sound.code, sound.out) == (0, "")
    assert f"messages of {conversation}" in sound.err
    assert "complete, proof method overlap, gateway's count" in " ".join(sound.err.split())
    values = json.loads(reported.out)
    assert (values["sound"], values["claim"]["conversation_id"]) == (True, conversation)
    assert (damaged.code, damaged.out) == (3, "copy: is damaged: restore it from a copy\n")
    assert run("verify", "--object", "missing").code == 1


@pytest.mark.usefixtures("alone")
def test_a_copy_that_another_program_changed_is_not_called_sound(
    run: Run, bench: Bench, workdir: Path
) -> None:
    rows = pd.read_parquet(parts(bench)[0])
    rows.iloc[1:].to_parquet(workdir / "copy")

    result = run("verify", "--object", "copy")

    assert result.code == 0
    assert result.err.startswith("not proven: ")
    assert "an earlier version or another program wrote it, without a claim" in " ".join(result.err.split())


def test_counts_are_compared_with_the_gateway(run: Run, bench: Bench, box: Sandbox) -> None:
    grown = next(iter(box.conversations))
    sound = run("verify", "--counts", "--json")
    box.append(grown, 2)

    differs = run("verify", "--counts", "--max-in-flight", "2")

    assert (sound.code, differs.code) == (0, 3)
    assert json.loads(sound.out)["counts"] == len(box.conversations)
    assert differs.out.startswith(f"{grown}: has {box.conversations[grown]} messages at the gateway")
    assert len(differs.out.splitlines()) == 1


def test_conversations_without_a_count_at_the_gateway_are_reported_and_not_a_difference(
    run: Run, bench: Bench, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "parse_page", lambda *args: replace(parse_page(*args), total_count=None))

    result = run("verify", "--counts")

    number = len(box.conversations)
    assert (result.code, result.out) == (0, "")
    assert f"not compared: {number} conversations whose count the gateway does not state" in result.err
    assert "None" not in result.err


def test_parts_that_no_ledger_records_are_reported_and_do_not_count_as_a_difference(
    run: Run, bench: Bench
) -> None:
    for path in Path(bench.lake).glob("*/*.parquet"):
        path.unlink()

    result = run("verify")

    assert result.code == 0
    assert f"in no ledger: {len(parts(bench))} complete parts; the next run that reads" in result.err


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_progress_is_shown(run: Run, bench: Bench) -> None:
    result = run("verify", "--counts")

    assert result.code == 0
    assert "objects" in result.err
    assert "counts" in result.err
    assert result.out == ""


@pytest.mark.slow
def test_a_failed_verification_ends_with_1_and_wrong_use_with_2(
    run: Run, bench: Bench, workdir: Path
) -> None:
    os.environ["IMBRACE_TOKEN"] = "api_wrong"
    parts(bench)[0].unlink()
    refused, as_json = run("verify", "--counts"), run("verify", "--counts", "--json")
    (Path(bench.lake) / "lake.json").write_text("{}")
    damaged = run("verify")
    nowhere = run("verify", "--lake", str(workdir / "other"))
    del os.environ["IMBRACE_TOKEN"]
    missing = run("verify", "--counts")

    assert (refused.code, damaged.code, nowhere.code, missing.code) == (1, 1, 1, 2)
    assert "does not accept the token" in refused.err
    assert "is missing" in refused.out
    assert (as_json.code, json.loads(as_json.out)["sound"]) == (1, False)
    assert "lake.json is damaged" in damaged.err
    assert "there is no lake" in nowhere.err
    assert "set IMBRACE_TOKEN" in missing.err
    assert {result.out for result in (damaged, nowhere, missing)} == {""}


def test_freshness_counts_by_age_and_lists_the_oldest_proof_first(
    run: Run, settings: dict[str, str], box: Sandbox
) -> None:
    never, *old = list(box.conversations)
    fresh = [old.pop() for _ in range(4)]
    bench = Bench(box, settings["IMBRACE_LAKE"], now=datetime.now(UTC) - timedelta(days=2, hours=1))
    box.break_conversation(never, "400")
    bench.run([never, *old])
    bench.now = datetime.now(UTC)
    bench.run(fresh)

    result = run("freshness", "--limit", "2")

    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[:3] == [
        ["4", "under", "an", "hour"],
        [str(len(old)), "under", "a", "week"],
        ["1", "never", "proven"],
    ]
    listed = lines.index(["never", "never", "unproven", never])
    assert lines[listed + 1] == ["2", "days", "ago", "2", "days", "ago", "complete", min(old)]
    assert result.out.endswith(f"and {len(box.conversations) - 2} with newer proofs\n")


@pytest.mark.usefixtures("bench")
def test_a_proof_older_than_the_limit_ends_with_3(run: Run, box: Sandbox) -> None:
    fine = run("freshness", "--stale-hours", "72", "--limit", "0")
    stale = run("freshness", "--stale-hours", "24", "--limit", "0")
    reported = run("freshness", "--stale-hours", "24", "--limit", "1", "--json")

    count = len(box.conversations)
    assert (fine.code, stale.code, reported.code) == (0, 3, 3)
    assert stale.out.endswith(f"{count} of {count} conversations: no proof in the last 24 hours\n")
    of_one = run("freshness", "--stale-hours", "1", "--limit", "0")
    assert of_one.out.endswith(f"{count} of {count} conversations: no proof in the last hour\n")
    values = json.loads(reported.out)
    assert values["stale"] == values["ages"]["under a week"] == count
    assert len(values["conversations"]) == 1
    assert 47 < values["conversations"][0]["age_hours"] < 49


@pytest.mark.usefixtures("bench")
def test_freshness_shows_what_runs_visit_next_and_what_the_promise_needs(run: Run, box: Sandbox) -> None:
    count = len(box.conversations)

    everything = run("freshness", "--limit", "0")
    chosen = run("freshness", "--limit", "0", "--budget", "5")
    reported = run("freshness", "--limit", "0", "--budget", "5", "--json")

    assert f"due       each run visits all {count}, because no budget limits it\n" in everything.out
    assert f" of {count}; a run visits 5\n" in chosen.out
    assert "forecast  news is found after " in chosen.out
    assert "promise   7 days: kept, needs 1 visit per run\n" in chosen.out
    # A little later, it is older.
    assert re.search(r"ages      oldest proof (48\.0 h|2\.0 days)\n", chosen.out)
    shown = json.loads(reported.out)["organization"]
    assert len(shown["activity_by_hour_utc"]) == 24
    assert len(shown["weight_by_day_from_thursday"]) == 7
    assert shown["price"] > 0
    values = json.loads(reported.out)["visits"]
    assert (values["conversations"], values["requests"], values["needed"]) == (count, 5, 1)
    assert values["oldest"] == pytest.approx(48, abs=2)


@pytest.mark.usefixtures("bench")
def test_the_budget_of_freshness_is_that_of_the_settings(run: Run) -> None:
    # 0.002 per second in 90 % of an hour.
    os.environ["IMBRACE_REQUESTS_PER_SECOND"] = "0.002"
    assert "; a run visits 6\n" in run("freshness", "--limit", "0").out

    os.environ["IMBRACE_BUDGET"] = "3"
    assert "; a run visits 3\n" in run("freshness", "--limit", "0").out


@pytest.mark.usefixtures("bench")
def test_freshness_explains_when_a_conversation_is_visited_next(run: Run, box: Sandbox) -> None:
    one = next(iter(box.conversations))

    plain = run("freshness", "--conversation", one, "--budget", "5")
    # The gateway's other spelling of the id.
    reported = run("freshness", "--conversation", one.replace("conv_", "tcu_"), "--budget", "5", "--json")
    unknown = run("freshness", "--conversation", "conv_none")
    number = run("freshness", "--conversation", "+886911425971")

    assert (plain.code, reported.code, unknown.code, number.code) == (0, 0, 1, 1)
    names = [line.split()[0] for line in plain.out.splitlines()]
    assert names == [
        *("proven", "promised", "estimates", "contrast", "messages", "rate", "interval", "counted"),
        *("value", "visit"),
    ]
    values = json.loads(reported.out)
    assert values["reason"] in ("value", "waits")
    assert values["interval"] == pytest.approx((2 * values["price"] / values["rate"]) ** 0.5)
    assert "the lake does not have conversation conv_none" in unknown.err
    assert "the lake does not have conversation +…, so no ingestion visits it" in number.err


def test_freshness_warns_of_a_damaged_object_once(
    run: Run, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = damage(next(Path(bench.lake).glob("conversations/*")))

    result = run("freshness")

    assert result.code == 0
    assert sum(damaged in message for message in caplog.messages) == 1


@pytest.mark.usefixtures("bench")
def test_freshness_needs_an_organization(run: Run) -> None:
    del os.environ["IMBRACE_ORGANIZATION"]

    result = run("freshness")

    assert result.code == 2
    assert "use --organization, or set IMBRACE_ORGANIZATION" in result.err


@pytest.mark.usefixtures("bench", "alone")
@pytest.mark.parametrize("command", ["verify", "new-key"])
def test_only_new_key_gives_a_lake_without_its_marker_a_new_one(run: Run, bench: Bench, command: str) -> None:
    marker = Path(bench.lake, "lake.json")
    kept = marker.read_bytes()
    marker.unlink()

    result = run(command)

    if command == "verify":
        assert (result.code, marker.exists()) == (1, False)
        assert result.err.count("\n") == 1
        assert "has lost its lake.json" in result.err
    else:
        assert (result.code, marker.exists()) == (0, True)
        assert marker.read_bytes() != kept
        assert run("verify").code == 0


@pytest.mark.usefixtures("bench", "alone")
def test_a_damaged_ledger_object_is_a_line_with_advice(run: Run, bench: Bench) -> None:
    damaged = damage(next(Path(bench.lake).glob("conversations/*")))

    result = run("verify")

    assert result.code == 3
    assert result.out.startswith(f"conversations/{damaged}: differs from the hash in its name: restore it")
    assert "Without a copy, delete it and runs/*-" in result.out


@pytest.mark.slow
def test_counts_of_a_lake_of_other_organizations_are_reported_as_not_compared(
    run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = len(bench.box.conversations)
    with Sandbox(SandboxOptions(conversations=2, organization_id="org_beta")) as other:
        for name, value in (("GATEWAY", other.url), ("ORGANIZATION", "org_beta")):
            monkeypatch.setenv(f"IMBRACE_{name}", value)

        nothing = run("verify", "--counts")
        reported = json.loads(run("verify", "--counts", "--json").out)
        Bench(other, bench.lake).run()
        both = run("verify", "--counts")

    of_others = f"{number} of org_sandbox"
    assert nothing.code == 1
    assert ", 0 counts" in nothing.err
    assert f"has no proven conversation of org_beta, but {of_others}" in " ".join(nothing.err.split())
    assert (reported["sound"], reported["counts"]) == (False, 0)
    assert reported["not_of_organization"] == {"org_sandbox": number}
    assert both.code == 0
    assert ", 2 counts" in both.err
    assert f"not compared with the gateway: {of_others}" in both.err
