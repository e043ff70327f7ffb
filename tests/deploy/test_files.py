"""The deployment files, by what needs neither a cluster nor a container daemon; `make lint` lints them."""

import json
import re

import pytest
import yaml

from fintune.monitoring.metrics import Metrics


def test_the_dockerfile_runs_as_nobody_in_particular(deploy):
    text = (deploy / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", final, re.M) and "HEALTHCHECK" in final
    assert text.count("\nFROM ") == 2


def test_what_the_image_copies_is_let_through_by_dockerignore(deploy):
    allowed = {
        line[1:] for line in (deploy.parent / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = set()
    for line in (deploy / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= {name.removeprefix("./") for name in line.split()[1:-1]}
    assert copied == allowed
    assert all((deploy.parent / name).exists() for name in copied)


def test_the_images_packages_have_the_versions_of_constraints_and_a_hash(deploy):
    pins = set((deploy.parent / "constraints.txt").read_text().lower().replace("_", "-").splitlines())
    listed = [
        row for row in re.split(r"\n(?=\S)", (deploy / "requirements.txt").read_text()) if row[0] != "#"
    ]
    assert len(listed) > 80
    for row in listed:
        assert row.split()[0] in pins or row.startswith("setuptools=="), row
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", row)


def test_the_compose_files_mounts_exist_and_its_ports_are_this_machines(deploy):
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            known = source in compose["volumes"] or source.startswith("${")
            assert known or (deploy / source).exists(), mount


@pytest.mark.parametrize("variant", ["base", "gpu"])
def test_the_kubernetes_manifests_fit_their_schemas(tool, tmp_path, variant):
    built = tmp_path / "built.yaml"
    built.write_text(tool("kubectl", "kustomize", f"kubernetes/{variant}"))
    tool("kubernetes-validate", "--strict", built)
    objects = {item["kind"]: item for item in yaml.safe_load_all(built.read_text())}
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (variant == "gpu")
    assert container["image"].endswith("-gpu") == (variant == "gpu")
    chart = objects["HorizontalPodAutoscaler"]["spec"]
    assert chart["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    assert chart["metrics"][0]["pods"]["metric"]["name"] == "fintune_queue_length"


def test_the_schemas_would_refuse_a_wrong_manifest(tool, deploy, tmp_path):
    wrong = (
        (deploy / "kubernetes/base/autoscaling.yaml").read_text().replace("maxReplicas: 8", "maxReplica: 8")
    )
    (tmp_path / "wrong.yaml").write_text(wrong)
    with pytest.raises(AssertionError, match="maxReplica"):
        tool("kubernetes-validate", "--strict", tmp_path / "wrong.yaml")


def test_the_systemd_unit_is_understood_and_closed(tool, deploy, tmp_path):
    text = (deploy / "systemd/fintune.service").read_text()
    unit = tmp_path / "fintune.service"
    unit.write_text(text.replace("/opt/fintune/bin/fintune", "/bin/true"))  # verify looks for the program
    tool("systemd-analyze", "verify", unit)
    tool("systemd-analyze", "security", "--offline=true", "--threshold=30", unit)


def _metric_names():
    """Every series name of a process that has just started, and of one with answers."""
    kinds = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {family.name + ending for family in Metrics().registry.collect() for ending in kinds[family.type]}


@pytest.mark.parametrize("file", ["grafana/fintune.json", "prometheus/alerts.yml"])
def test_only_metrics_that_exist_are_asked_for(deploy, file):
    text = (deploy / file).read_text()
    if file.endswith(".json"):
        text = "\n".join(t["expr"] for p in json.loads(text)["panels"] for t in p.get("targets", ()))
    asked = set(re.findall(r"\bfintune_[a-z_]+", text))
    assert asked and asked - _metric_names() == set()


def test_the_dashboards_panels_do_not_overlap_and_all_have_a_unit(deploy):
    panels = json.loads((deploy / "grafana/fintune.json").read_text())["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in panels}) == len(panels)
