"""Loading by name: no code of a model's own is run, and what can't be loaded is said plainly."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging

import mmrh_retriever
from mmrh_retriever.errors import MMRHError, SettingsError, UnsupportedModelError
from mmrh_retriever.model.loading import load_model
from mmrh_retriever.model.text_embeddings import EmbeddingScorer
from tests import factories


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny = factories.tiny("qwen3_vl")
    for part in (tiny.model, tiny.tokenizer, tiny.image_processor):
        part.save_pretrained(folder)
    return folder


def with_code(saved: Path, folder: Path, name: str, change: dict[str, Any]) -> Path:
    """A copy of a model whose file ``name`` names a module that leaves a mark when it is run."""
    shutil.copytree(saved, folder)
    (folder / "own.py").write_text(f"open({str(folder / 'was_run')!r}, 'w').close()\nclass Own: pass\n")
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text() if file.exists() else "{}") | change))
    return folder


CODE = {
    "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}},
    "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    "preprocessor_config.json": {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}},
    "processor_config.json": {"image_processor": {"auto_map": {"AutoImageProcessor": "own.Own"}}},
}


@pytest.mark.parametrize("name", CODE)
def test_code_of_a_model_folder_is_refused_and_nobody_is_asked(
    name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_code(saved, tmp_path / "model", name, CODE[name])
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    with pytest.raises(UnsupportedModelError, match=rf"{name} of .* names Python code of its own \(auto_map\)"):
        load_model(str(folder))
    with pytest.raises(UnsupportedModelError, match="names Python code of its own"):
        EmbeddingScorer(folder)
    assert not asked
    assert not (folder / "was_run").exists()


def test_every_load_by_name_says_that_code_is_not_trusted() -> None:
    """Also where transformers would decide by itself today."""
    seen = 0
    for path in Path(mmrh_retriever.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called, owner = node.func.attr, ast.unparse(node.func.value)
                if called == "from_pretrained" and (owner.startswith("Auto") or owner == "loader"):
                    seen += 1
                    given = {keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given & {"trust_remote_code", "where"}, f"{path.name}:{node.lineno}"
    assert seen == 6, "look at the new ones"


@pytest.mark.parametrize("dtype", ["bflot16", "int8", "nn"])
def test_a_type_that_weights_cannot_have(saved: Path, dtype: str) -> None:
    with pytest.raises(SettingsError, match=f"dtype is the name of a type .*, got '{dtype}'"):
        load_model(str(saved), dtype=dtype)


def test_an_attention_that_does_not_exist(saved: Path) -> None:
    with pytest.raises(UnsupportedModelError, match='attn_implementation="nope"'):
        load_model(str(saved), attn_implementation="nope")


@pytest.mark.parametrize("name", ["nul\0byte", "\ud800"])
def test_a_name_that_is_neither_path_nor_id(name: str) -> None:
    with pytest.raises(OSError, match="Repo id"):  # transformers' own, as for every name that it can't find
        load_model(name)


def test_a_keyword_that_does_not_exist(saved: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="unexpected keyword argument 'unheard_of'"):
        load_model(str(saved), unheard_of=1)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\udc80"])
def test_a_damaged_configuration_is_named(saved: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "tokenizer_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MMRHError, match=r"tokenizer_config.json is damaged: .* Expected JSON"):
        load_model(str(folder))


def test_loading_draws_no_bar_where_stderr_is_no_terminal(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(saved))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled()
