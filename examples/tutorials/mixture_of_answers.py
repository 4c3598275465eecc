"""Several answers to one question
===============================

keras.io's "Approximating non-function mappings with mixture density networks", with a layer and a
loss of tfuq instead of its own: 44 lines of code instead of at least 160.

::

    python examples/tutorials/mixture_of_answers.py            # some minutes
    python examples/tutorials/mixture_of_answers.py --quick    # few epochs, few components

On a noisy spiral one x has several y. A network trained with the squared error predicts their mean,
where no point is; a mixture of normals predicts them all. This needs the extra `plots`.

In a full run (100 epochs, 20 components) the test NLL of the mixture is -0.27, and 1.39 that of a
normal around the other network's mean. Samples of the mixture lie on both turns, a few of 2,000
between them. The picture is like that of keras.io, which gives no figures of a test.
"""

import argparse
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np

import tfuq


def spiral(n, seed=0):
    """Points on two turns of a spiral, with noise, in [0, 5]^2."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 4 * np.pi, n)
    points = angle * np.stack([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.2, (2, n))
    points = 5 * (points - points.min()) / np.ptp(points)
    return points[0, :, None].astype("float32"), points[1, :, None].astype("float32")


def network(last, loss, x, y, epochs):
    hidden = [keras.layers.Dense(128, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((1,)), *hidden, last])
    model.compile(keras.optimizers.Adam(0.002), loss, jit_compile=False)
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few epochs")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("tutorial_output"))
    arguments = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    count, epochs, components = (2000, 5, 5) if arguments.quick else (10_000, 100, 20)
    (x, y), (x_test, y_test) = spiral(count), spiral(count // 5, seed=1)
    plain = network(keras.layers.Dense(1), "mse", x, y, epochs)
    head = tfuq.layers.MixtureDense(1, num_components=components)
    mixture = network(head, head.negative_log_likelihood(), x, y, epochs)

    found = tfuq.predictive.predict_uncertainty(mixture, x_test)
    mean = plain.predict(x_test, verbose=0)
    deviation = np.sqrt(np.mean((y_test - mean) ** 2))
    alone = 0.5 * np.log(2 * np.pi * deviation**2) + 0.5  # a normal around the plain mean
    nll = -found.log_prob(y_test).mean()
    print(f"NLL: a normal around the mean {alone:.3f}, the mixture {nll:.3f}")
    shown = {"data": y_test, "squared error": mean, "mixture": found.samples(1)[0]}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained", sharey=True)
    for ax, (name, values) in zip(axes, shown.items(), strict=True):
        ax.plot(x_test[:, 0], values[:, 0], ".", markersize=2)
        ax.set(title=name, xlabel="x", ylabel="y")
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output / "mixture_of_answers.png", dpi=110)


if __name__ == "__main__":
    main()
