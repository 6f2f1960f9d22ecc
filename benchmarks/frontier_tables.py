"""Turns the records of ``frontier.py`` into tables: bars and what was measured, every method, curves in hindsight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmark_files import Record
from frontier_cases import Case
from frontier_statistics import NONE, changes, curve, error, in_hindsight, markdown, mean, select, spread, values
from frontier_text import FURTHER, HEADER, NOTES

OURS = ("SQP, chosen weights", "SQP, automatic weights")
OURS_AVERAGE = ("SQP at 50 %, chosen weights",)
OURS_CONFIDENT = ("SQP at 95 %, chosen weights", "SQP at 95 %, automatic weights")
RATED = "SQP at 95 %, chosen weights, rates at most 0.1"
ALSO = (
    "SQP at 95 %, chosen weights, odds typed",
    "SQP, far columns",
    "SQP at 50 %, far columns",
    "SQP at 95 %, far columns",
    "SQP, farthest column, half the bound",
    "SQP, offsets by group",
    "SQP at 50 %, offsets by group",
    "SQP at 50 %, automatic weights and offsets",
)
IN_SIGHT = (
    "SQP on both halves",
    "SQP on both halves, half the bounds",
    "SQP on both halves, a tenth of the bounds",
)
SWEEPS = ("Adam + penalty, all weights", "Adam + penalty, same weights", "L-BFGS + penalty, all weights")
REFERENCE = "thresholds by group"


@dataclass(frozen=True)
class Bar:
    """What is asked for, of the means over the splits of a case.

    Attributes:
        case: The case.
        typed: The bound that was typed.
        gap: Largest gap; where ``halved`` a share of the one before.
        points: Largest loss of accuracy in points; NaN where ``accuracy`` says it.
        accuracy: Smallest accuracy.
        seconds: Most CPU seconds.
        recall: Whether the recall must not fall.
        halved: See there.
        share: Smallest share of the splits on which every bound holds; NaN where means are judged.
    """

    case: str
    typed: float
    gap: float = math.nan
    points: float = math.nan
    accuracy: float = math.nan
    seconds: float = math.nan
    recall: bool = False
    halved: bool = False
    share: float = math.nan

    @property
    def splits(self) -> int:
        """Fewest splits on which it is judged."""
        return 20 if self.share > 0.9 else 10

    def __str__(self) -> str:
        if not math.isnan(self.share):
            return f"bounds met on at least {100 * self.share:.0f} % of the splits"
        text = "gap halved" if self.halved else f"gap <= {self.gap:g}"
        text += f" at accuracy >= {self.accuracy:.3f}" if math.isnan(self.points) else f" at a loss <= {self.points:g}"
        text += ", recall not below the original's" if self.recall else ""
        return text + (f", <= {self.seconds:g} s" if not math.isnan(self.seconds) else "")

    def lacks(self, runs: Sequence[Record]) -> list[tuple[str, float, float]]:
        """What is asked for and missed: its name, by how much, and the standard error of that."""
        if not math.isnan(self.share):
            met = [float(all_met(run)) for run in runs]
            return [("splits", self.share - mean(met), 0.0)] if mean(met) < self.share - 1e-9 else []
        gaps = values(runs, "gap after")
        if self.halved:
            gaps = [a - self.gap * b for a, b in zip(gaps, values(runs, "gap before"), strict=True)]
        asked = [("gap", mean(gaps) - (0.0 if self.halved else self.gap), error(gaps))]
        if math.isnan(self.points):
            right = values(runs, "accuracy after")
            asked.append(("accuracy", self.accuracy - mean(right), error(right)))
        else:
            asked.append(("accuracy", -self.points - mean(changes(runs)), error(changes(runs))))
        if self.recall:
            asked.append(("recall", -mean(changes(runs, "recall")), error(changes(runs, "recall"))))
        if not math.isnan(self.seconds):
            asked.append(("seconds", mean(values(runs, "cpu seconds")) - self.seconds, 0.0))
        return [one for one in asked if one[1] > 1e-9]

    def verdict(self, runs: Sequence[Record], apart_from: Sequence[str] = ()) -> str:
        """Met, or what is missed; what is missed by less than a standard error is said to be so."""
        if not runs:
            return NONE
        if len(runs) < self.splits:
            return f"not judged: {len(runs)} of {self.splits} splits"
        lacks = [one for one in self.lacks(runs) if one[0] not in apart_from]
        if not lacks:
            return "met"
        text = ", ".join(name + (" (within its error)" if by <= spread else "") for name, by, spread in lacks)
        return f"**missed: {text}**"


BARS = (
    Bar("gender, sampled", 0.07, gap=0.07, points=0.1, seconds=0.25),
    Bar("gender, sampled", 0.02, gap=0.02, points=0.15, seconds=0.25),
    Bar("gender, sampled", 0.01, gap=0.01, points=0.25, seconds=0.25),
    Bar("gender, parity", 0.10, gap=0.10, accuracy=0.838),
    Bar("gender, parity", 0.05, gap=0.05, accuracy=0.833),
    Bar("gender, parity", 0.03, gap=0.03, accuracy=0.828),
    Bar("gender, parity and odds", 0.05, share=0.90),
    Bar("gender, sampled, 95 %", 0.02, share=0.95),
    Bar("gender, parity, 95 %", 0.05, share=0.95),
    Bar("bank age, sampled", 0.012, gap=0.012, points=0.1, recall=True),
    Bar("race, parity", 0.5, gap=0.5, points=0.3, halved=True),
    Bar("age bands, parity", 0.5, gap=0.5, points=0.3, halved=True),
)


def all_met(run: Record) -> bool:
    """Whether every bound of the case holds on the held-out half, by count."""
    met = run["gap after"] <= run["target"] + 1e-9
    if "odds" in run["case"]:
        met = met and run["odds after"] <= run["odds before"] + 1e-9
    if "bank" in run["case"]:
        met = met and run["recall after"] >= run["recall before"] - 1e-9
    return bool(met)


def report(records: Sequence[Record], cases: Mapping[str, Case], further: Sequence[Record] = ()) -> str:
    """Everything as markdown; ``further`` are runs on divisions of their own."""
    present = [name for name in cases if any(record["case"] == name for record in records)]
    splits = {name: 1 + max(r["split"] for r in records if r["case"] == name) for name in present}
    counts = ", ".join(f"{name}: {count}" for name, count in splits.items())
    lines = [HEADER.format(counts=counts), bars_table(records)]
    lines += [further_table(records, further)] if further else []
    lines.append(limits_table(records))
    lines.append(same_gap_table(records, present))
    lines += [case_table(records, name) for name in present]
    lines += [sweep_table(records, name) for name in present if any(curve(records, name, each) for each in SWEEPS)]
    return "\n\n".join([*lines, "## Reading", *reading(records)]) + "\n"


def bars_table(records: Sequence[Record]) -> str:
    """Each bar, what the library does, and whether that is enough; the same for the peer that comes closest."""
    head = [
        "case",
        "bar",
        "method",
        "gap",
        "accuracy, points",
        "accuracy",
        "all bounds met",
        "CPU s",
        "verdict",
    ]
    body = []
    for bar in BARS:
        ours = OURS_CONFIDENT if not math.isnan(bar.share) else (*OURS, *OURS_AVERAGE)
        for method in (*ours, *ALSO, RATED, SWEEPS[0]):
            runs = select(records, bar.case, method, bar.typed)
            if runs:
                body.append([bar.case, str(bar), method, *figures(runs), seconds(runs), bar.verdict(runs)])
    return markdown("Bars", head, body)


def further_table(compared: Sequence[Record], records: Sequence[Record]) -> str:
    """The bars on further divisions, which say more of what is to be expected than the first few."""
    head = ["case", "bar", "method", "splits", "gap", "accuracy, points", "accuracy", "all bounds met", "verdict"]
    body = []
    for bar in BARS:
        for method in (*OURS, *OURS_AVERAGE, *OURS_CONFIDENT, *ALSO):
            runs = select(records, bar.case, method, bar.typed)
            if runs:
                verdict = bar.verdict(runs, apart_from=("seconds",))
                body.append([bar.case, str(bar), method, str(len(runs)), *figures(runs), verdict])
    few, many = (between_halves(found) for found in (compared, records))
    splits = [run["split"] for run in records]
    text = FURTHER.format(few=few, many=many, first=min(splits), last=max(splits))
    return markdown("Further divisions", head, body) + "\n\n" + text


def between_halves(records: Sequence[Record], case: str = "gender, sampled") -> float:
    """Root mean square difference of the original network's gaps on the two halves of a division."""
    gaps = {run["split"]: run["gap before"] for run in records if run["case"] == case}
    found = [gap - gaps[split + 1] for split, gap in gaps.items() if split % 2 == 0 and split + 1 in gaps]
    return math.sqrt(mean([difference**2 for difference in found]))


