"""Links of the documentation site, roles in docstrings, and the table that a tool writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'mmrh-retriever[docs]'")
pytest.importorskip("griffe", reason="griffe is not installed: pip install 'mmrh-retriever[docs]'")
SITE = "https://example.org/us/it"


@pytest.mark.parametrize(
    ("page", "written", "expected"),
    [
        ("library.md", "[a](../benchmarks/README.md#a-library)", "[a](benchmarks/index.md#a-library)"),
        ("benchmarks/index.md", "[a](../docs/evaluation.md)", "[a](../evaluation.md)"),
        ("benchmarks/index.md", "[a](speed.md)", "[a](speed.md)"),
        ("tutorials/langchain.md", "![a](../heat_map.png)", "![a](../heat_map.png)"),
        ("architecture.md", "[a](../mmrh_retriever/bm25.py)", f"[a]({SITE}/blob/main/mmrh_retriever/bm25.py)"),
        ("library.md", "[a](missing.md), [b](https://example.org), [c](#d)", None),
    ],
)
def test_links_lead_to_pages_of_the_site_or_to_the_repository(page: str, written: str, expected: str | None) -> None:
    from tools.site_pages import linked

    assert linked(written, page, SITE) == (expected or written)


def test_roles_in_docstrings_are_shown_as_names() -> None:
    import griffe

    from tools.site_docstrings import PlainRoles

    code = '"""See :class:`Page` and :meth:`~mmrh_retriever.Reranker.rank`; \'a:class:b\' stays."""\n'
    with griffe.temporary_visited_module(code, extensions=griffe.load_extensions(PlainRoles)) as module:
        assert module.docstring is not None
        assert module.docstring.value == "See `Page` and `rank`; 'a:class:b' stays."


def test_the_table_of_models_is_the_present_one() -> None:
    subprocess.run([sys.executable, "tools/plan_table.py", "--check"], check=True, cwd=ROOT)
