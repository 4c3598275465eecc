"""Runs the contract battery over every part of tfuq. A new part joins with one line here."""

import collections
import functools
import tempfile

import numpy as np
import pytest
from architectures import resnet18, unet
from contract import LABELS, LayerCase, ModelCase, Numbers
from contract_callbacks import CallbackCase, callback_checks
from contract_layers import layer_checks, network_checks
from contract_metrics import MetricCase, metric_checks
from contract_process import (
    CLASS_ARTIFACTS,
    compare,
    layer_artifacts,
    run_all,
    write_layer,
    write_metric,
)

from tfuq import callbacks, convert, layers, losses, metrics, optimizers, preprocessing
from tfuq.corruptions import CorruptionLayer
from tfuq.selective import TemperatureScaling

FEW = {"num_factors": 2, "train_mc_samples": 16, "test_mc_samples": 16}
FIVE_CLASSES = {"num_classes": 5, **FEW}
THREE_LABELS = {"num_outputs": 3, "logits_only": True, **FEW}
FEATURE_NOISE = {"units": 5, **FEW}
LABELS_BY_FEATURES = {"units": 3, "logits_only": True, "parameter_efficient": False, **FEW}
UNSURE = {**FIVE_CLASSES, "last_layer": "vbll", "kl_weight": 0.01}
UNSURE_LABELS = {**THREE_LABELS, "last_layer": "vbll", "kl_weight": 0.01, "seed": 2}
PROCESS = {"units": 3, "num_features": 16, "seed": 1}
PROCESS_OF_LABELS = {**PROCESS, "likelihood": "bernoulli", "momentum": 0.9, "logits_only": False}
TUNED = {"parameter_efficient": True, "tune_temperature": True, "compute_pred_variance": True}
DIAGONAL = {"num_classes": 2, "num_factors": 0, "logits_only": True, "sampling": "antithetic"}
FRESH = {"resample": True, "sampling": "iid", "share_samples_across_batch": True}
MEMBERS = {"units": 3, "num_members": 2, "seed": 1}
MEMBERS_OF_MAPS = {"filters": 3, "kernel_size": 2, "num_members": 2, "factors": "normal", "seed": 1}
LAST = {"units": 3, "kl_weight": 0.01}
LOW_RANK = {**LAST, "posterior": "low_rank", "rank": 2, "noise": "learned", "predictive": "probit"}
DENSE = {**LAST, "posterior": "dense", "objective": "monte_carlo", "logits_only": False}
LAPLACE_FULL = {"units": 3, "structure": "full", "use_bias": False, "logits_only": False}
LAPLACE_LABELS = {"units": 3, "likelihood": "bernoulli", "predictive": "mean"}
LABELLED = {**LAST, "likelihood": "bernoulli", "objective": "monte_carlo", "sampling": "antithetic"}
WEIGHTS = {"kl_weight": 0.01, "prior_scale": 0.5, "posterior_scale": 0.1}
LOCAL = {"estimator": "local_reparameterization"}
IMAGES = {"shape": (5, 5, 2), "more_shapes": ((7, 6, 2),)}
PICTURES = {"shape": (4, 4, 3), "more_shapes": ((7, 6, 3),)}
WIDE = {"value_range": (-4.0, 4.0)}  # of images that are normal numbers
PAIRS = {"shape": (4, 4, 6), "more_shapes": ((7, 6, 6),)}  # ambient and flash
SPARSE = {"r_bayes": 0.3, **WEIGHTS, "posterior_scale": 0.4}
SPARSE_BIAS = {"units": 3, **SPARSE, "bias_r_bayes": 0.5}
STEPS = {"shape": (5, 2), "more_shapes": ((7, 2),)}
TWIN = {"is_twin": True}
EXAMPLE = {"is_example": True}  # few, of unlike kinds: each takes a quarter of a minute
DROPS = {"units": 3, "dropout": 0.2, "recurrent_dropout": 0.2, "seed": 1}
MADE_ANEW = {"estimator": "reparameterization", "resample": True}

TWO = {"units": 2}
NUMBERS = {**TWO, "kl_weight": 0.01}
LEVELS = {"levels": [0.1, 0.5, 0.9]}
FACTORS = {"num_factors": 2}
COMPONENTS = {"num_components": 2}


def likelihood(name, **config):
    return {"target": Numbers(losses.NegativeLogLikelihood({"name": name, **config}))}


