"""Operation of the server: metrics, description, readiness, containers, other servers' files."""

import asyncio
import contextlib
import io
import json
import pathlib
import re

import keras
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tfuq.export import export
from tfuq.selective import RejectionRule
from tfuq.serving import command, make_app

pytestmark = pytest.mark.xdist_group("serving")

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "serving"


def small():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])


def fitted():
    rng = np.random.default_rng(5)
    top = rng.uniform(0.5, 1, size=1000)
    labels = (rng.random(1000) > top).astype(int)
    return RejectionRule.fit(np.stack([top, 1 - top], -1), labels, target_risk=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("operations")
    rule = fitted()
    export(small(), path / "served", rule=rule)
    rule.monitor().save(path / "monitor.json")
    return path


@pytest.fixture
def app(folder):
    found = make_app(folder / "served", monitor=folder / "monitor.json")
    yield found
    with contextlib.suppress(OSError):
        found.state.service.close()


def asked(app, path, body=None, kind="application/x-npy"):
    """Status, type and content of the application's answer, without a socket."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": body or b"", "more_body": False}

    scope = {"type": "http", "http_version": "1.1", "method": "GET" if body is None else "POST"}
    scope |= {"query_string": b"", "scheme": "http", "server": ("here", 1), "root_path": ""}
    scope |= {"headers": [(b"content-type", kind.encode())], "client": ("here", 2), "path": path}
    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent)
    headers = dict(sent[0]["headers"])
    return sent[0]["status"], headers[b"content-type"].decode(), content


def array(values):
    file = io.BytesIO()
    np.save(file, np.asarray(values, "float32"))
    return file.getvalue()


def figures(app):
    """`{name and labels: value}` of `/metrics`, as Prometheus' own parser reads it."""
    status, kind, text = asked(app, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=")
    samples = [s for f in text_string_to_metric_families(text.decode()) for s in f.samples]
    return {(s.name, *sorted(s.labels.items())): s.value for s in samples}


# --- Metrics ------------------------------------------------------------------------------------


def test_metrics_count_what_was_answered(app):
    """Before a request, after answers, refusals and labels: the counts that are due."""
    before = figures(app)
    assert before["tfuq_answers_total", ("decision", "accepted")] == 0
    assert np.isnan(before["tfuq_accepted_share",])
    inputs = np.random.default_rng(0).normal(size=(12, 3)) * np.repeat([[0.01], [9.0]], 6, axis=0)
    answers = [json.loads(asked(app, "/predict", array(row))[2]) for row in inputs]
    several = json.dumps({"instances": inputs.tolist()}).encode()
    asked(app, "/predict", several, "application/json")
    for _ in range(3):
        asked(app, "/predict", b"none")
    asked(app, "/nowhere")
    accepted = 2 * sum(answer["accept"] for answer in answers)
    assert 0 < accepted < 24
    found = figures(app)
    assert found["tfuq_answers_total", ("decision", "accepted")] == accepted
    assert found["tfuq_answers_total", ("decision", "referred")] == 24 - accepted
    assert found["tfuq_accepted_share",] == accepted / 24
    assert found["tfuq_refusals_total", ("error", "malformed"), ("status", "400")] == 3
    assert found["tfuq_refusals_total", ("error", "http"), ("status", "404")] == 1
    assert found["tfuq_answer_seconds_count",] == 13
    assert found["tfuq_answer_seconds_bucket", ("le", "+Inf")] == 13
    assert found["tfuq_requests_under_way",] == found["tfuq_waiting_bytes",] == 0
    assert found["tfuq_ready",] == 1
    assert found["tfuq_monitor_cases",] == 24 and found["tfuq_monitor_alarm",] == 0
    assert found["tfuq_monitor_promised_risk",] == 0.2
    wrong = {each["id"]: 1 - each["label"] for each in answers}
    for _ in range(20):  # labels that are all wrong
        asked(app, "/labels", json.dumps({"labels": wrong}).encode(), "application/json")
        inputs += 1e-6  # others: equal ones are counted once
        several = json.dumps({"instances": inputs.tolist()}).encode()
        content = json.loads(asked(app, "/predict", several, "application/json")[2])
        wrong = {each["id"]: 1 - each["label"] for each in content["predictions"]}
    found = figures(app)
    assert found["tfuq_monitor_alarm",] == 1 and found["tfuq_monitor_risk_bound",] > 0.5
    assert found["tfuq_monitor_labelled",] > 50


def test_two_services_count_for_themselves(folder):
    first, second = (make_app(folder / "served") for _ in range(2))
    asked(first, "/predict", array([1, 2, 3]))
    assert figures(first)["tfuq_answer_seconds_count",] == 1
    found = figures(second)
    assert found["tfuq_answer_seconds_count",] == 0
    assert not [name for name, *_ in found if name.startswith("tfuq_monitor")]


def test_readiness(app):
    assert json.loads(asked(app, "/ready")[2]) == {"status": "ready"}
    app.state.service.ask_to_stop()
    status, _, content = asked(app, "/ready")
    assert (status, json.loads(content)) == (503, {"status": "stopping"})
    assert asked(app, "/live")[0] == 200  # alive, and what comes is still answered
    assert asked(app, "/predict", array([1, 2, 3]))[0] == 200
    assert figures(app)["tfuq_ready",] == 0


# --- Description --------------------------------------------------------------------------------


def test_openapi(app):
    """Every path; the bodies that are taken; answers have the fields that the schema names."""
    status, _, content = asked(app, "/openapi.json")
    described = json.loads(content)
    assert status == 200
    paths = {"/predict", "/labels", "/monitor", "/live", "/ready", "/health", "/metrics"}
    assert set(described["paths"]) == paths | {"/metadata"}
    predict = described["paths"]["/predict"]["post"]
    kinds = {"image/png", "image/jpeg", "application/x-npy", "application/json"}
    assert set(predict["requestBody"]["content"]) == kinds
    one, several = predict["responses"]["200"]["content"]["application/json"]["schema"]["oneOf"]
    answer = json.loads(asked(app, "/predict", array([1, 2, 3]))[2])
    assert set(one["required"]) <= set(answer) <= set(one["properties"])
    assert several["properties"]["predictions"]["items"] == one
    status, _, content = asked(app, "/predict", b"none")
    schema = predict["responses"][str(status)]["content"]["application/json"]["schema"]
    assert set(json.loads(content)) == set(schema["properties"])
    for page in ("/docs", "/redoc"):  # which would load scripts from elsewhere
        assert asked(app, page)[0] == 404


# --- Containers ---------------------------------------------------------------------------------


def instructions(text):
    """`(name, rest)` of each line of a Dockerfile."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def test_dockerfile():
    """What it copies is there, it needs no root, and its command is one that `tfuq serve` takes."""
    found = instructions((EXAMPLE / "Dockerfile").read_text())
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "VOLUME", "STOPSIGNAL"}
    assert {name for name, _ in found} == known | {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert found[0][0] == "FROM" and found[-1][0] == "CMD"
    for name, rest in found:
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
    last = dict(found)
    assert last["USER"] not in ("root", "0")
    words = [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]
    assert words[:2] == ["tfuq", "serve"]
    options = command.parse(words[2:])
    assert str(options.port) == last["EXPOSE"] and options.host == "0.0.0.0"
    assert [str(options.model)] == json.loads(last["VOLUME"])
    (check,) = re.findall(r"CMD (\[.*\])", last["HEALTHCHECK"])
    python, option, code = json.loads(check)
    assert (python, option) == ("python", "-c") and f":{options.port}/ready" in code
    compile(code, "HEALTHCHECK", "exec")
    (extra,) = re.findall(r'"\.\[(\w+)\]"', last["RUN"])
    assert f'"{extra}": SERVING' in (ROOT / "setup.py").read_text()


def test_compose(app):
    """Files and ports that it names are there; alerts name metrics that the server has."""
    compose = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())
    model, prometheus = compose["services"]["model"], compose["services"]["prometheus"]
    root = (EXAMPLE / model["build"]["context"]).resolve()
    assert root == ROOT and (root / model["build"]["dockerfile"]).samefile(EXAMPLE / "Dockerfile")
    assert model["ports"][0].endswith(":8000:8000")
    mounted = [volume.split(":") for volume in prometheus["volumes"]]
    assert all((EXAMPLE / source).is_file() and mode == "ro" for source, _, mode in mounted)
    config = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())
    assert set(config["rule_files"]) < {target for _, target, _ in mounted}
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["model:8000"]}]
    assert asked(app, scrape["metrics_path"])[0] == 200
    known = {name for name, *_ in figures(app)} | {"tfuq_refusals_total"}
    (group,) = yaml.safe_load((EXAMPLE / "alerts.yml").read_text())["groups"]
    named = {name for rule in group["rules"] for name in re.findall(r"tfuq_\w+", rule["expr"])}
    assert len(named) == 5 and named <= known
    grace = command.parse(["/model", "--drain", "5", "--grace", "20"])
    assert int(model["stop_grace_period"].rstrip("s")) > grace.drain + grace.grace


# --- Other servers ------------------------------------------------------------------------------


def settings(text):
    """A text of Protocol Buffers as nested dicts."""
    words = re.findall(r'"[^"]*"|[\w.-]+|[{}]', re.sub(r"#.*", "", text).replace(":", " "))

    def read(words):
        found = {}
        for name in words:
            if name == "}":
                break
            value = next(words)
            found[name] = read(words) if value == "{" else json.loads(value)
        return found

    return read(iter(words))


def test_tensorflow_serving(tmp_path):
    path = tmp_path / "digits" / "3"
    export(small(), path, serving="tensorflow-serving", rule=RejectionRule("confidence", 0.7))
    assert (path / "saved_model.pb").is_file()  # versions are folders whose names are numbers
    folder = path.parent
    (config,) = settings((folder / "models.config").read_text())["model_config_list"].values()
    assert config["name"] == "digits" and config["base_path"] == "/models/digits"
    assert config["model_platform"] == "tensorflow"
    monitoring = settings((folder / "monitoring.config").read_text())["prometheus_config"]
    assert monitoring["path"].startswith("/monitoring") and monitoring["enable"] is True
    batching = settings((folder / "batching.config").read_text())
    assert batching["max_batch_size"] == {"value": 32}
    named = re.findall(r"=/models/digits/(\S+)", (folder / "models.config").read_text())
    assert set(named) == {file.name for file in folder.glob("*.config")}
    export(small(), folder / "4", serving="tensorflow-serving")
    assert sorted(file.name for file in folder.iterdir() if file.is_dir()) == ["3", "4"]


def test_kserve(tmp_path):
    export(small(), tmp_path / "digits" / "1", serving="kserve")
    text = (tmp_path / "digits" / "inference_service.yaml").read_text()
    service = yaml.safe_load(text)
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["kind"] == "InferenceService" and service["metadata"]["name"] == "digits"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "tensorflow"}
    assert model["storageUri"].endswith("/digits")


@pytest.mark.parametrize(
    "path, serving, says",
    [
        ("digits/1", "torchserve", "must be None or one of tensorflow-serving, kserve"),
        ("digits/1", True, "must be None or one of"),
        ("digits/latest", "tensorflow-serving", "`path` must end in a version"),
        ("digits", "tensorflow-serving", "`path` must end in a version"),
        ("digits/01", "kserve", "`path` must end in a version"),
        ("digits/0", "kserve", "`path` must end in a version"),
        ("My_Digits/1", "kserve", "small letters, digits and hyphens"),
        ("my digits/1", "tensorflow-serving", "must have the model's name"),
    ],
)
@pytest.mark.every_case
def test_what_no_server_finds_is_refused(path, serving, says, tmp_path, counts):
    with pytest.raises(ValueError, match=says):
        export(small(), tmp_path / path, serving=serving)
    assert not (tmp_path / path).exists()
    counts("misuse rows, refused")
