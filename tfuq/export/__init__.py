"""Trained models as files for other programs, with their uncertainty and decisions inside."""

from tfuq._arguments import public_dir
from tfuq.export.litert import export_litert
from tfuq.export.onnx import export_onnx
from tfuq.export.saved_model import export
from tfuq.export.verification import ExportCheck, verify_export

__all__ = ["ExportCheck", "export", "export_litert", "export_onnx", "verify_export"]
__dir__ = public_dir(__all__)
