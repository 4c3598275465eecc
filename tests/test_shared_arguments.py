"""What several functions share is written out on the site: docs/_extensions/shared_arguments.py."""

import importlib.util
import inspect
import pathlib

FILE = pathlib.Path(__file__).parents[1] / "docs" / "_extensions" / "shared_arguments.py"
SPEC = importlib.util.spec_from_file_location("shared_arguments", FILE)
shared = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shared)


class Fitted:
    """Is fitted.

    Args:
        level: A number in (0, 1).
    """

    def fit(self, x, weight=None, level=0.9):
        """Fits.

        Args:
            x: Rows, `(n, d)`,
                of floats.
            weight: Weights, `(n,)`.
            level: As in the constructor. Known beforehand.
        """

    def evaluate(self, x, weight=None, level=None):
        """Evaluates.

        Args:
            x, weight: As in `fit`.
            level: As in `fit`; by default none.
            other: As in `keras.layers.Dense`.

        Returns:
            A float.
        """


def written(function):
    return shared.written_out(inspect.getdoc(function) + "\n", Fitted)


def test_references_are_replaced_through_other_references():
    text = written(Fitted.evaluate)
    assert "    x: Rows, `(n, d)`, of floats.\n    weight: Weights, `(n,)`.\n" in text
    assert "level: A number in (0, 1). Known beforehand. By default none.\n" in text
    assert text.endswith("\nReturns:\n    A float.\n")


def test_what_is_of_keras_or_no_reference_stays():
    assert "    other: As in `keras.layers.Dense`.\n" in written(Fitted.evaluate)
    plain = inspect.getdoc(Fitted) + "\n"
    assert shared.written_out(plain, Fitted) == plain


def test_public_functions_keep_the_names_of_their_arguments():
    """Of each function that refers to another, and the reference is gone."""
    changed = 0
    for name in ("export.export_onnx", "selective.difference_of_confidences"):
        doc = inspect.getdoc(shared.public()[name]) + "\n"
        text = shared.written_out(doc)
        before, after = (
            [each for names, _ in shared.entries(shared.SECTION.search(part)[1]) for each in names]
            for part in (doc, text)
        )
        assert before == after and len(text) > len(doc)
        assert "As in `export`.\n" not in text
        changed += 1
    assert changed == 2
