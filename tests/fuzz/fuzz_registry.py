"""How every public function and class is fuzzed, or why it is not."""

import functools
import inspect

import keras
import numpy as np
import tensorflow as tf
from fuzz_values import Entry

import tfuq
from tfuq import corruptions, layers, metrics, ood, plots, predictive, preprocessing, selective

PAIR = {"y_true": "labels", "y_pred": "probs"}
JUDGED = {"probs": "probs", "labels": "labels"}
WEIGHTS = {"sample_weight": "weights"}
SPARSE = ("sparse", "one_hot")


def _entries():
    """`(name, Entry)` of all that is fuzzed."""
    yield from _metric_functions()
    yield from _metric_classes()
    yield from _stacks()
    yield from _decisions()
    yield from _fitted()
    yield from _shifts()
    yield from _images()
    yield from _detectors()
    yield from _layers()
    yield from _plots()
    yield from _explanations()
    yield from _schedules()


def _metric_functions():
    scored = {"y_true": "both_labels", "y_score": "scores"}
    for name in ("aupr_in", "aupr_out", "auroc", "detection_accuracy", "fpr_at_tpr"):
        yield f"metrics.{name}", Entry(getattr(metrics, name), scored, WEIGHTS)
    # How often to resample is what a caller pays for: a huge number is no fault, and takes long.
    costly = {"skipped": ("num_resamples",)}
    yield "metrics.ood_metrics", Entry(metrics.ood_metrics, scored, WEIGHTS, **costly)
    yield (
        "metrics.bootstrap_interval",
        Entry(
            metrics.bootstrap_interval,
            scored,
            WEIGHTS,
            {"metric": metrics.auroc, "num_resamples": 20},
            **costly,
        ),
    )
    for name in (
        *("adaptive_calibration_error", "brier_score", "classwise_calibration_error", "coverage"),
        *("expected_calibration_error", "maximum_calibration_error", "rejection_rate"),
        *("negative_log_likelihood", "selective_accuracy", "reliability_curve"),
    ):
        undefined = {
            "negative_log_likelihood": ("",),  # infinite for a true class of probability 0
            "selective_accuracy": ("",),  # of nothing accepted
            "classwise_calibration_error": ("",),
            "reliability_curve": ("accuracy", "confidence", "gap", ""),
        }.get(name, ())
        yield f"metrics.{name}", Entry(getattr(metrics, name), PAIR, WEIGHTS, undefined=undefined)
    undefined = ("statistic",)  # infinite where what was certain is wrong
    yield "metrics.spiegelhalter_test", Entry(metrics.spiegelhalter_test, PAIR, undefined=undefined)
    yield (
        "metrics.expected_calibration_error_interval",
        Entry(
            metrics.expected_calibration_error_interval,
            PAIR,
            fixed={"num_resamples": 20},
            **costly,
        ),
    )
    yield (
        "metrics.entropy_of_expectation",
        Entry(metrics.entropy_of_expectation, {"y_pred": "probs"}, WEIGHTS),
    )
    yield (
        "metrics.rejection_table",
        Entry(
            metrics.rejection_table,
            PAIR,
            {**WEIGHTS, "confidence": "uncertainty"},
            {"thresholds": (0.5, 1.0)},
            undefined=("accuracy", "risk", "ece"),
        ),
    )
    yield (
        "metrics.dice_score",
        Entry(metrics.dice_score, {"y_true": "mask", "y_pred": "mask_probs"}, undefined=("",)),
    )


def _metric_classes():
    for name in metrics.__all__:
        cls = getattr(metrics, name)
        if not inspect.isclass(cls) or f"metrics.{name}" in REASONS:
            continue
        data = PAIR
        if name in ("AUROC", "AUPRIn", "AUPROut", "DetectionAccuracy", "FPRAtTPR"):
            data = {"y_true": "both_labels", "y_pred": "uncertainty"}
        elif name == "DiceScore":
            data = {"y_true": "mask", "y_pred": "mask_probs"}
        if name == "EntropyOfExpectation":  # which looks at no label
            data = {"y_pred": "probs"}
        # A graph cannot raise: the result is NaN, as each class says.
        yield (
            f"metrics.{name}",
            Entry(streamed(cls), data, WEIGHTS, undefined=("*",), nan="unknown", cost=8, host=True),
        )


