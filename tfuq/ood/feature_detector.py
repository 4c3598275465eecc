"""The detector that reads features of chosen layers of a model."""

from __future__ import annotations

from typing import Any

from tfuq._arguments import Output, shown
from tfuq._models.feature_arrays import check_rows
from tfuq.ood.base import Detector


def check_layer(name, layer):
    """Raises ValueError unless `layer` is None or may be the name of a layer."""
    if layer is not None and not isinstance(layer, str):
        raise ValueError(
            f"Argument `{name}` must be the name of a layer, or None for the penultimate one. "
            f"Received: {name}={shown(layer)}"
        )


class FeatureDetector(Detector):
    """Base of the detectors whose features `(n, d)` are those of one layer."""

    def __init__(
        self,
        layer: str | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_layer("layer", layer)
        self.layer = layer

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": self.layer}

    def _tapped(self):
        return {"layers": (self.layer,)}

    def _read(self, batch):
        return self._tap(batch).features

    def _check(self, features):
        return (check_rows("features", features, pool=True),)
