"""Pages of the documentation site that stand outside docs/, and links between both (a hook of mkdocs).

A link to a file of the repository leads to its page of the site, if it has one, else to the file in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/speed.md": "benchmarks/speed.md",
    "integrations/README.md": "integrations.md",
    "mmrh_retriever/data/reader/MODEL_CARD.md": "model_card.md",
}
"""Files of the repository, and their pages."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)(?P<target>[^)\s#]+)(?P<rest>#[^)\s]*)?(?=[)\s])")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere in the repository."""
    for source, page in OUTSIDE.items():
        text = _FRONT_MATTER.sub("", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turn links to files of the repository into links of the site."""
    return linked(markdown, page.file.src_uri, config.extra["repository"])


def linked(markdown: str, page: str, repository: str) -> str:
    """Text whose links lead where they should from a page of the site."""
    pages = {site: source for source, site in OUTSIDE.items()}
    folder = posixpath.dirname(pages.get(page, f"docs/{page}"))

    def resolved(found: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(folder, found["target"]))
        if file in OUTSIDE or file.startswith("docs/"):
            target = posixpath.relpath(OUTSIDE.get(file, file.removeprefix("docs/")), posixpath.dirname(page) or ".")
        elif (ROOT / file).exists():
            target = f"{repository}/blob/main/{file}"
        else:
            target = found["target"]  # mkdocs says that it is missing
        return target + (found["rest"] or "")

    return _LINK.sub(resolved, markdown)
