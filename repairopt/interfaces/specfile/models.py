"""What a spec file may say, as pydantic models; the JSON schema for editors is made from them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

Number = Annotated[float, Field(allow_inf_nan=False)]
# Exporters call tensors 9 and 10, which YAML reads as numbers.
TensorName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
OBJECTIVES = Literal["auto", "cross_entropy", "closeness", "l2", "l1", "linf"]


class Strict(BaseModel):
    """No unknown keys, no guessing of types."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _later: ClassVar[tuple[str, ...]] = ()  # keys that came after the first version of the format

    @model_serializer(mode="wrap")
    def _without_unsaid(self, made: Any) -> dict[str, Any]:
        """Specs that say nothing of later keys keep the hash that they had before these could be said."""
        unsaid = {key for key in self._later if getattr(self, key) == type(self).model_fields[key].get_default()}
        return {key: value for key, value in made(self).items() if key not in unsaid}


class ModelSpec(Strict):
    """The network: a Python factory with a file of weights, or an ONNX file."""

    _later: ClassVar[tuple[str, ...]] = ("output", "fixed", "outputs")
    factory: str | None = Field(
        default=None, pattern=r"^[\w.]+:[\w.]+$", description="package.module:function that returns a module; it is run"
    )
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description="safetensors, a state dict of torch.save (read with weights_only=True), or .nnet"
    )
    onnx: str | None = Field(default=None, description="ONNX file in place of factory and weights")
    output: TensorName | None = Field(default=None, description="of an ONNX file with several: the one with the scores")
    fixed: dict[TensorName, Number] = Field(
        default={}, description="numbers that fill other inputs of an ONNX file, such as states"
    )
    outputs: Literal["auto", "logits", "one logit", "probabilities", "one probability", "regression"] = Field(
        default="auto", description="what the outputs mean; auto sees it from them, or refuses"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if (self.factory is None) == (self.onnx is None):
            raise ValueError("expected either factory (with weights) or onnx")
        if self.onnx is not None and (self.weights or self.arguments):
            raise ValueError("an ONNX file brings its weights; leave weights and arguments out")
        if self.onnx is None and (self.output or self.fixed):
            raise ValueError("output and fixed are for ONNX files; leave them out")
        return self


class SetSpec(Strict):
    """Rows of a file."""

    _later: ClassVar[tuple[str, ...]] = ("encoding", "separator", "decimal")
    file: str = Field(description="npz, csv (also .gz) or parquet, relative to the spec file")
    rows: str | None = Field(default=None, pattern=r"^\d*:\d*$", description="start:stop, rows counted from 0")
    where: str | None = Field(default=None, description='condition on columns, such as age >= 60 and sex == "Female"')
    encoding: str = Field(default="utf-8", description="of a CSV file, such as cp1252")
    separator: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="between the cells of a CSV file; else , and for tsv a tab",
    )
    decimal: Literal[".", ","] = Field(default=".", description="decimal sign of the numbers in a CSV file")

    @model_validator(mode="after")
    def _signs_differ(self) -> SetSpec:
        if self.decimal == "," and self.separator in (None, ","):
            raise ValueError('decimal "," needs another separator, such as ";"')
        return self

    @property
    def text_options(self) -> dict[str, str]:
        """What is said of a CSV file, beyond defaults."""
        return {
            key: getattr(self, key) for key in self._later if getattr(self, key) != type(self).model_fields[key].default
        }


def _as_words(listed: Any) -> Any:
    """The truth values that YAML makes of yes, no, true and false as texts, as tables say them."""
    return [str(one) if isinstance(one, bool) else one for one in listed] if isinstance(listed, list) else listed


Listed = Annotated[list[str | int | float], BeforeValidator(_as_words, json_schema_input_type=list[str | int | float])]
Classes = Annotated[list[str | int], BeforeValidator(_as_words, json_schema_input_type=list[str | int])]


class ColumnSpec(Strict):
    """How a column becomes inputs: as it is, scaled, or by categories."""

    _later: ClassVar[tuple[str, ...]] = ("missing", "other")
    scale: tuple[Number, Number] | None = Field(default=None, description="low, high: becomes (x - low) / (high - low)")
    mean: Number | None = Field(default=None, description="with std: becomes (x - mean) / std")
    std: Number | None = Field(default=None, gt=0)
    categories: Listed | None = Field(default=None, description="becomes 0, 1, 2, ... in this order")
    one_hot: Listed | None = Field(default=None, description="becomes one input for each of these")
    fill: str | Number | None = Field(default=None, description="for missing values; else they are an error")
    missing: list[str | int | float] = Field(default=[], description="further marks of a missing value, such as -9")
    other: str | int | float | None = Field(
        default=None, description="what unlisted values become: a listed one, or ignore, no input of one_hot at all"
    )

    @model_validator(mode="after")
    def _one_way(self) -> ColumnSpec:
        ways = [self.scale is not None, self.mean is not None, self.categories is not None, self.one_hot is not None]
        if sum(ways) > 1:
            raise ValueError("choose one of scale, mean with std, categories, one_hot")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        if self.scale is not None and self.scale[0] == self.scale[1]:
            raise ValueError("scale needs two different numbers")
        listed = self.categories or self.one_hot or []
        if self.other is not None and self.other not in listed and (self.other != "ignore" or self.one_hot is None):
            raise ValueError("other is one of the categories, or of one_hot, where it may also be ignore")
        return self


