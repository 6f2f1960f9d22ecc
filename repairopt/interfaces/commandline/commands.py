"""The commands. Exit codes: 0 goal and bounds are met, 1 not met or violated, 2 usage or input error."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from .bars import Bars
from .paths import FILE, NEW
from .show import (
    check_text,
    compare_text,
    doctor_text,
    emit,
    emit_error,
    frontier_text,
    init_text,
    patch_text,
    proof_text,
    solve_text,
    solvers_text,
    systems_text,
    verify_text,
)

CODES = "Exit codes: 0 goal and bounds are met, 1 not met or violated, 2 usage or input error."
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; its schema: repairopt schema."
)
spec_argument = click.argument("spec", type=FILE)
strict_option = click.option("--strict", is_flag=True, help="Held-out rows decide too.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")


def example(text: str) -> str:
    """An example for the end of a help text, kept as it is."""
    return f"\b\nExample:\n  {text}"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=CODES)
@click.version_option(package_name="repairopt", prog_name="repairopt")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of torch and NumPy; 1 unless OMP_NUM_THREADS is set."
)
def cli(threads: int | None) -> None:
    """Repair trained neural networks: state goal and bounds in a spec file, get a patch that can be verified.

    \b
    Example:
      repairopt demo                           a network, its data and a spec to try, repaired
      repairopt init model.onnx data.csv       a first spec for a model and its data
      repairopt check spec.yaml                what holds now
      repairopt solve spec.yaml --out run      the repair, as a patch with a report
      repairopt verify spec.yaml --patch run/patch.safetensors
      repairopt frontier spec.yaml --out all   several repairs to choose from, on one page
    """  # noqa: D301 (click reads the backspace)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when the libraries are loaded
        if threads is not None:
            os.environ[name] = str(threads)
        else:
            os.environ.setdefault(name, "1")  # measured: small networks are many times slower on busy cores with more


@cli.command(epilog=example("repairopt demo --out my-demo"))
@click.option("--out", type=NEW, default="repairopt-demo", show_default=True, help="Folder to write to.")
@overwrite_option
@quiet_option
@json_option
def demo(out: Path, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Train a small network on made-up loan decisions, and repair its gap between groups. Under a minute."""
    from repairopt.interfaces.commandline.runs.demo_run import run_demo

    emit(run_demo(out, overwrite=overwrite, progress=Bars(quiet=as_json or quiet)), as_json, solve_text)


