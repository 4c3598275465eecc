"""Pictures of maps and of pairs show the numbers that they are given."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from test_api import refused

from tfuq import plots
from tfuq.interpret import LabelNoisePairs, confused_pairs

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 8, 8, 3))
MAPS = RNG.random((3, 8, 8))


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    assert pyplot.get_fignums() == []


def drawn(ax):
    return np.asarray(ax.images[-1].get_array()), ax.images[-1].get_clim()


def test_maps_lie_over_their_images_each_on_its_own_scale():
    columns = {"plain": MAPS, "signed": MAPS - 0.5}
    figure = plots.explanation_maps(IMAGES, columns, titles="abc", figure=Figure())
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "plain", "signed"]
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["a", "b", "c"]
    for row in range(3):
        _, plain, signed = figure.axes[3 * row : 3 * row + 3]
        values, limits = drawn(plain)
        np.testing.assert_array_equal(values, MAPS[row])
        assert limits == (0, MAPS[row].max())
        end = np.abs(MAPS[row] - 0.5).max()
        assert drawn(signed)[1] == (-end, end)
        grey = IMAGES[row] - IMAGES[row].min()
        np.testing.assert_allclose(
            plain.images[0].get_array(), (grey / grey.max()).mean(axis=-1), atol=1e-6
        )
        levels = [list(ax.collections[0].levels) for ax in (plain, signed)]
        assert levels == [[MAPS[row].max() / 2], [-end / 2, end / 2]]
    assert figure.get_supxlabel().startswith("blue: for it, red: against it; lines")


def test_same_scale_and_maps_of_zeros():
    figure = plots.explanation_maps(IMAGES[..., 0], MAPS, same_scale=True, figure=Figure())
    assert {drawn(ax)[1] for ax in figure.axes[1::2]} == {(0, MAPS.max())}
    figure = plots.explanation_maps(IMAGES[..., :1], 0 * MAPS, figure=Figure())
    assert drawn(figure.axes[1])[1] == (0, 1)
    assert figure.get_supxlabel().startswith("lines")  # no map has signs
    assert not figure.axes[1].collections


def test_maps_with_channels_are_drawn_alone_and_summed():
    guided = RNG.normal(size=(3, 8, 8, 3))
    figure = plots.explanation_maps(IMAGES, guided, figure=Figure())
    for ax, expected in zip(figure.axes[1::2], guided.sum(axis=-1), strict=True):
        assert len(ax.images) == 1
        values, limits = drawn(ax)
        np.testing.assert_array_equal(values, expected)
        assert limits == (-np.abs(expected).max(), np.abs(expected).max())


def test_refusals_of_maps():
    refused("images", plots.explanation_maps, np.zeros((0, 8, 8)), MAPS[:0])
    refused("images", plots.explanation_maps, IMAGES[..., :2], MAPS)
    refused("images", plots.explanation_maps, IMAGES * np.nan, MAPS)
    for maps in (MAPS[:2], MAPS[:, :4], MAPS[0], {}, MAPS * np.nan, {"a": "b"}):
        refused("maps", plots.explanation_maps, IMAGES, maps)
    refused("titles", plots.explanation_maps, IMAGES, MAPS, titles=["one"])
    refused("alpha", plots.explanation_maps, IMAGES, MAPS, alpha=2)
    refused("same_scale", plots.explanation_maps, IMAGES, MAPS, same_scale=1)
    refused("figure", plots.explanation_maps, IMAGES, MAPS, figure=3)


def test_pairs_are_bars_with_their_deviation():
    labels, runs = [0, 1, 2, 2], np.eye(3)[[[0, 2, 1, 1], [0, 2, 2, 0], [0, 2, 1, 1]]]
    found = confused_pairs(labels, runs, names=["cat", "dog", "fox"])
    two = confused_pairs(labels, runs[:2])
    ax = plots.confused_pairs(two, ax=Figure().subplots())
    assert not ax.collections and ax.get_xlabel() == "errors, mean of 2 runs"  # tell no deviation
    ax = plots.confused_pairs(found, ax=Figure().subplots())
    assert [bar.get_width() for bar in ax.patches] == [pair.mean for pair in found.pairs]
    ends = [np.ptp(line[:, 0]) / 2 for line in ax.collections[0].get_segments()]
    np.testing.assert_allclose(ends, [pair.std for pair in found.pairs])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["dog and fox", "cat and fox"]
    assert len(plots.confused_pairs(found, top=1, ax=Figure().subplots()).patches) == 1
    single = confused_pairs(labels, runs[0], directed=True)
    ax = plots.confused_pairs(single, ax=Figure().subplots())
    assert ax.get_yticklabels()[0].get_text() == "2 as 1"
    none = confused_pairs([0, 1], np.eye(2))
    said = plots.confused_pairs(none, ax=Figure().subplots()).texts[0].get_text()
    assert said == "no pair is confused"
    refused("found", plots.confused_pairs, found.pairs)
    refused("top", plots.confused_pairs, found, top=0)


def test_label_noise_is_a_matrix_of_correlations():
    correlation = np.array([[1, -0.8, np.nan], [-0.8, 1, 0.1], [np.nan, 0.1, 1]])
    found = LabelNoisePairs((), correlation, correlation, 5)
    ax = plots.label_noise_pairs(found, names=["a", "b", "castle"], ax=Figure().subplots())
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), correlation)
    assert ax.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in ax.texts[:2]] == ["+1.00", "-0.80"]
    many = LabelNoisePairs((), np.eye(13), np.eye(13), 5)
    assert not plots.label_noise_pairs(many, ax=Figure().subplots()).texts
    refused("found", plots.label_noise_pairs, correlation[0])
    refused("names", plots.label_noise_pairs, found, names=["a"])
