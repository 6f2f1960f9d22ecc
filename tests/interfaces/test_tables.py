"""Tables of rows as people have them: missing cells, words such as NA, odd lines, encodings; CSV and Parquet alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from repairopt.errors import SpecFileError
from repairopt.interfaces.specfile.claim_rows import claim_table
from repairopt.interfaces.specfile.measure import measure_claims
from repairopt.interfaces.specfile.networks import mlp
from repairopt.interfaces.specfile.opened import open_spec
from repairopt.interfaces.specfile.reader import read_spec
from repairopt.patches import save_weights

pandas = pytest.importorskip("pandas")

SPEC = """\
model: {factory: "repairopt.interfaces.specfile.networks:mlp", arguments: {sizes: [2, 2]}, weights: w.safetensors}
data: {repair: {file: FILE}}
inputs: {v: , country: {categories: ["NA", "ZA"]}}
label: {column: ok, classes: ["no", "yes"]}
goal: error_rate <= 0.1
"""
HEAD = "v,country,ok\n"
ROWS = HEAD + "0.1,NA,no\n0.2,ZA,yes\n0.3,NA,yes\n0.4,ZA,no\n"


def opened(folder: Path, rows: str | bytes = ROWS, spec: str = SPEC, name: str = "r.csv", where: str = ""):
    save_weights(mlp(sizes=[2, 2]), folder / "w.safetensors")
    (folder / "r.csv").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="Parquet comes with the extra 'tables'")
        table = pandas.read_csv(folder / "r.csv", keep_default_na=False, na_values=[""])
        table.to_parquet(folder / name)
    (folder / "s.yaml").write_text(spec.replace("FILE", name + where))
    return open_spec(folder / "s.yaml")


def inputs(*args, **options) -> list[list[float]]:
    return [[round(v, 3) for v in row] for row in opened(*args, **options).data.sets["repair"].inputs.tolist()]


def refused(*args, **options) -> str:
    with pytest.raises(SpecFileError) as caught:
        opened(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize("word", ["NA", "None", "null", "n/a", "nan", "NULL", "<NA>"])
@pytest.mark.parametrize("fill", ["", ', fill: "ZA"'])
def test_a_listed_word_is_a_category(tmp_path, name, word, fill):
    spec = SPEC.replace('["NA", "ZA"]', f'["{word}", "ZA"]{fill}')
    assert [row[1] for row in inputs(tmp_path, ROWS.replace("NA", word), spec, name)] == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize("word", ["NA", "null", ""])
def test_a_word_that_is_not_listed_is_missing(tmp_path, name, word):
    rows = ROWS.replace("NA", "US").replace("0.3,US", f"0.3,{word}")
    spec = SPEC.replace('["NA", "ZA"]', '["US", "ZA"]')
    assert "has 1 missing values, first in row 2; give fill:" in refused(tmp_path, rows, spec, name)
    assert inputs(tmp_path, rows, spec.replace('"ZA"]', '"ZA"], fill: ZA'), name)[2] == [0.3, 1.0]


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize("word", ["NA", "None", "n/a"])
def test_a_class_may_be_called_by_a_word(tmp_path, name, word):
    spec = SPEC.replace('"no", "yes"', f'"{word}", "yes"')
    found = opened(tmp_path, ROWS.replace(",no", f",{word}"), spec, name).data.sets["repair"]
    assert found.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "classes", "word"),
    [
        ("r.csv", 'classes: ["no", "yes"]', ""),
        ("r.csv", 'classes: ["no", "yes"]', "NA"),
        ("r.csv", "", ""),
        ("r.csv", "", "NA"),
        ("r.parquet", 'classes: ["no", "yes"]', ""),
        ("r.parquet", 'classes: ["no", "yes"]', "NA"),
        ("r.parquet", "", ""),  # a column of numbers holds no word there
    ],
)
def test_a_missing_label_is_counted_and_may_be_left_out(tmp_path, name, classes, word):
    rows = ROWS.replace("0.2,ZA,yes", f"0.2,ZA,{word}")
    rows = rows if classes else rows.replace("no", "0").replace("yes", "1")
    spec = SPEC.replace('classes: ["no", "yes"]', classes)
    said = refused(tmp_path, rows, spec, name)
    assert "line 4: label 'ok' of " in said
    assert "is missing in 1 of 4 rows, first in row 1" in said
    kept = 'where: "ok in [\\"no\\", \\"yes\\"]"' if classes else "where: ok >= 0"
    assert len(opened(tmp_path, rows, spec, name, f", {kept}").data.sets["repair"]) == 3


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_groups_by_word_and_missing_groups(tmp_path, name):
    spec = SPEC.replace("error_rate <= 0.1", "gap(country) <= 0.1")
    assert opened(tmp_path, ROWS, spec, name).goal.item.samples.names == ("NA", "ZA")
    spec = spec.replace('"ZA"]', '"ZA"], fill: "ZA"')
    rows = ROWS + "0.5,,no\n0.6,,yes\n"
    said = refused(tmp_path, rows, spec, name)
    assert "the group of 2 of 6 rows is missing, the first is row 4" in said
    chosen = opened(tmp_path, rows, spec.replace("gap(country", 'gap(country, values=["NA", "ZA"]'), name)
    assert chosen.goal.item.samples.left_out == 2
    claims = measure_claims(chosen)
    assert (claims[0].rows, claims[0].left_out) == (4, 2)
    assert "(2 rows are in no group compared)" in claim_table(claims)
    assert len(opened(tmp_path, rows, spec, name, ', where: country != "US"').data.sets["repair"]) == 4


@pytest.mark.parametrize(
    "rows",
    [
        "v,country,ok\n0.1,NA,no,\n0.2,ZA,yes,\n",
        "v,country,ok,\n0.1,NA,no,\n0.2,ZA,yes,\n",
        "v,country,ok,\n0.1,NA,no\n0.2,ZA,yes\n",
        "v,country,ok\n0.1,NA,no\n0.2,ZA,yes,,,\n",
        "\n\nv,country,ok\n0.1,NA,no, \n\n0.2,ZA,yes\n  \n",
        "v, country, ok\r\n0.1, NA, no,\r\n0.2, ZA, yes,\r\n",
    ],
)
def test_a_separator_at_the_end_of_lines_shifts_nothing(tmp_path, rows):
    found = opened(tmp_path, rows).data.sets["repair"]
    assert (found.inputs[:, 1].tolist(), found.labels.tolist()) == ([0.0, 1.0], [0, 1])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (HEAD + "0.1,NA,no\n0.2,ZA\n", "r.csv', line 3: has 2 cells, its first line 3"),
        (HEAD + "0.1,NA,no\n0.2,ZA,yes,7\n", "line 3: has 4 cells, its first line 3"),
        (HEAD + '0.1,"N\nA",no\n0.2\n', "line 4: has 1 cells"),
        ("v,country,ok\n0.1,1,NA,no\n0.2,2,ZA,yes\n", "line 2: has 4 cells"),
        ("v,v,country,ok\n0.1,1,NA,no\n", "several columns are called 'v'"),
        ("v,country,country,ok\n0.1,NA,ZA,no\n", "several columns are called 'country'"),
        (HEAD, "has no rows"),
        ("v;country;ok\n0.1;NA;no\n", "Give the file separator: ';'"),
        (HEAD + '"0,1",NA,no\n"0,2",ZA,yes\n', 'holds numbers with commas (0,1); give its file decimal: ","'),
        ((HEAD + "0.1,Curaçao,no\n").encode("cp1252"), "Give its encoding:"),
    ],
)
def test_odd_lines_are_refused_with_file_and_line(tmp_path, rows, said):
    assert said in refused(tmp_path, rows)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (ROWS.replace(",", ";").replace("0.", "0,"), ', separator: ";", decimal: ","'),
        (ROWS.replace(",", "|"), ', separator: "|"'),
        (ROWS.replace(",", "\t"), ', separator: "\\t"'),
        (ROWS.encode("utf-16"), ", encoding: utf-16"),
        (ROWS.encode("utf-8-sig"), ""),
        (ROWS.replace("ZA", "Å").encode("cp1252"), ", encoding: cp1252"),
    ],
)
def test_separator_decimal_and_encoding(tmp_path, text, where):
    spec = SPEC.replace('"ZA"', '"\\xC5"') if "1252" in where else SPEC
    assert inputs(tmp_path, text, spec, where=where) == inputs(tmp_path)


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [
        (', separator: ";;"', "r.csv", "at most 1 character"),
        (', decimal: ","', "r.csv", "needs another separator"),
        (', decimal: "x"', "r.csv", "is not allowed"),
        (", encoding: klingon", "r.csv", "unknown encoding"),
        (', separator: ";"', "r.parquet", "separator is for CSV files"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, where, name, said):
    assert said in refused(tmp_path, ROWS, where=where, name=name)


def test_options_that_nobody_gave_do_not_change_the_hash_of_a_spec(tmp_path):
    opened(tmp_path)
    plain = read_spec(tmp_path / "s.yaml")
    assert set(plain.spec.model_dump(mode="json")["data"]["repair"]) == {"file", "rows", "where"}
    (tmp_path / "s.yaml").write_text(SPEC.replace("FILE", "r.csv, encoding: cp1252"))
    assert read_spec(tmp_path / "s.yaml").hash != plain.hash


def test_numbers_with_words_are_as_pandas_reads_them(tmp_path):
    found = inputs(tmp_path, ROWS.replace("0.3", "n/a"), SPEC.replace("{v: ,", "{v: {fill: 0.7},"))
    assert [row[0] for row in found] == [0.1, 0.2, 0.7, 0.4]
    spec = SPEC.replace("{v: ,", "{v: {fill: 0.7},")
    assert len(opened(tmp_path, ROWS.replace("0.3", "n/a"), spec, where=", where: v != 7").data.sets["repair"]) == 3


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize("cell", ["12k", "0x1F", "True", "1 000", "~3", "12%"])
def test_single_texts_in_a_column_of_numbers_are_named(tmp_path, name, cell):
    rows = "v,country,ok\n" + "".join(f"0.{k},ZA,no\n" for k in range(1, 9)) + f"{cell},NA,yes\n"
    message = refused(tmp_path, rows, name=name)
    assert f"'v' of '{tmp_path / name}' holds numbers, and 1 texts, such as '{cell}' in row 8" in message


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999"])
def test_infinite_numbers_are_named_by_column_and_row_of_the_file(tmp_path, cell):
    rows = "v,country,ok\n0.1,NA,yes\n0.2,ZA,no\n0.3,ZA,no\n" + f"{cell},ZA,yes\n"
    message = refused(tmp_path, rows, where=", where: country == 'ZA'")
    assert f"column 'v' of '{tmp_path / 'r.csv'}' holds NaN or infinite numbers in 1 rows, first in row 3" in message
    assert inputs(tmp_path, rows, where=", where: country == 'NA'") == [[0.1, 0.0]]  # such rows may be left out


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize(("mark", "stated"), [("?", ""), ("-9", "missing: [-9]"), ("unknown", "missing: [x, unknown]")])
def test_marks_of_missing_numbers_are_filled(tmp_path, name, mark, stated):
    rows, how = ROWS.replace("0.3", mark), ", ".join(filter(None, ["fill: 0.7", stated]))
    assert [row[0] for row in inputs(tmp_path, rows, SPEC.replace("{v: ,", f"{{v: {{{how}}},"), name)] == [
        0.1,
        0.2,
        0.7,
        0.4,
    ]
    assert "give fill:" in refused(tmp_path, rows, SPEC.replace("{v: ,", f"{{v: {{{stated}}},"), name)


@pytest.mark.parametrize("kind", ["categories", "one_hot"])
@pytest.mark.parametrize(("mark", "stated"), [("?", ""), ("99", "missing: [99]"), ("-", 'missing: ["-"]')])
def test_marks_of_missing_texts_are_filled(tmp_path, kind, mark, stated):
    rows, how = ROWS.replace("NA", mark), ", ".join(filter(None, ['"US", "ZA"], fill: ZA', stated]))
    spec = SPEC.replace('categories: ["NA", "ZA"]', f"{kind}: [{how}")
    assert all(row[1:] == ([1.0] if kind == "categories" else [0.0, 1.0]) for row in inputs(tmp_path, rows, spec))


def test_a_mark_that_is_listed_is_a_category(tmp_path):
    spec = SPEC.replace('["NA", "ZA"]', '["?", "ZA"]')
    assert [row[1] for row in inputs(tmp_path, ROWS.replace("NA", "?"), spec)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("how", "rare"),
    [
        ('one_hot: ["ZA", "US"], other: ignore', [0.0, 0.0]),
        ('one_hot: ["ZA", "US"], other: US', [0.0, 1.0]),
        ('categories: ["ZA", "rest"], other: rest', [1.0]),
        ('one_hot: ["ZA", "ignore"], other: ignore', [0.0, 1.0]),
    ],
)
def test_unlisted_values_become_what_other_says(tmp_path, how, rare):
    found = inputs(tmp_path, ROWS.replace("NA", "Chad"), SPEC.replace('categories: ["NA", "ZA"]', how))
    assert [row[1:] == rare for row in found] == [True, False, True, False]


@pytest.mark.parametrize("how", ['categories: ["ZA"], other: ignore', 'one_hot: ["ZA"], other: US', "other: 3"])
def test_other_is_one_of_the_listed(tmp_path, how):
    assert "other is one of" in refused(tmp_path, ROWS, SPEC.replace('categories: ["NA", "ZA"]', how))


def test_an_unlisted_value_says_what_helps(tmp_path):
    assert "other: says what such values become" in refused(tmp_path, ROWS.replace("NA", "Chad"))


NUMBERED = HEAD + "0.1,NA,0\n0.2,ZA,1\n0.3,NA,1\n0.4,ZA,0\n"


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        ("[0, 1]", [0, 1, 1, 0]),
        ("[1, 0]", [1, 0, 0, 1]),
        ('["1", "0"]', [1, 0, 0, 1]),
        ('["no", "yes"]', [0, 1, 1, 0]),
    ],
)
def test_numbers_are_classes_by_name_where_these_are_numbers(tmp_path, name, classes, labels):
    spec = SPEC.replace('["no", "yes"]', classes)
    assert opened(tmp_path, NUMBERED, spec, name).data.sets["repair"].labels.tolist() == labels


@pytest.mark.parametrize("classes", ["[10, 20]", "[1, 2]", '["1", "2"]', "[0.5, 1]"])
def test_a_number_that_is_no_listed_one_is_refused(tmp_path, classes):
    said = refused(tmp_path, NUMBERED, SPEC.replace('["no", "yes"]', classes))
    assert "'ok'" in said or "label" in said
    if "." not in classes:
        assert "values that are not listed, such as '0'" in said


@pytest.mark.parametrize(("first", "second"), [("01", "1"), ("007", "7"), ("00", "0"), ("1.50", "1.5"), ("-01", "01")])
def test_codes_of_digits_are_texts_where_the_spec_lists_them(tmp_path, first, second):
    """Read as numbers they are one and the same, and every row got the second category."""
    rows, spec = (
        ROWS.replace("NA", first).replace("ZA", second),
        SPEC.replace('["NA", "ZA"]', f'["{first}", "{second}"]'),
    )
    assert [row[1] for row in inputs(tmp_path, rows, spec)] == [0, 1, 0, 1]


def test_categories_that_are_the_same_are_refused(tmp_path):
    spec = SPEC.replace('["NA", "ZA"]', '["1", 1]')
    assert "column 'country': '1' is listed twice" in refused(
        tmp_path, ROWS.replace("NA", "1").replace("ZA", "1"), spec
    )


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_truth_values_of_yaml_are_those_of_tables(tmp_path, name):
    rows = ROWS.replace("yes", "True").replace("no", "False")
    spec = SPEC.replace('["no", "yes"]', "[false, true]")
    assert opened(tmp_path, rows, spec, name).data.sets["repair"].labels.tolist() == [0, 1, 1, 0]
    words = refused(tmp_path, ROWS, SPEC.replace('["no", "yes"]', "[no, yes]"), name)
    assert "YAML reads no as a truth value, so put the values into quotes" in words


def test_a_number_with_an_underscore_is_a_text(tmp_path):
    assert "1 texts, such as '1_000' in row 0" in refused(tmp_path, ROWS.replace("0.1", "1_000"))
