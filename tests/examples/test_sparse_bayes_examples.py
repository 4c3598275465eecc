"""The examples of sparse Bayesian networks run as shown, on little data."""

import importlib.util
import json
import pathlib
import re
import statistics
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

FOLDER = pathlib.Path(__file__).parents[2] / "examples"
PARTS = ("classification", "segmentation")


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """Both scripts and what they share, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        loaded = {name: load_script(f"sparse_bayes_{name}") for name in PARTS}
        yield {**loaded, "shared": sys.modules["_sparse_bayes"]}
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("_sparse_bayes", None)


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shared(scripts):
    return scripts["shared"]


@pytest.fixture
def classification(scripts):
    return scripts["classification"]


@pytest.fixture
def segmentation(scripts):
    return scripts["segmentation"]


def cells(text, method):
    """The cells of a method's row of the printed table."""
    (row,) = re.findall(rf"^\| {re.escape(method)} \| (.*) \|$", text, re.MULTILINE)
    return row.split(" | ")


def quick(script, tmp_path, *arguments):
    script.main(["--quick", "--data-dir", str(tmp_path / "nothing"), *arguments])


# --- From end to end --------------------------------------------------------------------------


@pytest.mark.slow
def test_classification_on_a_fresh_machine(classification, tmp_path, capsys):
    path = tmp_path / "runs.json"
    methods = ["ensemble", "partial 5 %"]
    quick(classification, tmp_path, "--json", str(path), "--methods", *methods)
    said = capsys.readouterr().out
    assert "pneumoniamnist_28.npz is missing in" in said
    assert "SYNTHETIC images instead." in said
    for method in methods:
        accuracy, brier, entropy, auc, ece = map(float, cells(said, method)[1:6])
        assert 0 <= accuracy <= 1
        assert 0 < brier < 1
        assert 0 < entropy <= np.log(2) + 1e-6
        assert 0 <= auc <= 1
        assert 0 <= ece <= 1
    runs = json.loads(path.read_text())["runs"]
    assert [(run["method"], run["passes"]) for run in runs] == [
        ("ensemble", 2.0),
        ("partial 5 %", 1.0),
    ]


@pytest.mark.slow
def test_segmentation_draws_maps_of_two_raters(segmentation, tmp_path, capsys):
    arguments = ["--dataset", "vessels", "--output", str(tmp_path / "maps")]
    quick(segmentation, tmp_path, *arguments, "--methods", "partial 20 %")
    said = capsys.readouterr().out
    dice, iou, _, entropy, _, first, second = map(float, cells(said, "partial 20 %")[1:8])
    assert dice == pytest.approx((first + second) / 2, abs=1e-4)
    assert 0 <= iou <= dice <= 1
    assert 0 < entropy <= np.log(2) + 1e-6
    assert re.search(r"Dice between the raters, on the test images: 0\.\d{3}\.", said)
    with Image.open(tmp_path / "maps" / "sparse_bayes_vessels_partial_20.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_quick_with_all_methods(scripts, part, tmp_path, capsys):
    quick(scripts[part], tmp_path, "--output", str(tmp_path))
    said = capsys.readouterr().out
    assert all(cells(said, method) for method in scripts["shared"].METHODS)


# --- Training ---------------------------------------------------------------------------------


SETTINGS = {
    "rate": 1e-2,
    "quick": True,
    "epochs": 2,
    "batch_size": 8,
    "verbose": 0,
    "estimator": "reparameterization",
    "train_samples": 1,
    "route": "fit",
    "members": 2,
    "samples": 3,
    "test_batch_size": 8,
}


def small_problem(shared):
    """A network of 8 * 9 + 8 * 2 weights in its kernels."""

    def build(kit):
        inputs = keras.Input((4, 4, 1))
        x = keras.layers.Flatten()(kit.conv(8, 3, name="conv")(inputs))
        return keras.Model(inputs, kit.dense(2, name="head")(x))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4, 4, 1)).astype("float32"), np.arange(16) % 2
    loss = keras.losses.SparseCategoricalCrossentropy
    return shared.Problem(
        build=build,
        make_loss=lambda: loss(from_logits=True),
        x=x,
        y=y,
        x_test=x,
        judge=lambda probs: {"mean": float(probs.mean())},
        terms=16,
        beta=(0.2, 0.1),
    )


