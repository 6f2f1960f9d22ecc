"""The tree reads as the pipeline: who may import whom, no back end loaded early, nothing too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

# The pipeline, first stage first. A module may import those above it, and those before it in its own line.
STAGES = [
    ("exceptions, versions", "errors versions"),
    ("users' data as tensors", "convert_data"),
    ("what must become true, what must stay true", "specify"),
    (
        "ready-made properties and constraints",
        "intervals sample_groups group_rates group_gaps group_metrics properties constraints",
    ),
    (
        "run the network: batches, many weight vectors, memory",
        "network.split_graph network.check_model network.replace_weights network.linear_tape network.still_rows "
        "evaluate",
    ),
    ("named inputs in one tensor, offsets by group", "huggingface group_offsets"),
    ("derivatives without a matrix", "network.differentiate network.whiten"),
    (
        "robustness: certified radius, counterexamples",
        "propagation.zonotope_layers propagation.propagate_zonotope propagation.certifier propagation.zonotope "
        "propagation.counterexamples robustness",
    ),
    (
        "which weights may change",
        "localization.trace_layers localization.follow_units localization.weight_selectors localization.attribution "
        "localize",
    ),
    (
        "quadratic model of the property",
        "surrogates.least_squares surrogates.convexify surrogates.sample_property surrogates.surrogate_kinds surrogate",
    ),
    ("constraints as rows", "linearize select_rows"),
    ("the program", "program"),
    (
        "one solve: the answer, back ends, memory, native output, a process of its own, scaling, recheck",
        "solving.solution solving.registry solving.memory solving.native_output solving.isolate solving.scaling "
        "solving.recheck solving.run_solver",
    ),
    (
        "programs with too many rows: the few that matter",
        "working_sets.row_oracles working_sets.relaxation working_sets.working_set",
    ),
    (
        "certificates of a solution",
        "certificates.dual_bound certificates.rational certificates.elastic certificates.exact_check "
        "certificates.farkas certificates.recover_duals certificates.certify certificates.conflict",
    ),
    ("solve: several tries, proofs of infeasibility", "solve"),
    (
        "choices: few weights, few broken samples, weights on a grid",
        "choices.switches choices.integer_program choices.weight_grid choices.choice_search choices.incumbent "
        "choices.mixed_integer",
    ),
    ("known programs", "problems"),
    ("write the change into a copy", "apply"),
    ("the true network judges, during a repair and after it", "judge verify"),
    ("whether bounds hold on new data", "validity.rows validity.paired validity.claims"),
    ("a repair in progress", "methods.task methods.subtask"),
    (
        "typed bounds: limits, objectives, points, steps, the filter, the sequence",
        "methods.cross_entropy sqp.limits sqp.reach sqp.expected_gain sqp.objectives sqp.filter sqp.points sqp.step "
        "sqp.sequence sqp.augmented sqp.confident sqp.generalization",
    ),
    (
        "the methods: loops over model, rows, program, solve, judge",
        "methods.settings methods.sqp methods.loss_sequence methods.sequential methods.autoric methods.sparse_repair "
        "methods.grid_repair",
    ),
    (
        "a repair as a file: apply, revert, stack, export, log",
        "patches.safe_files patches.tensor_bits patches.weights patches.fingerprints patches.differences "
        "patches.low_rank patches.claims patches.changes patches.patch_header patches.patch patches.stack "
        "patches.merge patches.onnx_export patches.lora_export patches.audit",
    ),
    (
        "what pictures show, and the pictures",
        "pictures.evidence pictures.collect pictures.style pictures.plot_groups "
        "pictures.plot_samples pictures.plot_weights pictures.plot_progress pictures.plot_inputs pictures.gallery",
    ),
    (
        "what was done and what came of it: text, page, report",
        "reporting.plain_words reporting.report_text reporting.claim_table reporting.html_page "
        "reporting.as_patch reporting.show report",
    ),
    ("the beginning and the end of every repair", "prepare choose_weights conclude"),
    ("the page of a repair, from memory or from a folder; figures for trackers", "html_report track"),
    ("solve_repair(): the stages in order; the same as one program for others to solve", "formulate pipeline"),
    ("the same as a scikit-learn classifier", "sklearn_classifier"),
    ("many repairs in one call", "threshold_frontier frontier out_of_reach calibrate_margin"),
    (
        "goals and bounds as text",
        "language.syntax language.measures language.statements language.python_code language.row_sets "
        "language.own_measure language.bind",
    ),
    (
        "spec files: what they say, what they name, every claim measured",
        "specfile.models specfile.read_spec specfile.encode_columns specfile.load_rows specfile.onnx_operators "
        "specfile.onnx_model specfile.load_model specfile.networks specfile.open_spec specfile.claim_rows "
        "specfile.measure",
    ),
    (
        "runs: what the commands do",
        "runs.results runs.run_folder runs.choose_weights runs.html runs.check_run runs.verify_run runs.move_run "
        "runs.list_solvers runs.show_patch runs.solve_run runs.demo_run",
    ),
    ("checks for the tests of others", "testing pytest_plugin"),
    ("the command line", "commandline.show commandline.main __main__"),
]
ORDER = [name for _, names in STAGES for name in names.split()]
SOLVERS_MAY_IMPORT = {"errors", "program", "solve", "solving.native_output", "working_sets.working_set"}
LOADED_LATE = {
    "clarabel",
    "cvxpy",
    "daqp",
    "gurobipy",
    "highspy",
    "fairlearn",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "osqp",
    "pandas",
    "peft",
    "psutil",
    "piqp",
    "pyomo",
    "pyscipopt",
    "safetensors",
    "scipy",
    "sklearn",
    "yaml",
    "mlflow",
    "tensorboard",
    "transformers",
}
FILE_LINES, FUNCTION_LINES = 400, 60

CORE = sorted((PROJECT / "repairopt").rglob("*.py"))
BACK_ENDS = sorted((PROJECT / "solvers").glob("*.py"))
NUMPY_ONLY = [p for p in CORE if p.stem in ("program", "solve") or p.parent.name == "solving"]
SCRIPTS = sorted((PROJECT / "examples").glob("*.py")) + sorted((PROJECT / "benchmarks").glob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def runs(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield from runs(child)


def dotted(path: Path) -> str:
    """Name of a module within the package, ``folder.module``; empty for those of ``__init__``."""
    parts = path.relative_to(PROJECT / "repairopt").with_suffix("").parts
    return "" if parts[-1] == "__init__" else ".".join(parts)


def modules_of(path: Path) -> set[str]:
    """Names within the package of the modules that one of its files imports."""
    folder = "".join(f"{part}." for part in path.relative_to(PROJECT / "repairopt").parts[:-1])
    names = imported(tree(path))
    siblings = {folder + name[1:] for name in names if name.startswith(".")}
    return siblings | {name.removeprefix("repairopt.") for name in names if name.startswith("repairopt.")}


def imported(node: ast.AST) -> set[str]:
    """Absolute names of the modules that a file of ``repairopt/`` or ``solvers/`` imports, siblings as ``.name``."""
    found: set[str] = set()
    for each in runs(node):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.level:
            found |= {f".{each.module}"} if each.module else {f".{alias.name}" for alias in each.names}
        elif isinstance(each, ast.ImportFrom) and each.module == "repairopt":
            found |= {f"repairopt.{alias.name}" for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            found.add(str(each.module))
    return found


def at_module_level(module: ast.Module) -> ast.Module:
    """The file without the bodies of its functions."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return Strip().visit(module)


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_every_module_has_its_place():
    modules = {dotted(path) for path in CORE} - {""}
    assert len(ORDER) == len(set(ORDER))
    assert modules == set(ORDER), "a new module needs a place in STAGES, a removed one leaves it"


