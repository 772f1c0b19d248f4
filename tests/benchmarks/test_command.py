"""`python -m benchmarks` as its users run it, and its parts that measure."""

import json
import time

import numpy as np
import pytest

from benchmarks import outer_step as outer_step_module
from benchmarks.__main__ import main
from benchmarks.memory import memory
from benchmarks.methods.base import Answer, Method, MissingError
from benchmarks.outer_step import outer_step
from benchmarks.products import KINDS
from benchmarks.setting import Setting
from benchmarks.timing import Timing, round_robin
from metaseg.memory import of_call, tidy

pytestmark = pytest.mark.usefixtures("kept_threads")

TINY = ["--features", "2", "--size", "16", "--shots", "2", "--inner-steps", "1", "--cg-steps", "1", "--threads", "1"]
SETTING = Setting(features=2, size=16, shots=2, inner_steps=1, cg_steps=1)


def read(folder, stem):
    return json.loads((folder / f"{stem}_cpu.json").read_text()), (folder / f"{stem}_cpu.md").read_text()


@pytest.mark.long
def test_outer_step_writes_table_and_numbers(tmp_path, capsys):
    names = ["imaml_hessian", "maml"]
    main(["outer_step", *TINY, "--repeats", "2", "--no-memory", "--only", *names, "--out", str(tmp_path)])
    content, table = read(tmp_path, "outer_step")
    assert list(content["numbers"]) == ["floor", *names]
    assert content["setting"]["features"] == 2
    assert {"python", "torch"} <= content["machine"]["versions"].keys()
    for name in names:
        assert len(content["numbers"][name]["ratios"]) == 2
        assert content["numbers"][name]["error"]["relative"] > 0
        assert content["numbers"][name]["title"] in table
    assert "Outer step" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        [name for name in KINDS if name != "gn_linearised"],
        ["gn_linearised"],  # tracing takes seconds
    ],
)
def test_products_writes_table_and_numbers(names, tmp_path, monkeypatch):
    for name in set(KINDS) - set(names):
        monkeypatch.delitem(KINDS, name)
    main(["products", *TINY, "--repeats", "1", "--out", str(tmp_path)])
    content, table = read(tmp_path, "products")
    assert list(content["numbers"]) == ["unit", *names]
    for name in names:
        assert content["numbers"][name]["error"] < 1e-2
        assert content["numbers"][name]["title"] in table


@pytest.mark.long
def test_a_missing_method_keeps_its_row():
    def missing(problem):
        raise MissingError("not installed: pip install -e .[benchmarks]")

    def broken(problem):
        def run():
            raise RuntimeError("no kernel\nand more")

        return run

    methods = [Method("one", "One", "unrolled", missing), Method("two", "Two", "unrolled", broken)]
    report = outer_step(SETTING, methods, rounds=1, errors=False, memory=False)
    assert [row[0] for row in report.rows] == ["K+2 plain passes", "One", "Two"]
    assert report.rows[1][-1] == "not installed: pip install -e .[benchmarks]"
    assert report.rows[2][-1] == "failed: RuntimeError: no kernel"


def test_memory_names_what_it_could_not_measure(monkeypatch):
    def peaks(setting, methods, wanted=True):
        return {method.name: {"mib": 10.0 * setting.inner_steps, "how": "sampling"} for method in methods}

    monkeypatch.setattr("benchmarks.memory.measure_peaks", peaks)
    monkeypatch.setattr("benchmarks.memory.slowdown", lambda *_: [])
    report = memory(SETTING, 1, implicit_steps=(1, 2), unrolled_steps=(1, 3))
    assert len(report.rows) == 8
    assert report.rows[1][1:5] == ["2", "20", "2.00", "2.00"]

    monkeypatch.setattr(outer_step_module, "in_fresh_process", fails)
    monkeypatch.setattr("benchmarks.memory.measure_peaks", outer_step_module.measure_peaks)
    assert memory(SETTING, 1, (1,), (1,)).rows[0][2] == "out of memory"


def fails(*_, **__):
    raise MissingError("out of memory")


@pytest.mark.long
def test_round_robin_divides_by_the_base_of_the_same_round():
    def run(seconds):
        return lambda: time.sleep(seconds)

    base, timings = round_robin({"twice": run(0.02), "thrice": run(0.03)}, run(0.01), 3, "cpu")
    assert len(base.seconds) == 3
    assert 1.2 < timings["twice"].ratio < 2.5
    assert timings["twice"].ratio < timings["thrice"].ratio


def test_spread_is_the_middle_half():
    assert Timing(ratios=[1.0, 2.0, 3.0]).spread == (1.0, 3.0)
    assert Timing(ratios=[1.0, 2.0, 3.0, 4.0, 5.0]).spread == (2.0, 4.0)


def test_peak_sees_what_is_freed_again():
    def run():
        np.ones(64 * 2**20, dtype=np.uint8)
        return Answer()

    tidy("cpu")  # memory that an earlier test freed and the process kept would hide it
    peak, _ = of_call(run, "cpu")
    assert 56 < peak < 80


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["outer_step", "--size", "20"], "--size must be a multiple of 16"),
        (["outer_step", "--lam", "0"], "--lam must be positive"),
        (["outer_step", "--only", "nothing"], "--only takes names"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert sentence in capsys.readouterr().err
