"""What the last layer costs where the rest cannot be traced (a BERT), and what memory 100,000 rows take.

A BERT of Hugging Face (4 layers, 128 wide, random sentences of 12 to 32 tokens, nothing is downloaded) is trained for a
moment; 8 of its mistakes are reported, and of the answers that are right at most 3 % may change. The same repair is
made of the classifier alone on pooled features, in turn. Memory is that of a process of its own.
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from repairopt import Classifier, ErrorRate, KeepLabels, solve_repair
from repairopt.interfaces.huggingface import PackedInputs

RESULT = Path(__file__).resolve().parent / "results" / "last_layer.md"
WORDS, LENGTH, ROWS, TRAINED, REPORTED = 500, 32, 1000, 400, 8


def sentences(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens with their mask, and the class to which the words of a sentence add most."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (ROWS, LENGTH), generator=draw)
    mask = (torch.arange(LENGTH)[None] < torch.randint(12, LENGTH + 1, (ROWS, 1), generator=draw)).long()
    weight = torch.randn(WORDS, 3, generator=draw)
    return {"input_ids": ids * mask, "attention_mask": mask}, (weight[ids] * mask[..., None]).sum(1).argmax(1)


def trained(seed: int, batch: dict[str, Tensor], labels: Tensor) -> nn.Module:
    """A classifier after 200 steps on a part of the rows."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=3, **sizes)
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(200):
        rows = torch.randint(0, TRAINED, (64,))
        optimizer.zero_grad()
        model(**{name: of[rows] for name, of in batch.items()}, labels=labels[rows]).loss.backward()
        optimizer.step()
    return model.eval()


def one(seed: int) -> tuple[float, float, str]:
    """Processor seconds of the whole model and of the classifier alone, and both verdicts."""
    batch, labels = sentences(seed)
    model = trained(seed, batch, labels)
    packed = PackedInputs(batch)
    with torch.no_grad():
        wrong = model(**batch).logits.argmax(1) != labels
        pooled = model.bert(**batch).pooler_output
    reported = wrong.nonzero()[:REPORTED, 0]
    kept = (~wrong).nonzero()[:, 0]
    seconds, verdicts = [], []
    for network, inputs, weights in (
        (Classifier(model, packed), packed.inputs, "last"),
        (model.classifier, pooled, "all"),
    ):
        begun = time.process_time()
        goal = ErrorRate(inputs[reported], labels[reported], target=0.0)
        keep = KeepLabels(inputs[kept], labels[kept], tolerance=0.03)
        verdicts.append(solve_repair(network, goal, [keep], weights=weights).report.verdict.value)
        seconds.append(time.process_time() - begun)
    return seconds[0], seconds[1], " / ".join(verdicts)


def rows_in_memory(count: int) -> None:
    """Print MB before and at the peak, and processor seconds, of a default call on so many rows of 20 numbers."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, 20, generator=draw)
    y = (x @ torch.randn(20, 3, generator=draw) + 0.5 * torch.tanh(x[:, :3] * x[:, 3:6])).argmax(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        rows = torch.randint(0, count, (512,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    share = float((model(x).argmax(1) != y).float().mean())
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    goal = ErrorRate(x, y, target=0.7 * share)
    verdict = solve_repair(model, goal, [KeepLabels(x, model(x).argmax(1), tolerance=0.05)]).report.verdict
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{before / 1024:.0f} {peak / 1024:.0f} {time.process_time() - begun:.0f} {verdict.value}")


def main() -> None:
    """Run both and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="only print the memory of a call on so many rows")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.rows:
        rows_in_memory(chosen.rows)
        return
    runs = [one(seed) for seed in range(chosen.seeds)]
    ratios = [whole / alone for whole, alone, _ in runs]
    error = stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    table = "\n".join(
        f"| {seed} | {whole:.1f} | {alone:.1f} | {whole / alone:.2f} | {said} |"
        for seed, (whole, alone, said) in enumerate(runs)
    )
    command = [sys.executable, __file__, "--rows", "100000"]
    before, peak, seconds, verdict = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    chosen.out.write_text(
        f"""# The last layer of a network that cannot be traced, and many rows

Made by `python benchmarks/last_layer.py`; processor seconds of one thread.

A BERT, `weights="last"`, against its classifier alone on pooled features (bar: 1.5 times):

| seed | whole model | classifier alone | ratio | verdicts |
|---|---|---|---|---|
{table}

Mean ratio {mean(ratios):.2f} ± {error:.2f}.

100,000 rows of 20 numbers, an error rate and labels to keep, default call: {peak} MB at the peak, {before} MB before
the call (bar: below 2,800), {seconds} CPU-s, {verdict}. Most of it is `memory_limit`, 1 GiB by default.
""",
        encoding="utf-8",
    )
    print(chosen.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
