"""dlt with its REST client, offset paginator and filesystem destination; conversations run concurrently.

This follows its documentation: https://dlthub.com/docs/general-usage/http/rest-client (paginator) and
https://dlthub.com/docs/reference/performance (pages instead of rows, `parallelized`). With `--tuned` it
has more workers than by default, makes no child tables and stores `content` as JSON.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

# dlt reads these when it is imported.
os.environ |= {
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "ERROR",
    # One thread for each item that dlt extracts concurrently, or its default.
    "EXTRACT__WORKERS": "20" if "--tuned" in sys.argv else "5",
}

import dlt
from dlt.common.configuration.specs import AwsCredentials
from dlt.destinations import filesystem
from dlt.sources.helpers.rest_client import RESTClient
from dlt.sources.helpers.rest_client.auth import APIKeyAuth
from dlt.sources.helpers.rest_client.paginators import OffsetPaginator

from benchmarks.metrics import SUCCESS, Job, measure

PAGE = 100
NUMBERS_PER_REQUEST = 100
IS_TUNED = "--tuned" in sys.argv


@dlt.source(max_table_nesting=0 if IS_TUNED else None)
def imbrace(job: Job, numbers: list[str]) -> Any:
    """Yield the messages of all conversations of the numbers."""
    client = RESTClient(
        base_url=job.gateway,
        auth=APIKeyAuth(name="x-access-token", api_key=job.token, location="header"),
        paginator=OffsetPaginator(limit=PAGE, offset_param="skip", total_path=None, has_more_path="has_more"),
        data_selector="items",
    )

    @dlt.resource(selected=False)
    def conversations() -> Iterator[str]:
        seen: set[str] = set()
        for start in range(0, len(numbers), NUMBERS_PER_REQUEST):
            params = {
                "phone_numbers": numbers[start : start + NUMBERS_PER_REQUEST],
                "organization_id": job.organization,
            }
            entries = client.get("conversations/links", params=params).json()
            for entry in entries:
                for link in entry["conversation_links"]:
                    conversation_id = parse_qs(urlsplit(link["link"]).query)["conv_id"][0]
                    if conversation_id not in seen:
                        seen.add(conversation_id)
                        yield conversation_id

    @dlt.transformer(
        data_from=conversations,
        parallelized=True,
        write_disposition="append",
        columns={"content": {"data_type": "json"}} if IS_TUNED else None,
    )
    def messages(conversation_id: str) -> Iterator[Any]:
        yield from client.paginate(f"conversations/{conversation_id}/messages")

    return conversations, messages


def export(job: Job) -> str:
    """Export all conversations of the numbers."""
    credentials = None
    if job.lake.startswith("s3://"):
        credentials = AwsCredentials(
            aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
            region_name=os.environ.get("AWS_REGION"),
        )
    with tempfile.TemporaryDirectory(prefix="benchmark-dlt-") as working:
        pipeline = dlt.pipeline(
            pipeline_name="imbrace",
            pipelines_dir=working,
            destination=filesystem(bucket_url=job.lake, credentials=credentials),
            dataset_name="lake",
        )
        done = pipeline.run(imbrace(job, job.numbers), loader_file_format="parquet")
        done.raise_on_failed_jobs()
    return SUCCESS


def main() -> None:
    """Do one job."""
    job = Job.read()
    measure(lambda: export(job), ("dlt.common.libs.pyarrow", "dlt.common.configuration.plugins"))


if __name__ == "__main__":
    main()
