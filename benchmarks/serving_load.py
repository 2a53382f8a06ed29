"""What a server answers in a second under load, with questions joined in passes and one by one.

    OMP_NUM_THREADS=1 python benchmarks/serving_load.py --seconds 300

Clients ask a server on this machine without a pause: questions about a PDF that is encoded, and now and then two fresh
images. Each answer about the PDF is compared with the library's own ranking.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from PIL import Image, ImageDraw

from mmrh_retriever import PageStore, Reranker, read_pdf
from mmrh_retriever.runs.tables import Table

SAMPLE = Path(__file__).parents[1] / "examples" / "sample_report.pdf"
QUESTIONS = (
    "How did revenue change?", "What are the risks?", "Who is the chief executive?", "How many employees are there?",
    "What was the dividend?", "When does the ferry run?", "What did fuel cost?", "Which ship is electric?",
    "How much was emitted?", "Who audits the accounts?",
)  # fmt: skip
FRESH = 0.1  # the part of requests that bring two images
TOLERANCE = 1e-6
Scores = dict[str, dict[int, float]]


@dataclass
class Load:
    """What clients saw: seconds of each request, the largest difference of a score, answers that were wrong."""

    file: str
    expected: Scores
    seconds: list[float] = field(default_factory=list)
    difference: float = 0.0
    wrong: int = 0

    async def client(self, client: httpx.AsyncClient, seed: int, until: float) -> None:
        """Ask until the time is up."""
        rng = random.Random(seed)
        while time.monotonic() < until:
            started, question = time.monotonic(), rng.choice(QUESTIONS)
            if rng.random() < FRESH:
                documents = [{"image": invoice(rng.randrange(10**6))} for _ in range(2)]
                answer = await client.post("/v1/rerank", json={"query": question, "documents": documents})
            else:
                answer = await client.post("/v1/rank", json={"query": question, "files": [self.file]})
            answer.raise_for_status()
            self.seconds.append(time.monotonic() - started)
            if "rankings" in answer.json():
                self.compare(question, answer.json()["rankings"][0]["results"])

    def compare(self, question: str, results: list[dict[str, float]]) -> None:
        """Count an answer that is not the library's."""
        off = max(abs(self.expected[question][int(one["page"])] - one["score"]) for one in results)
        self.difference = max(self.difference, off)
        self.wrong += off > TOLERANCE or len(results) != len(self.expected[question])


def invoice(number: int) -> str:
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).text((20, 50), f"Invoice {number}, total {number * 7}", fill="black")
    memory = io.BytesIO()
    image.save(memory, format="PNG")
    return base64.b64encode(memory.getvalue()).decode()


@contextmanager
def served(*options: str) -> Iterator[tuple[str, int]]:
    """A server of its own: address and process id."""
    command = [sys.executable, "-m", "mmrh_retriever", "serve", "--port", "0", *options]
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        process = subprocess.Popen(command, stderr=log)  # this Python, options of our own  # noqa: S603
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", Path(log.name).read_text())):
                if process.poll() is not None:
                    sys.exit(Path(log.name).read_text())
                time.sleep(0.2)
            yield found[0], process.pid
        finally:
            process.terminate()
            process.wait()


def peak_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


async def loaded(
    client: httpx.AsyncClient, pdf: Path, expected: Scores, *, clients: int, seconds: float
) -> tuple[Load, float]:
    """A load of so many clients, and the requests that a pass answered."""
    while (await client.get("/readyz")).status_code != 200:
        await asyncio.sleep(0.2)
    file = (await client.post("/v1/files", files={"file": pdf.read_bytes()})).json()["id"]
    await client.post("/v1/rank", json={"query": QUESTIONS[0], "files": [file]})
    load, until = Load(file, expected), time.monotonic() + seconds
    await asyncio.gather(*(load.client(client, seed, until) for seed in range(clients)))
    metrics = (await client.get("/metrics")).text
    counted = dict(re.findall(r"^mmrh_(passes|joined_requests)_total (\S+)$", metrics, re.MULTILINE))
    return load, float(counted["joined_requests"]) / float(counted["passes"])


async def row(name: str, base: str, process: int, expected: Scores, given: argparse.Namespace) -> list[str]:
    """What a server did under load, as a row of the table."""
    async with httpx.AsyncClient(base_url=base, timeout=600) as client:
        load, joined = await loaded(client, given.pdf, expected, clients=given.clients, seconds=given.seconds)
    p50, p95 = np.percentile(load.seconds, [50, 95])
    return [
        name, f"{len(load.seconds) / given.seconds:.1f}", f"{joined:.1f}", f"{p50:.2f}", f"{p95:.2f}",
        f"{peak_mib(process):.0f}", str(load.wrong), f"{load.difference:.1e}",
    ]  # fmt: skip


def expected_of(reranker: Reranker, pdf: Path) -> Scores:
    """The library's own scores: by question and page number."""
    rankings = reranker.rank_many(QUESTIONS, read_pdf(pdf))
    return {
        question: {scored.page.number: scored.score for scored in ranking}
        for question, ranking in zip(QUESTIONS, rankings, strict=True)
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pdf", type=Path, default=SAMPLE)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300.0)
    given = parser.parse_args(arguments)
    expected = expected_of(Reranker.from_pretrained(store=PageStore()), given.pdf)
    rows = []
    for name, options in (("joined", ()), ("one by one", ("--join-questions", "1"))):
        with served(*options) as (base, process):
            rows.append(asyncio.run(row(name, base, process, expected, given)))
    columns = [
        "questions",
        "requests/s",
        "requests per pass",
        "p50 s",
        "p95 s",
        "peak MiB",
        "wrong",
        "largest difference",
    ]
    print(Table.of(f"{given.clients} clients, {given.seconds:g} s", columns, rows).markdown())


if __name__ == "__main__":
    main()
