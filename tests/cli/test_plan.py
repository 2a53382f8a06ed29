"""``mmrh plan`` from a folder without weights: what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from mmrh_retriever import HeadSet
from mmrh_retriever.benchmark.random_models import SHAPES
from mmrh_retriever.heads.published import published_head_set
from mmrh_retriever.model.loading import HEADS_FILE
from tests.cli.conftest import Mmrh
from tests.factories import tiny


def folder_of(folder: Path, name: str, config: transformers.PreTrainedConfig | None = None) -> Path:
    model = tiny(name)
    for part in (config or model.model.config, model.tokenizer, model.image_processor):
        if part is not None:
            part.save_pretrained(folder)
    return folder


def test_plan_says_what_pages_take(mmrh: Mmrh, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "qwen3_vl")
    HeadSet.all_heads(3, 4, [0, 1]).save(folder / HEADS_FILE)
    done = mmrh("plan", folder, "--pages", 300, "--page-size", "96x128", "--json", "--page-memory", 10_000_000)
    assert done.code == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["model"], row["pages"], row["heads"], row["deepest"], row["layers"]) == (str(folder), 300, 8, 1, 3)
    assert row["windows"] > 1, "300 pages are more than the context of 4,096 tokens holds"
    assert row["page_bytes"] == row["page_tokens"] * 3 * 2 * 8 * 4  # two keys, a value; heads, width, bytes
    assert row["page_memory_pages"] == 10_000_000 // row["page_bytes"]
    smaller = mmrh(
        "plan", folder, "--page-size", "96x128", "--json", "--max-pixels", 32 * 32 * 4, "--dtype", "bfloat16"
    )
    other = json.loads(smaller.stdout)
    assert other["page_tokens"] < row["page_tokens"]
    assert (other["dtype"], other["weight_bytes"]) == ("bfloat16", row["weight_bytes"] // 2)
    table = mmrh("plan", folder, "--page-size", "96x128", "--markdown").stdout
    assert "| page_memory of 1.00 GiB, where pages stand alone | holds " in table
    assert not list(folder.glob("*.safetensors"))


def test_plan_finds_published_heads_by_shape(mmrh: Mmrh, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.Qwen3VLConfig(**SHAPES["random-8b"], dtype="bfloat16")
    done = mmrh("plan", folder_of(tmp_path, "qwen3_vl", config), "--json", "--page-tokens", 1500)
    assert done.code == 0, done.stderr
    row = json.loads(done.stdout)
    heads = published_head_set("Qwen/Qwen3-VL-8B-Instruct")
    assert (row["heads"], row["heads_of"]) == (len(heads), "Qwen/Qwen3-VL-8B-Instruct")
    assert row["deepest"] == max(head.layer for head in heads)
    assert "same family and size" in caplog.text
    recorded = {head.head * 8 // 32 for head in heads if head.layer == row["deepest"]}  # key heads of the deepest layer
    assert row["page_bytes"] == 1500 * (row["deepest"] * 2 * 8 + len(recorded)) * 128 * 2


def test_plan_goes_on_where_no_heads_are_published(mmrh: Mmrh, tmp_path: Path) -> None:
    done = mmrh("plan", folder_of(tmp_path, "gemma3"), "--json", "--pages", 2)
    assert done.code == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["heads"], row["heads_of"], row["deepest"]) == (8, str(tmp_path), 3), "the layers that see all"
    assert "mmrh detect" in row["notes"][0]


def test_a_vision_model_is_planned_for_text_without_its_image_processor(mmrh: Mmrh, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "internvl")
    for path in folder.glob("*processor*"):
        path.unlink()
    without = mmrh("plan", folder, "--heads", "all")
    assert without.code == 1
    assert "OSError" in without.stderr
    row = json.loads(mmrh("plan", folder, "--heads", "all", "--page-tokens", 99, "--json").stdout)
    assert row["page_tokens"] == 99


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--dtype", "int8"], 1, "dtype is the name of a type such as 'bfloat16'"),
        (["--dtype", "nonsense"], 1, "got 'nonsense'"),
        (["--max-pixels", 10_000], 1, "--max-pixels fits families"),
        (["--page-size", "100"], 2, "such as 1243x1608"),
        (["--heads", "nowhere.json"], 1, "neither 'published' nor 'all' nor a file"),
    ],
)
def test_what_plan_refuses(mmrh: Mmrh, tmp_path: Path, options: list[str], code: int, message: str) -> None:
    done = mmrh("plan", folder_of(tmp_path, "gemma3"), *options)
    assert done.code == code
    assert message in done.stderr.replace("\n", " ")


def test_an_unknown_family_and_a_missing_model_are_refused(mmrh: Mmrh, tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    assert "'bert' are not supported" in mmrh("plan", tmp_path).stderr
    done = mmrh("plan", "nobody/nothing")
    assert (done.code, done.stdout) == (1, "")
    assert "OSError" in done.stderr
