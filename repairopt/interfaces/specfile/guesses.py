"""Guess the spec of a network and a file of rows: which columns it reads and how, labels, groups, and three goals.

A guess is tried on the rows: of several ways to encode the inputs, the one that the network is most often right with is
taken. What was guessed is said in comments, for a person to look at.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repairopt.errors import RepairError, SpecFileError
from repairopt.localize import LayerGraph

from .given_model import bare_spec, model_entry, relative
from .guessed_columns import (
    LABELS,
    PLAIN,
    encoding_of,
    encodings,
    group_columns,
    label_columns,
    orders,
    repeated_share,
    rows_to_read,
    said_of_unread,
    text_options,
    with_numbers,
)
from .measure import PlainNetwork, measure_claims
from .opened import OpenSpec, load_model, open_spec
from .read_table import read_columns

HELD_OUT = 0.3
MOST_REPEATED = 0.5  # share of rows; with more, equal rows are other cases that look alike, not the same one again
FILLER = {"bounds": ["max_change <= 1"]}  # makes a spec of content without a goal
KNOWN = 0.1  # from 0 to 1, of a label that the network knows something of
LIKELIER = 2.0  # times as much it must know of another column to be taken for the label before the likeliest
ROWS = 20_000  # on which ways to encode are tried
SHOWN = 8  # rows that show an ONNX file sizes that it leaves open


@dataclass(frozen=True)
class Guess:
    """A spec as a dict, and in words how it was come by.

    Attributes:
        content: What the spec file says, without goal, bounds and watched measures.
        label: How the label was found.
        inputs: How the inputs were found.
        sensitive: How the groups were found.
        candidates: Statements that can be the goal, each with its value on the network as it is.
        known: What the network knows of the label, from 0 for nothing to 1 for everything.
    """

    content: dict[str, Any]
    label: str
    inputs: str
    sensitive: str
    candidates: tuple[tuple[str, float], ...] = field(default=())
    known: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """What a guess starts from: the spec so far, the network, the columns by name, and what the user said."""

    content: dict[str, Any]
    network: nn.Module
    columns: Mapping[str, Any]
    label: str | None
    sensitive: tuple[str, ...]
    path: Path
    tell: Callable[[str], None]


def guess_spec(
    model: str,
    data: str | Path,
    path: Path,
    *,
    weights: str | Path | None = None,
    label: str | None = None,
    sensitive: Sequence[str] = (),
    fixed: Mapping[str, float] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Guess:
    """Guess what a spec file at ``path`` would say of a model and a file of rows.

    Args:
        model: As on the command line: an ONNX file, ``package.module:function``, or a file of weights.
        data: CSV, Parquet or npz.
        path: Where the spec file will be; file names in it are relative to its folder.
        weights: Weights for ``package.module:function``.
        label: The column of the true class; guessed by its name, its place, and what the network knows of it.
        sensitive: Columns that tell groups apart; guessed by their names.
        fixed: Numbers that fill other inputs of an ONNX file, by name.
        tell: Called after each way to read the rows that was tried, with the best so far.

    Raises:
        SpecFileError: The model or the data cannot be read, or no columns fit the inputs of the network.
    """
    entry = model_entry(model, weights, path.parent)
    if fixed and "onnx" not in entry:
        raise SpecFileError(f"model '{model}': --fixed fills inputs of an ONNX file, and this is none; leave it out.")
    entry |= {"fixed": dict(fixed)} if fixed else {}
    rows: dict[str, Any] = {"file": relative(data, path.parent)}
    _check_file(Path(data), path)
    rows |= _separator(Path(data))
    bare = bare_spec(entry, path, data={"repair": rows})
    columns = read_columns(bare, "repair", bare.folder / rows["file"])
    if more := text_options(Path(data), columns, rows.get("separator", ",")):
        rows |= more
        columns = read_columns(bare_spec(entry, path, data={"repair": rows}), "repair", bare.folder / rows["file"])
    found: list[Guess] = []
    problems: list[RepairError] = []
    for own in _outputs(bare, entry):
        try:
            network = load_model(bare_spec(own, path, data={"repair": rows}), _shown_rows(columns, label))
            content = {"model": own, "data": {"repair": dict(rows)}, "split": {"held_out": HELD_OUT}}
            made = _of_arrays if Path(data).suffix == ".npz" else _of_table
            found.append(made(_Asked(content, network, columns, label, tuple(sensitive), path, tell)))
        except RepairError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    best = max(found, key=lambda guess: guess.known)
    names = list(best.content.get("inputs", [])) or [best.content["array"]["name"]]
    if 0 < repeated_share([columns[name] for name in names]) <= MOST_REPEATED:
        best.content["split"] = {"held_out": HELD_OUT, "together": True}
    return replace(best, candidates=_candidates(best.content, path))


def _check_file(data: Path, path: Path) -> None:
    if not data.is_file():
        what = "is a folder" if data.is_dir() else "is no file of rows" if data.exists() else "there is no such file"
        raise SpecFileError(f"data '{data}': {what}; expected CSV, Parquet or npz.")
    for one in (data, path):
        try:
            str(one).encode()
        except UnicodeEncodeError:
            shown = str(one).encode(errors="replace").decode()
            raise SpecFileError(f"'{shown}': the name is no text in UTF-8, as spec files are. Rename it.") from None


def _outputs(bare: Any, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The model of a spec; of an ONNX file with several outputs once with each, for the rows to tell which it is."""
    if "onnx" not in entry:
        return [entry]
    from .onnx_model import output_names

    names = output_names(bare.existing(("model", "onnx"), entry["onnx"]))
    return [entry] if len(names) < 2 else [entry, *(entry | {"output": name} for name in names)]


