"""New Python processes for tests, without the seconds that importing TensorFlow takes.

`make test` (see `run.py`) imports all packages once, before any of them has done anything, and
leaves a process behind that waits for orders: it forks, and the fork runs the script. Under plain
`pytest` there is none, and `start` starts Python itself.

A script that is about the start of a process (what an import loads, `python -m`) uses
`subprocess`.
"""

import concurrent.futures
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback

SERVER = "TFUQ_TEST_PROCESSES"  # the environment variable: the folder of the sockets
USED = "used"  # the file there with the seconds of the processor that each process took


HIDDEN = ("tfuq", "keras", "tf_keras", "tensorflow_probability", "scipy")


# --- The side of the tests --------------------------------------------------------------------


def start(script, *arguments, cwd=None, env=None, world="tfuq"):
    """Starts the file `script`, or a text of more than one line, as a process with pipes.

    Args:
        script: Path of a Python file, or its text (as of `python -c`).
        arguments: Of the command line.
        cwd: The directory to start in; this one if `None`.
        env: The environment; this one if `None`.
        world: What a fork has imported: "tfuq"; nothing above "keras"; or "tensorflow", where what
            is above it cannot be imported.

    Returns:
        A `subprocess.Popen`, or what serves as one: `stdout` and `stderr` are text.
    """
    env, cwd = dict(os.environ if env is None else env), os.fspath(cwd or os.getcwd())
    script, arguments = os.fspath(script), [str(argument) for argument in arguments]
    socket_of_world = os.path.join(os.environ.get(SERVER, ""), world)
    if SERVER in os.environ and os.path.exists(socket_of_world):
        return Forked(socket_of_world, script, arguments, cwd, env)
    command = [sys.executable, *([] if is_path(script) else ["-c"]), script, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, **pipes)


def run(script, *arguments, timeout=900, **kwargs):
    """`start`, to its end: `returncode`, `stdout` and `stderr`, as of `subprocess.run`."""
    process = start(script, *arguments, **kwargs)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(script, process.returncode, out, err)


def is_path(script):
    return "\n" not in script and script.endswith(".py")


class Forked:
    """A child of the server, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, address, script, arguments, cwd, env):
        (out, new_out), (err, new_err) = os.pipe(), os.pipe()
        order = {"script": script, "arguments": arguments, "cwd": cwd, "env": env}
        text = json.dumps(order).encode()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        socket.send_fds(self._connection, [len(text).to_bytes(8, "big")], [new_out, new_err])
        self._connection.sendall(text)
        os.close(new_out)
        os.close(new_err)
        self.args, self.returncode = [script, *arguments], None
        self.stdout, self.stderr = os.fdopen(out, "r"), os.fdopen(err, "r")
        self.pid = int.from_bytes(_exactly(self._connection, 8), "big")

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int.from_bytes(_exactly(self._connection, 8), "big", signed=True)
            self._connection.close()
        return self.returncode

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def communicate(self, timeout=None):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(file.read) for file in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # or the threads would read on
                raise
        self.stdout.close()
        self.stderr.close()
        return tuple(text.result() for text in texts)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stdout.close()
        self.stderr.close()
        self.wait()


def _exactly(connection, size):
    """The next `size` bytes."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("The server of processes is gone.")
        data += more
    return data


# --- The side of the server -------------------------------------------------------------------


def serve(folder, world):
    """Leaves a copy of this process behind that forks on demand, until this one ends.

    The environment of this process and of all that it starts names `folder`; `start` finds the
    copy there by the name of its `world`.
    """
    os.environ[SERVER] = str(folder)
    listening, parent = _listening(folder, world), os.getpid()
    if os.fork() == 0:
        try:
            _answer(listening, parent)
        finally:
            os._exit(0)
    listening.close()


def serve_tensorflow(folder):
    """Starts the server of the world "tensorflow", which is no copy of this process."""
    subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.DEVNULL)


def _tensorflow_alone(folder):
    listening, parent = _listening(folder, "tensorflow"), os.getppid()
    for name in HIDDEN:
        sys.modules[name] = None  # Python's own way to say: there is no such module
    importlib.import_module("tensorflow")
    gc.freeze()
    _answer(listening, parent)


def _listening(folder, world):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.join(folder, world))
    listening.listen(64)
    return listening


def _answer(listening, parent):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries those that keep watch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listening.settimeout(1.0)
    while os.getppid() == parent:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listening.close()
            connection.setblocking(True)
            _keep_watch(connection)
            os._exit(0)
        connection.close()


def _keep_watch(connection):
    """Forks what was ordered, waits for it and says how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, outputs, _, _ = socket.recv_fds(connection, 8, 2)
    order = json.loads(_exactly(connection, int.from_bytes(size, "big")))
    pid = os.fork()
    if pid == 0:
        connection.close()
        _run(order, outputs)
    for output in outputs:
        os.close(output)
    connection.sendall(pid.to_bytes(8, "big"))
    _, status, used = os.wait4(pid, 0)
    folder = order["env"].get(SERVER, os.devnull)
    with contextlib.suppress(OSError), open(os.path.join(folder, USED), "a") as file:
        file.write(f"{used.ru_utime + used.ru_stime}\n")
    with contextlib.suppress(OSError):  # nobody may want to know
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))


def _run(order, outputs):
    """Becomes what was ordered; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, output in zip((1, 2), outputs, strict=True):
            os.dup2(output, number)
            os.close(output)
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        script = order["script"]
        beside = os.path.dirname(script) if is_path(script) else ""
        named = order["env"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [beside, *filter(None, named)]
        sys.argv[:] = [script if is_path(script) else "-c", *order["arguments"]]
        status = _outcome(script)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _outcome(script):
    """Runs a script and gives its exit status."""
    try:
        if is_path(script):
            runpy.run_path(script, run_name="__main__")
        else:
            exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _tensorflow_alone(*sys.argv[1:])
