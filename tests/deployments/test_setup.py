"""`imbrace-lake setup`: what it makes, what it leaves unchanged, and its errors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from imbrace_cli.main import main
from imbrace_deployments.automations import automations
from imbrace_deployments.deploy import DeploymentFailed, _load, _words
from imbrace_deployments.setup import BUDGET, DEFAULT_REQUESTS_PER_SECOND, lake_block
from imbrace_deployments.worker import RESTARTING, give_back_runs
from imbrace_flows.flow import Rejected
from imbrace_flows.verify import verify_lake
from imbrace_sandbox import Sandbox, SandboxOptions
from tests.cli.conftest import prefect_leaks
from tests.cli.fake_server import fake_server
from tests.core.lake_runs import Bench
from tests.deployments.conftest import TOKEN
from tests.deployments.operator import ROOT, Operator
from tests.environment import restored_environment
from tests.prefect_homes import one_certificate
from tests.prefect_threads import end_threads
from tools.seaweed import Seaweed

Setup = Callable[..., list[str]]

pytestmark = [prefect_leaks, pytest.mark.timeout(1_200)]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, with nothing configured."""
    monkeypatch.chdir(tmp_path)
    with restored_environment():
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "IMBRACE_", "AWS_"))]:
            del os.environ[name]
        os.environ["PREFECT_HOME"] = str(tmp_path)
        yield tmp_path


@pytest.fixture
def setup(deployed: Operator, workdir: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Setup]:
    """Call it in this process, as the operator who called it before, and return its lines."""
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings

    certificate = one_certificate(deployed.server.directory)
    # As in the environment of the operator's commands; of this process Prefect has read it already.
    os.environ.update(deployed.settings)
    os.environ.update(PREFECT_API_URL=deployed.server.api_url, PREFECT_API_SSL_CERT_FILE=certificate)

    def call(*arguments: str, code: int = 0) -> list[str]:
        ended = main(["setup", *arguments])
        out, err = capsys.readouterr()
        assert ended == code, err
        return [*out.splitlines(), *err.splitlines()]

    with temporary_settings(
        {PREFECT_API_URL: deployed.server.api_url, PREFECT_API_SSL_CERT_FILE: certificate}
    ):
        yield call
        end_threads()


def done(lines: list[str]) -> list[str]:
    """The lines about what was done, without the checks before them."""
    return lines[lines.index("") + 1 :]


def everything(operator: Operator) -> Any:
    """Everything that setup can change on a server."""
    kept = {
        "variables": operator.ask("POST", "/variables/filter", {}),
        "blocks": operator.ask("POST", "/block_documents/filter", {"include_secrets": True}),
        "limits": operator.ask("POST", "/v2/concurrency_limits/filter", {}),
        "pools": operator.ask("POST", "/work_pools/filter", {}),
        "automations": operator.ask("POST", "/automations/filter", {}),
    }
    fields = ("id", "name", "value", "data", "limit", "slot_decay_per_second", "enabled", "description")
    return {
        # The claims of running processes come and go.
        kind: [
            [one.get(name) for name in fields]
            for one in sorted(found, key=lambda one: str(one["name"]))
            if not str(one["name"]).startswith("imbrace-request-share")
        ]
        for kind, found in kept.items()
    }


def budget(operator: Operator) -> tuple[int, float]:
    """Slots and requests per second."""
    found = operator.ask("GET", f"/v2/concurrency_limits/{BUDGET}")
    return found["limit"], found["slot_decay_per_second"]


def variable(operator: Operator, name: str) -> Any:
    """The value of a variable on the server."""
    return operator.ask("GET", f"/variables/name/{name}")["value"]


