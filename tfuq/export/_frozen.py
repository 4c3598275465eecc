"""A traced graph with its variables as constants, in operations that other runtimes have."""

import itertools
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.util.deprecation import silence

from tfuq.export._samples import EXACT

_NUMBERS = itertools.count()
_SIGN = -(2**31)  # the bit that says whether an int32 is negative
_FLOAT = types_pb2.DT_FLOAT
_NARROWED = {types_pb2.DT_DOUBLE, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}


def _upper_bound(rows, values):
    """Index of the first entry of sorted `rows` that is larger, as a count of those that are not.

    Both are `(rows, entries)`.
    """
    return tf.reduce_sum(tf.cast(rows[:, None, :] <= values[:, :, None], "int32"), -1)


def _lower_bound(rows, values):
    return tf.reduce_sum(tf.cast(rows[:, None, :] < values[:, :, None], "int32"), -1)


def _xlogy(x, y):
    # Some runtimes take what is smaller for 0, though they do not say that it equals 0.
    is_zero = tf.abs(x) < np.finfo("float32").tiny
    return tf.where(is_zero, 0.0, x * tf.math.log(tf.where(is_zero, 1.0, y)))


def _softplus(x):
    # LiteRT's own, log(1 + exp(x)), overflows.
    small = tf.exp(-tf.abs(x))
    log1p = tf.where(small < 1e-3, small * (1 - small / 2), tf.math.log(1 + small))
    return tf.maximum(x, 0.0) + log1p


# log(erfc(z) exp(z^2) / t) of z >= 0 as a polynomial of 2 t - 1, t = 2 / (2 + z): interpolated at
# Chebyshev's nodes. In float32 erfc is off by 4e-7 at most.
_LOG_ERFC = (
    *(-0.671794084, 0.672643021, 0.0473433339, -0.0468854046, -0.00987486175, 0.00874120518),
    *(0.0017782678, -0.0020981557, -0.00020874484, 0.000355556846),
)


def _erfc(x):
    z = tf.abs(x)
    t, found = 2 / (2 + z), 0.0
    at = 2 * t - 1
    for coefficient in _LOG_ERFC[::-1]:
        found = coefficient + at * found
    tail = t * tf.exp(found - z * z)
    return tf.where(x < 0, 2 - tail, tail)


# What neither LiteRT nor ONNX has, by others.
_REPLACED = {
    "BitwiseAnd": lambda x, bit: tf.where((x < 0) | (1 / x < 0), bit, 0),  # see `_sign_of`
    "Erfc": _erfc,
    "IsFinite": lambda x: tf.abs(x) < np.inf,
    "IsInf": lambda x: tf.equal(tf.abs(x), np.inf),
    "IsNan": lambda x: tf.logical_not(tf.abs(x) <= np.inf),
    "LowerBound": _lower_bound,
    "Softplus": _softplus,
    "UpperBound": _upper_bound,
    "Xlogy": _xlogy,
}


class Frozen(NamedTuple):
    """A graph with a signature."""

    graph: tf.compat.v1.GraphDef
    inputs: dict  # names of arguments to `tf.TensorSpec`s; a tensor is called as its argument
    outputs: dict  # names of outputs to those of their tensors

    def nodes_of(self, types):
        """Names of the nodes whose operation is one of `types`."""
        parts = (self.graph.node, *(each.node_def for each in self.graph.library.function))
        return [node.name for nodes in parts for node in nodes if node.op in types]

    def inlined(self):
        """The same without calls of functions."""
        return _with_constants(self.function())

    def function(self):
        """A concrete function of the graph, which takes tensors by name and returns a dict."""

        used = {node.name for node in self.graph.node if node.op == "Placeholder"}
        graph = tf.compat.v1.GraphDef(
            node=[node for node in self.graph.node if node.name not in used],
            versions=self.graph.versions,
            library=self.graph.library,
        )

        def call(**tensors):
            fed = {f"{name}:0": tensor for name, tensor in tensors.items() if name in used}
            tensors = tf.graph_util.import_graph_def(graph, fed, list(self.outputs.values()))
            return {
                name: tf.identity(tensor, name=name)
                for name, tensor in zip(self.outputs, tensors, strict=True)
            }

        return tf.function(call, autograph=False).get_concrete_function(**self.inputs)


