"""What the packages say of themselves: Python's versions, the source distribution, the text for a package index."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_four_packages_say_the_same_of_python() -> None:
    adapters = [tomllib.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("integrations/*/pyproject.toml")]
    assert len(adapters) == 3
    named = "Programming Language :: Python :: 3."
    versions = [name.removeprefix(named) for name in CORE["project"]["classifiers"] if name.startswith(named)]
    lowest = f"3.{versions[0]}"
    for written in (CORE, *adapters):
        assert written["project"]["requires-python"].split(",")[0] == f">={lowest}"
        assert {named + version for version in versions} <= set(written["project"]["classifiers"])
    tools = CORE["tool"]
    assert (tools["ruff"]["target-version"], tools["mypy"]["python_version"]) == (lowest.replace("3.", "py3"), lowest)


def test_the_source_distribution_has_all_that_tests_read() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    known = subprocess.run([git, "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    top = {f"/{name.split('/')[0]}" for name in known if not name.startswith(".")}
    assert top - {"/pyproject.toml"} == set(CORE["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])


def test_a_package_index_gets_no_link_into_the_repository() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in CORE["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert "![" not in text
    assert "colours show" not in text
    assert [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("https://")] == []
    assert "a tour of the code (`docs/architecture.md`)" in text


def test_a_release_publishes_every_package() -> None:
    workflow = ROOT / ".github" / "workflows" / "release.yml"
    if not workflow.exists():
        pytest.skip("the source distribution has no workflows")
    listed = re.search(r"package: \[(.*)\]", workflow.read_text(encoding="utf-8"))
    assert listed is not None
    names = {CORE["project"]["name"], *(path.parent.name for path in ROOT.glob("integrations/*/pyproject.toml"))}
    assert set(listed[1].split(", ")) == {name.replace("-", "_") for name in names}
