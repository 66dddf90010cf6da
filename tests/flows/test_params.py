"""The parameters of flows: rejected in one sentence, shown in order, and never repeated."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import prefect
import pytest
import yaml  # type: ignore[import-untyped] # no stubs
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.server.utilities.user_templates import render_user_template_sync
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid_schema, validate
from pydantic import SecretStr, ValidationError

from imbrace_deployments.deploy import PREFECT_FILE
from imbrace_flows.backfill import backfill_conversations, export_shard
from imbrace_flows.compact import compact_lake_tables
from imbrace_flows.export import export_conversations, export_uploaded_list, retry_failures
from imbrace_flows.flow import Rejected
from imbrace_flows.ingest import ingest_changed, ingest_conversations
from imbrace_flows.params import (
    LONGEST_HINT,
    MAX_TYPED,
    BackfillParams,
    ChangedParams,
    ExportParams,
    ListParams,
    RetryParams,
    RunParams,
)
from imbrace_flows.verify import verify_lake
from imbrace_lake.phones.report import COLUMN_SETTING, SHEET_SETTING

NUMBER = "+886911425977"
TOKEN = "api_never_to_be_shown"
SECRET = "not-to-be-stored"
RUN = "0d8e8bd7-8b3c-4a34-9d3f-5c3c2d1f0a11"


def test_typed_numbers_are_separated_by_commas_and_line_breaks_and_may_contain_blanks() -> None:
    params = ExportParams(numbers=SecretStr("+886 911 425 977, (02) 2345-6789;\n +14152837465\n"))

    assert params.typed() == ["+886 911 425 977", "(02) 2345-6789", "+14152837465"]


@pytest.mark.parametrize("typed", ["", " , ;\n", ",".join([NUMBER] * (MAX_TYPED + 1)), "9" * 1_000])
def test_no_numbers_and_too_many_numbers_are_rejected(typed: str) -> None:
    with pytest.raises(ValidationError):
        ExportParams(numbers=SecretStr(typed))


def test_the_stated_number_of_phone_numbers_can_be_typed_in_their_longest_form() -> None:
    longest = "+886 (9) 11 42-59 77 12 3"

    assert ExportParams(numbers=SecretStr(",\n".join([longest] * MAX_TYPED))).typed() == [longest] * MAX_TYPED


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"phones": "a.csv", "rerun": RUN},
        {"phones": "a.csv", "numbers": NUMBER},
        {"numbers": NUMBER, "rerun": RUN},
    ],
)
def test_an_export_has_exactly_one_source(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="give one of these"):
        ExportParams.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"everything": False},
        {"everything": True, "conversations": "a.csv"},
        {"phones": "a.csv", "numbers": NUMBER},
        {"conversations": "a.csv", "rerun": RUN},
    ],
)
def test_a_backfill_has_exactly_one_source(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="give one of these: everything"):
        BackfillParams.model_validate(given)


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"everything": True}, "everything"),
        ({"phones": "a.csv"}, "phones"),
        ({"numbers": NUMBER, "phones": " "}, "numbers"),
        ({"conversations": "a.csv", "numbers": ""}, "conversations"),
        ({"rerun": RUN}, "rerun"),
    ],
)
def test_the_source_of_a_backfill_is_the_field_that_is_filled_in(
    given: dict[str, object], source: str
) -> None:
    assert BackfillParams.model_validate(given).source == source


@pytest.mark.parametrize(
    "text",
    [
        RUN,
        f" {RUN}\n",
        f"http://127.0.0.1:4200/runs/flow-run/{RUN}",
        f"http://127.0.0.1:4200/v2/runs/flow-run/{RUN}?tab=Logs",
    ],
)
def test_a_run_is_named_by_its_id_or_by_the_address_of_its_page(text: str) -> None:
    assert rejections(retry_failures, {"rerun": text}) == []
    assert RetryParams(rerun=text).rerun == RUN


def test_typed_numbers_are_masked_in_the_ledger_and_the_logs() -> None:
    params = ExportParams(numbers=SecretStr(NUMBER), region="TW")

    assert NUMBER[1:] not in json.dumps(params.recorded()) + repr(params) + str(params)
    assert params.recorded()["region"] == "TW"


WRONG: list[tuple[Flow[..., Any], dict[str, object], str]] = [
    (export_conversations, {"region": "TW"}, "one of these: a list of phone numbers, a few phone numbers"),
    (export_conversations, {"phones": "a.csv", "numbers": NUMBER}, "only one of these: a list of phone"),
    (export_conversations, {"phones": "a.csv", "region": "Taiwan"}, "two letters of a country, such as TW"),
    (export_conversations, {"phones": "a.csv", "region": "XX"}, "two letters of a country, such as TW"),
    (export_conversations, {"numbers": f"{NUMBER}, " * (MAX_TYPED + 1)}, "at most 20 phone numbers"),
    (export_conversations, {"phones": ["a.csv"]}, "['a.csv'] is not valid under"),
    (export_conversations, {"phones": "a.csv", "fones": 1}, "'fones' does not match"),
    (export_conversations, {"phones": "a.csv", "tolerated_failures": 7}, "greater than the maximum of 1"),
    (export_conversations, {"phones": "export 0988 752 959.csv"}, "a name without a phone number"),
    (export_conversations, {"phones": "0988\u2011752\u2011959.csv"}, "a name without a phone number"),
    (export_conversations, {"phones": "a.csv", "sheet": NUMBER}, "a name without a phone number"),
    (backfill_conversations, {"conversations": f"s3://b/{NUMBER}/ids"}, "a name without a phone number"),
    (ingest_conversations, {"phones": "a.csv", "column": NUMBER[1:]}, "a name without a phone number"),
    (export_uploaded_list, {"phones": f"s3://bucket/{NUMBER}.txt"}, "a name without a phone number"),
    (export_uploaded_list, {"phones": ""}, "'' should be non-empty"),
    (ingest_changed, {"conversations": f"conv_1, {NUMBER}"}, "ids of conversations, not phone numbers"),
    *(
        (ingest_changed, dict[str, object](conversations=text), "ids of conversations, not phone numbers")
        for text in (
            "0911 425-977",
            "0911,425,977",
            "0911:425:977",
            "tel:+886911425971",
            "886911425977@s.whatsapp.net",
            "886911425977@c.us",
            "886911425977:12@s.whatsapp.net",
            "wa:0911/425977",
            "whatsapp:+886911425977",
            "https://wa.me/886911425977",
            "%2B886911425977",
            "conv_1, tel:+886911425971, conv_2",
        )
    ),
    (ingest_changed, {"conversations": " ,\n; "}, "ids of conversations, separated by commas"),
    (ingest_changed, {"conversations": "['conv_1', 'conv_2']"}, "ids of conversations, separated by commas"),
    (ingest_changed, {"conversations": 'conv_1, "conv_2"'}, "ids of conversations, separated by commas"),
    (export_conversations, {"phones": f"http://user:{SECRET}@host/a.csv"}, "an address without credentials"),
    (export_conversations, {"phones": f"https://host/a.csv?sig={SECRET}"}, "or a signature"),
    (export_conversations, {"phones": f" HTTPS://host/a.csv?{SECRET}"}, "or a signature"),
    (export_uploaded_list, {"phones": f"abfs://box/a.csv?sig={SECRET}"}, "or a signature"),
    (ingest_conversations, {"phones": f"s3://key:{SECRET}@bucket/a.csv"}, "an address without credentials"),
    (ingest_conversations, {"phones": f"sftp:me:{SECRET}@host/a.csv"}, "an address without credentials"),
    (backfill_conversations, {"conversations": f"ftp://u:{SECRET}@host/a"}, "an address without credentials"),
    (retry_failures, {"rerun": ""}, "the id of a run, or the address of its page"),
    (retry_failures, {"rerun": "brave-otter"}, "the id of a run, or the address of its page"),
    (retry_failures, {"rerun": f"/artifacts/artifact/{RUN}"}, "the id of a run, or the address of its page"),
    (
        retry_failures,
        {"rerun": f"http://user:{SECRET}@host/runs/flow-run/{RUN}"},
        "an address without credentials",
    ),
    (export_conversations, {"rerun": "0911425977"}, "the id of a run, or the address of its page"),
    (backfill_conversations, {"rerun": "0911425977"}, "the id of a run, or the address of its page"),
    (export_conversations, {"rerun": f"http://u:{SECRET}@h/flow-run/{RUN}"}, "without credentials"),
    (backfill_conversations, {"rerun": f"http://u:{SECRET}@h/flow-run/{RUN}"}, "without credentials"),
    (backfill_conversations, {"everything": False}, "one of these: everything, a list of phone numbers"),
    (backfill_conversations, {"everything": True, "numbers": NUMBER}, "only one of these: everything"),
    (backfill_conversations, {"everything": True, "since": "soon"}, "'soon' is not a 'date-time'"),
    (verify_lake, {"stale_hours": -1}, "-1 is less than or equal to the minimum of 0"),
    (verify_lake, {"counts": "maybe"}, "'maybe' is not of type 'boolean'"),
    (compact_lake_tables, {"keep_hours": -1}, "-1 is less than the minimum of 0"),
]


@pytest.mark.parametrize(("flow", "given", "message"), WRONG)
def test_a_form_rejects_wrong_input_in_a_short_sentence_without_phone_numbers(
    flow: Flow[..., Any], given: dict[str, object], message: str
) -> None:
    found = rejections(flow, given)

    assert any(message in one for one in found), found
    assert all(len(one) < 150 and NUMBER not in one and SECRET not in one for one in found)


ACCEPTED: list[tuple[Flow[..., Any], dict[str, object]]] = [
    (export_conversations, {"phones": "a.csv", "numbers": "", "region": "", "column": None}),
    (export_conversations, {"numbers": f"{NUMBER}, " * MAX_TYPED, "region": "tw", "shard_size": 3}),
    (export_uploaded_list, {"phones": "s3://bucket-123456789012/export_20261127_153000.csv"}),
    (
        export_uploaded_list,
        {"phones": "http://192.168.100.25:9000/part-0-12345678-4f89-11d3-9a0c-0305e82c3301"},
    ),
    (export_uploaded_list, {"phones": "s3://bucket/2026/part-??.csv"}),
    (export_uploaded_list, {"phones": "lists/a:b:me@example.net.csv"}),
    (export_uploaded_list, {"phones": "s3://bucket/me@example.net/a.csv"}),
    (export_uploaded_list, {"phones": "/data/a@b?/day=2026-11-27.csv"}),
    (backfill_conversations, {"everything": True, "phones": " ", "since": "2026-01-31T08:00:00+08:00"}),
    (backfill_conversations, {"everything": False, "conversations": "ids.txt", "until": None}),
    (ingest_conversations, {"phones": "a.csv", "drift": "freeze"}),
    (ingest_conversations, {"budget": 500, "minutes": 10.5}),
    (backfill_conversations, {"everything": True, "walk_whole": False, "budget": 500, "minutes": 10}),
    (ingest_changed, {"conversations": "conv_1, conv_2"}),
    (verify_lake, {"counts": True, "stale_hours": 24}),
    (compact_lake_tables, {"dry_run": True, "keep_hours": 0}),
]


@pytest.mark.parametrize(("flow", "given"), ACCEPTED)
def test_a_form_accepts_what_its_flow_accepts(flow: Flow[..., Any], given: dict[str, object]) -> None:
    assert rejections(flow, given) == []
    assert not isinstance(flow.validate_parameters({"params": given})["params"], Rejected)


@pytest.mark.parametrize(
    ("flow", "given"),
    [(flow, given) for flow, given, _ in WRONG if SECRET in str(given) or given.get("rerun", "") == ""],
)
def test_a_flow_rejects_what_its_form_rejects(flow: Flow[..., Any], given: dict[str, object]) -> None:
    # As without the check of the form, which an operator can switch off.
    assert isinstance(flow.validate_parameters({"params": given})["params"], Rejected)


# As the two interfaces refer to a block, and as scripts may.
REFERENCES = [None, {"$ref": {"block_document_id": RUN}}, {"$ref": RUN}]
VALUES = [
    TOKEN,
    {"organization": "org_1", "token": TOKEN},
    {"$ref": RUN, "token": TOKEN},
    {"token": TOKEN},
    {"organization": "org_1"},
    {"url": "s3://bucket/lake", "secret_key": TOKEN},
    {"url": f"s3://key:{TOKEN}@bucket/lake"},
    {"url": "s3://bucket/lake", "endpoint": f"https://key:{TOKEN}@host"},
]


@pytest.mark.parametrize("name", ["credentials", "lake"])
def test_a_block_is_given_by_reference_or_by_values_without_a_secret_which_prefect_would_store(
    name: str,
) -> None:
    schema = schema_of(verify_lake)

    lake = {"url": "s3://bucket/lake", "endpoint": "https://host:9000", "region": "ap-east-1"}
    for given in (*REFERENCES, *VALUES, lake):
        # With and without what the server does at the creation of a deployment.
        for options in ({}, {"ignore_required": True}, {"ignore_required": True, "preprocess": False}):
            errors = validate({"params": {}, name: given}, schema, **options)
            is_wrong = given in VALUES or (given is lake and name == "credentials")
            assert [one.json_path for one in errors] == [f"$.{name}"] * is_wrong
            assert all("a saved block" in one.message and TOKEN not in one.message for one in errors)
        if isinstance(given, dict) and "$ref" not in given:
            found = verify_lake.validate_parameters({"params": {}, name: given})
            assert isinstance(found["params"], Rejected) == is_wrong


@pytest.mark.parametrize(("flow", "given"), ACCEPTED)
def test_the_parameters_that_a_flow_sends_are_those_that_prefect_would_send(
    flow: Flow[..., Any], given: dict[str, object]
) -> None:
    values = flow.validate_parameters({"params": given})
    assert isinstance(values["params"], RunParams)

    assert flow.serialize_parameters(values) == Flow.serialize_parameters(flow, values)


@pytest.mark.slow
def test_the_check_of_a_form_is_quick_for_a_long_text() -> None:
    began = time.process_time()

    for text in (
        " " * 100_000,
        "9" * 100_000,
        ", " * 50_000,
        "9 " * 50_000,
        "/flow-run/" * 10_000,
        "://" * 30_000,
        "://?" * 25_000,
    ):
        rejections(export_conversations, {"phones": text})
        rejections(export_conversations, {"numbers": text})
        rejections(retry_failures, {"rerun": text})
        rejections(ingest_changed, {"conversations": text[:LONGEST_HINT]})

    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"params": {}}, "give one of these: a list of phone numbers, or a few phone numbers"),
        (
            {"params": {"numbers": NUMBER, "phones": "a.csv"}},
            "give one of these: a list of phone numbers, or a few phone numbers",
        ),
        (
            {"params": {"phones": "a.csv", "region": NUMBER}},
            "Default country: write two letters of a country, such as TW",
        ),
        ({"params": {"phones": 7}}, "List of phone numbers: input should be a valid string"),
        ({"params": {"phones": "a.csv", "fones": NUMBER}}, "there is no parameter fones"),
        ({"params": {"phones": "a.csv", NUMBER: 1}}, "there is no parameter +…"),
        ({"params": None}, "What to export: input should be a valid dictionary or instance of ExportParams"),
        ({"phones": "a.csv"}, "there is no parameter phones: this flow has params, credentials, lake"),
        ({}, "What to export: field required"),
        (
            {"params": {"phones": "a.csv"}, "credentials": {"organization": "org_1", "token": TOKEN}},
            "iMBrace credentials: choose a saved block, because Prefect would store its secret in clear",
        ),
    ],
)
@pytest.mark.parametrize("flow", [export_conversations, export_conversations.with_options(name="another")])
def test_parameters_that_cannot_be_used_fail_in_one_sentence_without_values_or_traceback(
    flow: Flow[..., Any], given: dict[str, object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        state = asyncio.run(flow.fn(**flow.validate_parameters(given)))

    assert (state.is_failed(), state.message) == (True, message)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO] == [message]
    assert NUMBER[1:] not in caplog.text
    assert TOKEN not in caplog.text


def test_a_window_that_ends_before_it_begins_fails_in_one_sentence() -> None:
    window = {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}

    found = backfill_conversations.validate_parameters({"params": {"everything": True, **window}})

    assert found["params"] == Rejected("the window ends before it begins: Until must be later than From")


IDS = "Conversations: the event names none: its payload must be"
LIST = 'List of phone numbers: the event names none: its payload must be {"list": "s3://bucket/list.csv"}'
PAYLOADS: list[tuple[Any, str, Any, str]] = [
    (ingest_changed, "conversations", {"conversations": "conv_1, conv_2"}, "conv_1, conv_2"),
    (ingest_changed, "conversations", {"conversations": ["conv_1", "conv_2"]}, "conv_1, conv_2"),
    *(
        (ingest_changed, "conversations", payload, IDS)
        for payload in (
            {},
            *(
                {"conversations": one}
                for one in ("", " ", None, 7, [], {}, {"a": "b"}, ["conv_1", None], [["a"]])
            ),
        )
    ),
    (export_uploaded_list, "phones", {"list": " s3://bucket/a.csv"}, "s3://bucket/a.csv"),
    *(
        (export_uploaded_list, "phones", payload, LIST)
        for payload in ({}, *({"list": one} for one in ("", " ", None, 7, ["a.csv"], {"a": "b"})))
    ),
]


@pytest.mark.parametrize(("flow", "field", "payload", "expected"), PAYLOADS)
def test_an_event_gives_its_run_texts_or_lets_it_fail_with_a_sentence(
    flow: Flow[..., Any], field: str, payload: dict[str, object], expected: str
) -> None:
    deployments = yaml.safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"]
    (template,) = (
        trigger["parameters"]["params"][field]["template"]
        for one in deployments
        for trigger in one.get("triggers", ())
        if field in trigger["parameters"]["params"]
    )

    given = render_user_template_sync(template, {"event": SimpleNamespace(payload=payload)})
    params = flow.validate_parameters({"params": {field: given}})["params"]

    # The server starts a run in either case, which an operator sees.
    assert rejections(flow, {field: given}) == []
    if isinstance(params, Rejected):
        assert expected in params.reason
    else:
        assert getattr(params, field) == expected


def test_a_window_that_begins_in_the_future_fails_in_one_sentence() -> None:
    found = backfill_conversations.validate_parameters(
        {"params": {"everything": True, "since": "2999-01-01"}}
    )

    assert found["params"] == Rejected("the window begins in the future: From must be earlier than now")


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        (" 2026-01-31T08:00+08:00", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T00:00:00.000Z", datetime(2026, 1, 31, tzinfo=UTC)),
        (" ", None),
    ],
)
def test_a_moment_has_its_zone_or_is_the_midnight_of_a_date_in_utc(
    name: str, text: str, moment: datetime | None
) -> None:
    params = BackfillParams.model_validate({"everything": True, name: text})

    assert getattr(params, name) == moment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "2026-01-31T08:00",
            "From: this has no time zone: add Z for UTC, or an offset, as in 2026-01-31T08:00+08",
        ),
        (
            "soon",
            "From: this is not a time in ISO 8601: write it as in 2026-01-31T08:00+08:00; a plain date is",
        ),
    ],
)
def test_a_moment_without_a_zone_fails_in_one_sentence_with_an_example(text: str, message: str) -> None:
    found = backfill_conversations.validate_parameters({"params": {"everything": True, "since": text}})

    assert isinstance(found["params"], Rejected)
    assert found["params"].reason.startswith(message)


def test_the_ids_of_a_hint_are_separated_and_each_is_read_once() -> None:
    assert ChangedParams(conversations=" conv_1,conv_2;  conv_1\nconv_3,").ids() == [
        "conv_1",
        "conv_2",
        "conv_3",
    ]


@pytest.mark.parametrize("given", ["{}", " {} ", "https://ui.example/v2/runs/flow-run/{}?tab=Logs"])
def test_a_run_is_found_by_its_id_in_either_case_and_by_the_address_of_its_page(given: str) -> None:
    run_id = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"

    for text in (run_id, run_id.upper()):
        assert rejections(retry_failures, {"rerun": given.format(text)}) == []
        assert RetryParams.model_validate({"rerun": given.format(text)}).rerun == run_id


def test_flows_of_others_keep_their_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    export_conversations.validate_parameters({"params": None})

    @prefect.flow
    def of_others(count: int) -> None:
        """Do nothing."""

    with caplog.at_level(logging.DEBUG), pytest.raises(ParameterTypeError):
        of_others.validate_parameters({"count": "many"})

    assert "\nParameters: {'count': 'many'}" in caplog.text


@pytest.mark.parametrize(("field", "setting"), [("column", COLUMN_SETTING), ("sheet", SHEET_SETTING)])
def test_errors_of_lists_name_the_field_of_the_form_beside_the_option(field: str, setting: str) -> None:
    assert setting == f"--{field} (in forms: {ListParams.model_fields[field].title})"


FORMS = {
    export_conversations: ["phones", "numbers", "region", "ask_first", "column", "sheet", "accept_repeats"],
    export_uploaded_list: ["phones", "region", "column", "sheet"],
    retry_failures: ["rerun"],
    ingest_conversations: ["phones", "region", "budget", "minutes", "column", "sheet"],
    backfill_conversations: [
        *("everything", "phones", "numbers", "conversations", "region", "since", "until"),
        *("ask_first", "column", "sheet"),
    ],
    ingest_changed: ["conversations"],
    verify_lake: ["counts", "stale_hours"],
    compact_lake_tables: ["dry_run", "keep_hours"],
}


@pytest.mark.parametrize(("flow", "fields"), FORMS.items())
def test_a_form_has_only_the_fields_of_its_purpose_each_with_a_title_and_an_explanation(
    flow: Flow[..., Any], fields: list[str]
) -> None:
    schema = schema_of(flow)
    (form,) = [one for name, one in schema["definitions"].items() if name.endswith("Params")]
    found = form["properties"]

    assert sorted(found, key=lambda name: found[name]["position"]) == fields
    # A compaction sends no requests.
    blocks = ["lake"] if flow is compact_lake_tables else ["credentials", "lake"]
    assert list(schema["properties"]) == ["params", *blocks]
    for field in (*found.values(), *schema["properties"].values()):
        assert field["title"][0].isupper() or field["title"].startswith("iMBrace")
        # The new UI shows markup as it is.
        assert not {"`", "*", "_"} & set(field["description"].replace("conversation_id", ""))


@pytest.mark.parametrize("flow", [*FORMS, export_shard])
def test_no_field_of_a_form_asks_for_a_type_first(flow: Flow[..., Any]) -> None:
    schema = schema_of(flow)

    is_valid_schema(schema)
    for name, one in schema["definitions"].items():
        assert name.endswith("Params") or "type" not in one
        for field, is_shown in one["properties"].items():
            assert "anyOf" not in is_shown, (name, field)
            assert is_shown["title"]
            assert is_shown["description"]


@pytest.mark.parametrize("flow", [*FORMS, export_shard])
def test_a_deployment_without_blocks_and_without_a_list_is_accepted(flow: Flow[..., Any]) -> None:
    # As the server checks the parameters of `prefect.yaml`, with variables that setup left empty.
    given: dict[str, object] = {"credentials": None, "lake": None}
    if flow is ingest_conversations:
        given["params"] = {"phones": ""}

    assert validate(given, schema_of(flow), preprocess=False, ignore_required=True) == []


def schema_of(flow: Flow[..., Any]) -> dict[str, Any]:
    """The schema of the parameters of a deployment, as `prefect deploy` sends it."""
    schema: dict[str, Any] = json.loads(json.dumps(parameter_schema(flow).model_dump_for_openapi()))
    return schema


def rejections(flow: Flow[..., Any], given: dict[str, object]) -> list[str]:
    """The messages of the server about the form of a deployment."""
    return [error.message for error in validate({"params": given}, schema_of(flow))]


def test_a_form_is_made_only_when_it_is_needed() -> None:
    assert "parameters" not in vars(export_conversations)

    for one in (export_conversations, export_conversations.with_options(name="another")):
        assert one.parameters.properties.keys() == {"params", "credentials", "lake"}


@pytest.mark.parametrize("page", ["docs/events.md", "docs/deployments.md"])
def test_the_documentation_states_how_many_conversations_an_event_can_name(page: str) -> None:
    text = " ".join((Path(__file__).parents[2] / page).read_text().split())
    # An id and a comma.
    conversations = LONGEST_HINT // len(f"conv_{uuid4()},") // 100 * 100

    assert f"{LONGEST_HINT:,} characters" in text
    assert f"about {conversations:,} conversations" in text
