"""Corruptions against SciPy, scikit-image, Pillow and closed forms.

Each statistical test fails a correct sampler once in a million seeds (p < 1e-6).
"""

import io
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import ndimage, stats
from skimage import color, morphology, transform
from skimage.util import random_noise
from test_corruptions import IMAGES, as_float

from tfuq import corruptions
from tfuq._images import arithmetic, pieces
from tfuq.corruptions import blur, digital
from tfuq.corruptions._grids import barycentric, smoothing
from tfuq.corruptions.blur import line

RNG = np.random.default_rng(0)
X = RNG.random((2, 17, 23, 3)).astype("float32")
FLAT = np.full((3, 64, 64, 3), 0.5, "float32")
RARE = 1e-6


def noise(seed=0, batch=4):
    seed = pieces.seed_pair(seed)
    return pieces.Noise(seed, tf.zeros((batch, 1, 1, 1)), shared=False)


# --- Noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("severity, stddev", enumerate((0.04, 0.06, 0.08, 0.09, 0.1), 1))
def test_gaussian_noise(severity, stddev):
    found = corruptions.gaussian_noise(FLAT, severity).numpy() - 0.5
    assert stats.kstest(found.ravel() / stddev, "norm").pvalue > RARE
    same = corruptions.gaussian_noise(FLAT, stddev=stddev)
    np.testing.assert_array_equal(found, same - 0.5)


def test_gaussian_and_speckle_noise_as_scikit_image():
    for name, mode, stddev in (
        ("gaussian_noise", "gaussian", 0.1),
        ("speckle_noise", "speckle", 0.2),
    ):
        found = corruptions.corrupt(FLAT, name, 5).numpy()
        expected = random_noise(FLAT, mode=mode, rng=1, var=stddev**2)
        assert stats.ks_2samp(found.ravel(), expected.ravel()).pvalue > RARE


@pytest.mark.parametrize("severity, stddev", enumerate((0.06, 0.1, 0.12, 0.16, 0.2), 1))
def test_speckle_noise(severity, stddev):
    found = corruptions.speckle_noise(FLAT, severity).numpy() / 0.5 - 1
    assert stats.kstest(found.ravel() / stddev, "norm").pvalue > RARE
    assert not np.any(corruptions.speckle_noise(0 * FLAT, severity))


@pytest.mark.parametrize("severity, photons", enumerate((500, 250, 100, 75, 50), 1))
def test_shot_noise(severity, photons):
    value = np.float32(0.1)
    flat = np.full((1, 100, 100, 1), value)
    counts = corruptions.shot_noise(flat, severity, severity_of="cifar10-c").numpy() * photons
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    law, size = stats.poisson(photons * value), counts.size
    edges = law.ppf(np.linspace(0.05, 0.95, 10))
    observed = np.bincount(np.searchsorted(edges, np.round(counts).ravel()), minlength=11)
    expected = size * np.diff([0, *law.cdf(edges), 1])
    filled = expected > 0
    assert not observed[~filled].any()
    assert stats.chisquare(observed[filled], expected[filled]).pvalue > RARE


def hits(images):
    return {value: np.count_nonzero(images == value) for value in (0.0, 1.0)}


@pytest.mark.parametrize("severity, amount", enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1))
def test_impulse_noise(severity, amount):
    found = corruptions.impulse_noise(FLAT, severity).numpy()
    counts = hits(found)
    assert sum(counts.values()) == np.count_nonzero(found != 0.5)
    for count in counts.values():
        assert stats.binomtest(count, FLAT.size, amount / 2).pvalue > RARE
    as_other = hits(random_noise(FLAT, mode="s&p", rng=1, amount=amount))
    table = [[counts[v], FLAT.size - counts[v]] for v in counts]
    table += [[as_other[v], FLAT.size - as_other[v]] for v in counts]
    assert stats.chi2_contingency([table[0], table[2]]).pvalue > RARE
    assert np.any(found.min(-1) != found.max(-1))  # each channel by itself


