"""The claim in a part's footer: whose rows it contains, their content hash, and how a walk proved them.

With the claim, `verify --object` judges a copy of one object without a ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from imbrace_lake.lake.schema import SCHEMA_VERSION

CHECKSUM = "checksum"


@dataclass(frozen=True, slots=True)
class PartClaim:
    """What a run states about a part that it writes; the names are those of the ledger `conversations`.

    Attributes:
        organization_id, conversation_id: The conversation of the rows.
        run_id: The run that wrote the part.
        status, proof_method, server_count: The result of the walk: its verdict, its method and the gateway's
            count of the conversation. None if a repair wrote the part and the ledgers have no proof.
        content_hash: The sum of the digests of the part's rows, including deleted ones.
        schema_version: The schema version of the part.
    """

    organization_id: str
    conversation_id: str
    run_id: str
    status: str | None = None
    proof_method: str | None = None
    server_count: int | None = None
    content_hash: str | None = None
    schema_version: int = SCHEMA_VERSION

    def metadata(self) -> dict[str, str]:
        """Return the claim as key-value metadata of a Parquet footer, with a checksum."""
        texts = {name: str(value) for name, value in asdict(self).items() if value is not None}
        return {**texts, CHECKSUM: _checksum(texts)}


def parse_claim(metadata: Mapping[bytes, bytes] | None) -> PartClaim | None:
    """Return the claim of a footer; None for a part of an earlier release, which has none.

    Raises:
        ValueError: The claim is damaged.
    """
    texts = {name.decode(): value.decode() for name, value in (metadata or {}).items()}
    if CHECKSUM not in texts and "content_hash" not in texts:
        return None
    own: dict[str, Any] = {one.name: texts[one.name] for one in fields(PartClaim) if one.name in texts}
    if texts.get(CHECKSUM) != _checksum(own):
        raise ValueError("the checksum of the claim is wrong")
    own["schema_version"] = int(own["schema_version"])
    if "server_count" in own:
        own["server_count"] = int(own["server_count"])
    return PartClaim(**own)


def _checksum(texts: Mapping[str, str]) -> str:
    return sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
