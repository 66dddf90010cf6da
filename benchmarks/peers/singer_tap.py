"""A Singer tap as the SDK's documentation has it: conversations are the parents, messages the children.

https://sdk.meltano.com/en/latest/parent_streams.html and, for the paginator,
https://sdk.meltano.com/en/latest/classes/singer_sdk.pagination.OffsetPaginator.html
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from singer_sdk import RESTStream, Tap
from singer_sdk import typing as th
from singer_sdk.authenticators import APIKeyAuthenticator
from singer_sdk.contrib.msgspec import MsgSpecWriter
from singer_sdk.pagination import BaseAPIPaginator, OffsetPaginator

PAGE = 100
NUMBERS = 100


class Batches(BaseAPIPaginator[int]):
    """Numbers of the list, so many at a time."""

    def __init__(self, count: int) -> None:
        super().__init__(0)
        self._count = count

    def has_more(self, response: requests.Response) -> bool:
        """Whether numbers are left."""
        return bool(self._value + NUMBERS < self._count)

    def get_next(self, response: requests.Response) -> int:
        """The first number of the next request."""
        return int(self._value) + NUMBERS


class Offsets(OffsetPaginator):
    """`limit` and `skip`, until there is no more."""

    def has_more(self, response: requests.Response) -> bool:
        """What the page says."""
        return bool(response.json()["has_more"])


class Imbrace(RESTStream[int]):
    """What both streams share."""

    @property
    def url_base(self) -> str:
        """The gateway."""
        return str(self.config["url"])

    @property
    def authenticator(self) -> APIKeyAuthenticator:
        """The token's header."""
        return APIKeyAuthenticator(key="x-access-token", value=self.config["token"], location="header")


class Conversations(Imbrace):
    """One record a conversation."""

    name = "conversations"
    path = "/conversations/links"
    primary_keys = ("conversation_id",)
    schema = th.PropertiesList(th.Property("conversation_id", th.StringType)).to_dict()
    # It is there for its child; its own records are not wanted.
    selected_by_default = False

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap)
        self._numbers = [phone.removeprefix("+") for phone in Path(self.config["phones"]).read_text().split()]
        self._seen: set[str] = set()

    def get_new_paginator(self) -> Batches:
        """Numbers, not pages, are what is gone through."""
        return Batches(len(self._numbers))

    def get_url_params(self, context: Any, next_page_token: int | None) -> dict[str, Any]:
        """The numbers of one request."""
        start = next_page_token or 0
        return {
            "phone_numbers": self._numbers[start : start + NUMBERS],
            "organization_id": self.config["organization"],
        }

    def parse_response(self, response: requests.Response) -> Iterable[dict[str, Any]]:
        """Each conversation once, though two numbers may share it."""
        for entry in response.json():
            for link in entry["conversation_links"]:
                conversation_id = parse_qs(urlsplit(link["link"]).query)["conv_id"][0]
                if conversation_id not in self._seen:
                    self._seen.add(conversation_id)
                    yield {"conversation_id": conversation_id}

    def get_child_context(self, record: Any, context: Any) -> dict[str, str]:
        """What the child's path needs."""
        return {"conversation_id": record["conversation_id"]}


class Messages(Imbrace):
    """One record a message."""

    name = "messages"
    path = "/conversations/{conversation_id}/messages"
    records_jsonpath = "$.items[*]"
    parent_stream_type = Conversations
    primary_keys = ("_id",)
    # A bookmark for each conversation would make every state message as long as the list of them.
    state_partitioning_keys = ()
    schema = th.PropertiesList(
        th.Property("_id", th.StringType, required=True),
        *(
            th.Property(name, th.StringType)
            for name in (
                "public_id",
                "doc_name",
                "organization_id",
                "business_unit_id",
                "conversation_id",
                "from",
                "type",
            )
        ),
        th.Property("content", th.ObjectType(additional_properties=True)),
        th.Property("created_at", th.DateTimeType),
        th.Property("updated_at", th.DateTimeType),
    ).to_dict()

    def get_new_paginator(self) -> Offsets:
        """Offsets."""
        return Offsets(0, PAGE)

    def get_url_params(self, context: Any, next_page_token: int | None) -> dict[str, Any]:
        """One page."""
        return {"limit": PAGE, "skip": next_page_token or 0}


class ImbraceTap(Tap):
    """Conversations of phone numbers."""

    name = "tap-imbrace"
    # The faster of the SDK's two writers.
    message_writer_class = MsgSpecWriter
    config_jsonschema = th.PropertiesList(
        *(
            th.Property(name, th.StringType, required=True)
            for name in ("url", "token", "organization", "phones")
        )
    ).to_dict()

    def discover_streams(self) -> list[Imbrace]:
        """Both."""
        return [Conversations(self), Messages(self)]
