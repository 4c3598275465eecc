"""Units of the columns of a table of scores, and names of classes, for its metadata."""

UNITS = {
    "probabilities": "probability",
    "confidence": "probability",
    "predictive_entropy": "nat",
    "expected_entropy": "nat",
    "mutual_information": "nat",
    "variation_ratio": "fraction of networks",
    "mean": "unit of y",
    "std": "unit of y",
    "aleatoric_std": "unit of y",
    "epistemic_std": "unit of y",
    "lower": "unit of y",
    "upper": "unit of y",
    "true_label": "class",
    "label": "class",
}


def notes_of(run):
    """What goes into the metadata of Parquet files of a `run` of `score_dataset`."""
    if "family" in run:  # of a regression, whose labels are numbers
        units = {**UNITS, "true_label": "unit of y"}
        return {"units": units, "level": run.get("level")}
    return {"units": UNITS, "class_names": run.get("class_names")}
