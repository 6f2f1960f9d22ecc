"""What the page of default calls says of its table."""

READING = """# Default calls on public tables

Made by `python benchmarks/default_calls.py`; every run in `default_calls.csv`. Networks of one hidden layer, trained
on 8,000 rows (recidivism 2,500, insurance 3,000, credit 1,500, arrests 2,000), repaired on others, measured on all that
remain (Adult over 19,000, bank 32,211, the smallest, credit, 2,039), 5 seeds with 2 repair sets each. Held-out rows had
no part in a repair. Short stages, trials that end where bounds are met, aims, the weight of the original's answers,
which weights are tried, and partial pooling were settled on other divisions of Adult, seeds 10 to 29, so rows recur in
other roles; all other tables had no part in anything. "Met on average" is `method=SQP(confidence=0.5)`.

fairlearn and thresholds by group need the group at run time, and AIF360's reject option too (20 x 20 of its 100 x 50
settings, of two groups alone); OxonFair's merged head (of two groups; of four its search takes a minute), fairret and
Adam (10 networks each, chosen on a third of the rows) do not. Peers do not keep recall, so theirs are those of
parity. Processor seconds are from a machine with 2 cores: those of "repairopt" with nothing else to do (recidivism at a
load of 6 to 7, the tables of R packages at 5 to 8), others at loads of 5 to 9.
"Floor" is the most accurate pair of thresholds by group for the measured rows themselves, at a gap of 0.05 and of 0.03,
with the bound on recall where a job has one: what nobody can choose beforehand, or do better by thresholds.

## Before

The same seeds with the version before (gap, points, met of 10): parity 0.028, -1.32, 9; odds 0.066, -0.01, 8; recall
kept 0.039, -2.23, 7; crossed 0.046, -1.66, 5; 500 rows 0.039, -4.22, 7; 200 rows 0.026, -2.63, 8; six groups 0.044,
-3.77, 10, and with a limit of 0.09 0.075, -1.96, 9; recidivism 0.030, -0.76, 8 and 0.058, -0.44, 8; claims 18 of 110.
What changed: bounds that are not shown aim at what is expected of the network delivered, not of those of the folds, and
showing a bound may cost a tenth of a point with the first buffers and two with those that validation asks for; it had
no limit there. Settled on seeds 10 to 29. Peers and "met on average" are from earlier days; they did not change.

## Reading

* **Price of a call.** Measured alone on the machine, where all 90 runs came out as before: the median of the seven jobs
  on Adult is 0.94 CPU-s; we want 1.0 at most. Several groups and a recall that is kept cost 1.1 to 2.2.
* **Parity** costs 1.15 points (0.17 less, standard error 0.07, at a gap that is 0.006 larger) and is met 8 times, where
  the floor at a gap of 0.03 is 1.09 and thresholds by group, met 8 times, cost 1.02. We want 1.1 at 8. To show the gap
  in 18 of 20 divisions costs 0.25 points.
* **A recall that is kept** beside parity costs 1.99 points (0.24 less, standard error 0.11, at the same gap), parity is
  met 7 times, recall is kept 9 times. What we want, 1.1, is below the floor of 1.38. On the rows of a repair recall is
  1.4 points better than on others, and the aim counts with it.
* **Odds** cost nothing, met 8 of 10 as before; we want 9. fairlearn meets all for 1.6 points. Larger buffers do not
  help: on 20 divisions of seeds 10 to 29 whole ones cost 0.15 points, at the same gap, met as often (18).
* **Twenty more divisions**, seeds 30 to 39, which had no part in anything, with `--first 30 --seeds 10`: parity 0.040,
  -1.18, met 14 of 20 (thresholds by group 0.053, -0.98, 6; fairlearn 0.012, -1.82, 20); odds 0.060, +0.07, 18
  (fairlearn 0.031, -1.44, 20); recall kept 0.047, -1.64, 12. A gap alone that is aimed at with 80 % confidence is met
  22 of 30 times here, one beside a recall that is kept 19 of 30: rows of the repair allow a little more than the aim.
* **Crossed groups**: nothing changed.
* **500 rows**: met as often as by thresholds by group, for 0.8 points more: these read the age from the row, and a
  repaired network has no step at an age of 30. **200 rows**: a smaller gap, met 8 times and not 7, for 0.2 points more.
* **Six groups** are met 7 times and not 10, for 0.12 points less; at a limit of 0.09 the gap is 0.077 for 1.8 points,
  where fairlearn goes to 0.020 for 4.9 and Adam to 0.064 for 3.4.
* **Bank marketing** loses nothing, all peers but Adam do. **Recidivism** costs 0.4 to 0.7 points, less than peers
  without the group but Adam, and is met 8 of 10 in both jobs.
* **Six tables that were looked at only when all was settled** (incomes, wages of two surveys, insurance, credit,
  arrests), each with one run of this page: in eight of the nine jobs no peer has a smaller gap at a smaller price. On
  arrests fairret has, where 99 of 100 get the favorable answer. No bound that is claimed is missed. Parity of incomes
  is met 8 times, by thresholds by group 3 times, and costs 2.25 points, where the best thresholds on the measured rows
  lose 2.1 at that gap. Four crossed groups are met 6 times (by fairlearn 8 times, for 0.6 points more). On credit, 500
  rows, thresholds by group have a gap of 0.041 and meet the bound 6 times, the repair 0.031 and 8 times, with 0.1
  points more. 200 rows are met 5 times, for half of what any peer costs. Odds of incomes cost 0.3 points more than by
  OxonFair's head, at a gap of 0.049 after 0.070.
* **Claims**: 32 of 200, none of them false. Of 168 bounds that are not claimed 126 are met (75 %): what is aimed at
  with 80 % confidence is met without being shown. We want 40 % at most, and that cannot be had beside what we want of
  parity: 2,600 rows show a gap of 0.05 where 0.025 is measured (a standard error is 0.0153), which costs 1.18 points
  even with the thresholds that are best on the measured rows, where we want at most 1.1; and a bound that is met 8 of
  10 times without a claim is 80 % met without one. Larger budgets buy claims: `SQP(most_cost=0.02)`.
"""