class ArraySpec(Strict):
    """The array of an npz file that the network reads."""

    name: str = Field(description="of the array, (N, ...)")
    columns: list[str] | None = Field(default=None, description="names of its columns, for groups and conditions")
    scale: tuple[Number, Number] | None = Field(default=None, description="low, high: becomes (x - low) / (high - low)")
    mean: Number | None = None
    std: Number | None = Field(default=None, gt=0)
    shape: list[int] | None = Field(default=None, description="of one row, such as [1, 28, 28]")
    integers: bool = Field(default=False, description="keep whole numbers, for networks with embeddings")

    @model_validator(mode="after")
    def _whole(self) -> ArraySpec:
        if self.integers and not (self.scale is None and self.mean is None and self.std is None):
            raise ValueError("integers keeps whole numbers; leave scale, mean and std out")
        return self


class LabelSpec(Strict):
    """The true class of each row."""

    column: str = Field(description="column or array")
    classes: Classes | None = Field(
        default=None, description="in the order of the network's outputs; left out for class numbers"
    )


class SplitSpec(Strict):
    """Rows drawn from the repair set for others."""

    _later: ClassVar[tuple[str, ...]] = ("together",)
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    guard: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int = Field(default=0, ge=0)
    together: bool = Field(default=False, description="rows with equal inputs come into the same set")

    @model_validator(mode="after")
    def _something_left(self) -> SplitSpec:
        if self.held_out + self.guard >= 1:
            raise ValueError("held_out and guard together must leave rows for the repair: below 1")
        return self


class ChangeSpec(Strict):
    """Which weights may change, and what is kept small."""

    _later: ClassVar[tuple[str, ...]] = ("rank",)
    layers: str | list[str] | None = Field(
        default=None, description="auto, last, last2 (the last two), all, care, gradient, or names or patterns"
    )
    columns: str | list[str] | None = Field(
        default=None, description="weights of the first layer that read these inputs"
    )
    count: int | None = Field(default=None, ge=1, description="at most so many weights, by derivative times size")
    rank: int | None = Field(
        default=None,
        ge=1,
        description="factors of this rank beside the layers change, in place of their weights (LoRA)",
    )
    minimize: OBJECTIVES = "auto"


class RegionSpec(Strict):
    """Inputs on all of which something must hold: those of a VNN-LIB file, a ball around a row, or a polytope."""

    vnnlib: str | None = Field(default=None, description="VNN-LIB file, relative to the spec file")
    label: str | int | None = Field(default=None, description="class that must win on a ball or a polytope")
    around: int | None = Field(default=None, ge=0, description="row in the middle of the ball, counted from 0")
    vertices: list[int] | list[list[Number]] | None = Field(
        default=None, description="rows whose convex hull is meant, counted from 0, or inputs as lists of numbers"
    )
    data: str = Field(default="repair", description="set of rows that the row or the vertices are in")
    eps: Annotated[float, Field(ge=0)] | None = Field(default=None, description="radius, in units of the inputs")
    lower: Number | None = Field(default=None, description="smallest allowed input")
    upper: Number | None = Field(default=None, description="largest allowed input")

    @model_validator(mode="after")
    def _one_kind(self) -> RegionSpec:
        ball, ends = (self.around, self.eps), (self.lower, self.upper)
        given = [self.vnnlib is not None, any(part is not None for part in ball), self.vertices is not None]
        if sum(given) > 1 or (self.vnnlib is not None and self.label is not None):
            raise ValueError("expected either vnnlib, or label, around and eps, or label and vertices")
        if self.vertices is not None:
            if self.label is None or any(end is not None for end in ends):
                raise ValueError("a polytope needs label and vertices, and has no lower and upper")
            if len(self.vertices) < 2:
                raise ValueError(f"a polytope has 2 or more vertices, here {len(self.vertices)}")
            sizes = {len(one) for one in self.vertices if isinstance(one, list)}
            if len(sizes) > 1:
                raise ValueError(f"vertices of a polytope have as many numbers each, here {sorted(sizes)}")
        elif self.vnnlib is None and any(part is None for part in (self.label, *ball)):
            if self.label is None and not any(given):
                raise ValueError("expected either vnnlib, or label, around and eps, or label and vertices")
            raise ValueError("a ball needs label, around and eps")
        return self

    @property
    def reads_data(self) -> bool:
        """Whether it speaks of rows."""
        points = self.vertices is not None and isinstance(self.vertices[0], list)
        return self.vnnlib is None and not points


