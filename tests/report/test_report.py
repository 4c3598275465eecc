"""The report's numbers are those of the metrics, whatever form predictions come in."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss

import tfuq
from tfuq._math.bounds import wilson_interval
from tfuq.ood import KNN
from tfuq.report import html, to_markdown
from tfuq.report._content import read
from tfuq.report._thumbnails import picture_of
from tfuq.selective import (
    AccuracyEstimate,
    ConformalPredictor,
    LabelShift,
    RejectionRule,
    ShiftReport,
    TwoSampleTest,
    gap,
)

RNG = np.random.default_rng(5)
LOGITS = 2 * RNG.normal(size=(300, 3))
PROBS = softmax(LOGITS, axis=-1)
LABELS = np.where(RNG.random(300) < 0.7, PROBS.argmax(-1), RNG.integers(3, size=300))
HOSPITAL = RNG.choice(["north", "south|east"], 300)
IMAGES = RNG.uniform(size=(300, 8, 12))


def numbers(text):
    """Cells of the Markdown table under a heading or title, by the first cell of each row."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def after(text, title):
    """The part of the text from `title` to the next table."""
    start = text.index(title)
    end = re.search(r"\n\n(\*\*|#)", text[start + len(title) :])
    return text[start : start + len(title) + end.start()] if end else text[start:]


def content_of(path):
    page = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL).group(1))


# --- Numbers ----------------------------------------------------------------------------------


def test_summary_is_that_of_scikit_learn_and_the_metrics():
    found = numbers(to_markdown((PROBS, LABELS)))
    one_hot = np.eye(3)[LABELS]
    assert found["Examples"] == ["300"]
    assert found["Accuracy"] == [f"{100 * np.mean(PROBS.argmax(-1) == LABELS):.1f} %"]
    assert found["Negative log-likelihood (NLL, nats)"] == [f"{log_loss(LABELS, PROBS):.4g}"]
    brier = sum(brier_score_loss(one_hot[:, k], PROBS[:, k]) for k in range(3))
    assert found["Brier score"] == [f"{brier:.4g}"]
    ece = tfuq.metrics.expected_calibration_error(LABELS, PROBS)
    assert found["Expected calibration error (ECE, 15 bins)"] == [f"{ece:.4g}"]
    area = tfuq.selective.aurc(PROBS, LABELS)
    assert found["Area under the risk-coverage curve (AURC)"] == [f"{area:.4g}"]


@pytest.mark.parametrize("threshold", [0.0, 0.7, float(np.float32(PROBS.max(-1)[7])), 1.0])
def test_decisions_are_those_of_the_rejection_table(threshold):
    text = to_markdown((PROBS, LABELS), threshold=threshold, groups=HOSPITAL)
    table = tfuq.metrics.rejection_table(LABELS, PROBS, [threshold])
    accepted = PROBS.max(-1).astype("float32") >= np.float32(threshold)
    right = int((PROBS.argmax(-1) == LABELS)[accepted].sum())
    chosen = numbers(after(text, "**What is accepted"))
    share = f"{100 * table['coverage'][0]:.1f} %"
    accuracy = f"{100 * table['accuracy'][0]:.1f} %" if accepted.any() else "–"
    counts = accepted.sum(), 300 - accepted.sum(), right, accepted.sum() - right
    assert chosen[share] == [accuracy, *map(str, counts)]
    expected = np.zeros((3, 3), int)
    if accepted.any():
        expected = confusion_matrix(LABELS[accepted], PROBS[accepted].argmax(-1), labels=range(3))
    matrix = numbers(after(text, "**Accepted, by true"))
    assert [matrix[str(k)] for k in range(3)] == [[str(cell) for cell in row] for row in expected]
    north = numbers(after(text, "**By group"))["north"]
    assert north[2] == str((accepted & (HOSPITAL == "north")).sum())


