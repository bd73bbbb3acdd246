"""The harness of benchmarks/: its arithmetic, its order, its table, and a section from end to end.
What it measures is no test's business."""
import ast
import json
import sys

import numpy as np
import pytest
import torch
from tiny import ROOT

sys.path.append(str(ROOT))

from benchmarks import machine  # noqa: E402
from benchmarks.__main__ import SECTIONS, main  # noqa: E402
from benchmarks.child import Child, ChildFailed  # noqa: E402
from benchmarks.gpu import TINY  # noqa: E402
from benchmarks.gpu_work import Steps  # noqa: E402
from benchmarks.growth import draw, off_a_line  # noqa: E402
from benchmarks.measure import Reach, Row, Spread, interleave, skip, table  # noqa: E402
from benchmarks.peer import check, get_batch, substituted  # noqa: E402
from slm.errors import UserError  # noqa: E402


def test_median_and_quartiles_are_numpys():
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    s = Spread.of(values)
    assert [s.low, s.median, s.high] == list(np.quantile(values, [0.25, 0.5, 0.75]))
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_sides_take_turns_and_warm_up_is_dropped():
    order = []

    def side(name):
        order.append(name)
        return len(order)

    found = interleave({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2, warmup=1)
    assert "".join(order) == "ababab"
    assert found == {"a": [3, 5], "b": [4, 6]}


def test_ratio_is_of_rounds_and_above_one_where_ours_is_better():
    """The machine is half as fast in the second round: that hits both sides and no ratio."""
    time = Row("x", "ms", [10, 20, 10], [15, 30, 14])
    assert time.ratio.median == 1.5 and time.mine.median == 10
    rate = Row("x", "MB/s", [10, 20], [5, 10])
    assert rate.ratio == Spread(2.0, 2.0, 2.0, 2)
    assert Row("x", "ms", [10]).ratio is None
    with pytest.raises(ValueError):
        Row("x", "ms", [10, 20], [15]).ratio


def test_what_is_reached():
    row = Row("x", "ms", [10, 12, 11], [20, 24, 22])
    assert Reach(2, "ratio").met_by(row) and not Reach(2.1, "ratio").met_by(row)
    assert Reach(11, at_most=True).met_by(row) and not Reach(10.9, at_most=True).met_by(row)
    assert Reach(2, "ratio").met_by(Row("x", "ms", [10])) is None  # no peer: nobody knows


def test_table_and_json_say_the_same():
    rows = [Row("step", "ms", [1402, 1391, 1433], [1961, 1950, 1990], "theirs",
                Reach(1.45, "ratio"), "a note"), skip("other", "theirs is not here")]
    lines = table(rows).splitlines()
    assert "1,402 [1,396 .. 1,418] ms" in lines[1] and ">= 1.45x: NO" in lines[1]
    assert "1,961" in lines[1] and "(theirs)" in lines[1] and "1.4 " in lines[1]
    assert lines[2].strip() == "a note" and lines[4].strip() == "theirs is not here"
    first, second = [json.loads(json.dumps(row.as_json())) for row in rows]
    assert first["ratio"]["median"] == 1.3987 and first["reached"] is False
    assert first["peer"]["values"] == [1961, 1950, 1990] and first["peer"]["name"] == "theirs"
    assert second == {"what": "other", "unit": "", "skipped": "theirs is not here"}


def test_distance_from_a_straight_line():
    assert off_a_line([1, 2, 4, 8], [3 + 2 * x for x in (1, 2, 4, 8)]) < 1e-9
    assert off_a_line([1, 2, 4, 8, 16], [x ** 1.3 for x in (1, 2, 4, 8, 16)]) > 10


def test_a_child_says_why_it_failed():
    with Child("json:loads", s="{") as child:
        with pytest.raises(ChildFailed, match="JSONDecodeError"):
            child()
    with Child("os:_exit", status=3) as child:
        with pytest.raises(ChildFailed, match="ended with 3"):
            child()


def test_nanogpt_is_read_and_never_guessed(tmp_path):
    with pytest.raises(UserError, match="model.py.*karpathy/nanoGPT"):
        check(tmp_path)
    train = tmp_path / "train.py"
    train.write_text("import nothing_of_this\ndef get_batch(split):\n"
                     "    return batch_size, block_size, data_dir\n")
    assert get_batch(str(tmp_path), tmp_path, 3, 7)("train") == (3, 7, str(tmp_path))
    assert substituted(train, ("(split)", "(s)")).count("(s)") == 1
    with pytest.raises(UserError, match="2 times"):
        substituted(train, ("batch", ""))


def test_others_are_counted_and_warned_of(monkeypatch):
    """In 2 s the machine was busy for 5 core-seconds, of which ours took 3 with their children, and
    its host took 1 away."""
    ticks = iter([((100.0, 7.0), 0.0, (1, 1, 0, 0)), ((105.0, 8.0), 2.0, (2, 1.5, 1, 0.5))])

    def tick():
        busy, now, times = next(ticks)
        monkeypatch.setattr(machine, "busy_sec", lambda: busy)
        monkeypatch.setattr(machine.time, "monotonic", lambda: now)
        monkeypatch.setattr(machine.os, "times", lambda: (*times, 0))

    tick()
    others = machine.Others()
    tick()
    found = others.cores()
    monkeypatch.undo()
    assert found == {"others_cores": 1.0, "stolen_cores": 0.5}
    assert "took 0.50" in machine.warning(found, "at the start")
    assert machine.warning({"others_cores": 0.02, "stolen_cores": 0.01}, "") == ""
    assert machine.warning({}, "") == ""


def test_a_section_from_end_to_end(tmp_path, capsys):
    """The loader's: real children, a table, a JSON file; nothing is said of a peer that is not
    there but that it is not."""
    file = tmp_path / "results" / "cpu.json"
    assert main(["loader", "--quick", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["quick"] is True and found["nanogpt"] is None
    assert found["machine"]["versions"]["torch"] and found["machine"]["cores"] >= 1
    rows = found["sections"]["loader"]["rows"]
    assert rows[0]["ours"]["median"] > 0 and "peer" not in rows[0]
    assert "--nanogpt" in rows[-1]["skipped"]
    for row in rows:
        assert row["what"].strip() in shown


def imported_by(module: str, known: set[str]) -> set[str]:
    """Every module that a module imports, anywhere in its text, and those of this project in turn
    with what they import."""
    file = ROOT / (module.replace(".", "/") + ".py")
    if module in known or not file.is_file():
        return known | {module}
    known = known | {module}
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module, *(f"{node.module}.{a.name}" for a in node.names)] \
            if isinstance(node, ast.ImportFrom) else []
        for name in names:
            known = imported_by(name, known)
    return known


def test_the_gpu_script_runs_where_there_is_torch_and_little_else():
    found = imported_by("benchmarks.gpu", imported_by("benchmarks.gpu_work", set()))
    assert {"torch", "slm.model", "slm.muon", "slm.cost"} <= found
    assert not {"pydantic", "wandb", "tiktoken", "yaml"} & found
    report = Steps(TINY, 2, ["ours eager", "ours CUDA graphs"])()["report"]
    assert len(report["ours eager"]["losses"]) == 5
    if not torch.cuda.is_available():
        assert report["ours CUDA graphs"] == {"skipped": "needs CUDA"}


def test_unknown_sections_and_a_false_peer_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    said = capsys.readouterr().err
    assert all(name in said for name in SECTIONS)
    assert main(["loader", "--nanogpt", str(tmp_path)]) == 2
    assert "nanoGPT" in capsys.readouterr().err


def test_growth_is_drawn_with_every_number_readable(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (
        figures.append(self), save(self, *args, **options)))
    by = {30: [0.05, 0.06, 0.07], 1000: [0.8, 0.9, 1.1]}
    draw({"batch": {3: [1.0, 2.0]}, "layers": {1: [1.0, 2.0]}}, {"small": (1324, 1300)},
         {"sweep check": by}, tmp_path / "growth.png")
    words = [t.get_text() for t in figures[0].findobj(lambda a: hasattr(a, "get_text"))]
    assert "small: 1,324 MB" in words and "1,000" in words
    assert not any("10^" in w for w in words) and (tmp_path / "growth.png").stat().st_size > 5000