def _short_for(key: str, allowed: Any) -> BeforeValidator:
    """A text in place of a mapping stands for its one key."""
    return BeforeValidator(lambda v: {key: v} if isinstance(v, str) else v, json_schema_input_type=allowed)


def _as_columns(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {key: {} if column is None else column for key, column in value.items()}
    return value


def _as_list(value: Any) -> Any:
    """A text as a list; what YAML split at the commas within parentheses, as in ``[gap(a, b) <= 1]``, joined."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
        return value
    joined: list[Any] = []
    for item in value:
        last = joined[-1] if joined else ""
        if isinstance(last, str) and last.count("(") > last.count(")"):
            joined[-1] = f"{last}, {item}"
        else:
            joined.append(item)
    return joined


Columns = dict[str, ColumnSpec]
Lines = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


class Spec(Strict):
    """A repair: model, data, goal, bounds."""

    _later: ClassVar[tuple[str, ...]] = ("regions", "weight")
    version: Literal[1] = Field(default=1, description="of the format of spec files")
    model: ModelSpec
    data: dict[str, Annotated[SetSpec, _short_for("file", str | SetSpec)]] = Field(
        default={},
        description="sets of rows by name: repair, which statements speak of; held_out, which the repair never sees; "
        "guard; any others; without any, points are drawn around the regions",
    )
    regions: list[RegionSpec] = Field(default=[], description="inputs of which the goal regions_proved speaks")
    split: SplitSpec = SplitSpec()
    inputs: Annotated[
        Columns | None,
        BeforeValidator(_as_columns, json_schema_input_type=list[str] | dict[str, ColumnSpec | None] | None),
    ] = Field(default=None, description="columns of a table in the order of the network's inputs")
    array: Annotated[ArraySpec | None, _short_for("name", str | ArraySpec | None)] = Field(
        default=None, description="for npz: the array that the network reads, in place of inputs"
    )
    label: Annotated[LabelSpec | None, _short_for("column", str | LabelSpec | None)] = None
    weight: str | None = Field(
        default=None, description="column that says how much each row counts in rates, gaps, costs and losses"
    )
    sensitive_features: Lines = Field(default=[], description="columns by which reports tell groups apart")
    goal: str | None = Field(default=None, description="what must become true; see repairopt schema --language")
    bounds: Lines = Field(default=[], description="what must stay true")
    watch: Lines = Field(default=[], description="measures to report, without a bound")
    change: ChangeSpec = ChangeSpec()
    method: str = Field(
        default="auto", description="a registered method: auto, sqp, incremental, swarm, fine_tune, ..."
    )
    solver: str | None = Field(default=None, description="back end, see repairopt solvers")
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        default=0.95, description="of intervals and buffers; 0.5 for bounds met on average"
    )
    time_limit: Annotated[float, Field(gt=0)] | None = Field(default=None, description="seconds")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Spec:
        if self.regions and not self.data and not any(one.reads_data for one in self.regions):
            if self.inputs is not None or self.array is not None or self.label is not None:
                raise ValueError("inputs, array and label say how data are read; there are no data")
            return self
        if "repair" not in self.data:
            raise ValueError(
                f"data: needs a set 'repair', the rows that goals and bounds speak of where they name no other; got "
                f"{', '.join(self.data) or 'none'}"
            )
        if (self.inputs is None) == (self.array is None):
            raise ValueError("expected either inputs (columns of a table) or array (of an npz file)")
        if self.inputs is not None and not self.inputs:
            raise ValueError("inputs: expected at least one column")
        if self.goal is None and not self.bounds and not self.regions:
            raise ValueError("expected a goal, bounds, or both")
        for name in ("held_out", "guard"):
            if getattr(self.split, name) and name in self.data:
                raise ValueError(f"'{name}' has a file in data and a share in split; choose one")
        return self


class ContestantSpec(Strict):
    """A method of a comparison with settings of its own."""

    method: str = Field(description="a registered method or a system; `repairopt compare --list` names them")
    label: str | None = Field(default=None, description="what tables call it; by default the method")
    settings: dict[str, Any] = Field(default={}, description="of the method, by name")


class StudySpec(Strict):
    """A comparison: spec files, methods, how often, within which limits."""

    subjects: list[str] = Field(min_length=1, description="spec files, relative to this file")
    methods: list[str | ContestantSpec] = Field(min_length=1, description="names, or method, label and settings")
    repetitions: int = Field(default=3, ge=1, le=1000)
    time_limit: float = Field(default=600.0, gt=0, description="seconds of a method on a subject")
    memory_limit: float = Field(default=4.0, ge=0.25, description="GiB of a process")
    published: str | None = Field(
        default=None, description="CSV file of figures to show beside: subject, system, metric, value"
    )
