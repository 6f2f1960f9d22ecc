"""Networks as three packages ship them, repaired by the command line and loaded again by their packages.

magika tells types of files, rapidocr whether a line of text stands upright, silero-vad whether 32 ms hold speech. Each
gets inputs on which it errs: snippets of the files of this Python, lines of Cyrillic letters, and sentences of
espeak-ng under noise. Half of the inputs are collected: mistakes are reported (24 at most), right answers are guards.
The rest is seen by no method. The last layer is changed, by `repairopt solve` and `apply`, and by Adam, its rate,
epochs and weight of the guards chosen on a fifth of what was collected. The package then answers with the new file.
"""

from __future__ import annotations

import environment  # noqa: F401  # isort: skip

import argparse
import copy
import json
import shutil
import subprocess
import sysconfig
import tempfile
import time
import wave
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from repairopt.interfaces.commandline.commands import main as command
from repairopt.interfaces.specfile.onnx_model import load_onnx

RESULT = Path(__file__).resolve().parent / "results" / "shipped_onnx.md"
REPORTED = 24
Answer = Callable[[Path, list[Any]], Any]


@dataclass(frozen=True)
class Case:
    """A file, other inputs that are filled, inputs as the file reads them, labels, inputs for the package."""

    path: Path
    fixed: dict[str, float]
    rows: Any
    labels: Any
    raw: list[Any]
    answer: Answer


