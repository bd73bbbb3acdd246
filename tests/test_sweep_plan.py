"""What is planned is what would be trained: values, identity, cost, and what is dropped."""
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_fakes import ROOT, environment, sweep, workplace

from slm.errors import UserError
from slm.keys import value_schema
from slm.layers import parse_arguments
from slm.screen import several
from slm.spec import identity, load_spec
from slm.sweep import machine, plan, process
from slm.sweep.estimate import FIXED_SEC, makespan, measure
from slm.sweep.points import Sweep
from slm.sweep.table import count, duration, numbers, table

H200 = machine.Gpu("0", "NVIDIA H200", 2**37)
CPU = [machine.Slot("cpu 0"), machine.Slot("cpu 1")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_grid_is_the_product_of_its_values_in_the_files_order(place):
    path = workplace(place, {"model.n_layer": {"values": [1, 2]},
                             "optim": {"parameters": {"lr": {"values": [0.1, 0.2, 0.3]}}},
                             "train.seed": {"value": 7}})
    got = [tuple(p.values.values()) for p in Sweep(path).points()]
    assert got == list(itertools.product([1, 2], [0.1, 0.2, 0.3], [7]))


def test_a_points_identity_is_that_of_the_run_its_command_line_starts(place):
    path = workplace(place, {"model": {"values": [{"n_layer": 2, "n_embd": 32}, {"n_layer": 1}]},
                             "optim.lr": {"values": [1.0e-5, 0.3]}, "train.steps": {"value": 5}})
    s = Sweep(path, ["--optim.beta2=0.9"])
    for point in s.points():
        argv = s.file.argv(point.values, "python") + s.overrides
        spec = load_spec(*parse_arguments(argv[argv.index("run.py") + 1:]))
        assert identity(spec) == point.identity
        assert spec.optim.beta2 == 0.9 and spec.optim.lr == point.values[("optim.lr",)]


def test_a_random_search_is_the_same_list_again_and_a_longer_one_begins_with_it(place):
    space = {"optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
             "train.seed": {"min": 0, "max": 10**9}}
    path = workplace(place, space, method="random", run_cap=5)
    first = [p.identity for p in Sweep(path).points()]
    assert first == [p.identity for p in Sweep(path).points()] and len(set(first)) == 5
    path = workplace(place, space, method="random", run_cap=8)
    longer = [p.identity for p in Sweep(path).points()]
    assert longer[:5] == first and len(longer) == 8
    assert not set(first) & {p.identity for p in Sweep(path, seed=1).points()}


def test_impossible_points_are_dropped_with_the_reason(place):
    path = workplace(place, {"model.n_embd": {"values": [16, 17]}, "model.n_head": {"value": 2},
                             "train.steps": {"values": [3]},
                             "optim.warmup_tokens": {"values": [64, 640]}})
    points = Sweep(path).points()
    assert [bool(p.dropped) for p in points] == [False, True, True, True]
    assert "n_embd = 17 is not divisible" in points[2].dropped
    assert "warm-up is longer than the run" in points[1].dropped
    code, text = sweep(place, "plan", "s.yaml")
    assert code == 0 and "dropped 3 of 4" in text and "#3-4" in text


def test_a_budget_too_small_for_one_step_is_dropped(place):
    path = workplace(place, {"train.flops": {"values": [1.0, 1.0e+9]}})
    assert [bool(p.dropped) for p in Sweep(path).points()] == [True, False]


def test_a_point_too_large_for_the_device_is_dropped(place):
    path = workplace(place, {"model.n_embd": {"values": [16, 16384]},
                             "model.n_layer": {"value": 64}})
    points = Sweep(path).points()
    gpu = machine.Gpu("0", "NVIDIA T4", 16 * 2**30)
    plan.drop_too_large(points, [machine.Slot("gpu 0", (gpu,), share=2)])
    assert points[0].dropped is None
    assert "NVIDIA T4, shared by 2 runs has 8.6 GB" in points[1].dropped


def test_two_spellings_of_one_run_are_one_run(place):
    path = workplace(place, {"model": {"values": [{"n_embd": 16}, {"n_embd": 16, "n_layer": 1}]}})
    assert Sweep(path).points()[1].dropped == "the same run as point 1"


def test_widths_follow_from_the_spec(place):
    """Dependent values: n_embd from n_layer, which the base spec gives explicitly."""
    path = workplace(place, {"model.aspect_ratio": {"value": 32}, "model.head_size": {"value": 16},
                             "model.n_layer": {"values": [1, 2, 3]}})
    shapes = [(p.plan.config.n_embd, p.plan.config.n_head) for p in Sweep(path).points()]
    assert shapes == [(32, 2), (64, 4), (96, 6)]


def test_equal_shapes_stand_side_by_side_and_the_costliest_first(place):
    path = workplace(place, {"train.seed": {"values": [0, 1]},
                             "model.n_embd": {"values": [16, 64]}})
    ordered = plan.order(Sweep(path).points())
    assert [p.plan.config.n_embd for p in ordered] == [64, 64, 16, 16]


def test_branches_add_their_decays_to_the_cost(place):
    path = workplace(place, {"train.branches": {"value": [6400, 12800]}},
                     base={"optim": {"schedule": "wsd", "warmup_tokens": 64, "decay": 0.25},
                           "train": {"steps": None, "tokens": 25600}})
    point, = Sweep(path).points()
    assert point.tokens == 25600 + (6400 + 12800) / 4
    assert len({point.folder, *point.branch_folders()}) == 3


def test_a_thousand_points_are_planned_without_torch(place):
    path = workplace(place, {"train.seed": {"min": 0, "max": 999}})
    code = ("import sys; from slm.sweep.__main__ import main; "
            f"main(['plan', {str(path)!r}, '--slots=1']); main(['status', {str(path)!r}]); "
            "assert not {'torch', 'pandas', 'wandb', 'tiktoken'} & set(sys.modules), sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(place),
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "960 more: --all shows them" in done.stdout and "1000 to do" in done.stdout


def test_plan_as_json_agrees_with_the_points(place):
    path = workplace(place, {"model.n_embd": {"values": [16, 17, 32]}})
    code, text = sweep(place, "plan", "s.yaml", "--json")
    rows = json.loads(text)["points"]
    points = Sweep(path).points()
    assert code == 0 and [r.get("identity", "") for r in rows] == [p.identity for p in points]
    assert [bool(r["dropped"]) for r in rows] == [False, True, False]
    assert rows[2]["params"] == points[2].plan.params


def test_times_rest_on_an_assumption_that_counts_more_than_the_steps(place, monkeypatch):
    """Evaluations, what a pass costs beside its matrix products, the start and the end of a run."""
    monkeypatch.setattr("slm.sweep.estimate.matmul_flops", lambda: 1e11)
    path = workplace(place, {"model.n_layer": {"values": [1, 8]}, "train.eval_interval": {
        "values": [1, 4]}}, base={"data": {"tokenizer": "bpe:512", "eval_tokens": 100_000}})
    s = Sweep(path)
    times = measure(s, on_gpu=False)
    often, seldom, deep, _ = points = s.points()
    assert times.reason == ("assuming 30% of this CPU's 100 GFLOP/s in matrix products on one "
                            "thread, 6 ms more a layer and pass, and 4 s for the start and the end "
                            "of each, as no run has finished here yet")
    assert all(times.seconds(p) == FIXED_SEC + times.train_seconds(p) for p in points)
    forward = often.plan.flops_per_token["matmul"] / 3
    assert times.seconds(often) - times.seconds(seldom) \
        == pytest.approx(3 * 100_000 * forward / 3e10)
    assert times.train_seconds(deep) > 4 * 9 * 0.006
    monkeypatch.setattr("slm.prepare.find_prepared", lambda data: {
        "vocab_size": 512, "train": {"tokens": 10**6}, "val": {"tokens": 1000}})
    assert s.eval_tokens(often.spec) == 100_000
    assert Sweep(path).eval_tokens(often.spec) == 1000, "prepared, with less text than asked for"


@pytest.mark.parametrize("noted", [True, False])
def test_times_come_from_the_finished_run_nearest_in_size_and_length(place, noted):
    path = workplace(place, {"train.steps": {"values": [10, 1000]}})
    s = Sweep(path)
    short, long = s.points()
    for point, seconds in (short, 2.0), (long, 50.0):
        point.folder.mkdir(parents=True)
        (point.folder / "summary.json").write_text(json.dumps({
            "status": "finished", "time_sec": seconds, "flops": point.flops,
            "flops_per_token": point.plan.flops_per_token}))
        log = Path("runs/s/logs") / f"{point.folder.name}.txt"
        log.parent.mkdir(exist_ok=True)
        log.write_text("plot  loss.png\n" + noted * f"\n[slm.sweep] took {seconds + 7} s\n")
    times = measure(s, on_gpu=False)
    fixed = 7.0 if noted else FIXED_SEC
    assert [times.seconds(p) for p in (short, long)] == [2.0 + fixed, 50.0 + fixed]
    assert times.reason == ("from 2 finished runs here, with "
                            + ("their 7 s" if noted else "an assumed 4 s")
                            + " for the start and the end of each")
    between, = Sweep(path, ["--train.seed=1"]).points()[1:]
    assert times.train_seconds(between) == 50.0, "as the long one"


def test_no_two_columns_have_one_name(place):
    path = workplace(place, {"train.tokens": {"values": [640, 1280]}, "optim.lr": {"value": 0.1},
                             "train.seed": {"values": [0, 1]}, "data.seed": {"values": [0, 1]}},
                     base={"train": {"steps": None}})
    assert plan.head(Sweep(path), []) == ["#", "train.seed", "data.seed", "layers", "heads",
                                          "width", "N", "total", "tokens", "FLOPs", "time",
                                          "memory"]


@pytest.mark.parametrize("precision", value_schema("device.precision")["enum"])
@pytest.mark.parametrize("slots", [CPU, [machine.Slot("gpu 0", (H200,))]], ids=["cpu", "gpu"])
def test_every_precision_is_planned(place, precision, slots):
    path = workplace(place, {"device.precision": {"values": [precision]}})
    s = Sweep(path)
    point, = s.points()
    plan.drop_too_large([point], slots)
    lines = plan.describe(s, [point], slots, everything=True)
    assert point.dropped is None and f"  {precision}  " in lines[3], "\n".join(lines)


def test_one_is_not_called_many(place):
    workplace(place, {"train.seed": {"values": [0]}})
    said = "".join(sweep(place, verb, "s.yaml", *more)[1] for verb, *more in
                   [("check",), ("plan", "--slots=1"), ("status",)])
    assert "grid, 1 point\n" in said and "in all 1 run," in said and "s: 1 point: 1 to do" in said
    assert not re.search(r"\b1 (points|runs|slots)", said)
    assert several(1000, "run") == "1,000 runs"


def test_a_childs_environment_is_its_slots(monkeypatch):
    """Its GPUs alone, its share of the cores to compile with; on the CPU one thread and no GPU."""
    two = (H200, machine.Gpu("1", "NVIDIA H200", 2**37))
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setattr(process, "cores", lambda: 24)
    for gpus, slot, slots, expected in [
            (two, machine.Slot("gpu 0,1", two), 1, ("0,1", None, "24")),
            (two, machine.Slot("gpu 1", two[1:], share=3), 6, ("1", None, "4")),
            (two, machine.Slot("gpu 0", two[:1]), 100, ("0", None, "1")),
            (two, machine.Slot("cpu 0"), 2, ("", "1", None)),
            ((), machine.Slot("cpu 0"), 2, (None, "1", None))]:
        monkeypatch.setattr(process, "gpus", lambda gpus=gpus: gpus)
        env = process.child_environment(slot, slots)
        assert tuple(map(env.get, ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
                                   "TORCHINDUCTOR_COMPILE_THREADS"))) == expected, slot
        assert "WANDB_RUN_ID" not in env
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "2")
    assert process.child_environment(machine.Slot("gpu 0", two[:1]), 1)[
        "TORCHINDUCTOR_COMPILE_THREADS"] == "2", "what was asked for"


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 4711"), OSError("no user")])
def test_a_user_without_a_name_has_a_compile_cache(monkeypatch, error):
    def unnamed() -> str:
        raise error
    monkeypatch.setattr("getpass.getuser", unnamed)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    env = process.child_environment(machine.Slot("cpu 0"), 1)
    assert env["TORCHINDUCTOR_CACHE_DIR"].endswith(f"torchinductor_uid_{os.getuid()}")


