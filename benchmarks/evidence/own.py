"""Sets of images of other people: files in the documented form, as the parts of a task.

A file of the folder is a set, an `.npz` with

- `images`: uint8, (rows, height, width[, 1 or 3]); floats where `--top` says what
  white is, 1 or 255;
- `labels`: integers, strings or booleans, one for each image; their sorted values are the classes;
- `groups`, if there are: patients or hospitals, integers or strings. No group is in two parts;
  where they are too few for that, the smallest is the part that is shifted;
- `near` and `far`, if there are: images of none of the classes;
- `shift` and `shift_labels`, if there are: the same classes in other images.

Without `far` the other sets of the folder are far; without `shift` and few groups it is corrupted
test images. An image that is there twice counts once, and not in `near`, `far` or `shift`. What
is left out, shrunk or renumbered is printed.
"""

import pathlib
import zipfile

import numpy as np
from PIL import Image

from evidence.images import FAR, SHARES, Part, corrupted, in_colour, split_groups

LEAST = 10  # rows of a part: below, an interval says nothing
FEW = 4  # images of a class that cannot be in all parts
TRIED = 100  # ways to divide groups
MOST = 0.8  # of one class, which accuracy does not tell from a method that knows nothing
FORM = "`images` (uint8; rows, height, width[, 1 or 3]) and `labels` (one for each image)"


def say(name, text):
    print(f"{name}: {text}", flush=True)


# --- What a file holds --------------------------------------------------------------------------


