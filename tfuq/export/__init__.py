"""Trained models as files for other programs, with their uncertainty and decisions inside."""

from tfuq.export.saved_model import export
from tfuq.export.verification import ExportCheck, verify_export

__all__ = ["ExportCheck", "export", "verify_export"]
