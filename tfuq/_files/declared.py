"""Declarations of a model, in its `.keras` file and beside the model in memory.

Keras writes what `get_build_config` returns beside the config of a model, and reads nothing of it
for a model that is built when its config is read, as functional and `Sequential` ones are. So any
Keras loads the file, in safe mode, and `load_keras` finds there what was declared.
"""

import functools

import keras

_NAME = "_tfuq_declared"
_KEY = "tfuq"


def remember(model, content):
    """Binds `content`, a dict as JSON can hold it, to a model, to be saved with it.

    In the model's `__dict__`, past Keras' tracking of attributes, which would wrap it.
    """
    model.__dict__[_NAME] = content
    if isinstance(getattr(model, "inputs", None), list):
        model.__dict__["get_build_config"] = functools.partial(_with_content, model)


def recalled(model):
    """What `remember` bound to the model, {} if nothing was."""
    return getattr(model, "__dict__", {}).get(_NAME, {})


def content_of(config):
    """The content in the configuration that is in a `.keras` file; {} if there is none."""
    build = config.get("build_config") if isinstance(config, dict) else None
    content = build.get(_KEY) if isinstance(build, dict) else None
    return content if isinstance(content, dict) else {}


def _with_content(model):
    own = type(model).get_build_config(model)
    return {**(own or {}), _KEY: model.__dict__[_NAME]}


def is_kept(model):
    """Whether what is declared of the model is in the file that `model.save` writes."""
    return isinstance(model, keras.Model) and "get_build_config" in model.__dict__
