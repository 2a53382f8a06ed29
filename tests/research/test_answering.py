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
from tests.reference import kept_keys

MASKED = (HeadId(0, 1), HeadId(1, 0), HeadId(1, 3))


def answerer(model: Tiny, **options: object) -> Answerer:
    backbone = Backbone.of(model.model)
    prompter = ProbePrompter(Prompter(backbone, model.tokenizer, model.image_processor))
    return Answerer(prompter, **options)  # type: ignore[arg-type]


def probe_for(name: str, **options: object) -> Probe:
    items = [Page(text="Revenue grew by nine percent."), Page(text="The annual report shows emissions.")]
    question: tuple[str | Page, ...] = ("How did revenue change?",)
    if name not in TEXT_ONLY:
        items += [Page(image=page_image(1)), Page(image=page_image(2, (150, 70)))]
        question = ("Was this shown? ", Page(image=page_image(3, (60, 140))), " How?")
    choices = ("nine percent", "water", "staff numbers in the report")
    return Probe("text", "p", tuple(items), question, (Evidence(0),), "water", 500, choices=choices, **options)  # type: ignore[arg-type]


def prompt_of(found: Answerer, probe: Probe) -> dict[str, torch.Tensor]:
    context, tail = found._segments(probe)
    return plain_inputs(found.backbone, [found.prompter.prompter(probe).prefix_segment(), *context, *tail])


def zeroed(model: PreTrainedModel, heads: tuple[HeadId, ...]) -> PreTrainedModel:
    """The same masking without our seam: the heads' columns of the output projection are zero."""
    found = copy.deepcopy(model)
    for name, module in found.named_modules():
        layer = getattr(module, "layer_idx", None)
        if name.endswith("self_attn") and layer is not None:
            for head in heads:
                if head.layer == layer:
                    module.o_proj.weight.data[:, head.head * module.head_dim : (head.head + 1) * module.head_dim] = 0
    return found


@pytest.mark.parametrize("name", list(BUILDERS))
def test_free_answers_equal_the_stock_models_from_pixels(name: str) -> None:
    stock = tiny(name).model
    found = answerer(tiny(name), max_new_tokens=6, lead_in="")
    probe = probe_for(name)
    inputs = prompt_of(found, probe)
    for masking in (Masking(), Masking(MASKED)):
        plain = zeroed(stock, masking.heads).generate(**inputs, max_new_tokens=6, do_sample=False)
        text = found.prompter.interleaved.tokenizer.decode(
            plain[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert found.generate(probe, masking) == text.strip().split("\n", 1)[0].strip()
        assert text


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "gemma3", "smolvlm", "mistral3", "llama", "qwen3"])
def test_likelihoods_equal_a_plain_full_pass(name: str) -> None:
    found = answerer(tiny(name))
    probe = probe_for(name)
    for masking in (Masking(), Masking(MASKED)):
        plain = zeroed(tiny(name).model, masking.heads)
        best, scores = found.choose(probe, masking)
        for choice in probe.choices:
            ids = found.prompter.interleaved.text.plain(" " + choice)
            inputs = prompt_of(found, probe)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
            for key in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
                if key in inputs:
                    tail = torch.full((1, len(ids)), int(key == "attention_mask"))
                    inputs[key] = torch.cat([inputs[key], tail], dim=1)
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


def test_answering_alone_is_masked_behind_an_unmasked_prompt() -> None:
    """``decode``: the prompt's keys come from the whole model, the answer's tokens from the masked one."""
    model = tiny("llama")
    found = answerer(model)
    probe = probe_for("llama")
    whole = tiny("llama").model
    masked = zeroed(whole, MASKED)
    _, scores = found.choose(probe, Masking(MASKED, "decode"))
    for choice in probe.choices:
        ids = found.prompter.interleaved.text.plain(" " + choice)
        with torch.no_grad():
            prompt = whole(**prompt_of(found, probe), use_cache=True)
            rest = masked(input_ids=torch.tensor([ids]), **kept_keys(masked, prompt))
        logits = torch.cat([prompt.logits[0, -1:], rest.logits[0, :-1]]).float()
        logs = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids)[:, None])
        assert scores[choice] == pytest.approx(float(logs.mean()), abs=2e-4)
    unmasked = found.choose(probe)[1]
    assert unmasked != scores
    assert found.choose(probe, Masking(MASKED, "decode"))[1] == scores


def test_generation_masked_while_answering_differs_only_behind_the_first_token() -> None:
    model = tiny("llama")
    found = answerer(model, max_new_tokens=1, lead_in="")
    probe = probe_for("llama")
    every = tuple(HeadId(layer, head) for layer in range(3) for head in range(4))
    assert found.generate(probe, Masking(every, "decode")) == found.generate(probe)
    longer = answerer(model, max_new_tokens=8, lead_in="")
    assert longer.generate(probe, Masking(every, "decode")) != longer.generate(probe)


def test_unanswerable_probes_are_refused() -> None:
    found = answerer(tiny("llama"), max_new_tokens=5)
    long = Probe("text", "long", (Page(text="word " * 3000),), ("Q?",), (), "a", 9000)
    with pytest.raises(DataError, match="too few to choose"):
        found.choose(long)
    with pytest.raises(ContextOverflowError, match="Use shorter contexts"):
        found.generate(long)
