"""Each fault that gave a wrong answer in silence once has a test, and a place in the documentation.

`docs/reliability.md` names the file of each of these tests.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = (TESTS.parent / "docs" / "reliability.md").read_text("utf-8")

FAULTS = {
    # Task and logits guessed from values
    "a regression is read as a classifier": (
        "misuse/test_misuse.py::test_refused_as_nobody_says_what_it_is"
    ),
    "the first examples decide what 0.3 is": "_models/test_meaning.py::test_values_say_nothing",
    "a served detector decides by its first request": (
        "export/test_declared_inputs.py::test_the_first_request_decides_nothing"
    ),
    "compiled or not, two answers": "misuse/test_misuse.py::test_not_compiled_is_the_same",
    "one example at a time, another answer": "predictive/test_one_answer.py::test_in_python",
    "an export answers otherwise": "predictive/test_one_answer.py::test_in_exports",
    "a soft-max over independent labels": (
        "layers/test_heads.py::test_heads_declare_what_their_numbers_are"
    ),
    "a soft-max over one class": "layers/test_heads.py::test_one_class_is_refused",
    "energies of normalized logits": (
        "ood/test_own_logits.py::test_scores_are_those_of_the_mean_network"
    ),
    "normalized logits without their layer": (
        "ood/test_own_logits.py::test_normalized_logits_without_their_layer_are_refused"
    ),
    "maps of a certain prediction are 0": "interpret/test_grad_cam.py::test_certain_predictions",
    "guided maps of a certain prediction are 0": (
        "interpret/test_guided.py::test_certain_predictions"
    ),
    # A stack told by counting axes
    "six patients are six samples of one": (
        "misuse/test_misuse.py::test_a_column_is_as_good_as_a_row"
    ),
    "a rule in a model has one answer": (
        "misuse/test_misuse.py::test_a_rule_in_a_model_answers_each_patient"
    ),
    "two readings of two axes": (
        "misuse/test_misuse.py::test_two_axes_of_a_binary_rule_have_two_readings"
    ),
    # Nothing checked when it counts
    "logits, percentages and bytes are accepted": (
        "misuse/test_misuse.py::test_refused_as_they_are_no_probabilities"
    ),
    "three classes for a rule of five": (
        "misuse/test_misuse.py::test_refused_as_they_are_of_other_classes"
    ),
    "graphs accept what is no probability": (
        "selective/test_own_rows.py::test_a_prediction_that_is_none_is_not_accepted"
    ),
    "an export takes bytes for 0 to 1": (
        "export/test_declared_inputs.py::test_images_of_another_range_are_not_accepted"
    ),
    "Python takes bytes for 0 to 1": (
        "predictive/test_declared_range.py::test_another_range_is_refused"
    ),
    "a server takes bytes for 0 to 1": "misuse/test_misuse_served.py::test_refused_by_the_server",
    "server and command line scale differently": (
        "serving/test_serving.py::test_images_are_read_as_the_command_line_reads_them"
    ),
    # Marginally right, jointly wrong
    "draws that no one network makes": (
        "layers/test_draws.py::test_outputs_at_x_and_minus_x_are_those_of_one_network"
    ),
    "draws that differ between batches": (
        "predictive/test_predictive.py::test_samples_are_networks_whatever_the_batches"
    ),
    "draws without the posterior's covariances": (
        "layers/test_draws.py::test_draws_of_last_layers_have_the_covariances_of_their_posterior"
    ),
    # Counted or applied per call
    "a shared layer's KL twice": "layers/test_training.py::test_a_shared_layer_adds_its_kl_once",
    "the KL once per step": "layers/test_training.py::test_time_distributed_adds_the_kl_once",
    "the KL in loops": "layers/test_training.py::test_the_kl_within_loops_counts_once",
    "a term that ignores the loss": (
        "layers/test_training.py::test_the_term_is_weighted_and_reduced_as_the_loss"
    ),
    "a term that ignores masks": "layers/test_training.py::test_the_term_honours_masks",
    "a kl_weight for labels and pixels": (
        "layers/test_kl_weight.py::test_counts_what_keras_averages_over"
    ),
    "a kl_weight that is far too large": (
        "layers/test_training.py::test_a_far_too_large_weight_warns_when_built"
    ),
    "weight decay of deviations": (
        "layers/test_training.py::test_weight_decay_leaves_the_spread_alone"
    ),
    "training on padding": "layers/test_heads.py::test_loss_does_not_train_on_padding",
    "rows that are there several times": (
        "selective/test_repeated_rows.py::test_rows_that_are_all_there_several_times_are_told"
    ),
    # State that pretends
    "dropout layers share a mask": (
        "layers/test_draws.py::test_two_unseeded_dropouts_of_one_width_have_two_masks"
    ),
    "predictions of one thinned network": (
        "layers/test_draws.py::test_predictions_of_dropout_are_those_of_the_mean_network"
    ),
    "a deterministic copy that predicts otherwise": (
        "convert/test_convert_sparse.py::test_predictions_that_are_not_of_the_means_are_told"
    ),
    "an epoch before the selection comes back": (
        "callbacks/test_saliency.py::test_early_stopping_brings_back_no_epoch_before_the_selection"
    ),
    "snapshots that cannot be read together": (
        "callbacks/test_saliency.py::test_snapshots_of_before_and_after_are_read_together"
    ),
    # Classes by position
    "an empty folder shifts all labels": (
        "cli/test_command_line.py::test_an_empty_folder_keeps_its_number_and_a_missing_one_is_no_shift"
    ),
    "names do not travel": "cli/test_command_line.py::test_a_rule_carries_the_names_along",
    "labels by name in calibrations": (
        "selective/test_rule_names.py::test_calibrations_take_names_of_classes"
    ),
    "multi-hot labels by argmax": "datasets/test_datasets.py::test_balanced_refuses",
    # Identity by a sample
    "files that came in the middle": (
        "predictive/test_score_dataset.py::test_files_that_came_or_changed_since_are_noticed"
    ),
    "data that changed behind the first batch": (
        "predictive/test_score_dataset.py::test_data_that_changed_behind_the_first_batch_are_noticed"
    ),
    "tfuq predict resumes other files": (
        "cli/test_command_line.py::test_files_that_came_while_predict_was_interrupted"
    ),
    "a detector beside other weights": (
        "ood/test_model_identity.py::test_loaded_beside_other_weights"
    ),
    # Promises chained on the same rows
    "a calibration spends the rows of a promise": (
        "selective/test_own_rows.py::test_the_promised_share_of_worlds_keeps_the_risk"
    ),
    "a rule on its calibration's rows": (
        "selective/test_own_rows.py::test_its_own_output_on_the_same_rows_is_refused"
    ),
    "a rule on some of its calibration's rows": (
        "selective/test_own_rows.py::test_rows_that_overlap_in_part_are_counted"
    ),
    # The first two snippets of the documentation
    "predict_uncertainty raises for a plain network": (
        "misuse/test_misuse.py::test_a_network_without_randomness_has_no_epistemic_part"
    ),
    "a rule does not take what was predicted": (
        "misuse/test_misuse.py::test_what_predict_uncertainty_gives_is_what_a_rule_takes"
    ),
    "a report does not take the pair": (
        "report/test_report.py::test_a_model_of_logits_takes_a_rule_of_what_is_told_of_it"
    ),
    # Said at the door
    "logits_only forgotten": "layers/test_head_losses.py::test_a_tuple_under_one_loss_is_refused",
    "a loss by name on logits": (
        "layers/test_head_losses.py::test_a_loss_of_probabilities_is_refused"
    ),
    "a metric that is NaN in silence": (
        "metrics/test_metric_inputs.py::test_training_with_a_metric_that_is_not_told_of_logits_stops"
    ),
    "an evaluator that raises after an epoch": (
        "callbacks/test_rejection.py::test_what_cannot_be_judged_stops_training_before_the_first_batch"
    ),
    "whole arrays in errors": "test_house.py::test_errors_show_no_whole_arrays_or_models",
    "objects that say nothing": "test_told.py::test_two_to_five_lines_that_inform",
    "fields without names after loading": (
        "_models/test_meaning.py::test_fields_keep_their_names_after_loading"
    ),
    "losses of fields do not fit": "layers/test_head_losses.py::test_losses_by_field_name",
    "25 columns in the progress bar": (
        "callbacks/test_rejection.py::test_few_figures_go_into_logs_and_all_into_the_history"
    ),
    # Shipping: sample inputs that are made up
    "encoded images cannot be exported": (
        "export/test_encoded_inputs.py::test_encoded_images_are_decoded_in_the_file"
    ),
    "tables end in an AssertionError": (
        "export/test_encoded_inputs.py::test_tables_of_a_preprocessing_are_in_the_file"
    ),
    "inputs in a list lose their names": (
        "export/test_encoded_inputs.py::test_inputs_in_a_list_keep_their_names"
    ),
    "float64 models fail": "export/test_encoded_inputs.py::test_models_in_float64_become_float32",
    "LSTM is refused by LiteRT": (
        "export/test_encoded_inputs.py::test_recurrent_layers_run_in_litert"
    ),
    "LiteRT answers images of any channels": (
        "misuse/test_misuse_runtimes.py::test_right_or_refused_by_each_runtime"
    ),
    # Shipping: whom one trusts
    "a SavedModel that writes files is run": (
        "cli/test_folders_and_trust.py::test_a_saved_model_is_run_by_those_who_trust_it"
    ),
    "changed variables end in a DataLossError": (
        "cli/test_folders_and_trust.py::test_what_was_changed_is_refused_before_it_is_loaded"
    ),
    "hashes show damage, not forgery": (
        "cli/test_folders_and_trust.py::test_a_signature_tells_who_wrote_an_export"
    ),
    "damage of cards, signatures and keys": (
        "faults/test_cards_and_signatures.py::test_is_named_in_one_sentence"
    ),
    # Shipping: the command line
    "one image that cannot be read ends everything": (
        "cli/test_folders_and_trust.py::test_what_cannot_be_read_is_left_out_named_and_counted"
    ),
    "deeper folders are left out": (
        "cli/test_folders_and_trust.py::test_sub_folders_are_classes_whatever_they_hold"
    ),
    "out.jsonl becomes a folder and calibrate overwrites": (
        "cli/test_folders_and_trust.py::test_the_out_of_a_command_is_what_its_name_says"
    ),
    "files of tfuq export cannot be read": (
        "cli/test_folders_and_trust.py::test_every_export_is_read_and_says_the_same"
    ),
    "start-up lines and bars in a pipe": "cli/test_command_line.py::test_a_real_process",
    "help takes seconds": "cli/test_folders_and_trust.py::test_help_imports_nothing_heavy",
    # Shipping: the server
    "a body of brackets holds a reader": (
        "serving/test_limits.py::test_brackets_are_counted_before_they_are_parsed"
    ),
    "a header (8, 8, True) gives 500": "serving/test_limits.py::test_headers_that_are_none",
    "a PNG that becomes 201 MB": "serving/test_limits.py::test_a_png_that_becomes_201_mb",
    "64 waiting places allow 12.9 GB": (
        "serving/test_limits.py::test_decoded_inputs_that_wait_are_bounded"
    ),
    "slow clients take all places": (
        "serving/test_limits.py::test_slow_clients_take_nobodys_place"
    ),
    "half-sent headers stay open": "serving/test_limits.py::test_half_of_a_request_is_not_kept",
    # Shipping: the package
    "no py.typed": "test_package.py::test_the_built_wheel_has_types_and_nothing_else",
    "no serving extra": "test_package.py::test_extras_have_what_is_imported",
    "no author and addresses": "test_package.py::test_metadata",
    "pictures that an index does not show": (
        "test_package.py::test_the_description_has_no_relative_links"
    ),
    "a source distribution whose tests cannot run": (
        "test_package.py::test_the_source_distribution_takes_what_tests_need"
    ),
    "one version of Python is tested": "test_package.py::test_versions_script",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.replace(" ", "_"))
def test_has_a_test_and_a_place_in_the_documentation(fault):
    file, name = FAULTS[fault].split("::")
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert f"tests/{file}" in DOCS
