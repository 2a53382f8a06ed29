"""The benchmark on an accelerator: a random model of Qwen3-VL-8B's shape in bfloat16, with each attention kernel.

    python benchmarks/gpu.py --device cuda --pages 20 --questions 16

For each kernel that is installed: seconds of a bare forward pass of the same layers, of the paper's procedure and of
our first and further questions; tokens per second; peak memory; and, on a small model, how far scores in bfloat16 lie
from those in float32.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from mmrh_retriever.benchmark.pairs import run_benchmark, sample_pages, sample_questions
from mmrh_retriever.benchmark.random_models import random_reranker


def difference(device: str, attention: str, pages: int = 4) -> tuple[float, float]:
    """The largest difference of a score in bfloat16 from float32 on the CPU, and the largest score."""
    exact = random_reranker("random", device="cpu")
    rounded = random_reranker("random", device=device, dtype="bfloat16", attn_implementation=attention)
    rounded.backbone.model.load_state_dict(exact.backbone.model.state_dict())
    question, images = sample_questions(1)[0], sample_pages(pages)
    expected = {scored.position: scored.score for scored in exact.rank(question, images)}
    got = {scored.position: scored.score for scored in rounded.rank(question, images)}
    return max(abs(got[index] - expected[index]) for index in expected), max(map(abs, expected.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="random-8b", help="random, random-2b or random-8b")
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    kernels = ["sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])]
    print("| kernel | device | bare, s | plain, s | first, s | further, s | tokens / s | peak, GiB | bf16 - fp32 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kernel in kernels:
        reranker = random_reranker(args.model, device=args.device, attn_implementation=kernel)
        found = run_benchmark(reranker, pages=args.pages, questions=args.questions, rounds=args.rounds)
        rows = {ratio.name: ratio for ratio in found.ratios}
        first, further = rows["first question"], rows["each further question"]
        bare = rows["a pass that records, against a bare one"]
        del reranker
        off, largest = difference(args.device, kernel)
        print(
            f"| {kernel} | {found.device} | {bare.seconds:.3f} | {first.median * first.seconds:.3f} | "
            f"{first.seconds:.3f} | {further.seconds:.4f} | {found.tokens_per_second:,.0f} | "
            f"{found.peak_bytes / 1024**3:.1f} | {off:.1e} of {largest:.1e} |",
            flush=True,
        )
        for ratio in found.ratios:
            print(f"  {ratio.name}: {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})", flush=True)


if __name__ == "__main__":
    main()
