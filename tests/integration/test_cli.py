"""The command line: what loads, what goes to which stream, and one JSON document when one is asked for."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import jsonschema
import pytest
import typer
from mistakes import MICRO

import edgekd
from edgekd.cli.main import COMMANDS
from edgekd.stages.kinds import WRITABLE

pytestmark = pytest.mark.xdist_group("command line")  # they share one finished run

ENGINES = {
    "torch",
    "torchao",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
}
HEAVY = ENGINES | {"sklearn", "scipy", "pyarrow"}
# The loaded packages are printed last, on standard error, whatever the command did.
PROBE = """\
import atexit, sys
def show():
    print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
atexit.register(show)
from edgekd.cli.main import run
run()
"""


def call(folder: Path, *words: str, program: tuple[str, ...] = (), **environment: str) -> Any:
    """A command; with `program` (arguments of Python) started from nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EDGEKD_", "GITHUB_"))}
    env = {**kept, **environment}
    if not program:
        return forked.edgekd(words, cwd=folder, env=env)
    command = [sys.executable, *program, *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def loaded(folder: Path, *words: str) -> tuple[int, set[str]]:
    done = call(folder, *words, program=("-c", PROBE))
    found = re.search(r"^LOADED (.*)$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return done.returncode, set(found[1].split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the chain ran once."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "p.yaml").write_text(MICRO)
    done = call(folder, "run", "p.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = call(tmp_path, "--version", program=("-m", "edgekd"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{edgekd.__version__}\n", "")


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    for words in (("--help",), ("--version",)):
        code, modules = loaded(tmp_path, *words)
        assert code == 0
        assert not modules & (HEAVY | {"numpy", "pydantic", "rich", "ruamel", "jinja2", "PIL"})
    code, modules = loaded(tmp_path, "run", "--help")  # typer itself takes pydantic for options with a value
    assert code == 0
    assert not modules & (HEAVY | {"numpy", "rich", "ruamel", "jinja2", "PIL"})


def test_a_config_error_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(MICRO.replace("batch", "bacth"))
    for command in ("run", "plan"):
        code, modules = loaded(tmp_path, command, "p.yaml")
        assert code == 2
        assert not modules & (HEAVY | {"numpy", "rich", "jinja2", "PIL"})


def test_a_fully_cached_run_loads_no_engine_and_draws_nothing_anew(finished: Path) -> None:
    code, modules = loaded(finished, "run", "p.yaml")
    assert code == 0
    assert {stage["state"] for stage in json.loads((finished / "runs/micro/report.json").read_text())["stages"]} == {
        "cached"
    }
    assert not modules & (HEAVY | {"numpy", "PIL"})


def test_a_plan_of_a_finished_run_loads_no_engine(finished: Path) -> None:
    code, modules = loaded(finished, "plan", "p.yaml", "--exit-code")
    assert code == 0
    assert not modules & HEAVY


def test_results_go_to_standard_output_and_progress_to_standard_error(finished: Path) -> None:
    done = call(finished, "run", "p.yaml")
    assert "report: runs/micro/report.html" in done.stdout
    assert done.stderr.splitlines() == [f"{name}: cached" for name in _stages()]
    assert call(finished, "run", "p.yaml", "--quiet").stderr == ""


def test_a_json_log_is_one_object_a_line(finished: Path) -> None:
    for words, environment in ((["--log-format", "json"], {}), ([], {"EDGEKD_LOG_FORMAT": "json"})):
        done = call(finished, "run", "p.yaml", *words, **environment)
        rows = [json.loads(line) for line in done.stderr.splitlines()]
        assert [row["message"] for row in rows] == [f"{name}: cached" for name in _stages()]


def test_the_store_is_that_of_the_flag_else_of_the_environment(finished: Path, tmp_path: Path) -> None:
    store = str(finished / ".edgekd/store")
    (tmp_path / "p.yaml").write_text(MICRO)
    for words, environment in ((["--store", store], {}), ([], {"EDGEKD_STORE": store})):
        done = call(tmp_path, "plan", "p.yaml", "--json", *words, **environment)
        assert {row["state"] for row in json.loads(done.stdout)["stages"]} == {"cached"}
    done = call(tmp_path, "plan", "p.yaml", "--json", "--store", "mine", EDGEKD_STORE=store)
    assert {row["state"] for row in json.loads(done.stdout)["stages"]} == {"would run"}


def test_run_in_json_prints_the_report_and_nothing_else(finished: Path) -> None:
    done = call(finished, "run", "p.yaml", "--json", "--offline")
    schema = json.loads((Path(edgekd.__file__).parent / "report/report.schema.json").read_text())
    report = json.loads(done.stdout)
    jsonschema.validate(report, schema)
    assert report == json.loads((finished / "runs/micro/report.json").read_text())
    assert done.stderr == ""


def test_a_failed_run_in_json_prints_its_report(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(MICRO.replace("convnet, args: {width: 4, depth: 3}", "nomodule:make"))
    done = call(tmp_path, "run", "p.yaml", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["status"], report["exit_code"]) == (2, "failed", 2)
    assert report["error"]["message"] in done.stderr
    assert len(report["stages"]) == 5


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "p.yaml"], ["report", "runs/micro"], ["doctor"], ["store", "ls"], ["store", "verify"],
        ["store", "gc", "--keep", "99"],
        *(["list", what] for what in ("stages", "models", "knowledge", "schemes", "runtimes", "tasks")),
        ["measure", "runs/micro/artifacts/teacher.f32.onnx", "--quick", "--launches", "1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_prints_one_json_document(words: list[str], finished: Path) -> None:
    done = call(finished, *words, "--json", "--log-format", "text", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert done.stderr == ""
    if words[0] != "measure":  # slow, and said in the same way
        assert call(finished, *words, "--quiet").stdout.strip()


def test_list_stages_prints_every_option_with_its_help(tmp_path: Path) -> None:
    rows = json.loads(call(tmp_path, "list", "stages", "--json").stdout)
    assert [row["name"] for row in rows] == list(WRITABLE)
    for row in rows:
        assert row["help"]
        assert all(option["help"] and option["type"] for option in row["options"])


def test_doctor_lists_devices_and_what_may_be_built_for(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(call(tmp_path, "doctor", "--json").stdout)["runtimes"]}
    cpu = next(device for device in rows["openvino"]["devices"] if device["name"] == "CPU")
    assert cpu["full_name"]
    assert {"f32", "int8"} <= set(cpu["precisions"])
    text = call(tmp_path, "doctor").stdout
    assert f"device: CPU  {cpu['full_name']}" in text
    if rows["tensorrt_rtx"]["builds"]:
        assert "8.6" in rows["tensorrt_rtx"]["compute_capabilities"]
        assert 'compute_capabilities: ["7.5"' in text


def _stages() -> list[str]:
    return re.findall(r"^  - (\w+):", MICRO, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_the_help_is_that_of_the_command(name: str) -> None:
    module, _, attribute = COMMANDS[name].place.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    text = command.info.help if isinstance(command, typer.Typer) else command.__doc__
    assert text.splitlines()[0] == COMMANDS[name].help


def test_every_command_takes_the_options_of_all() -> None:
    for name, command in COMMANDS.items():
        made = command.load(name)
        for sub in getattr(made, "commands", {"": made}).values():
            options = {option for parameter in sub.params for option in parameter.opts}
            assert {"--json", "--log-format", "--quiet"} <= options, name


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    command = [sys.executable, "-m", "edgekd", "list", "knowledge"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        said = child.stderr.read()
    assert (child.returncode, said) == (0, "")