def streamed(cls):
    """`cls` as a function of two batches, with the constructor's options."""

    def measure(y_pred, y_true=None, sample_weight=None, **options):
        metric = cls(**options)
        for _ in range(2):
            metric.update_state(y_pred if y_true is None else y_true, y_pred, sample_weight)
        return metric.result()

    return with_options_of(measure, cls)


def with_options_of(function, cls):
    """The function, said to take the options of the constructor of `cls` as well."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    known = {p.name for p in own}
    named = inspect.signature(cls).parameters.values()
    more = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in named
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in known
    ]

    @functools.wraps(function)
    def wrapped(**arguments):
        return function(**arguments)

    wrapped.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in own] + more)
    return wrapped


def _stacks():
    for name in (
        *("decompose", "expected_entropy", "mutual_information", "predictive_entropy"),
        "variation_ratio",
    ):
        yield f"predictive.{name}", Entry(getattr(predictive, name), {"stack": "stack"})
    yield "predictive.entropy", Entry(predictive.entropy, {"probs": "probs"})


def _decisions():
    for name in (
        *("augrc", "aurc", "coverage_at_risk", "eaurc", "generalized_risk_coverage_curve"),
        *("risk_at_coverage", "risk_coverage_curve"),
    ):
        undefined = ("threshold",) if name == "risk_coverage_curve" else ()
        yield (
            f"selective.{name}",
            Entry(getattr(selective, name), JUDGED, WEIGHTS, undefined=undefined),
        )
    for name in ("kappa_referral_curve", "quadratic_weighted_kappa"):
        undefined = ("threshold", "kappa", "")
        yield (
            f"selective.{name}",
            Entry(getattr(selective, name), JUDGED, WEIGHTS, undefined=undefined),
        )
    for name in ("expected_cost", "minimum_cost_decision"):
        data = {"probs": "probs", "cost_matrix": "matrix"}
        yield f"selective.{name}", Entry(getattr(selective, name), data, forms=SPARSE)
    yield (
        "selective.cascade",
        Entry(_cascade, {**JUDGED, "expert": "expert"}, WEIGHTS, undefined=("accuracy",)),
    )
    team = ("threshold", "model_accuracy", "expert_accuracy", "model_cost", "expert_cost")
    yield (
        "selective.simulate_deferral",
        Entry(
            selective.simulate_deferral,
            {**JUDGED, "expert": "expert"},
            WEIGHTS,
            {"rule": 0.7},
            undefined=team,
        ),
    )
    undefined = ("accuracy", "risk", "risk_lower", "risk_upper", "ece", "rows")
    yield (
        "selective.subgroup_report",
        Entry(
            selective.subgroup_report,
            {**JUDGED, "groups": "groups"},
            {},
            {"rule": selective.RejectionRule("confidence", 0.7)},
            undefined=(*undefined, "mean_error", "interval_coverage"),  # of numbers
            cost=4,
        ),
    )


def _cascade(
    probs,
    labels,
    *,
    expert,
    rule=0.7,
    costs=None,
    sample_weight=None,
    from_logits=False,
    multi_label=False,
):
    return selective.cascade(
        [(probs, rule), (probs, 0.5)],
        labels,
        expert=expert,
        costs=costs,
        sample_weight=sample_weight,
        from_logits=from_logits,
        multi_label=multi_label,
    )


def _fitted():
    rule, sets = selective.RejectionRule, selective.ConformalPredictor

    def judged_by_rule(probs, labels, new, **options):
        options = {"target_coverage": 0.5, **options}
        fitted = rule.fit(probs, labels, **options)
        return fitted.accept(new), fitted.evaluate(probs, labels)

    def sets_of(probs, labels, new, **options):
        fitted = sets.fit(probs, labels, **{"alpha": 0.5, **options})
        return fitted.accept(new), fitted.predict_set(new), fitted.evaluate(probs, labels)

    data = {**JUDGED, "new": "probs"}
    undefined = ("risk", "risk_lower", "risk_upper", "singleton_accuracy", "class_coverage")
    shared = {"undefined": undefined, "nan": "rejected", "cost": 4}
    for name, function, cls in (
        ("RejectionRule", judged_by_rule, rule),
        ("ConformalPredictor", sets_of, sets),
    ):
        yield f"selective.{name}", Entry(with_options_of(function, cls.fit), data, **shared)

    def calibrated(cls):
        def transformed(probs, labels, new, sample_weight=None, **options):
            return cls(**options).fit(probs, labels, sample_weight).transform(new)

        return with_options_of(transformed, cls)

    for name in (
        *("TemperatureScaling", "VectorScaling", "IsotonicCalibration"),
        *("BetaCalibration", "DirichletCalibration", "VennAbersCalibration"),
    ):
        yield (
            f"selective.{name}",
            Entry(
                calibrated(getattr(selective, name)),
                data,
                WEIGHTS,
                undefined=("*",),
                nan="unknown",
                host=True,
                cost=8,
            ),
        )


def _shifts():
    pair = {"probs_source": "rows_of_probs", "labels": "flat_labels", "probs_target": "rows_again"}
    for name in (
        *("average_thresholded_confidence", "black_box_shift_estimation"),
        "difference_of_confidences",
    ):
        undefined = ("threshold", "condition_number", "weights", "lower", "upper", "target_prior")
        yield (
            f"selective.{name}",
            Entry(
                getattr(selective, name),
                pair,
                {},
                {"n_bootstrap": 10},
                undefined=undefined,
                forms=SPARSE,
                cost=2,
            ),
        )
    yield (
        "selective.correct_label_shift",
        Entry(
            selective.correct_label_shift,
            {"probs": "rows_of_probs", "source_prior": "prior", "target_prior": "prior"},
            forms=SPARSE,
        ),
    )
    yield (
        "selective.classifier_two_sample_test",
        Entry(
            selective.classifier_two_sample_test,
            {"features_a": "features", "features_b": "features"},
            cost=4,
        ),
    )


def _images():
    names = [name for name in corruptions.__all__ if name.islower()]
    names = [name for name in names if name not in ("names", "corrupt", "noise_settings")]
    for name in names:
        if name == "corruption_report":
            continue
        yield (
            f"corruptions.{name}",
            Entry(getattr(corruptions, name), {"images": "images"}, {}, {"severity": 3}, cost=8),
        )
    for name in ("defocus_blur", "gaussian_noise"):
        function = functools.partial(corruptions.corrupt, name=name)
        if name == "gaussian_noise":
            yield (
                "corruptions.corrupt",
                Entry(function, {"images": "images"}, {}, {"severity": 3}, cost=8),
            )
    one = {"images": "images"}
    color = {"images": "color_images"}
    for name in ("adjust_gamma", "clahe"):
        yield f"preprocessing.{name}", Entry(getattr(preprocessing, name), one, cost=8)
    yield (
        "preprocessing.center_field_of_view",
        Entry(preprocessing.center_field_of_view, one, {}, {"fraction": 0.5}, cost=8),
    )
    yield (
        "preprocessing.crop_fundus",
        Entry(preprocessing.crop_fundus, one, {}, {"size": (4, 4)}, cost=8),
    )
    for name in ("confounder_mask", "remove_confounders"):
        yield f"preprocessing.{name}", Entry(getattr(preprocessing, name), color, cost=16)
    yield (
        "preprocessing.correct_illumination",
        Entry(
            preprocessing.correct_illumination,
            {"ambient": "color_images", "flash": "color_images"},
            cost=8,
        ),
    )


def _detectors():
    of_features = {"features": "features", "y": "many_labels", "new": "new_features"}

    def scored(cls):
        def scores(features, new, y=None, **options):
            fitted = cls(**options).fit_features(features, y)
            return fitted.score_features(new)

        return with_options_of(scores, cls)

    def of_norms(features, new):
        return ood.GradientDensity().fit_features(features).score_features(new)

    shared = {"undefined": ("*",), "nan": "unknown", "cost": 4}
    for name in ("Mahalanobis", "RelativeMahalanobis"):
        yield f"ood.{name}", Entry(scored(getattr(ood, name)), of_features, **shared)
    alone = {name: kind for name, kind in of_features.items() if name != "y"}
    for name in ("KNN", "MaxLogit", "MaxSoftmax", "Energy", "Entropy", "GEN", "KLMatching"):
        yield f"ood.{name}", Entry(scored(getattr(ood, name)), alone, **shared)
    norms = {"features": "norms", "new": "new_norms"}
    yield "ood.GradientDensity", Entry(of_norms, norms, **shared)

    def threshold(scores, **options):
        detector = ood.MaxLogit().fit_features(np.eye(3))
        return detector.threshold_at(scores=scores, **options)

    wrapped = with_options_of(threshold, ood.MaxLogit().threshold_at)
    yield (
        "ood.Threshold",
        Entry(
            wrapped, {"scores": "scores"}, {}, skipped=("x",), undefined=("lower", "upper", "value")
        ),
    )


def _layers():
    classes = {
        "DenseVariational": (layers.DenseVariational, {"units": 2, "kl_weight": 0.1}, "inputs"),
        "VBLLDense": (layers.VBLLDense, {"units": 2, "kl_weight": 0.1}, "inputs"),
        "LastLayerLaplace": (layers.LastLayerLaplace, {"units": 2}, "inputs"),
        "MCDropout": (layers.MCDropout, {"rate": 0.5}, "inputs"),
        "SparseBayesDense": (layers.SparseBayesDense, {"units": 2, "kl_weight": 0.1}, "inputs"),
        "MCSoftmaxDenseFA": (
            layers.MCSoftmaxDenseFA,
            {"num_classes": 3, "num_factors": 2, "test_mc_samples": 4, "train_mc_samples": 4},
            "inputs",
        ),
        "MCSigmoidDenseFA": (
            layers.MCSigmoidDenseFA,
            {"num_outputs": 2, "num_factors": 1, "test_mc_samples": 4, "train_mc_samples": 4},
            "inputs",
        ),
        "BatchEnsembleDense": (layers.BatchEnsembleDense, {"units": 2, "num_members": 2}, "inputs"),
        "VBLLGenerativeDense": (
            layers.VBLLGenerativeDense,
            {"units": 3, "kl_weight": 0.1},
            "inputs",
        ),
        "SNGPDense": (layers.SNGPDense, {"units": 3, "num_features": 8}, "inputs"),
        "MCSoftmaxDenseXL": (
            layers.MCSoftmaxDenseXL,
            {"units": 3, "num_factors": 2, "test_mc_samples": 4, "train_mc_samples": 4},
            "inputs",
        ),
        "MCSigmoidDenseXL": (
            layers.MCSigmoidDenseXL,
            {"units": 2, "num_factors": 1, "test_mc_samples": 4, "train_mc_samples": 4},
            "inputs",
        ),
    }
    conv = {"filters": 2, "kernel_size": 2, "padding": "same", "kl_weight": 0.1}
    for name in ("Conv2DVariational", "Conv2DTransposeVariational", "SparseBayesConv2D"):
        classes[name] = getattr(layers, name), conv, "grey_images"
    classes["SparseBayesConv2DTranspose"] = layers.SparseBayesConv2DTranspose, conv, "grey_images"
    depthwise = {"kernel_size": 2, "padding": "same", "kl_weight": 0.1}
    classes["SparseBayesDepthwiseConv2D"] = (
        layers.SparseBayesDepthwiseConv2D,
        depthwise,
        "grey_images",
    )
    for name in ("Conv1DVariational", "SparseBayesConv1D"):
        classes[name] = getattr(layers, name), conv, "sequences"
    classes["SparseBayesConv3D"] = layers.SparseBayesConv3D, conv, "volumes"
    classes["DepthwiseConv2DVariational"] = (
        layers.DepthwiseConv2DVariational,
        depthwise,
        "grey_images",
    )
    classes["SeparableConv1DVariational"] = layers.SeparableConv1DVariational, conv, "sequences"
    classes["MCGaussianDropout"] = layers.MCGaussianDropout, {"rate": 0.5}, "inputs"
    classes["MCGRU"] = layers.MCGRU, {"units": 2, "recurrent_dropout": 0.5}, "sequences"
    classes["GRUVariational"] = (
        layers.GRUVariational,
        {"units": 2, "kl_weight": 0.1},
        "sequences",
    )
    rule = selective.RejectionRule("confidence", 0.7, from_logits=True)
    classes["PostProcessing"] = layers.PostProcessing, {"method": rule}, "logits"
    for name, (cls, base, kind) in classes.items():
        yield (
            f"layers.{name}",
            Entry(
                called(cls, base),
                {"inputs": kind},
                skipped=("noise_shape",),
                undefined=("*",),
                nan="free",
                host=True,
                cost=12,
            ),
        )
    images = {
        "CLAHE": {},
        "CenterFieldOfView": {"fraction": 0.5},
        "ConfounderRemoval": {},
        "FundusCrop": {"size": 4},
        "Gamma": {},
        "IlluminationCorrection": {},
    }
    for name, base in images.items():
        kind = "flash_pair" if name == "IlluminationCorrection" else "color_images"
        yield (
            f"preprocessing.{name}",
            Entry(
                called(getattr(preprocessing, name), {**base, "value_range": (0, 1)}),
                {"inputs": kind},
                undefined=("*",),
                nan="free",
                host=True,
                cost=16,
            ),
        )
    yield (
        "corruptions.CorruptionLayer",
        Entry(
            called(corruptions.CorruptionLayer, NOISY),
            {"inputs": "color_images"},
            undefined=("*",),
            nan="free",
            host=True,
            cost=16,
        ),
    )


NOISY = {"corruption": "gaussian_noise", "severity": 3, "value_range": (0, 1)}


def called(cls, base):
    """`cls` as a function of inputs, with the constructor's options."""

    def call(inputs, **options):
        return cls(**{**base, **options})(inputs)

    return with_options_of(call, cls)


