"""The outcome of a repair in plain sentences, from the dict of :meth:`repairopt.Report.to_dict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repairopt.patches import number

from .stated import better, missed, restate, stated_names

Plain = dict[str, Any]
LOST_RECALL = 0.05  # of a class, above which there is a warning
LOST_ACCURACY = 0.05  # on a set of labelled rows, above which there is one
EXTREME, MOVED = 0.02, 0.05  # a rate so near to 0 or 1, after moving by more, is warned of
CHANCE = 0.05  # above chance, up to which a balanced accuracy that fell is warned of
BOUNDS = {  # what would keep gaps that are watched though nobody stated them
    "odds gap": "Bound(OddsGap.observed(inputs, labels, ...), slack=0.01), in a spec file gap(..., kind=odds)",
    "parity gap": "Bound(GroupGap.observed(inputs, ...), slack=0.01), in a spec file gap(..., kind=parity)",
    "sampled gap": "Bound(GroupGap.sampled(inputs, column), slack=0.01), in a spec file gap(..., kind=sampled)",
}


def percent(share: float) -> str:
    """A share for people, such as ``"87.3 %"``."""
    return f"{100 * share:.1f} %"


def summarize(plain: Plain) -> list[str]:
    """One to three sentences: goal and constraints, how many answers changed, data that the repair never saw."""
    return [text for text in (_outcome(plain), _answers(plain), _unseen(plain)) if text]


def list_caveats(plain: Plain, label: Callable[[int], str] = str) -> list[str]:
    """What a reader must be told along with the verdict, one text for each."""
    found = []
    if plain["stopped"]:
        found.append(f"Stopped early ({plain['stopped']}); this is the best point found until then.")
    found += list_warnings(plain)
    unseen = measured(plain, held_out=True)
    if unseen is not None and missed(unseen):
        found.append(
            f"On held-out data the target is missed: {number(unseen['after'])} against {number(unseen['target'])}."
        )
    if unseen is None and _unseen_labels(plain) is None and not _is_proved(plain):
        found.append("No held-out data were given: how the repair generalizes is not known. Pass held_out=.")
    if plain["constant"]:
        found.append("The network gives every input the same answer; that is never counted as a repair.")
    found += [*plain["notes"], *_lost_classes(plain["labels"], label)]
    rows = plain["gave_way"]
    if rows:
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        found.append(
            f"Hard rows that gave way: {'; '.join(rows[:3])}{more}. report.explain_conflict() names the rows in "
            f"conflict."
        )
    return found


def list_warnings(plain: Plain, claims: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What went wrong beside the bounds: answers next to the same for all of a group, watched measures that got worse.

    ``claims`` are those of a spec file, in whose names and units the texts are.
    """
    plain = restate(plain, stated_names(claims)) if claims else plain
    return [*_degenerate(plain), *_lost_answers(plain), *_worse(plain)]


def _is_proved(plain: Plain) -> bool:
    """Whether a proof shows the goal for whole regions: then there are no inputs that were not looked at."""
    return (plain.get("proof") or {}).get("status") == "proved"


def proof_in_words(plain: Plain) -> str:
    """What the check of the proof of regions found; empty without one. Only PROVED is called so."""
    found = plain.get("proof")
    if not found:
        return ""
    runs = "in real numbers" if found["execution"] == "exact" else f"in every run in {found['execution']}"
    share = "" if found["status"] == "proved" else f"; proved on {100 * found['share']:.6f} % of the volume"
    return (
        f"{found['status'].upper()}. {found['meaning']} {found['leaves']} boxes, {found['splits']} split "
        f"further{share}; {runs}; {found['samples']:,} points were run. repairopt check-proof checks it again."
    )


def measured(plain: Plain, *, held_out: bool) -> Plain | None:
    """The goal's measure on repair data or held-out data."""
    name = plain["measures"][0]["name"]
    return next((m for m in plain["measures"] if m["name"] == name and m["held_out"] == held_out), None)


