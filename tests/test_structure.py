"""The building: its floors, what each may know, the size of its rooms, and the names that it shows."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmrh_retriever
from tools import draw_architecture

PACKAGE = Path(mmrh_retriever.__file__).parent
ROOT = PACKAGE.parent
NAME = "mmrh_retriever"

FLOORS = [set(floor) for floor in draw_architecture.FLOORS]
"""From the ground up. A room is a folder or a root module; it imports from floors below, and from itself."""
ALIASES = {
    "baselines", "causal", "detection", "head_analysis", "metrics", "mmdocir", "page_sources", "probes", "report",
    "shared",
}  # fmt: skip
"""Documented import paths of earlier versions."""
WITHOUT_TRANSFORMERS = {"errors", "types", "images", "files", "settings", "bm25", "heads", "pdf", "runs"}
EXPORTED = [
    "AttentionCaptureError", "ContextOverflowError", "DataError", "EncodedPages", "HeadId", "HeadScores",
    "HeadScoresTable", "HeadSet", "HeadSetError", "Library", "LibraryAnswer", "LibrarySettings", "MMRHError", "Page",
    "PageError", "PageStore", "PatchGrid", "PromptOptions", "QuestionError", "Region", "RerankSettings", "Reranker",
    "ScoredPage", "ScoredRegion", "SettingsError", "TokenSpan", "UnsupportedModelError", "iter_pdf", "read_pdf",
    "release_shared_models", "shared_reranker",
]  # fmt: skip
MOST_LINES = 400
MOST_PARAMETERS = 12
VAGUE = {"util", "utils", "helper", "helpers", "misc", "common", "base"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts)


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The folder or root module that a module of the package belongs to; empty for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


MODULES = {module_of(path): path for path in sources(NAME)}


def imported(path: Path) -> set[str]:
    """What a file imports, but for type checking: modules of ours by their full name, others by their root."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import) and id(node) not in skipped:
            names = [name.name for name in node.names]
        for name in names:
            if not name.startswith(f"{NAME}."):
                found.add(name.split(".")[0])
            else:
                found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


GRAPH = {module: imported(path) for module, path in MODULES.items()}


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module) for module in MODULES} - ALIASES - {"", "__main__", "data"}
    placed = [room for floor in FLOORS for room in floor]
    assert sorted(placed) == sorted(rooms)
    assert len(FLOORS) <= 12


def test_the_picture_of_the_floors_is_drawn_from_the_code() -> None:
    drawn = draw_architecture.PICTURE.read_text(encoding="utf-8")
    assert drawn == draw_architecture.draw(), "run python tools/draw_architecture.py"


def test_imports_go_down_the_floors_only() -> None:
    level = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    for module, names in GRAPH.items():
        own = room_of(module)
        if own not in level:
            continue
        for name in names:
            if name.startswith(NAME) and (room := room_of(name)) not in ("", own):
                below = level[room] < level[own]
                beside = level[room] == level[own] == 1  # the root modules of the second floor
                assert below or beside, f"{module} imports {name}, which does not lie below it"


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " > ".join((*path, module))
        if module not in done:
            for name in GRAPH[module]:
                if name in GRAPH and name != NAME and not name.startswith(f"{module}."):
                    visit(name, (*path, module))
            done.add(module)

    for module in GRAPH:
        if module != NAME and MODULES[module].name != "__init__.py":
            visit(module, ())


def test_the_lower_floors_know_no_model_library() -> None:
    for module, names in GRAPH.items():
        if room_of(module) in WITHOUT_TRANSFORMERS:
            assert "transformers" not in names, module


def test_frameworks_stay_out_of_the_core() -> None:
    for module, names in GRAPH.items():
        known = {"llama_index", "langchain", "langchain_core", "langchain_mmrh", "haystack", "haystack_integrations"}
        assert not names & known, module


def test_integrations_import_public_names_only() -> None:
    shown = {NAME, f"{NAME}.adapters", f"{NAME}.bm25", *(f"{NAME}.{alias}" for alias in ALIASES)}
    for path in sources("integrations"):
        if "tests" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME):
                    assert node.module in shown, f"{path.name} imports from {node.module}"


def test_only_the_seam_knows_the_attention_interface() -> None:
    for module, path in MODULES.items():
        if module != f"{NAME}.model.attention_seam":
            assert "AttentionInterface" not in path.read_text(encoding="utf-8").replace(
                "``AttentionInterface``", ""
            ).replace("transformers' AttentionInterface", ""), module


def test_a_window_is_changed_by_its_own_methods_only() -> None:
    window = ast.parse((PACKAGE / "encoding" / "window.py").read_text(encoding="utf-8"))
    (cls,) = (node for node in window.body if isinstance(node, ast.ClassDef) and node.name == "Window")
    own = {
        target.attr
        for node in ast.walk(cls)
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(target, ast.Attribute)
    }
    assert {"null", "chain", "_cache"} <= own
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    changed = target.value.id in ("window", "gathered", "fresh") and target.attr in own
                    assert not changed, f"{module} changes {target.value.id}.{target.attr}"


def test_files_are_short_and_named_for_what_they_hold() -> None:
    long, vague = [], []
    for path in sources(NAME, "tests", "tools", "benchmarks", "examples", "integrations"):
        lines = path.read_text(encoding="utf-8").count("\n")
        long += [f"{path.relative_to(ROOT)}: {lines}"] if lines > MOST_LINES else []
        vague += [path] if path.stem in VAGUE and "llama_index" not in path.parts else []  # there base.py is the custom
    assert long == []
    assert vague == []


def test_no_function_takes_too_much() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                count = len(given.args) + len(given.kwonlyargs) + len(given.posonlyargs)
                assert count <= MOST_PARAMETERS, f"{module}.{node.name} takes {count} parameters"


def test_every_folder_says_what_it_is_for() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert docstring, module
            assert docstring.splitlines()[0].endswith("."), module


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_documented_paths_of_earlier_versions_go_on_working(alias: str) -> None:
    path = PACKAGE / f"{alias}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 5
    assert [name for name in vars(importlib.import_module(f"{NAME}.{alias}")) if not name.startswith("_")]


def test_the_exported_names_are_these() -> None:
    assert mmrh_retriever.__all__ == EXPORTED == sorted(EXPORTED)
    assert all(hasattr(mmrh_retriever, name) for name in EXPORTED)


def test_names_load_when_they_are_used() -> None:
    assert [name for _, names in mmrh_retriever._HOMES.items() for name in names] == [
        name.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME)
        for name in node.names
    ]  # what runs, and what type checkers see
    assert set(EXPORTED) <= set(dir(mmrh_retriever))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = mmrh_retriever.Nothing


@pytest.mark.parametrize("names", ["HeadSet, MMRHError, Page, RerankSettings, read_pdf", "__version__"])
def test_no_model_library_is_loaded_before_it_is_needed(names: str) -> None:
    code = f"import sys; from {NAME} import {names}; print({{'torch', 'transformers'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (f"import {NAME}", {"numpy", "PIL", "pydantic", "pymupdf", "pypdfium2", "scipy", "torch", "transformers"}),
        (f"from {NAME} import read_pdf", {"pymupdf", "pypdfium2", "torch", "transformers"}),
        (f"import {NAME}.cli.main", {"pymupdf", "pypdfium2", "torch", "transformers"}),
    ],
)
def test_importing_is_quick_because_little_is_loaded(code: str, absent: set[str]) -> None:
    printed = f"import sys; {code}; print(sorted({absent!r} & {{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", printed], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_importing_the_package_says_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:mmrh_retriever", "-c", f"import {NAME}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
