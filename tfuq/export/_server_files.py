"""Configurations of servers that load a SavedModel: TensorFlow Serving and KServe.

Both look for versions of a model: folders whose names are numbers, in one with the model's name.
"""

import json
import re

from tfuq._arguments import shown
from tfuq._files.writing import written_whole

SERVERS = ("tensorflow-serving", "kserve")
_MOUNTED = "/models"  # where the images of TensorFlow Serving expect models
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_DNS_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # of a Kubernetes object


def check_serving(serving, path):
    """Raises unless `serving` names a server, and `path` is what it looks for."""
    if serving is None:
        return
    if serving not in SERVERS:
        raise ValueError(
            f"Argument `serving` must be None or one of {', '.join(SERVERS)}. "
            f"Received: serving={shown(serving)}"
        )
    version, name = path.name, path.resolve().parent.name
    if not version.isdecimal() or int(version) == 0 or str(int(version)) != version:
        raise ValueError(
            f"Argument `path` must end in a version with serving='{serving}': a whole number from "
            f"1 on, in a folder with the model's name, such as models/digits/1. Received: {path}"
        )
    pattern = _DNS_NAME if serving == "kserve" else _NAME
    if not pattern.fullmatch(name):
        kind = "small letters, digits and hyphens" if serving == "kserve" else "letters and digits"
        raise ValueError(
            f"The folder above the version must have the model's name, of {kind}, with "
            f"serving='{serving}'. Received: {path}"
        )


def write_serving(serving, path):
    """Writes the configurations beside the versions of the model that was exported to `path`."""
    if serving is None:
        return
    folder = path.resolve().parent
    files = _TO_WRITE[serving](folder.name)
    for name, text in files.items():
        with written_whole(folder / name) as scratch:
            scratch.write_text(text, encoding="utf-8")


def _tensorflow_serving(name):
    models = f"""\
# TensorFlow Serving, with the folder above this one mounted at {_MOUNTED}:
#   docker run -p 8501:8501 -v "$PWD:{_MOUNTED}" tensorflow/serving \\
#     --model_config_file={_MOUNTED}/{name}/models.config \\
#     --monitoring_config_file={_MOUNTED}/{name}/monitoring.config \\
#     --enable_batching --batching_parameters_file={_MOUNTED}/{name}/batching.config
model_config_list {{
  config {{
    name: {json.dumps(name)}
    base_path: {json.dumps(f"{_MOUNTED}/{name}")}
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""
    monitoring = """\
# Metrics for Prometheus, at port 8501.
prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }
"""
    batching = """\
# What comes within a millisecond is answered together, up to 32 inputs.
max_batch_size { value: 32 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 }
"""
    return {
        "models.config": models,
        "monitoring.config": monitoring,
        "batching.config": batching,
    }


def _kserve(name):
    service = f"""\
# KServe: kubectl apply -f inference_service.yaml
# `storageUri` says where the folder {name} was put: pvc://CLAIM/FOLDER, s3://, gs://, https://.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {json.dumps(name)}
spec:
  predictor:
    model:
      modelFormat:
        name: tensorflow
      protocolVersion: v1
      storageUri: {json.dumps(f"pvc://models/{name}")}
      resources:
        requests: {{cpu: "1", memory: 2Gi}}
        limits: {{cpu: "2", memory: 4Gi}}
"""
    return {"inference_service.yaml": service}


_TO_WRITE = {"tensorflow-serving": _tensorflow_serving, "kserve": _kserve}
