"""Which weights become random, other than by gradients: in copies, and while a network trains."""

import keras
import numpy as np
import pytest

from tfuq import convert
from tfuq.callbacks import SaliencySelection
from tfuq.layers import SparseBayesDense
from tfuq.layers.selection import rankings
from tfuq.layers.sparse_bayes import sparse_bayes_layers
from tfuq.optimizers import IVON
from tfuq.predictive import sample_predictions

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
Y = np.argmax(X[:, :3], axis=-1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def plain(optimizer="sgd", use_bias=True):
    keras.utils.set_random_seed(0)
    kinds = ((10, "tanh", "a"), (6, "tanh", "b"), (3, None, "c"))
    layers = [keras.layers.Dense(n, act, use_bias, name=name) for n, act, name in kinds]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile(optimizer, LOSS, jit_compile=False)
    return model


def converted(model=None, data=None, **options):
    return convert.sparse_bayesian(model or plain(), data, LOSS, kl_weight=0.01, **options)


def selected(model, name="kernel"):
    """Whether each weight is random, by the name of the layer."""
    found = {}
    for layer in sparse_bayes_layers(model):
        mask = np.zeros(np.prod(getattr(layer, name).shape), bool)
        if layer.num_bayesian(name):
            mask[getattr(layer, f"{name}_indices").numpy()] = True
        found[layer.name] = mask
    return found


def counts(model, name="kernel"):
    return {key: int(mask.sum()) for key, mask in selected(model, name).items()}


def test_largest_weights():
    model = plain()
    for scope in ("layer", "global"):
        copy = converted(model, which="magnitude", r_bayes=0.1, scope=scope)
        sizes = [np.abs(layer.kernel).ravel() for layer in model.layers]
        masks = list(selected(copy).values())
        if scope == "global":
            sizes, masks = [np.concatenate(sizes)], [np.concatenate(masks)]
        for size, mask in zip(sizes, masks, strict=True):
            assert mask.sum() == np.ceil(0.1 * len(size))
            assert size[mask].min() >= size[~mask].max()


def test_by_chance_from_a_seed():
    found = [selected(converted(which="random", r_bayes=0.2, seed=s)) for s in (1, 1, 2)]
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert any(np.any(found[0][name] != found[2][name]) for name in found[0])
    # Each weight is as likely as another: 6 standard errors over 500 seeds, 40 weights, so that a
    # correct choice fails once in 10^7.
    share = np.mean(
        [
            rankings("random", [{"kernel": np.zeros(40)}], seed)[0]["kernel"].argsort() < 8
            for seed in range(500)
        ],
        axis=0,
    )
    assert np.all(np.abs(share - 0.2) < 6 * np.sqrt(0.2 * 0.8 / 500))


@pytest.mark.parametrize("which, name, size", [("first", "a", 80), ("last", "c", 18)])
def test_one_layer_whole_or_a_share_of_all(which, name, size, capsys):
    copy = converted(which=which)
    assert counts(copy) == {name: size}
    left = convert.report(copy).left
    assert len(left) == 2 and all(why == f"which={which!r}" for _, why in left.values())
    of_all = counts(converted(which=which, r_bayes=30 / 158))
    assert of_all == ({"a": 30, "b": 0, "c": 0} if which == "first" else {"a": 0, "b": 12, "c": 18})


def test_biases_alone():
    copy = converted(which="biases")
    assert counts(copy) == {"a": 0, "b": 0, "c": 0}
    assert counts(copy, "bias") == {"a": 10, "b": 6, "c": 3}
    assert counts(converted(which="biases", bias_r_bayes=0.5), "bias") == {"a": 5, "b": 3, "c": 2}
    assert np.ptp(sample_predictions(copy, X, 4, from_logits=True), axis=0).max() > 0


def test_a_thousandth_is_one_weight_at_least(capsys):
    assert counts(converted(which="random", r_bayes=0.001)) == {"a": 1, "b": 1, "c": 1}
    told = capsys.readouterr().out
    assert "one random weight in each of 3 layers" in told and "less than one (a, b, c)" in told
    assert sum(counts(converted(which="random", r_bayes=0.001, scope="global")).values()) == 1
    assert "one random weight" not in capsys.readouterr().out


@pytest.mark.dear
def test_hessians_of_ivon_rank_the_weights():
    model = plain(IVON(0.5, num_data=64, beta_2=0.9))
    model.fit(X, Y, epochs=3, verbose=0)
    with pytest.warns(UserWarning, match="The copy has no posterior .* IVON keeps"):
        copy = converted(model, saliency="ivon", r_bayes=0.1, bias_r_bayes=0.5)
    hessians = [np.ravel(h) for h in model.optimizer.hessians()]
    masks = zip(selected(copy).values(), selected(copy, "bias").values(), strict=True)
    for hessian, mask in zip(hessians, [m for pair in masks for m in pair], strict=True):
        assert 0 < mask.sum() < len(mask) and hessian[mask].min() >= hessian[~mask].max()


# --- In the middle of a training ------------------------------------------------------------------


def sparse(optimizer="sgd"):
    keras.utils.set_random_seed(0)
    sizes = ((10, "tanh", "a"), (6, "tanh", "b"), (3, None, "c"))
    layers = [
        SparseBayesDense(n, act, name=name, kl_weight=0.01, r_bayes=0.1) for n, act, name in sizes
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile(optimizer, LOSS, jit_compile=False)
    return model


CHOSEN = {
    "magnitude": {"a": 8, "b": 6, "c": 2},
    "random": {"a": 8, "b": 6, "c": 2},
    "first": {"a": 16, "b": 0, "c": 0},
    "last": {"a": 0, "b": 0, "c": 16},
    "biases": {"a": 0, "b": 0, "c": 0},
}


@pytest.mark.slow_cases("magnitude", "random", "first", "biases")
@pytest.mark.parametrize("which", CHOSEN)
def test_selection_while_training(which):
    model = sparse()
    selection = SaliencySelection(which=which, after_epoch=1, seed=3)
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[selection]).history
    assert counts(model) == CHOSEN[which]
    biases = counts(model, "bias")
    assert biases == ({"a": 10, "b": 6, "c": 3} if which == "biases" else dict.fromkeys("abc", 0))
    total = sum(CHOSEN[which].values()) + sum(biases.values())
    assert history["bayesian_weights"] == [total, total]
    assert np.ptp(sample_predictions(model, X, 4), axis=0).max() > 0


@pytest.mark.parametrize("which, is_told", [("random", True), ("last", False), ("biases", False)])
def test_shares_of_layers_are_told_where_layers_have_them(which, is_told, capsys):
    model = sparse()
    for layer in model.layers:
        layer.r_bayes = 0.001
    selection = SaliencySelection(which=which, after_epoch=0, verbose=1)
    model.fit(X, Y, verbose=0, callbacks=[selection])
    assert ("one random weight in each of 3 layers" in capsys.readouterr().out) == is_told


@pytest.mark.slow
def test_selection_by_ivon_while_training():
    model = sparse(IVON(0.5, num_data=64, beta_2=0.9))
    selection = SaliencySelection(saliency="ivon", after_epoch=1)
    seen = {}

    class Hessians(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if not epoch:
                kernel = self.model.layers[0].kernel
                variables = self.model.optimizer._trainable_variables
                place = [v is kernel for v in variables].index(True)
                seen[0] = np.ravel(self.model.optimizer.hessians()[place])

    model.fit(X, Y, epochs=2, verbose=0, callbacks=[Hessians(), selection])
    mask = selected(model)["a"]
    assert mask.sum() == 8 and seen[0][mask].min() >= seen[0][~mask].max()


# --- Misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"which": "largest"}, "Argument `which` must be one of.*Received: which='largest'"),
        ({"saliency": "hessian"}, "Argument `saliency` must be one of"),
        ({"seed": -1}, "Argument `seed`"),
        ({"which": "random", "saliency": "ivon"}, "`saliency` must be left out"),
        ({"which": "random", "method": "fisher"}, "`method` must be left out"),
        ({"which": "biases", "r_bayes": 0.1}, "`r_bayes` must be left out"),
        ({}, "Argument `data` must be given"),
        ({"saliency": "ivon"}, "if `tfuq.optimizers.IVON` has trained"),
        ({"which": "magnitude", "bias_r_bayes": 0.5}, "weights that are 0 in all of the bias"),
    ],
)
def test_bad_words_in_copies(options, message):
    with pytest.raises(ValueError, match=message):
        converted(**options)


@pytest.mark.slow
def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="where no layer has a bias"):
        converted(plain(use_bias=False), which="biases")
    model = plain(IVON(0.1, num_data=64))
    model.layers[0].trainable = False
    model.compile(IVON(0.1, num_data=64), LOSS, jit_compile=False)
    model.fit(X, Y, verbose=0)
    with (
        pytest.warns(UserWarning, match="has no posterior of the weights"),
        pytest.raises(ValueError, match=r"not for frozen ones.*a/kernel"),
    ):
        converted(model, saliency="ivon")
    with pytest.raises(ValueError, match=r"if `tfuq.optimizers.IVON` has trained"):
        sparse().fit(X, Y, verbose=0, callbacks=[SaliencySelection(saliency="ivon")])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"which": "largest"}, "Argument `which` must be one of"),
        ({"which": "first", "saliency": "ivon"}, "`saliency` must be left out"),
        ({"saliency": "ivon", "method": "fisher"}, "`method` must be left out"),
        ({"saliency": "ivon", "after_epoch": 0}, "Argument `after_epoch`"),
    ],
)
def test_bad_words_in_callbacks(options, message):
    with pytest.raises(ValueError, match=message):
        SaliencySelection(**options)