def folder(package: str) -> Path:
    """Where an installed package lies; SystemExit where it is missing."""
    found = find_spec(package)
    if found is None or found.submodule_search_locations is None:
        raise SystemExit(f"needs the package {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


KINDS = {
    ".py": "python",
    ".json": "json",
    ".md": "markdown",
    ".rst": "rst",
    ".h": "c",
    ".cpp": "cpp",
    ".js": "javascript",
}
KINDS |= {
    ".css": "css",
    ".html": "html",
    ".yaml": "yaml",
    ".csv": "csv",
    ".toml": "toml",
    ".sh": "shell",
    ".txt": "txt",
}


def magika(draw: np.random.Generator) -> Case:
    """Snippets of 120 to 500 bytes of files whose ending says their type."""
    at = folder("magika")
    model = next(iter(sorted((at / "models").iterdir())))
    names = json.loads((model / "config.min.json").read_text(encoding="utf-8"))["target_labels_space"]
    raw, labels = [], []
    for ending, kind in KINDS.items():
        files = sorted(Path(sysconfig.get_path("purelib")).rglob(f"*{ending}"))
        for place in draw.permutation(len(files))[:400]:
            content = files[place].read_bytes()
            start = int(draw.integers(max(1, len(content) - 600)))
            snippet = content[start : start + int(draw.choice([120, 250, 500]))].strip()
            if len(snippet) > 100:
                raw.append(snippet)
                labels.append(names.index(kind))
            if labels.count(names.index(kind)) == 70:
                break
    rows = [[*one[:1024], *[256] * (1024 - len(one)), *[256] * (1024 - len(one)), *one[-1024:]] for one in raw]

    def answer(path: Path, given: list[Any]) -> Any:
        from magika import Magika

        with tempfile.TemporaryDirectory() as made:
            shutil.copytree(model, made, dirs_exist_ok=True)
            shutil.copy(path, Path(made) / "model.onnx")
            teller = Magika(model_dir=Path(made))
            return np.array([names.index(str(teller.identify_bytes(one).prediction.dl.label)) for one in given])

    return Case(model / "model.onnx", {}, np.array(rows, np.int64), np.array(labels), raw, answer)


def rapidocr(draw: np.random.Generator) -> Case:
    """Lines of Cyrillic letters with a little noise, every second one upside down."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    raw, rows, labels = [], [], []
    for i in range(700):
        text = "".join(draw.choice(list("абвгдежзийклмнопрстуфхцчшщъыьэюя"), int(draw.integers(4, 9))))
        name = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Oblique")[int(draw.integers(4))]
        image = Image.new("RGB", (192, 48), "white")
        font = ImageFont.truetype(str(fonts / f"{name}.ttf"), int(draw.integers(22, 34)))
        ImageDraw.Draw(image).text((int(draw.integers(2, 20)), 4), text, font=font, fill="black")
        pixels = np.asarray(image.rotate(180) if i % 2 else image).astype(np.float32)
        noisy = np.clip(pixels + 8 * draw.normal(size=pixels.shape), 0, 255).astype(np.uint8)
        raw.append(noisy)
        rows.append(((noisy.astype(np.float32).transpose(2, 0, 1) / 255) - 0.5) / 0.5)
        labels.append(i % 2)
    file = folder("rapidocr_onnxruntime") / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"

    def answer(path: Path, given: list[Any]) -> Any:
        from rapidocr_onnxruntime.ch_ppocr_cls import TextClassifier
        from rapidocr_onnxruntime.utils import read_yaml

        config = read_yaml(str(folder("rapidocr_onnxruntime") / "config.yaml"))["Cls"] | {"model_path": str(path)}
        config |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "use_cuda": False, "use_dml": False}
        return np.array([label == "180" for label, _ in TextClassifier(config)(given)[1]]).astype(int)

    return Case(file, {}, np.stack(rows), np.array(labels), raw, answer)


WORDS = (
    "the a river house bright seven walks over under winter stone sings never quickly paper green boat and then slow"
)


def silero(draw: np.random.Generator) -> Case:
    """Windows of 512 samples at 16 kHz, of a stream that begins: spoken words under noise, or noise alone."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("needs the program espeak-ng")
    windows, labels = [], []
    with tempfile.TemporaryDirectory() as made:
        for _ in range(40):
            said = " ".join(draw.choice(WORDS.split(), 7))
            voice, file = str(draw.choice(["en", "en-us", "en+f3", "en+m4"])), Path(made) / "said.wav"
            subprocess.run(["espeak-ng", "-v", voice, "-w", str(file), said], check=True, capture_output=True)
            with wave.open(str(file)) as sound:
                rate, wanted = sound.getframerate(), sound.getnframes()
                samples = np.frombuffer(sound.readframes(wanted), np.int16).astype(np.float32) / 32768
            samples = np.interp(np.arange(0, len(samples), rate / 16000), np.arange(len(samples)), samples)
            for start in draw.permutation(len(samples) // 512 - 1)[:20] * 512:
                window = samples[start : start + 512]
                loud = float(np.sqrt((window**2).mean()))
                if 0.005 < loud < 0.02:
                    continue  # the end of a word: neither
                noise = draw.normal(size=512) * draw.choice([0.003, 0.02, 0.06])
                hum = (
                    0.05 * np.sin(2 * np.pi * float(draw.uniform(80, 400)) * np.arange(512) / 16000) * draw.integers(2)
                )
                windows.append((window + noise + hum).astype(np.float32))
                labels.append(int(loud >= 0.02))
    rows = np.concatenate([np.zeros((len(windows), 64), np.float32), np.stack(windows)], 1)
    file = folder("silero_vad") / "data" / "silero_vad.onnx"

    def answer(path: Path, given: list[Any]) -> Any:
        from silero_vad.utils_vad import OnnxWrapper

        teller, said = OnnxWrapper(str(path)), []
        for window in given:
            teller.reset_states()
            said.append(float(teller(torch.tensor(window), 16000)) > 0.5)
        return np.array(said).astype(int)

    return Case(file, {"state": 0, "sr": 16000}, rows, np.array(labels), windows, answer)


CASES = {"magika": magika, "rapidocr": rapidocr, "silero-vad": silero}


def by_command(case: Case, parts: dict[str, Any], work: Path) -> tuple[Path, float]:
    """The repaired file, by a spec and two commands, and processor seconds."""
    shutil.copy(case.path, work / "given.onnx")
    for name, rows in parts.items():
        np.savez(work / f"{name}.npz", rows=case.rows[rows], label=case.labels[rows])
    fixed = f", fixed: {json.dumps(case.fixed)}" if case.fixed else ""
    integers = ", integers: true" if case.rows.dtype.kind == "i" else ""
    (work / "spec.yaml").write_text(
        f"model: {{onnx: given.onnx{fixed}}}\narray: {{name: rows{integers}}}\nlabel: {{column: label}}\n"
        "data: {repair: {file: repair.npz}, guards: {file: guards.npz}}\n"
        "goal: error_rate <= 0\nbounds: [flips(guards) == 0]\nchange: {layers: last}\n",
        encoding="utf-8",
    )
    spec, run, target = str(work / "spec.yaml"), work / "run", work / "new.onnx"
    begun = time.process_time()
    for words in (
        ["solve", spec, "--out", str(run), "--no-report", "--quiet"],
        ["apply", spec, str(run / "patch.safetensors"), "--out", str(target)],
    ):
        with redirect_stdout(StringIO()), suppress(SystemExit):
            command(words)
    return target, time.process_time() - begun


def by_adam(network: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """Adam on the last layer: rate, epochs and weight of the guards chosen on a fifth of both sets, then all rows."""
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]

    def tuned(sets: list[tuple[Tensor, Tensor]], rate: float, epochs: int, guard: float) -> nn.Module:
        copied = copy.deepcopy(network)
        own = [module for module in copied.modules() if list(module.parameters(recurse=False))][len(layers) - 1]
        optimizer = torch.optim.Adam(own.parameters(), rate)
        x, y = torch.cat([x for x, _ in sets]), torch.cat([y for _, y in sets])
        share = torch.cat([torch.full((len(x),), w / len(x)) for w, (x, _) in zip((1.0, guard), sets, strict=True)])
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                losses = functional.cross_entropy(copied(x[rows]), y[rows], reduction="none")
                (losses * share[rows]).mean().mul(len(x)).backward()
                optimizer.step()
        return copied

    few = [len(x) // 5 for x, _ in parts]
    train = [(x[n:], y[n:]) for n, (x, y) in zip(few, parts, strict=True)]
    kept = [(x[:n], y[:n]) for n, (x, y) in zip(few, parts, strict=True)]
    scores = {}
    for choice in product((1e-2, 1e-3, 1e-4), (5, 20), (1.0, 5.0)):
        made = tuned(train, *choice)
        scores[choice] = sum(float((said(made, x) == y).float().mean()) for x, y in kept)
    return tuned(parts, *max(scores, key=lambda choice: scores[choice]))


def said(network: nn.Module, rows: Tensor) -> Tensor:
    """The class of each row."""
    with torch.no_grad():
        return network(rows).argmax(1)


def one(name: str, seed: int) -> dict[str, Any]:
    """Counts for both ways, and whether the package answers with the new file as the repaired network does."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    case = CASES[name](draw)
    x, y = torch.tensor(case.rows), torch.tensor(case.labels)
    network = load_onnx(case.path, x[:3], fixed=case.fixed)
    before = said(network, x)
    right, order = before == y, torch.tensor(draw.permutation(len(y)))
    collected, unseen = order[: len(y) // 2], order[len(y) // 2 :]
    reported, guards = collected[~right[collected]][:REPORTED], collected[right[collected]]
    with tempfile.TemporaryDirectory() as work:
        target, seconds = by_command(case, {"repair": reported.numpy(), "guards": guards.numpy()}, Path(work))
        repaired = said(load_onnx(target, x[:3], fixed=case.fixed), x)
        answers = torch.tensor(case.answer(target, case.raw))
    begun = time.process_time()
    adam = said(by_adam(network, [(x[reported], y[reported]), (x[guards], y[guards])]), x)
    spent = time.process_time() - begun
    parts = (reported, guards, unseen[right[unseen]], unseen[~right[unseen]])
    return {
        "of": [len(part) for part in parts],
        "repairopt": [int((repaired[part] == y[part]).sum()) for part in parts] + [seconds],
        "Adam": [int((adam[part] == y[part]).sum()) for part in parts] + [spent],
        "same": float((answers == repaired).float().mean()),
    }


def main() -> None:
    """Run the packages and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--packages", nargs="*", default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)

    def cell(values: list[float]) -> str:
        error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
        return f"{mean(values):.1f}{error}"

    lines = []
    for name in chosen.packages:
        runs = []
        for seed in range(chosen.seeds):
            runs.append(one(name, seed))
            print(name, seed, runs[-1], flush=True)
        sizes = [mean([run["of"][i] for run in runs]) for i in range(4)]
        for way in ("repairopt", "Adam"):
            counts = [[run[way][i] for run in runs] for i in range(5)]
            lost = [[run["of"][i] - run[way][i] for run in runs] for i in (1, 2)]
            cells = [f"{cell(counts[0])} of {sizes[0]:.0f}", f"{cell(lost[0])} of {sizes[1]:.0f}"]
            cells += [f"{cell(lost[1])} of {sizes[2]:.0f}", f"{cell(counts[3])} of {sizes[3]:.0f}", cell(counts[4])]
            same = f"{100 * mean([run['same'] for run in runs]):.2f} %" if way == "repairopt" else ""
            lines.append(f"| {name} | {way} | {' | '.join(cells)} | {same} |")
    columns = "reported fixed | guards broken | unseen right, broken | unseen wrong, fixed | CPU-s | package agrees"
    chosen.out.write_text(
        "# ONNX files as packages ship them\n\n"
        f"Made by `python benchmarks/shipped_onnx.py`, {chosen.seeds} seeds, means and standard errors.\n"
        f"{__doc__.partition(chr(10))[2]}\n| package | way | {columns} |\n|{'---|' * 8}\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )
    print(chosen.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
