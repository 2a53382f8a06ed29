"""The seam: what it records in the presence of padding, windows, caps and sinks; ablation; threads; checks."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmrh_retriever import AttentionCaptureError, HeadId, HeadSetError, Page, Reranker, TokenSpan, UnsupportedModelError
from mmrh_retriever.model.attention_check import verify
from mmrh_retriever.model.attention_seam import AttentionSeam, decoder_attention
from mmrh_retriever.model.families import FAMILIES, Backbone, find_family
from mmrh_retriever.model.pass_plan import PassPlan
from mmrh_retriever.model.recording import HeadsByLayer, Recording, record
from tests.factories import BUILDERS, tiny
from tests.reference import kept_keys, zeroing

IDS = torch.arange(5, 45)[None]


def everything(seam: AttentionSeam, heads: int, tokens: int, rows: list[range]) -> Recording:
    """A recording of every head with one span a token."""
    chosen = [HeadId(layer, head) for layer in seam.modules for head in range(heads)]
    return Recording(HeadsByLayer.of(chosen), rows, torch.arange(tokens), tokens)


def rows_of(attentions: tuple[torch.Tensor, ...], row: int) -> torch.Tensor:
    return torch.stack([layer[0, :, row] for layer in attentions]).flatten(0, 1)


def eager(model: nn.Module, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model.model(**inputs, output_attentions=True, use_cache=False).attentions


def text_model(kind: str) -> nn.Module:
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "softcap":
        config = Gemma2Config(**sizes, attn_logit_softcapping=2.0, sliding_window=8, query_pre_attn_scalar=8)
        return Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    return MistralForCausalLM._from_config(MistralConfig(**sizes, sliding_window=8), attn_implementation="sdpa").eval()


@pytest.mark.parametrize("kind", ["softcap", "sliding"])
def test_soft_capping_and_sliding_windows_are_honoured(kind: str) -> None:
    model = text_model(kind)
    seam = AttentionSeam.install(model.model)
    expected = eager(copy.deepcopy(model), input_ids=IDS)
    recording = everything(seam, 4, 40, [range(30, 31), range(39, 40)])
    with torch.no_grad(), seam.running(recording=recording):
        model.model(input_ids=IDS, use_cache=False)
    for number, row in enumerate((30, 39)):
        torch.testing.assert_close(recording.mass[number], rows_of(expected, row), atol=1e-5, rtol=0)
    windowed = recording.mass[1].view(4, 4, 40)[[layer for layer, window in seam.windows.items() if window]]
    assert windowed.numel()
    assert float(windowed[:, :, :30].abs().max()) == 0


def test_padding_is_honoured() -> None:
    model = tiny("llama").model
    backbone = Backbone.of(model)
    mask = torch.ones_like(IDS)
    mask[:, :7] = 0
    reference = copy.deepcopy(model)
    expected = eager(reference, input_ids=IDS, attention_mask=mask)
    recording = everything(backbone.seam, 4, 40, [range(39, 40)])
    with torch.no_grad(), backbone.seam.running(recording=recording):
        model.model(input_ids=IDS, attention_mask=mask, use_cache=False)
    torch.testing.assert_close(recording.mass[0], rows_of(expected, 39), atol=1e-5, rtol=0)
    assert float(recording.mass[0][:, :7].max()) == 0


def test_attention_sinks_take_their_share() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4, 6, 8), torch.randn(2, 6, 8)
    sinks = torch.tensor([2.0, -1.0, 0.5, 4.0])
    recording = Recording(HeadsByLayer.of([(0, head) for head in range(4)]), [range(5, 6)], torch.arange(6), 6)
    record(recording, 0, query, key, torch.zeros(1, 6), scaling=0.3, sinks=sinks)
    logits = torch.stack([query[head, 5] @ key[head // 2].T * 0.3 for head in range(4)])
    exponents = logits.exp()
    expected = exponents / (exponents.sum(1, keepdim=True) + sinks.exp()[:, None])
    torch.testing.assert_close(recording.mass[0], expected)
    assert float(recording.mass[0].sum(1).max()) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recording_in_small_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4, 9, 8, dtype=dtype), torch.randn(2, 50, 8, dtype=dtype)
    mask = PassPlan(41, 9).mask(None, query.device)[1:8].float().log()
    owner = torch.arange(45) // 9
    rows = [(1, 2, 3), (1, 2, 5, 7), (4, 6)]  # of questions that share some
    results = []
    for budget, chunk, kept in ((10**6, 10**6, 10**6), (70, 7, 0)):
        monkeypatch.setattr("mmrh_retriever.model.recording.LOGIT_BUDGET", budget)
        monkeypatch.setattr("mmrh_retriever.model.recording.KEY_CHUNK", chunk)
        monkeypatch.setattr("mmrh_retriever.model.recording.KEPT_KEYS", kept)
        heads = HeadsByLayer.of([(0, 3), (0, 0), (0, 1)])
        recording = Recording(heads, rows, owner, 5, tokens=True)
        record(recording, 0, query, key, mask, scaling=0.3)
        results.append(recording)
    torch.testing.assert_close(results[0].mass, results[1].mass)
    torch.testing.assert_close(results[0].token_mass, results[1].token_mass)
    for number, chosen in enumerate(rows):  # each by itself
        alone = Recording(heads, [chosen], owner, 5)
        record(alone, 0, query, key, mask[[row - 1 for row in chosen]], scaling=0.3)
        torch.testing.assert_close(alone.mass[0], results[1].mass[number])


def test_probabilities_are_formed_in_float32_for_half_precision_models() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 8, dtype=torch.bfloat16), torch.randn(1, 3000, 8, dtype=torch.bfloat16)
    recording = Recording(HeadsByLayer.of([(0, 0)]), [range(1)], torch.zeros(3000, dtype=torch.long), 1)
    record(recording, 0, query, key, torch.zeros(1, 3000), scaling=0.01)
    assert abs(float(recording.mass) - 1) < 1e-5  # bfloat16 probabilities of 1/3000 add up to something else


@pytest.mark.parametrize("name", list(BUILDERS))
def test_the_check_passes_on_every_family(name: str) -> None:
    model = tiny(name)
    backbone = Backbone.of(model.model)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return backbone.base(input_ids=IDS, use_cache=False).last_hidden_state

    reference = copy.deepcopy(model.model)
    reference.set_attn_implementation("eager")

    def attentions() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return reference.base_model(input_ids=IDS, use_cache=False, output_attentions=True).attentions

    assert verify(backbone.seam, run, attentions, tolerance=1e-4) < 1e-5


def test_the_check_notices_attention_that_is_not_the_models() -> None:
    model = tiny("llama").model
    seam = Backbone.of(model).seam

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model.model(input_ids=IDS, use_cache=False).last_hidden_state

    wrong = tuple(torch.full((1, 4, 40, 40), 1 / 40) for _ in range(3))
    with pytest.raises(AttentionCaptureError, match="differs from eager attention"):
        verify(seam, run, lambda: wrong, tolerance=1e-4)
    frozen = run()
    right = eager(copy.deepcopy(model), input_ids=IDS)

    def deaf() -> torch.Tensor:
        run()
        return frozen

    with pytest.raises(AttentionCaptureError, match="left the output as it was"):
        verify(seam, deaf, lambda: right, tolerance=1e-4)


def test_ablating_a_head_equals_zeroing_its_slice_before_the_output_projection() -> None:
    model = tiny("qwen3").model
    reference = copy.deepcopy(model)
    backbone = Backbone.of(model)
    heads = [HeadId(1, 2), HeadId(2, 0)]
    with torch.no_grad(), backbone.seam.ablating(heads):
        got = model(input_ids=IDS).logits
    for layer, head in heads:
        weight = reference.model.layers[layer].self_attn.o_proj.weight
        weight.data[:, head * 8 : (head + 1) * 8] = 0
    with torch.no_grad():
        expected = reference(input_ids=IDS).logits
        plain = model(input_ids=IDS).logits
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, plain)


def test_ablation_while_decoding_begins_with_the_last_token_of_the_prefill() -> None:
    """Against plain eager passes over everything, with hooks that zero the heads' slices from that token on."""
    model, heads = tiny("llama").model, [HeadId(0, 0), HeadId(1, 3)]
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    with torch.no_grad(), Backbone.of(model).seam.ablating(heads, phase="decode"):
        prefill = model(input_ids=IDS, use_cache=True)
        step = model(input_ids=IDS[:, :1], **kept_keys(model, prefill)).logits
    whole = torch.cat([IDS, IDS[:, :1]], dim=1)
    with torch.no_grad(), zeroing(reference, heads, start=IDS.shape[1] - 1):
        expected = reference(input_ids=whole).logits
    with torch.no_grad():
        plain = reference(input_ids=whole).logits
    torch.testing.assert_close(torch.cat([prefill.logits, step], dim=1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(prefill.logits[:, :-1], plain[:, :39], atol=1e-5, rtol=0)
    assert (expected - plain)[0, 39:].abs().amax(dim=1).min() > 1e-2


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "llama"])
def test_the_model_generates_as_before(name: str) -> None:
    stock = tiny(name).model
    ours = tiny(name).model
    Backbone.of(ours)
    settings = {"input_ids": IDS, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(stock.generate(**settings), ours.generate(**settings))


def test_one_seam_a_model_and_a_copy_gets_its_own() -> None:
    model = tiny("llama").model
    first, second = Backbone.of(model), Backbone.of(model)
    assert first.seam is second.seam
    copied = copy.deepcopy(model)
    with pytest.raises(AttentionCaptureError, match="never prepared"):
        copied(input_ids=IDS)
    assert Backbone.of(copied).seam is not first.seam
    assert torch.equal(copied(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_the_vision_tower_keeps_its_attention() -> None:
    model = tiny("qwen3_vl").model
    Backbone.of(model)
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "mmrh_sdpa"


def test_other_threads_are_not_recorded() -> None:
    model = tiny("llama").model
    seam = Backbone.of(model).seam
    recording = everything(seam, 4, 40, [range(39, 40)])
    other: list[torch.Tensor] = []

    def elsewhere() -> None:
        with torch.no_grad():
            other.append(model(input_ids=IDS[:, :3]).logits)

    with torch.no_grad(), seam.running(recording=recording):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(timeout=60)
        model.model(input_ids=IDS, use_cache=False)
    assert other[0].shape[1] == 3
    assert recording.layers_seen == {0, 1, 2}


def test_a_layer_that_does_not_report_is_an_error() -> None:
    seam = Backbone.of(tiny("llama").model).seam
    recording = everything(seam, 4, 40, [range(39, 40)])
    with (
        pytest.raises(AttentionCaptureError, match=r"Layers \[0, 1, 2\] did not report"),
        seam.running(None, recording),
    ):
        pass


def test_nan_is_an_error_that_names_the_heads() -> None:
    model = tiny("llama").model
    model.model.layers[1].self_attn.k_proj.weight.data[0, 0] = float("nan")
    seam = Backbone.of(model).seam
    recording = everything(seam, 4, 40, [range(39, 40)])
    with pytest.raises(AttentionCaptureError, match="1-0.*NaN"), torch.no_grad(), seam.running(None, recording):
        model.model(input_ids=IDS, use_cache=False)


def test_a_question_without_rows_is_refused() -> None:
    with pytest.raises(AttentionCaptureError, match="at least one row"):
        Recording(HeadsByLayer.of([(0, 0)]), [range(3, 3)], torch.arange(4), 4)


def test_unknown_families_are_refused_with_the_list() -> None:
    with pytest.raises(UnsupportedModelError, match="'blip'.*Qwen3-VL.*Gemma3") as caught:
        find_family("blip")
    assert all(family.name in str(caught.value) for family in FAMILIES)
    with pytest.raises(UnsupportedModelError, match="Expected a loaded transformers model"):
        Backbone.of(SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="no self-attention modules"):
        decoder_attention(nn.Linear(2, 2))


def test_a_decoder_that_attends_in_both_directions_is_refused() -> None:
    model = tiny("gemma4").model
    for module in decoder_attention(model.model.language_model).values():
        module.is_causal = False
    with pytest.raises(UnsupportedModelError, match="both directions.*use_bidirectional_attention"):
        Backbone.of(model)


def test_sliding_layers_are_not_global() -> None:
    assert Backbone.of(tiny("gemma3").model).global_layers == (1, 3)
    assert Backbone.of(tiny("qwen3_vl").model).global_layers == (0, 1, 2)


def test_a_model_in_training_mode_is_refused() -> None:
    model = tiny("llama").model.train()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        Backbone.of(model)


def test_attention_that_cannot_be_read_is_refused() -> None:
    model = tiny("llama").model
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="'flex_attention' can't be read"):
        Backbone.of(model)


@pytest.mark.parametrize("name", ["llama", "qwen3_vl"])
def test_flash_attention_is_called_by_its_own_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with flash attention's ways: no mask for causal passes, the causal corner at the bottom right."""
    seen: list[str] = []

    def flash(module: nn.Module, query, key, value, mask, scaling=None, **more):
        seen.append(module.config._attn_implementation)
        assert mask is None
        tokens, keys = query.shape[2], key.shape[2]
        causal = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=causal, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", flash)
    scores = []
    for implementation in ("sdpa", "flash_attention_2"):
        model = tiny(name)
        decoder = model.model.base_model if name == "llama" else model.model.base_model.language_model
        decoder.config._attn_implementation = implementation
        pages = [Page(text="words " * 30), Page(text="other words"), Page(text="staff")]
        reranker = Reranker(model.model, (model.tokenizer, model.image_processor), "all", check=False)
        scores.append([scored.score for scored in reranker.rank("How many?", pages)])
    assert seen
    assert set(seen) == {"flash_attention_2"}
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)


def test_masks_are_kept_by_device() -> None:
    plan = PassPlan(3, 2)
    assert plan.mask(None, torch.device("cpu")).device.type == "cpu"
    assert plan.mask(None, torch.device("meta")).device.type == "meta"


def test_tokens_on_paths_see_their_own_question_and_what_stands_near_it() -> None:
    plan = PassPlan(4, 6, paths=((0, 1, 2), (0, 3, 4), (5,)), offsets=torch.tensor([0, 1, 2, 3]), start=4)
    own = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    own += [[1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    seen = torch.tensor(own, dtype=torch.bool)
    assert torch.equal(plan.mask(None, torch.device("cpu")), torch.cat([torch.ones(6, 4, dtype=torch.bool), seen], 1))
    near = plan.mask(2, torch.device("cpu"))  # itself and the token before it
    assert near[:, :4].nonzero().tolist() == [[0, 3], [5, 3]]
    assert torch.equal(near[:, 4:].long().sum(1), torch.tensor([1, 2, 2, 2, 2, 1]))
    assert bool(near[3, 4])


def test_a_window_hides_earlier_two_sided_tokens_and_no_later_ones() -> None:
    plan = PassPlan(0, 8, bidirectional=(TokenSpan(1, 7),))
    mask = plan.mask(3, torch.device("cpu"))
    assert mask[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert mask[5].nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert mask[7].nonzero().flatten().tolist() == [5, 6, 7]
    assert bool(plan.mask(None, torch.device("cpu"))[1:7, 1:7].all())


@pytest.mark.parametrize("head", [(99, 0), (0, 4), (0, -1)])
def test_heads_that_are_not_there_cannot_be_ablated(head: tuple[int, int]) -> None:
    seam = Backbone.of(tiny("llama").model).seam
    with pytest.raises(HeadSetError, match="no head"), seam.ablating([head]):
        pass
    with pytest.raises(ValueError, match="phase"), seam.ablating([(0, 0)], phase="prefill"):  # type: ignore[arg-type]
        pass


def test_the_seam_comes_back_after_another_implementation_was_set() -> None:
    model = tiny("llama").model
    seam = Backbone.of(model).seam
    model.set_attn_implementation("eager")
    assert Backbone.of(model).seam is seam
    assert (seam.base, model.config._attn_implementation) == ("eager", "mmrh_eager")
    recording = everything(seam, 4, 40, [range(39, 40)])
    with torch.no_grad(), seam.running(None, recording):
        model.model(input_ids=IDS, use_cache=False)