def _unseen_labels(plain: Plain) -> Plain | None:
    """Counts of labelled rows that the repair never saw; the goal need not speak of them."""
    return next((one for one in plain["labels"] if one["held_out"]), None)


def _degenerate(plain: Plain) -> list[str]:
    """Warnings where a bound was met by next to the same answer for all of a group, or by answers like chance."""
    found = []
    for measure in plain["measures"]:
        for name, (before, after) in measure["details"].items():
            if not name.startswith("favorable rate") or measure.get("brief") or None in (before, after):
                continue
            if min(after, 1 - after) < EXTREME and abs(after - before) > MOVED:
                found.append(f"{name[0].upper()}{name[1:]}: {number(before)} -> {number(after)} {_where(measure)}")
    found = (
        [f"{'; '.join(found)}. Nearly all of a group get one answer: bound the rates, or loosen what is asked for."]
        if (found)
        else []
    )
    for counts in plain["labels"]:
        before, after = counts["balanced_accuracy"]
        classes = len(counts["recall"])
        if classes > 1 and after < 1 / classes + CHANCE and after < before - EXTREME:
            found.append(
                f"Balanced accuracy fell from {number(before)} to {number(after)} {_where(counts)}; guessing gives "
                f"{number(1 / classes)}."
            )
    return found


def _where(item: Plain) -> str:
    return "on held-out data" if item["held_out"] else "on the repair data"


def _worse(plain: Plain) -> list[str]:
    """Warnings where something that is watched got worse, or turned round, by more than chance explains."""
    found = []
    for name in dict.fromkeys(m["name"] for m in plain["measures"]):
        own = [m for m in plain["measures"] if m["name"] == name and (m.get("worse") or m.get("reversed"))]
        if not own:
            continue
        one = max(own, key=lambda m: (m["worse"], m["held_out"]))
        values = f"from {number(one['before'])} to {number(one['after'])} {_where(one)}"
        if one["worse"]:
            way = "fell" if one.get("relation") == ">=" else "rose"
            text = f"What is watched got worse: {name} {way} {values}, by more than chance explains"
            text += ", and favors others than before" if one["reversed"] else ""
        else:
            text = f"What is watched turned round: {name} favors others than before ({values})"
        bound = BOUNDS.get(name, "Bound(..., slack=0.01)")
        if "(" in name:  # as a spec file states it
            bound = f"{name} {one.get('relation', '<=')} {number(one['before'])}"
        found.append(f"{text}. To keep it, add a bound: {bound}.")
    return found


def _lost_answers(plain: Plain) -> list[str]:
    """A warning where many right answers of rows that no bound speaks of were given up, where most were."""
    bounded = {check["constraint"] for check in plain["checks"]}
    lost = [
        one
        for one in plain["labels"]
        if one["name"] not in bounded
        and one["accuracy"][0] - one["accuracy"][1] > LOST_ACCURACY
        and one["newly_wrong"] - one["newly_right"] > 2 * (one["newly_wrong"] + one["newly_right"]) ** 0.5  # by chance
    ]
    if not lost:
        return []
    worst = max(lost, key=lambda one: one["accuracy"][0] - one["accuracy"][1])
    before, after = (number(share) for share in worst["accuracy"])
    return [
        f"The repair is dear: accuracy on the labels of '{worst['name']}' fell from {before} to {after} "
        f"{_where(worst)} ({worst['newly_wrong']} newly wrong, {worst['newly_right']} newly right). To keep these "
        f"answers, add KeepLabels(inputs, labels, tolerance=0.02), in a spec file accuracy_drop <= 0.02."
    ]