def select(layer):
    """Makes weights of a sparse Bayesian layer random: any will do."""
    rng = np.random.default_rng(0)
    layer.select(*[rng.uniform(size=weight.shape) for weight in layer.ranked_weights().values()])


DICE_OF_LABELS = {"multi_label": True, "aggregate": "pool", "target_class_ids": [0, 2]}


def sparse(model):
    """A trained network, made sparse Bayesian."""
    x = np.random.default_rng(0).normal(size=(2, 8, 8, model.inputs[0].shape[-1]))
    return convert.sparse_bayesian(
        model, (x, np.zeros((2, *model(x).shape[1:]))), "mse", 0.05, kl_weight=0.001
    )


VARIATIONAL = LayerCase(
    "variational", layers.DenseVariational, {"units": 3, "activation": "softmax", **WEIGHTS}
)

RANDOM_LATER = LayerCase(
    "sparse-later",
    layers.SparseBayesDense,
    {"units": 3, "activation": "softmax", **SPARSE},
)

LAYERS = [
    LayerCase("softmax", layers.MCSoftmaxDenseFA, FIVE_CLASSES),
    LayerCase("softmax-tuned", layers.MCSoftmaxDenseFA, {**FIVE_CLASSES, **TUNED}),
    LayerCase("softmax-diagonal", layers.MCSoftmaxDenseFA, DIAGONAL),
    LayerCase("softmax-fresh", layers.MCSoftmaxDenseFA, {**FIVE_CLASSES, **FRESH}, repeats=False),
    LayerCase("sigmoid", layers.MCSigmoidDenseFA, THREE_LABELS, target=LABELS),
    LayerCase("softmax-xl", layers.MCSoftmaxDenseXL, FEATURE_NOISE),
    LayerCase("sigmoid-xl", layers.MCSigmoidDenseXL, LABELS_BY_FEATURES, target=LABELS),
    LayerCase("softmax-vbll", layers.MCSoftmaxDenseFA, UNSURE),
    LayerCase("sigmoid-vbll", layers.MCSigmoidDenseFA, UNSURE_LABELS, target=LABELS),
    LayerCase("softmax-sngp", layers.MCSoftmaxDenseFA, {**FIVE_CLASSES, "last_layer": "sngp"}),
    LayerCase("sngp", layers.SNGPDense, PROCESS),
    LayerCase("sngp-momentum", layers.SNGPDense, PROCESS_OF_LABELS, target=LABELS),
    LayerCase("batch-ensemble", layers.BatchEnsembleDense, MEMBERS),
    LayerCase("batch-ensemble-conv2d", layers.BatchEnsembleConv2D, MEMBERS_OF_MAPS, **IMAGES),
    LayerCase("vbll", layers.VBLLDense, LAST),
    LayerCase("vbll-low-rank", layers.VBLLDense, LOW_RANK),
    LayerCase("vbll-dense", layers.VBLLDense, DENSE),
    LayerCase("vbll-labels", layers.VBLLDense, LABELLED, target=LABELS),
    LayerCase("vbll-student", layers.VBLLDense, {**LAST, "noise": "student_t"}),
    LayerCase("vbll-generative", layers.VBLLGenerativeDense, {"units": 3, "kl_weight": 0.01}),
    LayerCase("laplace-last", layers.LastLayerLaplace, {"units": 3}),
    LayerCase(
        "laplace-last-diagonal", layers.LastLayerLaplace, {"units": 3, "structure": "diagonal"}
    ),
    LayerCase("laplace-last-full", layers.LastLayerLaplace, LAPLACE_FULL),
    LayerCase("laplace-last-labels", layers.LastLayerLaplace, LAPLACE_LABELS, target=LABELS),
    LayerCase("dense-flipout", layers.DenseVariational, {"units": 3, **WEIGHTS}, **EXAMPLE),
    LayerCase("dense-local", layers.DenseVariational, {"units": 3, **WEIGHTS, **LOCAL}),
    LayerCase(
        "dense-fresh",
        layers.DenseVariational,
        {"units": 3, **WEIGHTS, "estimator": "reparameterization", "resample": True},
        repeats=False,
    ),
    LayerCase(
        "conv1d",
        layers.Conv1DVariational,
        {"filters": 3, "kernel_size": 2, "padding": "causal", **WEIGHTS},
        shape=(6, 2),
        more_shapes=((8, 2),),
    ),
    LayerCase(
        "conv2d",
        layers.Conv2DVariational,
        {"filters": 3, "kernel_size": 2, **WEIGHTS, "prior_mean": "initial"},
        **IMAGES,
    ),
    LayerCase(
        "conv2d-transpose",
        layers.Conv2DTransposeVariational,
        {"filters": 3, "kernel_size": 2, **WEIGHTS, **LOCAL, "trainable_prior": True},
        **IMAGES,
    ),
    LayerCase(
        "conv3d",
        layers.Conv3DVariational,
        {"filters": 3, "kernel_size": 2, **WEIGHTS},
        shape=(3, 3, 3, 2),
        more_shapes=((4, 3, 3, 2),),
        **TWIN,
    ),
    LayerCase(
        "depthwise-conv1d",
        layers.DepthwiseConv1DVariational,
        {"kernel_size": 2, "depth_multiplier": 2, **WEIGHTS},
        **STEPS,
        **TWIN,
    ),
    LayerCase(
        "depthwise-conv2d",
        layers.DepthwiseConv2DVariational,
        {"kernel_size": 2, "depth_multiplier": 2, **WEIGHTS},
        **IMAGES,
        **TWIN,
    ),
    LayerCase(
        "separable-conv1d",
        layers.SeparableConv1DVariational,
        {"filters": 3, "kernel_size": 2, **WEIGHTS, **LOCAL},
        **STEPS,
        **TWIN,
    ),
    LayerCase(
        "separable-conv2d",
        layers.SeparableConv2DVariational,
        {"filters": 3, "kernel_size": 2, **WEIGHTS, "prior_mean": "initial"},
        **IMAGES,
        **TWIN,
    ),
    LayerCase(
        "einsum",
        layers.EinsumDenseVariational,
        {"equation": "abc,cd->abd", "output_shape": (None, 3), "bias_axes": "d", **WEIGHTS},
        **STEPS,
        **TWIN,
    ),
    LayerCase("gru", layers.GRUVariational, {"units": 3, **WEIGHTS}, **STEPS),
    LayerCase(
        "lstm",
        layers.LSTMVariational,
        {"units": 3, **WEIGHTS},
        takes_none=False,  # nor does Keras' own
        **STEPS,
        **TWIN,
    ),
    LayerCase("rnn", layers.SimpleRNNVariational, {"units": 3, **WEIGHTS}, **STEPS, **TWIN),
    LayerCase(
        "corruption",
        CorruptionLayer,
        {
            **{"corruption": "gaussian_noise", "severity": 5, "seed": 1, **WIDE},
            "severity_of": "cifar10-c",  # a graph of unknown extents asks for it
        },
        shape=(4, 4, 3),
        more_shapes=((7, 6, 3),),
    ),
    LayerCase("sparse-dense", layers.SparseBayesDense, SPARSE_BIAS, prepare=select),
    LayerCase(
        "sparse-before",
        layers.SparseBayesDense,
        SPARSE_BIAS,
        idle=("kernel_rho", "bias_rho"),
    ),
    LayerCase(
        "sparse-fresh",
        layers.SparseBayesDense,
        {
            "units": 3,
            **SPARSE,
            **MADE_ANEW,
            "r_bayes": 1.0,
            "use_bias": False,
            "posterior_scale": 0.1,
        },
        repeats=False,
        prepare=select,
    ),
    LayerCase("sparse-none", layers.SparseBayesDense, {"units": 3, **SPARSE, "r_bayes": 0}),
    LayerCase(
        "sparse-conv1d",
        layers.SparseBayesConv1D,
        {"filters": 3, "kernel_size": 2, "padding": "causal", **SPARSE, "estimator": "flipout"},
        shape=(6, 2),
        more_shapes=((8, 2),),
        prepare=select,
    ),
    LayerCase(
        "sparse-conv2d",
        layers.SparseBayesConv2D,
        {"filters": 3, "kernel_size": 2, **SPARSE},
        **IMAGES,
        prepare=select,
        **EXAMPLE,
    ),
    LayerCase(
        "sparse-conv3d",
        layers.SparseBayesConv3D,
        {"filters": 3, "kernel_size": 2, **SPARSE, "estimator": "reparameterization"},
        shape=(3, 3, 3, 2),
        more_shapes=((4, 3, 3, 2),),
        prepare=select,
    ),
    LayerCase(
        "sparse-conv2d-transpose",
        layers.SparseBayesConv2DTranspose,
        {"filters": 3, "kernel_size": 2, **SPARSE, "estimator": "flipout"},
        **IMAGES,
        prepare=select,
    ),
    LayerCase(
        "sparse-depthwise",
        layers.SparseBayesDepthwiseConv2D,
        {"kernel_size": 2, "depth_multiplier": 2, **SPARSE},
        **IMAGES,
        prepare=select,
    ),
    LayerCase("normal", layers.NormalDense, TWO, **likelihood("normal"), **EXAMPLE),
    LayerCase("laplace", layers.LaplaceDense, TWO, **likelihood("laplace")),
    LayerCase("student-t", layers.StudentTDense, TWO, **likelihood("student_t")),
    LayerCase(
        "mixture", layers.MixtureDense, {**TWO, **COMPONENTS}, **likelihood("mixture", **COMPONENTS)
    ),
    LayerCase(
        "quantiles",
        layers.QuantileDense,
        {**TWO, **LEVELS},
        target=Numbers(losses.Pinball(LEVELS["levels"])),
    ),
    LayerCase("evidential", layers.EvidentialDense, TWO, target=Numbers(losses.Evidential(0.01))),
    LayerCase(
        "joint-normal",
        layers.MultivariateNormalDense,
        {**TWO, **FACTORS},
        **likelihood("multivariate_normal", **FACTORS),
    ),
    LayerCase("vbll-numbers", layers.VBLLRegression, NUMBERS, **likelihood("bayesian_normal")),
    LayerCase(
        "vbll-numbers-low-rank",
        layers.VBLLRegression,
        {**NUMBERS, "posterior": "low_rank", "rank": 2},
        **likelihood("bayesian_normal"),
    ),
    LayerCase(
        "vbll-numbers-dense",
        layers.VBLLRegression,
        {**NUMBERS, "posterior": "dense"},
        **likelihood("bayesian_normal"),
    ),
    LayerCase(
        "vbll-numbers-student",
        layers.VBLLRegression,
        {**NUMBERS, "likelihood": "student_t"},
        **likelihood("bayesian_student_t"),
    ),
    LayerCase(
        "vbll-numbers-joint",
        layers.VBLLRegression,
        {**NUMBERS, **FACTORS, "likelihood": "multivariate_normal"},
        **likelihood("bayesian_multivariate_normal", **FACTORS),
    ),
    LayerCase(
        "laplace-last-numbers",
        layers.LastLayerLaplaceRegression,
        {**TWO, "noise_scale": 0.5},
        **likelihood("bayesian_normal"),
    ),
    LayerCase(
        "laplace-last-numbers-full",
        layers.LastLayerLaplaceRegression,
        {**TWO, "structure": "full", "noise": "linear"},
        **likelihood("bayesian_normal"),
    ),
    LayerCase("dropout", layers.MCDropout, {"rate": 0.2, "seed": 1}),
    LayerCase("gaussian-dropout", layers.MCGaussianDropout, {"rate": 0.2, "seed": 1}, **TWIN),
    LayerCase("dropping-gru", layers.MCGRU, DROPS, **STEPS),
    LayerCase("dropping-lstm", layers.MCLSTM, DROPS, **STEPS, **TWIN),
    LayerCase("dropping-rnn", layers.MCSimpleRNN, DROPS, **STEPS, **TWIN),
    LayerCase(
        "post-processing",
        layers.PostProcessing,
        {"method": TemperatureScaling(1.5, from_logits=True)},
    ),
    LayerCase("gamma", preprocessing.Gamma, {"gamma": 1.5, **WIDE}, **PICTURES),
    LayerCase(
        "clahe", preprocessing.CLAHE, {"kernel_size": 4, "clip_limit": 0.1, **WIDE}, **PICTURES
    ),
    LayerCase(
        "illumination", preprocessing.IlluminationCorrection, {"sigma": 1.0, **WIDE}, **PAIRS
    ),
    LayerCase(
        "field-of-view", preprocessing.CenterFieldOfView, {"fraction": 0.5, **WIDE}, **PICTURES
    ),
    LayerCase("fundus", preprocessing.FundusCrop, {"size": 4, **WIDE}, **PICTURES),
    LayerCase(
        "confounders",
        preprocessing.ConfounderRemoval,
        {"num_colors": 2, "max_share": 1.0, **WIDE},  # noise is all marks, which it would warn of
        **PICTURES,
    ),
]

