"""Answers through our seam and kept vision features against the stock model: free ones, likelihoods, masked heads."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from mmrh_retriever import HeadId, Page
from mmrh_retriever.errors import ContextOverflowError, DataError
from mmrh_retriever.model.families import Backbone
from mmrh_retriever.model.prompts import Prompter
from mmrh_retriever.research.answering import Answerer, Masking, plain_inputs
from mmrh_retriever.research.probes import Evidence, Probe
from mmrh_retriever.research.probes.prompts import ProbePrompter
from tests.factories import BUILDERS, TEXT_ONLY, Tiny, page_image, tiny
from tests.reference import zeroing

MASKED = (HeadId(0, 1), HeadId(1, 0), HeadId(1, 3))
CHOICES = ("nine percent", "water", "staff numbers in the report")


def answerer(model: Tiny, **options: object) -> Answerer:
    backbone = Backbone.of(model.model)
    prompter = ProbePrompter(Prompter(backbone, model.tokenizer, model.image_processor))
    return Answerer(prompter, **options)  # type: ignore[arg-type]


def probe_for(name: str, *, choices: tuple[str, ...] = CHOICES, **options: object) -> Probe:
    items = [Page(text="Revenue grew by nine percent."), Page(text="The annual report shows emissions.")]
    question: tuple[str | Page, ...] = ("How did revenue change?",)
    if name not in TEXT_ONLY:
        items += [Page(image=page_image(1)), Page(image=page_image(2, (150, 70)))]
        question = ("Was this shown? ", Page(image=page_image(3, (60, 140))), " How?")
    evidence, answer = (Evidence(0),), choices[1]
    return Probe("text", "p", tuple(items), question, evidence, answer, 500, choices=choices, **options)  # type: ignore[arg-type]


def lengthened(inputs: dict[str, torch.Tensor], ids: list[int]) -> dict[str, torch.Tensor]:
    """A plain input with more text behind it."""
    tails = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    tails |= {"mm_token_type_ids": [0] * len(ids), "token_type_ids": [0] * len(ids)}
    both = {name: torch.tensor([[*inputs[name][0].tolist(), *tail]]) for name, tail in tails.items() if name in inputs}
    return inputs | both


def prompt_of(found: Answerer, probe: Probe) -> dict[str, torch.Tensor]:
    context, tail = found._segments(probe)
    return plain_inputs(found.backbone, [found.prompter.prompter(probe).prefix_segment(), *context, *tail])


def zeroed(model: PreTrainedModel, heads: tuple[HeadId, ...]) -> PreTrainedModel:
    """The same masking without our seam: the heads' columns of the output projection are zero."""
    found = copy.deepcopy(model)
    for name, module in found.named_modules():
        layer = getattr(module, "layer_idx", None)
        if name.endswith("self_attn") and layer is not None and "vision" not in name:
            projection = (module.out_proj if hasattr(module, "out_proj") else module.o_proj).weight.data
            width = projection.shape[1] // module.config.num_attention_heads
            for head in heads:
                if head.layer == layer:
                    projection[:, head.head * width : (head.head + 1) * width] = 0
    return found


