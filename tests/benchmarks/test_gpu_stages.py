"""What the stages read out of other programs' output, and what they hand to them."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import kinds, timing, tiny
from benchmarks.gpu.cases import PRECISIONS, sizes
from benchmarks.gpu.operands import Operands, errors, moved_bytes, told, weight_shape
from benchmarks.gpu.stages import build, counters, sanitize, step, tests
from benchmarks.gpu.stages.provenance import source_digest
from fedsparse.bench.cases import LayerCase
from fedsparse.nn import fold

GATHER = (
    "_ZN9fedsparse5csr1648_GLOBAL__N__4ab11071_15_csr16_gather_cu_ec1562ec13gather_kernelIfLi4ELi4EEEvNS1_6GatherIT_EE"
)
PTXAS = f"""
ptxas info    : Compiling entry function '{GATHER}' for 'sm_90'
ptxas info    : Function properties for {GATHER}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 74 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z10sgd_kernelPf' for 'sm_90'
ptxas info    : Function properties for _Z10sgd_kernelPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""


def test_registers_are_read_from_ptxas():
    first, second = build.registers(PTXAS)
    assert (first["kernel"], first["registers"], first["spilled"], first["stack"]) == ("gather_kernel", 74, 0, 0)
    assert (second["kernel"], second["registers"], second["spilled"], second["stack"]) == ("sgd_kernel", 30, 20, 16)
    assert second["architecture"] == "sm_90"
    assert next(build.registers(PTXAS.replace(GATHER, "main")))["kernel"] == "main"


def test_the_build_asks_for_cuda_and_leaves_the_tree_alone():
    command = build.configure_command("90")
    assert {"-DFEDSPARSE_CUDA=on", "-DFEDSPARSE_CUDA_ARCHS=90-real"} <= set(command)
    (library,) = (part for part in command if part.startswith("-DCMAKE_LIBRARY_OUTPUT_DIRECTORY="))
    assert library.endswith("build/gpu/lib")


def test_outcomes_are_read_from_pytest():
    assert tests.outcome("tests/a.py::test_b[x-1] PASSED       [ 10%]") == ("tests/a.py::test_b[x-1]", "passed", "")
    skipped = tests.outcome("tests/a.py::test_b SKIPPED (no CUDA device)      [ 10%]")
    assert skipped == ("tests/a.py::test_b", "skipped", "no CUDA device")
    assert tests.outcome("FAILED tests/a.py::test_b - assert 1") is None
    assert tests.outcome("12 passed") is None


def test_files_with_gpu_tests_are_found(tmp_path):
    (tmp_path / "tests" / "x").mkdir(parents=True)
    (tmp_path / "tests" / "x" / "test_a.py").write_text("@pytest.mark.gpu\ndef test_a(): ...")
    (tmp_path / "tests" / "test_b.py").write_text("def test_b(): ...")
    assert tests.files_with_gpu_tests(tmp_path) == ["tests/x/test_a.py"]
    assert "tests/backends/test_cuda.py" in tests.files_with_gpu_tests()


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (0, "element/cuda conv\n========= ERROR SUMMARY: 0 errors", "clean"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "clean"),
        (9, "========= Invalid __global__ write of size 4\n========= ERROR SUMMARY: 3 errors", "found"),
        (
            1,
            "========= Error: Device not supported. Please refer to the documentation",
            "refused: Device not supported",
        ),
        (1, "Traceback (most recent call last):\nImportError: x\n========= ERROR SUMMARY: 0 errors", "ended with 1"),
        (0, "nothing at all", "ended with 0"),
    ],
)
def test_verdicts_of_the_sanitizer(status, text, expected):
    assert sanitize.verdict(status, text)["verdict"] == expected


def test_counters_are_read_from_the_raw_page():
    text = """==PROF== Connected to process 7
"ID","Kernel Name","Grid Size","gpu__time_duration.sum","launch__registers_per_thread","other"
"","","","us","register/thread","%"
"0","gather_kernel<float, 4>(Taps, int)","(4, 2, 1)","12.5","74","3"
"1","gather_kernel<float, 4>(Taps, int)","(4, 2, 1)","12.6","74","3"
==PROF== Disconnected
"""
    first, second = counters.parsed(text)
    assert first == {
        "kernel": "gather_kernel<float, 4>(Taps, int)",
        "grid": "(4, 2, 1)",
        "gpu__time_duration.sum": "12.5 us",
        "launch__registers_per_thread": "74 register/thread",
    }
    assert second["gpu__time_duration.sum"] == "12.6 us"
    assert list(counters.parsed("==ERROR== ERR_NVGPUCTRPERM")) == []
    assert "--clock-control=none" in counters.command("gather_kernel")


