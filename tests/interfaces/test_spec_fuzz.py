"""Mutated specs, statements and tables: each is read, or refused with an error of the library. Seeded."""

from __future__ import annotations

import random
import traceback

import pytest
import yaml
from fuzzing import rounds
from small_spec import SPEC, write_spec

from repairopt.errors import LanguageError, RepairError
from repairopt.interfaces.specfile.language.measures import BY_NAME
from repairopt.interfaces.specfile.language.statements import parse
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.specify import REQUIRED

pytestmark = pytest.mark.slow

ODD = [
    *("null", "true", "[]", "{}", '""', "x", "-1", "0", "1e400", ".nan", ".inf", "[[1]]", "2020-01-01", "*a", "&a 1"),
    *(
        "!!python/name:os.system",
        "!x y",
        "? [a]",
        "{a: {b: {c: [1, {d: 2}]}}}",
        "9" * 400,
        "é\u202e",
        "'",
        '"',
        "|",
        ">",
    ),
    *("0x1F", "1_000", "12:30:45", "~", "<<", "- - -", "%", "@", "`", "\t", "..", "0:0", "400:", ":5", "5:2", "-1:-5"),
]
VALUES = [
    None,
    True,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    [[1]],
    {"a": 1},
    10**400,
    "\x00",
    ["a", 1],
]


def paths(tree, at=()):
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from paths(item, (*at, key))


def mutated_text(draw):
    lines = SPEC.splitlines()
    for _ in range(draw.randint(1, 3)):
        i = draw.randrange(len(lines))
        way = draw.randrange(6)
        if way == 0:
            del lines[i]
        elif way == 1:
            lines.insert(i, lines[draw.randrange(len(lines))])
        elif way == 2:
            lines[i] = f"{lines[i].partition(':')[0]}: {draw.choice(ODD)}"
        elif way == 3:
            at = draw.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + draw.choice(ODD) + lines[i][at:]
        elif way == 4:
            lines[i] = " " * draw.randrange(6) + lines[i].strip()
        else:
            words = lines[i].split(" ")
            words[draw.randrange(len(words))] = draw.choice(ODD)
            lines[i] = " ".join(words)
        lines = lines or [""]
    return "\n".join(lines)


def mutated_tree(draw):
    tree = yaml.safe_load(SPEC)
    for _ in range(draw.randint(1, 2)):
        at = draw.choice([*paths(tree)])
        inside = tree
        for key in at[:-1]:
            inside = inside[key]
        way = draw.randrange(4)
        if way == 0:
            del inside[at[-1]]
        elif way == 1 and isinstance(inside, dict):
            inside[draw.choice(["x", "", "seed", "array", "solver", "method", 3])] = draw.choice(VALUES)
        elif way == 2 and isinstance(inside, dict):
            inside[draw.choice([*inside])] = inside[at[-1]]
        else:
            inside[at[-1]] = draw.choice(VALUES)
    return tree


FITTING = {
    "column": ["group", "merit"],
    "label": ['"yes"', '"no"', "0", "1", "yes"],
    "labels": ['["yes"]', '["no", "yes"]', "[]"],
    "number": ["0", "0.1", "1", "-2", "1e9"],
    "count": ["1", "10", "0", "100", "2.5"],
    "data": ["repair", "held_out", "guard", "nothing"],
    "filter": ["merit > 0.5", 'group == "men"', "merit > 99", 'decision != "no"', "group > 3"],
    "values": ['["women", "men"]', '["women"]', "[1]", "[]"],
    "output": ["0", "yes", "[1, -1]", "[1]"],
}
WRONG = [*("nothing", "True", "None", "x=1", '""', "[[1]]", "-", "f(x)", "1e400", "...", "group.x", "lambda: 0")]