@pytest.mark.slow_product
@pytest.mark.parametrize("route", ["fit", "convert"])
@pytest.mark.parametrize("train_samples", [1, 2])
def test_partial_network_has_its_share(shared, route, train_samples):
    settings = {**SETTINGS, "route": route, "train_samples": train_samples}
    model = shared.train("partial 5 %", small_problem(shared), settings, seed=0)
    conv, head = model.get_layer("conv"), model.get_layer("head")
    assert conv.is_selected() and head.is_selected()
    assert conv.num_bayesian() == 4  # ceil(0.05 * 72)
    assert head.num_bayesian() == 4  # ceil(0.05 * 64)
    assert conv.kl_weight == 1 / 16
    assert float(conv.beta.numpy()) == pytest.approx(0.1)
    assert np.ptp(conv.kernel_rho.numpy()) > 0  # it has learned
    # Two epochs of two steps; a converted model starts with a new optimizer.
    assert int(model.optimizer.iterations.numpy()) == {"fit": 4, "convert": 2}[route]
    assert not any(model.optimizer._use_weight_decay(layer.kernel_rho) for layer in (conv, head))
    assert model.optimizer._use_weight_decay(conv.kernel)


def test_bayesian_network_is_random_throughout(shared):
    problem = small_problem(shared)
    model = shared.train("Bayesian", problem, SETTINGS, seed=0)
    assert model.get_layer("conv").kernel_rho.shape == (3, 3, 1, 8)
    stack = shared.predict("Bayesian", model, problem, SETTINGS, seed=0)
    assert stack.shape == (3, 16, 2)
    assert np.all(np.ptp(stack, axis=0) > 0)


def test_methods_without_noise_predict_what_their_networks_say(shared):
    problem = small_problem(shared)
    model = shared.train("deterministic", problem, SETTINGS, seed=0)
    stack = shared.predict("deterministic", model, problem, SETTINGS, seed=0)
    expected = tf.nn.softmax(model(problem.x, training=False)).numpy()
    np.testing.assert_allclose(stack, expected[None], rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "expected"),
    [("deterministic", 1), ("ensemble", 5), ("partial 1 %", 3), ("Bayesian", 5)],
)
def test_passes_count_members_and_draws(shared, method, expected):
    """With 5 draws in the second half, (1 + 5) / 2 = 3; the paper says 3.36."""
    settings = {"epochs": 10, "members": 5, "train_samples": 5}
    assert shared.passes(method, settings) == expected


def test_batches_hold_each_image_once_and_a_mask_of_some_rater(shared):
    x = np.arange(10)[:, None]
    y = np.stack([x + 100 * rater for rater in range(3)], axis=-1)
    batches = shared.Batches(x, y, batch_size=4, seed=0, raters=True)
    seen, raters = [], set()
    for _ in range(20):
        pairs = [batches[i] for i in range(len(batches))]
        images, masks = (np.concatenate(column)[:, 0] for column in zip(*pairs, strict=True))
        np.testing.assert_array_equal(np.sort(images), np.arange(10))
        np.testing.assert_array_equal(masks % 100, images)
        seen.append(images.tolist())
        raters |= set((masks // 100).tolist())
        batches.on_epoch_end()
    assert raters == {0, 1, 2}
    assert seen[0] != seen[1]


# --- The file of runs and the table -------------------------------------------------------------


def test_runs_in_the_file_are_not_repeated(shared, tmp_path, monkeypatch):
    made = []

    def run(method, problem, settings, seed):
        if len(made) == 2 and "stopped" not in made:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append((method, seed))
        return {"method": method, "seed": seed}, None

    monkeypatch.setattr(shared, "run_once", run)
    command = ["--json", str(tmp_path / "runs.json"), "--methods", "deterministic", "Bayesian"]
    arguments = shared.make_parser("").parse_args([*command, "--seeds", "0", "1"])
    settings = {"epochs": 2, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        shared.run_all(None, settings, arguments, lambda *_: None)
    _, runs = shared.run_all(None, settings, arguments, lambda *_: None)
    made.remove("stopped")
    assert made == [(m, seed) for seed in (0, 1) for m in ("deterministic", "Bayesian")]
    assert len(runs) == 4
    with pytest.raises(ValueError, match=r"`--json` must name .* Received: .*'epochs': 2"):
        shared.run_all(None, {**settings, "epochs": 3}, arguments, lambda *_: None)


def test_report_shows_means_deviations_and_the_paper(classification, tmp_path, capsys):
    runs = [
        {"method": "ensemble", "seed": seed, "seconds": 10, "passes": 5.0}
        | dict.fromkeys(("brier", "entropy", "auc", "ece"), 0.5)
        | {"accuracy": 0.8 + 0.1 * seed}
        for seed in (0, 1)
    ]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"settings": {"epochs": 4}, "runs": runs}))
    flops = tmp_path / "flops.json"
    flops.write_text(json.dumps({"ensemble": 1.5}))
    classification.main(["--json", str(path), "--report", "--flops", str(flops)])
    found = cells(capsys.readouterr().out, "ensemble")
    assert found[0] == "2"
    assert found[1] == f"0.8500 ± {statistics.stdev([0.8, 0.9]):.4f}"
    assert found[6:] == ["7.50", "10 ± 0", "0.936", "0.053", "1.162", "5"]


# --- Data and judgement -------------------------------------------------------------------------


