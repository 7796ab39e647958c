"""benchmarks/release_check.py: which Pythons it finds, what it installs, and that its smoke test can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import release_check

sys.path.pop(0)

HERE = sys.version_info[1]


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_runs_nothing_is_passed_over(tmp_path, monkeypatch):
    """As pyenv's shim of a version that is not chosen; another's lies in pyenv's folder."""
    script(tmp_path / "bin" / f"python3.{HERE}", "exit 127")
    other = next(minor for minor in release_check.MINORS if minor != HERE)
    script(tmp_path / "bin" / f"python3.{other}", f'exec {sys.executable} "$@"')  # of another version
    own = script(tmp_path / "versions" / f"3.{HERE}.99" / "bin" / "python", f'exec {sys.executable} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = dict(release_check.pythons())
    assert list(found) == [10, 11, 12, 13, 14]
    assert found.pop(HERE) == own
    assert set(found.values()) == {None}


def test_all_but_torch_is_installed():
    names = [line.partition(">")[0] for line in release_check.required()]
    assert names == ["numpy", "scipy"]


def test_where_torch_is_the_smoke_test_fails():
    """This environment has it, and the package is no copy in site-packages here."""
    smoke = release_check.SMOKE.replace("assert package.__file__", "package.__file__")
    done = subprocess.run([sys.executable, "-c", smoke], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "torch is there"


def test_a_failure_is_told_and_the_status_says_so(tmp_path, monkeypatch, capsys):
    wheel = tmp_path / "kcd.whl"
    wheel.touch()

    def check(python, installer, archives, folder):
        assert archives == [wheel]
        if installer == "uv":
            raise RuntimeError("uv does not install it")

    monkeypatch.setattr(release_check, "pythons", lambda: iter([(12, "python3.12"), (14, None)]))
    monkeypatch.setattr(release_check, "uv", lambda: ["uv"])
    monkeypatch.setattr(release_check, "check", check)
    monkeypatch.setattr(sys, "argv", ["release_check.py", str(wheel)])
    with pytest.raises(SystemExit) as ended:
        release_check.main()
    assert ended.value.code == 1
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "Python 3.12 (python3.12), pip: .whl installed and used",
        "Python 3.12 (python3.12), uv: uv does not install it",
        "Python 3.14: not found, not checked",
        "1 of 2 environments work",
    ]
