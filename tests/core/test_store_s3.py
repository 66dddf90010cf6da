"""A lake in a bucket: settings, errors in sentences, and files of many parts."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from imbrace_lake.errors import ObjectChanged, ObjectExists, SettingsError, StoreError, StoreUnavailable
from imbrace_lake.store import s3 as store_s3
from imbrace_lake.store import s3_client as store_s3_client
from imbrace_lake.store.factory import Probe, StoreOptions, open_store
from imbrace_lake.store.s3_errors import explain
from tests.core.s3_servers import KEY, SECRET, FakeS3, options_for
from tools.seaweed import Seaweed


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the credentials of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """Run an S3 server with prepared answers; retries have short pauses."""
    monkeypatch.setattr(store_s3_client, "PAUSES_SECONDS", (0.01, 0.01))
    with FakeS3().running() as server:
        yield server


async def probe(url: str, options: StoreOptions | None = None) -> Probe:
    async with open_store(url, options) as store:
        return await store.probe()


def rejection(url: str, options: StoreOptions | None) -> StoreError:
    """Probe a lake that must be rejected; check that no error contains a credential."""
    with pytest.raises(StoreError) as caught:
        asyncio.run(probe(url, options))
    reported: BaseException | None = caught.value
    while reported is not None:
        for credential in (KEY, SECRET, "test-secret", "test-reader-secret", "wrong-secret", "session-token"):
            assert credential not in str(reported)
            assert credential not in repr(reported)
        reported = reported.__cause__
    assert str(caught.value).count(". ") == 0
    return caught.value


def with_credentials(s3: Seaweed, key: str, secret: str) -> StoreOptions:
    return StoreOptions(s3.endpoint_url, key=SecretStr(key), secret=SecretStr(secret), timeout_seconds=10)


def test_wrong_credentials_and_missing_permissions_are_reported(s3: Seaweed, bucket: str) -> None:
    position = f"bucket {bucket} at {s3.endpoint_url}"
    wrong_secret = rejection(f"s3://{bucket}/x", with_credentials(s3, s3.key, "wrong-secret"))
    wrong_key = rejection(f"s3://{bucket}/x", with_credentials(s3, "unknown-key", "wrong-secret"))
    reader = rejection(f"s3://{bucket}/x", with_credentials(s3, s3.reader_key, s3.reader_secret))

    assert (
        str(wrong_secret)
        == f"{position} rejected the credentials (SignatureDoesNotMatch): check access key and secret key"
    )
    assert (
        str(wrong_key)
        == f"{position} rejected the credentials (InvalidAccessKeyId): check access key and secret key"
    )
    assert (
        str(reader)
        == f"the credentials may not do this in {position} (AccessDenied): allow list, get, put and delete"
    )
    assert not any(exc.is_transient for exc in (wrong_secret, wrong_key, reader))


def test_missing_credentials_are_reported(s3: Seaweed, bucket: str) -> None:
    missing = rejection(f"s3://{bucket}", StoreOptions(s3.endpoint_url))

    assert "no credentials for" in str(missing)
    assert "AWS_ACCESS_KEY_ID" in str(missing)
    assert not missing.is_transient


def test_a_missing_profile_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing-profile")

    missing = rejection("s3://bucket", StoreOptions("http://127.0.0.1:1"))

    assert "AWS_PROFILE names a profile that does not exist" in str(missing)


def test_a_missing_bucket_is_reported(s3: Seaweed) -> None:
    missing = rejection("s3://no-such-bucket/x", options_for(s3))

    assert str(missing).startswith(f"there is no bucket no-such-bucket at {s3.endpoint_url}")
    assert not missing.is_transient


def test_an_invalid_bucket_name_is_reported(s3: Seaweed) -> None:
    assert "can have that name" in str(rejection("s3://a_b$c/x", options_for(s3)))


def test_an_endpoint_without_a_server_is_reported_after_less_than_six_seconds_of_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr("imbrace_lake.store.s3_client.asyncio.sleep", note)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"

        options = StoreOptions(endpoint, key=SecretStr(KEY), secret=SecretStr(SECRET))
        unreachable = rejection("s3://bucket", options)

    assert len(waits) == len(store_s3_client.PAUSES_SECONDS)
    assert sum(waits) < 6
    assert isinstance(unreachable, StoreUnavailable)
    assert str(unreachable).startswith(f"bucket bucket at {endpoint} cannot be reached")


def test_settings_that_botocore_rejects_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "aws-config").write_text("[default\n")

    assert "cannot be used (ConfigParseError)" in str(rejection("s3://bucket", None))


def test_https_to_a_server_of_http_is_reported(s3: Seaweed, bucket: str) -> None:
    endpoint = s3.endpoint_url.replace("http://", "https://")

    refused = rejection(f"s3://{bucket}", options_for(s3, endpoint))

    assert "write http://" in str(refused)
    assert endpoint in str(refused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "kind", "sentence"),
    [
        (400, "ExpiredToken", StoreError, "have expired"),
        (403, "RequestTimeTooSkewed", StoreError, "clock is wrong"),
        (400, "AuthorizationHeaderMalformed", StoreError, "set AWS_REGION"),
        (400, "InvalidRequest", StoreError, "rejected the request (InvalidRequest)"),
        (503, "SlowDown", StoreUnavailable, "fails for now (SlowDown)"),
        (500, "InternalError", StoreUnavailable, "fails for now (InternalError)"),
        (409, "OperationAborted", StoreUnavailable, "another writer writes"),
    ],
)
def test_an_error_of_s3_becomes_a_sentence(
    fake: FakeS3, status: int, code: str, kind: type[StoreError], sentence: str
) -> None:
    fake.answers = [(status, code)] * 5

    refused = rejection("s3://bucket", fake.options)

    assert isinstance(refused, kind)
    assert refused.is_transient is (kind is StoreUnavailable)
    assert sentence in str(refused)
    assert f"bucket bucket at {fake.endpoint_url}" in str(refused)


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 403, 409, 500])
@pytest.mark.parametrize("field", ["Code", "Message"])
def test_an_answer_that_repeats_the_request_is_not_shown(fake: FakeS3, status: int, field: str) -> None:
    sent = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/x/s3/aws4_request, Signature={'5f' * 32}"
    fake.message = sent
    fake.answers = [(status, sent if field == "Code" else "InvalidRequest")] * 5

    refused = rejection("s3://bucket", fake.options)

    shown = "".join(traceback.format_exception(refused))
    assert not any(secret in shown for secret in (KEY, "5f5f", "aws4_request"))
    assert field == "Message" or f"(status {status})" in str(refused)


@pytest.mark.parametrize(
    ("code", "is_shown"),
    [
        ("XAmzContentSHA256Mismatch", True), ("Client.InvalidParameterValue", True), ("304", True),
        ("AKIAIOSFODNN7EXAMPLE", False), ("5f" * 32, False), ("886911425977", False), ("a b", False),
        ("wJalrXUtnFEMI/K7MDENG", False), ("A" + "a" * 64, False), ("Größe", False), ("0911-425-977", False),
    ],
)  # fmt: skip
def test_only_a_code_is_shown_as_one(code: str, is_shown: bool) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}

    shown = str(explain(ClientError(answer, "GetObject"), "bucket", "S3"))

    assert (code in shown) is is_shown
    assert is_shown or "(status 400)" in shown


@pytest.mark.slow
def test_a_short_failure_is_retried_silently(fake: FakeS3) -> None:
    fake.answers = [(503, "SlowDown"), (409, "ConditionalRequestConflict")]

    assert asyncio.run(probe("s3://bucket", fake.options)).is_conditional


@pytest.mark.parametrize("conditions", ["ignored", "unknown"])
def test_a_server_without_conditional_writes_is_detected_and_asked_before_each_write(
    fake: FakeS3, conditions: str
) -> None:
    fake.conditions = conditions

    async def write() -> Probe:
        async with open_store("s3://bucket/lake", fake.options) as store:
            found = await store.probe()
            assert store.is_conditional is False
            new = await store.create("messages/a", b"1")
            with pytest.raises(ObjectExists):
                await store.create("messages/a", b"2")
            await store.update("messages/a", b"22", new.etag)
            with pytest.raises(ObjectChanged):
                await store.update("messages/a", b"333", new.etag)
            with pytest.raises(ObjectChanged):
                await store.update("messages/b", b"333", new.etag)
            return found

    found = asyncio.run(write())

    assert fake.objects == {"lake/messages/a": b"22"}
    assert not found.is_conditional
    assert found.note == f"bucket bucket at {fake.endpoint_url} ignores conditions: run one export at a time."


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["HEAD", "list"])
def test_a_server_that_hides_new_objects_is_rejected(fake: FakeS3, hidden: str) -> None:
    fake.hidden = hidden

    assert "at once" in str(rejection("s3://bucket/lake", fake.options))
    assert fake.objects == {}


def test_a_failure_of_the_probe_does_not_mean_that_conditional_writes_are_missing(fake: FakeS3) -> None:
    fake.conditions = "failing"

    assert rejection("s3://bucket/lake", fake.options).is_transient
    assert fake.objects == {}


def test_a_failed_condition_for_a_missing_object_is_transient(fake: FakeS3) -> None:
    async def write() -> None:
        async with open_store("s3://bucket", fake.options) as store:
            fake.answers = [(412, "PreconditionFailed")]
            await store.create("messages/a", b"1")

    with pytest.raises(StoreUnavailable, match="another writer writes"):
        asyncio.run(write())


@pytest.mark.slow
def test_a_write_shows_how_far_the_clock_of_the_server_is_ahead(
    s3: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Late:
            return super().now(tz) - timedelta(minutes=10)

    async def write() -> timedelta:
        async with open_store(f"s3://{bucket}/lake", options_for(s3)) as store:
            assert store.clock_offset == timedelta(0)
            await store.overwrite("a", b"1")
            return store.clock_offset

    assert abs(asyncio.run(write())) < timedelta(minutes=1)
    monkeypatch.setattr("imbrace_lake.store.s3.datetime", Late)
    assert abs(asyncio.run(write()) - timedelta(minutes=10)) < timedelta(minutes=1)


def test_folders_that_consoles_make_are_not_objects(fake: FakeS3) -> None:
    fake.objects = {"lake/messages/": b"", "lake/messages/a": b"1", "lakeside": b"2"}

    async def keys() -> list[str]:
        async with open_store("s3://bucket//lake/", fake.options) as store:
            assert store.url == "s3://bucket/lake"
            return [found.key for found in await store.list("")]

    assert asyncio.run(keys()) == ["messages/a"]


def test_an_object_that_a_server_lists_twice_is_listed_once(fake: FakeS3) -> None:
    fake.objects = {"lake/messages/a": b"1", "lake/messages/b": b"2"}
    fake.repeats = True

    async def keys() -> list[str]:
        async with open_store("s3://bucket/lake", fake.options) as store:
            return [found.key for found in await store.list("")]

    assert asyncio.run(keys()) == ["messages/a", "messages/b"]


def test_a_listing_that_repeats_pages_ends_in_an_error(fake: FakeS3) -> None:
    fake.continuation = "again"

    async def list_all() -> None:
        async with open_store("s3://bucket", fake.options) as store:
            await store.list("")

    with pytest.raises(StoreError, match="repeats pages of lists"):
        asyncio.run(list_all())


def test_address_region_and_credentials_come_from_the_usual_aws_settings(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "aws-credentials").write_text(
        f"[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", fake.endpoint_url.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_PROFILE", "mine")

    asyncio.run(probe("s3://bucket/lake"))

    _, path, headers = fake.asked[0]
    assert path.startswith("/bucket?")
    assert f"Credential={KEY}/" in headers["Authorization"]
    assert "/eu-north-1/s3/" in headers["Authorization"]


def test_an_anonymous_store_signs_nothing(fake: FakeS3) -> None:
    asyncio.run(probe("s3://bucket/lake", StoreOptions(fake.endpoint_url, is_anonymous=True)))

    assert all("Authorization" not in headers for _, _, headers in fake.asked)


@pytest.mark.slow
def test_explicit_options_win_and_a_session_token_is_sent(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    key, secret, token = SecretStr(KEY), SecretStr(SECRET), SecretStr("session-token")
    options = StoreOptions(fake.endpoint_url, region="sa-east-1", key=key, secret=secret, token=token)

    asyncio.run(probe("s3://bucket/lake", options))

    headers = {name.lower(): value for name, value in fake.asked[0][2].items()}
    assert f"Credential={KEY}/" in headers["authorization"]
    assert "/sa-east-1/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "session-token"


@pytest.mark.parametrize(
    ("endpoint", "path_style", "style"),
    [
        (None, None, None),
        ("https://s3.eu-north-1.amazonaws.com", None, None),
        ("http://minio:9000", None, "path"),
        ("http://minio:9000", False, "virtual"),
        (None, True, "path"),
    ],
)
def test_buckets_are_named_in_the_path_unless_the_server_is_aws(
    endpoint: str | None, path_style: bool | None, style: str | None
) -> None:
    settings: dict[str, Any] = store_s3_client._settings(StoreOptions(endpoint, path_style=path_style))

    assert settings["config_kwargs"].get("s3", {}).get("addressing_style") == style


@pytest.mark.parametrize(
    ("url", "options", "sentence"),
    [
        ("s3://", StoreOptions(), "name the bucket"),
        ("s3://localhost:9000/bucket", StoreOptions(), "name the bucket"),
        ("s3://bucket/lake?region=x", StoreOptions(), "part after"),
        ("s3://bucket", StoreOptions("minio:9000"), "the S3 endpoint is"),
        ("s3://bucket", StoreOptions("http://me:hunter2@minio:9000"), "without credentials"),
        ("s3://bucket", StoreOptions(key=SecretStr("hunter2")), "go together"),
        ("s3://me:hunter2@bucket/lake", StoreOptions(), "holds credentials"),
        ("s3://hunter2@bucket/lake", StoreOptions(), "holds credentials"),
    ],
)
def test_invalid_settings_are_rejected_without_repeating_them(
    url: str, options: StoreOptions, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        open_store(url, options)

    assert "hunter2" not in repr(caught.value)


@pytest.mark.parametrize("setting", [("AWS_REGION", "no region at all"), ("AWS_ENDPOINT_URL", "minio")])
def test_an_invalid_region_or_endpoint_is_rejected(
    setting: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*setting)

    async def use() -> None:
        async with open_store("s3://bucket"):
            pytest.fail("opened")

    with pytest.raises((SettingsError, StoreError), match=r"region|settings"):
        asyncio.run(use())


def test_no_credential_is_in_the_text_of_anything(fake: FakeS3) -> None:
    options = StoreOptions(
        fake.endpoint_url, key=SecretStr(KEY), secret=SecretStr(SECRET), token=SecretStr("session-token")
    )

    async def texts() -> list[str]:
        async with open_store("s3://bucket/lake", options) as store:
            held = [value for value in vars(store).values() if value is not options]
            return [f"{thing!r} {thing!s}" for thing in (options, store, store.url, *held)]

    for text in asyncio.run(texts()):
        assert not any(credential in text for credential in (KEY, SECRET, "session-token"))


def test_spilled_files_are_removed_when_the_store_is_closed(fake: FakeS3) -> None:
    async def spill() -> Path:
        async with open_store("s3://bucket", fake.options) as store:
            folder = store.temporary_directory()
            (folder / "spilled").write_bytes(b"rows")
            return folder

    assert not asyncio.run(spill()).exists()


@pytest.fixture
def three_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a file of three parts, of the smallest size that S3 allows."""
    monkeypatch.setattr(store_s3, "SINGLE_PUT_BYTES", 5 * 2**20)
    monkeypatch.setattr(store_s3, "PART_BYTES", 5 * 2**20)
    spilled = tmp_path / "spilled.parquet"
    spilled.write_bytes(os.urandom(2**20) * 12)
    return spilled