NETWORKS = [
    ModelCase(
        "resnet18",
        build=lambda: sparse(resnet18(width=4, classes=3)),
        shape=(8, 8, 3),
        more_shapes=((16, 8, 3),),
    ),
    ModelCase(
        "unet",
        build=lambda: sparse(unet()),
        shape=(8, 8, 1),
        more_shapes=((16, 8, 1),),
        target=LABELS,
        **EXAMPLE,
    ),
]

METRICS = [
    MetricCase("ece", metrics.ExpectedCalibrationError, **EXAMPLE),
    MetricCase("ece-binary", metrics.ExpectedCalibrationError, {"n_bins": 5}, "binary"),
    MetricCase("ece-labels", metrics.ExpectedCalibrationError, {"multi_label": True}, "labels"),
    MetricCase("adaptive", metrics.AdaptiveCalibrationError, {"n_bins": 4}),
    MetricCase("classwise", metrics.ClasswiseCalibrationError, {"n_bins": 4}),
    MetricCase("maximum", metrics.MaximumCalibrationError, {"n_bins": 2}),
    MetricCase("brier", metrics.BrierScore),
    MetricCase("entropy", metrics.EntropyOfExpectation),
    MetricCase("nll", metrics.NegativeLogLikelihood),
    MetricCase("nll-logits", metrics.NegativeLogLikelihood, {"from_logits": True}),
    MetricCase("selective", metrics.SelectiveAccuracy, {"threshold": 0.4}),
    MetricCase("coverage", metrics.Coverage, {"threshold": 0.6}),
    MetricCase("rejection", metrics.RejectionRate, {"threshold": 0.6}),
    MetricCase("dice", metrics.DiceScore),
    MetricCase("auroc", metrics.AUROC, {}, "binary"),
    MetricCase("auroc-maps", metrics.AUROC, {"multi_label": True, "n_bins": 512}, "labels"),
    MetricCase("aupr-in", metrics.AUPRIn, {"from_logits": True}, "binary"),
    MetricCase("aupr-out", metrics.AUPROut, {}, "binary"),
    MetricCase("fpr-at-tpr", metrics.FPRAtTPR, {"tpr": 0.8, "positive": "out"}, "binary"),
    MetricCase("detection", metrics.DetectionAccuracy, {}, "binary"),
    MetricCase("dice-labels", metrics.DiceScore, DICE_OF_LABELS, "labels"),
    MetricCase("aurc", metrics.AURC),
    MetricCase("augrc", metrics.AUGRC, {}, "binary"),
    MetricCase("coverage-at-risk", metrics.CoverageAtRisk, {"risk": 0.7}),
    MetricCase("risk-at-coverage", metrics.RiskAtCoverage, {"coverage": 0.6, "attainable": True}),
    MetricCase("risk-at-coverage-labels", metrics.RiskAtCoverage, {"multi_label": True}, "labels"),
    MetricCase("crps", metrics.CRPS, {}, "numbers", **EXAMPLE),
    MetricCase("number-nll", metrics.NumberNegativeLogLikelihood, {}, "numbers"),
    MetricCase("sharpness", metrics.Sharpness, {}, "numbers"),
    MetricCase("interval-coverage", metrics.PredictionIntervalCoverage, {"level": 0.8}, "numbers"),
    MetricCase("interval-width", metrics.MeanIntervalWidth, {"level": 0.8}, "numbers"),
    MetricCase("interval-score", metrics.IntervalScore, {"level": 0.8}, "numbers"),
    MetricCase(
        "quantile-error", metrics.QuantileCalibrationError, {"levels": [0.1, 0.6]}, "numbers"
    ),
    MetricCase("ause", metrics.AUSE, {"error": "squared", "n_bins": 512}, "numbers"),
    MetricCase("of-mean", metrics.OfMean, {"metric": "mae"}, "numbers"),
]

