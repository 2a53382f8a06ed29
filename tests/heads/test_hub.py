"""Head sets on the Hub: fetched once, found offline, beside remote weights as beside local ones, and pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from mmrh_retriever import HeadSet, Reranker
from mmrh_retriever.errors import DataError
from mmrh_retriever.heads.hub import HEADS_FILE, heads_beside
from mmrh_retriever.model.loading import BUNDLED_FOLDER
from tests.heads.hub_server import COMMIT, HubServer

HEADS = HeadSet.parse("1-2, 0-3", n_layers=4, n_heads=4)


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


class Asking:
    """Head sets read and pushed in this process, whose Hub is the server."""

    def __init__(self, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = lambda **values: [monkeypatch.setattr(constants, name, value) for name, value in values.items()]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        self.reach(hub.address)
        self._set(HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE=False, HF_HUB_DISABLE_XET=True)

    def reach(self, address: str) -> None:
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        self._set(ENDPOINT=address, HUGGINGFACE_CO_URL_TEMPLATE=template)

    def offline(self) -> None:
        self._set(HF_HUB_OFFLINE=True)


@pytest.fixture
def asking(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(hub, tmp_path / "cache", monkeypatch)


def test_a_set_is_fetched_and_then_found_offline(hub: HubServer, asking: Asking, tmp_path: Path) -> None:
    hub.files["org/heads"] = {HEADS_FILE: written(HEADS, tmp_path)}
    assert HeadSet.from_pretrained("org/heads") == HEADS
    before = len(hub.asked)
    assert sum("/resolve/" in line for line in hub.asked) == 2  # what the file is, and the file
    assert HeadSet.from_pretrained("org/heads", local_files_only=True) == HEADS
    assert HeadSet.from_pretrained("org/heads", revision=COMMIT) == HEADS
    asking.offline()
    assert HeadSet.from_pretrained("org/heads") == HEADS
    assert len(hub.asked) == before
    with pytest.raises(DataError, match="not in the cache"):
        HeadSet.from_pretrained("org/heads", cache_dir=tmp_path / "other")


def test_another_cache_and_commit_may_be_named(hub: HubServer, asking: Asking, tmp_path: Path) -> None:
    hub.files["org/heads"] = {HEADS_FILE: written(HEADS, tmp_path)}
    assert HeadSet.from_pretrained("org/heads", revision=COMMIT, cache_dir=tmp_path / "other") == HEADS
    assert list((tmp_path / "other").rglob(HEADS_FILE))
    assert not (tmp_path / "cache").exists()
    assert all(COMMIT in line for line in hub.asked if "/resolve/" in line)


def test_what_is_not_there_is_said(hub: HubServer, asking: Asking) -> None:
    hub.files["org/empty"] = {}
    for name, options, said in (
        ("org/empty", {}, r"org/empty has no mmrh_heads\.json"),
        ("org/empty", {"revision": COMMIT}, f"at {COMMIT}"),
        ("org/none", {}, "'org/none' can't be read as a repository"),
        ("org/empty", {"revision": "gone"}, "'org/empty' can't be read as a repository"),
        ("no such: name", {}, "Expected 'org/repo', a folder or a file"),
    ):
        with pytest.raises(DataError, match=said):
            HeadSet.from_pretrained(name, **options)
    before = len(hub.asked)
    with pytest.raises(DataError, match="has no"):
        HeadSet.from_pretrained("org/empty", revision=COMMIT)
    assert len(hub.asked) == before  # it is known that the commit has none


def test_folders_and_files_are_read_as_before(tmp_path: Path) -> None:
    HEADS.save(tmp_path / HEADS_FILE)
    assert HeadSet.from_pretrained(tmp_path) == HeadSet.from_pretrained(str(tmp_path / HEADS_FILE)) == HEADS
    with pytest.raises(DataError, match=r"gone\.json"):
        HeadSet.from_pretrained(tmp_path / "gone.json")


FOUND = HeadSet(HEADS.heads, (0.5, 0.25), "Org/Some-Model", 4, 4, ("text", "image"), 8192, "mmrh | detect")


def test_a_set_is_pushed_with_a_card_that_is_written_once(hub: HubServer, asking: Asking) -> None:
    address = FOUND.push_to_hub("org/heads", private=True, token="hf_right", commit_message="Heads found")
    assert address == f"{hub.address}/org/heads/commit/{COMMIT}"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert hub.messages == ["Heads found"]
    pushed = hub.files["org/heads"]
    assert set(pushed) == {HEADS_FILE, "README.md"}
    assert HeadSet.from_pretrained("org/heads") == FOUND
    card = pushed["README.md"].decode()
    assert "base_model: Org/Some-Model\n" in card
    assert "| heads | 2: 1-2, 0-3 |" in card
    assert "mmrh \\| detect" in card
    pushed["README.md"] = b"My own card"
    HEADS.push_to_hub("org/heads", token="hf_right")
    assert pushed["README.md"] == b"My own card"
    assert b"8192" not in pushed[HEADS_FILE]


def test_a_push_that_is_refused_says_what_to_do(hub: HubServer, asking: Asking) -> None:
    with pytest.raises(DataError, match=r"can't be written to org/heads: .*hf auth login"):
        FOUND.push_to_hub("org/heads", token="hf_wrong")
    assert hub.files == {}
    asking.reach("http://127.0.0.1:9")
    with pytest.raises(DataError, match="can't be written to org/heads"):
        FOUND.push_to_hub("org/heads", token="hf_right")


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
import json
from mmrh_retriever import HeadSetError, Reranker
try:
    found = Reranker.from_pretrained("org/reader", check=False, question_weights="uniform").heads
    print(json.dumps(list(map(str, found))))
except HeadSetError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("there", [True, False])
def test_heads_of_a_model_on_the_hub_cost_one_request_more(there: bool, hub: HubServer, tmp_path: Path) -> None:
    hub.files["org/reader"] = {
        file.name: file.read_bytes() for file in BUNDLED_FOLDER.iterdir() if file.name != HEADS_FILE
    }
    if there:
        hub.files["org/reader"][HEADS_FILE] = written(HEADS, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == ["1-2", "0-3"] if there else "No heads are published for org/reader" in found
    asked = [line.split()[0] for line in hub.asked if HEADS_FILE in line]
    assert asked == (["HEAD", "GET"] if there else ["HEAD"])


def test_a_hub_that_refuses_to_tell_is_logged(hub: HubServer, asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    assert heads_beside("org/none") is None
    assert "Whether org/none has a head set (mmrh_heads.json) can't be told" in caplog.text
