"""Find words of tools/prose.toml in what people read: Markdown, YAML, and the comments and texts of Python.

Usage: `python -m tools.prose [FILE...]`; without names, all files of the repository.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

VOCABULARY = Path(__file__).with_suffix(".toml")
SUFFIXES = (".md", ".py", ".yaml", ".yml")
ALLOWED = "prose: ok"
# Identifiers, settings and commands are not prose, nor are the fields of templates.
CODE = re.compile(r"^```.*?^```|`[^`\n]+`|\{[^{}\n]*\}", re.DOTALL | re.MULTILINE)
# A line break, but not a blank line.
SPACE = r"(?!\s*\n\s*\n)\s+"
# From Python 3.12 on, an f-string is several tokens.
TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def find_words(name: str, text: str, instead: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each unwanted word in a file: `name:line: "word": use …`."""
    prose = CODE.sub(lambda code: _blank(code[0]), _python_prose(text) if name.endswith(".py") else text)
    lines = text.splitlines()
    for pattern, better in instead.items():
        for found in re.finditer(rf"\b({pattern})\b".replace(" ", SPACE), prose, re.IGNORECASE):
            number = prose.count("\n", 0, found.start()) + 1
            if ALLOWED not in lines[number - 1]:
                yield f'{name}:{number}: "{" ".join(found[0].split())}": use {better}'


def _python_prose(source: str) -> str:
    """Return comments and string literals where they are in the source, and spaces for everything else."""
    lines = [_blank(line) for line in source.splitlines(keepends=True)]
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    prose = list("".join(lines))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXTS:
            start = starts[token.start[0] - 1] + token.start[1]
            end = starts[token.end[0] - 1] + token.end[1]
            # Without the sign of a comment, a phrase is found across two lines of one.
            prose[start:end] = source[start:end].replace("#", " ")
    return "".join(prose)


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def main(arguments: list[str]) -> int:
    """Print the findings in these files; return 1 if there are any."""
    vocabulary = tomllib.loads(VOCABULARY.read_text())
    names = arguments or subprocess.check_output(["git", "ls-files"], text=True).splitlines()  # noqa: S607
    findings = [
        finding
        for name in names
        if name.endswith(SUFFIXES) and not name.startswith(tuple(vocabulary["skip"]))
        for finding in find_words(name, Path(name).read_text(), vocabulary["instead"])
    ]
    print(*findings, sep="\n", end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