def test_a_second_call_changes_nothing(setup: Setup, deployed: Operator) -> None:
    before = budget(deployed), variable(deployed, "imbrace_credentials"), variable(deployed, "imbrace_phones")
    export = deployed.deployment("export")
    # As `prefect deploy` does.
    plain = {**export["parameter_openapi_schema"]}
    plain.pop("additionalProperties", None)
    deployed.ask("PATCH", f"/deployments/{export['id']}", {"parameter_openapi_schema": plain})

    reported = setup()

    schema = deployed.deployment("export")["parameter_openapi_schema"]
    assert schema == {**plain, "additionalProperties": False}
    assert [line.split()[0] for line in done(reported) if line] == [
        *["found"] * 3,
        "left",
        *["found"] * 4,
        "Next:",
    ]
    assert (
        budget(deployed),
        variable(deployed, "imbrace_credentials"),
        variable(deployed, "imbrace_phones"),
    ) == before


def test_everything_is_tried_and_every_finding_is_reported(setup: Setup) -> None:
    reported = setup()

    found = {line.split()[1].rstrip(":"): line for line in reported[: reported.index("")]}
    # A lake that other tests have filled has ledgers.
    assert {*found} - {"ledgers"} == {"gateway", "token", "organization", "lake", "conditions", "list"}
    assert " answers after " in found["gateway"]
    assert "put, get, list and delete work" in found["lake"]
    assert " phone numbers in phones.txt" in found["list"]


