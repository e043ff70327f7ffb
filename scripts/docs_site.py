"""MkDocs hook of the documentation site: pages from the root, links to files outside docs/, no requests."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
RECORDS = ("changelog.md", "LOG.md", "modules.md", "results.md")
"""Long pages of everything: search shows the others first."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
REMOTE = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand at the root, and a copy of every repository file that a page links to."""
    for name, page in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page in files.documentation_pages():
        for match in LINK.finditer(page.content_string):
            path = _in_repository(page.src_uri, match[3])
            copy = path and f"repository/{path}.txt"
            if (
                copy
                and (ROOT / path).is_file()
                and path not in FROM_ROOT
                and not files.get_file_from_path(copy)
            ):
                files.append(File.generated(config, copy, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to repository files lead to their copies; a folder has none, so only its name stays."""
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri in RECORDS:
        page.meta["search"] = {"boost": 0.2}

    def link(match: re.Match[str]) -> str:
        path = _in_repository(page.file.src_uri, match[3])
        if path is None:
            return match[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {match[3]}, which does not exist")
        if (ROOT / path).is_dir():
            return match[2]
        inside = FROM_ROOT.get(path) or (
            path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}.txt"
        )
        return f"{match[1]}[{match[2]}]({posixpath.relpath(inside, here or '.')}{match[4] or ''})"

    return LINK.sub(link, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load anything from another machine."""
    if found := REMOTE.search(output):
        raise PluginError(f"{page.file.src_uri} would load {found[0]}: the site works without a network")
    return output


def _in_repository(page: str, target: str) -> str | None:
    """The path, from the root, of what a page links to outside its own site; None for any other link."""
    if ":" in target or target.startswith("/"):
        return None
    original = next((name for name, made in FROM_ROOT.items() if made == page), f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(original), target))
    return None if path.startswith("docs/") and original.startswith("docs/") else path
