"""The names of runs: from deployment and list, the same at every start, without phone numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.context import FlowRunContext
from prefect.runtime import deployment
from pydantic import SecretStr

from imbrace_flows.backfill import backfill_conversations
from imbrace_flows.compact import compact_lake_tables
from imbrace_flows.export import export_conversations, export_uploaded_list, retry_failures
from imbrace_flows.ingest import ingest_changed, ingest_conversations
from imbrace_flows.params import (
    BackfillParams,
    ChangedParams,
    CompactParams,
    ExportParams,
    RetryParams,
    UploadParams,
    VerifyParams,
)
from imbrace_flows.run_name import choose_name, list_name, run_name
from imbrace_flows.verify import verify_lake
from imbrace_lake.phones.sources import STAGED

RUN_ID = "3F2504e0-4f89-11d3-9a0c-0305e82c3301"
NUMBER = "+886 911 425 977"
BACKFILL, EXPORT = backfill_conversations.name, export_conversations.name


@pytest.mark.parametrize(
    ("flow", "params", "deployment", "name"),
    [
        (EXPORT, ExportParams(phones="s3://b/customers.csv"), "export", "export customers.csv"),
        (EXPORT, ExportParams(numbers=SecretStr(NUMBER)), "export", "export typed numbers"),
        (EXPORT, ExportParams(phones=f"{STAGED}1/the arguments"), None, "export typed numbers"),
        (EXPORT, ExportParams(rerun=RUN_ID), "retry-failed", "retry-failed of e82c3301"),
        (EXPORT, ExportParams(rerun=f"http://ui/flow-run/{RUN_ID}"), None, "retry-failed of e82c3301"),
        (EXPORT, {"rerun": NUMBER}, None, "retry-failed"),
        ("export-uploaded-list", {"phones": "?"}, "export-on-upload", "export-on-upload without a list"),
        (retry_failures.name, RetryParams(rerun=RUN_ID), "retry-failed", "retry-failed of e82c3301"),
        (export_uploaded_list.name, UploadParams(phones="b.csv"), "on-upload", "on-upload b.csv"),
        (EXPORT, {"phones": "a.csv", "rerun": RUN_ID}, "export", "export a.csv"),
        (EXPORT, 7, "export", "export"),
        (ingest_conversations.name, {"phones": "customers.csv"}, "ingest", "ingest"),
        (ingest_changed.name, ChangedParams(conversations="conv_1"), "ingest-changed", "ingest-changed"),
        (ingest_changed.name, ChangedParams(conversations="conv_1"), None, "ingest"),
        (verify_lake.name, VerifyParams(), "verify", "verify"),
        (verify_lake.name, VerifyParams(counts=True), None, "verify with counts"),
        (compact_lake_tables.name, CompactParams(), "compact", "compact"),
        (compact_lake_tables.name, CompactParams(dry_run=True), None, "compact dry run"),
        (BACKFILL, BackfillParams(rerun=RUN_ID), None, "backfill failures of e82c3301"),
        (BACKFILL, BackfillParams(conversations="ids.txt"), None, "backfill ids.txt"),
        (
            BACKFILL,
            BackfillParams(everything=True, since=datetime(2026, 1, 1, tzinfo=UTC)),
            "backfill",
            "backfill everything 2026-01-01…",
        ),
        (BACKFILL, {"since": "2026-01-01T08:30:00Z", "until": "2026-02-01"}, None,
         "backfill everything 2026-01-01T08:30…2026-02-01"),
        (BACKFILL, {"since": NUMBER}, None, "backfill everything"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_deployment_or_command_and_what_it_reads(
    flow: str, params: Any, deployment: str | None, name: str
) -> None:
    assert choose_name("sandy-dragonfly", flow, {"params": params}, deployment) == name
    # When it is resumed or restarted.
    assert choose_name(name, flow, {"params": params}, deployment) == name


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/lists/customers 2026.xlsx", "customers 2026.xlsx"),
        ("s3://bucket/2026-11-27-1530.csv", "2026-11-27-1530.csv"),
        ("customers_20261127.csv", "customers_20261127.csv"),
        ("s3://bucket/lists/", "lists"),
        ("s3://bucket/lists/*.parquet", "lists/*.parquet"),
        ("+886911425977.csv", "list"),
        ("s3://bucket/886-911-425-977.csv", "list"),
        ("85220261127.csv", "list"),
        ("+20261127.csv", "list"),
        ("20261127 425.csv", "list"),
        ("0911425977/*.csv", "list"),
        ("https://user:secret@host/customers.csv", "list"),
        ("https://host/customers.csv?signature=secret", "list"),
        ("s3://bucket/a\nb.csv", "list"),
        ("", "list"),
        ("x" * 100, "x" * 59 + "…"),
    ],
)
def test_the_name_of_a_list_has_neither_phone_numbers_nor_secrets(address: str, name: str) -> None:
    assert list_name(address) == name


@pytest.mark.parametrize(
    "present", ["Friday's customers", "customers of May", "export-shard 1", "Customers-of-May-2026"]
)
def test_a_name_that_a_person_has_chosen_stays(present: str) -> None:
    assert choose_name(present, EXPORT, {"params": {"phones": "a.csv"}}, "export") == present


@pytest.mark.parametrize(
    "present", ["", "sandy-dragonfly", "omega2-orionis-vector", "psi-bootis", "Handmade-Horse"]
)
def test_a_name_that_prefect_has_made_up_is_replaced(present: str) -> None:
    assert choose_name(present, EXPORT, {"params": {"phones": "a.csv"}}, "export") == "export a.csv"


def test_a_run_with_invalid_parameters_is_named_by_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"params": {"phones": "a.csv", "numbers": NUMBER}}
    used = export_conversations.validate_parameters(given)
    started = SimpleNamespace(name="sandy-dragonfly", parameters=given, deployment_id="1")
    context = SimpleNamespace(flow=export_conversations, flow_run=started, parameters=used)
    monkeypatch.setattr(FlowRunContext, "get", lambda: context)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "export")
    monkeypatch.setattr(deployment, "FIELDS", {"name": lambda: ""})

    assert run_name() == "export typed numbers"
