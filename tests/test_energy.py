"""Counters of energy: a folder in the place of sysfs, a module in the place of NVML."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fedsparse as fs
from fedsparse import energy
from fedsparse.energy import Meter, Unavailable
from fedsparse.measure import Reading

RANGE = 262_143_328_850  # microjoules


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Writes zones and moves their counters."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def write(zone, name, microjoules, wraps_at=RANGE):
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        return folder / "energy_uj"

    return write


def test_packages_and_their_memory_are_summed_and_parts_of_a_package_are_not(powercap):
    zones = [
        powercap("intel-rapl:0", "package-0", 1_000_000),
        powercap("intel-rapl:1", "package-1", 5_000_000),
        powercap("intel-rapl:0:0", "core", 0),
        powercap("intel-rapl:0:1", "dram", 2_000_000),
        powercap("intel-rapl:2", "psys", 0),
    ]
    meter = Meter("cpu")
    for file, microjoules in zip(zones, (3_000_000, 5_500_000, 900_000, 2_250_000, 9_000_000), strict=True):
        file.write_text(str(microjoules))
    assert meter.joules() == pytest.approx(2.0 + 0.5 + 0.25)


def test_a_counter_that_wrapped_around_goes_on(powercap):
    file = powercap("intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = Meter("cpu")
    file.write_text("500000")
    assert meter.joules() == pytest.approx(1.5)


def test_a_counter_that_may_have_wrapped_twice_gives_nothing(powercap, monkeypatch):
    powercap("intel-rapl:0", "package-0", 0, wraps_at=60_000_000)
    now = [100.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    meter = Meter("cpu")
    now[0] += 0.059
    assert meter.joules() == 0
    now[0] += 0.002
    with pytest.raises(Unavailable, match="wraps around at 60 J, perhaps twice in 0 s; measure shorter"):
        meter.joules()


def test_a_system_without_counters_says_so(powercap, tmp_path):
    with pytest.raises(Unavailable, match=f"no RAPL counters in {tmp_path}"):
        Meter("cpu").joules()
    powercap("intel-rapl:0", "psys", 1)
    with pytest.raises(Unavailable, match="no RAPL counters"):
        Meter("cpu").joules()


def test_a_counter_for_administrators_alone_says_so(powercap, monkeypatch):
    file = powercap("intel-rapl:0", "package-0", 1)
    real = type(file).read_text

    def refused(path, *arguments, **options):  # root reads a file of any mode, so the refusal is played
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(type(file), "read_text", refused)
    with fs.measure() as m:
        pass
    assert (m.joules.value, m.joules.source) == (None, "unavailable")
    assert m.joules.reason == f"{file}: permission denied; an administrator may allow it: chmod a+r {file}"


def test_a_damaged_counter_says_so(powercap):
    powercap("intel-rapl:0", "package-0", "many")
    with pytest.raises(Unavailable, match="energy_uj cannot be read: invalid literal"):
        Meter("cpu").joules()


def test_measure_gives_joules_with_their_source(powercap):
    file = powercap("intel-rapl:0", "package-0", 0)
    with fs.measure() as m:
        file.write_text("4500000")
    assert m.joules == Reading(4.5, "J", "measured")


def test_a_run_books_the_joules_of_its_exchanges(powercap, tmp_path, monkeypatch):
    file = powercap("intel-rapl:0", "package-0", 0)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    settings = "[run]\nrounds = 2\n[data]\nclients = 2\ntrain_limit = 60\n[model]\nhidden = [8]\n"
    moved = []
    real = fs.measure.__enter__

    def entered(self):  # each client draws one joule
        moved.append(None)
        file.write_text(str(len(moved) * 1_000_000))
        return real(self)

    monkeypatch.setattr(fs.measure, "__enter__", entered)
    result = fs.run(fs.load_config(settings))
    assert [record["joules"] for record in result.metrics] == [2.0, 2.0]
    assert result.final["joules"] == 4.0


@pytest.fixture
def nvml(monkeypatch):
    """Millijoules of two GPUs, by UUID; torch numbers them the other way round."""
    counters = {"GPU-b": 1000, "GPU-a": 500}
    module = ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})

    def total(handle):
        if counters[handle] is None:
            raise module.NVMLError("Not Supported")
        return counters[handle]

    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    module.nvmlDeviceGetTotalEnergyConsumption = total
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid="ab"[i]))
    return counters


def test_a_gpu_is_found_by_its_uuid(nvml):
    meter = Meter("cuda:1")
    nvml.update({"GPU-b": 3500, "GPU-a": 9999})
    assert meter.joules() == pytest.approx(2.5)


def test_cuda_without_a_number_means_all(nvml):
    meter = Meter("cuda")
    nvml.update({"GPU-b": 3500, "GPU-a": 1500})
    assert meter.joules() == pytest.approx(3.5)


def test_a_gpu_that_does_not_count_says_so(nvml):
    nvml["GPU-a"] = None
    with pytest.raises(Unavailable, match="GPU-a: Not Supported; energy is counted from Volta on"):
        Meter("cuda:0").joules()


def test_without_nvml_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match=r"pip install 'fedsparse\[energy\]'"):
        Meter("cuda:0").joules()


def test_without_a_gpu_there_is_nothing_to_ask(nvml, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert nvml
    with pytest.raises(Unavailable, match="torch sees no CUDA device"):
        Meter("cuda").joules()