def masked(found: Answerer) -> tuple[HeadId, ...]:
    """The same heads in the first layers that have attention."""
    layers = list(found.backbone.seam.modules)
    return tuple(HeadId(layers[head.layer], head.head) for head in MASKED)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_free_answers_equal_the_stock_models_from_pixels(name: str) -> None:
    stock = tiny(name).model
    found = answerer(tiny(name), max_new_tokens=6, lead_in="")
    probe = probe_for(name)
    inputs = prompt_of(found, probe)
    written = ""
    for masking in (Masking(), Masking(masked(found))):
        plain = zeroed(stock, masking.heads).generate(**inputs, max_new_tokens=6, do_sample=False)
        text = found.prompter.interleaved.tokenizer.decode(
            plain[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert found.generate(probe, masking) == text.strip().split("\n", 1)[0].strip()
        written += text
    assert written


LIKELIHOODS = ["qwen3_vl", "qwen2_5_vl", "gemma3", "smolvlm", "mistral3", "llama", "qwen3"]
LIKELIHOODS += ["gemma4", "cohere2_vision", "qwen3_5", "lfm2_vl"]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_equal_a_plain_full_pass(name: str) -> None:
    found = answerer(tiny(name))
    probe = probe_for(name)
    for masking in (Masking(), Masking(masked(found))):
        plain = zeroed(tiny(name).model, masking.heads)
        best, scores = found.choose(probe, masking)
        for choice in probe.choices:
            ids = found.prompter.interleaved.text.plain(" " + choice)
            inputs = lengthened(prompt_of(found, probe), ids)
            with torch.no_grad():
                logs = torch.log_softmax(plain(**inputs).logits[0, -len(ids) - 1 : -1].float(), dim=-1)
            expected = float(logs.gather(1, torch.tensor(ids)[:, None]).mean())
            assert scores[choice] == pytest.approx(expected, abs=2e-4)
        assert best == max(scores, key=lambda choice: scores[choice])


def test_a_completion_follows_the_questions_own_words() -> None:
    found = answerer(tiny("llama"), max_new_tokens=4)
    probe = probe_for("llama", continues=True)
    prompter = found.prompter.prompter(probe)
    ids = prompt_of(found, probe)["input_ids"][0].tolist()
    asked = prompter.question_segment("How did revenue change?").ids
    assert ids[-len(asked) :] == asked
    plain = tiny("llama").model
    for choice in probe.choices:
        more = prompter.text.plain(" " + choice)
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([[*ids, *more]])).logits[0, -len(more) - 1 : -1].float()
        logs = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(more)[:, None])
        assert found.choose(probe)[1][choice] == pytest.approx(float(logs.mean()), abs=2e-4)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "smolvlm", "llama", "qwen3"])
def test_answering_alone_is_masked_from_the_prompts_last_token_on(name: str) -> None:
    """``decode``, against plain eager passes over prompt and answer with hooks that zero the heads from there on."""
    found = answerer(tiny(name))
    probe = probe_for(name, choices=("nine", "year", "staff numbers in the report"))
    reference = tiny(name, attn_implementation="eager").model
    whole = found.choose(probe)[1]
    _, scores = found.choose(probe, Masking(MASKED, "decode"))
    for choice in probe.choices:
        ids = found.prompter.interleaved.text.plain(" " + choice)
        inputs = lengthened(prompt_of(found, probe), ids)
        start = inputs["input_ids"].shape[1] - len(ids) - 1
        with torch.no_grad(), zeroing(reference, MASKED, start=start):
            logs = torch.log_softmax(reference(**inputs).logits[0, start:-1].float(), dim=-1)
        assert scores[choice] == pytest.approx(float(logs.gather(1, torch.tensor(ids)[:, None]).mean()), abs=1e-4)
        assert abs(scores[choice] - whole[choice]) > 1e-3
    assert len(found.prompter.interleaved.text.plain(" nine")) == 1, "an answer of one token is masked too"
    assert found.choose(probe, Masking(MASKED, "decode"))[1] == scores
    assert found.choose(probe)[1] == whole


@pytest.mark.parametrize("name", ["qwen3_vl", "mistral3", "llama", "qwen3"])
def test_generation_masked_while_answering_begins_with_the_first_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answerer(tiny(name), max_new_tokens=4, lead_in="")
    model = found.backbone.model
    model.generation_config.prefill_chunk_size = 16  # must not count
    probe, written = probe_for(name), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: written.append(generate(**given)) or written[-1])
    found.generate(probe)
    found.generate(probe, Masking(MASKED, "decode"))
    reference = tiny(name, attn_implementation="eager").model
    prompt = prompt_of(found, probe)
    length = prompt["input_ids"].shape[1]
    ids: list[int] = []
    with torch.no_grad(), zeroing(reference, MASKED, start=length - 1):
        for _ in range(4):
            ids.append(int(reference(**lengthened(prompt, ids)).logits[0, -1].argmax()))
    whole, masked = (tokens[0, length:].tolist() for tokens in written)
    assert masked == ids
    assert masked[0] != whole[0]


def test_unanswerable_probes_are_refused() -> None:
    found = answerer(tiny("llama"), max_new_tokens=5)
    long = Probe("text", "long", (Page(text="word " * 3000),), ("Q?",), (), "a", 9000)
    with pytest.raises(DataError, match="too few to choose"):
        found.choose(long)
    with pytest.raises(ContextOverflowError, match="Use shorter contexts"):
        found.generate(long)
