"""Three small PDFs with annotations: two with a text layer, one scan."""

from __future__ import annotations

import json
from pathlib import Path

import pymupdf
import pytest

from mmrh_retriever.evaluation.mmdocir import MMDocIR

WORDS = ["apple", "pear", "plum", "cherry"]
BOX = [15, 35, 95, 60]


@pytest.fixture
def data(tmp_path: Path) -> MMDocIR:
    lines = []
    for name, domain, count in (("a.pdf", "News", 4), ("b.pdf", "Law", 2), ("scan.pdf", "Law", 3)):
        made = pymupdf.open()
        for word in WORDS[:count]:
            page = made.new_page(width=200, height=300)
            if name == "scan.pdf":
                page.draw_rect((20, 20, 90, 90), fill=(0, 0, 0))
            else:
                page.insert_text((20, 50), word, fontsize=16)
        made.save(tmp_path / name)
        questions = [
            {
                "Q": f"Page {page} or {WORDS[page]}?", "A": "", "page_id": [page], "type": "['Table']",
                "layout_mapping": [{"page": page, "page_size": [400.0, 600.0], "bbox": [2 * v for v in BOX]}],
            }
            for page in range(count)
        ]  # fmt: skip
        lines.append({"doc_name": name, "domain": domain, "page_indices": [0, count - 1], "questions": questions})
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return MMDocIR.from_pdfs(tmp_path / "annotations.jsonl", tmp_path)