def _plots():
    judged = {
        "confidence_histogram": {"y_pred": "probs"},
        "confusion_matrix": PAIR,
        "confusion_difference": {**PAIR, "other": "probs"},
        "rejection_curve": PAIR,
        "reliability_diagram": PAIR,
        "roc_curves": PAIR,
        "risk_coverage": JUDGED,
        "accept_reject_grid": {"images": "grey_images", **PAIR},
        "uncertainty_against_error": {"uncertainty": "uncertainty", "errors": "errors"},
        "uncertainty_maps": {"images": "maps", "masks": "mask", "probs": "mask_probs"},
        "explanation_maps": {"images": "images", "maps": "maps"},
        "learning_rate_curve": {"rates": "rates"},
        "error_map": {"mask": "mask", "prediction": "mask"},
        "detection_histograms": {"scores": "named_scores"},
        "gradient_distributions": {"features_by_set": "named_features"},
    }
    for name, data in judged.items():
        cost = 1 if name == "error_map" else 40
        yield f"plots.{name}", Entry(getattr(plots, name), data, cost=cost, undefined=("*",))
    confused = tfuq.interpret.confused_pairs([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
    yield "plots.confused_pairs", Entry(plots.confused_pairs, {}, {}, {"found": confused}, cost=40)


def _explanations():
    yield (
        "interpret.confused_pairs",
        Entry(tfuq.interpret.confused_pairs, PAIR, WEIGHTS, undefined=("std",)),
    )
    model, network = dense_model(), image_model()
    x, grey = {"x": "inputs"}, {"images": "grey_images"}
    for name in ("predict_uncertainty", "sample_predictions"):
        yield (
            f"predictive.{name}",
            Entry(
                getattr(predictive, name),
                x,
                {},
                {"model": model, "num_samples": 2},
                undefined=("*",),
                nan="unknown",
                host=True,
                cost=12,
            ),
        )
    yield (
        "predictive.test_time_augmentation",
        Entry(
            predictive.test_time_augmentation,
            x,
            {},
            {"model": model, "augment": [_same]},
            undefined=("*",),
            nan="unknown",
            host=True,
            cost=12,
        ),
    )
    for name in ("grad_cam", "guided_backpropagation", "guided_grad_cam"):
        yield (
            f"interpret.{name}",
            Entry(
                getattr(tfuq.interpret, name),
                grey,
                {},
                {"model": network},
                undefined=("*",),
                nan="unknown",
                host=True,
                cost=40,
            ),
        )
    yield (
        "interpret.occlusion",
        Entry(
            tfuq.interpret.occlusion,
            grey,
            {},
            {"model": network, "patch": 4},
            undefined=("*",),
            nan="unknown",
            host=True,
            cost=40,
        ),
    )


def _same(images):
    return images


@functools.cache
def dense_model():
    parts = [tfuq.layers.MCDropout(0.5, seed=0), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((4,)), *parts])
    model.compile(loss="sparse_categorical_crossentropy")
    return model


@functools.cache
def image_model():
    parts = [keras.layers.Conv2D(2, 3, activation="relu"), keras.layers.GlobalMaxPooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *parts, keras.layers.Dense(3, "softmax")])
    model.compile(loss="sparse_categorical_crossentropy")
    return model


