"""The Prometheus endpoint as a scraper sees it."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from energy_fakes import FakeSensor, reading
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from energy.metering.meter import Meter
from energy.metering.prometheus import Endpoint, serve
from energy.sensors import Reading


def sensors() -> list[FakeSensor]:
    counted = FakeSensor("GPU-1", [reading(100.0, 150.0), reading(160.0, 250.0), reading(200.0, 90.0)])
    lost = FakeSensor("GPU-2", [reading(5.0, 80.0), reading(9.0, 80.0), Reading(error="GPU is lost")])
    part = FakeSensor("GPU-3", [reading(0.0, 70.0), reading(700.0, 70.0), reading(700.0, 70.0)])
    part._about["share"] = 2 / 7  # type: ignore[assignment]
    return [counted, lost, part]


@pytest.fixture
def meter() -> Meter:
    return Meter(node="n1", sensors=sensors(), discover_sensors=False, interval_s=2.0)


@pytest.fixture
def endpoint(meter: Meter) -> Iterator[Endpoint]:
    endpoint = serve(meter, 0, run="run-1")
    yield endpoint
    endpoint.close()


def scrape(endpoint: Endpoint) -> dict[str, Metric]:
    with urllib.request.urlopen(endpoint.url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def values(family: Metric, label: str = "uuid") -> dict[str, float]:
    return {sample.labels[label]: sample.value for sample in family.samples}


def test_joules_are_counters_and_watts_are_gauges(meter: Meter, endpoint: Endpoint) -> None:
    meter.sample()
    meter.sample()
    found = scrape(endpoint)
    energy, power = found["hoofprint_device_energy_joules"], found["hoofprint_device_power_watts"]
    assert (energy.type, power.type) == ("counter", "gauge")
    assert {sample.name for sample in energy.samples} == {"hoofprint_device_energy_joules_total"}
    assert values(energy) == {"GPU-1": 60.0, "GPU-2": 4.0, "GPU-3": pytest.approx(200.0)}
    assert values(power) == {"GPU-1": 250.0, "GPU-2": 80.0, "GPU-3": pytest.approx(20.0)}
    assert energy.samples[0].labels == {
        "run": "run-1", "node": "n1", "uuid": "GPU-1", "name": "fake GPU-1", "kind": "gpu", "method": "counter",
    }  # fmt: skip
    assert energy.samples[2].labels["method"] == "assumed"  # a MIG instance's share is a rule, no measurement
    assert all(family.documentation for family in found.values())


def test_a_scrape_reads_no_sensor_and_the_counter_follows_the_meter(meter: Meter, endpoint: Endpoint) -> None:
    meter.sample()
    meter.sample()
    assert values(scrape(endpoint)["hoofprint_device_energy_joules"])["GPU-1"] == 60.0
    assert values(scrape(endpoint)["hoofprint_device_energy_joules"])["GPU-1"] == 60.0
    meter.sample()
    assert values(scrape(endpoint)["hoofprint_device_energy_joules"])["GPU-1"] == 100.0


def test_a_missing_device_has_no_power_and_keeps_its_energy(meter: Meter, endpoint: Endpoint) -> None:
    for _ in range(3):
        meter.sample()
    found = scrape(endpoint)
    assert values(found["hoofprint_device_missing"]) == {"GPU-1": 0.0, "GPU-2": 1.0, "GPU-3": 0.0}
    assert set(values(found["hoofprint_device_power_watts"])) == {"GPU-1", "GPU-3"}
    assert values(found["hoofprint_device_energy_joules"])["GPU-2"] == pytest.approx(4.0, abs=0.5)


def test_the_meter_tells_of_itself(meter: Meter, endpoint: Endpoint) -> None:
    meter.sample()
    meter.warnings.append("something")
    found = scrape(endpoint)
    assert values(found["hoofprint_meter_readings"], "run") == {"run-1": 1.0}
    assert values(found["hoofprint_meter_warnings"], "node") == {"n1": 1.0}
    assert found["hoofprint_meter_cpu_seconds"].type == "counter"
    (info,) = found["hoofprint_meter_info"].samples
    assert info.value == 1.0 and info.labels["interval_s"] == "2" and info.labels["version"]


def test_it_listens_on_this_machine_alone(meter: Meter, endpoint: Endpoint) -> None:
    assert endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
    with socket.socket() as elsewhere:  # another loopback address stands for any other interface
        assert elsewhere.connect_ex(("127.0.0.2", endpoint.port)) != 0


def test_a_port_in_use_is_said_and_a_closed_one_is_free(meter: Meter) -> None:
    first = serve(meter, 0)
    with pytest.raises(ValueError, match=f"port {first.port} on 127.0.0.1 is in use"):
        serve(meter, first.port)
    first.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(first.url, timeout=10)
    again = serve(meter, first.port)
    assert again.port == first.port
    again.close()
    with pytest.raises(ValueError, match="expected 0 to 65535"):
        serve(meter, 70000)
