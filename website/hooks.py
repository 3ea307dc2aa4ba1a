"""Hooks of MkDocs: pages from the code, pages from the repository's root, links, and no page without a place in the navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.reference import PAGES, ROOT

FROM_ROOT = {"ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie where readers of the repository look for them."""
PARTS = {"tutorial": "Tutorial", "how-to": "How-to", "policies": "How-to", "concepts": "Concepts"}
"""Where a page belongs by the beginning of its name; others belong to the reference."""

BOOSTS = {
    "how-to": 4.0,
    "messages": 4.0,
    "testing": 4.0,
    "tutorial": 2.0,
    "reference/api": 0.2,
    "examples/": 0.3,
    "deploy/": 0.3,
    "architecture": 0.5,
    "changelog": 0.3,
}
"""What a search shows first, by the beginning of a page's name: what to do, before each name of the API that has the same words."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".service": "ini", ".sh": "bash"}


def shown() -> list[Path]:
    """Files that pages link to, and that the site has pages of."""
    found = [*ROOT.glob("examples/*.py"), *ROOT.glob("deploy/**/*")]
    return sorted(path.relative_to(ROOT) for path in found if path.is_file())


def page_of(path: Path) -> str:
    return f"{path.with_suffix('')}.md" if path.suffix == ".py" else f"{path}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages of `docs/` that the navigation does not name, so that none is left out."""
    parts: dict[str, list[Any]] = {title: pages for entry in config.nav or [] for title, pages in entry.items()}
    named = set(_names(config.nav))
    for path in sorted(Path(config.docs_dir).glob("*.md")):
        if path.name not in named:
            title = next((title for start, title in PARTS.items() if path.name.startswith(start)), "Reference")
            parts[title].append(path.name)
    return config


def _names(nav: Any) -> list[str]:
    match nav:
        case str():
            return [nav]
        case dict():
            return [name for one in nav.values() for name in _names(one)]
        case list():
            return [name for one in nav for name in _names(one)]
        case _:
            return []


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    for source, name in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    for path in shown():
        name = path.name if path.parent.name == "examples" else str(path)
        text = f'# {name}\n\n```{LANGUAGES.get(path.suffix, "text")} title="{path}"\n{(ROOT / path).read_text()}```\n'
        files.append(File.generated(config, page_of(path), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are on the site, and names of files above their contents."""
    boost = next((boost for start, boost in BOOSTS.items() if page.file.src_uri.startswith(start)), 1.0)
    page.meta["search"] = {"boost": boost}
    up = "../" * page.file.src_uri.count("/")
    text = markdown
    for path in shown():
        text = text.replace(f"](../{path})", f"]({up}{page_of(path)})").replace(f"]({path})", f"]({up}{page_of(path)})")
    for source, name in FROM_ROOT.items():
        text = text.replace(f"](../{source}", f"]({up}{name}").replace(f"]({source}", f"]({up}{name}")
    if page.file.src_uri in FROM_ROOT.values():
        text = text.replace("](docs/", "](")
    return titled(text)


def titled(text: str) -> str:
    """Names of files above their contents."""
    return re.sub(r"^```(conf|toml|python|yaml|ini|json) ([\w./-]+)$", r'```\1 title="\2"', text, flags=re.MULTILINE)
