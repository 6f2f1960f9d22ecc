"""Every system of the five papers that is required has a test of what makes it work; here is which, by its name."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from repairopt.compare import TOOLS, list_systems

TESTS = Path(__file__).resolve().parents[1]
ATTACKS, POST, TRAIN = "methods/test_attacks.py", "methods/test_post_training.py", "methods/test_training_room.py"
SEARCH, POINTS, VOTES = "methods/test_search_room.py", "methods/test_points.py", "methods/test_voting.py"
SELECT, REPAIRERS = "methods/test_selecting_trainers.py", "methods/test_model_repairers.py"
IMAGES = "methods/test_augmentation.py"
LOCAL, METHODS, COMPARE = "localize/test_localizers.py", "methods/test_methods.py", "compare/test_compare_repairs.py"
TRAINERS, ARCHITECTURE = "methods/test_image_and_text_trainers.py", "methods/test_architecture_room.py"

TESTED = {
    "AutoRIC (QP, constraints)": (METHODS, "test_every_method_repairs_the_biased_network"),
    "AutoRIC incremental (cutting-plane) solving": (
        METHODS,
        "test_one_shot_and_cutting_planes_agree_where_all_rows_are_included",
    ),
    "AutoRIC-LP": (METHODS, "test_a_linear_program_is_one"),
    "AutoRIC UOBD (unconstrained optimum + bisection)": (
        METHODS,
        "test_bisection_returns_a_feasible_point_and_is_never_worse_in_the_surrogate",
    ),
    "AutoRIC compositional use": (METHODS, "test_every_method_repairs_the_biased_network"),
    "AutoRIC robustness goal (1/radius)": (
        "specify/test_robustness.py",
        "test_repair_of_the_last_layer_widens_the_certified_radius",
    ),
    "Group fairness by sampling (difference, KL, multi-valued)": (
        "specify/test_sample_groups.py",
        "test_a_seed_decides_the_draw",
    ),
    "Robustness radius by bisection": ("specify/test_robustness.py", "test_published_network_has_its_known_radius"),
    "Retraining": (TRAIN, "test_retraining_is_reproducible_and_takes_the_best_goal_among_the_accurate"),
    "CARE": (SEARCH, "test_CARE"),
    "PVNN": (SEARCH, "test_PVNN"),
    "PRDNN": (POINTS, "test_prdnn_finds_the_known_optimum_of_a_toy"),
    "APRNN": (POINTS, "test_aprnn_repairs_the_ordinary_network_and_keeps_all_patterns"),
    "NNRepair intermediate layer": (
        "methods/test_nnrepair.py",
        "test_an_intermediate_layer_gives_failing_points_typical_signs",
    ),
    "NNRepair last layer": ("methods/test_nnrepair.py", "test_an_expert_of_the_last_layer_meets_all_its_rows"),
    "MDNN (MVDNN)": (POINTS, "test_mdnn_finds_the_least_change_of_an_early_layer_as_brute_force_does"),
    "REASSURE (RA)": (POINTS, "test_reassure_repairs_whole_linear_regions_and_changes_nothing_outside_of_shells"),
    "LocalRepair (LRNN)": (POINTS, "test_local_repair_fixes_points_with_the_least_change_of_outputs_on_data"),
    "Counterexample-guided repair": ("methods/test_counterexample_guided.py", "test_a_region_is_repaired_and_proved"),
    "SpecRepair": ("methods/test_counterexample_guided.py", "test_a_region_is_repaired_and_proved"),
    "Arachne (AR)": (SEARCH, "test_Arachne"),
    "Editable Training (ET)": (
        REPAIRERS,
        "test_editable_training_edits_failing_rows_in_ten_steps_with_bounded_drawdown",
    ),
    "Veritex": ("methods/test_regions.py", "test_balls_in_many_dimensions_are_proved_by_all_layers"),
    "BIRDNN-RT": (SELECT, "test_birdnn_samples_that_violate_imitate_and_the_violation_rate_falls"),
    "BIRDNN-FT": (SEARCH, "test_BIRDNN_FT"),
    "VeRe (VERE)": ("methods/test_provable_peers.py", "test_VeRe"),
    "FairNeuron": (SELECT, "test_fair_neuron_selective_dropout_lowers_the_gap"),
    "RUNNER": (SELECT, "test_runner_lowers_the_importance_gap_of_unfair_neurons_and_the_group_gap"),
    "FAD (one-network adversarial fairness)": (
        TRAIN,
        "test_adv_adversarial_debiasing_leaves_an_adversary_at_the_base_rate",
    ),
    "Ethical Adversaries": (TRAIN, "test_adv_adversarial_debiasing_leaves_an_adversary_at_the_base_rate"),
    "RNNRepair": (TRAINERS, "test_rnn_repair_finds_influential_training_samples_and_remedies_failing_sequences"),
    "AIRepair": (COMPARE, "test_every_outcome_is_told_and_a_stopped_comparison_goes_on"),
    "SOCRATES": (COMPARE, "test_every_outcome_is_told_and_a_stopped_comparison_goes_on"),
    "DeepZ zonotope verifier": ("network/test_zonotope.py", "test_no_counterexample_in_a_certified_ball"),
    "DeepFault (Tarantula, Ochiai, D*)": (LOCAL, "test_DeepFault_finds_a_planted_neuron"),
    "GenMuNN (GM)": (SEARCH, "test_GenMuNN_never_lowers_the_accuracy"),
    "DARE": (POST, "test_dare_raises_the_mean_robustness_over_four_attacks_and_keeps_clean_accuracy"),
    "DARE_-s": (POST, "test_dare_ablation_switches"),
    "DARE_-sl": (POST, "test_dare_ablation_switches"),
    "DARE_last": (POST, "test_dare_ablation_switches"),
    "DARE_rand": (POST, "test_dare_ablation_switches"),
    "FMT_s": (POST, "test_fmt_lowers_the_gaps_at_little_accuracy"),
    "FMT_d": (POST, "test_fmt_lowers_the_gaps_at_little_accuracy"),
    "FMT variants (-s, -sl, last, rand)": (POST, "test_fmt_variants_switch"),
    "NNSlicer": (
        "localize/test_slicing.py",
        "test_the_planted_path_gets_the_top_scores_and_masks_keep_their_share",
    ),
    "C&W adversarial training": (
        ATTACKS,
        "test_adversarial_training_makes_valid_points_and_gains_against_that_attack",
    ),
    "FGSM adversarial training": (
        ATTACKS,
        "test_adversarial_training_makes_valid_points_and_gains_against_that_attack",
    ),
    "JSMA adversarial training": (
        ATTACKS,
        "test_adversarial_training_makes_valid_points_and_gains_against_that_attack",
    ),
    "PGD adversarial training": (
        ATTACKS,
        "test_adversarial_training_makes_valid_points_and_gains_against_that_attack",
    ),
    "BIM adversarial training": (
        ATTACKS,
        "test_adversarial_training_makes_valid_points_and_gains_against_that_attack",
    ),
    "Defensive (knowledge) distillation": (
        TRAIN,
        "test_defensive_distillation_trains_a_student_at_temperature_10_on_soft_labels",
    ),
    "REW reweighing": (TRAIN, "test_rew_reweighing_makes_group_and_label_independent"),
    "ADV adversarial debiasing": (TRAIN, "test_adv_adversarial_debiasing_leaves_an_adversary_at_the_base_rate"),
    "ROC reject option classification": (VOTES, "test_ROC_meets_its_bound_with_the_best_balanced_accuracy"),
    "SUPP (drop protected feature)": (TRAIN, "test_supp_drop_protected_feature_trains_without_the_column"),
    "SPD, AAOD, EOD": (COMPARE, "test_metrics_match_a_confusion_table_made_by_hand"),
    "Empirical robustness": ("specify/test_robustness.py", "test_error_under_attack"),
    "ArchRepair": (ARCHITECTURE, "test_ArchRepair_beats_its_layer_level_variant"),
    "ArchRepair layer-level variant": (ARCHITECTURE, "test_ArchRepair_beats_its_layer_level_variant"),
    "Gradient repair at neuron/layer/block/network level": (
        TRAIN,
        "test_gradient_repair_finds_the_largest_gradient_and_only_that_part_changes",
    ),
    "Adversarial-aware spectrum localisation": (LOCAL, "test_AdversarialSpectrum_finds_a_planted_block"),
    "DARTS / PC-DARTS search": (ARCHITECTURE, "test_PC_DARTS_picks_the_known_best_operation"),
    "MODE": (SELECT, "test_mode_selects_by_the_differential_heat_map_and_retraining_gains"),
    "Apricot (AP)": (REPAIRERS, "test_apricot_moves_towards_right_submodels_and_away_from_wrong_ones"),
    "SENSEI": (TRAINERS, "test_sensei_finds_worse_variants_from_generation_to_generation"),
    "Few-Shot guided mix (FSGMix, FM)": (IMAGES, "test_FSGMix_has_other_weights_than_a_Dirichlet_distribution"),
    "DeepRepair (DR, clustered)": (IMAGES, "test_DeepRepair"),
    "DeepRepair no-cluster": (IMAGES, "test_DeepRepair"),
    "WCT2 style transfer": (IMAGES, "test_WCT2_moves_the_style_and_keeps_the_content"),
    "AugMix": (IMAGES, "test_AugMix"),
    "CutMix": (IMAGES, "test_CutMix"),
    "Cutout": (IMAGES, "test_Cutout"),
    "Mixup": (IMAGES, "test_Mixup"),
    "HUDD": (SELECT, "test_hudd_clusters_match_planted_causes"),
    "HybridRepair (HR)": (TRAINERS, "test_hybrid_repair_spreads_labels_rightly_in_the_selected_clusters"),
    "3M-DNN (3M)": ("methods/test_provable_peers.py", "test_3M_DNN_needs_no_more_than_the_best_single_layer"),
    "NeuRecover (NR)": (SEARCH, "test_NeuRecover"),
    "I-REPAIR (IR)": (
        REPAIRERS,
        "test_i_repair_changes_masked_weights_only_until_all_are_right_or_the_budget_ends",
    ),
    "DISTRREP (DTR)": (SEARCH, "test_DISTRREP"),
    "INNER (IN)": (REPAIRERS, "test_inner_probe_finds_the_planted_neuron_and_alignment_fixes_part"),
    "Soft voting (SV)": (VOTES, "test_SV_is_the_argmax_of_the_mean"),
    "Hard voting (HV)": (VOTES, "test_HV_a_tie_goes_to_the_more_confident"),
    "Uncertainty alignment by perturbation (UP)": (VOTES, "test_UP_the_less_uncertain_network_decides"),
    "Uncertainty alignment by dropout (UD)": (VOTES, "test_UD_the_less_uncertain_network_decides"),
    "Temperature-scaling alignment (US)": (VOTES, "test_US_the_calibration_error_falls"),
    "ACC, RR, NFR": (COMPARE, "test_metrics_match_a_confusion_table_made_by_hand"),
    "ASR (Linf PGD)": (COMPARE, "test_attack_success_counts_right_rows_alone"),
    "T-test + Benjamini-Hochberg letter groups": (COMPARE, "test_letters_of_a_toy_example"),
    "Uniform train/valid/repair/test protocol": (COMPARE, "test_parts_share_no_row_and_equal_rows_stay_together"),
}


@cache
def functions(file):
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("system", TESTED)
def test_the_test_of_a_system_is_there(system):
    file, name = TESTED[system]
    assert name in functions(file)


def test_every_system_is_offered_by_its_name():
    offered = {one.name for one in list_systems()} | {name for name, _, _ in TOOLS}
    assert set(TESTED) <= offered


def test_tools_are_where_they_are_said_to_be():
    for name, _, where in TOOLS:
        module, _, attribute = where.rpartition(".")
        assert hasattr(import_module(module), attribute), name
