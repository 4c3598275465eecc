"""Arguments for functions that are fuzzed: as they should be, spoiled in one place, or nonsense."""

import dataclasses
import inspect

import numpy as np
from hypothesis import strategies as st

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 0.5, 1e-45, 5e-324, 1e38, -1e38, 1e308, 65504.0)
DTYPES = ("float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool", "complex64")
DTYPES += ("object", "U3", "S2", "M8[s]")
OPAQUE = object()
RAGGED = [[1.0], [2.0, 3.0]]
JUNK = (None, "x", "", b"\xff", {}, [], (), RAGGED, [None], {"a": 1}, {1, 2}, 1j, "0.5", OPAQUE)
JUNK += (-1, 0, 1, 2, 3, 0.5, 1.5, True, np.nan, np.inf, -np.inf, 1e308, -0.0, 2**70, np.float16(1))
JUNK += (np.array(0.5), np.array([0.5, 0.5]), [np.nan])

# What options may be, by name; of others, what their default is.
VALID = {
    "aggregate": ("image", "dataset"),
    "average": ("macro", "micro", "before", "after", None),
    "binary_terms": ("both", "positive"),
    "by": ("covariance", "correlation", None, "class"),
    "class_reduction": ("sum", "mean"),
    "from_logits": (False, True),
    "k_reg": (None, 0, 1),
    "multi_label": (False, True),
    "n_bins": (1, 2, 15),
    "normalize": ("true", "pred", "all", None),
    "positive": ("in", "out"),
    "score": ("confidence", "margin", "entropy", "mutual_information"),
    "seed": (0, 1),
    "severity": (1, 3, 5),
    "threshold": (0.0, 0.5, 1.0),
    "weights": ("quadratic", "linear", None),
}