def read(path):
    """The arrays of a file, or in words why they cannot be read."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path.name} must be an .npz file of np.savez. Received: another file")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: of_file(file, key, path.name) for key in file.files}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise ValueError(
            f"{path.name} must be an .npz file of np.savez. Received: {error}"
        ) from error


def of_file(file, key, name):
    try:
        return file[key]
    except ValueError as error:
        raise ValueError(
            f"`{key}` of {name} must be a plain array, and is one of Python objects: "
            f"np.array(values.tolist()) makes strings or numbers of them, images need one size"
        ) from error


def pictures(arrays, key, name, top=None):
    """Images of a file in three channels, uint8, or what is wrong with them."""
    x = np.asarray(arrays[key])
    is_grey = x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 1)
    if not (is_grey or (x.ndim == 4 and x.shape[-1] == 3)) or not x.size:
        raise ValueError(
            f"`{key}` of {name} must be (rows, height, width) or (rows, height, width, 1 or 3 "
            f"channels). Received: {x.dtype} {x.shape}"
        )
    if x.dtype.kind == "f":
        x = of_floats(x, key, name, top)
    if x.dtype != np.uint8:
        raise ValueError(
            f"`{key}` of {name} must be uint8, 0 to 255: images.astype('uint8') makes them so, "
            f"where they are. Received: {x.dtype}, {x.min()} to {x.max()}"
        )
    if (x.min(), x.max()) == (0, 1):  # of floats, which `astype` has cut off, or of masks
        raise ValueError(
            f"`{key}` of {name} must be uint8, 0 to 255, and are black if white is 255: "
            f"np.uint8(255 * images) of what is between 0 and 1. Received: {x.min()} to {x.max()}"
        )
    return in_colour(x)


def of_floats(x, key, name, top):
    """Floats as uint8, by what is said to be white."""
    low, high = float(x.min()), float(x.max())
    if top is None:
        raise ValueError(
            f"`{key}` of {name} are floats ({low:.3g} to {high:.3g}): say by `--top 1` or "
            f"`--top 255` what white is, or store uint8, 0 to 255. Received: {x.dtype}"
        )
    if not (low >= 0 and high <= top):  # false for NaN, too
        raise ValueError(
            f"`{key}` of {name} must be between 0 and {top}, as `--top` says. Received: {low:.3g} "
            f"to {high:.3g}"
        )
    if top == 255 and high <= 1:
        raise ValueError(
            f"`{key}` of {name} are black if white is 255, as `--top` says. Received: {low:.3g} "
            f"to {high:.3g}"
        )
    return np.round(x * (255 / top)).astype("uint8")


def column(arrays, key, name, rows, kinds="iubUS"):
    """Labels or groups of a file as (rows,), or what is wrong with them."""
    y = np.asarray(arrays[key])
    if y.ndim == 2 and y.shape[1] == 1:  # as Keras' own data sets have them
        y = y[:, 0]
    if y.shape != (rows,):
        raise ValueError(
            f"`{key}` of {name} must be one value for each of its {rows} images, a row for each. "
            f"Received: {y.shape}"
        )
    if y.dtype.kind not in kinds:
        raise ValueError(
            f"`{key}` of {name} must be integers or strings; floats, of a table with gaps, say, "
            f"are none. Received: {y.dtype} {y[:5]}"
        )
    return y


def numbered(arrays, key, name, rows, names=None):
    """Labels as numbers from 0 by their place in `names`, and these: the sorted labels, if none."""
    y = column(arrays, key, name, rows)
    own = np.unique(y)
    names = own if names is None else names
    if len(names) < 2:
        raise ValueError(f"`{key}` of {name} must name two classes or more. Received: {names}")
    if strange := sorted(set(own.tolist()) - set(names.tolist())):
        raise ValueError(
            f"`{key}` of {name} must be classes of its `labels`, {names[:9]}. Received: "
            f"{strange[:9]}"
        )
    return np.searchsorted(names, y).astype("int64"), names


def once(x, y, groups, name):
    """The first of images that are equal: a copy in another part would be a leak."""
    _, first = np.unique([image.tobytes() for image in x], return_index=True)
    kept = np.sort(first)
    if len(kept) < len(x):
        say(name, f"{len(x) - len(kept)} of {len(x)} images are copies of others and left out.")
    return x[kept], y[kept], groups[kept]


# --- Which rows train, choose, promise and test -------------------------------------------------


def split_classes(y, seed=0):
    """Rows by `SHARES` in each class; the first of a class trains."""
    rng, ends = np.random.default_rng(seed), np.cumsum(list(SHARES.values()))
    piece = np.empty(len(y), int)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        piece[rows] = np.searchsorted(ends - 1e-9, (np.arange(len(rows)) + 0.5) / len(rows))
    return {name: np.flatnonzero(piece == i) for i, name in enumerate(SHARES)}


def split_many(y, groups):
    """Groups by `SHARES`: of `TRIED` ways the first with most classes in most parts, or None."""
    best, most = None, -1
    for seed in range(TRIED):
        pieces = split_groups(groups, seed)
        if any(len(pieces[n]) < share * len(y) / 3 for n, share in SHARES.items()):
            continue
        classes = {name: len(np.unique(y[rows])) for name, rows in pieces.items()}
        score = len(y) * classes["train"] + sum(classes.values())
        if score > most:
            best, most = pieces, score
    return best


def divided(y, groups, name):
    """The rows of each part, and those of the group that is unseen, or None."""
    names, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) == len(y):
        return split_classes(y), None
    if len(names) == 1:
        raise ValueError(
            f"`groups` of {name} must name several groups, to keep some of them for the test. "
            f"Leave it out if no image tells of another. Received: {names[0]} alone"
        )
    pieces = split_many(y, groups)
    if pieces is not None:
        return pieces, None
    away = members == np.argmin(sizes)
    left = np.flatnonzero(~away)
    say(
        name,
        f"{len(names)} groups are too few, or of sizes too different, to keep apart. Group "
        f"{names[np.argmin(sizes)]} is the part that is shifted, rows of the others are drawn.",
    )
    return {n: left[rows] for n, rows in split_classes(y[left]).items()}, np.flatnonzero(away)


def check_parts(parts, names, name):
    """Refuses parts that say nothing, and says of which classes they say nothing."""
    for part, each in parts.items():
        if len(each.labels) < LEAST:
            raise ValueError(
                f"{name} has too few images or groups: the part {part!r} would have "
                f"{len(each.labels)}, and must have {LEAST}"
            )
    for number, title in enumerate(names):
        lacking = [part for part, each in parts.items() if number not in each.labels]
        if "train" in lacking:
            raise ValueError(
                f"{name} must have images of each class in enough groups: none of class {title} is "
                f"among those that train. Leave the class out, or give more of it"
            )
        if len(parts["test"].labels) * MOST < (parts["test"].labels == number).sum():
            share = np.mean(parts["test"].labels == number)
            say(name, f"who always says {title} is right in {share:.1%} of the test.")
        if lacking:
            count = sum(int((each.labels == number).sum()) for each in parts.values())
            say(
                name,
                f"class {title} has {count} images, and none in {', '.join(lacking)}: what is said "
                "of those says nothing of it.",
            )


def resized(images, size):
    if images.shape[1:3] == size:
        return images
    height, width = size
    return np.stack([np.asarray(Image.fromarray(i).resize((width, height))) for i in images])


def own_task(arrays, others, name="the file", top=None):
    """The parts of a set in the documented form; `others` are images of other sets, or none."""
    for key in ("images", "labels"):
        if key not in arrays:
            raise ValueError(f"{name} must hold {FORM}. Received: {sorted(arrays)}")
    x = pictures(arrays, "images", name, top)
    y, names = numbered(arrays, "labels", name, len(x))
    if len(names) * FEW > len(y):
        raise ValueError(
            f"`labels` of {name} must be classes of some {FEW} images or more. Received: "
            f"{len(names)} classes among {len(y)} images"
        )
    if names.tolist() != list(range(len(names))):
        say(name, f"classes {', '.join(map(str, names[:20]))}{' ...' if len(names) > 20 else ''}.")
    has_groups = "groups" in arrays
    groups = column(arrays, "groups", name, len(y)) if has_groups else np.arange(len(y))
    x, y, groups = once(x, y, groups, name)
    pieces, away = divided(y, groups, name)
    parts = {n: Part(x[r], y[r], groups[r]) for n, r in pieces.items()}
    check_parts(parts, names, name)
    size = x.shape[1:3]
    if "shift" in arrays:
        parts["shift"] = shifted(arrays, name, names, top, x)
    elif away is not None:
        parts["shift"] = Part(x[away], y[away], groups[away])
    else:
        parts["shift"] = corrupted(parts["test"], FAR)
    for kind in ("near", "far"):
        if kind in arrays:
            strange = pictures(arrays, kind, name, top)
            parts[kind] = Part(resized(strange[unseen(strange, x, kind, name)], size))
    if "far" not in parts and (far := strangers(others, x, name)):
        parts["far"] = Part(np.concatenate([resized(one[:FAR], size) for one in far]))
    return parts


def strangers(others, x, name):
    """The images of other sets that are none of this one's."""
    known, found = {image.tobytes() for image in x}, []
    for title, images in others.items():
        is_new = np.array([image.tobytes() not in known for image in images])
        if not is_new.all():
            say(name, f"{np.sum(~is_new)} images of {title} are of this set, too, and not far.")
        if is_new.any():
            found.append(images[is_new])
    return found


