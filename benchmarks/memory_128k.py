"""Peak memory of asking at 128K tokens of context, at the attention shapes of Qwen3-VL-8B, on one layer.

One layer's keys and values of 131,072 tokens (32 query heads, 8 key heads, 128 wide) are filled with random numbers.
Questions are asked of them as the engine does it: several in one pass under a mask, as many as one pass may hold. The
rows of some heads are recorded, and the layer's output is computed. Each case runs in a process of its own. What is
reported is how far its peak lies above what it held before it asked: model, keys and values. glibc is set to give
every freed block of 1 MiB and more back at once; otherwise it keeps some, by chance, and they count as if in use.

    python benchmarks/memory_128k.py                    # about 2 GB, and a minute or two per case
    python benchmarks/memory_128k.py --keys 16384 --questions 1,4 --heads 1,32
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from mmrh_retriever.encoding.engine import TAIL_CELLS
from mmrh_retriever.model.attention_seam import AttentionSeam
from mmrh_retriever.model.pass_plan import PassPlan
from mmrh_retriever.model.recording import HeadsByLayer, Recording

HEADS, KEY_HEADS, WIDTH = 32, 8, 128
PAGES = 400


def peak() -> int:
    """The process's peak of resident memory so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ask(keys: int, questions: int, heads: int, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """One case, in this process."""
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=WIDTH,
    )
    seam = AttentionSeam.install(Qwen3ForCausalLM(config).eval().model)
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int, length: int) -> torch.Tensor:
        made = torch.empty(1, count, length, WIDTH, dtype=dtype)
        return made.normal_(generator=generator)

    # as the engine groups questions that share no beginning
    at_once = max(1, min(questions, TAIL_CELLS // (keys + tokens * questions) // tokens))
    key, value = drawn(KEY_HEADS, keys + at_once * tokens), drawn(KEY_HEADS, keys + at_once * tokens)
    owner = torch.arange(keys) * PAGES // keys
    chosen = HeadsByLayer.of([(0, head) for head in range(heads)])
    before = peak()
    start = time.perf_counter()
    total = 0.0
    for first in range(0, questions, at_once):
        count = min(at_once, questions - first)
        query = drawn(HEADS, count * tokens)
        asked = tuple(range(number * tokens, (number + 1) * tokens) for number in range(count))
        recording = Recording(chosen, asked, owner, PAGES)
        seen = keys + count * tokens
        with torch.inference_mode(), seam.running(PassPlan(keys, count * tokens, paths=asked), recording):
            seam.attend(seam.modules[0], query, key[:, :, :seen], value[:, :, :seen], None)
        total += float(recording.mass.sum())
    return {
        "above_mib": (peak() - before) / 1024**2,
        "held_mib": (key.nbytes + value.nbytes) / 1024**2,
        "passes": -(-questions // at_once),
        "seconds": time.perf_counter() - start,
        "mean_mass": total / (questions * heads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=131_072, help="tokens of context")
    parser.add_argument("--questions", default="1,16,64", help="questions asked together")
    parser.add_argument("--heads", default="1,32", help="heads recorded, of 32")
    parser.add_argument("--tokens", type=int, default=20, help="tokens of a question")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--one", nargs=2, type=int, metavar=("QUESTIONS", "HEADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        found = ask(args.keys, *args.one, args.tokens, getattr(torch, args.dtype))
        print(json.dumps(found))
        return
    print(
        f"{args.keys:,} keys, {HEADS} heads on {KEY_HEADS}, {WIDTH} wide, {args.dtype}, "
        f"{args.tokens} tokens per question"
    )
    print("| questions | heads | passes | above keys and values, MiB | keys and values, MiB | seconds |")
    print("|---|---|---|---|---|---|")
    for questions in map(int, args.questions.split(",")):
        for heads in map(int, args.heads.split(",")):
            case = [f"--keys={args.keys}", f"--tokens={args.tokens}", f"--dtype={args.dtype}"]
            run = [sys.executable, __file__, *case, "--one", str(questions), str(heads)]
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1024**2)}
            done = subprocess.run(  # noqa: S603 - ourselves
                run, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {questions} | {heads} | {found['passes']} | {found['above_mib']:.0f} | {found['held_mib']:.0f} | "
                f"{found['seconds']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
