"""Pages with examples as one types them in `python -m asyncio`: each section runs as it stands, on a cluster of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import docstrings
from support.paths import DOCS

BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOP = "reference/api.md"
"""Its own block says what all examples have at the beginning."""

SECTIONS = [
    pytest.param("\n".join(found), id=f"{page.stem}: {section.partition(chr(10))[0]}")
    for page in sorted(DOCS.rglob("*.md"))
    if str(page.relative_to(DOCS)) != TOP
    for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    if (found := BLOCK.findall(section))
]


@pytest.mark.parametrize("examples", SECTIONS)
def test_a_section_of_a_page_does_what_it_says(examples: str, tmp_path: Path) -> None:
    assert docstrings.run(examples, tmp_path) == []


def test_what_examples_have_at_the_beginning_is_what_the_reference_says() -> None:
    (block,) = BLOCK.findall((DOCS / TOP).read_text())
    defined, cluster, till = docstrings.examples_of(block)
    assert defined.source.split() == docstrings.SETUP[docstrings.SETUP.index("class Till") :].split()
    assert cluster.source == "cluster = await cells.local(nodes=2).__aenter__()\n"
    assert till.source == 'till = await cluster.on("node-1").spawn(Till, "till-1")\n'
