"""The benchmarks' arithmetic, and that the rival is the same network with the same components."""

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from reference.launching import forget

from experiments.benchmarks import _arms, _device, _harness, _kernels, accelerator, mechdiff_arm
from mechdiff.core.errors import MechdiffError
from mechdiff.core.presets import preset
from mechdiff.models.unet import components, count_parameters


def test_without_torch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MechdiffError, match=r"^torch is not installed; pip install .*\[torch\].*$"):
        _harness.compare("training_step", preset("tiny"), 1, 1)


def test_a_sweep_has_a_forecast_of_memory_that_grows_with_its_images():
    few, many = (mechdiff_arm.predicted(preset("tiny"), images) for images in (1, 2))
    assert 0 < few < many


def test_table_shows_ratios_of_medians_and_the_share_of_the_ceiling():
    ours = [{"seconds": s, "items": 8, "product": 100.0, "parameters": 5, "flops": 1e9} for s in (2, 1, 0.5)]
    rival = [{"seconds": s, "items": 8, "product": 40.0, "parameters": 5} for s in (4, 2, 4)]
    lines = _harness.table({_harness.MECHDIFF: ours, "PyTorch": rival}, "images", work=3).splitlines()
    assert lines[1].split() == ["mechdiff", "8.0", "4.0", "16.0", "1.00x", "24.0", "24%"]
    assert lines[2].split() == ["PyTorch", "2.0", "2.0", "4.0", "4.00x", "6.0", "6%"]
    assert "mechdiff 100, PyTorch 40" in lines[3]


def test_an_arm_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "endless.py").write_text("import sys, time\nprint(sys.argv[1:], flush=True)\ntime.sleep(60)")
    command = [sys.executable, "-c", _harness.WATCHED, "endless", "task"]
    arm = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with arm:
        assert arm.stdout.readline() == b"['task']\n" and arm.poll() is None
        arm.stdin.close()  # as when that process is killed
        assert arm.wait(30) == 1


def test_arms_that_would_not_do_the_same_work_are_refused(monkeypatch):
    results = iter([{"parameters": count, "items": 8} for count in (5, 5, 6)])
    monkeypatch.setattr(_harness, "_run", lambda *arguments: next(results))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    with pytest.raises(MechdiffError, match="the arms differ in parameters"):
        _harness.compare("training_step", preset("tiny"), 1, 1)


@pytest.mark.parametrize("name", ["tiny", "cpu16"])
def test_the_rival_has_our_parameters_and_components(name):
    pytest.importorskip("diffusers", reason="needs the torch extra")
    from reference.make_unet_reference import component_name

    from experiments.benchmarks import torch_baseline

    unet = preset(name).unet
    model = torch_baseline.unet2d(unet)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(unet)
    names = {component_name(path, unet) for path in torch_baseline.hooks(model)}
    assert names == {component.name for component in components(unet)}


def test_the_rivals_batch_of_masks_does_what_one_hook_at_a_time_does():
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    pytest.importorskip("diffusers", reason="needs the torch extra")
    from experiments.benchmarks import torch_baseline

    torch.manual_seed(0)
    alone, batched = (torch_baseline.unet2d(preset("tiny").unet).eval() for _ in range(2))
    batched.load_state_dict(alone.state_dict())
    masks, places = torch_baseline.Masks(batched), torch_baseline.hooks(alone)
    assert sorted(masks.names) == sorted(places)
    x = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        masks.mask = 1 - torch.eye(len(masks.names))
        together = batched(x.repeat(len(masks.names), 1, 1, 1), 7).sample
        for row, name in enumerate(masks.names):
            with torch_baseline.hooked(*places[name]):
                torch.testing.assert_close(together[row], alone(x, 7).sample[0], rtol=1e-4, atol=1e-5)