def _shown_rows(columns: Mapping[str, Any], label: str | None) -> Tensor | None:
    """A few rows of the first array that may be the inputs, for ONNX files that leave their sizes open."""
    arrays = [v for name, v in columns.items() if name != label and v.ndim > 1 and v.dtype.kind in "fiub" and len(v)]
    if not arrays:
        return None
    rows = torch.as_tensor(np.array(arrays[0][:SHOWN]))
    return rows.float() if rows.is_floating_point() else rows.long()


def _separator(data: Path) -> dict[str, str]:
    """What a CSV file has between its cells, and how it is encoded, where that is no comma and not UTF-8."""
    if data.suffix != ".csv":
        return {}
    found = encoding_of(data)
    with data.open(encoding=found.get("encoding", "utf-8-sig"), errors="replace", newline="") as file:
        first = file.readline()
    counts = {sign: len(next(csv.reader([first], delimiter=sign), [])) for sign in ",;\t|"}
    best = max(counts, key=lambda sign: counts[sign])
    return found if counts[best] == counts[","] else found | {"separator": best}


# -------------------------------------------------------------------------------------------- tables


def _of_table(asked: _Asked) -> Guess:
    """The column that may be the label of which the network knows most; the likeliest where it knows half as much."""
    columns = with_numbers(asked.columns)
    found: list[Guess] = []
    problems: list[RepairError] = []
    for chosen, how in label_columns(columns, asked.label):
        try:
            found.append(_with_label(replace(asked, content=dict(asked.content)), columns, chosen, how))
        except RepairError as error:
            problems.append(error)
    best = max(found, key=lambda guess: guess.known, default=None)
    if best is None or (problems and best.known <= KNOWN):
        raise problems[0]
    return best if best.known > max(KNOWN, LIKELIER * found[0].known) else found[0]


def _with_label(asked: _Asked, columns: Mapping[str, Any], chosen: str, how_label: str) -> Guess:
    content = asked.content
    left = [name for name in columns if name != chosen]
    groups, how_groups = group_columns(columns, chosen, asked.sensitive)
    width = _width(asked.network)
    ways_in = list(encodings(columns, left, groups, width))
    if not ways_in:
        raise SpecFileError(
            f"data '{content['data']['repair']['file']}': no choice of its columns fits the network, which reads "
            f"{width} inputs. Without the label '{chosen}' there are {len(left)}: {', '.join(left[:12])}."
            f"{said_of_unread(columns, left)} Leave out of "
            f"the file what the network does not read, name the label by --label, or write the spec by hand."
        )
    content["sensitive_features"] = list(groups)
    if where := rows_to_read(columns, [chosen, *groups]):
        content["data"] = {"repair": content["data"]["repair"] | {"where": where}}
        how_label += "; rows without a label or a group are left out"
    labels = [{"column": chosen} | ({} if order is None else {"classes": order}) for order in orders(columns[chosen])]
    ways = [{"inputs": inputs, "label": said} for inputs, said in itertools.product(ways_in, labels)]
    found, how, known = _best_way(asked, content, ways)
    said = f"{len(found['inputs'])} columns; {how}"
    return Guess(found, how_label, said, how_groups, known=known)


