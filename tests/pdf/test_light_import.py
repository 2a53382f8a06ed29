"""PyMuPDF's extras are not loaded with it, and are there for those who use them."""

import importlib.util
import subprocess
import sys

import pytest

LOADED = """
import sys
import mmrh_retriever.pdf.mupdf
import pymupdf

print(sorted({"onnxruntime", "pymupdf.layout", "pymupdf4llm"} & set(sys.modules)))
"""
WRITTEN = """
import contextlib, io
import pymupdf

with contextlib.redirect_stdout(io.StringIO()):
    text = pymupdf.pymupdf4llm.to_markdown(pymupdf.open("pdf", %r))
print(text.split())
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()


def test_extras_are_not_loaded() -> None:
    assert run(LOADED) == "[]"


@pytest.mark.skipif(
    importlib.util.find_spec("pymupdf4llm") is None, reason="PyMuPDF's Markdown writer is not installed"
)
def test_the_markdown_writer_is_found_when_it_is_used() -> None:
    import pymupdf

    with pymupdf.open() as document:
        document.new_page().insert_text((72, 72), "Lifeboats")
        made = document.tobytes()
    assert "Lifeboats" in run(LOADED + WRITTEN % made)
