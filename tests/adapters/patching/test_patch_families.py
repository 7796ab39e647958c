"""``kcd patch`` where several scripts could be meant, where one is named, and where a block says itself what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kcd_adapters.cli import main

MINIATURES = Path(__file__).parents[1] / "miniatures"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def mlld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fork with two scripts that train, where the present folder is."""
    root = tmp_path / "mlld"
    shutil.copytree(MINIATURES / "mlld", root)
    monkeypatch.chdir(root)
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def kcd(capsys: Capture, *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    return out + err


def test_several_are_listed_and_none_is_patched(mlld: Path, capsys: Capture) -> None:
    before = snapshot(mlld)
    output = kcd(capsys, "patch", ".", status=2)
    assert "several scripts train a student in mdistiller family: 'mlld', and none was patched" in output
    for script in ("tools/train.py", "tools/train_ours.py"):
        assert f"kcd patch {script} " in output
    assert "eval.py" not in output
    assert output.count("(uses trainer_dict of mdistiller.engine)") == 2
    kcd(capsys, "patch", "--diff", ".", status=2)
    assert snapshot(mlld) == before


def test_one_that_is_named(mlld: Path, capsys: Capture) -> None:
    before = snapshot(mlld)
    output = kcd(capsys, "patch", "--ratio", "0.5", "tools/train_ours.py")
    assert "+    ratio=0.5," in output
    assert "+    profile='mdistiller'," in output
    assert "first line that tools/train_ours.py prints is \"kcd: mdistiller family: 'mlld', ...\"" in output
    assert "If it is missing, another script is being run" in output
    assert {path for path, content in snapshot(mlld).items() if content != before[path]} == {
        str(mlld / "tools" / "train_ours.py")
    }
    # Now the repository is enough: one is patched, so that is meant.
    assert "tools/train_ours.py: already patched" in kcd(capsys, "patch", "--ratio", "0.5", ".")
    assert "with other settings" in kcd(capsys, "patch", ".", status=2)
    difference = kcd(capsys, "patch", "--diff", "--ratio", "0.6", ".")
    assert "-    ratio=0.5,\n+    ratio=0.6,\n" in difference
    assert "train.py\n" not in difference
    # And the other can be patched beside it.
    kcd(capsys, "patch", "--ratio", "0.5", "tools/train.py")
    assert "tools/train.py: restored to the byte" in kcd(capsys, "unpatch", "tools/train.py")
    assert "tools/train.py: restored" not in kcd(capsys, "unpatch", ".")
    assert snapshot(mlld) == before


def test_check_tells_of_all_scripts(mlld: Path, capsys: Capture) -> None:
    ours, other = "tools/train_ours.py", "tools/train.py"
    trains = "; it trains a student: uses trainer_dict of mdistiller.engine\n"
    assert (
        kcd(capsys, "patch", "--check", ".", status=1)
        == f"{other}: not patched{trains}{ours}: not patched{trains}"
    )
    kcd(capsys, "patch", ours)
    assert kcd(capsys, "patch", "--check", ".") == (
        f"{other}: not patched{trains}{ours}: patched (profile mdistiller){trains}"
    )
    assert kcd(capsys, "patch", "--check", ours) == f"{ours}: patched (profile mdistiller){trains}"
    assert kcd(capsys, "patch", "--check", other, status=1) == f"{other}: not patched{trains}"
    with (mlld / ours).open("a") as file:
        file.write("# mine\n")
    assert "edited since" in kcd(capsys, "patch", "--check", ".", status=3)


MINE = """
from kcd_adapters.profiles import Profile
PROFILE = Profile(name="mine", title="Mine", observe="losses.kd")
"""


def test_a_profiles_file_is_read_from_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repo" / "src").mkdir(parents=True)
    (tmp_path / "repo" / ".git").mkdir()
    script = tmp_path / "repo" / "src" / "go.py"
    script.write_text("import os\n")
    (tmp_path / "mine.py").write_text(MINE)
    options = ("--profile", "mine.py")
    # It names no script, so one must be.
    output = kcd(capsys, "patch", "repo", *options, status=2)
    assert (
        f"profile mine does not say which script of {tmp_path / 'repo'} trains a student: name it" in output
    )
    assert "kcd patch --profile mine.py SCRIPT" in output.replace(
        str(tmp_path.resolve() / "mine.py"), "mine.py"
    )
    output = kcd(capsys, "patch", str(script), *options)
    assert 'src/go.py prints is "kcd: Mine, ..."' in output
    for named in ("repo", str(script)):  # without the profile
        assert f"src/go.py: patched (profile {tmp_path.resolve() / 'mine.py'})" in kcd(
            capsys, "patch", "--check", named
        )
        assert "src/go.py: already patched" in kcd(capsys, "patch", named)
        assert "-    ratio=0.7,\n+    ratio=0.9,\n" in kcd(capsys, "patch", "--diff", "--ratio", "0.9", named)
    assert "src/go.py: restored to the byte" in kcd(capsys, "unpatch", "repo")
    assert script.read_text() == "import os\n"


def test_a_block_whose_settings_are_computed_says_so(mlld: Path, capsys: Capture) -> None:
    kcd(capsys, "patch", "tools/train.py")
    script = mlld / "tools" / "train.py"
    script.write_bytes(script.read_bytes().replace(b"ratio=0.7", b"ratio=float('0.5')"))
    output = kcd(capsys, "patch", "--check", ".", status=2)
    assert "the setting ratio in its block is no plain literal" in output


def test_a_family_without_a_script_that_trains(mlld: Path, capsys: Capture) -> None:
    for name in ("train.py", "train_ours.py"):
        (mlld / "tools" / name).unlink()
    output = kcd(capsys, "patch", ".", status=2)
    assert (
        "looks like mdistiller, but no script in it, or in a folder of it, uses a trainer of mdistiller.engine"
        in output
    )
    output = kcd(capsys, "patch", "tools/eval.py", status=2)
    assert "tools/eval.py is not known to train a student. The repository is known (mdistiller" in output
    assert output.endswith("If it trains one in a way of its own: kcd patch --auto tools/eval.py\n")
    (mlld / "go.py").write_text("import os\n")
    shutil.rmtree(mlld / "mdistiller")
    assert "kcd patch --auto go.py finds the student" in kcd(capsys, "patch", "go.py", status=2)
    assert "Any other: kcd patch --auto SCRIPT" in kcd(capsys, "patch", ".", status=2)
