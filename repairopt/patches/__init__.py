"""Patches: a repair as a file that is reviewed, shipped, applied to a model in production, and reverted.

A patch is a safetensors file with the difference between two sets of weights (sparse, low-rank or dense, whichever is
smallest) and, as JSON, where it comes from: hashes of the weights before and after, of the specification, versions,
solver, seed, claims. ::

    patch = Patch.from_repair(repair, model, spec="gap <= 0.05 on ...")
    patch.save("gap.patch.safetensors")

    patch = Patch.load("gap.patch.safetensors", expected_hash=reviewed)
    print(patch)                      # to review it
    fixed = patch.apply(model)        # a copy; other weights than those of the base are refused
    again = patch.revert(fixed)       # the weights from before, to the bit

What holds:

* Apply and revert are exact to the bit, for float64, float32, float16, bfloat16 and integers, in every form, for NaN,
  infinite, subnormal and negative zero entries; the result is hashed and compared with the hash in the patch.
* A wrong base is refused with the names of the tensors that differ, and so are damaged files, pickles, and files of
  another kind. Nothing is ever unpickled. A hash inside of a file does not tell who made it: keep ``content_hash``
  where you trust, and give it to ``load``.
* :func:`apply_all` stacks patches in a chain, or side by side where they touch different entries
  (:func:`find_conflicts`).
* :func:`merged_state_dict` with :func:`save_weights`, :func:`export_onnx` (``pip install repairopt[onnx]``; outputs
  are compared with torch's) and :func:`export_lora` hand the repaired model to other software.
* :class:`AuditLog` keeps a chain of hashed lines of what was done.

Buffers outside of the state dict are no part of a patch.
"""

from repairopt.errors import AuditError, ExportError, MissingExtraError, PatchConflictError, PatchError, WrongBaseError

from .audit import AuditLog, LogEnd, record_repair, verify_log
from .changes import Change
from .claims import PatchInfo, claims_from_report, facts_of, hash_spec
from .extras import require_extra
from .fingerprints import Fingerprint, fingerprint
from .lora_export import export_lora
from .merge import load_weights, merged_state_dict, save_weights
from .onnx_export import OnnxExport, export_onnx
from .patch import Patch
from .safe_files import read_tensors, whole_file, write_tensors
from .stack import Conflict, apply_all, find_conflicts, revert_all
from .versions import library_versions
from .weights import listed
from .wrapped_patch import WrappedPatch, load_patch, wrap

__all__ = [
    "AuditError",
    "AuditLog",
    "Change",
    "Conflict",
    "ExportError",
    "Fingerprint",
    "LogEnd",
    "MissingExtraError",
    "OnnxExport",
    "Patch",
    "PatchConflictError",
    "PatchError",
    "PatchInfo",
    "WrongBaseError",
    "WrappedPatch",
    "apply_all",
    "claims_from_report",
    "export_lora",
    "export_onnx",
    "find_conflicts",
    "fingerprint",
    "hash_spec",
    "load_patch",
    "load_weights",
    "merged_state_dict",
    "record_repair",
    "revert_all",
    "save_weights",
    "verify_log",
]