def test_the_wall_time_is_that_of_a_queue_before_slots():
    assert makespan([5, 3, 3, 3], 2) == 8           # 5 + 3 beside 3 + 3
    assert makespan([4, 4, 4], 3) == 4


def test_visible_gpus_are_the_slots(monkeypatch):
    gpus = tuple(machine.Gpu(str(i), "NVIDIA H200", 2**37) for i in range(4))
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    assert [s.name for s in machine.make_slots(False, None, None, 1)] \
        == ["gpu 0", "gpu 1", "gpu 2", "gpu 3"]
    assert len(machine.make_slots(False, None, 3, 1)) == 12
    assert [s.name for s in machine.make_slots(False, None, None, 2)] == ["gpu 0,1", "gpu 2,3"]
    assert [s.name for s in machine.make_slots(True, 2, None, 1)] == ["cpu 0", "cpu 1"]
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert len(machine.make_slots(True, None, None, 1)) == machine.cores()


def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-aa, NVIDIA H200, 143771'\n"
                    "echo '1, GPU-bb, NVIDIA H200, 143771'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for visible, ids in [(None, ["0", "1"]), ("1", ["1"]), ("GPU-bb,GPU-aa", ["GPU-bb", "GPU-aa"]),
                         ("", []), ("-1", [])]:
        machine.gpus.cache_clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [g.id for g in machine.gpus()] == ids
        assert all(g.memory_bytes == 143771 * 2**20 for g in machine.gpus())
    machine.gpus.cache_clear()


