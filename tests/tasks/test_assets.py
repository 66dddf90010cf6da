"""The keys of assets."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.assets import Asset

from imbrace_tasks.assets import asset_root, organization_key


@pytest.mark.parametrize(
    ("lake", "root"),
    [
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("file:///data/lake", "file:///data/lake"),
        ("/data/my lake", "file:///data/my_lake"),
        ("./lake", f"file://{Path.cwd()}/lake"),
        ("simplecache::s3://bucket/lake", "s3://bucket/lake"),
        ("s3://bucket/a%20b?c", "s3://bucket/a_20b_c"),
    ],
)
def test_the_key_of_a_table_is_valid_for_the_server(lake: str, root: str) -> None:
    assert asset_root(lake) == root
    assert Asset(key=f"{root}/messages").key == f"{root}/messages"


def test_tables_of_a_long_address_have_keys() -> None:
    Asset(key=f"{asset_root('s3://bucket/' + 'x' * 2_000)}/conversations")
    Asset(key=organization_key("org with blanks" * 100))
