"""Options of the server, for its command line and its functions; light to import."""

import math
import pathlib

# Name, default, what it is. All but `grace` and `drain` must be above 0.
NUMBERS = (
    ("max-bytes", 2**22, "bytes of a body"),
    ("max-pixels", 2**24, "pixels of an image"),
    ("max-decoded", 2**26, "bytes of an input as the model takes it"),
    ("max-waiting-bytes", 2**29, "bytes of bodies and decoded inputs of all requests"),
    ("max-batch", 32, "inputs that are predicted together"),
    ("max-waiting", 64, "requests that wait for an answer; more are told to come again"),
    ("max-bodies", 256, "bodies that are being read; one more, and the slowest is given up"),
    ("max-connections", 512, "open connections; one more, and one without a request is closed"),
    ("body-timeout", 20.0, "seconds that a body may take to come"),
    ("head-timeout", 10.0, "seconds that a head may take to come, or a connection be idle"),
    ("grace", 10, "seconds for what is under way at the end"),
    ("drain", 0.0, "seconds between the signal to end, when /ready turns to 503, and the end"),
    ("threads", 1, "of each operation of TensorFlow"),
)
_FROM_ZERO = ("grace", "drain")
# What an application in another server could not act on.
OF_THE_SERVER = frozenset(
    ("host", "port", "threads", "head_timeout", "max_connections", "grace", "drain")
)


def add_options(parser):
    """Adds the model and all options to a parser of `argparse`."""
    add = parser.add_argument
    add("model", type=pathlib.Path, metavar="FOLDER", help="folder that `tfuq export` wrote")
    add("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    add("--port", type=int, default=8000, help="0 takes a free one, which is printed (8000)")
    add("--class-names", metavar="A,B", help="names of the classes in their order")
    add(
        "--pixel-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what 0 and 255 of an image become, if the model takes floating point numbers and "
        "does not declare it",
    )
    add(
        "--monitor",
        type=pathlib.Path,
        metavar="FILE",
        help="a monitor of the rule, as `rule.monitor().save(FILE)` writes it",
    )
    for name, default, text in NUMBERS:
        add(f"--{name}", type=type(default), default=default, help=f"{text} (%(default)s)")


def check(options):
    """The options; ValueError if one is not what it can be."""
    for option, default, _ in NUMBERS:
        name = option.replace("-", "_")
        value = getattr(options, name)
        kinds = (int,) if isinstance(default, int) else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        least = "at least 0" if option in _FROM_ZERO else "above 0"
        if not is_number or not math.isfinite(value) or value < 0:
            raise ValueError(f"--{option} must be a number {least}. Received: {value}")
        if value == 0 and option not in _FROM_ZERO:
            raise ValueError(f"--{option} must be a number {least}. Received: {value}")
    if isinstance(options.port, bool) or not isinstance(options.port, int):
        raise ValueError(f"--port must be a whole number. Received: {options.port}")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535. Received: {options.port}")
    if options.pixel_range is not None:
        ends = list(options.pixel_range)
        if len(ends) != 2 or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
            raise ValueError(f"--pixel-range must be two numbers, low and high. Received: {ends}")
    if options.max_waiting_bytes < options.max_bytes:
        raise ValueError(
            "--max-waiting-bytes must be at least --max-bytes. Received: "
            f"{options.max_waiting_bytes} and {options.max_bytes}"
        )
    return options
