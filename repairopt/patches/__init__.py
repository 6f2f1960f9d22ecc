"""Patches: a repair as a file that is reviewed, shipped, applied to a model in production, and reverted to the bit."""

import warnings
from importlib import import_module
from typing import Any

from repairopt.errors import AuditError, ExportError, MissingExtraError, PatchConflictError, PatchError, WrongBaseError

from .audit import AuditLog, LogEnd, verify_log
from .claims import PatchInfo, hash_spec, library_versions, number
from .differences import Change
from .lora_export import export_lora
from .onnx_export import TOLERANCES, OnnxExport, export_onnx
from .patch import Patch, load_weights, merged_state_dict, save_weights
from .restated import FORMS, AsLogits, parameters_inside as parameters_inside
from .safe_files import check_archive, read_arrays, read_tensors, whole_file, write_tensors
from .stack import Conflict, apply_all, find_conflicts, revert_all
from .weights import Fingerprint, digest_tensor, fingerprint, listed
from .wrapped_patch import WrappedPatch, load_patch, wrap


def __getattr__(name: str) -> Any:
    """What moved, for one release."""
    if name in ("claims_from_report", "record_repair"):
        new = "repairopt.report.as_patch"
        warnings.warn(f"repairopt.patches.{name} moved to {new}.{name}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(new), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
