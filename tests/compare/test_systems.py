"""Every system of the five papers that is required has tests of what makes it work; here is which, by its name."""

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
EXPERTS, LOOP = "methods/test_nnrepair.py", "methods/test_counterexample_guided.py"
PEERS, REGIONS = "methods/test_provable_peers.py", "methods/test_regions.py"
ROBUST, ZONOTOPE, SLICES = "specify/test_robustness.py", "network/test_zonotope.py", "localize/test_slicing.py"
SAMPLES, GAPS = "specify/test_sample_groups.py", "specify/test_properties.py"

TESTED = {  # one entry for each line that says when a system works
    "AutoRIC (QP, constraints)": [(METHODS, "test_every_method_repairs_the_biased_network")],
    "AutoRIC incremental (cutting-plane) solving": [
        (METHODS, "test_one_shot_and_cutting_planes_agree_where_all_rows_are_included")
    ],
    "AutoRIC-LP": [(METHODS, "test_a_linear_program_is_one_and_ends_where_scipy_ends")],
    "AutoRIC UOBD (unconstrained optimum + bisection)": [
        (METHODS, "test_bisection_returns_a_feasible_point_and_is_never_worse_in_the_surrogate")
    ],
    "AutoRIC compositional use": [
        (METHODS, "test_a_sequence_lowers_its_merit_step_by_step_and_ends_by_the_smallest_step")
    ],
    "AutoRIC robustness goal (1/radius)": [(ROBUST, "test_repair_of_the_last_layer_widens_the_certified_radius")],
    "Group fairness by sampling (difference, KL, multi-valued)": [
        (SAMPLES, "test_a_seed_decides_the_draw"),
        (GAPS, "test_difference_of_two_and_mean_and_maximum_over_pairs_of_four"),
        (GAPS, "test_kullback_leibler_with_smoothing_by_hand"),
        (GAPS, "test_rates_and_details"),
    ],
    "Robustness radius by bisection": [
        (ZONOTOPE, "test_affine_network_is_exact"),
        (ROBUST, "test_published_network_has_its_known_radius"),
    ],
    "Retraining": [(TRAIN, "test_retraining_is_reproducible_and_takes_the_best_goal_among_the_accurate")],
    "CARE": [(SEARCH, "test_CARE")],
    "PVNN": [(SEARCH, "test_PVNN")],
    "PRDNN": [(POINTS, "test_prdnn_finds_the_known_optimum_of_a_toy")],
    "APRNN": [(POINTS, "test_aprnn_repairs_the_ordinary_network_and_keeps_all_patterns")],
    "NNRepair intermediate layer": [
        (EXPERTS, "test_an_intermediate_layer_gives_failing_points_typical_signs"),
        (EXPERTS, "test_experts_are_merged_by_confidence"),
    ],
    "NNRepair last layer": [(EXPERTS, "test_an_expert_of_the_last_layer_meets_all_its_rows")],
    "MDNN (MVDNN)": [(POINTS, "test_mdnn_finds_the_least_change_of_an_early_layer_as_brute_force_does")],
    "REASSURE (RA)": [(POINTS, "test_reassure_repairs_whole_linear_regions_and_changes_nothing_outside_of_shells")],
    "LocalRepair (LRNN)": [(POINTS, "test_local_repair_fixes_points_with_the_least_change_of_outputs_on_data")],
    "Counterexample-guided repair": [
        (LOOP, "test_a_region_is_repaired_and_proved"),
        (LOOP, "test_the_limit_of_rounds_ends_with_a_report_that_claims_no_proof"),
    ],
    "SpecRepair": [
        (LOOP, "test_a_region_is_repaired_and_proved"),
        (LOOP, "test_SpecRepair_removes_counterexamples_at_the_least_change_of_the_outputs_on_data"),
    ],
    "Arachne (AR)": [(SEARCH, "test_Arachne")],
    "Editable Training (ET)": [
        (REPAIRERS, "test_editable_training_edits_failing_rows_in_ten_steps_with_bounded_drawdown")
    ],
    "Veritex": [(REGIONS, "test_default_call_proves_a_region")],
    "BIRDNN-RT": [
        (SELECT, "test_birdnn_samples_that_violate_imitate_and_the_violation_rate_falls"),
        (SELECT, "test_birdnn_rows_that_fail_imitate_right_rows_of_their_class"),
    ],
    "BIRDNN-FT": [(SEARCH, "test_BIRDNN_FT")],
    "VeRe (VERE)": [(PEERS, "test_VeRe")],
    "FairNeuron": [
        (SELECT, "test_fair_neuron_finds_rare_paths"),
        (SELECT, "test_fair_neuron_selective_dropout_lowers_the_gap"),
    ],
    "RUNNER": [(SELECT, "test_runner_lowers_the_importance_gap_of_unfair_neurons_and_the_group_gap")],
    "FAD (one-network adversarial fairness)": [
        (TRAIN, "test_adv_adversarial_debiasing_leaves_an_adversary_at_the_base_rate")
    ],
    "Ethical Adversaries": [(TRAIN, "test_adv_adversarial_debiasing_leaves_an_adversary_at_the_base_rate")],
    "RNNRepair": [(TRAINERS, "test_rnn_repair_finds_influential_training_samples_and_remedies_failing_sequences")],
    "AIRepair": [(COMPARE, "test_every_outcome_is_told_and_a_stopped_comparison_goes_on")],
    "SOCRATES": [(COMPARE, "test_systems_that_repair_a_gap_between_groups_are_hosted")],
    "DeepZ zonotope verifier": [
        (ZONOTOPE, "test_no_counterexample_in_a_certified_ball"),
        (ZONOTOPE, "test_agrees_with_an_independent_implementation"),
    ],
    "DeepFault (Tarantula, Ochiai, D*)": [
        (LOCAL, "test_formulae_match_counts_by_hand"),
        (LOCAL, "test_DeepFault_finds_a_planted_neuron"),
    ],
    "GenMuNN (GM)": [(SEARCH, "test_GenMuNN"), (SEARCH, "test_GenMuNN_never_lowers_the_accuracy")],
    "DARE": [
        (POST, "test_dare_raises_the_mean_robustness_over_four_attacks_and_keeps_clean_accuracy"),
        (POST, "test_dare_references_come_from_later_networks_that_are_right_and_more_confident"),
    ],
    "DARE_-s": [(POST, "test_dare_ablation_switches")],
    "DARE_-sl": [(POST, "test_dare_ablation_switches")],
    "DARE_last": [(POST, "test_dare_ablation_switches")],
    "DARE_rand": [(POST, "test_dare_ablation_switches")],
    "FMT_s": [
        (POST, "test_fmt_lowers_the_gaps_at_little_accuracy"),
        (POST, "test_fmt_pairs_differ_in_the_protected_attribute_alone"),
    ],
    "FMT_d": [
        (POST, "test_fmt_lowers_the_gaps_at_little_accuracy"),
        (POST, "test_fmt_pairs_differ_in_the_protected_attribute_alone"),
    ],
    "FMT variants (-s, -sl, last, rand)": [(POST, "test_fmt_variants_switch")],
    "NNSlicer": [(SLICES, "test_the_planted_path_gets_the_top_scores_and_masks_keep_their_share")],
    "C&W adversarial training": [
        (ATTACKS, "test_adversarial_training_makes_valid_points_and_gains_against_that_attack"),
        (ATTACKS, "test_carlini_and_wagner_find_nearer_points_than_one_step"),
        (ATTACKS, "test_attacks_agree_with_those_of_foolbox"),
    ],
    "FGSM adversarial training": [
        (ATTACKS, "test_adversarial_training_makes_valid_points_and_gains_against_that_attack"),
        (ATTACKS, "test_attacks_agree_with_those_of_foolbox"),
    ],
    "JSMA adversarial training": [
        (ATTACKS, "test_adversarial_training_makes_valid_points_and_gains_against_that_attack"),
        (ATTACKS, "test_jsma_raises_the_feature_with_the_largest_saliency"),
    ],
    "PGD adversarial training": [
        (ATTACKS, "test_adversarial_training_makes_valid_points_and_gains_against_that_attack")
    ],
    "BIM adversarial training": [
        (ATTACKS, "test_adversarial_training_makes_valid_points_and_gains_against_that_attack"),
        (ATTACKS, "test_attacks_agree_with_those_of_foolbox"),
    ],
    "Defensive (knowledge) distillation": [
        (TRAIN, "test_defensive_distillation_trains_a_student_at_temperature_10_on_soft_labels")
    ],
    "REW reweighing": [
        (TRAIN, "test_rew_reweighing_makes_group_and_label_independent"),
        (TRAIN, "test_weights_are_those_of_aif360"),
    ],
    "ADV adversarial debiasing": [(TRAIN, "test_adv_adversarial_debiasing_leaves_an_adversary_at_the_base_rate")],
    "ROC reject option classification": [
        (VOTES, "test_ROC_meets_its_bound_with_the_best_balanced_accuracy"),
        (VOTES, "test_ROC_decides_as_aif360"),
    ],
    "SUPP (drop protected feature)": [(TRAIN, "test_supp_drop_protected_feature_trains_without_the_column")],
    "SPD, AAOD, EOD": [(COMPARE, "test_metrics_match_a_confusion_table_made_by_hand")],
    "Empirical robustness": [(ROBUST, "test_error_under_attack")],
    "ArchRepair": [
        (LOCAL, "test_AdversarialSpectrum_finds_a_planted_block"),
        (ARCHITECTURE, "test_the_relaxed_block_matches_the_original_at_step_0"),
        (ARCHITECTURE, "test_ArchRepair_beats_its_layer_level_variant"),
    ],
    "ArchRepair layer-level variant": [(ARCHITECTURE, "test_ArchRepair_beats_its_layer_level_variant")],
    "Gradient repair at neuron/layer/block/network level": [
        (TRAIN, "test_gradient_repair_finds_the_largest_gradient_and_only_that_part_changes")
    ],
    "Adversarial-aware spectrum localisation": [
        (LOCAL, "test_formula_6_on_four_neurons"),
        (LOCAL, "test_AdversarialSpectrum_finds_a_planted_block"),
    ],
    "DARTS / PC-DARTS search": [(ARCHITECTURE, "test_PC_DARTS_picks_the_known_best_operation")],
    "MODE": [(SELECT, "test_mode_selects_by_the_differential_heat_map_and_retraining_gains")],
    "Apricot (AP)": [
        (REPAIRERS, "test_apricot_moves_towards_right_submodels_and_away_from_wrong_ones"),
        (REPAIRERS, "test_apricot_accepts_only_what_raises_validation_accuracy"),
    ],
    "SENSEI": [
        (TRAINERS, "test_sensei_finds_worse_variants_from_generation_to_generation"),
        (TRAINERS, "test_sensei_skips_robust_images_for_some_epochs"),
    ],
    "Few-Shot guided mix (FSGMix, FM)": [(IMAGES, "test_FSGMix_has_other_weights_than_a_Dirichlet_distribution")],
    "DeepRepair (DR, clustered)": [
        (IMAGES, "test_references_come_from_clusters"),
        (IMAGES, "test_DeepRepair_is_above_AugMix_for_half_of_the_patterns"),
    ],
    "DeepRepair no-cluster": [(IMAGES, "test_references_come_from_clusters"), (IMAGES, "test_DeepRepair")],
    "WCT2 style transfer": [(IMAGES, "test_WCT2_moves_the_style_and_keeps_the_content"), (IMAGES, "test_DeepRepair")],
    "AugMix": [(IMAGES, "test_AugMix")],
    "CutMix": [(IMAGES, "test_labels_count_by_the_share_of_their_rows"), (IMAGES, "test_CutMix")],
    "Cutout": [(IMAGES, "test_Cutout")],
    "Mixup": [(IMAGES, "test_labels_count_by_the_share_of_their_rows"), (IMAGES, "test_Mixup")],
    "HUDD": [
        (SELECT, "test_hudd_clusters_match_planted_causes"),
        (SELECT, "test_hudd_retraining_on_selected_rows_raises_accuracy"),
    ],
    "HybridRepair (HR)": [
        (TRAINERS, "test_hybrid_repair_spreads_labels_rightly_in_the_selected_clusters"),
        (TRAINERS, "test_hybrid_repair_raises_accuracy"),
    ],
    "3M-DNN (3M)": [(PEERS, "test_3M_DNN_needs_no_more_than_the_best_single_layer")],
    "NeuRecover (NR)": [(SEARCH, "test_NeuRecover")],
    "I-REPAIR (IR)": [(REPAIRERS, "test_i_repair_changes_masked_weights_only_until_all_are_right_or_the_budget_ends")],
    "DISTRREP (DTR)": [(SEARCH, "test_DISTRREP")],
    "INNER (IN)": [(REPAIRERS, "test_inner_probe_finds_the_planted_neuron_and_alignment_fixes_part")],
    "Soft voting (SV)": [(VOTES, "test_SV_is_the_argmax_of_the_mean")],
    "Hard voting (HV)": [(VOTES, "test_HV_a_tie_goes_to_the_more_confident")],
    "Uncertainty alignment by perturbation (UP)": [(VOTES, "test_UP_the_less_uncertain_network_decides")],
    "Uncertainty alignment by dropout (UD)": [(VOTES, "test_UD_the_less_uncertain_network_decides")],
    "Temperature-scaling alignment (US)": [(VOTES, "test_US_the_calibration_error_falls")],
    "ACC, RR, NFR": [(COMPARE, "test_metrics_match_a_confusion_table_made_by_hand")],
    "ASR (Linf PGD)": [
        (COMPARE, "test_attacks_reach_500_rows_that_both_networks_label_right"),
        (COMPARE, "test_attack_success_counts_right_rows_alone"),
    ],
    "T-test + Benjamini-Hochberg letter groups": [(COMPARE, "test_letters_of_a_toy_example")],
    "Uniform train/valid/repair/test protocol": [
        (COMPARE, "test_parts_share_no_row_and_equal_rows_stay_together"),
        (COMPARE, "test_every_outcome_is_told_and_a_stopped_comparison_goes_on"),
    ],
}


@cache
def functions(file):
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("system", TESTED)
def test_the_tests_of_a_system_are_there(system):
    for file, name in TESTED[system]:
        assert name in functions(file)


def test_every_system_is_offered_by_its_name():
    offered = {one.name for one in list_systems()} | {name for name, _, _ in TOOLS}
    assert set(TESTED) <= offered


def test_tools_are_where_they_are_said_to_be():
    for name, _, where in TOOLS:
        module, _, attribute = where.rpartition(".")
        assert hasattr(import_module(module), attribute), name
