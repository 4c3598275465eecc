"""Deep ensembles: several networks, trained apart, that predict together."""

from tfuq._arguments import public_dir
from tfuq.ensembles.deep_ensemble import DeepEnsemble

__all__ = ["DeepEnsemble"]
__dir__ = public_dir(__all__)