@cli.command(epilog=example("repairopt init model.onnx loans.csv --label decision --sensitive sex"))
@click.argument("model")
@click.argument("data", type=FILE)
@click.option("--weights", type=FILE, help="File of weights, where MODEL is package.module:function.")
@click.option("--label", help="Column of the true class; guessed where it is left out.")
@click.option("--sensitive", multiple=True, help="Column that tells groups apart; may be given several times.")
@click.option(
    "--fixed", multiple=True, metavar="NAME=NUMBER", help="Number that fills another input of an ONNX file; as often."
)
@click.option("--out", type=NEW, default="spec.yaml", show_default=True, help="File to write.")
@overwrite_option
@quiet_option
@json_option
def init(model: str, data: Path, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a first spec for MODEL and DATA, with comments on what was guessed; `check` runs on it at once.

    MODEL is an .onnx file, package.module:function, or a file of weights of linear layers; DATA is CSV, Parquet or npz.
    """
    from repairopt.interfaces.commandline.runs.init_run import write_first_spec

    found = write_first_spec(model, data, out, progress=Bars(quiet=as_json or quiet), **options)
    emit(found, as_json, init_text)


@cli.command(epilog=example("repairopt check spec.yaml --patch run/patch.safetensors"))
@spec_argument
@click.option("--patch", type=FILE, help="Judge the network with this patch applied.")
@strict_option
@quiet_option
@json_option
def check(spec: Path, patch: Path | None, strict: bool, quiet: bool, as_json: bool) -> None:
    """Measure goal and bounds of SPEC on its network. Nothing is changed or written."""
    from repairopt.interfaces.commandline.runs.solve_run import check_choices
    from repairopt.interfaces.commandline.runs.verify_run import check_spec_file
    from repairopt.interfaces.specfile.opened import open_spec

    bars = Bars(quiet=as_json or quiet)
    with bars.stage("reading model and data"):
        opened = open_spec(spec)
        check_choices(opened)
    with bars.stage("measuring every claim", len(opened.statements)) as step:
        found = check_spec_file(opened, patch=patch, strict=strict, tell=step)
    emit(found, as_json, check_text)


@cli.command(epilog=example("repairopt solve spec.yaml --out run --time-limit 60"))
@spec_argument
@click.option("--out", type=NEW, required=True, help="Folder for patch, report, log, result.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), help="Time limit in seconds; the best point is kept."
)
@click.option("--solver", help="Name of the back end, see `repairopt solvers`.")
@click.option("--seed", type=int, help="Random seed.")
@click.option("--report/--no-report", default=True, help="Whether to write report.html; pictures take some seconds.")
@click.option("--resume", is_flag=True, help="Continue an unfinished run in --out from its last accepted step.")
@overwrite_option
@quiet_option
@json_option
def solve(spec: Path, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Repair the network of SPEC and write patch.safetensors, result.json, report.html and audit.jsonl."""
    from repairopt.interfaces.commandline.runs.solve_run import Options, solve_spec

    bars = Bars(options["time_limit"], quiet=as_json or quiet)
    emit(solve_spec(spec, out, Options(**options), bars), as_json, solve_text)


@cli.command(epilog=example("repairopt frontier spec.yaml --out frontier --points 6"))
@spec_argument
@click.option("--out", type=NEW, required=True, help="Folder for the page and the patches.")
@click.option(
    "--points", type=click.IntRange(min=1), default=5, show_default=True, help="Number of bounds, evenly apart."
)
@click.option("--bound", "bounds", type=float, multiple=True, help="A bound on the goal; may be given several times.")
@overwrite_option
@quiet_option
@json_option
def frontier(spec: Path, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Repair the network of SPEC once for each of several bounds on its goal; a page with a slider compares them.

    Unless bounds are given, they lead from what the goal is now to the bound of the spec.
    """
    from repairopt.interfaces.commandline.runs.frontier_run import trace_spec

    emit(trace_spec(spec, out, progress=Bars(quiet=as_json or quiet), **options), as_json, frontier_text)


@cli.command(epilog=example('repairopt compare study.yaml --out study --method sqp --method "Apricot (AP)"'))
@click.argument("source", type=FILE, metavar="SPEC|STUDY", required=False)
@click.option("--list", "listing", is_flag=True, help="List methods and systems of the literature, and end.")
@click.option("--out", type=NEW, default="comparison", show_default=True, help="Folder to write to.")
@click.option("--method", "methods", multiple=True, help="Method or system, repeatable; in place of those of the file.")
@click.option("--repetitions", type=click.IntRange(min=1), help="How often each, with random seeds from 0.")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), help="Seconds of a method on a network.")
@click.option("--memory-limit", type=click.FloatRange(min=0.25), help="GiB of a process.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option("--need", "needs", multiple=True, help="What counts for the advice: accuracy, repair, compatibility, ...")
@click.option("--resume", is_flag=True, help="Continue what is in the folder.")
@quiet_option
@json_option
def compare(source: Path | None, out: Path, listing: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Compare methods on the network of a SPEC, or on those of a STUDY: which way of fixing is best here?

    Every method runs several times in a process of its own, and is measured on held-out rows.
    """
    from repairopt.interfaces.commandline.runs.compare_run import compare_study, list_contestants

    if listing and source is not None:
        raise click.UsageError(f"--list lists all that can run and takes no file; leave '{source}' or --list out.")
    if listing:
        emit(list_contestants(), as_json, systems_text)
    if source is None:
        raise click.UsageError("name a spec file or a study, or use --list.")
    emit(compare_study(source, out, progress=Bars(quiet=as_json or quiet), **options), as_json, compare_text)


def _move(back: bool, spec: Path, patch: Path, out: Path, weights: Path | None, **options: Any) -> None:
    from repairopt.interfaces.commandline.runs.move_run import move_patch

    bars = Bars(quiet=options["as_json"] or options["quiet"])
    result = move_patch(spec, patch, out, back=back, weights=weights, overwrite=options["overwrite"], progress=bars)
    emit(result, options["as_json"], lambda r: f"wrote {r.out} ({r.kind}), weights SHA-256 {r.weights}")


patch_argument = click.argument("patch", type=FILE)
out_option = click.option(
    "--out",
    type=NEW,
    required=True,
    help="File to write: .safetensors, .pt (state dict), .onnx; for apply also a folder, an adapter for peft.",
)
weights_option = click.option("--weights", type=FILE, help="File of weights to use instead of the spec's.")


@cli.command(epilog=example("repairopt apply spec.yaml run/patch.safetensors --out repaired.onnx"))
@spec_argument
@patch_argument
@out_option
@weights_option
@overwrite_option
@quiet_option
@json_option
def apply(spec: Path, patch: Path, out: Path, weights: Path | None, **options: Any) -> None:
    """Write the network of SPEC with PATCH applied. Other weights than those it was made for are refused."""
    _move(False, spec, patch, out, weights, **options)


@cli.command(epilog=example("repairopt revert spec.yaml run/patch.safetensors --weights new.safetensors --out old.pt"))
@spec_argument
@patch_argument
@out_option
@weights_option
@overwrite_option
@quiet_option
@json_option
def revert(spec: Path, patch: Path, out: Path, weights: Path | None, **options: Any) -> None:
    """Write the weights from before PATCH, to the bit; --weights names the repaired ones."""
    _move(True, spec, patch, out, weights, **options)


@cli.command(epilog=example("repairopt verify spec.yaml --patch run/patch.safetensors"))
@spec_argument
@click.option("--patch", type=FILE, required=True, help="Patch to verify.")
@click.option("--result", type=FILE, help="Result to verify; by default result.json beside the patch.")
@click.option("--audit", type=FILE, help="Audit log to verify; by default audit.jsonl beside the patch.")
@click.option("--expected-hash", help="Content hash that the patch must have.")
@click.option("--expected-log", help="Hash of a line that the audit log must have, such as its last.")
@click.option("--signers", type=FILE, help="Trusted keys, a file of allowed signers as ssh-keygen reads it.")
@click.option("--signer", help="Who of them must have signed result.json, by `ssh-keygen -Y sign -n repairopt`.")
@strict_option
@quiet_option
@json_option
def verify(spec: Path, patch: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Recompute every claim from the original weights and the patch alone, without the code that solves."""
    from repairopt.interfaces.commandline.runs.verify_run import verify_patch

    emit(verify_patch(spec, patch, progress=Bars(quiet=as_json or quiet), **options), as_json, verify_text)


@cli.command("check-proof", epilog=example("repairopt check-proof run --samples 1000000"))
@click.argument("run", type=FILE)
@click.option("--spec", type=FILE, help="Spec file; by default the one that RUN/result.json names.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=1_000_000,
    show_default=True,
    help="Points of the regions at which the repaired network is run.",
)
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), help="Seconds of processor time for bounds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the points.")
@click.option("--picture", type=NEW, help="Draw a slice of the first box, or of one that fails, to this .svg or .png.")
@click.option("--lowest", is_flag=True, help="In the picture the lowest output is the answer, not the highest.")
@quiet_option
@json_option
def check_proof(run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Check the proof in RUN that the repaired network has a property on whole input regions.

    The check is independent of the search: it trusts only the original weights, the patch and the boxes of the proof.
    Exit code 0 means proved.
    """
    from repairopt.interfaces.commandline.runs.proof_run import check_run_proof

    emit(check_run_proof(run, progress=Bars(quiet=as_json or quiet), **options), as_json, proof_text)


@cli.command(epilog=example("repairopt show run/patch.safetensors"))
@patch_argument
@json_option
def show(patch: Path, as_json: bool) -> None:
    """Print a patch: what it changes, for which weights, what it claims."""
    from repairopt.interfaces.commandline.runs.show_run import show_patch

    emit(show_patch(patch), as_json, patch_text)


@cli.command(epilog=example("repairopt report run"))
@click.argument("folder", type=FILE)
@click.option("--out", type=NEW, help="File to write; by default report.html in the folder.")
@quiet_option
@json_option
def report(folder: Path, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write report.html anew from the FOLDER of a run."""
    from repairopt.interfaces.commandline.runs.show_run import report_folder

    with Bars(quiet=as_json or quiet).stage("drawing the report"):
        found = report_folder(folder, out)
    emit(found, as_json, lambda r: f"wrote {r.out}")


@cli.command(epilog=example("repairopt doctor spec.yaml"))
@click.argument("model")
@click.option("--weights", type=FILE, help="File of weights, where MODEL is package.module:function.")
@click.option("--shape", help="Shape of one row, such as 3,224,224, where there is no spec.")
@click.option("--rows", type=click.IntRange(min=1), help="How many rows the repair will have.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time limit of each trial repair, in seconds.",
)
@quiet_option
@json_option
def doctor(model: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Say what works on MODEL: its layers, derivatives, bounds, and what a repair costs.

    MODEL is a spec file, an .onnx file, package.module:function, or a file of weights of linear layers. Nothing is
    written; trial repairs of a few rows are run.
    """
    from repairopt.interfaces.commandline.runs.doctor_run import examine_source

    emit(examine_source(model, progress=Bars(quiet=as_json or quiet), **options), as_json, doctor_text)


@cli.command(epilog=example("repairopt solvers --test"))
@click.option("--test", is_flag=True, help="Solve a tiny program with each, to see whether its licence is there.")
@quiet_option
@json_option
def solvers(test: bool, quiet: bool, as_json: bool) -> None:
    """List the back ends: installed, licensed, kinds of programs."""
    from repairopt.interfaces.commandline.runs.solvers_run import list_solvers

    emit(list_solvers(test=test, progress=Bars(quiet=as_json or quiet)), as_json, solvers_text)


@cli.command(epilog=example("repairopt schema > repairopt.schema.json"))
@click.argument("what", default="spec")
@click.option("--language", is_flag=True, help="Print the table of measures that goals and bounds are made of.")
@click.option("--markdown", is_flag=True, help="Print the table of --language as Markdown.")
def schema(what: str, language: bool, markdown: bool) -> None:
    """Print a JSON schema: of spec files, or of what a command prints with --json (WHAT: check, solve, verify, ...)."""
    if language:
        from repairopt.interfaces.specfile.language.measures import reference, reference_text

        click.echo(reference() if markdown else reference_text())
    else:
        from repairopt.interfaces.commandline.runs.results import schema_text

        click.echo(schema_text(what))


def main(arguments: list[str] | None = None) -> None:
    """The command line, with its exit codes; every error of the library is a message, not a traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given
    try:
        cli.main(args=given, prog_name="repairopt", standalone_mode=False)
    except click.ClickException as error:
        if not as_json:
            error.show()
            raise SystemExit(2) from None
        emit_error("UsageError", error.format_message(), as_json)
    except (click.Abort, KeyboardInterrupt) as stop:
        notes = [note for one in (stop, stop.__cause__) for note in getattr(one, "__notes__", ())]
        emit_error("Interrupted", " ".join(["interrupted.", *notes]), as_json)
    except Exception as error:
        from repairopt.errors import RepairError, as_foreign

        if isinstance(error, OSError):
            emit_error(
                type(error).__name__, f"{error.filename or 'standard output'}: {error.strerror or error}.", as_json
            )
        if not isinstance(error, RepairError):
            traceback.print_exc()
        found = error if isinstance(error, RepairError) else as_foreign("repairopt", error)
        emit_error(type(found).__name__, str(found), as_json)


if __name__ == "__main__":
    main()