def test_all_forms_of_predictions_say_the_same():
    expected = to_markdown((PROBS, LABELS), threshold=0.6)
    stack = np.stack([PROBS, PROBS])
    assert to_markdown((stack, LABELS), threshold=0.6) == expected
    assert to_markdown((PROBS, np.eye(3)[LABELS]), threshold=0.6) == expected
    assert to_markdown((LOGITS, LABELS), threshold=0.6, from_logits=True) == expected
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = tf.data.Dataset.from_tensor_slices((LOGITS, LABELS)).batch(128)
    assert to_markdown(model, data=batches, threshold=0.6)[:2000] == expected[:2000]
    binary = PROBS[:, 1] / PROBS[:, :2].sum(-1)
    answers = LABELS == 1
    texts = [
        to_markdown((given, answers), names=["no", "yes"])
        for given in (binary, binary[:, None], np.stack([binary[:, None]] * 2))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert f"| {brier_score_loss(answers, binary):.4g} |" in texts[0]


def test_unusable_predictions_are_rejected_and_told():
    probs, bad = PROBS.copy(), [3, 50]
    probs[bad[0]], probs[bad[1], 0] = np.nan, np.inf
    text = to_markdown((probs, LABELS), threshold=0.0, groups=HOSPITAL)
    assert "2 of 300 predictions hold NaN or infinity" in text
    accepted, rejected = numbers(after(text, "**What is accepted"))["99.3 %"][1:3]
    assert (accepted, rejected) == ("298", "2")
    kept = np.delete(np.arange(300), bad)
    alone = numbers(to_markdown((PROBS[kept], LABELS[kept])))
    assert numbers(text)["Brier score"] == alone["Brier score"]
    groups = numbers(after(text, "**By group"))
    assert sum(int(cells[3]) for name, cells in groups.items() if name in ("north", "south\\|east"))
    rule = RejectionRule("entropy", 0.8)
    text = to_markdown((probs, LABELS), rule=rule)
    assert f"accepts {rule.accept(probs).sum()} (" in text


@pytest.mark.parametrize("score", ["margin", "predictive_entropy", "mutual_information"])
def test_a_rule_brings_its_score_and_threshold(score):
    stack = softmax(LOGITS + RNG.normal(size=(4, 300, 3)), axis=-1)
    rule = RejectionRule.fit(stack, LABELS, score, target_coverage=0.6)
    text = to_markdown((stack, LABELS), rule=rule, groups=HOSPITAL)
    coverage = f"{100 * rule.accept(stack).mean():.1f} %"
    assert f"## {score.replace('_', ' ').capitalize()} of at" in text
    assert coverage in numbers(after(text, "**What is accepted"))
    assert "**The rule as fitted, in each group" in text and "south\\|east" in text
    area = tfuq.selective.aurc(stack, LABELS, score=score)
    name = f"Area under the risk-coverage curve (AURC, by {score.replace('_', ' ')})"
    assert numbers(text)[name.replace("_", "\\_")] == [f"{area:.4g}"]


def test_a_model_of_logits_takes_a_rule_of_what_is_told_of_it():
    """The pair that `predict_uncertainty` and `RejectionRule.fit` made."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.layers[0].set_weights([np.eye(3), np.zeros(3)])
    rule = RejectionRule.fit(
        tfuq.predictive.predict_uncertainty(model, LOGITS), LABELS, target_coverage=0.6
    )
    found = to_markdown(model, data=(LOGITS, LABELS), rule=rule)
    assert found == to_markdown((PROBS.astype("float32"), LABELS), rule=rule)


def test_rules_of_several_thresholds_are_told_and_marked(tmp_path):
    rule = RejectionRule("confidence", [0.6, np.inf], by="group", keys=["north", "south|east"])
    path = html((PROBS, LABELS), tmp_path / "page.html", rule=rule, groups={"hospital": HOSPITAL})
    found = content_of(path)
    assert found["marks"] == [["rule, north", "0.6"], ["rule, south|east", "Infinity"]]
    accepted = rule.accept(PROBS, HOSPITAL).sum()
    assert f"the rule accepts {accepted} (" in path.read_text(encoding="utf-8")
    rule = RejectionRule("margin", [0.2, 0.4], by="class", keys=[0, 2])
    html((PROBS, LABELS), path, rule=rule, names=["cat", "dog", "owl"])
    assert content_of(path)["marks"] == [["rule, cat", "0.2"], ["rule, owl", "0.4"]]
    nothing = RejectionRule("confidence", np.inf)
    assert content_of(html((PROBS, LABELS), path, rule=nothing))["threshold"] == "Infinity"


def test_many_classes_and_groups_are_cut_to_the_largest():
    labels = np.arange(300) % 30
    probs = np.eye(30)[np.where(np.arange(300) < 120, (labels + 1) % 30, labels)]
    text = to_markdown((probs, labels), groups=np.r_[np.arange(60), np.zeros(240, int)])
    errors = after(text, "**Most frequent errors")
    assert errors.count("\n| ") == 22 and "| 0 | 1 | 4 |" in errors
    assert "| 10 smaller groups | " in text


# --- Sections ---------------------------------------------------------------------------------


def test_shift_and_detection_are_tables():
    estimate = AccuracyEstimate(0.7, 0.65, 0.75, 0.8, None)
    prior = np.array([0.5, 0.5])
    label_shift = LabelShift(prior, prior, prior - 0.1, prior + 0.1, prior, 2.0, False, 0.04)
    confusion = np.array([[3, 1], [0, 4]])
    report = ShiftReport(
        *(("acne", "a|b"), 8, 8, label_shift, TwoSampleTest(0.6, 0.2, 8), estimate, estimate),
        *(confusion, confusion, confusion, 2, PROBS[:8, :2], PROBS[:8, :2]),
    )
    ood = {
        "auroc": 0.912345,
        "auroc_interval": (0.9, 0.93),
        "energy": {"fpr_at_tpr": 0.25, "fpr_at_tpr_interval": (0.2, 0.3)},
        "knn": {"examples": 1200, "fitted": True, "layer": None},
    }
    text = to_markdown((PROBS, LABELS), shift=report, ood=ood)
    assert "| estimated on the new data (ATC) | 70.0 % \\[65.0 %, 75.0 %\\] |" in text
    assert "| true on the new data | 87.5 % |" in text
    assert "| a\\|b | 50.0 % | 50.0 % \\[40.0 %, 60.0 %\\] |" in text
    assert "The estimates are unreliable" in text
    assert "| auroc | 0.9123 | \\[0.9, 0.93\\] |" in text
    assert "| energy | 0.25 \\[0.2, 0.3\\] | – | – | – |" in text
    assert "| knn | – | 1,200 | yes | – |" in text


def test_the_gap_is_a_table_with_a_sentence():
    found = gap(PROBS, LABELS, coverage=[0.5, 0.8])
    text = to_markdown((PROBS, LABELS), gap=found)
    assert "## Where the gap comes from" in text and "Parts of the gap to the oracle" in text
    assert found.sentence() in text.replace("\\", "")
    with pytest.raises(ValueError, match=r"`gap` must be what tfuq.selective.gap gave"):
        to_markdown((PROBS, LABELS), gap={"gap": 0.1})


# --- The file ---------------------------------------------------------------------------------


def test_page_of_20000_examples_is_under_5_megabytes(tmp_path):
    class Noise:  # what PNG cannot compress
        def __len__(self):
            return 20_000

        def __getitem__(self, index):
            return np.random.default_rng(index).uniform(size=(160, 120, 3))

    probs = RNG.dirichlet(np.full(4, 0.3), size=20_000)
    labels = RNG.integers(4, size=20_000)
    path = html((probs, labels), tmp_path / "page.html", images=Noise(), groups=labels % 3)
    assert path.stat().st_size < 5e6
    found = content_of(path)
    kept = [example["rank"] for example in found["examples"]]
    assert len(set(kept)) == 80 and kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, 19_999)
    ordered = np.sort(probs.max(-1))[::-1]
    at = np.searchsorted(-ordered, -0.5)
    assert {at - 1, at, at + 1} <= set(kept)  # next to the threshold
    for level in (0.4, 0.6, 0.8, 0.95):  # and near to any other
        assert np.abs(ordered[kept] - level).min() < 0.05
    pictures = [example["picture"] for example in found["examples"]]
    assert all(picture["uri"].startswith("data:image/jpeg;base64,") for picture in pictures)
    assert all(picture["of"] == [120, 160] for picture in pictures)
    assert all(picture["width"] <= 120 and len(picture["uri"]) < 4e4 for picture in pictures)


def test_pictures_come_from_the_data_of_a_model(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 12, 1)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    )
    data = IMAGES[..., None].astype("float32"), LABELS
    path = html(model, tmp_path / "page.html", data=data, num_examples=4, batch_size=150)
    first = content_of(path)["examples"][0]
    encoded = first["picture"]["uri"].removeprefix("data:image/png;base64,")
    pixels = tf.io.decode_png(tf.io.decode_base64(encoded.translate({43: 45, 47: 95}))).numpy()
    image = IMAGES[first["index"]]
    expected = (image - image.min()) / (image.max() - image.min())
    np.testing.assert_allclose(pixels[..., 0] / 255, expected, atol=0.003)


def test_a_picture_keeps_its_own_size_where_it_can():
    photo = np.linspace(0, 1, 300)[:, None] * np.linspace(0, 1, 400)
    found = picture_of(photo, 1e5)
    assert (found["width"], found["height"], found["of"]) == (400, 300, [400, 300])
    noise = RNG.uniform(size=(300, 400, 3))
    reduced = picture_of(noise, 2e4)
    assert len(reduced["uri"]) < 2.1e4 and reduced["of"] == [400, 300]
    assert abs(reduced["width"] / reduced["height"] - 4 / 3) < 0.05 and reduced["width"] < 400


def test_prediction_sets_are_told_of_all_classes_and_groups():
    sets = ConformalPredictor.fit(PROBS[:150], LABELS[:150], alpha=0.2)
    text = to_markdown((PROBS, LABELS), sets=sets, groups=HOSPITAL, names=["a", "b", "c"])
    found = sets.evaluate(PROBS, LABELS)
    rows = numbers(after(text, "**Sets of labels"))
    assert rows["labels in a set, on average"] == [f"{found.mean_size:.4g}"]
    assert rows["sets of one label, which are answers"] == [f"{100 * found.singletons:.1f} %"]
    assert "Promised: the truth in 80.0 % of the sets." in text
    rows = numbers(after(text, "**Sets that hold the truth"))
    north = HOSPITAL == "north"
    share = sets.coverage(PROBS[north], LABELS[north]).coverage
    assert rows["group: north"][1].startswith(f"{100 * share:.1f} %")
    assert rows["true class: b"][1].startswith(f"{100 * found.class_coverage[1]:.1f} %")
    logits = ConformalPredictor.fit(LOGITS, LABELS, alpha=0.2, from_logits=True)
    assert "## Prediction sets" in to_markdown((LOGITS, LABELS), sets=logits)
    by_group = ConformalPredictor.fit(PROBS, LABELS, alpha=0.2, groups=HOSPITAL)
    text = to_markdown((PROBS, LABELS), sets=by_group, groups=HOSPITAL)
    share = by_group.coverage(PROBS[north], LABELS[north], HOSPITAL[north]).coverage
    found = numbers(after(text, "**Sets that hold the truth"))["group: north"]
    assert found[1].startswith(f"{100 * share:.1f} %")
    with pytest.raises(ValueError, match="`groups` must be the one column"):
        to_markdown((PROBS, LABELS), sets=by_group)
    stacked = to_markdown((np.stack([PROBS] * 2), LABELS), sets=sets, groups=HOSPITAL)
    assert after(stacked, "**Sets that hold") == after(
        to_markdown((PROBS, LABELS), sets=sets, groups=HOSPITAL), "**Sets that hold"
    )
    rule = RejectionRule.fit(PROBS, LABELS, target_coverage=0.5)
    for options in ({"sets": rule}, {"sets": logits, "rule": rule}):
        with pytest.raises(ValueError, match="`sets` must "):
            to_markdown((PROBS, LABELS), **options)


# --- What is promised, and of which classes -----------------------------------------------------


def test_sensitivity_and_precision_of_what_is_accepted():
    text = to_markdown((PROBS, LABELS), threshold=0.6, names=["a", "b", "c"])
    accepted, answers = PROBS.max(-1) >= 0.6, PROBS.argmax(-1)
    rows = numbers(after(text, "**Accepted answers, class by class"))
    for k, name in enumerate("abc"):
        taken, told = accepted & (k == LABELS), accepted & (answers == k)
        right = (taken & told).sum()
        of_taken, of_told = (
            f"{100 * right / count.sum():.1f} % \\[{', '.join(ends)}\\]"
            for count in (taken, told)
            for ends in [[f"{100 * end:.1f} %" for end in wilson_interval(right, count.sum())]]
        )
        total = (k == LABELS).sum()
        share = f"{taken.sum()} ({100 * taken.sum() / total:.1f} %)"
        assert rows[name] == [str(total), share, of_taken, str(told.sum()), of_told]


def test_classes_that_are_never_answered_are_said():
    """As of HAM10000, where a rule of confidence accepted benign answers alone."""
    sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.85, 0.15], [0.45, 0.55]])
    given = (np.repeat(sure, 5, axis=0), [0] * 10 + [1] * 10)
    text = to_markdown(given, threshold=0.7, names=["benign", "melanoma"])
    assert "It answers only benign. No answer is melanoma: of 5 accepted cases of these" in text
    assert "It answers only" not in to_markdown(given, threshold=0.5, names=["a", "b"])
    text = to_markdown(given, threshold=0.87, names=["benign", "melanoma"])
    assert "It answers only benign. No case of melanoma is accepted." in text


def test_off_the_rule_nothing_is_promised():
    rule = RejectionRule.fit(PROBS, LABELS, target_risk=0.4, confidence=0.8)
    at = to_markdown((PROBS, LABELS), rule=rule)
    assert "This is the rule's threshold: what is said of it above is promised here." in at
    off = to_markdown((PROBS, LABELS), rule=rule, threshold=0.9)
    assert "Nothing is promised at this threshold, only at the rule's, " in off
    wrong = (PROBS.argmax(-1) != LABELS)[PROBS.max(-1) >= 0.9]
    ends = [f"{100 * end:.1f} %" for end in wilson_interval(wrong.sum(), len(wrong))]
    assert f"\\[{', '.join(ends)}\\] are wrong, an interval for a threshold" in off
    assert "Nothing is promised: there is no rule." in to_markdown((PROBS, LABELS))
    several = RejectionRule.fit(PROBS, LABELS, target_risk=0.5, by="class", confidence=0.8)
    assert "the rule has one for each class or group" in to_markdown((PROBS, LABELS), rule=several)


def test_the_verdict_of_each_group_stands_beside_the_promise():
    rule = RejectionRule.fit(PROBS, LABELS, target_risk=0.4, confidence=0.8)
    labels = np.where(HOSPITAL == "north", (PROBS.argmax(-1) + 1) % 3, PROBS.argmax(-1))
    text = to_markdown((PROBS, labels), rule=rule, groups=HOSPITAL)
    assert text.index("The promise is broken in group: north.") < text.index("## Confidence of")
    assert "| group | n | verdict | risk of accepted |" in text  # what a telephone shows
    (north,) = [line for line in text.splitlines() if line.startswith("| group: north")]
    assert north.split("|")[3].strip() == "fails"


# --- The file, again ----------------------------------------------------------------------------


def test_an_old_page_is_replaced_whole_or_kept(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    images = [IMAGES[0]] * 299 + [np.full((8, 12), np.nan)]
    with pytest.raises(ValueError, match="`images`"):
        html((PROBS, LABELS), path, images=images, num_examples=300)
    assert path.read_text() == "old"
    assert html((PROBS, LABELS), str(path), num_examples=0) == path
    assert content_of(path)["examples"] == []
    assert [child.name for child in tmp_path.iterdir()] == ["page.html"]


def test_choice_of_examples_repeats(tmp_path):
    pages = [
        content_of(html((PROBS, LABELS), tmp_path / "page.html", num_examples=20, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert pages[0] == pages[1] != pages[2]


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, source, options",
    [
        ("source", PROBS, {}),
        ("source", "model.keras", {}),
        ("labels", (PROBS, None), {}),
        ("labels", (PROBS, ["cat"] * 300), {}),
        ("labels", (PROBS, LABELS + 1), {}),
        ("labels", (PROBS[:16].reshape(4, 4, 3), np.zeros((4, 4), int)), {}),
        ("probs", (PROBS, LABELS[:5]), {}),
        ("probs", (PROBS[:0], LABELS[:0]), {}),
        ("probs", (PROBS * np.nan, LABELS), {}),
        ("probs", (LOGITS, LABELS), {}),
        ("data", (PROBS, LABELS), {"data": (PROBS, LABELS)}),
        ("images", (PROBS, LABELS), {"images": IMAGES[:7]}),
        ("images", (PROBS, LABELS), {"images": IMAGES[..., None, None]}),
        ("names", (PROBS, LABELS), {"names": ["a", "b"]}),
        ("groups", (PROBS, LABELS), {"groups": HOSPITAL[:3]}),
        ("rule", (PROBS, LABELS), {"rule": 0.7}),
        ("rule", (PROBS, LABELS), {"rule": RejectionRule(multi_label=True)}),
        ("groups", (PROBS, LABELS), {"rule": RejectionRule("margin", [1], by="group", keys="a")}),
        ("from_logits", (PROBS, LABELS), {"rule": RejectionRule(), "from_logits": True}),
        ("from_logits", (PROBS, LABELS), {"from_logits": "yes"}),
        ("rule", (PROBS, LABELS), {"rule": RejectionRule(threshold=[1], by="class", keys=[7])}),
        ("threshold", (PROBS, LABELS), {"threshold": float("nan")}),
        ("threshold", (PROBS, LABELS), {"threshold": [0.5]}),
        ("title", (PROBS, LABELS), {"title": " "}),
        ("num_examples", (PROBS, LABELS), {"num_examples": -1}),
        ("seed", (PROBS, LABELS), {"seed": None}),
        ("ood", (PROBS, LABELS), {"ood": 0.9}),
        ("shift", (PROBS, LABELS), {"shift": {}}),
    ],
)
def test_bad_input_is_refused(argument, source, options, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)must.*Received: ") as caught:
        html(source, tmp_path / "page.html", **options)
    assert f"`{argument}`" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_models_need_labelled_data_without_weights(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    for data in (None, PROBS, (PROBS, LABELS, np.ones(300)), (PROBS[:0], LABELS[:0])):
        with pytest.raises(ValueError, match="`data`"):
            html(model, tmp_path / "page.html", data=data)


@pytest.mark.parametrize("path", ["", "nowhere/page.html", None])
def test_a_path_must_lead_to_a_file(path, tmp_path):
    with pytest.raises(ValueError, match="`path`"):
        html((PROBS, LABELS), path and tmp_path / path)
    with pytest.raises(ValueError, match="`path`"):
        html((PROBS, LABELS), tmp_path)


# --- Random models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model():
    layers = [tfuq.layers.MCDropout(0.5, seed=1), keras.layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((3,)), *layers])


def test_a_random_model_is_reported_as_it_predicts_and_the_page_says_so(random_model):
    x = LOGITS.astype("float32")
    text = to_markdown(random_model, data=(x, LABELS))
    assert "`num_samples` draws networks" in text.replace("\\", "")
    own = random_model.predict(x, verbose=0)
    assert numbers(text)["Accuracy"] == numbers(to_markdown((own, LABELS)))["Accuracy"]


@pytest.mark.slow
def test_draws_of_a_random_model_are_reported(random_model, tmp_path):
    x = LOGITS.astype("float32")
    stack = tfuq.predictive.sample_predictions(random_model, x, 8)
    rule = RejectionRule.fit(stack, LABELS, "mutual_information", target_coverage=0.5)
    options = {"data": (x, LABELS), "rule": rule}
    found = to_markdown(random_model, num_samples=8, **options)
    assert "the mean of 8 networks" in found
    assert (
        numbers(found)["Accuracy"] == numbers(to_markdown((stack, LABELS), rule=rule))["Accuracy"]
    )
    assert "the mean of 30 networks" in to_markdown(random_model, **options)
    with pytest.raises(ValueError, match="`num_samples` must be None"):
        html((PROBS, LABELS), tmp_path / "a.html", num_samples=8)
    data = tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(50)
    with pytest.raises(ValueError, match=r"`data` must be \(x, y\) arrays"):
        to_markdown(random_model, data=data, num_samples=8)


def test_a_rule_of_several_losses_has_a_table_for_each():
    rng = np.random.default_rng(3)
    probs = rng.dirichlet([0.4] * 3, size=600)
    y = (rng.random((600, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    sites = {"site": np.where(np.arange(600) % 2, "A", "B")}
    for loss, said in (
        ({"error": 0.3, "recall of b or c": 0.6}, ["the risk is of recall of b or c", "Holm"]),
        ([(1 - np.eye(3), 0.3)], ["the risk is of the matrix"]),
    ):
        rule = RejectionRule.fit(probs, y, loss=loss, class_names=["a", "b", "c"])
        text = to_markdown((probs, y), groups=sites, rule=rule)
        assert text.count("The rule as fitted, in each group") == len(loss)
        assert all(part in text for part in said)
        assert ("confidence for all together" in text) == (len(loss) > 1)


def strange_world():
    rng = np.random.default_rng(5)
    probs = rng.dirichlet([0.5] * 3, size=500)
    scores = rng.normal(size=500) - 1  # most of them below 0
    wrong = rng.random(500) < np.where(scores > -0.5, 0.7, 0.05)
    y = np.where(wrong, (probs.argmax(-1) + 1) % 3, probs.argmax(-1))
    return probs, y, scores


def test_a_score_from_beside_the_predictions(tmp_path):
    probs, y, scores = strange_world()
    rule = RejectionRule.fit(probs, y, score=scores, target_risk=0.2)
    sites = np.where(np.arange(500) % 2, "A", "B")
    text = to_markdown((probs, y), rule=rule, score=scores, groups=sites)
    judged = rule.evaluate(probs, y, score=scores)
    assert f"the rule accepts {judged.accepted} " in text
    assert f"## Given score of at most {rule.threshold:g}" in text
    found = read((probs, y), rule=rule, score=scores)
    assert found.decision(rule.threshold).accepted == judged.accepted
    assert found.smallest <= scores.min() < found.smallest + 0.1
    assert found.level_table().rows[0][0] == f"{found.smallest:.3g}"
    broken = scores.copy()
    broken[:3] = np.nan
    assert "3 of 500 predictions" in to_markdown((probs, y), rule=rule, score=broken)
    far = np.where(scores > 0, np.inf, scores)  # equal ones, whose order says nothing
    area = tfuq.selective.aurc(probs, y, score=np.where(scores > 0, 9.0, scores).astype("float32"))
    name = "Area under the risk-coverage curve (AURC, by given score)"
    assert numbers(to_markdown((probs, y), score=far))[name] == [f"{area:.4g}"]
    alone = read((probs, y), score=scores)
    assert alone.ranked.grows is False and not alone.marks
    page = html((probs, y), tmp_path / "r.html", rule=rule, score=scores).read_text()
    least = f"{found.smallest:.{max(found.slider()[1], 0)}f}"
    assert f'id="threshold" min="{least}"' in page
    pnorm = RejectionRule.fit(probs, y, score="pnorm", target_coverage=0.5)
    ranked = read((probs, y), rule=pnorm)
    assert ranked.smallest < pnorm.threshold < ranked.slider()[0] <= 0
    for message, options in (
        ("`score` must be the scores of these examples", {"rule": rule}),
        ("`score` must be None for a rule of the score 'pnorm'", {"rule": pnorm, "score": scores}),
        ("`score` must hold a number for each of 500", {"rule": rule, "score": scores[:9]}),
        ("`score` must hold a number for each example", {"rule": rule, "score": probs}),
        ("`score` must be an array of numbers", {"rule": rule, "score": ["a"] * 500}),
        ("`score` must be an array where", {"score": KNN()}),
    ):
        with pytest.raises(ValueError, match=message):
            to_markdown((probs, y), **options)


def test_the_score_of_a_detector():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(300, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    data = x[100:], x[100:, :3].argmax(-1)
    detector = KNN(k=5).fit(model, x[:100])
    rule = RejectionRule.fit_model(model, data, score=detector, target_coverage=0.5)
    text = to_markdown(model, data=data, rule=rule, score=detector)
    assert "## KNN score of at most" in text and "the rule accepts 100 " in text
    rows = tf.data.Dataset.from_tensor_slices(data).shuffle(200, seed=1).batch(32)
    assert "the rule accepts 100 " in to_markdown(model, data=rows, rule=rule, score=detector)
    with pytest.raises(ValueError, match="`score` must be a detector where `data` are not arrays"):
        to_markdown(model, data=rows, rule=rule, score=detector.score(x[100:]))
    other = KNN(k=6).fit(model, x[:100])
    with pytest.raises(ValueError, match="`score` must be the fitted KNN"):
        to_markdown(model, data=data, rule=rule, score=other)


def test_what_is_accepted_by_the_rule_s_own_loss():
    probs, y, _ = strange_world()
    missed = {"loss": "false_negative", "positive_class": 1, "class_names": ["a", "b", "c"]}
    rule = RejectionRule.fit(probs, y, target_coverage=0.5, **missed)
    judged = rule.evaluate(probs, y)
    said = f"the risk is {100 * judged.risk:.1f} %: false negatives of b, of the accepted."
    assert said in to_markdown((probs, y), rule=rule)
    costs = RejectionRule.fit(probs, y, loss=(1 - np.eye(3)) / 2, target_risk=0.4)
    risk = costs.evaluate(probs, y).risk
    assert f"the risk is {100 * risk:.1f} %: mean cost" in to_markdown((probs, y), rule=costs)
    rule = RejectionRule.fit(probs, y, loss={"error": 0.4, "recall of 1": 0.5})
    both = rule.evaluate(probs, y).losses
    found = to_markdown((probs, y), rule=rule)
    wrong, missed = (each["risk"] for each in both)  # of a recall that is told, not what it misses
    told = f"error {100 * wrong:.1f} %, recall of 1 {100 * (1 - missed):.1f} %."
    assert f"By the losses that it was fitted to: {told}" in found
    assert "By the loss" not in to_markdown((probs, y), rule=RejectionRule("confidence", 0.5))
