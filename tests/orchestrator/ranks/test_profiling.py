"""Where the time of a step went: by intervals that are made here, and by a run."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from orchestrator.ranks.loop import StepResult
from orchestrator.ranks.profiling import (
    CATEGORIES,
    SKIPPED,
    STEP,
    StepProfiler,
    category,
    overlap,
    split_time,
    union,
    what_ran,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::mm", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>", "matmul"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_64x3_nt", "matmul"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("hoofprint::attention_backward", "attention"),
        ("hoofprint::rms_norm_forward", "other kernels"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "exposed communication"),
        ("nccl:_all_gather_base", "exposed communication"),
        ("gloo:all_reduce", "exposed communication"),
        ("triton_red_fused_add_mean_mul_pow_rsqrt_0", "other kernels"),
        ("aten::embedding", "other kernels"),
    ],
)
def test_a_name_has_its_category(name: str, expected: str) -> None:
    assert category(name) == expected


def test_a_union_counts_each_moment_once() -> None:
    assert union([(5, 6), (0, 2), (1, 3), (3, 4), (2, 2)]) == [(0, 4), (5, 6)]
    assert union([]) == []


def test_an_overlap_is_what_both_have() -> None:
    assert overlap([(0, 4), (5, 6), (8, 9)], [(1, 2), (3, 5.5), (7, 10)]) == [(1, 2), (3, 4), (5, 5.5), (8, 9)]
    assert overlap([(0, 1)], []) == overlap([], [(0, 1)]) == overlap([(0, 1)], [(1, 2)]) == []


def test_on_a_gpu_kernels_count_and_not_what_is_drawn_over_them() -> None:
    def event(name: str, start_us: float, end_us: float, gpu: bool = True, annotation: bool = False) -> FunctionEvent:
        kind = DeviceType.CUDA if gpu else DeviceType.CPU
        return FunctionEvent(1, name, 1, start_us, end_us, device_type=kind, is_user_annotation=annotation)

    events = [
        event(STEP, 100, 200, gpu=False, annotation=True),
        event(STEP, 105, 199, annotation=True),
        event("FSDP::all_gather", 110, 180, annotation=True),
        event("ncclDevKernel_AllGather_RING_LL", 110, 150),
        event("nvjet_tst_128x256", 140, 170),
        event("aten::mm", 101, 102, gpu=False),  # where it was launched
        event("nvjet_tst_128x256", 220, 270),  # of an evaluation
    ]
    shares = split_time(what_ran(events, "cuda"), wall=100.0, data_wait=0.0)
    assert shares == pytest.approx(
        {
            "matmul": 0.3,
            "attention": 0.0,
            "other kernels": 0.0,
            "exposed communication": 0.3,
            "data wait": 0.0,
            "nothing ran": 0.4,
        }
    )


def test_on_the_cpu_what_a_compiler_fused_is_other_kernels() -> None:
    names = ((STEP, 0, 100), ("## Call CompiledFxGraph fgemmz ##", 10, 60), ("aten::mm", 20, 50), ("Compiled", 0, 90))
    events = [FunctionEvent(1, name, 1, start_us, end_us) for name, start_us, end_us in names]
    shares = split_time(what_ran(events, "cpu"), wall=100.0, data_wait=0.0)
    assert (shares["matmul"], shares["other kernels"], shares["nothing ran"]) == pytest.approx((0.3, 0.2, 0.5))


def test_only_what_nothing_hides_is_exposed() -> None:
    ran = {
        "matmul": [(0.0, 40.0), (30.0, 50.0)],
        "attention": [(45.0, 60.0)],
        "other kernels": [(0.0, 55.0), (60.0, 70.0)],
        "exposed communication": [(10.0, 65.0), (68.0, 80.0)],
    }
    shares = split_time(ran, wall=100.0, data_wait=5.0)
    assert shares == pytest.approx(
        {
            "matmul": 0.50,
            "attention": 0.10,
            "other kernels": 0.10,
            "exposed communication": 0.10,
            "data wait": 0.05,
            "nothing ran": 0.15,
        }
    )


def steps_of_products() -> Iterator[StepResult]:
    x = torch.randn(400, 400)
    while True:
        torch.mm(x, x)
        time.sleep(0.02)
        yield StepResult(1.0, 1.0, 0.1, False, 0.01)


def test_it_records_the_steps_asked_for_and_no_others(tmp_path: Path) -> None:
    made = steps_of_products()
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.txt").touch()  # of an attempt before
    profiler = StepProfiler(lambda step: next(made), tmp_path, 3, torch.device("cpu"), print)
    for step in range(11, 11 + SKIPPED + 2):
        profiler(step)
    assert not (tmp_path / "profile").exists()
    for step in range(13 + 2, 20):
        profiler(step)
    profiler.finish()
    found = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert (found["steps"], found["first_step"], found["device"]) == (3, 11 + SKIPPED, "cpu")
    assert set(found["shares"]) == {*CATEGORIES, "data wait", "nothing ran"}
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert found["shares"]["matmul"] > 0 and found["shares"]["exposed communication"] == 0
    assert found["shares"]["data wait"] == pytest.approx(0.03 / found["seconds"])
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 3
    assert "steps 13 to 15 of rank 0 on cpu" in (tmp_path / "profile" / "profile.txt").read_text()


def test_an_evaluation_between_two_steps_is_in_the_trace_and_not_in_the_shares(tmp_path: Path) -> None:
    made = steps_of_products()
    profiler = StepProfiler(lambda step: next(made), tmp_path, 2, torch.device("cpu"), print)
    x = torch.randn(400, 400)
    for step in range(1, SKIPPED + 3):
        profiler(step)
        for _ in range(200):
            torch.bmm(x[None], x[None])
    found = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    ran = {name: [e for e in trace["traceEvents"] if e.get("name") == name] for name in ("aten::mm", "aten::bmm", STEP)}
    assert [len(events) for events in ran.values()] == [2, 200, 2]
    within_s = sum(event["dur"] for event in ran["aten::mm"]) / 1e6
    assert found["shares"]["matmul"] == pytest.approx(within_s / found["seconds"], rel=0.05)


def test_a_disk_that_refuses_the_profile_costs_a_warning_and_no_training(tmp_path: Path) -> None:
    made = steps_of_products()
    said: list[str] = []
    profiler = StepProfiler(lambda step: next(made), tmp_path, 1, torch.device("cpu"), said.append)
    (tmp_path / "profile").touch()  # where its folder should be
    results = [profiler(step) for step in range(1, SKIPPED + 3)]
    assert all(result.loss == 1.0 for result in results)
    assert said == [f"the profile of the steps could not be written to {tmp_path / 'profile'}: File exists"]


def test_a_training_that_ends_early_leaves_what_there_is(tmp_path: Path) -> None:
    made = steps_of_products()
    profiler = StepProfiler(lambda step: next(made), tmp_path, 5, torch.device("cpu"), print)
    for step in range(1, SKIPPED + 2):
        profiler(step)
    profiler.finish()
    assert json.loads((tmp_path / "profile" / "profile.json").read_text())["steps"] == 1