def _lost_classes(labels: list[Plain], label: Callable[[int], str]) -> list[str]:
    """A warning where a bound was met by giving up a class."""
    counts = next((one for one in labels if not one["held_out"]), None)
    lost = {k: pair for k, pair in (counts["recall"] if counts else {}).items() if pair[0] - pair[1] > LOST_RECALL}
    if not lost:
        return []
    worst = max(lost, key=lambda k: lost[k][0] - lost[k][1])
    before, after = (f"{share:.3f}" for share in lost[worst])
    return [
        f"Recall of class {label(int(worst))} fell from {before} to {after}. If that is too much, bound it, for "
        f"example with Bound(MissRate(inputs, labels, {worst}), slack=0.01)."
    ]


def _outcome(plain: Plain) -> str:
    goal, verdict = plain["measures"][0], plain["verdict"]
    limit = number(goal["target"])
    moved = f"{goal['name']} {_moved(goal['before'], goal['after'])}"
    hard = [check for check in plain["checks"] if not check["held_out"] and not check["soft"]]
    failed = [f"'{check['constraint']}'" for check in hard if not check["holds"]]
    kept = f", and all {len(hard)} constraints hold" if hard else ""
    kept = ", and the constraint holds" if len(hard) == 1 else kept
    if verdict == "repaired":
        if plain["weights"]["changed"] == 0:
            return f"Nothing had to be changed: {goal['name']} is {number(goal['after'])}, within the limit of {limit}."
        return f"The network was repaired: {moved}, within the limit of {limit}{kept}."
    if verdict == "improved":
        nearer = better(goal, goal["after"], goal["before"])
        kept = kept if nearer else ". Constraints that failed on the original network, or its one answer, are mended"
        return f"The network is better but not repaired: {moved}, and the limit is {limit}{kept}."
    if verdict == "violated":
        what = f"{', '.join(failed)} failed" if failed else "the network now gives every input the same answer"
        return f"The repair is not to be used: {what}. {moved[0].upper()}{moved[1:]}; the limit is {limit}."
    if verdict == "infeasible":
        return (
            f"What was asked for cannot all hold at once by changing the chosen weights: {moved}; the limit is {limit}."
        )
    why = "" if missed(goal) else ", which does not count, because the network gives every input the same answer"
    return f"No better network was found: {goal['name']} stays at {number(goal['after'])}{why}; the limit is {limit}."


def _moved(before: float, after: float) -> str:
    if before == after:
        return f"stayed at {number(after)}"
    return f"{'fell' if after < before else 'rose'} from {number(before)} to {number(after)}"


def _answers(plain: Plain) -> str:
    """The largest labelled set of the repair data; there is little to learn from one made of failures alone."""
    sets = [counts for counts in plain["labels"] if not counts["held_out"]]
    if not sets:
        return ""
    counts = max(sets, key=lambda c: c["count"])
    before, after = counts["accuracy"]
    return (
        f"Of {counts['count']:,} labelled inputs, {_became(counts['newly_wrong'], 'wrong')} and "
        f"{_became(counts['newly_right'], 'right')}: accuracy {percent(before)} before, {percent(after)} after."
    )


def _became(count: int, what: str) -> str:
    if count == 0:
        return f"no answer became {what}"
    return f"{count:,} {'answer' if count == 1 else 'answers'} became {what}"


def _unseen(plain: Plain) -> str:
    unseen = measured(plain, held_out=True)
    if unseen is None and _is_proved(plain):
        return "It is proved for every input of the regions, those included that the repair did not see."
    if unseen is None and (labels := _unseen_labels(plain)) is not None:
        before, after = (percent(share) for share in labels["accuracy"])
        changed = f"{labels['newly_wrong']:,} newly wrong, {labels['newly_right']:,} newly right"
        return f"On data that the repair never saw, accuracy goes from {before} to {after} ({changed})."
    if unseen is None:
        return "It was not tried on data that the repair did not see."
    text = f"On data that the repair never saw, {unseen['name']} {_moved(unseen['before'], unseen['after'])}"
    if unseen["target"] is None:
        return text + "."
    if missed(unseen):
        return text + f": the limit of {number(unseen['target'])} is missed there."
    return text + f": the limit of {number(unseen['target'])} is met there too."
