"""Every query of the Grafana dashboard has data, where Prometheus watches a server as docker/compose.yaml has it."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_for

from benchmarks.launch import ROOT, Server, free_port
from benchmarks.recall import Language

DOCKER = ROOT / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "heterocache.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
RATE_INTERVAL = "20s"  # Grafana puts four scrape intervals there


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What starts a Prometheus that watches a server, as the configuration says but for the address and the haste."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (Debian: apt install prometheus)")
    folder, running = tmp_path_factory.mktemp("prometheus"), []

    def start(server: Server) -> str:
        config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            running.append(subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log))
        return f"http://{address}/api/v1/query?query="

    yield start
    for process in running:
        process.kill()
        process.wait()


def ask(address: str, query: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(address + urllib.parse.quote(query), timeout=60) as reply:
        result = json.loads(reply.read())
    assert result["status"] == "success", result
    found: list[dict[str, Any]] = result["data"]["result"]
    return found


@pytest.mark.server("usual")
def test_every_query_of_the_dashboard_has_data(server: Server, prometheus: Any, language: Language) -> None:
    address = prometheus(server)
    document = language.document(3, 3000, 40)
    lacking, rounds = list(QUERIES), itertools.count()

    def complete() -> bool:
        question = language.ask(document, next(rounds), 4)
        server.generate(document.ids + question.ids, question.max_answer_tokens, stop=["\n"])
        lacking[:] = [each for each in QUERIES if not _here(address, each)]
        return not lacking

    wait_for(complete, lambda: f"these have no data: {lacking}")


def _here(address: str, query: str) -> bool:
    try:
        return bool(ask(address, query.replace("$__rate_interval", RATE_INTERVAL)))
    except OSError:  # it is not up yet
        return False


def test_compose_mounts_what_is_there_and_pins_its_images() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for service in compose["services"].values():
        image = service.get("image")
        assert image is None or image.rpartition(":")[2][0] in "v0123456789"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("$") or source in compose["volumes"] or (DOCKER / source).exists(), volume
    build = compose["services"]["server"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).exists()
    words = compose["services"]["server"]["command"]
    assert "--enable-metrics" in words and words[words.index("--kv-policy") + 1] == "heterocache"


def test_prometheus_reads_its_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    command = ["promtool", "check", "config", str(Path(DOCKER, "prometheus.yml"))]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_grafana_finds_its_source_and_its_panels() -> None:
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert source["url"].split("//")[1].split(":")[0] in compose["services"]