WRONG = {
    "token": ({"IMBRACE_TOKEN": "api_refused"}, [], {"token"}),
    "organization": ({"IMBRACE_ORGANIZATION": "org_wrong"}, [], {"organization"}),
    "dead gateway": ({"IMBRACE_GATEWAY": "http://127.0.0.1:9/3rd"}, [], {"gateway"}),
    "expired": ({"IMBRACE_TOKEN_EXPIRES": "2020-01-31"}, [], {"token expiry"}),
    "lake": ({"IMBRACE_LAKE": "/dev/null/lake"}, [], {"lake"}),
    "missing list": ({}, ["--phones", "missing.csv"], {"list"}),
    "list without numbers": ({}, ["--phones", "hello.txt"], {"list"}),
    "all of it": (
        {"IMBRACE_TOKEN": "api_refused", "IMBRACE_LAKE": "/dev/null/lake"},
        ["--phones", "missing.csv", "--requests-per-second", "7", "--pool", "unheard-of"],
        {"token", "lake", "list"},
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_if_something_is_wrong_nothing_is_saved(
    kind: str, setup: Setup, deployed: Operator, workdir: Path
) -> None:
    environment, arguments, wrong = WRONG[kind]
    (workdir / "hello.txt").write_text("hello\nworld\n")
    before = everything(deployed)
    os.environ.update(environment)

    reported = setup(*arguments, code=1)

    assert {line[9:].split(":")[0] for line in reported if line.startswith("error ")} == wrong
    assert [line for line in reported if line.startswith("error: nothing was saved")] == reported[-1:]
    assert not any(line.startswith("Next:") for line in reported)
    assert "api_refused" not in "".join(reported)
    assert everything(deployed) == before


def test_a_bucket_without_keys_is_rejected_and_the_block_stays(
    setup: Setup, deployed: Operator, s3: Seaweed, bucket: str
) -> None:
    before = everything(deployed)
    os.environ.update(AWS_ENDPOINT_URL=s3.endpoint_url, AWS_EC2_METADATA_DISABLED="true")

    reported = setup("--lake", f"s3://{bucket}/lake", code=1)

    assert [line.split()[1] for line in reported if line.startswith("error ")] == ["lake:"]
    assert everything(deployed) == before


def test_a_saved_value_that_no_longer_works_is_found(setup: Setup, deployed: Operator, phones: Path) -> None:
    for name in ("IMBRACE_TOKEN", "IMBRACE_LAKE"):
        del os.environ[name]
    moved = phones.rename(phones.with_suffix(".moved"))
    try:
        reported = setup(code=1)
    finally:
        moved.rename(phones)

    assert [line.split()[1] for line in reported if line.startswith("error ")] == ["list:"]


def test_a_value_that_works_only_for_the_workers_is_saved_by_force(
    setup: Setup, deployed: Operator, phones: Path
) -> None:
    reported = setup("--phones", "/data/of/a/worker.csv", "--force", code=1)
    saved = variable(deployed, "imbrace_phones")
    setup("--phones", str(phones))

    assert saved == "/data/of/a/worker.csv"
    assert "changed the variable imbrace_phones" in done(reported)
    assert reported[-1] == "error: saved because of --force, although something is wrong: list"
    assert variable(deployed, "imbrace_phones") == str(phones)


def test_a_list_is_saved_with_its_absolute_path_and_deployments_use_the_given_pool_and_queue(
    setup: Setup, deployed: Operator, workdir: Path, phones: Path
) -> None:
    (workdir / "own.txt").write_text("+886911425977\n")

    setup("--phones", "own.txt", "--pool", "elsewhere", "--queue", "slow")
    try:
        saved, moved = variable(deployed, "imbrace_phones"), deployed.deployment("retry-failed")
    finally:
        setup("--phones", str(phones))

    assert saved == str(workdir / "own.txt")
    assert (moved["work_pool_name"], moved["work_queue_name"]) == ("elsewhere", "slow")
    assert deployed.deployment("retry-failed")["work_pool_name"] == "imbrace"


def test_a_missing_list_is_saved_as_an_empty_text_which_the_form_accepts(
    setup: Setup, deployed: Operator
) -> None:
    before = variable(deployed, "imbrace_phones")
    # Earlier versions saved null.
    deployed.ask("PATCH", "/variables/name/imbrace_phones", {"value": None})
    try:
        reported = setup()

        assert "changed the variable imbrace_phones" in reported
        assert variable(deployed, "imbrace_phones") == ""
    finally:
        deployed.ask("PATCH", "/variables/name/imbrace_phones", {"value": before})


def test_a_changed_block_keeps_its_id(setup: Setup, deployed: Operator) -> None:
    before = variable(deployed, "imbrace_credentials")
    os.environ["IMBRACE_TOKEN_EXPIRES"] = "2099-12-31"

    reported = setup()
    again = setup()
    del os.environ["IMBRACE_TOKEN_EXPIRES"]
    kept = setup()

    assert done(reported)[0] == "changed the block imbrace-credentials/default"
    assert done(again)[0] == "found the block imbrace-credentials/default"
    # The day belongs to the token, and the token is the same.
    assert done(kept)[0] == "found the block imbrace-credentials/default"
    assert any("the token expires on 2099-12-31" in line for line in kept)
    # Deployments refer to it by its id.
    assert variable(deployed, "imbrace_credentials") == before


def test_another_organization_is_stated_with_what_the_lake_has_of_the_first(
    setup: Setup, deployed: Operator, workdir: Path
) -> None:
    before = dict(os.environ)
    with (
        Sandbox(SandboxOptions(conversations=3, organization_id="org_alpha")) as first,
        Sandbox(SandboxOptions(conversations=0, organization_id="org_beta")) as other,
    ):
        Bench(first, str(workdir / "lake")).run()
        os.environ["IMBRACE_LAKE"] = str(workdir / "lake")
        os.environ["IMBRACE_GATEWAY"] = other.url
        os.environ["IMBRACE_TOKEN"] = other.options.token

        try:
            reported = setup("--organization", "org_beta")
        finally:
            os.environ.update(before)
            back = setup()

    changed = "changed the block imbrace-credentials/default: from the organization"
    read = "which all deployments read from now on"
    assert done(reported)[0] == f"{changed} org_sandbox to org_beta, {read}"
    assert done(back)[0] == f"{changed} org_beta to org_sandbox, {read}"
    (note,) = [line for line in reported if line.startswith("note ")]
    assert "the lake also has conversations of other organizations (3 of org_alpha)" in note


def test_a_budget_that_was_changed_in_the_ui_is_changed_only_on_request(
    setup: Setup, deployed: Operator
) -> None:
    assert budget(deployed)[1] == DEFAULT_REQUESTS_PER_SECOND
    change = {"limit": 3, "slot_decay_per_second": 2.5}
    deployed.ask("PATCH", f"/v2/concurrency_limits/{BUDGET}", change)
    os.environ["IMBRACE_REQUESTS_PER_SECOND"] = "40"

    left = setup()
    kept = budget(deployed)
    changed = setup("--requests-per-second", "0.5")

    assert f"left the budget {BUDGET} at 2.5 requests per second" in left
    assert kept == (3, 2.5)
    assert f"changed the budget {BUDGET} to 0.5 requests per second" in changed
    assert budget(deployed) == (1, 0.5)
    setup("--requests-per-second", "2.25")
    assert budget(deployed) == (3, 2.25)
    setup("--requests-per-second", f"{DEFAULT_REQUESTS_PER_SECOND}")


def test_an_automation_that_was_disabled_stays_so(setup: Setup, deployed: Operator) -> None:
    name = "imbrace-lake-mark-dead-runs"
    (found,) = deployed.ask("POST", "/automations/filter", {"automations": {"name": {"any_": [name]}}})
    deployed.ask("PATCH", f"/automations/{found['id']}", {"enabled": False})

    reported = setup()

    assert f"found the automation {name}, which is disabled" in reported
    assert deployed.ask("GET", f"/automations/{found['id']}")["enabled"] is False
    deployed.ask("PATCH", f"/automations/{found['id']}", {"enabled": True})


def test_deleted_objects_are_made_again_and_an_automation_that_differs_is_corrected(
    setup: Setup, deployed: Operator
) -> None:
    mark, restart, again = (wanted.name for wanted in automations())
    by_name = {one["name"]: one for one in deployed.ask("POST", "/automations/filter", {})}
    deployed.ask("DELETE", f"/automations/{by_name[mark]['id']}")
    altered = automations()[1].model_copy(update={"description": "something else"})
    body = altered.model_dump(mode="json", exclude={"owner_resource"})
    deployed.ask("PUT", f"/automations/{by_name[restart]['id']}", body)
    deployed.ask("DELETE", f"/v2/concurrency_limits/{BUDGET}")

    reported = setup()

    assert {f"made the automation {mark}", f"changed the automation {restart}"} <= set(reported)
    assert f"made the budget {BUDGET}: 20 requests per second, for all workers" in reported
    assert setup()[-7:-3] == [
        f"left the budget {BUDGET} at 20 requests per second",
        f"found the automation {mark}",
        f"found the automation {restart}",
        f"found the automation {again}",
    ]


def test_a_value_that_the_environment_no_longer_gives_stays(setup: Setup, deployed: Operator) -> None:
    before = variable(deployed, "imbrace_credentials"), variable(deployed, "imbrace_lake")
    for name in ("IMBRACE_TOKEN", "IMBRACE_LAKE"):
        del os.environ[name]

    reported = setup()

    reported = done(reported)
    assert reported[0] == ("left the block imbrace-credentials/default, as IMBRACE_TOKEN is not set")
    assert reported[1] == "left the block conversation-lake/default, as IMBRACE_LAKE is not set"
    assert (variable(deployed, "imbrace_credentials"), variable(deployed, "imbrace_lake")) == before


def test_a_block_that_was_deleted_is_an_error_until_its_settings_are_given_again(
    setup: Setup, deployed: Operator
) -> None:
    reference = variable(deployed, "imbrace_credentials")["$ref"]["block_document_id"]
    deployed.ask("DELETE", f"/block_documents/{reference}")
    before = everything(deployed)
    organization = os.environ.pop("IMBRACE_ORGANIZATION")

    reported = setup(code=1)
    kept = everything(deployed)
    os.environ["IMBRACE_ORGANIZATION"] = organization
    again = done(setup())

    assert (
        "error    block: imbrace-credentials/default, to which the deployments refer, was deleted, and"
        " IMBRACE_ORGANIZATION is not set"
    ) in reported
    assert kept == before
    assert again[0] == "made the block imbrace-credentials/default"
    assert any(line.startswith("deployed ") for line in again)
    assert variable(deployed, "imbrace_credentials")["$ref"]["block_document_id"] != reference


def test_a_run_whose_block_was_deleted_names_its_type_and_what_to_do(
    setup: Setup, deployed: Operator
) -> None:
    saved = {"credentials": variable(deployed, "imbrace_credentials")}
    missing = {"lake": {"$ref": {"block_document_id": str(uuid4())}}}

    found = verify_lake.validate_parameters({"params": {}, **saved, **missing})["params"]

    assert isinstance(found, Rejected)
    assert found.reason.startswith("the block Conversation Lake (conversation-lake) of this run cannot be")
    assert "`imbrace-lake setup` with IMBRACE_LAKE," in found.reason
    assert "start a new run" in found.reason


@pytest.fixture
def schedules(setup: Setup, deployed: Operator) -> Iterator[None]:
    """Let a test change schedules: the others find them paused, with the times of `prefect.yaml`."""
    deployed.set_clock("resume")
    yield
    deployed.ask("DELETE", f"/deployments/{deployed.deployment('ingest')['id']}")
    setup()
    deployed.set_clock("pause")


def test_the_server_rejects_a_parameter_that_a_flow_does_not_have(deployed: Operator) -> None:
    # As a script gives it, one level too high.
    body = {"parameters": {"phones": "a.csv", "params": {"phones": "a.csv"}}}

    with pytest.raises(httpx.HTTPStatusError) as caught:
        deployed.ask("POST", f"/deployments/{deployed.deployment('export')['id']}/create_flow_run", body)

    assert "'phones' was unexpected" in caught.value.response.text


@pytest.mark.parametrize(
    "body",
    [
        {"params": {"phones": "a.csv"}, "credentials": {"organization": "org_1", "token": TOKEN}},
        {"params": {"phones": f"http://user:{TOKEN}@example.net/a.csv"}},
    ],
)
def test_the_server_rejects_a_secret_which_it_would_store(body: object, deployed: Operator) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        deployed.ask(
            "POST",
            f"/deployments/{deployed.deployment('export')['id']}/create_flow_run",
            {"parameters": body},
        )

    assert caught.value.response.status_code == httpx.codes.CONFLICT
    assert TOKEN not in caught.value.response.text


def test_a_run_that_was_cut_off_before_it_had_a_name_is_named_after_its_deployment(
    setup: Setup, deployed: Operator
) -> None:
    run_id = deployed.start("ingest")
    pending = {"state": {"type": "PENDING"}, "force": True}
    deployed.ask("POST", f"/flow_runs/{run_id}/set_state", pending)

    names = asyncio.run(give_back_runs("imbrace", None))

    assert deployed.flow_run(run_id)["state"]["name"] == RESTARTING
    # Or a worker of a later test starts it.
    deployed.ask("DELETE", f"/flow_runs/{run_id}")
    assert names == ["ingest"]


def test_a_schedule_stays_as_the_operator_left_it(
    setup: Setup, deployed: Operator, schedules: None, tmp_path: Path
) -> None:
    ingest, verify = deployed.deployment("ingest"), deployed.deployment("verify")
    changed = {"slug": "hourly", "schedule": {"cron": "13 */2 * * *", "timezone": "UTC"}, "active": False}
    deployed.ask("PATCH", f"/deployments/{ingest['id']}", {"schedules": [changed]})
    deployed.ask("POST", f"/deployments/{verify['id']}/pause_deployment")
    own = tmp_path / "prefect.yaml"
    own.write_text((ROOT / "prefect.yaml").read_text() + "# changed\n")

    reported = done(setup("--prefect-file", str(own)))
    again = done(setup("--prefect-file", str(own)))

    assert any(line.startswith("deployed ") for line in reported)
    differ = (
        "left the schedules that differ from the defaults: ingest (13 */2 * * * UTC, paused), verify (paused)"
    )
    assert differ in reported
    (schedule,) = deployed.deployment("ingest")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("13 */2 * * *", False)
    assert deployed.deployment("verify")["paused"] is True
    assert not any(line.startswith("deployed ") for line in again)
    assert deployed.deployment("ingest")["id"] == ingest["id"]


def test_schedules_that_were_replaced_added_and_removed_stay(
    setup: Setup, deployed: Operator, schedules: None, tmp_path: Path
) -> None:
    names = ("ingest", "verify", "compact", "export")
    added, removed, first = (deployed.deployment(name) for name in names[1:])
    done_by_prefect = deployed.run(
        *("prefect", "deployment", "schedule", "create", "ingest-conversations/ingest", "--replace"),
        *("--accept-yes", "--cron", "15 6 * * *", "--timezone", "Asia/Taipei"),
    )
    assert done_by_prefect.returncode == 0, done_by_prefect.stderr
    daily = {"interval": 86_400, "anchor_date": "2026-11-29T10:00:00Z", "timezone": "Europe/Berlin"}
    for one in (added, first):
        deployed.ask("POST", f"/deployments/{one['id']}/schedules", [{"active": True, "schedule": daily}])
    deployed.ask("DELETE", f"/deployments/{removed['id']}/schedules/{removed['schedules'][0]['id']}")
    own = tmp_path / "prefect.yaml"
    own.write_text((ROOT / "prefect.yaml").read_text() + "# changed\n")

    def present() -> list[Any]:
        return [deployed.deployment(name)["schedules"] for name in names]

    before = present()

    reported = done(setup("--prefect-file", str(own)))

    after = present()
    (made,) = after[3]
    deployed.ask("DELETE", f"/deployments/{first['id']}/schedules/{made['id']}")
    for one in (added, removed):
        # The fixture makes it again.
        deployed.ask("DELETE", f"/deployments/{one['id']}")
    assert any(line.startswith("deployed ") for line in reported)
    assert (
        "left the schedules that differ from the defaults: compact (none),"
        " export (every 86400 s Europe/Berlin), ingest (15 6 * * * Asia/Taipei),"
        " verify (30 2 * * * UTC; every 86400 s Europe/Berlin)"
    ) in reported
    assert after == before
    assert [len(one) for one in after] == [1, 2, 0, 1]


def test_a_file_of_deployments_that_is_not_yaml_is_one_sentence(tmp_path: Path) -> None:
    own = tmp_path / "prefect.yaml"
    own.write_text("deployments: [\nname: x")

    with pytest.raises(DeploymentFailed, match=r"prefect.yaml is not valid YAML: .* line 2") as caught:
        _load(own)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"cron": "7 * * * *", "slug": "hourly"}, "hourly UTC"),
        (
            {"cron": "7 */2 * * *", "timezone": "Asia/Taipei", "active": False},
            "7 */2 * * * Asia/Taipei, paused",
        ),
        ({"interval": 3600, "active": True}, "every 3600 s UTC"),
        ({"interval": timedelta(hours=1), "timezone": "UTC"}, "every 3600 s UTC"),
        ({"interval": "{{ a.variable }}"}, "every {{ a.variable }} s UTC"),
        ({"rrule": "FREQ=DAILY", "timezone": "UTC"}, "FREQ=DAILY UTC"),
    ],
)
def test_a_schedule_is_described_alike_if_it_comes_from_the_file_or_the_server(
    schedule: dict[str, Any], words: str
) -> None:
    assert _words(schedule) == words