def test_the_accelerators_arms_go_on_where_they_stopped(monkeypatch):
    """A failed arm is told and tried again; a finished one is not; without time nothing is begun."""
    planned = _arms.arms(small=True, folder="profile")
    assert len({arm.name for arm in planned}) == len(planned) == 56
    ran, saved = [], []

    def fails_once(module, variant, task, *rest, variables, limit):
        ran.append((task, variant))
        if len(ran) == 2:
            raise MechdiffError("ended with code 1")
        facts = {"peak_bytes": 2**29, "predicted_bytes": 2**30, "device": "x"}
        return {"items": 8, "seconds": 2.0, "compiling": 3.0, **facts}

    monkeypatch.setattr(_harness, "_run", fails_once)
    later = time.monotonic() + 1000
    results = accelerator.run(planned[:3], {}, later, lambda state: saved.append(dict(state)))
    assert [len(state) for state in saved] == [1, 2, 3]
    lines = accelerator.table(planned[:4], results).splitlines()
    assert lines[1].endswith("4.0 items/s, 3 s to compile, 1.00 GiB predicted, 0.50 GiB at most")
    assert lines[2].endswith("failed: ended with code 1") and lines[4].endswith("not run: no time left")
    accelerator.run(planned[:3], results, later, saved.append)
    assert ran[3:] == [("answers", planned[1].variant)]
    accelerator.run(planned, results, time.monotonic(), saved.append)
    assert len(ran) == 4


def test_an_arm_that_takes_too_long_is_stopped_alone(monkeypatch):
    planned, limits = _arms.arms(small=True, folder="profile")[:2], []

    def stops_the_first(*args, variables, limit):
        limits.append(limit)
        if len(limits) == 1:
            raise MechdiffError(f"was stopped after {limit:.0f} s")
        return {"gflops": 1.0, "side": 2}

    monkeypatch.setattr(_harness, "_run", stops_the_first)
    results = accelerator.run(planned, {}, time.monotonic() + 1000, lambda state: None, longest=30)
    assert limits == [30, 30] and results[planned[0].name] == {"failed": "was stopped after 30 s"}
    assert "gflops" in results[planned[1].name]


def test_the_arms_that_tell_most_come_first():
    names = [arm.name for arm in _arms.arms(small=False, folder="profile")]
    first = names[: next(i for i, name in enumerate(names) if _arms.turn(name))]
    title = "sweep of paper, 16 images, 1 timesteps"
    assert first[:2] == ["answers, float32", "answers, 3xtf32"] and len(first) == 12
    assert {f"{title}, tf32", f"{title}, 3xtf32", f"{title}, tf32, PyTorch batched_channels_last"} < {*first}
    assert names[-1] == "profile, sweep of paper" and _arms.turn(f"{title}, bfloat16") == 2


def test_ratios_are_to_the_best_pytorch_of_the_same_precision_and_to_the_ceiling():
    """Twice the best rival's speed; in 3xTF32 the rival is float32's, and three products make one."""
    planned = _arms.arms(small=False, folder="profile")
    title = "sweep of paper, 16 images, 1 timesteps"
    done = {"seconds": 2.0, "needed": 40e9}
    results = {
        f"{title}, tf32": done | {"items": 8},
        f"{title}, 3xtf32": done | {"items": 6},
        f"{title}, tf32, PyTorch batched_eager": {"items": 4, "seconds": 4.0},
        f"{title}, tf32, PyTorch channels_last": {"items": 4, "seconds": 2.0},
        f"{title}, float32, PyTorch channels_last": {"items": 4, "seconds": 1.0},
        f"{title}, float32": {"failed": "ended with code 1"},
        "product, tf32": {"gflops": 100.0, "side": 8192},
    }
    expected = [
        f"{title}, 3xtf32: 0.75 x the best PyTorch (channels_last, float32), 60% of the product's speed",
        f"{title}, tf32: 2.00 x the best PyTorch (channels_last, tf32), 20% of the product's speed",
    ]
    assert list(accelerator.ratios(planned, results)) == expected
    lines = accelerator.table(planned, results, rivals=False).splitlines()
    assert sum(line.endswith(accelerator.NO_RIVALS) for line in lines) == 19 and lines[-2:] == expected