def test_a_missing_file_is_named(segmentation, tmp_path):
    with pytest.raises(SystemExit, match=r"dsb2018_nuclei_128_jpeg\.npz is missing in"):
        segmentation.main(["--data-dir", str(tmp_path)])


def test_chest_is_multi_label_and_judged_by_label(classification, tmp_path):
    labels = (np.arange(3 * 14).reshape(3, 14) % 2).astype("uint8")
    images = np.zeros((3, 28, 28), "uint8")
    parts = {f"{part}_images": images for part in ("train", "test")}
    np.savez(tmp_path / "chestmnist.npz", train_labels=labels, test_labels=labels, **parts)
    arguments = ["--dataset", "chest", "--data-dir", str(tmp_path)]
    arguments = classification.read_arguments(arguments)
    settings = classification.settings_of(arguments)
    problem = classification.make_problem(classification.load(arguments), settings)
    assert problem.multi_label and problem.terms == 3 * 14
    assert isinstance(problem.make_loss(), keras.losses.BinaryCrossentropy)
    found = problem.judge(np.full((3, 14), 0.25, "float32"))
    assert found["accuracy"] == 0.5
    assert found["brier"] == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found["entropy"] == pytest.approx(-14 * 0.25 * np.log(0.25))
    assert np.isnan(found["auc"])  # each label is the same for all images


def test_auc_leaves_out_labels_that_do_not_vary(classification):
    y, probs = np.array([[0, 1], [1, 1]]), np.array([[0.2, 0.9], [0.6, 0.1]])
    assert classification.mean_auc(y, probs) == 1


def test_overlap_counts_pixels_in_the_field_of_view(segmentation):
    masks = np.zeros((1, 2, 4, 2), "float32")
    masks[0, 0, :2, 0] = masks[0, 0, :3, 1] = 1
    fov = np.ones((1, 2, 4), bool)
    fov[0, 1] = False
    probs = np.full((1, 2, 4, 1), 0.9, "float32")  # all four pixels that count are predicted
    found = segmentation.judge(masks, fov, probs)
    assert found["dice_rater_1"] == pytest.approx(2 * 2 / (2 + 4))
    assert found["dice_rater_2"] == pytest.approx(2 * 3 / (3 + 4))
    assert found["dice"] == pytest.approx((4 / 6 + 6 / 7) / 2)
    assert found["iou"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert segmentation.human_dice(masks, fov) == pytest.approx(2 * 2 / (2 + 3))


def test_isic_pairs_images_with_their_masks(segmentation, tmp_path):
    for number in range(5):
        mask = np.zeros((20, 20), "uint8")
        mask[:, : 4 * number] = 255
        Image.fromarray(np.full((20, 20, 3), 40 * number, "uint8")).save(
            tmp_path / f"ISIC_{number}.jpg"
        )
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"ISIC_{number}_segmentation.png")
    train, test = segmentation.load_isic(tmp_path, {"images": 4, "test_images": 1})
    assert train[0].shape == (4, 64, 64, 3)
    assert test[1].mean() == 0
    shares = train[1].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.6, 0.8], atol=0.02)
    np.testing.assert_allclose(train[0].mean(axis=(1, 2, 3)), [40, 80, 120, 160], atol=3)


def test_lidc_has_four_raters_in_one_file_or_in_many(segmentation, tmp_path):
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(8, 16, 16)), rng.integers(2, size=(8, 16, 16, 4))
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    np.savez(one / "lidc.npz", images=images, masks=masks)
    for number in range(8):
        np.savez(many / f"{number}.npz", image=images[number], masks=masks[number])
    for found, expected in zip(
        segmentation.load_lidc(one, {}), segmentation.load_lidc(many, {}), strict=True
    ):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    train, test = segmentation.load_lidc(one, {})
    np.testing.assert_array_equal(test[1], masks[[0, 4]])
    assert train[0].shape == (6, 16, 16, 1) and train[0].dtype == np.uint8


def test_patches_are_centred_in_the_field_of_view(segmentation):
    x = np.arange(100 * 100).reshape(1, 100, 100, 1)
    fov = np.zeros((1, 100, 100), bool)
    fov[:, 40:45, 50:60] = True
    patches, masks = segmentation.draw_patches(x, x[..., 0], fov, 20)
    np.testing.assert_array_equal(patches[..., 0], masks)
    rows, columns = np.divmod(masks[:, 32, 32], 100)
    assert set(rows) <= set(range(40, 45))
    assert set(columns) <= set(range(50, 60))
    assert len(set(columns)) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "3"], "--epochs must be even, for two halves, not 3"),
        (["--width", "0"], "must be at least 1, not 0"),
        (["--rate", "nan"], "--rate must be above 0, not nan"),
        (["--report"], "--report needs --json with the file of a series, not None"),
    ],
)
def test_bad_arguments_are_refused(classification, capsys, arguments, message):
    with pytest.raises(SystemExit):
        classification.read_arguments(arguments)
    assert message in capsys.readouterr().err