def frozen(write):
    """`Frozen` of what `write(folder)` writes as a SavedModel.

    What is float64 or float16 becomes float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(folder)  # a graph with imported parts is not frozen as it was traced, but as read
        loaded = tf.saved_model.load(folder)
        concrete = loaded.signatures["serving_default"]
    graph = _with_constants(concrete)
    if _leave_to_runtime(graph.graph):
        graph = graph.inlined()
    while _decide(graph.graph):
        graph = graph.inlined()  # puts the branches in place of their calls
    _replace(graph.graph)
    return graph


def _with_constants(concrete):
    """`Frozen` of a concrete function that returns a dict, with all calls of functions inlined."""
    constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    names = [tensor.name for tensor in constant.outputs]
    wanted = [name.split(":")[0] for name in names]
    with silence():  # that the function is of TensorFlow 1 is for nobody who exports
        graph = tf.compat.v1.graph_util.extract_sub_graph(constant.graph.as_graph_def(), wanted)
    _rename_functions(graph)
    for node in graph.node:
        _simplify(node)
    for part in graph.library.function:
        for node in part.node_def:
            _simplify(node)
        for each in (*part.signature.input_arg, *part.signature.output_arg):
            if each.type in _NARROWED:
                each.type = types_pb2.DT_FLOAT
    inputs = {
        tensor.op.name: tf.TensorSpec(tensor.shape, _narrow(tensor.dtype), tensor.op.name)
        for tensor in constant.inputs
    }
    return Frozen(graph, inputs, dict(zip(sorted(concrete.structured_outputs), names, strict=True)))


def _narrow(dtype):
    is_narrowed = dtype.as_datatype_enum in _NARROWED
    return tf.float32 if is_narrowed else dtype


def with_exact_constants(frozen):
    """`Frozen` whose constants of the scope `EXACT` are hidden from what quantizes weights.

    They are stored as integers of the same bits, to which is added a zero that no compiler knows
    beforehand.
    """
    graph = tf.compat.v1.GraphDef()
    graph.CopyFrom(frozen.graph)
    nodes, hidden = {node.name: node for node in graph.node}, {}
    for node in [node for node in graph.node if f"/{EXACT}/" in f"/{node.name}"]:
        for i, name in enumerate(node.input):
            source = nodes.get(name)
            while source is not None and source.op == "Identity":
                source = nodes.get(source.input[0])
            if source is not None and source.op == "Const" and _would_move(source):
                hidden.setdefault(source.name, source)
                node.input[i] = f"{source.name}/exact"
    if not hidden:
        return frozen
    given = next(node for node in graph.node if node.op == "Placeholder")
    spec = tf.TensorSpec(None, tf.dtypes.as_dtype(given.attr["dtype"].type))
    zero = graph.node.add(name="zero", input=[given.name])
    _call(graph, zero, _definition(_zero, spec))
    exact = _definition(_of_bits, tf.TensorSpec(None, "int32"), tf.TensorSpec((), "int32"))
    for name, source in hidden.items():
        value = tf.make_ndarray(source.attr["value"].tensor)
        bits = graph.node.add(name=f"{name}/bits", op="Const")
        bits.attr["dtype"].type = types_pb2.DT_INT32
        bits.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.view("int32")))
        _call(graph, graph.node.add(name=f"{name}/exact", input=[bits.name, zero.name]), exact)
    return frozen._replace(graph=graph)


def _would_move(node):
    """Whether a constant is not the same in float16, or is a matrix, which may become int8."""
    if node.attr["dtype"].type != _FLOAT:
        return False
    value = tf.make_ndarray(node.attr["value"].tensor)
    with np.errstate(over="ignore"):
        rounded = value.astype("float16").astype("float32")
    return value.ndim > 1 or not np.array_equal(value, rounded, equal_nan=True)


def _zero(inputs):
    first = tf.cast(tf.reshape(inputs, [-1])[0], "int32")
    return tf.minimum(tf.maximum(first, 0), 0)


def _of_bits(bits, zero):
    return tf.bitcast(bits + zero, "float32")


def _rename_functions(graph):
    """Gives functions new names: TensorFlow knows those of these names as they were before."""
    names = {
        part.signature.name: f"{part.signature.name}_{next(_NUMBERS)}"
        for part in graph.library.function
    }
    for part in graph.library.function:
        part.signature.name = names[part.signature.name]
    for nodes in (graph.node, *(part.node_def for part in graph.library.function)):
        for attribute in (each for node in nodes for each in node.attr.values()):
            is_function = attribute.WhichOneof("value") == "func"
            for called in [attribute.func] if is_function else attribute.list.func:
                called.name = names.get(called.name, called.name)


def _simplify(node):
    """Makes a node one of float32, and an assertion of shapes an identity."""
    if node.op == "EnsureShape":
        node.op = "Identity"
        del node.attr["shape"]
    for attribute in node.attr.values():
        _narrow_attribute(attribute)


def _narrow_attribute(attribute):
    """Makes the types and the constant of an attribute float32."""
    kind = attribute.WhichOneof("value")
    if kind == "type" and attribute.type in _NARROWED:
        attribute.type = types_pb2.DT_FLOAT
    elif kind == "list":
        kinds = attribute.list.type
        kinds[:] = [types_pb2.DT_FLOAT if each in _NARROWED else each for each in kinds]
    elif kind == "tensor" and attribute.tensor.dtype in _NARROWED:
        array = tf.make_ndarray(attribute.tensor).astype("float64")
        with np.errstate(over="ignore"):
            attribute.tensor.CopyFrom(tf.make_tensor_proto(array.astype("float32")))


_COMPILED = "_XlaMustCompile"


def _leave_to_runtime(graph):
    """Makes functions that are to be compiled (`jit_compile=True`) such as can be inlined.

    Keras computes convolutions in groups in such functions, and others that TensorFlow lacks on
    CPUs. Returns whether there are any.
    """
    parts = [part.attr for part in graph.library.function]
    parts += [node.attr for node in graph.node]
    parts += [node.attr for part in graph.library.function for node in part.node_def]
    marked = [attributes for attributes in parts if _COMPILED in attributes]
    for attributes in marked:
        del attributes[_COMPILED]
        if "_noinline" in attributes:
            del attributes["_noinline"]
    return bool(marked)


def _decide(graph):
    """Calls the branch that is taken where a condition is known; returns whether any was.

    It is where it is constant, or asks whether the batch is empty, which it is not.
    """
    nodes, constants = {node.name: node for node in graph.node}, _constants(graph)
    is_changed = False
    for node in graph.node:
        if node.op not in ("If", "StatelessIf"):
            continue
        name = node.input[0]
        known = tf.compat.v1.graph_util.extract_sub_graph(graph, [name.split(":")[0]])
        if _asks_if_empty(nodes[name.split(":")[0]], nodes, constants):
            value = False
        elif any(each.op == "Placeholder" for each in known.node):
            continue
        else:
            value = _value(known, name if ":" in name else f"{name}:0")
        branch = node.attr["then_branch" if np.any(value) else "else_branch"].func
        node.op = "PartitionedCall"
        del node.input[0]
        node.attr["f"].func.CopyFrom(branch)
        for attribute in ("then_branch", "else_branch", "Tcond", "output_shapes"):
            del node.attr[attribute]
        is_changed = True
    return is_changed


def _asks_if_empty(node, nodes, constants):
    """Whether it compares a part of a shape with 0."""
    if node.op != "Equal" or not any(np.all(constants.get(name) == 0) for name in node.input):
        return False
    parts = [nodes[name] for name in node.input if name in nodes]
    return any(p.op == "StridedSlice" and nodes[p.input[0]].op == "Shape" for p in parts)


def _constants(graph):
    nodes = [node for node in graph.node if node.op == "Const"]
    return {node.name: tf.make_ndarray(node.attr["value"].tensor) for node in nodes}


def _value(graph, name):
    """What a graph without inputs computes."""
    return tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(graph, {}, [name])[0], []
    )().numpy()


def _replace(graph):
    """Puts calls of functions in place of the nodes that are to be replaced."""
    nodes, values = {node.name: node for node in graph.node}, _constants(graph)
    volumes = {node.name for node in graph.node if _has_channels_first(node)}
    for node in list(graph.node):
        if node.name in volumes:
            _call(graph, node, _definition(_channels_last(node), *[_VOLUME, _VOLUME]))
        elif node.op == "BiasAdd" and _source(node.input[0], nodes) in volumes:
            _call(graph, node, _definition(_add_to_first, _VOLUME, tf.TensorSpec([None])))
        if node.op not in _REPLACED:
            continue
        shape = [None, None] if node.op.endswith("Bound") else None
        specs = [tf.TensorSpec(shape, "float32")] * len(node.input)
        if node.op == "BitwiseAnd":
            source = _sign_of(node, nodes, values)
            if source is None:
                continue
            node.input[0], specs[1] = source, tf.TensorSpec(None, "int32")
        _call(graph, node, _definition(_REPLACED[node.op], *specs))


_VOLUME = tf.TensorSpec([None] * 5, "float32")


def _has_channels_first(node):
    return node.op == "Conv3D" and node.attr["data_format"].s == b"NCDHW"


def _source(name, nodes):
    """Name of the node that makes a tensor, past what only hands it on."""
    while name in nodes and nodes[name].op == "Identity":
        name = nodes[name].input[0]
    return name


def _add_to_first(inputs, bias):
    return inputs + tf.reshape(bias, [1, -1, 1, 1, 1])


def _channels_last(node):
    """What a convolution of volumes with channels first computes, with channels last."""

    def turned(values):
        values = list(values.list.i)
        return [*values[:1], *values[2:], values[1]]

    strides, dilations = turned(node.attr["strides"]), turned(node.attr["dilations"])
    padding = node.attr["padding"].s.decode()

    def convolved(inputs, kernel):
        inputs = tf.transpose(inputs, [0, 2, 3, 4, 1])
        outputs = tf.raw_ops.Conv3D(
            input=inputs, filter=kernel, strides=strides, padding=padding, dilations=dilations
        )
        return tf.transpose(outputs, [0, 4, 1, 2, 3])

    return convolved


def _sign_of(node, nodes, values):
    """The float32 of whose bits a `BitwiseAnd` takes the one of the sign, or None."""
    bits = nodes.get(node.input[0])
    is_sign = np.all(values.get(node.input[1]) == _SIGN)
    if not is_sign or bits is None or bits.op != "Bitcast" or bits.attr["T"].type != _FLOAT:
        return None
    return bits.input[0]


def _definition(function, *specs):
    made = tf.function(function, autograph=False).get_concrete_function(*specs).function_def
    # When the traced function goes, TensorFlow forgets what has its name.
    made.signature.name += f"_{next(_NUMBERS)}"
    return made


def _call(graph, node, definition):
    """Makes a node the call of a function, which is added to the graph."""
    made = definition.signature
    if made.name not in {part.signature.name for part in graph.library.function}:
        graph.library.function.add().CopyFrom(definition)
    node.op = "PartitionedCall"
    node.attr.clear()
    node.attr["f"].func.name = made.name
    node.attr["Tin"].list.type.extend(each.type for each in made.input_arg)
    node.attr["Tout"].list.type.extend(each.type for each in made.output_arg)