def uploads(s3: Seaweed, bucket: str) -> list[Any]:
    return list(s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []))


def test_a_large_file_is_written_in_parts_and_visible_only_when_complete(
    s3: Seaweed, bucket: str, three_parts: Path
) -> None:
    async def watch(writer: asyncio.Task[Any], sizes: set[int]) -> None:
        async with open_store(f"s3://{bucket}/lake", options_for(s3)) as store:
            while not writer.done():
                sizes |= {found.size_bytes for found in await store.list("")}
                sizes |= {found.size_bytes for found in [await store.head("messages/a")] if found}

    content = three_parts.read_bytes()

    async def write() -> None:
        async with open_store(f"s3://{bucket}/lake", options_for(s3)) as store:
            writer = asyncio.create_task(store.create("messages/a", three_parts))
            sizes: set[int] = set()
            await watch(writer, sizes)
            written = await writer

            assert sizes <= {written.size_bytes}
            assert written.etag.endswith("-3")
            assert await store.get("messages/a") == content
            looked_up = await store.head("messages/a")
            assert looked_up is not None
            assert looked_up.etag == written.etag

    asyncio.run(write())
    assert uploads(s3, bucket) == []


def test_a_large_file_does_not_overwrite_an_existing_object(
    s3: Seaweed, bucket: str, three_parts: Path
) -> None:
    async def write() -> None:
        async with open_store(f"s3://{bucket}/lake", options_for(s3)) as store:
            first = await store.create("messages/a", b"first")
            with pytest.raises(ObjectExists):
                await store.create("messages/a", three_parts)
            assert await store.get("messages/a") == b"first"

            await store.update("messages/a", three_parts, first.etag)
            with pytest.raises(ObjectChanged):
                await store.update("messages/a", three_parts, first.etag)
            assert await store.get("messages/a") == content

    content = three_parts.read_bytes()
    asyncio.run(write())
    assert uploads(s3, bucket) == []


def test_a_cancelled_upload_of_a_large_file_leaves_no_parts(
    s3: Seaweed, bucket: str, three_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun = threading.Event()
    read_part = store_s3._read_part

    def read(path: Path, offset: int, length: int) -> bytes:
        if offset:
            has_begun.set()
            time.sleep(0.3)
        return read_part(path, offset, length)

    monkeypatch.setattr(store_s3, "_read_part", read)

    async def give_up() -> None:
        async with open_store(f"s3://{bucket}/lake", options_for(s3)) as store:
            writer = asyncio.create_task(store.create("messages/a", three_parts))
            assert await asyncio.to_thread(has_begun.wait, 10)
            assert len(uploads(s3, bucket)) == 1
            writer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer
            assert await store.list("") == []

    asyncio.run(give_up())
    assert uploads(s3, bucket) == []
