"""The notebook runs from top to bottom, offline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'mmrh-retriever[dev]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'mmrh-retriever[dev]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'mmrh-retriever[dev]'")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "sample_report.pdf", tmp_path)
    notebook = nbformat.read(ROOT / "examples" / "first_look.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "1. page 7:" in text
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output for output in outputs if output.get("name") == "stderr"] == []