@pytest.mark.parametrize("amount", [0.01, 0.05, 0.15])
def test_specks_of_three_black_to_one_white(amount):
    options = {"amount": amount, "salt": 0.25, "whole_pixels": True}
    found = corruptions.impulse_noise(FLAT, **options).numpy()
    assert np.all(found.min(-1) == found.max(-1))
    counts, pixels = hits(found[..., 0]), FLAT[..., 0].size
    assert stats.binomtest(counts[1.0], pixels, amount / 4).pvalue > RARE
    assert stats.binomtest(counts[0.0], pixels, 3 * amount / 4).pvalue > RARE


def test_all_salt_and_no_noise():
    assert np.all(corruptions.impulse_noise(FLAT, amount=1.0, salt=1.0) == 1)
    assert np.all(corruptions.impulse_noise(FLAT, amount=0.0) == 0.5)


# --- Blur -------------------------------------------------------------------------------------


def scipy_filtered(images, kernel, mode):
    return ndimage.correlate(images, np.asarray(kernel)[None, :, :, None], mode=mode)


@pytest.mark.parametrize("sigma", [0.4, 0.6, 0.7, 0.8, 1.0, 7.0])
def test_gaussian_blur_as_scipy(sigma):
    found = corruptions.gaussian_blur(X, sigma=sigma)
    expected = ndimage.gaussian_filter(X, (0, sigma, sigma, 0), mode="nearest", truncate=4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if sigma <= 1:
        severity = 1 + [0.4, 0.6, 0.7, 0.8, 1.0].index(sigma)
        np.testing.assert_array_equal(found, corruptions.gaussian_blur(X, severity))


@pytest.mark.parametrize("size, sigma", [(3, 0.8), (5, 1.1), (7, 1.4)])
def test_isotropic_kernels(size, sigma):
    line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    found = corruptions.gaussian_blur(X, kernel_size=size)
    np.testing.assert_allclose(found, scipy_filtered(X, kernel, "nearest"), atol=1e-5)
    np.testing.assert_array_equal(
        found, corruptions.gaussian_blur(X, kernel_size=size, sigma=0.3 * (size // 2 - 1) + 0.8)
    )


NUMBERS = ((1, 0.3, 0.4), (2, 0.4, 0.5), (3, 0.5, 0.6), (4, 1, 0.2), (5, 1.5, 0.1), (None, 6, 0.5))


@pytest.mark.parametrize("severity, radius, sigma", NUMBERS)
def test_defocus_blur(severity, radius, sigma):
    options = {} if severity else {"radius": radius}
    found = corruptions.defocus_blur(X, severity, **options)
    squares = np.arange(-8, 9) ** 2
    disk = 1.0 * (squares[:, None] + squares <= radius**2)
    if radius == 6:
        np.testing.assert_array_equal(disk[2:-2, 2:-2], morphology.disk(6))
    smooth = ndimage.gaussian_filter(disk / disk.sum(), sigma, radius=1, mode="constant")
    np.testing.assert_allclose(found, scipy_filtered(X, smooth, "mirror"), atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_anisotropic_kernels(size):
    """45 degrees is the diagonal of the kernel, as the paper sets it."""
    for angle, kernel in ((None, np.eye(size)), (135, np.eye(size)[::-1]), (225, np.eye(size))):
        found = corruptions.motion_blur(X, kernel_size=size, angle=angle)
        expected = scipy_filtered(X, kernel / size, "nearest")
        np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = corruptions.motion_blur(X, kernel_size=size, angle=0.0)
    np.testing.assert_allclose(
        rows, ndimage.uniform_filter1d(X, size, 2, mode="nearest"), atol=1e-5
    )


def test_lines_of_any_angle_have_no_gaps():
    for angle in np.linspace(0, 2 * math.pi, 40):
        steps = np.round(line(np.arange(-3, 4), angle)[0])
        assert len({tuple(step) for step in steps}) == 7
        assert np.abs(np.diff(steps, axis=0)).max() == 1
        slope = np.arctan2(*steps[-1] - steps[0])
        assert abs(np.angle(np.exp(1j * (slope - angle)))) < 0.2


NUMBERS = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))


@pytest.mark.parametrize("severity, radius, sigma", [(i + 1, *n) for i, n in enumerate(NUMBERS)])
def test_motion_trails_off(severity, radius, sigma):
    spot = np.zeros((2, 41, 41, 1), "float32")
    spot[:, 20, 20] = 1
    trail = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    found = corruptions.motion_blur(spot, severity, angle=0).numpy()[0, :, :, 0]
    expected = np.zeros((41, 41))
    expected[20, 20 - 2 * radius : 21] = (trail / trail.sum())[::-1]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    down = corruptions.motion_blur(spot, severity, angle=90).numpy()[0, :, :, 0]
    np.testing.assert_allclose(down, expected.T, atol=1e-6)


def test_motion_has_a_direction_for_each_image():
    """Uniform in +-45 degrees: of 400 images both halves come, and none leaves the wedge."""
    spot = np.zeros((400, 21, 21, 1), "float32")
    spot[:, 10, 10] = 1
    found = corruptions.motion_blur(spot, 5).numpy()[..., 0]
    rows, columns = np.mgrid[-10:11, -10:11]
    mean = np.einsum("bhw,chw->bc", found, [rows, columns]) / found.sum((1, 2))[:, None]
    angles = np.arctan2(-mean[:, 0], -mean[:, 1])
    assert np.abs(angles).max() < math.radians(50)  # steps are rounded to pixels
    assert stats.kstest(angles, stats.uniform(-math.pi / 4, math.pi / 2).cdf).pvalue > RARE


def scipy_magnified(images, factor):
    middle = (np.array(images.shape[1:3]) - 1) / 2
    offset = (0, *(middle - middle / factor), 0)
    matrix = (1, 1 / factor, 1 / factor, 1)
    return ndimage.affine_transform(images, matrix, offset, order=1, mode="nearest")


# The factors as CIFAR-10-C has them, with NumPy's rounding of their end.
ENDS = enumerate((1.06, 1.11, 1.16, 1.21, 1.26), 1)


@pytest.mark.parametrize("severity, end", ENDS)
def test_zoom_blur(severity, end):
    factors = np.arange(1, end, 0.01)
    expected = (X + sum(scipy_magnified(X, f) for f in factors)) / (len(factors) + 1)
    np.testing.assert_allclose(corruptions.zoom_blur(X, severity), expected, atol=1e-5)
    found = corruptions.zoom_blur(X, max_factor=float(factors[-1]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def looped(shifts, longest):
    """As the published code has it: the last pixel first, each takes what is there by then."""
    height, width = shifts.shape[:2]
    source = np.arange(height * width).reshape(height, width)
    for row in range(height - longest, longest, -1):
        for column in range(width - longest, longest, -1):
            down, right = shifts[row, column]
            source[row, column] = source[row + down, column + right]
    return source.ravel()


@pytest.mark.parametrize("longest", [1, 2, 4])
@pytest.mark.parametrize("shape", [(17, 23), (5, 40), (3, 3)])
def test_pixels_behind_glass_come_from_where_a_loop_takes_them(longest, shape):
    numbers = RNG.random((2, *shape, 2)).astype("float32")
    shifts = np.floor(2 * longest * numbers).astype(int) - longest
    found = blur.sources(tf.constant(numbers), longest)
    np.testing.assert_array_equal(found, [looped(each, longest) for each in shifts])


def test_glass_blur_keeps_colours_and_borders():
    found = corruptions.glass_blur(X, 1).numpy()  # too sharp a filter to change any
    colours = {tuple(pixel) for pixel in X.reshape(-1, 3)}
    assert {tuple(pixel) for pixel in found.reshape(-1, 3)} <= colours
    np.testing.assert_array_equal(found[:, :2], X[:, :2])
    assert np.mean(found != X) > 0.4
    flat = corruptions.glass_blur(FLAT, 5, severity_of="imagenet-c")
    np.testing.assert_allclose(flat, FLAT, atol=1e-6)


# --- Exposure and colour ----------------------------------------------------------------------

# White, black, greys and pure colours among others.
COLOURS = np.concatenate(
    [X[0].reshape(-1, 3), np.eye(3), 1 - np.eye(3), np.linspace(0, 1, 5)[:, None].repeat(3, 1)]
)[None, None].astype("float32")


@pytest.mark.parametrize("amount", [0.05, 0.1, 0.15, 0.2, 0.3, -0.4])
def test_brightness_as_scikit_image(amount):
    hsv = color.rgb2hsv(COLOURS)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    found = corruptions.brightness(COLOURS, amount=amount)
    np.testing.assert_allclose(found, color.hsv2rgb(hsv), atol=1e-5)
    if amount > 0:
        severity = 1 + [0.05, 0.1, 0.15, 0.2, 0.3].index(amount)
        np.testing.assert_array_equal(found, corruptions.brightness(COLOURS, severity))


PAIRS = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))


@pytest.mark.parametrize("severity, factor, added", [(i + 1, *p) for i, p in enumerate(PAIRS)])
def test_saturate_as_scikit_image(severity, factor, added):
    hsv = color.rgb2hsv(COLOURS)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
    found = corruptions.saturate(COLOURS, severity)
    np.testing.assert_allclose(found, color.hsv2rgb(hsv), atol=1e-5)


def test_decolor_ends_in_the_grey_of_pillow():
    found = corruptions.decolor(IMAGES, 5).numpy()
    for image, grey in zip(IMAGES, found, strict=True):
        assert np.ptp(grey, axis=-1).max() == 0
        expected = np.asarray(Image.fromarray(image).convert("L"))
        np.testing.assert_allclose(grey[..., 0].astype(int), expected, atol=1)
    part = corruptions.decolor(X, 2).numpy()
    whole = corruptions.decolor(X, amount=1.0).numpy()
    np.testing.assert_allclose(part, 0.6 * X + 0.4 * whole, atol=1e-6)


@pytest.mark.parametrize("severity, factor", enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1))
def test_contrast(severity, factor):
    found = corruptions.contrast(X, severity).numpy()
    for moment, scale in ((np.mean, 1), (np.std, factor)):
        np.testing.assert_allclose(moment(found, (1, 2)), scale * moment(X, (1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(found, corruptions.contrast(X, factor=factor))


# --- Geometry and compression -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (29, 21)])
@pytest.mark.parametrize("severity, scale", enumerate((0.95, 0.9, 0.85, 0.75, 0.65), 1))
def test_pixelate_as_pillow(severity, scale, shape):
    images = IMAGES[:, : shape[0], : shape[1]]
    found = corruptions.pixelate(images, severity).numpy()
    small = (int(shape[1] * scale), int(shape[0] * scale))
    for image, blocks in zip(images, found, strict=True):
        whole = Image.fromarray(image)
        expected = whole.resize(small, Image.BOX).resize(shape[::-1], Image.BOX)
        # Pillow rounds between rows and columns, too.
        np.testing.assert_allclose(blocks.astype(int), np.asarray(expected), atol=1)


def through_pillow(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


@pytest.mark.parametrize("severity, quality", enumerate((80, 65, 58, 50, 40), 1))
def test_jpeg_as_pillow(severity, quality):
    for images in (IMAGES, IMAGES[..., :1]):
        found = corruptions.jpeg_compression(images, severity).numpy()
        expected = np.stack([through_pillow(image, quality) for image in images])
        # Two libraries round the same coefficients.
        assert np.abs(found.astype(int) - expected).mean() < 0.1
    floats = corruptions.jpeg_compression(as_float(images), quality=quality)
    np.testing.assert_allclose(floats, found / 255, atol=1e-6)


@pytest.mark.parametrize(
    "border, mode", [("edge", "nearest"), ("reflect", "mirror"), ("symmetric", "reflect")]
)
def test_warps_as_scipy(border, mode):
    rows, columns = RNG.uniform(-60, 80, (2, 2, 17, 23)).astype("float32")
    found = arithmetic.warped(X, rows, columns, border)
    for image, row, column, warped in zip(X, rows, columns, found, strict=True):
        for channel in range(3):
            expected = ndimage.map_coordinates(
                image[..., channel], (row, column), order=1, mode=mode
            )
            np.testing.assert_allclose(warped[..., channel], expected, atol=1e-4)
    for_all = arithmetic.warped(X, rows[:1], columns[:1], border)
    np.testing.assert_array_equal(for_all[0], found[0])


def test_three_points_move_as_scikit_image_moves_them():
    height, width = 32, 40
    points = np.array([16, 20]) + 10 * np.array([[1, 1], [-1, 1], [-1, -1]])
    moves = RNG.uniform(-2, 2, (3, 2))
    affine = transform.AffineTransform.from_estimate(points, points + moves)
    pixels = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)
    found = (barycentric(height, width) @ moves).reshape(-1, 2)
    np.testing.assert_allclose(pixels + found, affine(pixels), atol=1e-4)


def test_fields_are_smoothed_as_scipy_does():
    field = RNG.normal(size=(17, 23))
    found = smoothing(17, 1.7) @ field @ smoothing(23, 1.7).T
    expected = ndimage.gaussian_filter(field, 1.7, mode="reflect", truncate=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_elastic_transform_moves_pixels_no_further_than_it_may():
    """A ramp shows where each pixel came from: within r of it, as the affine map is at s / 3."""
    ramp = np.linspace(0, 1, 96, dtype="float32")[None, :, None, None] * np.ones((8, 1, 96, 1))
    found = corruptions.elastic_transform(ramp, 1, severity_of="cifar10-c").numpy()
    moved = 95 * (found - ramp)[:, 16:80, 16:80]
    assert 1 < np.abs(moved).max() < 3 * 0.08 * 96
    # Where three points at a third of the side lie, moves are those of the points: up to r.
    assert np.abs(moved[:, 64 - 16, 64 - 16]).max() < 0.08 * 96 + 1


# --- Textures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [3.0, 1.75])
def test_plasma_roughness_falls_by_the_square_of_the_decay(decay):
    """Middles of squares lie off their corners' mean by uniform numbers, decay^2 times smaller in
    each step. The ratio of two such deviations, of 4 x 1,024 and 4 x 4,096 numbers, has a relative
    standard deviation of 0.8 %; 5 of these are exceeded once in 1e6 seeds.
    """
    field = arithmetic.plasma(noise(), 128, 128, decay).numpy()[..., 0]
    np.testing.assert_allclose((field.min((1, 2)), field.max((1, 2))), [[0] * 4, [1] * 4])

    def deviations(step):
        corners = field[:, ::step, ::step]
        corners = sum(np.roll(corners, (-i, -j), (1, 2)) for i in (0, 1) for j in (0, 1)) / 4
        off = field[:, step // 2 :: step, step // 2 :: step] - corners
        return off.std(axis=(1, 2))

    ratio = deviations(4) / deviations(2)
    np.testing.assert_allclose(ratio.mean() / decay**2, 1, atol=0.05)


def test_fog_is_its_formula():
    found = corruptions.fog(np.ones((3, 20, 30, 3)), 5).numpy()
    clouds = 2.5 * found - 1  # (1 + 1.5 clouds) / 2.5
    assert np.ptp(clouds, axis=-1).max() < 1e-6
    plasma = arithmetic.plasma(noise(0, 3), 20, 30, 1.75)
    np.testing.assert_allclose(clouds[..., :1] / 1.5, plasma, atol=1e-5)
    half = corruptions.fog(0.5 * np.ones((3, 20, 30, 3)), 5).numpy()
    np.testing.assert_allclose(half, (0.5 + clouds) * 0.5 / 2, atol=1e-5)


def test_snow_is_its_formula():
    black = corruptions.snow(np.zeros((4, 32, 32, 3)), 1).numpy()
    flakes = black - 0.05 * 0.5
    assert flakes.min() > -1e-6 and flakes.max() > 0.05
    np.testing.assert_allclose(black, black[:, ::-1, ::-1], atol=1e-6)
    grey = corruptions.snow(np.full((4, 32, 32, 3), 0.2), 1).numpy()
    np.testing.assert_allclose(grey, 0.95 * 0.2 + 0.05 * 0.8 + flakes, atol=1e-5)


PAIRS = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))


@pytest.mark.parametrize("severity, scene, weight", [(i + 1, *p) for i, p in enumerate(PAIRS)])
def test_frost_is_its_formula(severity, scene, weight):
    ice = corruptions.frost(np.zeros((4, 32, 32, 3)), severity).numpy() / weight
    assert ice.min() > 0 and ice.max() < 1 + 1e-5 and ice.std() > 0.02
    grey = corruptions.frost(np.full((4, 32, 32, 3), 0.2), severity).numpy()
    np.testing.assert_allclose(grey, scene * 0.2 + weight * ice, atol=1e-5)


@pytest.mark.parametrize("most", [3, 20])
def test_distances_as_scipy(most):
    marked = RNG.random((3, 30, 41, 1)) < 0.003
    marked[0, 10:12, 5:9] = True
    found = arithmetic.distances(tf.constant(marked), most).numpy()
    for image, expected in zip(found[..., 0], marked[..., 0], strict=True):
        if expected.any():
            expected = ndimage.distance_transform_edt(~expected)
            np.testing.assert_allclose(
                np.minimum(image, most + 1), np.minimum(expected, most + 1), atol=1e-5
            )


def test_levels_are_equalized_as_opencv_does():
    levels = RNG.integers(3, 9, size=(2, 11, 13, 1))
    found = arithmetic.equalized(tf.constant(levels, "float32"), 21).numpy()
    for image, equal in zip(levels, found, strict=True):
        running = np.cumsum(np.bincount(image.ravel(), minlength=21))
        least = running[image.min()]
        expected = np.rint((running - least) / (image.size - least) * 255)
        np.testing.assert_array_equal(equal, expected[image])


def test_spatter_is_water_or_mud():
    black, white = np.zeros((4, 40, 48, 3)), np.ones((4, 40, 48, 3))
    pale, brown = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
    for severity, strong in ((1, 0.5), (2, 0.5), (3, 0.5)):
        water = corruptions.spatter(black, severity).numpy()
        np.testing.assert_allclose(water / pale, water[..., :1] / pale[:1] + 0 * water, atol=1e-5)
        np.testing.assert_allclose(water.max((1, 2))[:, 1], strong * pale[1], atol=1e-5)
        assert 0.02 < np.mean(water[..., 0] > 0) < 0.8
        np.testing.assert_array_equal(corruptions.spatter(white, severity), white)
    for severity in (4, 5):
        mud = (1 - corruptions.spatter(white, severity).numpy()) / (1 - brown)
        np.testing.assert_allclose(mud, mud[..., :1] + 0 * mud, atol=1e-5)
        covered = mud > 1e-5
        assert 0.005 < covered.mean() < 0.8 and mud[covered].min() > 0.8 - 1e-5
        on_black = corruptions.spatter(black, severity).numpy()
        np.testing.assert_allclose(on_black, mud * brown, atol=1e-5)


# --- Severities of ImageNet-C ------------------------------------------------------------------

OF_IMAGENET = {
    "gaussian_noise": ("stddev", (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": ("photons", (60, 25, 12, 5, 3)),
    "impulse_noise": ("amount", (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": ("stddev", (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": ("sigma", (1, 2, 3, 4, 6)),
    "brightness": ("amount", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ("factor", (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg_compression": ("quality", (25, 18, 15, 10, 7)),
    "pixelate": ("scale", (0.6, 0.5, 0.4, 0.3, 0.25)),
}


@pytest.mark.parametrize("name", OF_IMAGENET)
def test_severities_of_imagenet_c(name):
    option, values = OF_IMAGENET[name]
    for severity, value in enumerate(values, 1):
        found = corruptions.corrupt(X, name, severity, severity_of="imagenet-c")
        np.testing.assert_array_equal(found, corruptions.corrupt(X, name, **{option: value}))


def test_severities_of_imagenet_c_in_several_numbers():
    assert blur.DEFOCUS.imagenet == ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    assert blur.TRAILS.imagenet == ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    assert blur.GLASS.imagenet[4] == (1.5, 4, 2)
    assert digital.SATURATION.imagenet[2:] == ((2, 0), (5, 0.1), (20, 0.2))
    of_224 = 224 * np.array(digital.ELASTIC.imagenet)
    np.testing.assert_allclose(of_224[[0, 4]], 244 * np.array([[2, 0.7, 0.1], [0.12, 0.01, 0.02]]))
    ends = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    for (largest, step), (end, by) in zip(blur.ZOOMS.imagenet, ends, strict=True):
        factors = np.arange(1, end, by)
        np.testing.assert_allclose([largest, step], [factors[-1], by])
    factors = np.arange(1, *ends[4])
    expected = (X + sum(scipy_magnified(X, f) for f in factors)) / (len(factors) + 1)
    found = corruptions.zoom_blur(X, 5, severity_of="imagenet-c")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    white = np.ones((1, 20, 30, 3), "float32")
    clouds = 4 * corruptions.fog(white, 5, severity_of="imagenet-c").numpy() - 1
    np.testing.assert_allclose(clouds.max(), 3, atol=1e-5)


@pytest.mark.parametrize("side, stddev", [(32, 0.1), (84, 0.1), (85, 0.38), (224, 0.38)])
def test_size_decides_whose_severities(side, stddev):
    images = np.full((1, side, side + 20, 1), 0.5, "float32")
    expected = corruptions.gaussian_noise(images, stddev=stddev)
    np.testing.assert_array_equal(corruptions.gaussian_noise(images, 5), expected)
    np.testing.assert_array_equal(corruptions.gaussian_noise(images[0], 5), expected[0])
    own = corruptions.gaussian_noise(images, 5, severity_of="cifar10-c")
    np.testing.assert_array_equal(own, corruptions.gaussian_noise(images, stddev=0.1))


def test_wide_disks_are_smoothed_over_five_pixels():
    spot = np.zeros((1, 41, 41, 1), "float32")
    spot[:, 20, 20] = 1
    squares = np.arange(-20, 21) ** 2
    disk = 1.0 * (squares[:, None] + squares <= 100)
    smooth = ndimage.gaussian_filter(disk / disk.sum(), 0.5, radius=2, mode="constant")
    found = corruptions.defocus_blur(spot, 5, severity_of="imagenet-c")[0, :, :, 0]
    np.testing.assert_allclose(found, smooth, atol=1e-6)


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.45, 1.0])
def test_dirt_covers_what_it_should(amount):
    found = corruptions.dirty_lens(np.ones((4, 40, 50, 3)), amount=amount).numpy()
    covered = (found.max(-1) < 1).mean(axis=(1, 2))
    np.testing.assert_allclose(covered, amount, atol=1.5 / 2000)
    if amount:
        mask = (1 - found) / (0.75 * (1 - np.array([0.34, 0.29, 0.22])))
        np.testing.assert_allclose(mask[..., 0], mask[..., 2], atol=1e-5)
        assert mask.max() > 0.99 and mask.max() < 1 + 1e-5