def _best_way(
    asked: _Asked, content: dict[str, Any], ways: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], str, float]:
    """The content with the way to read the rows that suits the network best, that in words, and what it knows of them.

    What counts is the share of rows that it is right on and the area under its ROC curve: a network that misreads its
    rows may say the most frequent label of all of them, and be right more often than one that was trained to find rare
    ones; one that says too little or too much of a label may tell rows apart as well.
    """
    right, known, chosen, problem = -1.0, -1.0, ways[0], ""
    for k, way in enumerate(ways):
        asked.tell(f"{way['label']['column']}: way {k + 1} of {len(ways)}" + (f", best {right:.1%} right" if k else ""))
        try:
            found = _right_and_known(open_spec(_checked(content | way | FILLER, asked.path)), asked.network)
        except RepairError as error:
            problem = problem or str(error)
            continue
        if sum(found) > right + known:
            (right, known), chosen = found, way
    if right < 0:
        raise SpecFileError(f"data: no way to read it fits the network. The first try said: {problem}")
    how = f"the network is right on {right:.1%} of the rows"
    how += f", the best of {len(ways)} ways to read them" if len(ways) > 1 else ""
    return content | chosen, how, known


def _width(network: nn.Module) -> int | None:
    """How many numbers a row of the network has, where its first layer says so."""
    layers = LayerGraph(network).layers
    if not layers or layers[0].kind != "linear":
        return None
    return int(dict(network.named_parameters())[layers[0].weights[0]].shape[1])


def _checked(content: dict[str, Any], path: Path) -> Any:
    from .reader import check_spec

    return check_spec(path, content)


def _right_and_known(spec: OpenSpec, network: nn.Module) -> tuple[float, float]:
    """Share of the rows that the network is right on; what it knows of labels, 0 for nothing and 1 for everything.

    That is the Gini coefficient, ``2 AUC - 1`` of each label against all others, mean over labels.
    """
    from scipy.stats import rankdata

    rows = spec.data.sets["repair"]
    outputs = PlainNetwork(network)(rows.inputs[:ROWS])
    assert rows.labels is not None
    if int(rows.labels.max()) >= outputs.shape[1]:
        raise SpecFileError(
            f"label: has {int(rows.labels.max()) + 1} classes, the network {outputs.shape[1]}. Name it by --label."
        )
    named = spec.data.classes
    if named and len(named) < outputs.shape[1]:
        raise SpecFileError(
            f"label: the rows have {len(named)} of the network's {outputs.shape[1]} classes ({', '.join(named[:6])}). "
            f"Give rows of every class, or write the spec by hand, with all classes in the order of the outputs."
        )
    labels, shares, known = rows.labels[:ROWS].numpy(), torch.softmax(outputs.double(), 1), []
    for k in np.unique(labels):
        own = labels == k
        area = (rankdata(shares[:, int(k)].numpy())[own].mean() - (own.sum() + 1) / 2) / max(1, (~own).sum())
        known.append(2 * float(area) - 1)
    return float((outputs.argmax(1).numpy() == labels).mean()), float(np.nan_to_num(np.mean(known), nan=-1.0))


# -------------------------------------------------------------------------------------------- arrays


