"""What the pages say to type: each command and option is there, also in the middle of a sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import DOCS, ROOT

from mielin_cells.cli.app import app

PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
TYPED = re.compile(r"(?:`|^    (?:\$ )?|\$ |(?:exec|-- ) ?)(mielin [a-z][^`\n|#&;]*)", re.MULTILINE)


def options_of(names: tuple[str, ...]) -> set[str]:
    """Of a command: all that it takes, with those of every command."""
    parsed = app
    for name in names:
        parsed = parsed[name]
    found = {"--help", "--version", *app.help_flags, *app.version_flags}
    if parsed.default_command is None:
        return found  # it has commands of its own
    for argument in parsed.assemble_argument_collection(parse_docstring=False):
        found.update(argument.names)
    return found


def typed(text: str) -> set[str]:
    """The commands of a page, without what is only a name of one."""
    return {found.strip() for found in TYPED.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_of_a_page_exists_with_its_options(page: object) -> None:
    assert hasattr(page, "read_text")
    wrong = []
    for line in typed(page.read_text()):
        words = re.sub(r"[\[\]()]", " ", line).split()[1:]
        names: tuple[str, ...] = ()
        known = app
        while words and words[0] in [*known] and not words[0].startswith("-"):
            names += (words[0],)
            known = known[words.pop(0)]
        if not names:
            wrong.append(line)
            continue
        options = {word.split("=")[0].rstrip(",.:") for word in words if word.startswith("--")}
        wrong += [f"{line}: {option}" for option in options - options_of(names)]
    assert wrong == []


def test_commands_are_found_where_pages_have_them() -> None:
    text = "`mielin ask till-1 sell` and\n\n    mielin drain N --dry-run   # why\n    kubectl exec a -- mielin nodes\n$ mielin up &\n"
    assert typed(text) == {"mielin ask till-1 sell", "mielin drain N --dry-run", "mielin nodes", "mielin up"}
    assert "--dry-run" in options_of(("drain",))
    assert "--wrong" not in options_of(("drain",))


def test_the_program_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    program, output = re.findall(
        r"^```(?:python|text)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )

    def plain(text: str) -> str:
        return re.sub(r"\d+\.\d+|m-[0-9a-f]{16}", "#", re.sub(r" +", " ", text))

    assert plain(done.stdout) == plain(output)


def test_each_peer_of_the_comparison_has_sources_and_what_is_measured_a_link() -> None:
    text = (DOCS / "comparison.md").read_text()
    peers = re.split(r"^## ", text, flags=re.MULTILINE)[2:-1]
    assert len(peers) == 8
    for peer in peers:
        name = peer.partition("\n")[0]
        assert re.search(r"^Sources: .*\]\(https://", peer, re.MULTILINE), name
        assert "Measured" not in peer or "[Measured](benchmarks.md)" in peer, name
