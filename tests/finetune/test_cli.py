"""The command line: JSON on stdout, messages on stderr, exit codes, and no tracebacks for what the user can mend."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blockzo.cli import main as cli
from blockzo.finetune import output
from tests.finetune.process import REPOSITORY, command, environment

Rows = Callable[..., Path]
Tiny = Callable[[str], Path]


@pytest.fixture
def call(capsys: Any, monkeypatch: Any) -> Callable[..., tuple[int, str, str]]:
    """call(*arguments) -> exit code, stdout, stderr of the command in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["blockzo", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def told(model: Path, rows: Rows, out: Path, *more: object) -> list[object]:
    own = ["--task", "custom", "--template", "{text} it was {label}.", "--labels", "0=bad,1=good", "--lr", "1e-3"]
    files = ["--train", rows(40), "--validation", rows(16, "held.tsv")]
    return ["finetune", "--model", model, *own, *files, "--steps", "2", "--batch", "4", "--output", out, *more]


def test_a_run_from_its_command_to_evaluate_and_replay(call: Any, tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun = command(*told(tiny("llama"), rows, out, "--json"))
    done = subprocess.run(begun, env=environment(), capture_output=True, text=True, timeout=240, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = (
        "schema command model kind task peft method blocks parameters steps before after best flops forwards seconds"
        " signal memory base_digest final_digest exact journal_bytes threads device versions settings data warnings"
        " output files"
    )
    assert result.keys() == set(expected.split())
    assert result["before"].keys() == {"rows", "loss", "accuracy", "calibrated_accuracy", "auc"}
    assert all(Path(path).exists() for path in result["files"].values())
    assert "step 2/2" in done.stderr and "steps/s" in done.stderr and "left" in done.stderr
    own = ["--task", "custom", "--template", "{text} it was {label}.", "--labels", "0=bad,1=good"]
    code, text, err = call("evaluate", out / "model", *own, "--validation", tmp_path / "held.tsv", "--json")
    assert code == 0, err
    assert json.loads(text)["scores"] == result["after"]
    code, text, err = call("replay", tiny("llama"), out / "journal.bz", tmp_path / "again", "--json")
    assert code == 0, err
    replayed = json.loads(text)
    assert replayed["verified"] and replayed["digest"] == result["final_digest"]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out / "model", tmp_path / "again")]
    assert weights[0] == weights[1]


def test_people_read_scores_and_places(call: Any, tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    code, out, err = call(*told(tiny("llama"), rows, tmp_path / "out"))
    assert code == 0, err
    assert "before  accuracy" in out and "after   accuracy" in out and "journal.bz" in out and "calibrated" in out
    code, out, _ = call(*told(tiny("llama"), rows, tmp_path / "other", "--dry-run"))
    assert code == 0 and "forward FLOPs" in out and "a step" in out and not (tmp_path / "other").exists()


def test_a_terminal_sees_a_bar(tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    master, slave = os.openpty()
    arguments = command(*told(tiny("llama"), rows, tmp_path / "out"))
    process = subprocess.Popen(arguments, env=environment(), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal without a writer with EIO
        while part := os.read(master, 1 << 16):
            seen += part
    os.close(master)
    assert process.wait() == 0
    text = seen.decode()
    assert "training" in text and "held-out rows" in text and "loss" in text
    assert "accuracy" in text and "steps/s" in text and "2/2" in text


@pytest.mark.parametrize(
    ("options", "told_of"),
    [
        (["--train", "gone.tsv"], ["gone.tsv does not exist", "--train"]),
        (["--labels", "0=bad,2=good"], ["rows.tsv, line 3: label '1' is not one of 0, 2"]),
        (["--labels", "0=goodness bad,1=goodness good"], ["begin with the same token", "--labels"]),
        (["--template", "no column"], ["reads no column"]),
        (["--template", "{review} {label}"], ["line 2: no column 'review'"]),
        (["--task", "sst9"], ["task is 'sst9'"]),
        (["--method", "sgd"], ["--method is 'sgd'"]),
        (["--split", "9"], ["does not fit a model of 4 layers"]),
        (["--dtype", "fp8"], ["--dtype is 'fp8'"]),
        (["--max-length", "9", "--overflow", "error"], ["line 2:", "tokens with the prompt, the limit is 9"]),
        (["--resume"], ["nothing to resume"]),
        (["--steps", "none"], ["--steps", "valid integer"]),
    ],
)
def test_what_is_wrong_is_said_and_nothing_begins(
    call: Any, tiny: Tiny, rows: Rows, tmp_path: Path, options: Sequence[str], told_of: Sequence[str]
) -> None:
    code, out, err = call(*told(tiny("llama"), rows, tmp_path / "out", *options))
    assert code == 2 and out == "" and "Traceback" not in err
    for text in told_of:
        assert text in " ".join(err.split()), err
    assert not (tmp_path / "out").exists()


def test_bad_lines_are_named(call: Any, tiny: Tiny, rows: Rows, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text("text\tlabel\nfine\t1\nno label here\n")
    code, _, err = call(*told(tiny("llama"), rows, tmp_path / "out", "--train", bad))
    assert code == 2 and f"error: {bad}, line 3: 1 fields, the header has 2 (text, label)" in err
    bad.write_text("text\tlabel\n")
    code, _, err = call(*told(tiny("llama"), rows, tmp_path / "out", "--validation", bad))
    assert code == 2 and f"{bad}: no data" in err


def test_output_folders_that_cannot_be_used(
    call: Any, tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    code, _, err = call(*told(tiny("llama"), rows, full))
    assert code == 2 and "is not empty (it holds thesis.txt)" in err
    code, _, err = call(*told(tiny("llama"), rows, full / "thesis.txt" / "run"))
    assert code == 2 and "is a file: choose another --output" in err
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "journal.bz.77.new").write_text("killed before the first step")
    output.check_folder(begun)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "journal.bz").write_text("")
    code, _, err = call(*told(tiny("llama"), rows, tmp_path / "done"))
    assert code == 2 and "exists" in err
    code, _, err = call(*told(tiny("llama"), rows, "/proc/blockzo"))
    assert code == 2 and "/proc/blockzo" in err and "Traceback" not in err
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20, "all": usage}))
    code, _, err = call(*told(tiny("llama"), rows, tmp_path / "small"))
    assert code == 2 and "no space left" in err and "MB free" in err


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_disk_that_fills_up(call: Any, tiny: Tiny, rows: Rows, tmp_path: Path, monkeypatch: Any, step: int) -> None:
    """At the first metrics, at a later line, in the journal, while the model is saved: a message, and resuming works."""
    full = OSError(28, "No space left on device")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if step < 2:
            original = output.Metrics.append

            def append(self: output.Metrics, line: dict[str, Any]) -> None:
                if line["step"] == step:
                    self._file = Full()  # type: ignore[assignment]
                original(self, line)

            class Full:
                def write(self, data: bytes) -> int:
                    raise full

                def close(self) -> None:
                    pass

            patch.setattr(output.Metrics, "append", append)
        elif step == 2:
            from blockzo.journal import file as journal

            original_write = journal.os.pwrite
            calls: list[int] = []

            def pwrite(*arguments: Any) -> int:
                calls.append(1)
                if len(calls) == 2:
                    raise full
                return int(original_write(*arguments))

            patch.setattr(journal.os, "pwrite", pwrite)
        else:

            def save(*_: Any) -> None:
                raise full

            patch.setattr("blockzo.finetune.report.save", save)
        code, _, err = call(*told(tiny("llama"), rows, out))
    assert code == 2 and "Traceback" not in err and "space" in err.lower() and "resum" in err, err
    code, text, err = call("finetune", "--resume", "--output", out, "--json")
    assert code == 0, err
    assert json.loads(text)["steps"] == 2
    assert not [p for p in out.iterdir() if p.name.startswith(".")], "temporary files must not stay"


def test_a_model_that_cannot_be_had(call: Any, rows: Rows, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = call(*told(Path("no/model"), rows, tmp_path / "out"))
    assert code == 2 and "'no/model' cannot be loaded" in err and "smollm2-135m" in err


def test_help_names_every_command_and_option(call: Any) -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(name in out for name in ("finetune", "evaluate", "replay", "env", "bench"))
    expected = {"finetune": ("--resume", "--dry-run", "--inner"), "replay": ("--partial",), "evaluate": ("--task",)}
    for name, options in expected.items():
        code, out, _ = call(name, "--help")
        assert code == 0 and all(option in out for option in options)


def test_bench_passes_on_what_it_is_told_and_refuses(call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from blockzo.cli import bench

    monkeypatch.setattr(bench, "__file__", str(tmp_path / "blockzo" / "cli" / "bench.py"))
    code, _, err = call("bench")
    assert code == 2 and "holds no benchmarks" in err
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text("import sys; sys.exit(len(sys.argv) + 5)")
    (tmp_path / "benchmarks" / "claims").mkdir()
    claims = tmp_path / "benchmarks" / "claims" / "__main__.py"
    claims.write_text(
        "import pathlib, sys; pathlib.Path(__file__).with_name('told').write_text(' '.join(sys.argv[1:])); sys.exit(1)"
    )
    assert call("bench", "--quick", "--only", "a", "--only", "b c", "--json", "--output", "x.csv")[0] == 1
    assert claims.with_name("told").read_text() == "--only a --only b c --quick --json --output x.csv"
    code, _, err = call("bench", "--only", "a", "b")
    assert code == 2 and "repeat --only" in err
    for suite in (["--quick"], ["--list"], ["--no-save"], ["--json"], ["--output", "x.csv"], ["--plot", "x.png"]):
        # after the name they are the benchmark's
        code, _, err = call("bench", *suite, "speed")
        assert code == 2 and f"{' '.join(suite)} before the benchmark 'speed'" in " ".join(err.split())
    assert call("bench", "speed", "--quick", "3")[0] == 8
    code, _, err = call("bench", "slow")
    assert code == 2 and "expected one of speed" in err


def test_without_its_extras_the_command_says_what_to_install(call: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cli, "NEEDED", ("typer", "a_module_that_nobody_has"))
    code, _, err = call("finetune")
    assert code == 2 and "a_module_that_nobody_has" in err and "pip install 'blockzo[finetune]'" in err


def test_env_prints_json_with_and_without_the_extras(call: Any, monkeypatch: Any) -> None:
    for needed in (cli.NEEDED, ("a_module_that_nobody_has",)):
        monkeypatch.setattr(cli, "NEEDED", needed)
        code, out, _ = call("env", "--json")
        assert code in (0, 1) and isinstance(json.loads(out), dict)


def test_own_mistakes_keep_their_traceback() -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        cli.run(broken)