def _schedules():
    def rates(max_learning_rate=0.1, step=3, **options):
        options = {"steps_per_epoch": 4, **options}
        return tfuq.callbacks.SGDR(max_learning_rate, **options).learning_rate_at(step)

    wrapped = with_options_of(rates, tfuq.callbacks.SGDR)
    yield "callbacks.SGDR", Entry(wrapped, {})
    for name, base in (
        ("KLAnnealing", {}),
        ("LRRangeTest", {}),
        ("PosteriorSampling", {}),
        ("GradualUnfreezing", {"backbone": "b", "num_stages": 2}),
        ("BackupAndRestore", {"backup_dir": "nowhere"}),
        ("SaliencySelection", {}),
        ("SWAG", {}),
    ):
        cls = getattr(tfuq.callbacks, name)

        def made(cls=cls, base=base, **options):
            cls(**{**base, **options})

        yield f"callbacks.{name}", Entry(_options_alone(made, cls), {})

    def optimizer(**options):
        tfuq.optimizers.DiscriminativeLearningRate(keras.optimizers.SGD(), **options)

    yield (
        "optimizers.DiscriminativeLearningRate",
        Entry(
            _options_alone(optimizer, tfuq.optimizers.DiscriminativeLearningRate),
            {},
            skipped=("optimizer",),
        ),
    )

    def ivon(**options):
        tfuq.optimizers.IVON(**{"learning_rate": 0.1, "num_data": 10, **options})

    yield "optimizers.IVON", Entry(_options_alone(ivon, tfuq.optimizers.IVON), {})