def _of_arrays(asked: _Asked) -> Guess:
    columns, label = asked.columns, asked.label
    if asked.sensitive:
        raise SpecFileError(f"--sensitive {asked.sensitive[0]}: groups of npz files are named under array: columns:.")
    wide = {name: values for name, values in columns.items() if values.ndim >= 2 and values.dtype.kind in "fiub"}
    if not wide:
        raise SpecFileError(f"data: has no array of rows, (N, ...); arrays: {', '.join(columns)}.")
    name = max(wide, key=lambda one: wide[one][0].size * len(wide[one]))
    flat = [n for n, values in columns.items() if values.ndim == 1 and len(values) == len(wide[name])]
    whole = [n for n in flat if _are_classes(columns[n])]
    chosen = label or next((n for n in whole if n.lower() in LABELS), whole[0] if whole else None)
    if chosen not in flat:
        raise SpecFileError(
            f"data: has no array of {len(wide[name])} labels, one whole number or text a row; its arrays: "
            f"{', '.join(f'{n} {v.shape}' for n, v in list(columns.items())[:8])}. Name it by --label."
        )
    how = "as you said" if label else f"guessed: '{chosen}' has a class for each row"
    classes = orders(columns[chosen]) if columns[chosen].dtype.kind in "US" else [None]
    array: dict[str, Any] = {"name": name}
    embeds = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in asked.network.modules())
    array |= {"integers": True} if embeds else {}
    shape, bytes_ = wide[name].shape[1:], not embeds and float(wide[name].max()) > 1
    shapes = [None, [int(np.prod(shape))], [1, *shape]] if len(shape) > 1 else [None]
    ways = []
    for scale, size, order in itertools.product([None, [0, 255]] if bytes_ else [None], shapes, classes):
        said = {key: value for key, value in (("scale", scale), ("shape", size)) if value is not None}
        named = {} if order is None else {"classes": order}
        ways.append({"array": array | said, "label": {"column": chosen} | named})
    found, said_right, known = _best_way(asked, asked.content, ways)
    how_groups = "none; name columns of the array under array: columns:"
    return Guess(found, how, f"the array '{name}'; {said_right}", how_groups, known=known)


def _are_classes(values: Any) -> bool:
    """Whether an array ``(N,)`` has a class for each row: whole numbers, or texts."""
    if values.dtype.kind == "f":
        return bool((values == np.round(values)).all())
    return values.dtype.kind in "iubUS"


# ------------------------------------------------------------------------------------------- goals


def _candidates(content: dict[str, Any], path: Path) -> tuple[tuple[str, float], ...]:
    """Three goals that most people have, with what the network comes to today and a target that is better."""
    spec = open_spec(_checked(content | FILLER, path))
    rows = spec.data.sets["repair"]
    assert rows.labels is not None
    outputs = PlainNetwork(spec.model)(rows.inputs)
    answers, classes = outputs.argmax(1), outputs.shape[1]
    hits = {k: float((answers[rows.labels == k] == k).double().mean()) for k in torch.unique(rows.labels).tolist()}
    known = [set(one.labels.tolist()) for one in spec.data.sets.values() if one.labels is not None]
    everywhere = set.intersection(*known)  # a rare class may be in one part of the rows alone
    worst = [_class_name(content, k) for k in sorted(hits, key=lambda k: hits[k]) if k in everywhere]
    favorable = _class_name(content, classes - 1)
    gaps = [f"gap({_quoted(c)}, favorable={favorable}, kind=parity)" for c in content.get("sensitive_features", [])]
    measures = [*gaps[:1], "error_rate", *(f"recall({name})" for name in worst[:2]), *gaps[1:]]
    watched = content | FILLER | {"watch": measures}
    claims = measure_claims(open_spec(_checked(watched, path)))
    values = {claim.text: claim.value for claim in claims if claim.data == "repair"}
    found = [(text, float(values[text] or 0.0)) for text in measures if text in values]
    open_ = [one for one in found if one[1] != (1.0 if one[0].startswith("recall") else 0.0)]
    return tuple([*open_, *(one for one in found if one not in open_)][:3])  # what is at its best can wait


def _class_name(content: dict[str, Any], k: int) -> str:
    classes = content["label"].get("classes")
    return str(k) if classes is None else _quoted(classes[k])


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text.isdigit() or (PLAIN.fullmatch(text) and not iskeyword(text))
    return text if plain else json.dumps(text, ensure_ascii=False)


def target(measure: str, value: float) -> str:
    """A measure with a bound that its value does not meet yet."""
    if measure.startswith("recall"):
        return f"{measure} >= {min(1.0, value + 0.5 * (1 - value)):.2f}"
    return f"{measure} <= {0.5 * value:.3g}"