CALLBACKS = [
    CallbackCase(
        "rejection",
        lambda x, y: callbacks.RejectionEvaluator((x, y), (0.4, 0.6), log="all", verbose=0),
        ("val_accuracy_at_0.4", "val_coverage_at_0.6", "val_ece_at_0.4"),
        **EXAMPLE,
    ),
    CallbackCase(
        "kl-annealing",
        lambda x, y: callbacks.KLAnnealing(duration=7, unit="step"),
        ("kl_beta",),
        observes=False,
        layer=VARIATIONAL,
        **EXAMPLE,
    ),
    CallbackCase(
        "saliency",
        lambda x, y: callbacks.SaliencySelection(after_epoch=1),
        ("bayesian_weights",),
        observes=False,
        layer=RANDOM_LATER,
    ),
    CallbackCase(
        "posterior-mean",
        lambda x, y: callbacks.PosteriorMean(),
        (),
        observes=False,
        optimizer=lambda rate: optimizers.IVON(rate, num_data=1000),
    ),
    CallbackCase(
        "swag",
        lambda x, y: callbacks.SWAG(start=0),
        ("swag_networks",),
        observes=False,
    ),
    CallbackCase(
        "posterior-sampling",
        lambda x, y: callbacks.PosteriorSampling(2),
        (),
        observes=False,
        layer=VARIATIONAL,
    ),
    CallbackCase(
        "unfreezing",
        lambda x, y: callbacks.GradualUnfreezing(num_stages=1),
        ("unfreezing_stage",),
        observes=False,
    ),
    CallbackCase(
        "sgdr",
        lambda x, y: callbacks.SGDR(0.1, cycle_length=0.5, cycle_mult=2),
        ("learning_rate",),
        observes=False,
    ),
    CallbackCase("backup", lambda x, y: callbacks.BackupAndRestore(tempfile.mkdtemp()), ()),
    CallbackCase(
        "snapshots", lambda x, y: callbacks.SnapshotEnsemble(tempfile.mkdtemp(), every=1), ()
    ),
    CallbackCase(
        "range-test", lambda x, y: callbacks.LRRangeTest(stop=1e4, num_steps=12), (), observes=False
    ),
]


