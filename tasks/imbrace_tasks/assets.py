"""The tables of the lake as assets, so that lineage shows which run wrote which table.

The key of an asset is its address. The open-source server has events of assets, for the feed and for
automations, but not a page of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from imbrace_lake.export.run import RunSummary
from imbrace_tasks.retry import attempt

# Prefect allows neither all characters of an address nor percent-encoding.
_NOT_ALLOWED = re.compile(r"[^\w./:+=@~,-]")
_LONGEST_ROOT = 480


@materialize(
    "imbrace://tables",  # a placeholder for the assets of the run
    by="imbrace-lake",
    name="record-assets",
    cache_policy=NO_CACHE,
    persist_result=False,
)
@attempt
async def record_assets(run_id: str, status: str, counts: dict[str, int]) -> State[Any]:
    """Record that a run has written tables; `counts` has the new rows of each, by the asset's key."""
    for key, rows in counts.items():
        add_asset_metadata(key, {"run_id": run_id, "status": status, "new_rows": rows})
    return Completed()


async def record_tables(summary: RunSummary) -> None:
    """Record the tables that a run has written, with the organization as their source."""
    counts = dict(_tables(summary))
    root = asset_root(summary.lake)
    assets = [
        Asset(key=f"{root}/{name}", properties=AssetProperties(name=name, url=f"{root}/{name}"))
        for name in counts
    ]
    task = record_assets.with_options(assets=assets, asset_deps=[organization_key(summary.organization)])
    rows = {asset.key: count for asset, count in zip(assets, counts.values(), strict=True)}
    await task(summary.run_id, summary.status, rows)


def asset_root(lake: str) -> str:
    """Return the address of a lake without credentials; the keys of its assets begin with it."""
    url = lake if "://" in lake else f"file://{Path(lake).expanduser().resolve()}"
    # Of chained file systems (`simplecache::s3://…`) the last one contains the lake.
    url = url.rpartition("::")[2]
    return _NOT_ALLOWED.sub("_", url)[:_LONGEST_ROOT].rstrip("/")


def organization_key(organization: str) -> str:
    """Return the key of the asset from which the lake's tables are made."""
    return f"imbrace://{_NOT_ALLOWED.sub('_', organization)[:_LONGEST_ROOT]}/conversations"


def _tables(summary: RunSummary) -> Iterator[tuple[str, int]]:
    """Yield the tables that a run has written, with the number of new rows."""
    totals = summary.totals
    yield "runs", 1
    for name, rows in (
        ("conversations", sum(totals.conversations.values())),
        ("messages", totals.messages_new),
        ("phones", sum(totals.phones.values())),
        ("shapes", len(summary.new_shapes)),
    ):
        if rows:
            yield name, rows