def test_a_limit_of_concurrent_runs_that_was_deleted_or_changed_is_made_again(
    setup: Setup, deployed: Operator
) -> None:
    backfill, export = (deployed.deployment(name) for name in ("backfill", "export"))
    deployed.ask("DELETE", f"/v2/concurrency_limits/deployment:{backfill['id']}")
    deployed.ask("PATCH", f"/v2/concurrency_limits/deployment:{export['id']}", {"limit": 7})

    reported, again = done(setup()), done(setup())

    limits = [
        deployed.deployment(name)["global_concurrency_limit"]["limit"] for name in ("backfill", "export")
    ]
    assert limits == [1, 3]
    assert any(line.startswith("deployed ") for line in reported)
    assert not any(line.startswith("deployed ") for line in again)


def test_deployments_of_earlier_releases_are_removed_and_their_schedules_taken_over(
    setup: Setup, deployed: Operator, schedules: None
) -> None:
    ingest, shard = deployed.deployment("ingest"), deployed.deployment("export-shard")
    paused = {"slug": "hourly", "schedule": {"cron": "7 * * * *", "timezone": "UTC"}, "active": False}
    old = {"flow_id": ingest["flow_id"], "tags": ["imbrace-lake"], "enforce_parameter_schema": False}
    flow = deployed.ask("POST", "/flows/", {"name": "an-earlier-flow"})["id"]
    outdated = [
        deployed.ask("POST", "/deployments/", {**old, "name": "ingest-hourly", "schedules": [paused]}),
        deployed.ask("POST", "/deployments/", {**old, "name": "rerun-failed"}),
        deployed.ask("POST", "/deployments/", {**old, "name": "export-shard", "flow_id": flow}),
    ]
    theirs = deployed.ask("POST", "/deployments/", {**old, "name": "verify-nightly", "tags": ["theirs"]})
    deployed.ask("DELETE", f"/deployments/{ingest['id']}")

    reported = done(setup())

    left = {one["id"] for one in deployed.ask("POST", "/deployments/filter", {})}
    deployed.ask("DELETE", f"/deployments/{theirs['id']}")
    for one in outdated:
        assert f"removed the deployment {one['name']} of an earlier release" in reported
        assert one["id"] not in left
    assert {theirs["id"], shard["id"]} <= left
    (schedule,) = deployed.deployment("ingest")["schedules"]
    assert (schedule["slug"], schedule["active"]) == ("hourly", False)
    assert "left the schedules that differ from the defaults: ingest (hourly UTC, paused)" in reported