pytestmark = pytest.mark.every_case  # contract_layers.py and its like choose
PARTS = 6  # processes that share these tests: see run.py

ALL_LAYER_CHECKS = [*layer_checks(LAYERS), *network_checks(NETWORKS)]
# A network's SavedModel is traced layer by layer, as that of sparse-conv2d is, which stays.
LAYER_FILES = [
    *layer_artifacts(LAYERS),
    *((case, name, name == "saved_model") for case in NETWORKS for name in CLASS_ARTIFACTS),
]


def name_of(case):
    return case.name


def params_of(table):
    """Of rows `(case, name, ..., whether it is slow)`, ids and marks."""
    for case, name, *more, slow in table:
        marks = [pytest.mark.slow] * slow
        yield pytest.param(case, *(more or [name]), id=f"{case.name}-{name}", marks=marks)


@pytest.mark.slow_cases(
    "clahe-functional_plain",
    "clahe-mixed_float16",
    "confounders-functional_plain",
    "confounders-mixed_float16",
    "confounders-subclassed_weights",
)
@pytest.mark.parametrize("case, check", params_of(ALL_LAYER_CHECKS))
def test_layer(case, check):
    check(case)


@pytest.mark.parametrize("case, check", params_of(metric_checks(METRICS)))
def test_metric(case, check):
    check(case)


