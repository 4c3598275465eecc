"""Data for training and for tests: public sets, local files, and classes in balance.

`load` (extra `datasets`) and `from_npz` give the same form: a `tf.data.Dataset` of pairs
`(image, label)`, batched if asked for, which `keras.Model.fit` takes as it is.
"""

from tfuq._arguments import public_dir
from tfuq.datasets.balance import balanced
from tfuq.datasets.files import from_npz
from tfuq.datasets.public import PublicSet, describe, load, names
from tfuq.datasets.smote import smote

__all__ = ["PublicSet", "balanced", "describe", "from_npz", "load", "names", "smote"]
__dir__ = public_dir(__all__)
