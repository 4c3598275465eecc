"""Deep ensembles: several networks, trained apart, that predict together."""

from tfuq.ensembles.deep_ensemble import DeepEnsemble

__all__ = ["DeepEnsemble"]
