"""The true network judges: points of a repair, the finished repair, claims about new data, proofs of regions."""

from .claims import Claim, for_delivered, make_claim, paired_error
from .judge import Judge, Judgement, Round, Stop
from .numpy_copy import execution_of, layered_copy
from .region_check import check_deployed, load_proof, runner_of, save_proof
from .verification import Check, LabelCounts, Measure, Verification, both_networks, verify
