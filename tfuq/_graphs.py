"""What depends on what in a TensorFlow graph."""


def dependents(tensors):
    """Ids of the operations that make `tensors`, and of those that depend on them."""
    found, waiting = set(), [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if id(op) not in found:
            found.add(id(op))
            waiting += [consumer for output in op.outputs for consumer in output.consumers()]
    return found
