"""Operations of a graph: those of Python, those that do not repeat, and their layers."""

_OF_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction")

_RANDOM = (
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal"),
    *(
        "RandomGamma",
        "RandomPoissonV2",
        "RandomShuffle",
        "Multinomial",
        "ParameterizedTruncatedNormal",
    ),
    *(
        "StatefulUniform",
        "StatefulStandardNormalV2",
        "StatefulTruncatedNormal",
        "StatefulUniformInt",
    ),
    *("StatefulUniformFullInt", "StatefulRandomBinomial", "RngReadAndSkip", "RngSkip"),
)

_ASSIGNING = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")


def operations(function):
    """`(type, name)` of all operations of a concrete function, those it calls included."""
    graph = function.graph.as_graph_def()
    for part in (graph.node, *(each.node_def for each in graph.library.function)):
        yield from ((node.op, node.name) for node in part)


def of_python(function):
    """Names of the operations that call back into Python, which a file cannot hold."""
    return [name for kind, name in operations(function) if kind in _OF_PYTHON]


def unrepeatable(function):
    """Names of the operations that make two calls differ."""
    return [n for kind, n in operations(function) if kind in (*_RANDOM, *_ASSIGNING)]


def layer_of(name, layers):
    """The innermost of `layers` in whose scope the operation `name` stands, or None."""
    parts = name.split("/")
    inner = [layer for part in reversed(parts) for layer in layers if _is_named(part, layer.name)]
    return inner[0] if inner else None


def _is_named(part, name):
    """Whether a scope is that of a layer; a second call has `_1` behind its name."""
    return part == name or (part.startswith(f"{name}_") and part[len(name) + 1 :].isdigit())


def named(operation, models):
    """A text that names the layer of an operation."""
    layers = [layer for model in models for layer in model._flatten_layers(include_self=False)]
    layer = layer_of(operation, layers)
    where = "outside its layers"
    if layer is not None:
        where = f"layer {layer.name!r} of class {type(layer).__name__}"
    return f"{where} (operation {operation!r})"