def limits_table(records: Sequence[Record]) -> str:
    """Each bar, and what a network reaches that was fitted on the held-out half too."""
    head = ["case", "bar", "fitted on both halves", "gap", "accuracy, points", "accuracy", "all bounds met", "verdict"]
    body = []
    for bar in BARS:
        for method in IN_SIGHT:
            runs = select(records, bar.case, method, bar.typed)
            if runs:
                verdict = ", ".join(name for name, *_ in bar.lacks(runs) if name != "seconds") or "would be met"
                body.append([bar.case, str(bar), method, *figures(runs), verdict])
    return markdown("What sampling leaves", head, body)


def figures(runs: Sequence[Record]) -> list[str]:
    """Gap, change of accuracy, accuracy, share of all bounds met."""
    met = f"{sum(map(all_met, runs))} of {len(runs)}" if not math.isnan(runs[0]["typed"]) else NONE
    accuracy = f"{mean(values(runs, 'accuracy after')):.4f}"
    return [spread(values(runs, "gap after"), ".4f"), spread(changes(runs), "+.2f"), accuracy, met]


def seconds(runs: Sequence[Record]) -> str:
    """Of the call; of a sweep, of one run and of all."""
    total = f"{mean(values(runs, 'cpu seconds')):.2f}"
    if "seconds of one run" not in runs[0]:
        return total
    return f"{mean(values(runs, 'seconds of one run')):.2f} a run, {total} the sweep"


