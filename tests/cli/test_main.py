"""``mmrh`` as a process: it comes at once, and Ctrl-C ends it without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmrh_retriever.cli.main import COMMANDS, command_of

MODEL_LIBRARIES = "{'torch', 'transformers'} & {*sys.modules}"
RUN = "from mmrh_retriever.__main__ import main; main()"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["rank", "--help"], ["rank", "only.pdf"]])
def test_help_and_version_load_no_model_library(arguments: list[str]) -> None:
    done = python(f"import atexit, sys; atexit.register(lambda: print({MODEL_LIBRARIES}))\n{RUN}", *arguments)
    assert done.stdout.splitlines()[-1:] == ["set()"], done.stderr


@pytest.mark.parametrize("module", ["torch", "typer"])
def test_ctrl_c_during_import_leaves_no_traceback(module: str) -> None:
    interrupting = f"""
import sys
class Interrupting:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting)
"""
    done = python(interrupting + RUN, "heads", "bundled")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_says_what_each_command_says_of_itself(name: str) -> None:
    assert command_of(name).help.split("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_a_mistyped_command_is_guessed() -> None:
    done = python(RUN, "rnak")
    assert done.returncode == 2
    assert "Did you mean 'rank'" in done.stderr


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "mmrh_retriever", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("mmrh-retriever 0.")
