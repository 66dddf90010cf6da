"""Errors that a command finds before it starts: it writes nothing.

The exit code is 2 if arguments and settings alone are wrong, and 1 if a thing that they name cannot be used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import pytest

from tests.acceptance.scale import IS_FULL
from tests.cli.conftest import Run

NUMBER = "+886911425977"
RUN = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
# The messages about what a command reads.
READ = (
    "does not exist", "no file with a list", "has no sheets", "is an HTML page", "no column", "contains no",
    "contain no", "there is no lake",
)  # fmt: skip


def code_of(reported: str) -> int:
    """Return the exit code of an error with this message."""
    return 1 if any(one in reported for one in READ) else 2


pytestmark = pytest.mark.usefixtures("settings")


@pytest.mark.parametrize("command", ["export", "plan"])
@pytest.mark.parametrize(
    ("unset", "reported"),
    [
        ("IMBRACE_TOKEN", "set IMBRACE_TOKEN"),
        ("IMBRACE_ORGANIZATION", "use --organization, or set IMBRACE_ORGANIZATION"),
        ("IMBRACE_LAKE", "use --lake, or set IMBRACE_LAKE"),
    ],
)
def test_a_missing_setting_is_reported(command: str, unset: str, reported: str, run: Run) -> None:
    del os.environ[unset]

    result = run(command, NUMBER)

    assert result.code == 2
    assert reported in result.err


def test_all_wrong_settings_are_reported_at_once_one_a_line(run: Run) -> None:
    del os.environ["IMBRACE_LAKE"]
    os.environ.update(IMBRACE_TOKEN="", IMBRACE_ORGANISATION="org_secret", IMBRACE_REGION="Taiwan")

    result = run("export", NUMBER, "--gateway", "app-gateway.imbrace.co/3rd")

    assert (result.code, result.out) == (2, "")
    beginnings = (
        "warning: IMBRACE_ORGANISATION is not a setting: is IMBRACE_ORGANIZATION meant?",
        "error: no lake is given: use --lake, or set IMBRACE_LAKE",
        "error: IMBRACE_GATEWAY must start with https://",
        "error: no token is set: set IMBRACE_TOKEN",
        "error: There is no region 'Taiwan'",
    )
    lines = result.err.splitlines()
    assert [line.startswith(begin) for line, begin in zip(lines, beginnings, strict=True)] == [True] * 5
    assert "org_secret" not in result.err


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    "command", [["export", "--phones"], ["plan", "--phones"], ["backfill", "--conversations"]]
)
def test_an_empty_address_of_a_list_is_not_the_current_folder(
    command: list[str], empty: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numbers.txt").write_text(f"{NUMBER}\n")
    monkeypatch.chdir(tmp_path)

    result = run(*command, empty)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: the address of the list of ")
    assert result.err.endswith(" is empty: give a file, a URL, or - for standard input\n")


@pytest.mark.parametrize("token", ["api_1\n", "api 1", "äpi_1"])
def test_a_token_that_is_not_a_valid_header_is_reported_and_not_shown(token: str, run: Run) -> None:
    os.environ["IMBRACE_TOKEN"] = token

    result = run("export", NUMBER)

    assert result.code == 2
    assert "IMBRACE_TOKEN" in result.err
    assert "pi_1" not in result.err


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ([], "either as arguments or by --phones"),
        ([NUMBER, "--phones", "phones.txt"], "either as arguments or by --phones"),
        (["phones.txt"], "the name of a list and not a phone number: write --phones phones.txt"),
        (["s3://b/0988752959.csv"], "s3://b/….csv is the name of a list and not a phone number"),
        (["phone"], "the arguments contain no phone number"),
        ([NUMBER, "--column", "phone"], "these phone numbers are arguments: leave them out"),
        (["--phones", "/dev/null"], "the device null contains no phone number"),
        (["--phones", "missing.csv"], "missing.csv does not exist"),
        (["--phones", "folder"], "folder has no file with a list"),
        (["--phones", "*.csv"], "*.csv has no file with a list"),
        (["--phones", "phones.txt", "--sheet", "1"], "has no sheets: leave out --sheet (in forms: Sheet)"),
        (["--phones", "page.xls"], "is an HTML page"),
        (["--phones", "tar://list.csv::file:///tmp/a.tar"], "which is not supported"),
        (["--phones", "http://169.254.169.254/latest/meta-data"], "a scheme that is not allowed"),
        (["--phones", "jupyter://host/list.csv"], "a scheme that is not allowed"),
        (["--phones", "phones.txt", "--column", "phone"], "no column 'phone'"),
        (["--phones", "empty.txt"], "empty.txt contains no phone number"),
        (["--phones", "s3://key:secret@bucket/list.csv"], "contains credentials"),
        (["--phones", "https://host/list.csv?signature=secret"], "contains a query"),
        (["--phones", "http://[/list.csv"], "is not a valid URL"),
        (["--phones", "gopher://host/list.csv"], "gopher://"),
        ([NUMBER, "--lake", "s3://key:secret@bucket/lake"], "holds credentials"),
        ([NUMBER, "--lake", "gopher://host/lake"], "gopher://"),
        ([NUMBER, "--gateway", "app-gateway.imbrace.co/3rd"], "must start with https://"),
        ([NUMBER, "--region", "Taiwan"], "There is no region 'Taiwan'"),
        ([NUMBER, "--requests-per-second", "0"], "--requests-per-second: "),
        ([NUMBER, "--max-in-flight", "0"], "--max-in-flight: "),
    ],
)
def test_unusable_input_is_reported(arguments: list[str], reported: str, run: Run, workdir: Path) -> None:
    (workdir / "phones.txt").write_text(NUMBER)
    (workdir / "empty.txt").write_text("# nothing\n\n")
    (workdir / "page.xls").write_text("<html>\n<body>\nSign in\n")
    (workdir / "folder").mkdir()

    result = run("export", *arguments)

    assert result.code == code_of(reported)
    assert result.out == ""
    assert reported in result.err
    assert len(result.err.splitlines()) == 1
    assert "secret" not in result.err
    assert not (workdir / "lake").exists()
    assert not (workdir.parent / "home").exists()


@pytest.mark.parametrize("command", ["export", "plan", "check", "freshness"])
def test_a_settings_file_in_utf_16_is_reported(command: str, run: Run, workdir: Path) -> None:
    (workdir / ".env").write_text("IMBRACE_REGION=TW\n", encoding="utf-16")

    result = run(command, *([NUMBER] if command in ("export", "plan") else []))

    assert result.code == 2
    assert result.err == (
        "error: .env is not UTF-8 text, perhaps because PowerShell wrote it with >: save it as UTF-8\n"
    )


WITH_A_BUCKET = (
    ["export", "--phones", "s3://bucket/list.csv"],
    ["backfill", "--conversations", "s3://bucket/lists/"],
    ["freshness", "--lake", "s3://bucket/lake"],
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "profile"),
    # Each is a process; by default each command and each profile is in one of them.
    [*product(WITH_A_BUCKET, ("of-a-session", "of-a-start-url"))]
    if IS_FULL
    else [*zip(WITH_A_BUCKET, ("of-a-session", "of-a-start-url", "of-a-session"), strict=True)],
)
def test_an_expired_aws_session_is_reported_with_the_command_that_renews_it(
    arguments: list[str], profile: str, workdir: Path
) -> None:
    home = workdir.parent / "home"
    start = "https://example.awsapps.com/start"
    account = "sso_account_id = 123456789012\nsso_role_name = Reader\nregion = eu-west-1\n"
    region = f"sso_start_url = {start}\nsso_region = eu-west-1\n"
    (home / ".aws/sso/cache").mkdir(parents=True)
    (home / ".aws/config").write_text(
        f"[profile of-a-session]\nsso_session = corp\n{account}[sso-session corp]\n{region}"
        f"[profile of-a-start-url]\n{region}{account}"
    )
    token = {
        "startUrl": start,
        "region": "eu-west-1",
        "accessToken": "x",
        "expiresAt": "2020-01-01T00:00:00Z",
    }
    for key in ("corp", start):
        name = hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()
        (home / f".aws/sso/cache/{name}.json").write_text(json.dumps(token))
    environment = os.environ | {"AWS_PROFILE": profile, "AWS_EC2_METADATA_DISABLED": "true"}

    # In another process, which has the command's logging.
    result = subprocess.run(
        [sys.executable, "-m", "imbrace_cli", *arguments],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert f"has expired: run `aws sso login --profile {profile}`" in result.stderr


def test_a_pipe_is_read_once(run: Run, workdir: Path) -> None:
    os.mkfifo(workdir / "pipe")
    writer = threading.Thread(target=(workdir / "pipe").write_text, args=("# nothing\n",))
    writer.start()

    result = run("export", "--phones", "pipe")
    writer.join()

    assert result.code == 1
    assert "the pipe contains no phone number" in result.err


def test_an_earlier_run_and_numbers_exclude_each_other(run: Run) -> None:
    assert "not both" in run("export", NUMBER, "--rerun", RUN).err


@pytest.mark.parametrize("command", ["export", "backfill"])
@pytest.mark.parametrize("given", ["0911425977", f"http://u:pass-word@host/flow-run/{RUN}", "some-run"])
def test_a_rerun_needs_the_id_of_a_run(run: Run, workdir: Path, command: str, given: str) -> None:
    result = run(command, "--rerun", given, "--lake", "lake")

    assert result.code == 2
    assert "the id of" in result.err
    assert not any(text in result.out + result.err for text in ("0911425977", "pass-word", "some-run"))


def test_a_rerun_needs_a_lake(run: Run, workdir: Path) -> None:
    result = run("export", "--rerun", RUN)

    assert result.code == 1
    assert "there is no lake" in result.err
    assert not (workdir / "lake").exists()


def test_a_terminal_is_prompted_for_numbers(run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(""))

    result = run("export", "--phones", "-")

    assert result.code == 1
    assert "end with Ctrl-D" in result.err
    assert "standard input contains no phone number" in result.err


ALL = ["--everything"]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ([], "choose the conversations by one of: --everything, phone numbers"),
        ([*ALL, NUMBER], "choose one of: --everything, phone numbers"),
        (
            ["--conversation", "c", "--rerun", "r"],
            "choose one of: --conversations (or --conversation), --rerun",
        ),
        (["--conversation", "c", "--conversations", "ids.txt"], "not both"),
        (["--conversation", "c", "--sheet", "1"], "these conversation ids are arguments: leave them out"),
        (["--conversations", "missing.txt"], "missing.txt does not exist"),
        (["--conversations", "empty.txt"], "empty.txt contains no conversation id"),
        (["--conversations", "ids.csv"], "ids.csv has no column 'conversation_id'"),
        (["--conversations", "s3://key:secret@bucket/list.csv"], "contains credentials"),
        (["--phones", "empty.txt"], "empty.txt contains no phone number"),
        ([*ALL, "--since", "yesterday"], "--since yesterday is not a time in ISO 8601"),
        ([*ALL, "--until", "2026-01-01T08:00"], "--until 2026-01-01T08:00 has no time zone: add Z for UTC"),
        ([*ALL, "--since", "2026-01-02", "--until", "2026-01-01"], "the window ends before it begins"),
        ([*ALL, "--since", "2026-01-01", "--until", "2026-01-01T01:00+01:00"], "is not after --since"),
        ([*ALL, "--since", "2999-01-01"], "in the future: --since 2999-01-01 is not earlier than now"),
        ([*ALL, "--new-only", "--since", "2026-01-01"], "--new-only has no window of time"),
        (["--rerun", RUN], "there is no lake"),
        ([*ALL, "--lake", "gopher://host/lake"], "gopher://"),
        ([*ALL, "--gateway", "app-gateway.imbrace.co/3rd"], "must start with https://"),
    ],
)
def test_a_backfill_of_nothing_of_too_much_or_of_no_time_is_reported(
    arguments: list[str], reported: str, run: Run, workdir: Path
) -> None:
    (workdir / "empty.txt").write_text("# nothing\n\n")
    (workdir / "ids.csv").write_text("conv_1\n")

    result = run("backfill", *arguments)

    assert result.code == code_of(reported)
    assert result.out == ""
    assert reported in result.err
    assert len(result.err.splitlines()) == 1
    assert "secret" not in result.err
    assert not (workdir / "lake").exists()
    assert not (workdir.parent / "home").exists()


@pytest.mark.parametrize("command", ["setup", "up"])
def test_deployments_get_no_list_whose_address_may_contain_a_phone_number(command: str, run: Run) -> None:
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"

    result = run(command, "--phones", f"s3://bucket/{NUMBER}.csv")

    assert result.code == 2
    assert "the address of the list may contain a phone number, which Prefect would store" in result.err
    assert NUMBER[1:] not in result.err


@pytest.mark.parametrize("arguments", [["export", NUMBER], ["budget"], ["server", "start"], ["notify"]])
@pytest.mark.parametrize("server", [None, "http://127.0.0.1:9/api"])
def test_certificates_that_cannot_be_read_are_one_sentence(
    arguments: list[str], server: str | None, run: Run
) -> None:
    os.environ["SSL_CERT_FILE"] = "/nope"
    if server is not None:
        os.environ["PREFECT_API_URL"] = server

    result = run(*arguments)

    sentence = "SSL_CERT_FILE names a file without readable certificates (FileNotFoundError)"
    assert (result.code, result.out, result.err) == (2, "", f"error: {sentence}\n")


def test_check_reports_certificates_that_cannot_be_read(run: Run) -> None:
    os.environ.update(SSL_CERT_FILE="/nope", PREFECT_API_URL="http://127.0.0.1:9/api")

    result = run("check")

    assert (result.code, result.err) == (1, "")
    assert "gateway: SSL_CERT_FILE names a file without readable certificates" in result.out
    assert "prefect server: SSL_CERT_FILE names a file without readable certificates" in result.out


@pytest.mark.parametrize("arguments", [["export", NUMBER], ["check"]])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_one_sentence(name: str, arguments: list[str], run: Run) -> None:
    os.environ.update({name: "http://name:password@host:port", "PREFECT_API_URL": "http://127.0.0.1:9/api"})

    result = run(*arguments)

    sentence = f"{name.upper()} is not the address of a proxy: it must be http://host:port"
    assert sentence in result.out + result.err
    assert "Traceback" not in result.err
    assert "password" not in result.out + result.err


EVERYTHING = ["backfill", "--everything", "--new-only"]


@pytest.mark.parametrize("value", ["nan", "1e300", "100000000000", "-1"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (EVERYTHING, "--budget"),
        (EVERYTHING, "--minutes"),
        (EVERYTHING, "--tolerated-failures"),
        (EVERYTHING, "--requests-per-second"),
        (EVERYTHING, "--max-in-flight"),
        (EVERYTHING, "--chunk-size"),
        (EVERYTHING, "--shard-size"),
        (["export", NUMBER], "--requests-per-second"),
        (["plan", NUMBER], "--requests-per-second"),
        (["freshness"], "--budget"),
        (["freshness"], "--stale-hours"),
        (["compact"], "--keep-hours"),
        (["setup"], "--requests-per-second"),
    ],
)
def test_an_option_that_is_not_a_number_or_out_of_bounds_is_reported_by_its_name(
    command: list[str], option: str, value: str, run: Run
) -> None:
    result = run(*command, option, value)

    assert result.code == 2, result.err
    assert option in result.err
    assert "IMBRACE_" not in result.err
    assert "Traceback" not in result.err
    if value == "nan":
        assert "number" in result.err or "integer" in result.err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_setting_that_is_not_a_number_is_reported_as_that(value: str, run: Run) -> None:
    os.environ["IMBRACE_PROMISE_DAYS"] = value

    result = run("freshness")

    assert (result.code, "IMBRACE_PROMISE_DAYS: it must be a number" in result.err) == (2, True)
