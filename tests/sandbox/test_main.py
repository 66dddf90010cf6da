"""`imbrace-sandbox`: the fake gateway's own command."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from imbrace_sandbox import SandboxOptions
from imbrace_sandbox import main as command
from imbrace_sandbox.main import main, read_option


def test_it_serves_the_options_of_its_flags_until_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    described: list[tuple[str, SandboxOptions]] = []
    describe = command.describe

    def look(url: str, options: SandboxOptions) -> list[str]:
        described.append((url, options))
        os.kill(os.getpid(), signal.SIGINT)
        return describe(url, options)

    monkeypatch.setattr(command, "describe", look)

    flags = ["--sizes", "5,7", "--prerender", "yes", "--rates", "401=0.1,502:html=0.2", "--file-limit", "3"]
    assert main(["--port", "0", "--conversations", "2", *flags]) == 0

    ((url, options),) = described
    assert options == SandboxOptions(
        conversations=2, sizes=(5, 7), prerender=True, rates={"401": 0.1, "502:html": 0.2}, file_limit=3
    )
    assert f"gateway       {url}\n" in capsys.readouterr().out


def test_every_option_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [
        name for name in SandboxOptions.descriptions() if f"--{name.replace('_', '-')} VALUE" not in shown
    ] == []


def test_every_default_is_read_from_its_text() -> None:
    def text(value: Any) -> str:
        return "no" if value is False else str(value)

    plain = [each for each in fields(SandboxOptions) if isinstance(each.default, bool | int | float | str)]

    assert len(plain) > 20
    assert [each.name for each in plain if read_option(each.name, text(each.default)) != each.default] == []
    assert read_option("file", "x.jsonl") == Path("x.jsonl")
    assert read_option("broken", "conv_1=404") == {"conv_1": "404"}
    assert read_option("messages_mean", "4") == 4.0


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--mixed", "3"], "mixed must be from 0 to 1"),
        (["--sizes", "1;2"], "argument --sizes: cannot be '1;2'"),
        (["--prerender", "perhaps"], "argument --prerender: cannot be 'perhaps'"),
        (["--rates", "401"], "argument --rates: cannot be '401'"),
        (["--file", "missing.jsonl"], "does not exist"),
        (["--port", "70000"], "choose another address by --port or --host"),
        (["--conv", "3"], "unrecognized arguments: --conv"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str], reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert reported in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["--port", str(taken.getsockname()[1])])

    assert ended.value.code == 2
    assert "choose another address by --port or --host" in capsys.readouterr().err