def test_figures_are_short():
    assert [count(x) for x in (7, 999, 1000, 999_600, 1.234e6)] == ["7", "999", "1k", "1M", "1.23M"]
    assert [duration(x) for x in (0.1, 42, 120, 7200)] == ["< 1 s", "42 s", "2 min", "2 h"]
    assert numbers([1, 2, 3, 5, 7, 8]) == "1-3,5,7-8"
    lines = table(["a", "bb"], [["1", "2"], ["333", "4"]], {0})
    assert lines == ["a    bb", "1     2", "333   4"]


def test_overrides_reach_every_point(place):
    workplace(place, {"optim.lr": {"values": [0.1, 0.2]}})
    code, text = sweep(place, "plan", "s.yaml", "--json", "--train.steps=9", "--track.dir=out")
    rows = json.loads(text)["points"]
    assert [r["steps"] for r in rows] == [9, 9]
    assert all(r["folder"].startswith("out/") for r in rows)
    assert ROOT.name not in text


def test_an_override_replaces_a_constant_and_never_what_varies(place):
    path = workplace(place, {"optim.lr": {"values": [0.1, 0.2]}, "train.steps": {"value": 4}})
    assert {p.plan.steps for p in Sweep(path, ["--train.steps=7"]).points()} == {7}
    for override, said in [("--optim.lr=1", "swept, and given"), ("--slot=2", "no such option"),
                           ("--train.tokens=64", "give one of them")]:
        with pytest.raises(UserError, match=said):
            Sweep(path, [override]).points()