def unseen(images, known, kind, name):
    """Which images of a part that a file brings are none of those that may train."""
    seen = {image.tobytes() for image in known}
    new = np.array([image.tobytes() not in seen for image in images])
    if not new.any():
        raise ValueError(f"`{kind}` of {name} must be other images than `images`. Received: copies")
    if not new.all():
        say(name, f"{np.sum(~new)} images of `{kind}` are copies of `images` and left out.")
    return new


def shifted(arrays, name, names, top, known):
    """The part "shift" that a file brings, in the size of the images that are `known`."""
    size = known.shape[1:3]
    if "shift_labels" not in arrays:
        raise ValueError(f"{name} must hold `shift_labels` beside `shift`. Received: none")
    x = pictures(arrays, "shift", name, top)
    y, _ = numbered(arrays, "shift_labels", name, len(x), names)
    new = unseen(x, known, "shift", name)
    return Part(resized(x[new], size), y[new])


def own_tasks(folder, top=None):
    """{name: function that makes its parts} of all `.npz` files of a folder."""
    folder = pathlib.Path(folder)
    paths = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"Argument `--data` must name a folder with .npz files, a set each, that hold {FORM}. "
            f"Received: {folder}"
        )

    def make(path):
        others = {}
        for p in paths:
            if p != path:
                arrays = read(p)
                if "images" in arrays:
                    others[p.stem] = pictures(arrays, "images", p.name, top)
        return own_task(read(path), others, path.name, top)

    return {path.stem: lambda path=path: make(path) for path in paths}