def same_gap_table(records: Sequence[Record], present: Sequence[str]) -> str:
    """Accuracy of the library's repairs beside that of the curves of the peers at the same gap."""
    head = ["case", "method", "typed", "gap", "accuracy, points"]
    head += [f"{name}, in hindsight" for name in SWEEPS] + [
        REFERENCE,
        "ahead of the best sweep",
        "behind the thresholds",
    ]
    body = []
    for case, method, typed, runs in rows_of(records, present, (*OURS, *OURS_AVERAGE, *OURS_CONFIDENT)):
        numbers = at_same_gap(records, case, runs)
        cells = [f"{number:+.2f}" if not math.isnan(number) else NONE for number in numbers]
        gap = f"{mean(values(runs, 'gap after')):.4f}"
        body.append([case, method, f"{typed:g}", gap, spread(changes(runs), "+.2f"), *cells])
    return markdown("At the same gap: accuracy, points", head, body)


def at_same_gap(records: Sequence[Record], case: str, runs: Sequence[Record]) -> list[float]:
    """Points of each sweep and of the thresholds at the gap of some runs; ahead of the best sweep; behind the last."""
    gap, before, change = mean(values(runs, "gap after")), mean(values(runs, "gap before")), mean(changes(runs))
    source = "gender, parity" if "gender, parity" in case else case.removesuffix(", 95 %")
    curves = [in_hindsight(curve(records, source, name), gap, before) for name in (*SWEEPS, REFERENCE)]
    best = max((c for c in curves[:-1] if not math.isnan(c)), default=math.nan)
    return [*curves, change - best, curves[-1] - change]


def rows_of(
    records: Sequence[Record], present: Sequence[str], methods: Sequence[str]
) -> Iterator[tuple[str, str, float, list[Record]]]:
    """Case, method, bound and its runs, in order."""
    for case in present:
        for method in methods:
            own = select(records, case, method)
            for text in dict.fromkeys(str(run["typed"]) for run in own):  # NaN differs from itself
                yield case, method, float(text), select(records, case, method, float(text))


def case_table(records: Sequence[Record], case: str) -> str:
    """Every method on one case."""
    own = [record for record in records if record["case"] == case]
    measures = [key for key in ("parity", "sampled", "odds", "recall") if f"{key} after" in own[0]]
    head = ["method", "typed", "gap", "accuracy, points", "accuracy", "all bounds met", *measures, "CPU s"]
    once = {r["split"]: r for r in own}.values()
    before = [f"{mean([r[f'{key} before'] for r in once]):.4f}" for key in ("gap", "accuracy")]
    others = [f"{mean([r[f'{key} before'] for r in once]):.4f}" for key in measures]
    body = [["original network", NONE, before[0], NONE, before[1], NONE, *others, NONE]]
    methods = dict.fromkeys(r["method"] for r in own)
    for _, method, typed, runs in rows_of(own, [case], list(methods)):
        cells = [method, NONE if math.isnan(typed) else f"{typed:g}", *figures(runs)]
        cells += [spread(values(runs, f"{key} after"), ".4f") for key in measures]
        body.append([*cells, seconds(runs)])
    return markdown(f"Case: {case}", head, body)


