"""Copy conversations from the gateway into a lake of Parquet partitions, each proven complete.

`from imbrace_lake import Lake` reads a lake.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imbrace_lake.query.reader import Lake as Lake
    from imbrace_lake.query.result import Result as Result
    from imbrace_lake.query.views import ViewSettings as ViewSettings

__all__ = ["Lake", "Result", "ViewSettings"]


def __getattr__(name: str) -> object:
    """Import the public names when they are used, because runs do not need them."""
    if name == "Lake":
        from imbrace_lake.query.reader import Lake

        return Lake
    if name == "Result":
        from imbrace_lake.query.result import Result

        return Result
    if name == "ViewSettings":
        from imbrace_lake.query.views import ViewSettings

        return ViewSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