@dataclasses.dataclass
class World:
    """Sizes that the arguments of one call have in common, and where their numbers come from."""

    n: int
    classes: int
    samples: int
    side: int
    form: str  # of predictions: "sparse", "one_hot", "binary", "column", "pixels"
    dtype: str
    rng: np.random.Generator

    @property
    def lead(self):
        return (self.n, 2, 2) if self.form == "pixels" else (self.n,)

    def rows(self, *lead):
        """Probabilities `(*lead, classes)`, some of them certain."""
        scale = self.rng.choice([0.0, 1.0, 40.0])
        z = scale * self.rng.normal(size=(*lead, max(self.classes, 2)))
        found = np.exp(z - z.max(-1, keepdims=True))
        return (found / found.sum(-1, keepdims=True)).astype(self.dtype)

    def of_form(self, rows):
        if self.form == "binary":
            return rows[..., 0]
        return rows[..., :1] if self.form == "column" else rows

    def probs(self):
        return self.of_form(self.rows(*self.lead))

    def stack(self):
        return self.of_form(self.rows(self.samples, *self.lead))

    def labels(self):
        classes = 2 if self.form in ("binary", "column") else max(self.classes, 2)
        found = self.rng.integers(classes, size=self.lead)
        return np.eye(classes, dtype=self.dtype)[found] if self.form == "one_hot" else found

    def flat_labels(self):
        return self.rng.integers(max(self.classes, 2), size=self.n)

    def both_labels(self):
        return np.arange(self.n) % 2

    def prior(self):
        return self.rows().astype("float64")

    def matrix(self):
        return self.rng.random((max(self.classes, 2),) * 2).round(1)

    def weights(self):
        return self.rng.choice([0.25, 1.0, 2.0], size=self.n).astype(self.dtype)

    def scores(self):
        return self.rng.normal(size=self.n).round(1).astype(self.dtype)

    def uncertainty(self):
        return self.rng.random(self.n).astype(self.dtype)

    def errors(self):
        return self.rng.integers(2, size=self.n).astype(bool)

    def groups(self):
        return self.rng.choice(["a", "b"], size=self.n)

    def logits(self):
        return self.rng.normal(size=(self.n, max(self.classes, 2))).astype(self.dtype)

    def many_labels(self):
        return np.arange(12 * self.n) % max(self.classes, 2)

    def features(self):
        return self.rng.normal(size=(12 * self.n, 3)).astype(self.dtype)

    def new_features(self):
        return self.rng.normal(size=(self.n, 3)).astype(self.dtype)

    def norms(self):
        return np.square(self.features())

    def new_norms(self):
        return np.square(self.new_features())

    def images(self):
        channels = self.rng.choice([1, 3])
        return self.rng.random((self.n, self.side, self.side, channels)).astype(self.dtype)

    def color_images(self):
        return self.rng.random((self.n, self.side, self.side, 3)).astype(self.dtype)

    def grey_images(self):
        return self.rng.random((self.n, 8, 8, 1)).astype(self.dtype)

    def inputs(self):
        return self.rng.normal(size=(self.n, 4)).astype(self.dtype)

    def maps(self):
        return self.rng.random((self.n, self.side, self.side)).astype(self.dtype)

    def mask(self):
        return self.rng.integers(2, size=(self.n, self.side, self.side))

    def mask_probs(self):
        found = self.rng.random((self.n, self.side, self.side, 1))
        return np.concatenate([found, 1 - found], -1).astype(self.dtype)

    def rates(self):
        return np.geomspace(1e-4, 1, self.n + 1)

    def rows_of_probs(self):
        return self.rows(self.n)

    def rows_again(self):
        return self.rows(self.n)

    def sequences(self):
        return self.rng.normal(size=(self.n, 5, 2)).astype(self.dtype)

    def volumes(self):
        return self.rng.normal(size=(self.n, 3, 3, 3, 1)).astype(self.dtype)

    def flash_pair(self):
        return [self.color_images(), self.color_images()]

    def named_scores(self):
        return {"in": self.scores(), "out": self.scores()}

    def named_features(self):
        return {"in": self.norms(), "out": self.norms()}

    def expert(self):
        return self.rng.integers(max(self.classes, 2), size=self.n)


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a public function is called.

    `nan` says what becomes of a NaN in one of the arrays: "raises"; "unknown", the answer holds NaN
    or inf; "rejected", all that the answer says of the example is that it is refused, which
    `refuses(result)` checks; "free", which only what makes no decision may be.
    """

    function: object
    data: dict  # name of an argument -> name of a method of `World`
    optional: dict = dataclasses.field(default_factory=dict)
    fixed: dict = dataclasses.field(default_factory=dict)
    skipped: tuple = ()  # arguments that are left alone
    undefined: tuple = ()  # fields of the answer that may be NaN or infinite; "*" for all
    nan: str = "raises"
    cost: int = 1  # by which the number of examples is divided
    forms: tuple = ("sparse", "one_hot", "binary", "column", "pixels")
    host: bool = False  # whether what is no array of numbers goes to Keras, which may raise its own

    def options(self):
        """Names of arguments beside the data, and their defaults."""
        taken = {
            *self.data,
            *self.optional,
            *self.skipped,
            "ax",
            "figure",
            "verbose",
            "name",
            "dtype",
        }
        parameters = inspect.signature(self.function).parameters.values()
        named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return {p.name: p.default for p in named if p.name not in taken}


@dataclasses.dataclass
class Call:
    """Arguments of one call, and whether a NaN stands where the function has to look."""

    arguments: dict
    has_nan: bool
    is_foreign: bool  # whether one is empty, or no array of numbers
    how: str


@st.composite
def calls(draw, entry):
    """A `Call` of what `entry` describes."""
    seed = draw(st.integers(0, 2**32 - 1))
    world = World(
        n=draw(st.integers(1, 6)),
        classes=draw(st.integers(1, 4)),
        samples=draw(st.integers(1, 3)),
        side=draw(st.sampled_from((1, 2, 5, 8))),
        form=draw(st.sampled_from(entry.forms)),
        dtype=draw(st.sampled_from(("float32", "float64", "float16"))),
        rng=np.random.default_rng(seed),
    )
    given = {name: getattr(world, kind)() for name, kind in entry.data.items()}
    for name, kind in entry.optional.items():
        if draw(st.integers(0, 3)) == 0:
            given[name] = getattr(world, kind)()
    given |= entry.fixed
    ways = ("good", "poison", "poison", "array", "junk", "empty", "option", "option")
    how = draw(st.sampled_from(ways))
    has_nan = is_foreign = False
    arrays = sorted(name for name in given if name not in entry.fixed)
    if how == "option":
        given |= draw(_options(entry))
    elif how != "good" and arrays:
        name = draw(st.sampled_from(arrays))
        given[name], value = draw(_spoiled(given[name], how))
        is_foreign = how != "poison" and not _is_numbers(given[name])
        counts = isinstance(value, float) and np.isnan(value) and "sample_weight" not in given
        has_nan = bool(how == "poison" and counts and np.asarray(given[name]).dtype.kind == "f")
    return Call(given, has_nan, is_foreign, how)


def _is_numbers(value):
    return isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size > 0


@st.composite
def _options(draw, entry):
    options = entry.options()
    if not options:
        return {}
    found = {}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(options)))
        default = options[name]
        known = () if default is inspect.Parameter.empty else (default,)
        pool = (*VALID.get(name, ()), *known, *JUNK)
        found[name] = draw(st.sampled_from(pool))
    return found


@st.composite
def _spoiled(draw, array, how):
    """The array with one wrong value, or something else in its place; and that value."""
    if how == "junk":
        return draw(st.sampled_from(JUNK)), None
    if how == "empty":
        axis = draw(st.integers(0, np.ndim(array) - 1)) if np.ndim(array) else 0
        return np.take(np.atleast_1d(array), [], axis=axis), None
    if how == "array":
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        dtype = draw(st.sampled_from(DTYPES))
        values = draw(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=4))
        return of_dtype(np.resize(values, shape), dtype), None
    array = np.array(array)
    if array.dtype.kind not in "biuf" or not array.size:
        return array, None
    value = draw(st.sampled_from(SPECIAL))
    with np.errstate(all="ignore"):
        array = array.astype(array.dtype if array.dtype.kind == "f" else "float64")
        array[tuple(draw(st.integers(0, size - 1)) for size in array.shape)] = value
    return array, value


def of_dtype(values, dtype):
    """Values as another type, whatever becomes of them."""
    with np.errstate(all="ignore"):
        if dtype[0] in "iuM":
            return (
                np.nan_to_num(values, nan=0, posinf=1, neginf=-1)
                .clip(-9, 99)
                .astype(dtype if dtype[0] != "M" else "int64")
                .astype(dtype)
            )
        return values.astype(dtype)


def floats_in(found, path=""):
    """`(name of the field, array)` of all floating point numbers in an answer."""
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        found = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    elif hasattr(found, "_asdict"):
        found = found._asdict()
    if isinstance(found, dict):
        for name, value in found.items():
            yield from floats_in(value, str(name))
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from floats_in(value, path)
    elif isinstance(found, (float, np.ndarray, np.generic)) or hasattr(found, "numpy"):
        array = np.asarray(found)
        if array.dtype.kind == "f" or str(array.dtype) == "bfloat16":
            yield path, array.astype("float64")