def test_the_digest_follows_the_sources(tmp_path):
    (tmp_path / "fedsparse").mkdir()
    (tmp_path / "fedsparse" / "a.py").write_text("a = 1")
    before = source_digest(tmp_path)
    (tmp_path / "fedsparse" / "_C.so").write_text("built")
    assert source_digest(tmp_path) == before
    (tmp_path / "fedsparse" / "a.py").write_text("a = 2")
    assert source_digest(tmp_path) != before


# ---- kinds
def test_kinds_name_backends_and_precisions_that_exist():
    from benchmarks.gpu.cases import COMPARED, PRECISIONS
    from fedsparse.backends import names

    assert len({kind.name for kind in kinds.KINDS}) == len(kinds.KINDS)
    for kind in kinds.KINDS:
        assert kind.backend in names()
        assert set(kind.precisions) <= PRECISIONS.keys() == COMPARED.keys()


def test_masks_of_units_are_whole_units(generator):
    mask = kinds.units(4, 2)((16, 8, 3, 3), 0.3, generator)
    units = mask.view(4, 4, 4, 2, 3, 3).permute(1, 3, 0, 2, 4, 5).reshape(8, -1)
    assert torch.equal(units.all(0), units.any(0))
    assert 0 < mask.float().mean() < 1
    elements = kinds.elements((64, 64, 3, 3), 0.3, generator)
    assert elements.float().mean() == pytest.approx(0.3, abs=0.02)


def test_tiny_cases_run(capsys):
    tiny.main(["element/cpu"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_folded_clients_that_differ_from_themselves_alone_are_not_timed(monkeypatch):
    def swapped(networks):
        whole = fold(networks)
        whole.conv1.weight.data = whole.conv1.weight.data.flip(0)
        return whole

    monkeypatch.setattr(step, "fold", swapped)
    kind = next(kind for kind in kinds.KINDS if kind.name == "element/cpu")
    folded = step.Contender(kind.name, "folded", PRECISIONS["fp32"], 2, kind, clients=2)
    wide = replace(sizes(cpu=True), width=4)
    with pytest.raises(ValueError, match="the last of 2 folded networks is off by"):
        list(step._measured(folded, wide, "cpu"))


# ---- numbers
def test_bytes_of_a_layer():
    """8 channels of 6x6 to 4 of 3x3, three samples: 864 numbers in, 108 out, 7 weights."""
    case = LayerCase(8, 4, 6, stride=2, batch=3)
    assert moved_bytes(case, 7, 2) == 2 * (864 + 108 + 7)
    assert weight_shape(case) == (4, 8, 3, 3)
    assert told(case, 7, torch.float32, "cpu").output == (3, 4, 3, 3)


def test_errors_are_relative_and_at_the_mask(generator):
    case = LayerCase(5, 3, None, batch=2)
    operands = Operands.draw(case, torch.float32, "cpu", seed=1)
    mask = torch.rand(3, 5, generator=generator) < 0.5
    weight = operands.weight * mask
    right = {"forward": operands.x @ weight.t(), "grad_x": operands.grad @ weight,
             "grad_w": (operands.grad.t() @ operands.x)[mask]}  # fmt: skip
    assert max(errors(right, operands, mask, case).values()) < 1e-6
    assert errors({"grad_x": 1.5 * right["grad_x"]}, operands, mask, case)["grad_x"] == pytest.approx(0.5, rel=1e-5)


def test_copies_fill_the_caches_within_limits():
    assert timing.copies(10, 1000) == 64
    assert timing.copies(100, 1000) == 10
    assert timing.copies(10_000, 1000) == 4
    assert timing.copies(0, 1000) == 64


def test_times_are_of_one_call():
    calls: list[int] = []
    times = timing.measured([lambda: calls.append(1), lambda: calls.append(2)], repeats=5, cuda=False)
    assert calls == [1, 2] * (3 + 5)
    assert times.graph is None
    assert times.to_row()["no_graph"] == "no CUDA device"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replayed_graph_does_the_work_again():
    x = torch.zeros(8, device="cuda")
    replay = timing.replayed(lambda: x.add_(1))
    torch.cuda.synchronize()
    before = float(x[0])
    replay()
    assert float(x[0]) == before + 1
