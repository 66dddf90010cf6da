"""The parameters of flows: rejected in one sentence, shown in order, and never repeated."""

from __future__ import annotations

import json
import logging

import prefect
import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from pydantic import SecretStr, ValidationError

from imbrace_flows.backfill import backfill_conversations
from imbrace_flows.export import export_conversations
from imbrace_flows.ingest import ingest_conversations
from imbrace_flows.params import MOST_TYPED, BackfillParams, ExportParams, ReadParams
from imbrace_flows.verify import verify_lake
from imbrace_lake.phones.report import COLUMN_SETTING, SHEET_SETTING

NUMBER = "+886911425977"
TOKEN = "api_never_to_be_shown"


def test_typed_numbers_are_separated_by_commas_and_line_breaks_and_may_contain_blanks() -> None:
    params = ExportParams(numbers=SecretStr("+886 911 425 977, (02) 2345-6789;\n +14152837465\n"))

    assert params.typed() == ["+886 911 425 977", "(02) 2345-6789", "+14152837465"]


@pytest.mark.parametrize("typed", ["", " , ;\n", ",".join([NUMBER] * (MOST_TYPED + 1)), "9" * 1_000])
def test_no_numbers_and_too_many_numbers_are_rejected(typed: str) -> None:
    with pytest.raises(ValidationError):
        ExportParams(numbers=SecretStr(typed))


def test_the_stated_number_of_phone_numbers_can_be_typed_in_their_longest_form() -> None:
    longest = "+886 (9) 11 42-59 77 12 3"

    assert (
        ExportParams(numbers=SecretStr(",\n".join([longest] * MOST_TYPED))).typed() == [longest] * MOST_TYPED
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"phones": "a.csv", "rerun": "a-run"},
        {"phones": "a.csv", "numbers": NUMBER},
        {"numbers": NUMBER, "rerun": "a-run"},
    ],
)
def test_an_export_has_exactly_one_source(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="give one of these"):
        ExportParams.model_validate(given)


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        ({"numbers": NUMBER}, "the field phones belongs to another choice"),
        ({"source": "phones"}, "the field phones is missing"),
        ({"source": "phones", "phones": "a.csv", "numbers": NUMBER}, "not both"),
    ],
)
def test_a_backfill_of_phones_takes_a_list_or_a_few_numbers(given: dict[str, str], reported: str) -> None:
    with pytest.raises(ValidationError, match=reported):
        BackfillParams.model_validate(given)

    assert BackfillParams(source="phones", numbers=SecretStr(NUMBER)).typed() == [NUMBER]
    assert BackfillParams(source="phones", phones="a.csv").typed() is None


def test_only_a_backfill_of_a_list_of_conversations_can_be_a_shard() -> None:
    with pytest.raises(ValidationError, match="needs its list of conversations"):
        BackfillParams(parent_run="a-run")

    assert BackfillParams(source="conversations", conversations="shards/1", parent_run="a-run").parent_run


def test_typed_numbers_are_masked_in_the_ledger_and_the_logs() -> None:
    params = ExportParams(numbers=SecretStr(NUMBER), region="TW")

    assert NUMBER[1:] not in json.dumps(params.recorded()) + repr(params) + str(params)
    assert params.recorded()["region"] == "TW"


@pytest.mark.parametrize(
    "wrong",
    [{"fhones": "a.csv"}, {"phones": "a.csv"}, {"region": "Taiwan"}, {"chunk_size": 0}, {"shard_size": 0}],
)
@pytest.mark.parametrize("flow", [export_conversations, export_conversations.with_options(name="another")])
def test_rejected_parameters_are_repeated_neither_in_the_error_nor_in_the_log(
    flow: Flow[..., object], wrong: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ParameterTypeError) as caught:
        flow.validate_parameters({"params": {"numbers": NUMBER, **wrong}})

    assert NUMBER[1:] not in str(caught.value) + caplog.text
    assert "invalid parameters" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"credentials": {"organization": "", "token": TOKEN}}, {"params": None}, {"params": [NUMBER]}]
)
@pytest.mark.parametrize(
    "flow", [export_conversations, ingest_conversations, backfill_conversations, verify_lake]
)
def test_no_log_contains_the_parameters_of_a_flow_whichever_of_them_is_wrong(
    flow: Flow[..., object], wrong: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ParameterTypeError):
        flow.validate_parameters({"params": {"numbers": NUMBER}, **wrong})

    assert NUMBER[1:] not in caplog.text
    assert TOKEN not in caplog.text


def test_flows_of_others_keep_their_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ParameterTypeError):
        export_conversations.validate_parameters({"params": None})

    @prefect.flow
    def of_others(count: int) -> None:
        """Do nothing."""

    with caplog.at_level(logging.DEBUG), pytest.raises(ParameterTypeError):
        of_others.validate_parameters({"count": "many"})

    assert "\nParameters: {'count': 'many'}" in caplog.text


@pytest.mark.parametrize(("field", "setting"), [("column", COLUMN_SETTING), ("sheet", SHEET_SETTING)])
def test_errors_of_lists_name_the_field_of_the_form_beside_the_option(field: str, setting: str) -> None:
    assert setting == f"--{field} (in forms: {ReadParams.model_fields[field].title})"


@pytest.mark.parametrize(
    ("flow", "first"),
    [
        (export_conversations, ["phones", "numbers", "column", "region", "rerun"]),
        (ingest_conversations, ["phones", "column", "region"]),
        (
            backfill_conversations,
            ["source", "phones", "numbers", "column", "region", "conversations", "rerun"],
        ),
    ],
)
def test_every_field_of_a_form_has_a_position_a_title_and_an_explanation(
    flow: object, first: list[str]
) -> None:
    schema = parameter_schema(flow).model_dump_for_openapi()  # type: ignore[arg-type]

    (form,) = [one for name, one in schema["definitions"].items() if name.endswith("Params")]
    fields = form["properties"]
    places = {name: field["position"] for name, field in fields.items()}
    assert len(set(places.values())) == len(places)
    assert sorted(places, key=places.__getitem__)[: len(first)] == first
    assert all(field["title"] and field["description"] for field in fields.values())
    # For a field that may be empty, the form does not show which bound was exceeded.
    if "chunk_size" in fields:
        assert "1 to 10,000" in fields["chunk_size"]["description"]
    assert list(schema["properties"]) == ["params", "credentials", "lake"]
    assert all(field["description"] for field in schema["properties"].values())
