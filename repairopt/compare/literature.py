"""Systems of the literature that are no method of repair: what measures, localizes, verifies or compares here."""

from __future__ import annotations

TOOLS: tuple[tuple[str, str, str], ...] = (  # name in the papers, family, where it is in this library
    ("ACC, RR, NFR", "metric", "repairopt.compare.fixing_rates"),
    ("ASR (Linf PGD)", "metric", "repairopt.AttackSuccess"),
    ("Empirical robustness", "metric", "repairopt.specify.AdversarialError"),
    ("Group fairness by sampling (difference, KL, multi-valued)", "metric", "repairopt.GroupGap"),
    ("Robustness radius by bisection", "metric", "repairopt.specify.CertifiedRadius"),
    ("SPD, AAOD, EOD", "metric", "repairopt.compare.group_rates"),
    ("T-test + Benjamini-Hochberg letter groups", "metric", "repairopt.compare.letter_groups"),
    ("Adversarial-aware spectrum localisation", "localize", "repairopt.localize.AdversarialSpectrum"),
    ("DeepFault (Tarantula, Ochiai, D*)", "localize", "repairopt.localize.DeepFault"),
    ("NNSlicer", "localize", "repairopt.localize.Slicer"),
    ("AutoRIC robustness goal (1/radius)", "specify", "repairopt.specify.CertifiedRadius"),
    ("DARTS / PC-DARTS search", "architecture", "repairopt.methods.ArchRepair"),
    ("WCT2 style transfer", "augment", "repairopt.methods.DeepRepair"),
    ("DeepZ zonotope verifier", "verify", "repairopt.network.Certifier"),
    ("Veritex", "verify", "repairopt.RegionRepair"),
    ("AIRepair", "platform", "repairopt.compare_repairs"),
    ("SOCRATES", "platform", "repairopt.compare_repairs"),
    ("Uniform train/valid/repair/test protocol", "platform", "repairopt.Subject"),
)