def _options_alone(function, cls):
    """The function with the options of `cls` and no other arguments."""

    def plain(**options):
        return function(**options)

    return with_options_of(plain, cls)


# --- What is not fuzzed ---------------------------------------------------------------------------

NUMBERS = "takes a RegressionUncertainty or its parameters: tests/metrics/test_regression.py"
PICTURES = "takes a RegressionUncertainty: tests/plots/test_plots_regression.py, tests/misuse"
HEADS = "linear maps, whose arguments are those of Dense: tests/predictive/test_regression.py"
LOSSES = "Keras calls them with tensors, in a graph: tests/losses"
MODEL = "takes a trained model; its data go through what is fuzzed: "
FEATURE_PAIR = "a pair of features and logits: tests/ood/test_score_refusals.py"
REASONS = {
    "metrics.CalibrationErrorInterval": "holds what a function found",
    "metrics.SpiegelhalterTest": "holds what a function found",
    "metrics.ause": NUMBERS,
    "metrics.crps": NUMBERS,
    "metrics.interval_score": NUMBERS,
    "metrics.mean_interval_width": NUMBERS,
    "metrics.number_negative_log_likelihood": NUMBERS,
    "metrics.prediction_interval_coverage": NUMBERS,
    "metrics.quantile_calibration_curve": NUMBERS,
    "metrics.quantile_calibration_error": NUMBERS,
    "metrics.sharpness": NUMBERS,
    "metrics.AUSE": NUMBERS,
    "metrics.CRPS": NUMBERS,
    "metrics.IntervalScore": NUMBERS,
    "metrics.MeanIntervalWidth": NUMBERS,
    "metrics.NumberNegativeLogLikelihood": NUMBERS,
    "metrics.OfMean": NUMBERS,
    "metrics.PredictionIntervalCoverage": NUMBERS,
    "metrics.QuantileCalibrationError": NUMBERS,
    "metrics.Sharpness": NUMBERS,
    "selective.AdaptiveConformal": "a series, step by step: its own tests",
    "selective.Monitor": "cases one after the other: its own tests; reads as a rule does",
    "ood.DetectorLayer": MODEL + "its detector's: tests/selective/test_detector_rules.py",
    "ood.SIRC": "a pair of features and logits: tests/ood/test_sirc.py",
    "selective.sirc_score": "a score beside confidences: tests/ood/test_sirc.py",
    "selective.gap": "reads as risk_coverage_curve does: its own tests",
    "selective.ErrorPredictor": "a pair of features and logits: its own tests",
    "selective.CombinedScore": "scores side by side: its own tests",
    "selective.CovariateShift": "reads as classifier_two_sample_test does: its own tests",
    "selective.choose_p": "reads as best_score does: its own tests",
    "selective.best_score": "reads as augrc does: its own tests",
    "selective.pnorm_score": "logits of any size: its own tests",
    "selective.ConformalRegressor": "takes a RegressionUncertainty: its own tests; tests/misuse",
    "predictive.RegressionUncertainty": "parameters: tests/_predictions/test_numbers.py",
    "selective.RegressionRule": "takes a RegressionUncertainty: its own tests; tests/misuse",
    "selective.MaskRiskControl": "images, checked as ConformalPredictor's: its own tests",
    "callbacks.PosteriorMean": "takes nothing",
    "callbacks.RejectionEvaluator": MODEL + "metrics.rejection_table",
    "callbacks.SnapshotEnsemble": "writes files: tests/callbacks and tests/faults",
    "serving.make_app": "options and a folder: tests/serving, tests/misuse/test_misuse_served.py",
    "serving.serve": "as make_app, and then a process: tests/serving",
    "cli.main": "tests/cli: bad files and arguments end with exit code 2",
    "convert.laplace_head": MODEL + "batches of any kind: tests/convert/test_laplace.py",
    "convert.mc_dropout": "a model to a model; no arrays",
    "convert.replace_head": "a model to a model; no arrays",
    "convert.report": "a model to what was noted of it; no arrays",
    "convert.saliency": MODEL + "tests/nonfinite",
    "convert.sparse_bayesian": MODEL + "tests/nonfinite",
    "convert.batch_ensemble": "a model to a model; no arrays",
    "convert.SpectralBound": "a constraint of kernels, which training holds; tests/convert",
    "convert.spectral_normalize": "a model to a model; no arrays",
    "convert.to_deterministic": "a model to a model; no arrays",
    "convert.variational": "a model to a model; no arrays",
    "corruptions.corruption_report": MODEL + "each corruption, and the metrics",
    "corruptions.names": "takes nothing",
    "corruptions.noise_settings": "trains models",
    "datasets.balanced": "a pipeline: tests/datasets/test_datasets.py",
    "datasets.describe": "takes a name of the list of public sets",
    "datasets.from_npz": "reads files: test_fuzz_loaders.py",
    "datasets.load": "reads public sets",
    "datasets.names": "takes nothing",
    "datasets.smote": "imbalanced-learn's, behind a check: tests/datasets/test_datasets.py",
    "distribute.RayExecutor": "starts Ray",
    "distribute.is_chief": "takes a strategy",
    "distribute.multi_worker": "takes a strategy",
    "ensembles.DeepEnsemble": MODEL + "predictive.decompose",
    "export.export": "writes files: tests/export",
    "export.export_litert": "writes files: tests/export",
    "export.export_onnx": "writes files: tests/export",
    "export.verify_export": "reads files: tests/export and tests/faults",
    "interpret.center_occlusion": MODEL + "interpret.occlusion",
    "interpret.label_noise_pairs": "needs a heteroscedastic head, trained",
    "interpret.label_noise_ranks": "needs two models",
    "kl_weight_for": "reads data and a loss: tests/layers/test_kl_weight.py",
    "layers.Conv3DVariational": "another layer of its family, with another operation",
    "layers.DepthwiseConv1DVariational": "another layer of its family, with another operation",
    "layers.BatchEnsembleConv2D": "another layer of its family, with another operation",
    "layers.EinsumDenseVariational": "another layer of its family, with another operation",
    "layers.LSTMVariational": "another layer of its family, with another operation",
    "layers.SeparableConv2DVariational": "another layer of its family, with another operation",
    "layers.MCLSTM": "layers.MCGRU, with another cell",
    "layers.MCMultiHeadAttention": "two inputs: tests/layers/test_attention.py",
    "layers.MCSimpleRNN": "layers.MCGRU, with another cell",
    "layers.MultiHeadAttentionVariational": "two inputs: tests/layers/test_attention.py",
    "layers.SimpleRNNVariational": "another layer of its family, with another operation",
    "lr_range_test": "trains a model",
    "layers.EvidentialDense": HEADS,
    "layers.LaplaceDense": HEADS,
    "layers.MixtureDense": HEADS,
    "layers.MultivariateNormalDense": HEADS,
    "layers.NormalDense": HEADS,
    "layers.QuantileDense": HEADS,
    "layers.StudentTDense": HEADS,
    "layers.VBLLRegression": HEADS,
    "layers.LastLayerLaplaceRegression": HEADS,
    "losses.BetaNLL": LOSSES,
    "losses.CRPS": LOSSES,
    "losses.EnergyMargin": LOSSES,
    "losses.Evidential": LOSSES,
    "losses.LogitNorm": LOSSES,
    "losses.NegativeLogLikelihood": LOSSES,
    "losses.OutlierExposure": LOSSES,
    "losses.Pinball": LOSSES,
    "metrics.PredictionMetric": "a base",
    "ood.ASH": MODEL + "ood.Energy; tests/ood/test_later_scores.py",
    "ood.DICE": MODEL + "ood.Energy; tests/ood/test_later_scores.py",
    "ood.ExGrad": MODEL + "ood.MaxLogit; tests/ood/test_recorded.py",
    "ood.FDBD": MODEL + "ood.MaxLogit; tests/nonfinite",
    "ood.GAIA": MODEL + "ood.MaxLogit; tests/ood/test_recorded.py",
    "ood.GradNorm": MODEL + "ood.MaxLogit; tests/nonfinite",
    "ood.GradientDetector": "trains a network: tests/ood; its checks are those of GradientDensity",
    "ood.GradientFeatures": MODEL + "tests/nonfinite",
    "ood.Gram": MODEL + "ood.Mahalanobis; tests/ood/test_recorded.py",
    "ood.MutualInformation": MODEL + "predictive.mutual_information; tests/nonfinite",
    "ood.NNGuide": FEATURE_PAIR,
    "ood.ODIN": MODEL + "ood.MaxSoftmax; tests/nonfinite",
    "ood.ReAct": MODEL + "ood.Energy; tests/nonfinite",
    "ood.SCALE": MODEL + "ood.Energy; tests/ood/test_later_scores.py",
    "ood.SHE": FEATURE_PAIR,
    "ood.Tuned": "holds what a function found",
    "ood.ViM": MODEL + "ood.Mahalanobis; tests/nonfinite",
    "ood.load_detector": "reads files: test_fuzz_loaders.py",
    "ood.tune": MODEL + "its detectors'; tests/ood/test_tuning.py",
    "plots.corruption_heat_map": "takes a CorruptionReport",
    "plots.label_noise_pairs": "takes LabelNoisePairs",
    "plots.lr_range_test": "takes an LRRangeTest",
    "plots.error_against_width": PICTURES,
    "plots.intervals_over": PICTURES,
    "plots.monitor_process": PICTURES,
    "plots.predicted_against_true": PICTURES,
    "plots.quantile_calibration": PICTURES,
    "predictive.declare": MODEL + "tests/predictive/test_declared.py",
    "predictive.declared": MODEL + "tests/predictive/test_declared.py",
    "predictive.read_scores": "reads files: tests/predictive and tests/faults",
    "predictive.score_dataset": "writes files: tests/scoring; tests/nonfinite",
    "preprocessing.evaluate_synthetic": MODEL + "tests/preprocessing",
    "report.html": "writes a file: tests/report",
    "report.to_markdown": "of what report.html reads: tests/report",
    "selective.UnattainableRisk": "an error",
    "selective.shift_report": MODEL + "each of its estimates",
    "training.rapid_fit": "trains a model",
}


def is_record(thing):
    """Whether a class only holds what a function found."""
    is_tuple = inspect.isclass(thing) and issubclass(thing, tuple)
    return is_tuple or (inspect.isclass(thing) and hasattr(thing, "__dataclass_fields__"))


@functools.cache
def registry():
    """`{name: Entry}`; made when it is asked for, as it builds models."""
    tf.config.run_functions_eagerly(False)
    return dict(_entries())
