"""Rounds of several competitors that take turns, and the tables of the results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.environment import new_lake
from benchmarks.expected import Expected
from benchmarks.gateway import FakeGateway, fake_gateway
from benchmarks.runner import Competitor, Round, check, run

WARM_UP_CONVERSATIONS = 20


@dataclass(frozen=True, slots=True)
class Size:
    """What one table is about; `messages` is the mean of a conversation."""

    conversations: int
    messages: float
    latency_milliseconds: float = 0.0


def compare(
    competitors: Sequence[Competitor], size: Size, store: str, rounds: int, *, is_whole: bool
) -> list[Round]:
    """Run all rounds of one size, and print each."""
    # The warm-up compiles modules, starts Prefect's server and fills the disk's cache.
    with fake_gateway(conversations=min(WARM_UP_CONVERSATIONS, size.conversations)) as gateway:
        for competitor in competitors:
            run_checked(competitor, gateway, store, is_whole=is_whole)
    with fake_gateway(
        conversations=size.conversations,
        messages_mean=size.messages,
        latency_seconds=size.latency_milliseconds / 1_000,
    ) as gateway:
        target = "S3" if store.startswith("s3://") else "a folder"
        print(
            f"\n{size.conversations:,} conversations, {len(gateway.message_ids):,} messages,"
            f" {size.latency_milliseconds:g} ms latency, into {target},"
            f" {'whole processes' if is_whole else 'without start and imports'}, {rounds} rounds\n",
            flush=True,
        )
        results = []
        for number in range(1, rounds + 1):
            for competitor in competitors:
                one = run_checked(competitor, gateway, store, is_whole=is_whole)
                results.append(one)
                print(f"{number:>4}  {one.name:<20} {one.metrics.seconds:7.2f} s  {one.result}", flush=True)
    return results


def run_checked(
    competitor: Competitor,
    gateway: FakeGateway,
    store: str,
    *,
    is_whole: bool = False,
    is_moving: bool = False,
) -> Round:
    """Run one round into a new lake, and compare the result with what the gateway served."""
    lake = new_lake(store)
    one = run(competitor, gateway, lake, is_whole=is_whole)
    before = gateway.message_ids
    expected = Expected.moved(before, gateway.ids_now()) if is_moving else Expected.unmoved(before)
    return replace(one, verdict=check(competitor, lake, expected))


def speed_table(rounds: Sequence[Round], conversations: int, baselines: Sequence[str]) -> str:
    """Return the medians of all competitors, with ratios of time to each baseline that took part.

    For the first of these baselines, ratios of CPU time and memory are included too.
    """
    by_name = _by_name(rounds)
    baselines = [name for name in baselines if name in by_name]
    first = baselines[0] if baselines else None
    seconds = _medians(by_name, lambda one: one.metrics.seconds)
    cpu = _medians(by_name, lambda one: one.metrics.cpu_seconds / conversations * 1_000)
    memory = _medians(by_name, lambda one: one.memory_bytes / 1e6)
    header = ["", "time", "spread", *(f"to {name}" for name in baselines), "CPU per conversation"]
    header += ["peak memory", "requests", "result"]
    if first:
        header[-3:-3] = [f"CPU to {first}"]
        header[-2:-2] = [f"memory to {first}"]
    lines = [_line(header), _line(["---", *["--:"] * (len(header) - 2), "---"])]
    for name, its in by_name.items():
        spread = sorted(one.metrics.seconds for one in its)
        cells = [name, f"{seconds[name]:.2f} s", f"{spread[0]:.2f} to {spread[-1]:.2f} s"]
        cells += [f"{seconds[name] / seconds[baseline]:.2f}" for baseline in baselines]
        cells += [f"{cpu[name]:.1f} ms"] + ([f"{cpu[name] / cpu[first]:.2f}"] if first else [])
        cells += [f"{memory[name]:.0f} MB"] + ([f"{memory[name] / memory[first]:.2f}"] if first else [])
        cells += [f"{max(one.requests for one in its):,}", _results(its)]
        lines.append(_line(cells))
    return "\n".join(lines)


def moving_table(movements: Mapping[str, Sequence[Round]]) -> str:
    """Return the results of all competitors for lists that moved, one column per movement."""
    columns = [_by_name(rounds) for rounds in movements.values()]
    lines = [_line(["", *movements]), _line(["---"] * (len(movements) + 1))]
    lines += [_line([name, *(_results(column[name]) for column in columns)]) for name in columns[0]]
    return "\n".join(lines)


def _by_name(rounds: Sequence[Round]) -> dict[str, list[Round]]:
    by_name: dict[str, list[Round]] = {}
    for one in rounds:
        by_name.setdefault(one.name, []).append(one)
    return by_name


def _medians(by_name: Mapping[str, list[Round]], value: Callable[[Round], float]) -> dict[str, float]:
    return {name: statistics.median(map(value, its)) for name, its in by_name.items()}


def _results(rounds: Sequence[Round]) -> str:
    return "; ".join(sorted({one.result for one in rounds}))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
