"""The words that `./dev lint` reports."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools.prose import VOCABULARY, find_words

INSTEAD = {"told": "reported", r"stands as \w+ stood": "unchanged", r"(?<!connection.)refused": "rejected"}


def find(text: str, name: str = "page.md") -> list[str]:
    return list(find_words(name, text, INSTEAD))


def test_a_finding_names_the_line_the_word_and_a_better_one() -> None:
    assert find("# Title\n\nYou are Told.\n") == ['page.md:3: "Told": use reported']


@pytest.mark.parametrize(
    "text",
    ['"""Nobody is\ntold."""\n', "x = 1\n# told\n", 'print(f"{x} is told")\n', "told = 1; y = 'told'\n"],
    ids=["docstring", "comment", "f-string", "text after a name"],
)
def test_comments_and_texts_of_python_are_read(text: str) -> None:
    assert [line.partition('"')[2] for line in find(text, "code.py")] == ['told": use reported']


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("code.py", "told = read_told(self.told)\n"),
        ("code.py", '"""Return what `told` holds."""\n'),
        ("page.md", "```sh\ntold\n```\n\nand `told`\n"),
        ("page.md", "retold, told_by, untold\n"),
        ("page.md", "connection refused\n"),
        ("page.md", "told <!-- prose: ok, a quotation -->\n"),
    ],
)
def test_names_code_parts_of_words_and_what_is_allowed_are_not_reported(name: str, text: str) -> None:
    assert find(text, name) == []


@pytest.mark.parametrize("name", ["page.md", "code.py"])
def test_a_phrase_is_found_across_lines(name: str) -> None:
    assert find(
        "# it stands as\n# it stood\n" if name == "code.py" else "it stands as\nit stood\n", name
    ) == [f'{name}:1: "stands as it stood": use unchanged']


def test_every_pattern_of_the_vocabulary_finds_something() -> None:
    """A wrong pattern would find nothing."""
    examples = Path(__file__).with_name("fixtures") / "unwanted-words.txt"
    vocabulary = tomllib.loads(VOCABULARY.read_text())["instead"]
    sentences = examples.read_text()

    silent = [pattern for pattern in vocabulary if not list(find_words("x.md", sentences, {pattern: "…"}))]

    assert silent == []


def test_the_command_fails_if_it_finds_something(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("The run reports it.\n")
    (tmp_path / "bad.md").write_text("It is told.\n")

    runs = [
        subprocess.run(
            [sys.executable, "-m", "tools.prose", str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        for name in ("good.md", "bad.md")
    ]

    assert [run.returncode for run in runs] == [0, 1]
    assert f'{tmp_path}/bad.md:1: "told"' in runs[1].stdout