def sweep_table(records: Sequence[Record], case: str) -> str:
    """Every setting of the sweeps."""
    head = ["sweep", "setting", "gap", "accuracy, points"]
    body = []
    for name in (*SWEEPS, REFERENCE):
        body += [[name, setting, f"{gap:.4f}", f"{change:+.2f}"] for gap, change, setting in curve(records, case, name)]
    return markdown(f"Sweeps: {case}", head, body)


def ways(records: Sequence[Record]) -> list[str]:
    """For each bar the ways to call the library that meet it, or come closest to it; time is told apart."""
    lines = []
    for bar in BARS:
        found = {}
        for method in (*OURS, *OURS_AVERAGE, *OURS_CONFIDENT, *ALSO, RATED):
            runs = select(records, bar.case, method, bar.typed)
            if len(runs) >= bar.splits:
                found[method] = {name for name, *_ in bar.lacks(runs)}
        if found:
            met = [name for name, lacks in found.items() if not lacks]
            slow = [name for name, lacks in found.items() if lacks == {"seconds"}]
            text = f"met by {'; '.join(met)}" if met else "met by none"
            text += f"; but for its time by {'; '.join(slow)}" if slow else ""
            lines.append(f"- {bar.case}, {bar}: {text}.")
    return ["\n".join(lines)]


def reading(records: Sequence[Record]) -> list[str]:
    """What the figures say, in words made from them."""
    plain = (*OURS, *OURS_AVERAGE)
    verdicts = {method: [] for method in plain}
    for bar in BARS:
        for method, confident in zip(plain, (*OURS_CONFIDENT, ""), strict=True):
            runs = select(records, bar.case, confident if not math.isnan(bar.share) else method, bar.typed)
            if len(runs) >= bar.splits:
                verdicts[method].append((bar, bar.lacks(runs)))
    lines = ways(records)
    for method, found in verdicts.items():
        met = sum(not lacks for _, lacks in found)
        unjudged = len(BARS) - len(found)
        missed = "; ".join(
            f"{bar.case} {bar.typed:g} ({', '.join(one[0] for one in lacks)})" for bar, lacks in found if lacks
        )
        lines.append(
            f"{method}: {met} of {len(found)} bars met, {unjudged} not judged."
            + (f" Missed: {missed}." if missed else "")
        )
    for method in (*OURS, *OURS_AVERAGE):
        own = [select(records, "gender, parity", method, typed) for typed in (0.10, 0.05, 0.03)]
        found = [at_same_gap(records, "gender, parity", runs)[-2:] for runs in own if runs]
        if found:
            ahead, behind = (", ".join(f"{pair[k]:+.2f}" for pair in found) for k in (0, 1))
            text = f"{method}, parity 0.10, 0.05, 0.03: {ahead} points ahead of the best sweep in hindsight "
            lines.append(text + f"(aim +0.20), {behind} points behind the thresholds by group (aim 0.10).")
    for method in OURS_CONFIDENT:
        counts = []
        for odds in (False, True):
            own = [run for run in records if run["method"] == method and ("odds" in run["case"]) == odds]
            claimed = [run for run in own if run.get("claimed") == 1]
            counts.append(f"{sum(all_met(run) for run in claimed)} of {len(claimed)} times")
        lines.append(
            f"{method}: where cross-validation claims with 95 % confidence that a bound is met, the held-out value is "
            f"within it {counts[0]}; that value is a sample too, with an error of its own. Both parity and odds, the "
            f"one a number, the other the original's value: {counts[1]}."
        )
    odds = select(records, "gender, parity", SWEEPS[0], 0.05)
    if odds:
        before, after = mean(values(odds, "odds before")), mean(values(odds, "odds after"))
        lines.append(f"Adam with a price on parity alone takes the odds difference from {before:.3f} to {after:.3f}.")
    return lines + NOTES
