"""The language of goals and bounds: what it reads, what it makes of it, and how it says what is wrong."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repairopt.errors import LanguageError, SpecificationError
from repairopt.interfaces.specfile.language import measures
from repairopt.interfaces.specfile.language.bind import bind_statement
from repairopt.interfaces.specfile.language.measures import BY_NAME, MEASURES, add_measures, reference, reference_text
from repairopt.interfaces.specfile.language.python_code import load_code
from repairopt.interfaces.specfile.language.row_sets import Data, RowSet
from repairopt.interfaces.specfile.language.statements import parse
from repairopt.specify import (
    ROWS,
    Argument,
    Measure,
    Region,
    change_limits,
    constraints,
    costs,
    fixing,
    keep_lowest,
    properties,
    region_goals,
    robustness,
)
from repairopt.specify.groups import calibration, gaps, odds, worst

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path) -> Data:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand(60, 3, generator=draw)
    inputs[:, 2] = (inputs[:, 2] > 0.5).float()
    labels = (inputs[:, 0] > 0.5).long()
    columns = {"age": np.arange(60), "sex": np.where(inputs[:, 2] > 0, "m", "f")}
    rows = RowSet(inputs, labels, columns)
    np.savez(tmp_path / "rows.npz", matrix=np.eye(2), lower=-np.ones(2), upper=np.ones(2))
    (tmp_path / "measures.py").write_text("def overconfidence(predict, data):\n    return float(len(data.inputs))\n")
    sets = {name: rows for name in ("repair", "guard", "reported")}
    region = Region.label(inputs[0], 0.1, 1, 2)
    return Data(sets, ("<=50K", ">50K"), ("a", "b", "sex"), tmp_path, (region,))


def error(text: str) -> tuple[str, str]:
    """The reason, and the text from the character that the caret points at."""
    with pytest.raises(LanguageError) as caught:
        parse(text)
    lines = str(caught.value).splitlines()
    assert lines[-2][4:] == caught.value.text
    return caught.value.reason, caught.value.text[lines[-1].index("^") - 4 :]


def made_by_the_library() -> set[str]:
    """Every class of a property or constraint that users can make."""
    found = {"CallableProperty"}  # which a function of the user becomes
    modules = (properties, costs, gaps, odds, worst, calibration, constraints, change_limits, robustness, keep_lowest)
    for module in (*modules, region_goals, fixing):
        own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        found |= {c.__name__ for c in own if dataclasses.is_dataclass(c) and not c.__name__.startswith("_")}
    hidden = {"Bound", "ShareRows", "KeepRegions"}  # what bounded properties, regions and goals become
    return found - hidden - {"LabelledPoints"}  # what several share


def test_the_table_covers_every_property_and_constraint_of_the_library():
    covered = {name.strip() for measure in MEASURES for name in measure.makes.split(",")}
    assert covered == made_by_the_library()


def test_every_measure_is_the_declaration_of_its_class():
    for measure in MEASURES:
        declared = next(one for one in vars(measure.kind)["measures"] if one.name == measure.name)
        assert dataclasses.replace(declared, kind=measure.kind, makes=measure.makes) == measure


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_example_parses_binds_and_makes_what_the_table_says(measure, data):
    statement = parse(measure.example)
    assert statement.measure is measure
    made = type(bind_statement(statement, data).item).__name__
    assert made in measure.makes or measure.makes == "CallableProperty"


@pytest.mark.parametrize("argument", [a for m in MEASURES for a in m.arguments if a.choices], ids=lambda a: a.name)
def test_choices_of_the_table_are_those_of_the_library(argument, data):
    if argument.name == "score":
        assert set(argument.choices) == set(gaps.SCORES)
    owner = next(m for m in MEASURES if argument in m.arguments)
    for choice in argument.choices:
        given = {"column": "sex", "label": '">50K"', **({"kind": "kind=sampled"} if argument.name == "rest" else {})}
        rest = [given[a.name] for a in owner.arguments if a.name in given]
        relation = f" {owner.relations[0]} {'0.1' if owner.unit != 'rows' else '1'}"
        bind_statement(f"{owner.name}({', '.join([*rest, f'{argument.name}={choice}'])}){relation}", data)


def test_reference_names_every_measure_argument_and_unit_and_is_the_page_in_docs():
    text = reference_text()
    for measure in MEASURES:
        assert measure.name in text
        assert measure.unit in text
        assert all(argument.meaning.split()[0] in text for argument in measure.arguments)
    assert reference() in (PROJECT / "docs" / "language.md").read_text(encoding="utf-8")


def test_statement_of_the_readme():
    statement = parse('gap(sex, favorable=">50K", kind=parity) <= 0.05')
    assert statement.arguments["favorable"] == ">50K"
    assert statement.arguments["score"] == "max_difference"  # as in fairlearn
    assert statement.bounds == (("<=", 0.05),)
    assert statement.name == 'gap(sex, favorable=">50K", kind=parity)'


def test_number_may_stand_first_and_lines_may_break():
    assert parse("0.55 <= \n recall(1)").bounds == ((">=", 0.55),)
    assert parse("-1 <= output([1, -1]) <= 2").bounds == ((">=", -1), ("<=", 2))


@pytest.mark.parametrize(
    ("text", "reason", "place"),
    [
        ("recal(1) >= 0.5", "did you mean 'recall'?", "recal(1)"),
        ("gap(sex, kind=part) <= 0.1", "one of parity, opportunity, odds, sampled", "part)"),
        ("gap(sex, knd=parity) <= 0.1", "did you mean 'kind'?", "knd"),
        ("recall >= 0.5", "needs 'label'", "recall"),
        ("recall(1) > 0.5", "choose from <=, >=, ==", "> 0.5"),
        ("recall(1) <= 0.5", "bounded from below", "0.5"),
        ("gap(sex) >= 0.5", "bounded from above", "0.5"),
        ("accuracy_drop = 0.01", "a single = gives an argument", "= 0.01"),
        ("gap(sex) ≤ 0.1", "write <=", "≤"),
        ("accuracy_drop <= 1%", "0.05 for 5 %", "%"),
        ("accuracy >= 90", "a share; expected 0 to 1", "90"),
        ("flips(guard) <= 0.5", "a whole number from 0", "0.5"),
        ("flips(guard) == 3", "== is for 0 alone", "3"),
        ("flips(guard == 0", "never closed", "(guard"),
        ("gap(hours-per-week) <= 0.1", "need quotes", "hours-per"),
        ("gap(sex, sex, kind=parity, column=age) <= 0.1", "given twice", "column=age"),
        ("max_change(1) <= 1", "takes no arguments", "1)"),
        ("fix(reported) <= 1", "stands alone", "1"),
        ("0.1 <= accuracy_drop <= 0.2", "bounded", "0.1"),
        ("accuracy >= 1e999", "not a number", "1e999"),
        ("gap(sex, where=age) <= 0.1", "a condition on columns", "age)"),
        ('gap("ü", kind=xx) <= 1', "one of parity", "xx)"),
        ('custom("os.system") <= 1', "package.module:function", '"os.system"'),
        ("gap(__import__('os').system('x')) <= 1", "is no value", "__import__"),
        ("", "nothing is written", ""),
        ("3 <= 4", "one measure", "3"),
    ],
)
def test_errors_point_at_the_character_and_say_what_is_allowed(text, reason, place):
    said, pointed = error(text)
    assert reason in said
    assert pointed.startswith(place)


@pytest.mark.parametrize("text", ["(" * 3000, "a" * 3000, "\x00", "lambda: 0", "[" * 150 + "]" * 150 + " <= 1"])
def test_nonsense_is_a_language_error(text):
    with pytest.raises(LanguageError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "reason", "place"),
    [
        ("gap(sexx) <= 0.1", "there is no column 'sexx'; did you mean 'sex'?", "sexx"),
        ('recall(">5K") >= 0.1', "there is no class '>5K'; did you mean '>50K'?", '">5K"'),
        ("flips(gard) == 0", "there is no set of rows 'gard'; did you mean 'guard'?", "gard"),
        ("accuracy(where=agee > 3) >= 0.1", "there is no column 'agee'", "agee"),
        ("accuracy(where=age > 300) >= 0.1", "no row of 'repair'", "age > 300"),
        ('accuracy(where=age == "x") >= 0.1', "holds numbers", "age =="),
        ('custom("nosuch:f") <= 1', "cannot be imported", '"nosuch'),
        ('custom("measures:f") <= 1', "it has: overconfidence", '"measures'),
        ('linear_rows("no.npz")', "cannot be read", '"no.npz"'),
        ("gap(sex, kind=odds, score=kl) <= 0.1", "max_difference and difference", "kl"),
    ],
)
def test_errors_of_the_data_point_at_the_argument(text, reason, place, data):
    with pytest.raises(LanguageError) as caught:
        bind_statement(text, data)
    assert reason in caught.value.reason
    assert caught.value.text[caught.value.position :].startswith(place)


def test_values_come_back_in_the_unit_of_the_statement(data):
    zero = lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2)  # noqa: E731  # always the second class
    share = float(data.sets["repair"].labels.float().mean())
    for text, value in (("accuracy >= 0.1", share), ('recall(">50K") >= 0.55', 1.0), ("error_rate <= 0.5", 1 - share)):
        bound = bind_statement(text, data)
        assert bound.shown(float(bound.item.value(zero))) == pytest.approx(value)
    recall = bind_statement('recall(">50K") >= 0.55', data).as_constraint()
    assert recall.limit == pytest.approx(0.45)
    assert bind_statement("certified_radius(guard, first=5) >= 0.1", data).item.target == pytest.approx(10)
    assert bind_statement("certified_radius(guard, first=5) >= 0.1", data).shown(4.0) == 0.25


def test_conditions_choose_rows_and_share_their_tensor(data):
    first = bind_statement('accuracy(where=age >= 30 and sex == "m") >= 0.1', data)
    again = bind_statement('recall(">50K", where=age >= 30 and sex == "m") >= 0.1', data)
    assert set(first.rows.columns["sex"]) == {"m"}
    assert min(first.rows.columns["age"]) >= 30
    assert first.rows is again.rows
    chosen = bind_statement("accuracy(where=20 <= age < 22) >= 0.1", data)
    assert list(chosen.rows.columns["age"]) == [20, 21]


def test_a_bound_is_no_goal(data):
    with pytest.raises(LanguageError, match="a bound, not a goal"):
        bind_statement("max_change <= 1", data).as_goal()


@pytest.mark.parametrize(
    ("text", "target"),
    [("flips(guard) <= 6", 6), ("unfixed(guard) == 0", 0), ("output([1, -1]) >= 0", 0), ("output_change <= 2", 0)],
)
def test_a_bound_on_rows_may_be_the_goal(data, text, target):
    bound = bind_statement(text, data)
    goal = bound.as_goal()
    assert goal.constraint is bound.item
    assert goal.name == bound.item.name
    assert goal.target * len(goal.inputs) == pytest.approx(target)


def test_flips_allow_the_number_that_is_written(data):
    bound = bind_statement("flips(guard) <= 6", data).as_constraint()
    assert bound.allowed == 6
    wish = bind_statement("fix(reported, margin=2, price=0.5)", data)
    assert wish.wish
    assert (wish.item.margin, wish.item.weight) == (2.0, 0.5)


@dataclasses.dataclass(frozen=True, eq=False)
class Unsure:
    """A class of another package, with a measure."""

    inputs: torch.Tensor
    below: float
    target: float
    name: str

    measures = (
        Measure(
            "unsure",
            "Share of unsure answers.",
            "unsure <= 0.1",
            arguments=(Argument("below", "number", "limit", 0.8), *ROWS),
        ),
    )

    def value(self, predict):
        return (predict(self.inputs).softmax(-1).amax(-1) < self.below).double().mean()


@pytest.fixture
def unsure():
    add_measures(Unsure)
    yield
    del BY_NAME["unsure"]


def test_measures_of_other_packages_are_read_bound_and_listed(unsure, data):
    goal = bind_statement("unsure(below=0.9, where=age >= 10) <= 0.2", data).as_goal()
    assert (type(goal), goal.below, goal.target, len(goal.inputs)) == (Unsure, 0.9, 0.2, 50)
    assert goal.name == "unsure(below=0.9, where=age >= 10)"
    assert error("unsure(0.9) <= 20") == ("unsure is a share; expected 0 to 1, 0.05 for 5 %", "20")
    assert (
        "| `unsure` | from above: <= | share, 0 to 1 | Share of unsure answers. | below=0.8, data=repair" in reference()
    )


def test_measures_of_other_packages_come_by_entry_points(monkeypatch, data):
    point = SimpleNamespace(load=lambda: Unsure)
    monkeypatch.setattr(measures, "entry_points", lambda group: [point] if group == "repairopt.measures" else [])
    measures.load_measures.cache_clear()
    try:
        assert parse("unsure <= 0.1").measure.kind is Unsure
    finally:
        BY_NAME.pop("unsure", None)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ((), "declares no measures"),
        ((Measure("recall", "", ""),), "MissRate has a measure 'recall' already; choose another name"),
        (
            (Measure("other", "", "", arguments=(Argument("a", "word", ""),)),),
            "argument 'a' has the kind 'word'; choose",
        ),
    ],
)
def test_measures_that_cannot_be_added(declared, message):
    with pytest.raises(SpecificationError, match=message):
        add_measures(type("Other", (), {"measures": declared}))


@pytest.mark.parametrize(
    "text",
    [
        "accuracy_drop <= 2",
        "gap(sex) <= 5",
        "equalized_odds_difference(sex) <= 1.5",
        "demographic_parity_difference(sex) <= 20",
        "gap(sex, kind=odds) <= 10",
    ],
)
def test_limits_that_every_network_keeps_are_errors(text):
    rows = RowSet([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1], {"sex": ["f", "m", "m", "f"]})
    with pytest.raises(LanguageError, match="holds of every network"):
        bind_statement(text, Data({"repair": rows}))


def test_modules_of_one_name_in_two_folders_are_not_taken_for_each_other(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "measures_of_mine.py").write_text(f"def which(predict, data):\n    return '{name}'\n")
    both = [load_code("measures_of_mine:which", tmp_path / name) for name in ("first", "second", "first")]
    assert [function(None, None) for function in both] == ["first", "second", "first"]
    assert load_code("json:dumps", tmp_path / "first")([1]) == "[1]"
