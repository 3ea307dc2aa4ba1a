"""Pages with programs and commands, from their first file to their last command, as a reader would do it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support import pages
from support.nats_servers import free_neighbours, free_ports
from support.paths import DOCS, ROOT

PORT = "4251"


@pytest.mark.timeout(290)
@pytest.mark.parametrize("name", sorted(pages.AS_A_READER | pages.WITH_TRIES))
def test_a_page_does_what_it_says(name: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    metrics = free_neighbours()
    page = (DOCS / f"{name}.md").read_text().replace(PORT, str(port))
    page = re.sub(r"\b946([45])\b", lambda found: str(metrics + int(found[1]) - 4), page)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for command, printed in pages.run(page, tmp_path, 280, 1 if name in pages.AS_A_READER else pages.TRIES):
        assert pages.fits(command.prints, printed), f"$ {command.text}\n{printed}\nbut the page has\n{command.prints}"


def test_output_is_compared_but_for_what_differs_each_time() -> None:
    moved = "a  node-1 -> node-2\n pause   0.4 ms\ndone in 38.2 ms, 1 message held · m-acc7def6a5127da5\n"
    other = "a  node-1 -> node-2\n pause  12.0 ms\ndone in 3 ms, 22 messages held · m-acc7def6a5127da6\n"
    assert pages.fits(moved, other)
    assert pages.fits("a  node-1 -> ...\n...\n", other)
    assert pages.fits("copy 27.7 ms  2 rounds, 914 B read\n", "copy 53.0 ms  1 round, 1.5 KiB read\n")
    assert not pages.fits(moved, other.replace("node-2", "node-3"))
    assert not pages.fits("1000\n", "1001\n")
    assert not pages.fits("", "an error\n")
    assert pages.commands("```console\n$ a &\n$ b\n1\n2\n```\n") == [
        pages.Command("a &", ""), pages.Command("b", "1\n2\n"),
    ]  # fmt: skip