@pytest.mark.parametrize("case, check", params_of(callback_checks(CALLBACKS)))
def test_callback(case, check):
    check(case)


def asked_for(items):
    """Of the tests that run, the cases and their artifacts: `({name: artifacts}, names)`."""
    layers, metrics = collections.defaultdict(list), set()
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if item.originalname == "test_layer_in_new_process":
            layers[params["case"].name].append(params["artifact"])
        elif item.originalname == "test_metric_in_new_process":
            metrics.add(params["case"].name)
    return layers, metrics


@pytest.fixture(scope="session")
def loaded(tmp_path_factory, request):
    """`loaded(case, artifact)` compares what a new process answered. One process per world."""
    root = tmp_path_factory.mktemp("artifacts")
    written = {}
    layers, metrics = asked_for(request.session.items)
    writers = [
        (case, functools.partial(write_layer, artifacts=layers[case.name]))
        for case in [*LAYERS, *NETWORKS]
        if case.name in layers
    ]
    writers += [(case, write_metric) for case in METRICS if case.name in metrics]
    for case, write in writers:
        folder = root / case.name
        folder.mkdir()
        try:
            written[case.name] = write(case, folder)
        except Exception as error:  # is raised by the tests of this case alone
            written[case.name] = error
    run_all(root)

    def check(case, artifact, repeats=True):
        if isinstance(written[case.name], Exception):
            raise written[case.name]
        compare(root / case.name, artifact, written[case.name][artifact], repeats)

    return check


@pytest.mark.xdist_group("new_process")
@pytest.mark.parametrize("case, artifact", params_of(LAYER_FILES))
def test_layer_in_new_process(case, artifact, loaded):
    loaded(case, artifact, case.repeats)


@pytest.mark.xdist_group("new_process")
@pytest.mark.parametrize("case", METRICS, ids=name_of)
def test_metric_in_new_process(case, loaded):
    loaded(case, "compiled.keras")
