"""Every way into tfuq that takes a model: `(model, labels, folder)` to what it answers."""

import keras
import numpy as np
from models import IMAGES

from tfuq import callbacks, cli, corruptions, export, interpret, ood, predictive, report, selective
from tfuq.ensembles import DeepEnsemble


def predict_uncertainty(model, labels, folder, **told):
    return predictive.predict_uncertainty(model, IMAGES, 4, **told)


def sample_predictions(model, labels, folder, **told):
    return predictive.sample_predictions(model, IMAGES, 4, **told)


def score_dataset(model, labels, folder, **told):
    return predictive.score_dataset(model, IMAGES, folder / "scores", verbose=0, **told)


def test_time_augmentation(model, labels, folder, **told):
    views = [lambda images: images, lambda images: images[:, ::-1]]
    return predictive.test_time_augmentation(model, IMAGES, views, **told)


def copy_of(model):
    """A model of the same weights and the same compilation."""
    again = keras.models.clone_model(model)
    if model.loss is not None and not again.compiled:
        again.compile("sgd", model.loss)
    again.set_weights(model.get_weights())
    return again


def ensemble(model, labels, folder, **told):
    return DeepEnsemble.from_models([model, copy_of(model)]).predict(IMAGES, **told)


def ensemble_evaluate(model, labels, folder, **told):
    return DeepEnsemble.from_models([model, copy_of(model)]).evaluate((IMAGES, labels), **told)


def ensemble_uncertainty(model, labels, folder, **told):
    ensemble = DeepEnsemble.from_models([model, copy_of(model)])
    return predictive.predict_uncertainty(ensemble, IMAGES, **told)


def detector(kind):
    def fitted(model, labels, folder, **told):
        found = getattr(ood, kind)(**told)
        return found.fit(model, IMAGES, labels).score(IMAGES)

    return fitted


def explanation(name, **options):
    def explained(model, labels, folder, **told):
        return getattr(interpret, name)(model, IMAGES[:2], **options, **told)

    return explained


def corruption_report(model, labels, folder, **told):
    names = ["gaussian_noise"]
    return corruptions.corruption_report(model, IMAGES, labels, names, [1], verbose=0, **told)


def exported(name, suffix):
    def written(model, labels, folder, **told):
        return getattr(export, name)(model, folder / f"model{suffix}", **told)

    return written


def fitted(kind, **options):
    def from_model(model, labels, folder, **told):
        return getattr(selective, kind).fit_model(model, (IMAGES, labels), **options, **told)

    return from_model


def page(model, labels, folder, **told):
    return report.html(model, folder / "page.html", data=(IMAGES, labels), **told)


def evaluator(model, labels, folder, **told):
    watched = callbacks.RejectionEvaluator((IMAGES, labels), (0.5,), verbose=0, **told)
    return model.fit(IMAGES, labels, callbacks=[watched], verbose=0)


def command(name, *arguments, takes_data=True):
    def run(model, labels, folder, **told):
        model.save(folder / "model.keras")
        np.savez(folder / "data.npz", x=IMAGES, y=labels)
        said = [str(folder / "model.keras"), *([str(folder / "data.npz")] * takes_data)]
        is_file = [part[-1].isalpha() and "." in part for part in arguments]
        said += [str(folder / p) if f else p for p, f in zip(arguments, is_file, strict=True)]
        code = cli.main([name, *said, "--quiet", "--debug"])
        return code

    return run


DETECTORS = ("MaxSoftmax", "MaxLogit", "Energy", "Entropy", "ODIN", "GradNorm", "ViM", "ReAct")
DETECTORS += ("Mahalanobis", "RelativeMahalanobis", "KNN", "GEN", "KLMatching", "SHE", "NNGuide")
DETECTORS += ("FDBD", "ASH", "SCALE", "DICE", "ExGrad", "GAIA", "Gram")

ENTRIES = {
    "predict_uncertainty": predict_uncertainty,
    "score_dataset": score_dataset,
    "test_time_augmentation": test_time_augmentation,
    "DeepEnsemble.predict": ensemble,
    "DeepEnsemble.evaluate": ensemble_evaluate,
    "predict_uncertainty(DeepEnsemble)": ensemble_uncertainty,
    **{f"ood.{name}": detector(name) for name in DETECTORS},
    "grad_cam": explanation("grad_cam"),
    "guided_backpropagation": explanation("guided_backpropagation"),
    "occlusion": explanation("occlusion", patch=3),
    "corruption_report": corruption_report,
    "export": exported("export", ""),
    "export_litert": exported("export_litert", ".tflite"),
    "export_onnx": exported("export_onnx", ".onnx"),
    "RejectionRule.fit_model": fitted("RejectionRule", target_coverage=0.8),
    "ConformalPredictor.fit_model": fitted("ConformalPredictor", alpha=0.2),
    "TemperatureScaling.fit_model": fitted("TemperatureScaling"),
    "report.html": page,
    "tfuq evaluate": command("evaluate"),
    "tfuq calibrate": command("calibrate", "--out", "scaling.json"),
    "tfuq calibrate, a rule": command("calibrate", "--target-coverage", "0.9", "--out", "r.json"),
    "tfuq predict": command("predict", "scores.csv"),
    "tfuq export": command("export", "served.tflite", takes_data=False),
}
RANDOM_ONLY = {"sample_predictions": sample_predictions}
