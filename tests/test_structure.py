"""The layering and the public names, pinned."""

from __future__ import annotations

import ast
from pathlib import Path

import mmrh_retriever

PACKAGE = Path(mmrh_retriever.__file__).parent
LAYERS = [
    {"errors", "types", "byte_cache"},
    {"heads", "head_scores", "head_files", "head_analysis", "published_heads", "scoring", "regions", "metrics"}
    | {"split_attention", "prefix_tree"},
    {"attention", "kv_cache", "image_tokens", "backbones", "prompts", "vision", "page_store", "page_feed"}
    | {"fingerprints", "patch_convolutions"}
    | {"boxes", "page_ink", "pdf_text", "layout", "pdf", "fetching", "page_sources", "region_ranking"}
    | {"needles", "haystacks", "probes", "mm_niah", "mmdocir", "mmdocir_annotations", "mmdocir_parquet"},
    {"engine", "question_attention", "loading", "rankings", "final_heat"},
    {"reranker", "shared", "adapters"},
    {"answers", "answering", "probe_prompts", "long_documents", "detection", "detection_journal"}
    | {"causal", "causal_journal", "causal_report"}
    | {"baselines", "evaluation", "evaluation_documents", "evaluation_rows", "evaluation_report", "cluster"}
    | {"bench", "bench_models", "explain", "report", "head_plots", "head_report"},
    {"cli", "cli_causal", "cli_detect", "cli_evaluate", "cli_probes"},
]
MODEL_FREE = {"pdf", "layout", "boxes", "page_ink", "pdf_text", "mmdocir", "mmdocir_annotations", "mmdocir_parquet"}
PURE = LAYERS[0] | LAYERS[1] | MODEL_FREE


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_imports_go_down_the_layers_only() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.glob("*.py"):
        own = level.get(path.stem, len(LAYERS))
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "mmrh_retriever" and len(parts) > 1 and parts[1] in level:
                assert level[parts[1]] <= own, f"{path.name} imports {module}, which lies above it"


def test_every_module_has_its_layer() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    named = [name for names in LAYERS for name in names]
    assert sorted(named) == sorted(modules)


def test_the_pure_layers_know_no_model_library() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem in PURE:
            roots = {module.split(".")[0] for module in imports(path)}
            assert "transformers" not in roots, path.name


def test_frameworks_stay_out_of_the_core() -> None:
    for path in PACKAGE.rglob("*.py"):
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"llama_index", "langchain", "langchain_core", "langchain_mmrh"}, path.name


def test_only_the_seam_knows_the_attention_interface() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem != "attention":
            assert "AttentionInterface" not in {module.split(".")[-1] for module in imports(path)}, path.name


def test_the_public_names_are_sorted_and_there() -> None:
    names = mmrh_retriever.__all__
    assert sorted(names) == names
    assert all(hasattr(mmrh_retriever, name) for name in names)
    for name in ("Reranker", "EncodedPages", "Page", "HeadSet", "HeadScores", "read_pdf", "MMRHError"):
        assert name in names
