"""The true network judges: points of a repair, the finished repair, claims about new data."""

from .claims import Claim, for_delivered, make_claim
from .judge import Judge, Judgement, Round, Stop
from .verification import Check, LabelCounts, Measure, Verification, both_networks, verify
