"""The documentation site, built as `make docs` builds it: search finds what it must, and a reader needs no other server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from website.hooks import BOOSTS

from mielin_cells.cli.explain.entries import public

OUTSIDE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(?:https?:)?//[^"]*"')
LINKED = re.compile(r'<link rel="canonical"[^>]*>')
WANTED = {
    "replicate to three servers": "how-to-clusters/#replicate-to-three-servers-one-may-be-lost",
    "drain a node from kubernetes": "how-to-kubernetes/#drain-a-node",
    "upgrade a class with a renamed field": "how-to-state/#upgrade-a-class-a-field-that-is-renamed",
    "an agent is in error": "how-to-symptoms/#an-agent-is-in-error",
    "write a substrate": "how-to-substrate/",
    "scrape metrics with prometheus": "how-to-metrics/",
    "cancel a call": "messages/#cancel-a-call",
}
"""What a newcomer asks for, and the section that answers."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def entries(site: Path) -> dict[str, dict[str, Any]]:
    """What the search knows, by place."""
    found = json.loads((site / "search" / "search_index.json").read_text())
    return {entry["location"]: entry for entry in found["docs"]}


@pytest.mark.timeout(290)
def test_search_has_each_error_code_as_a_title(entries: dict[str, dict[str, Any]]) -> None:
    missing = [
        code for code in public() if entries.get(f"reference/errors/#{code.lower()}", {}).get("title") != code
    ]  # fmt: skip
    assert missing == []


@pytest.mark.timeout(290)
@pytest.mark.parametrize("question", WANTED)
def test_a_question_of_a_newcomer_has_a_section_with_its_words(
    question: str, entries: dict[str, dict[str, Any]]
) -> None:
    """Each word of the question is in the title or the text of the section, or in the title of its page."""
    place = WANTED[question]
    page, found = entries[place.partition("#")[0]], entries[place]
    words = f"{page['title']} {found['title']} {found['text']}".lower()
    small = {"a", "an", "is", "in", "to", "from", "with"}
    assert [word for word in question.split() if word not in small and word not in words] == []
    assert found["boost"] == BOOSTS["how-to"], "how-to pages come before each name of the API with the same words"


@pytest.mark.timeout(290)
def test_no_page_needs_another_server(site: Path) -> None:
    found = [
        (page.relative_to(site), tag)
        for page in site.rglob("*.html")
        for tag in OUTSIDE.findall(LINKED.sub("", page.read_text()))
    ]
    assert found == []
    pages = [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()]
    assert pages == [], "the theme draws such diagrams with a script from another server: draw them as text, or as SVG"
