"""Files that hold a whole network, which takes code to read: what they are, and how a user who trusts one gives it."""

from __future__ import annotations

import zipfile
from pathlib import Path

OTHERS = {
    ".h5": "Keras",
    ".keras": "Keras",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
    ".mlpackage": "Core ML",
}


def advice_on(path: Path, problem: str) -> str:
    """What a file is that is no plain state dict, and how to give the network in it; nothing in it is executed."""
    name = str(path)
    if path.suffix in OTHERS:
        return f"'{name}' is a file of {OTHERS[path.suffix]}, which torch cannot read. Convert it to ONNX."
    kind, load = _kind_of(path)
    if not kind:
        return (
            f"'{name}' is no plain state dict ({problem}). Files that need code to be read are refused, and nothing in "
            f"it was executed. Where you trust it, convert it: repairopt.patches.save_weights(model, 'w.safetensors')."
        )
    return (
        f"'{name}' is {kind}: it takes code to be read, and nothing in it was executed. Where you trust it, write a "
        f"file own.py, `import torch` and `network = lambda: {load}`, and give own:network as the model."
    )


def _kind_of(path: Path) -> tuple[str, str]:
    """What a file holds, by the names in it, and the expression that loads it; empty where that is not known."""
    where = repr(path.resolve().as_posix())
    if path.suffix in (".joblib", ".skops") or not zipfile.is_zipfile(path):
        return "", ""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if any(name.startswith("code/") for name in names):
            return "a TorchScript archive", f"torch.jit.load({where})"
        if "archive_format" in names or any(name.startswith("models/") for name in names):
            return "a program of torch.export", f"torch.export.load({where}).module()"
        if pickled is not None and b"torch.nn.modules" in archive.read(pickled):
            return "a pickled network", f"torch.load({where}, weights_only=False)"
    return "", ""
