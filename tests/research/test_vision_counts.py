"""How often the vision tower runs: once per picture, however often a probe is asked or answered."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from mmrh_retriever import HeadId, HeadSet, Page
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.research.causal import causal_rows
from mmrh_retriever.research.detection import detect
from mmrh_retriever.research.probes import Evidence, Probe, page_probes
from tests.factories import VISION, Tiny, page_image, tiny

PICTURES = (Page(image=page_image(1)), Page(image=page_image(2, (150, 70))))


def watched(model: Tiny) -> list[dict[str, Any]]:
    """The inputs of each run of the vision tower from now on."""
    base: Any = model.model.base_model
    run = base.get_image_features
    calls: list[dict[str, Any]] = []

    @functools.wraps(run)
    def watching(*arguments: Any, **inputs: Any) -> Any:
        calls.append(inputs)
        return run(*arguments, **inputs)

    base.get_image_features = watching
    return calls


def images(calls: list[dict[str, Any]]) -> int:
    """The images in all runs of Qwen3-VL's tower."""
    return sum(len(inputs["image_grid_thw"]) for inputs in calls)


def probe_on(number: int, *question: str | Page) -> Probe:
    items = (Page(text=f"Revenue grew by {number} percent."), *PICTURES)
    return Probe("text", f"p{number}", items, question, (Evidence(0),), "water", 500, choices=("nine percent", "water"))


def processor(model: Tiny) -> object:
    return (model.tokenizer, model.image_processor)


@pytest.mark.parametrize("how", ["choices", "generate"])
def test_the_causal_test_shows_two_pictures_to_the_tower_once(how: str) -> None:
    model = tiny("qwen3_vl")
    calls = watched(model)
    heads = HeadSet((HeadId(0, 1), HeadId(2, 3)), n_layers=3, n_heads=4)
    probe = probe_on(9, "How did revenue change?")
    options = {"answering": how, "phases": ("all", "decode"), "random_seeds": 5, "max_new_tokens": 3}
    rows = list(causal_rows(model.model, processor(model), [probe], heads, **options))
    assert len(rows) == 1 + 2 * 11
    print(f"{how}: {images(calls)} images for {len(rows)} answers")
    assert images(calls) == 2


@pytest.mark.parametrize("name", VISION)
def test_free_answers_of_every_family_take_kept_features(name: str) -> None:
    model = tiny(name)
    calls = watched(model)
    heads = HeadSet.all_heads(int(model.model.config.get_text_config().num_hidden_layers), 4)
    last = Backbone.of(model.model).global_layers[-1]
    selected = HeadSet((HeadId(last, 3),), n_layers=heads.n_layers, n_heads=4)
    options = {"answering": "generate", "random_seeds": 1, "max_new_tokens": 3}
    rows = causal_rows(model.model, processor(model), [probe_on(9, "How did it change?")], selected, **options)
    next(rows)
    first = len(calls)
    assert first > 0
    assert len(list(rows)) == 6
    assert len(calls) == first


def test_detection_on_neighbours_computes_each_picture_once() -> None:
    model = tiny("qwen3_vl")
    calls = watched(model)
    same = list(page_probes(PICTURES, [("How?", 0), ("Where?", 1), ("Who?", 0)], context_length=900))
    detect(model.model, processor(model), same)
    assert images(calls) == 2
    calls.clear()
    asked = [probe_on(number, "Was this shown? ", PICTURES[0], " Yes or no?") for number in range(4)]
    detect(model.model, processor(model), asked)
    print(f"{images(calls)} images for {len(asked)} probes with three pictures each")
    assert images(calls) == 2