def test_an_arm_finds_what_it_had_compiled(tmp_path, monkeypatch):
    """Its own programs and those of the arm that it repeats, and no others."""
    planned = {arm.name: arm for arm in _arms.arms(small=True, folder="profile")}
    title, folders = "training of paper, float32, batch 8", []

    def ran(*args, variables, limit):
        folders.append(variables["JAX_COMPILATION_CACHE_DIR"])
        return {"items": 8, "seconds": 2.0, "compiling": 1.0, "loaded": len(folders) - 1}

    monkeypatch.setattr(_harness, "_run", ran)
    chosen = [planned[title], planned[f"{title}, started again"], planned["product, float32"]]
    later = time.monotonic() + 100
    results = accelerator.run(chosen, {}, later, lambda state: None, compiled=tmp_path)
    assert folders[0] == folders[1] != folders[2]
    lines = accelerator.table(chosen, results).splitlines()
    assert lines[1].endswith("1 s to compile") and lines[2].endswith("1 s to compile (compiled before)")


@pytest.mark.parametrize("form", ["mechdiff", "jax"])
def test_attention_is_measured_against_patterns_in_float64(form, monkeypatch):
    monkeypatch.setattr(_harness, "MIN_SECONDS", 1e-9)
    result = _device.attention(f"{form} float32", preset("tiny"), 2)
    assert result["difference"] < 1e-5 and result["gradient_milliseconds"] > 0


def test_an_arm_of_the_accelerator_runs_on_a_cpu():
    (arm,) = (arm for arm in _arms.arms(True, "") if arm.name == "product, float32")
    results = accelerator.run([arm], {}, time.monotonic() + 120, lambda state: None)
    assert results[arm.name]["gflops"] > 0 and results[arm.name]["platform"] == "cpu"
    assert " TFLOP/s, side 256" in accelerator.table([arm], results)


@pytest.fixture
def first_answer():
    module = importlib.import_module("experiments.benchmarks.first_answer")
    yield module
    forget(module)


def test_first_answers_are_timed_step_by_step_and_shown(first_answer, monkeypatch, capsys):
    monkeypatch.setattr(
        first_answer, "STEPS", {"load": "first = name", "screen": "import time; time.sleep(.03)"}
    )
    measured = first_answer.measure("up0.block1.skip", 4, "nowhere")
    assert measured["first"] == "up0.block1.skip" and list(measured["steps"]) == ["load", "screen"]
    screen = measured["steps"]["screen"]
    assert screen["seconds"] >= 0.03 > screen["processor_seconds"] and screen["programs"] == 0
    first_answer.print_table({"first": measured})
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["first", "screen"] and lines[-1].endswith("up0.block1.skip")


@pytest.fixture
def ten_lines(monkeypatch):
    module = importlib.import_module("experiments.benchmarks.ten_lines")
    monkeypatch.setattr(module, "PYTHON", SimpleNamespace(value=sys.executable))
    monkeypatch.setattr(module, "IMAGES", SimpleNamespace(value="my_images"))
    yield module
    forget(module)


def test_lines_are_run_in_order_elsewhere_and_each_is_timed(ten_lines, monkeypatch, tmp_path):
    lines = ("import time, os, types", "time.sleep(.3)", "md = types.SimpleNamespace(__file__=os.getcwd())")
    monkeypatch.setattr(ten_lines, "LINES", lines)
    taken = ten_lines.run_lines(tmp_path)
    assert taken["seconds"][1] >= 0.3 > taken["seconds"][2] and taken["package"] == str(tmp_path)


def test_a_line_that_fails_is_told(ten_lines, monkeypatch, tmp_path):
    monkeypatch.setattr(ten_lines, "LINES", ("raise ValueError('nothing there')",))
    with pytest.raises(MechdiffError, match="nothing there"):
        ten_lines.run_lines(tmp_path)


def test_kernels_of_a_program_are_counted_with_what_they_move():
    """By hand: a fusion reads 32 bytes and writes 16, and what it is made of is no kernel of its own."""
    program = """
%fused (p: f32[8]) -> bf16[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %convert = bf16[8]{0} convert(%p)
}

ENTRY %main (x: f32[8]) -> (bf16[8], u8[0]) {
  %x = f32[8]{0} parameter(0)
  %loop_convert_fusion.3 = bf16[8]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %conv = (bf16[8]{0}, u8[0]{0}) custom-call(%loop_convert_fusion.3), custom_call_target="__cudnn$conv"
}
"""
    expected = {"loop_convert_fusion": (1, 48), "__cudnn$conv": (1, 32)}
    assert _kernels.moved(program) == expected
