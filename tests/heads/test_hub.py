"""Head sets on the Hub: fetched once, found offline, beside remote weights as beside local ones, and pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrh_retriever import HeadSet, Reranker
from mmrh_retriever.errors import DataError
from mmrh_retriever.heads.hub import HEADS_FILE
from mmrh_retriever.model.loading import BUNDLED_FOLDER
from tests.heads.hub_server import COMMIT, HubServer

HEADS = HeadSet.parse("1-2, 0-3", n_layers=4, n_heads=4)
ROOT = Path(__file__).parents[2]


def written(heads: HeadSet, folder: Path) -> bytes:
    heads.save(folder / "written.json")
    return (folder / "written.json").read_bytes()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(hub: HubServer, cache: Path, code: str, **more: str) -> Any:
    """What code prints as JSON, in a process of its own whose Hub is this server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    environment |= {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    program = f"import json\nfrom mmrh_retriever import HeadSet, MMRHError\n{code}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READ = """
try:
    print(json.dumps(list(map(str, HeadSet.from_pretrained(%s)))))
except MMRHError as error:
    print(json.dumps(str(error)))
"""


def test_a_set_is_fetched_and_then_found_offline(hub: HubServer, tmp_path: Path) -> None:
    hub.files["org/heads"] = {HEADS_FILE: written(HEADS, tmp_path)}
    assert run(hub, tmp_path / "cache", READ % "'org/heads'") == ["1-2", "0-3"]
    assert hub.asked[-1] == f"GET /org/heads/resolve/{COMMIT}/{HEADS_FILE}" or "GET" in hub.asked[-1]
    before = len(hub.asked)
    assert run(hub, tmp_path / "cache", READ % "'org/heads'", HF_HUB_OFFLINE="1") == ["1-2", "0-3"]
    assert run(hub, tmp_path / "cache", READ % "'org/heads', local_files_only=True") == ["1-2", "0-3"]
    assert run(hub, tmp_path / "cache", READ % f"'org/heads', revision='{COMMIT}'") == ["1-2", "0-3"]
    assert len(hub.asked) == before
    found = run(hub, tmp_path / "cache", READ % f"'org/heads', cache_dir={str(tmp_path / 'other')!r}")
    assert found == ["1-2", "0-3"]
    assert list((tmp_path / "other").rglob(HEADS_FILE))


def test_what_is_not_there_is_said(hub: HubServer, tmp_path: Path) -> None:
    hub.files["org/empty"] = {}
    cache = tmp_path / "cache"
    assert "org/empty has no mmrh_heads.json" in run(hub, cache, READ % "'org/empty'")
    assert "'org/none' can't be read as a repository" in run(hub, cache, READ % "'org/none'")
    assert "'org/empty' can't be read as a repository" in run(hub, cache, READ % "'org/empty', revision='gone'")
    assert "not in the cache" in run(hub, cache, READ % "'org/other'", HF_HUB_OFFLINE="1")
    assert "Expected 'org/repo', a folder or a file" in run(hub, cache, READ % "'no such: name'")


def test_folders_and_files_are_read_as_before(tmp_path: Path) -> None:
    HEADS.save(tmp_path / HEADS_FILE)
    assert HeadSet.from_pretrained(tmp_path) == HeadSet.from_pretrained(str(tmp_path / HEADS_FILE)) == HEADS
    with pytest.raises(DataError, match=r"gone\.json"):
        HeadSet.from_pretrained(tmp_path / "gone.json")


PUSH = """
heads = HeadSet.parse("1-2, 0-3", n_layers=4, n_heads=4)
heads = HeadSet(heads.heads, (0.5, 0.25), "Org/Some-Model", 4, 4, ("text", "image"), 8192, "mmrh | detect")
try:
    print(json.dumps(heads.push_to_hub("org/heads", private=True, token=%r, commit_message="Heads found")))
except MMRHError as error:
    print(json.dumps(str(error)))
"""


def test_a_set_is_pushed_with_a_card_that_is_written_once(hub: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    address = run(hub, cache, PUSH % "hf_right")
    assert address == f"{hub.address}/org/heads/commit/{COMMIT}"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert hub.messages == ["Heads found"]
    pushed = hub.files["org/heads"]
    assert set(pushed) == {HEADS_FILE, "README.md"}
    (tmp_path / "back.json").write_bytes(pushed[HEADS_FILE])
    back = HeadSet.load(tmp_path / "back.json")
    assert (back.scores, back.tasks, back.context_length) == ((0.5, 0.25), ("text", "image"), 8192)
    card = pushed["README.md"].decode()
    assert "base_model: Org/Some-Model\n" in card
    assert "| heads | 2: 1-2, 0-3 |" in card
    assert "mmrh \\| detect" in card
    pushed["README.md"] = b"My own card"
    run(hub, cache, PUSH % "hf_right")
    assert hub.files["org/heads"]["README.md"] == b"My own card"


def test_a_push_that_is_refused_says_what_to_do(hub: HubServer, tmp_path: Path) -> None:
    said = run(hub, tmp_path, PUSH % "hf_wrong")
    assert said.startswith("The head set can't be written to org/heads: ")
    assert "hf auth login" in said
    assert hub.files == {}
    unreached = run(hub, tmp_path, PUSH % "hf_right", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreached.startswith("The head set can't be written to org/heads: ")


# Beside a model's weights


def cached_model(cache: Path, heads: HeadSet | None) -> None:
    """The bundled model as the Hub's cache would hold it, under the name ``org/reader``."""
    snapshot = cache / "models--org--reader" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "models--org--reader" / "refs").mkdir()
    (cache / "models--org--reader" / "refs" / "main").write_text(COMMIT)
    for file in BUNDLED_FOLDER.iterdir():
        if file.name != HEADS_FILE:
            (snapshot / file.name).symlink_to(file)
    if heads is not None:
        heads.save(snapshot / HEADS_FILE)


def test_heads_beside_remote_weights_are_taken(tmp_path: Path) -> None:
    cached_model(tmp_path, HEADS)
    where = {"cache_dir": str(tmp_path), "local_files_only": True}
    reranker = Reranker.from_pretrained("org/reader", **where, check=False, question_weights="uniform")
    assert reranker.heads == HEADS
    assert len(reranker.with_heads("all").heads) > len(HEADS)
    assert reranker.with_heads("all").with_heads("published").heads == HEADS


LOAD = """
from mmrh_retriever import Reranker
def heads():
    try:
        return list(map(str, Reranker.from_pretrained("org/reader", check=False, question_weights="uniform").heads))
    except MMRHError as error:
        return str(error)
print(json.dumps([heads(), heads()]))
"""


@pytest.mark.parametrize("there", [True, False])
def test_heads_of_a_model_on_the_hub_cost_one_request_more(there: bool, hub: HubServer, tmp_path: Path) -> None:
    hub.files["org/reader"] = {
        file.name: file.read_bytes() for file in BUNDLED_FOLDER.iterdir() if file.name != HEADS_FILE
    }
    if there:
        hub.files["org/reader"][HEADS_FILE] = written(HEADS, tmp_path)
    one, again = run(hub, tmp_path / "cache", LOAD)
    assert one == again
    assert one == ["1-2", "0-3"] if there else "No heads are published for org/reader" in one
    asked = [line.split()[0] for line in hub.asked if HEADS_FILE in line]
    assert asked == ["HEAD", *(["GET"] if there else []), "HEAD"]  # one more for each load
