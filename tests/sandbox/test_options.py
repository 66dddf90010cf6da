"""Wrong options are rejected with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import imbrace_sandbox
from imbrace_sandbox import SandboxOptions
from imbrace_sandbox.fault_names import FAULTS


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"conversations": -1}, "conversations must be from 0, not -1"),
        ({"conversations": 1.5}, "conversations must be an integer"),
        ({"conversations": True}, "conversations must be an integer"),
        ({"surprises": float("nan")}, "surprises must be from 0 to 1, not nan"),
        ({"latency_seconds": "1"}, "latency_seconds must be a number"),
        ({"page_cap": None}, "page_cap must be given"),
        ({"token": 'a"b'}, "token must be made of letters, digits and . _ : -"),
        ({"plain_links": "yes"}, "plain_links must be true or false"),
        ({"links_shape": "tree"}, "links_shape must be one of array, envelope, alternating"),
        ({"sizes": (1, -2)}, "sizes must be integers from 0"),
        ({"rates": {"500": 2}}, "the rate of fault 500 must be from 0 to 1"),
        (
            {"rates": {"500": 0.6}, "mixed": 0.6},
            "the rates of all faults and mixed together must not exceed 1",
        ),
        ({"rates": []}, "rates and broken must be mappings"),
        ({"broken": {"conv_1": 500}}, "a fault's name must be a string"),
        ({"broken": {"conv_1": "429:html"}}, "fault 429 does not have the form 'html'"),
        ({"file": Path("nowhere.jsonl")}, "file nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_value_is_explained_in_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        SandboxOptions(**wrong)

    assert str(caught.value) == sentence


def test_every_option_is_described() -> None:
    descriptions = SandboxOptions.descriptions()

    assert all(text.endswith(".") for text in descriptions.values())


def test_a_change_makes_a_copy() -> None:
    options = SandboxOptions()

    changed = options.changed({"mixed": 0.1})

    assert (options.mixed, changed.mixed) == (0.0, 0.1)


def test_the_document_names_every_option_and_every_fault() -> None:
    document = (Path(imbrace_sandbox.__file__).parents[1] / "README.md").read_text(encoding="utf-8")

    missing = [name for name in (*SandboxOptions.descriptions(), *FAULTS) if f"| `{name}` |" not in document]

    assert missing == []