def test_without_a_server_it_explains_how_to_start_one(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["setup"]) == 2

    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "set PREFECT_API_URL" in err
    assert "imbrace-lake up`" in err


def test_a_server_that_does_not_answer_is_one_sentence(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    assert main(["setup"]) == 1

    assert capsys.readouterr().err.startswith("error: the Prefect server at http://127.0.0.1:9/api does not")


@pytest.mark.parametrize(
    ("status", "reported"), [(401, "set PREFECT_API_AUTH_STRING"), (404, "PREFECT_API_URL ends with /api")]
)
def test_a_server_that_rejects_requests_is_one_sentence(
    status: int, reported: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(status, "") as url:
        os.environ["PREFECT_API_URL"] = url
        assert main(["setup"]) == 1

    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert reported in err


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--pool", "a/b"], "not a valid name of a work pool or queue"),
        (["--queue", ""], "not a valid name of a work pool or queue"),
        (["--phones", "https://user:pass@example.net/a.csv"], "contains credentials"),
        (["--lake", "s3://key:secret@bucket/lake"], "holds credentials"),
        (["--requests-per-second", "0"], "--requests-per-second"),
    ],
)
def test_an_option_that_cannot_be_used_is_reported_before_anything_is_made(
    arguments: list[str], reported: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    assert main(["setup", *arguments]) == 2

    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert reported in err


@pytest.mark.parametrize(
    ("name", "value"),
    [("IMBRACE_TOKEN", "api 1"), ("IMBRACE_GATEWAY", "app-gateway"), ("IMBRACE_TRIES", "")],
)
def test_a_setting_that_cannot_be_used_is_reported_before_anything_is_made(
    name: str, value: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ.update({"IMBRACE_TOKEN": TOKEN, "IMBRACE_ORGANIZATION": "org_1", name: value})
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    assert main(["setup"]) == 2

    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert name in err
    assert "api 1" not in err


def test_a_lake_in_a_bucket_takes_the_s3_settings_of_the_environment() -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "https://s3.example.net",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }

    block = lake_block("s3://bucket/lake", environment)

    assert (block.url, block.endpoint, block.region) == (
        "s3://bucket/lake",
        "https://s3.example.net",
        "eu-west-1",
    )
    assert (block.access_key, block.secret_key) == ("key", SecretStr("secret"))


def test_temporary_credentials_are_not_saved() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}

    block = lake_block("s3://bucket/lake", keys)

    assert (block.access_key, block.secret_key) == (None, None)


def test_a_folder_becomes_an_absolute_path_without_keys(workdir: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

    assert lake_block("lake", keys).url == str(workdir / "lake")
    assert lake_block("/data/lake", keys).access_key is None