def statement(draw):
    """A measure with arguments that mostly are of the right kind, compared with mostly a number."""
    measure = BY_NAME[draw.choice([*BY_NAME])]
    given = []
    for argument in measure.arguments:
        if argument.default is REQUIRED or draw.random() < 0.3:
            fitting = [*argument.choices] if argument.kind == "choice" else FITTING.get(argument.kind, WRONG)
            value = draw.choice(fitting if draw.random() < 0.9 else WRONG)
            given.append(value if argument.kind == "filter" and draw.random() < 0.3 else f"{argument.name}={value}")
    relation = draw.choice([*measure.relations, "<=", ">=", "=="]) if measure.relations or draw.random() < 0.1 else ""
    number = draw.choice(["0", "0.05", "0.9", "1", "10", "-1", "1e400", "x"]) if relation else ""
    return f"{measure.name}({', '.join(given)}) {relation} {number}".replace("()", draw.choice(["", "()"]))


def refuse(make, what, raw):
    try:
        make()
    except RepairError:
        return 1
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raw.append(f"{type(error).__name__}: {error} ({where.filename}:{where.lineno}) by\n{what}")
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    write_spec(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_no_mutated_text_ends_in_a_raw_error(folder):
    draw, raw, refused = random.Random(1), [], 0
    for _ in range(rounds(300)):
        text = mutated_text(draw)
        (folder / "m.yaml").write_text(text, encoding="utf-8", errors="replace")
        refused += refuse(lambda: open_spec(read_spec(folder / "m.yaml")), text, raw)
    assert not raw, "\n\n".join(raw)
    assert refused > rounds(150)


@pytest.mark.filterwarnings("ignore")
def test_no_mutated_tree_ends_in_a_raw_error(folder, monkeypatch):
    draw, raw, refused = random.Random(2), [], 0
    monkeypatch.chdir(folder)
    for _ in range(rounds(250)):
        tree = mutated_tree(draw)
        refused += refuse(lambda tree=tree: open_spec(tree), repr(tree), raw)
    assert not raw, "\n\n".join(raw)
    assert refused > rounds(120)


@pytest.mark.filterwarnings("ignore")
def test_any_statement_is_measured_or_refused(folder, monkeypatch):
    draw, raw, refused = random.Random(3), [], 0
    monkeypatch.chdir(folder)
    usual = yaml.safe_load(SPEC)
    for _ in range(rounds(250)):
        text = statement(draw)
        try:
            parse(text)
        except LanguageError:
            refused += 1
            continue
        except Exception as error:
            raw.append(f"{type(error).__name__}: {error} by {text}")
            continue
        role = draw.choice(["goal", "bounds", "watch"])
        content = usual | ({"goal": text} if role == "goal" else {role: [text]})
        refused += refuse(lambda content=content: measure_claims(open_spec(content)), text, raw)
    assert not raw, "\n\n".join(raw)
    assert 0 < refused < rounds(250)


@pytest.mark.filterwarnings("ignore")
def test_no_mutated_table_ends_in_a_raw_error(folder):
    draw, raw, refused = random.Random(4), [], 0
    whole = (folder / "rows.csv").read_text().splitlines()[:40]
    spec = read_spec(folder / "spec.yaml").spec.model_dump(mode="json", exclude_none=True)
    spec["data"] = {"repair": {"file": "t.csv"}, "guard": {"file": "t.csv"}}
    cells = [
        "",
        "NA",
        "nan",
        "x",
        "1e400",
        '"',
        ",",
        ",,",
        "\t",
        "women ",
        "\x00",
        "'",
        "yes",
        "-",
        "1,5",
        "ü",
        "\ufeff",
        "#",
    ]
    for _ in range(rounds(150)):
        lines = list(whole)
        for _ in range(draw.randint(1, 3)):
            i = draw.randrange(len(lines))
            parts = lines[i].split(",")
            parts[draw.randrange(len(parts))] = draw.choice(cells)
            lines[i] = ",".join(parts) if draw.random() < 0.8 else draw.choice(["", lines[i] + ",", lines[0]])
        text = "\n".join(lines)
        (folder / "t.csv").write_text(text, encoding=draw.choice(["utf-8", "utf-8", "utf-16"]))
        content = spec | {"model": {**spec["model"], "weights": str(folder / "weights.safetensors")}}
        content["data"] = {name: {"file": str(folder / "t.csv")} for name in ("repair", "guard")}
        refused += refuse(lambda content=content: measure_claims(open_spec(content)), text, raw)
    assert not raw, "\n\n".join(raw)
    assert refused > 0
