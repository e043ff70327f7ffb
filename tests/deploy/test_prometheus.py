"""Prometheus itself: rules by promtool, and a real server that scrapes a process and raises the alarm."""

import json
import shutil
import socket
import subprocess
import time

import pytest
import requests
import yaml
from prometheus_client import start_http_server

from fintune.monitoring.metrics import Metrics
from fintune.tasks import Prediction


def test_configuration_and_rules_are_valid_and_fire_as_their_unit_tests_say(tool):
    tool("promtool", "check", "config", "--syntax-only", "prometheus/prometheus.yml")
    tool("promtool", "check", "rules", "prometheus/alerts.yml")
    tool("promtool", "test", "rules", "prometheus/alerts.test.yml")


def test_every_alert_has_a_unit_test(deploy):
    rules = yaml.safe_load((deploy / "prometheus/alerts.yml").read_text())["groups"]
    tests = yaml.safe_load((deploy / "prometheus/alerts.test.yml").read_text())["tests"]
    fired = {case["alertname"] for t in tests for case in t["alert_rule_test"] if case["exp_alerts"]}
    assert {rule["alert"] for group in rules for rule in group["rules"]} == fired


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def exporter():
    """Metrics of a process with answers, on a real port."""
    metrics = Metrics()
    for i in range(50):
        answer = Prediction("neutral", {"neutral": 0.9, "positive": 0.1})
        metrics.observe_request("sentiment", 0.01 * i, prediction=answer, input_tokens=40, queue_seconds=0.01)
    port = _free_port()
    server, thread = start_http_server(port, "127.0.0.1", registry=metrics.registry)
    yield metrics, port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def prometheus(exporter, tmp_path_factory):
    """The address of a real Prometheus that scrapes the exporter, with our alerts less their patience."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (Debian's package of that name)")
    from .conftest import DEPLOY

    folder = tmp_path_factory.mktemp("prometheus")
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "0s"
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    job = {"job_name": "fintune", "static_configs": [{"targets": [f"127.0.0.1:{exporter[1]}"]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({**config, "scrape_configs": [job]}))
    port = _free_port()
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: requests.get(f"{address}/-/ready", timeout=2).ok, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _until(true, log=None, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text() if log else "it did not happen in time")


def _get(address, path, **parameters):
    reply = requests.get(f"{address}/api/v1/{path}", params=parameters, timeout=5).json()
    assert reply["status"] == "success", reply
    return reply["data"]


def test_an_alert_fires_when_a_task_drifts_and_ends_when_it_does_not(exporter, prometheus):
    metrics, _ = exporter
    _until(lambda: _get(prometheus, "query", query="fintune_build_info")["result"])

    def firing():
        alerts = _get(prometheus, "alerts")["alerts"]
        return [a for a in alerts if a["labels"]["alertname"] == "FintuneDrift" and a["state"] == "firing"]

    def report(status):
        found = {"psi": 0.4, "js": 0.1}
        return {"tasks": {"sentiment": {"status": status, "signals": {"labels": found}}}}

    metrics.show_drift(report("watch"))
    _until(lambda: _get(prometheus, "query", query="fintune_drift_status == 1")["result"])
    assert firing() == []
    metrics.show_drift(report("drift"))
    _until(firing)
    (alert,) = firing()
    assert alert["labels"]["task"] == "sentiment" and alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["summary"] == "sentiment: live traffic differs from the test data"
    metrics.show_drift(report("stable"))
    _until(lambda: not firing())


def test_every_query_of_the_dashboard_is_one_prometheus_answers(prometheus, deploy):
    dashboard = json.loads((deploy / "grafana/fintune.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 20
    for query in queries:
        _get(prometheus, "query", query=query.replace("$__rate_interval", "1m").replace("$task", ".*"))


def test_labels_and_numbers_arrive_as_they_were_counted(prometheus):
    def asked(query):
        return [
            (row["metric"].get("label"), row["value"][1])
            for row in _get(prometheus, "query", query=query)["result"]
        ]

    _until(lambda: asked('fintune_answers_total{task="sentiment"}'))
    assert asked('fintune_answers_total{task="sentiment"}') == [("neutral", "50")]
    assert asked('fintune_tokens_total{kind="prompt"}') == [(None, "2000")]
