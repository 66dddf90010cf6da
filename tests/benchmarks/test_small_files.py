"""The cost of small files is counted by a real S3 server."""

from __future__ import annotations

import pytest

from benchmarks.small_files import (
    COMPACTED,
    HEADER,
    LAYOUTS,
    SMALL,
    Cost,
    Requests,
    line_of,
    measure,
    open_target,
)


@pytest.mark.parametrize("store", ["local", pytest.param("seaweed", marks=pytest.mark.server)])
def test_both_layouts_have_the_same_rows_and_every_request_is_counted(store: str) -> None:
    with open_target(store) as target:
        # It raises an error if the layouts have different rows.
        costs = dict(measure(target, partitions=7, messages=5.0))

    assert all(set(each) == set(LAYOUTS) for each in costs.values())
    written = next(each for name, each in costs.items() if name.startswith("write / compact: 7 of "))
    scanned = costs["open and scan, pyarrow"]
    if store == "local":
        assert written[SMALL].requests == Requests()
        assert "open and scan, DuckDB" in costs
    else:
        assert written[SMALL].requests == Requests(puts=7)
        assert written[COMPACTED].requests.puts == 1
        assert scanned[SMALL].requests.gets >= 7 > scanned[COMPACTED].requests.gets > 0


def test_requests_cost_as_much_as_in_the_price_list() -> None:
    assert Requests(puts=1_000).dollars == pytest.approx(0.005)
    assert Requests(lists=1_000, gets=10_000).dollars == pytest.approx(0.009)
    assert str(Requests(puts=1_200, gets=3)) == "1,200 PUT, 3 GET"


def test_a_line_has_the_ratio_and_money_only_where_there_is_a_server() -> None:
    costs = {SMALL: Cost(3.0, Requests(gets=1_000)), COMPACTED: Cost(1.5, Requests(gets=10))}

    in_bucket, in_folder = (line_of(1_000, store, "scan", costs) for store in ("seaweed", "local"))

    assert in_bucket == (
        "| 1,000 | seaweed | scan | 3.00 s | 1.50 s | 2.0 | 1,000 GET | 10 GET | 0.000400 | 0.000004 |"
    )
    assert in_folder.endswith("| 10 GET |  |  |")
    assert in_bucket.count("|") == HEADER.splitlines()[0].count("|")