@pytest.mark.parametrize("path", CORE, ids=named)
def test_stages_import_only_stages_before_them(path):
    if not dotted(path):
        return
    late = sorted(name for name in modules_of(path) if ORDER.index(name) >= ORDER.index(dotted(path)))
    assert not late, f"{path.name} imports {', '.join(late)}, which come after it in the pipeline"


@pytest.mark.parametrize("path", CORE, ids=named)
def test_files_of_a_folder_are_imported_as_siblings_others_by_their_whole_name(path):
    own = "".join(f"{part}." for part in path.relative_to(PROJECT / "repairopt").parts[:-1])
    wrong = [name for name in imported(tree(path)) if own and name.startswith(f"repairopt.{own}")]
    at_top = [name for name in imported(tree(path)) if not own and name.startswith("repairopt.")]
    assert not wrong + at_top, "use relative imports for files of the same folder"


def test_few_import_the_pipeline_and_nothing_imports_testing():
    users = {named(path): modules_of(path) for path in CORE}
    allowed = {
        "repairopt/frontier.py",
        "repairopt/out_of_reach.py",
        "repairopt/calibrate_margin.py",
        "repairopt/sklearn_classifier.py",
        "runs/solve_run.py",
    }
    assert {name for name, names in users.items() if "pipeline" in names} == allowed
    assert not [name for name, names in users.items() if "testing" in names]


@pytest.mark.parametrize("path", BACK_ENDS, ids=named)
def test_back_ends_know_the_program_and_the_solution_only(path):
    names = imported(tree(path))
    core = {name.partition("repairopt.")[2] for name in names if name.split(".")[0] == "repairopt"}
    assert core <= SOLVERS_MAY_IMPORT
    siblings = {name[1:] for name in names if name.startswith(".")}
    assert siblings <= {other.stem for other in BACK_ENDS}


@pytest.mark.parametrize("path", NUMPY_ONLY, ids=named)
def test_programs_and_solving_are_free_of_torch(path):
    assert not [name for name in imported(tree(path)) if name.split(".")[0] == "torch"]


@pytest.mark.parametrize("path", CORE + BACK_ENDS, ids=named)
def test_no_heavy_library_is_imported_at_module_level(path):
    early = {name.split(".")[0] for name in imported(at_module_level(tree(path)))}
    assert not early & LOADED_LATE


@pytest.mark.parametrize("path", CORE + BACK_ENDS + SCRIPTS, ids=named)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", CORE + BACK_ENDS + SCRIPTS, ids=named)
def test_functions_are_short(path):
    long = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and body[-1].end_lineno - body[0].lineno + 1 > FUNCTION_LINES:
                long[node.name] = body[-1].end_lineno - body[0].lineno + 1
    assert not long, f"split functions of more than {FUNCTION_LINES} lines"
