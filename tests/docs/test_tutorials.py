"""The tutorials' Python runs as it stands there, offline, on the sample report."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pymupdf
import pytest

import mmrh_retriever

ROOT = Path(__file__).parents[2]
TUTORIALS = {
    "plain_python": (),
    "own_heads": (),
    "haystack": ("haystack_integrations.components.rankers.mmrh", "pypdf"),
    "langchain": ("langchain_mmrh",),
    "serving": ("fastapi", "cohere"),
    "llama_index": ("llama_index.postprocessor.mmrh_rerank", "llama_index.readers.file"),
}
"""What each needs."""
SERVER = "http://127.0.0.1:8000"
mktestdocs = pytest.importorskip("mktestdocs", reason="mktestdocs is not installed: pip install 'mmrh-retriever[dev]'")


def test_every_tutorial_is_run() -> None:
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} == set(TUTORIALS)


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in TUTORIALS[name]:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            pytest.skip(f"{module} is not installed")
        pytest.importorskip(module, reason=f"{module} is not installed")
    (tmp_path / "reports").mkdir()
    with pymupdf.open(ROOT / "examples" / "sample_report.pdf") as sample:
        sample.select(range(7))  # enough for what the tutorials say, and quicker
        sample.save(tmp_path / "report.pdf")
        sample.save(tmp_path / "reports" / "report.pdf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    with served() if name == "serving" else nullcontext(SERVER) as address:
        tutorial = tmp_path / f"{name}.md"
        tutorial.write_text(text.replace(SERVER, address), encoding="utf-8")
        mktestdocs.check_md_file(tutorial, memory=True)
    mmrh_retriever.release_shared_models()


@contextmanager
def served() -> Iterator[str]:
    """The address of a server with its defaults."""
    from mmrh_retriever.serving.app import create_app
    from tests.serving.started import started

    with started(create_app()) as address:
        yield address
