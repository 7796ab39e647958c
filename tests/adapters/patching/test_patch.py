"""``kcd patch`` and ``kcd unpatch``, by bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SECONDS
from hypothesis import given
from hypothesis import strategies as st

from kcd_adapters.cli import main
from kcd_adapters.patching import marked_block, patch, scripts
from kcd_adapters.profiles.sskd import PROFILE
from kcd_adapters.settings import Settings
from kcd_core.base.files import write_whole

LINES = marked_block.call({"ratio": 0.5, "mixing": "fresh", "no_shims": ("all",), "profile": "sskd"})


def lay_out(root: Path, script: bytes = b"import os\nprint(os.sep)\n") -> Path:
    """The least that is recognised: the files that SSKD is known by."""
    root.mkdir(exist_ok=True)
    for name in PROFILE.marks:
        (root / name).write_bytes(b"")
    (root / "student.py").write_bytes(script)
    return root / "student.py"


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and mode."""
    return {str(p): (p.read_bytes(), p.stat().st_mode) for p in sorted(root.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------ the block itself


@st.composite
def any_script(draw: st.DrawFn) -> bytes:
    """Scripts with every trap that bytes can hold, valid in the encoding that they declare."""
    encoding, cookie = draw(
        st.sampled_from(
            [
                ("utf-8", ""),
                ("utf-8-sig", ""),
                ("utf-8-sig", "# -*- coding: utf-8 -*-\n"),
                ("latin-1", "# -*- coding: latin-1 -*-\n"),
                ("cp1252", "# vim: set fileencoding=cp1252 :\n"),
                ("shift_jis", "# coding: shift_jis\n"),
            ]
        )
    )
    foreign = "\u8868" if encoding == "shift_jis" else "\u00e9"  # its second byte in Shift JIS is a backslash
    parts = [draw(st.sampled_from(["", "#!/usr/bin/env python\n"])), cookie]
    parts += draw(
        st.lists(st.sampled_from(["\n", f"# {foreign}\n", "   \n", "\t# tab\n", "\f\n"]), max_size=3)
    )
    parts += draw(
        st.sampled_from(
            [
                [],
                [f'"""one {foreign}"""\n'],
                ['"""two\n\nlines"""  # end\n'],
                ["'''x\\\ny'''\n"],
                ["('doc')\n"],
            ]
        )
    )
    parts += draw(
        st.sampled_from(
            [
                [],
                ["from __future__ import print_function\n"],
                ["from __future__ import (\n    division,\n    print_function,\n)\n", "\n# why\n"],
                ["from __future__ import \\\n    division\n", "from __future__ import annotations  # two\n"],
            ]
        )
    )
    statements = [
        "import os\n",
        f"name = '{foreign}'\n",
        "@staticmethod\ndef f(): pass\n",
        "if True:\n\tx = 1\n",
        "text = '''a\n  b'''\n",
        "x = 1; y = 2\n",
        "class A: pass\n",
    ]
    parts += draw(st.lists(st.sampled_from([*statements, "\n", "# tail\n"]), max_size=5))
    parts += [draw(st.sampled_from(statements))]
    newline = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = "".join(parts).splitlines(keepends=True)
    if draw(st.booleans()):  # mixed line ends
        lines = [line.replace("\n", draw(st.sampled_from(["\n", "\r\n"]))) for line in lines]
    else:
        lines = [line.replace("\n", newline) for line in lines]
    text = "".join(lines)
    if draw(st.booleans()):
        text = text.rstrip("\r\n")
    return text.encode(encoding)


@given(any_script())
def test_block_comes_out_to_the_byte(source: bytes) -> None:
    patched = marked_block.insert(source, LINES)
    found = marked_block.find(patched)
    assert found is not None
    assert found.rest == source
    assert found.as_left
    assert found.call == LINES
    assert patched.startswith(source[:3]) or not source.startswith(marked_block.BOM)
    compile(patched, "script", "exec")
    with pytest.raises(ValueError, match="already"):
        marked_block.insert(patched, LINES)


@given(any_script(), st.binary(max_size=20))
def test_edits_outside_the_block_are_kept_and_told(source: bytes, edit: bytes) -> None:
    added = b"\n# " + edit.replace(b"\r", b"").replace(b"\n", b"")
    found = marked_block.find(marked_block.insert(source, LINES) + added)
    assert found is not None
    assert found.rest == source + added
    assert not found.as_left


@given(st.binary(max_size=200))
def test_any_bytes_are_patched_reversibly_or_refused(source: bytes) -> None:
    try:
        patched = marked_block.insert(source, LINES)
    except ValueError:
        return
    found = marked_block.find(patched)
    assert found is not None
    assert found.rest == source


def test_block_goes_behind_docstring_and_future_and_before_imports() -> None:
    source = b'"""Doc."""\n\nfrom __future__ import division\n\nimport os\n'
    before, after = (
        marked_block.insert(source, LINES).split(b"# >>> kcd")[0],
        source[source.index(b"import os") :],
    )
    assert source == before + after


def test_settings_may_be_edited_in_the_block() -> None:
    patched = marked_block.insert(b"import os\r\n", LINES)
    found = marked_block.find(patched.replace(b"ratio=0.5", b"ratio=0.25"))
    assert found is not None
    assert found.as_left
    assert b"ratio=0.25" in found.call


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "no statement"),
        (b"# only a comment\n", "no statement"),
        (b'"""Only a docstring."""', "no statement"),
        (b"def f(:\n", "no valid Python"),
        (b"x = '\xe9'\n", "no valid Python"),  # neither UTF-8 nor declared to be anything else
        (b"# coding: no-such-codec\nimport os\n", "no valid Python"),
        (b"import os\0\n", "no valid Python"),
        (b"import os\nfrom __future__ import division\n", "no valid Python"),
        (b"from __future__ import division; import os\n", "line 1 holds"),
        (b'"""Doc."""; import os\n', "line 1 holds"),
        (b"x = " + b"(" * 300 + b")" * 300, "no valid Python"),
    ],
)
def test_refused_with_the_reason(source: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        marked_block.insert(source, LINES)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), Path("x"), [1, ...]])
def test_only_literals_are_written_into_scripts(value: object) -> None:
    with pytest.raises(ValueError, match="can't be written"):
        marked_block.call({"history": value})


def test_hostile_text_stays_a_literal() -> None:
    text = "'\n# <<< kcd patch <<<\nimport evil  # \u2028"
    found = marked_block.find(marked_block.insert(b"import os\n", marked_block.call({"history": text})))
    assert found is not None
    assert found.call.count(b"\n") == 6


@pytest.mark.parametrize("damage", ["begin", "end", "twice", "swapped"])
def test_damaged_markers_are_refused(damage: str) -> None:
    patched = marked_block.insert(b"import os\n", LINES)
    lines = patched.splitlines(keepends=True)
    end = lines.index(b"# <<< kcd patch <<<\n")
    damaged = {
        "begin": b"".join(lines[1:]),
        "end": b"".join(lines[:end] + lines[end + 1 :]),
        "twice": patched + patched,
        "swapped": b"".join(lines[end:] + lines[:end]),
    }
    with pytest.raises(ValueError, match="markers are damaged"):
        marked_block.find(damaged[damage])


def test_markers_that_are_merely_quoted_are_no_block(tmp_path: Path) -> None:
    quoted = b"s = '''\n# >>> kcd patch 1 sha256=" + b"0" * 64 + b" >>>\n# <<< kcd patch <<<\n'''\n"
    assert marked_block.find(quoted) is None
    script = lay_out(tmp_path)
    original = script.read_bytes()
    other = tmp_path / "notes.py"
    other.write_bytes(quoted)
    other.chmod(0o444)  # which is no reason to refuse the others
    assert main(["patch", str(tmp_path)]) == 0
    assert main(["unpatch", str(tmp_path)]) == 0
    assert (script.read_bytes(), other.read_bytes()) == (original, quoted)


# ------------------------------------------------------------------------------------------- the two commands


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = lay_out(tmp_path, b"\xef\xbb\xbf'''Doc.'''\r\nimport os\r\nprint('\xc3\xa9')")
    script.chmod(0o750)
    original = snapshot(tmp_path)
    repo = str(tmp_path)
    assert main(["patch", "--check", repo]) == 1
    capsys.readouterr()
    assert main(["patch", "--check", "--ratio", "0.5", "--mixing-cache", "1 GB", repo]) == 2
    assert "--check writes no settings, so mixing_cache, ratio would not be used" in capsys.readouterr().err
    assert main(["patch", "--diff", repo, "--ratio", "0.5"]) == 0
    assert snapshot(tmp_path) == original
    assert "+    ratio=0.5,\n" in capsys.readouterr().out
    assert main(["patch", repo, "--ratio", "0.5"]) == 0
    assert "+    ratio=0.5,\n" in capsys.readouterr().out
    patched = snapshot(tmp_path)
    assert stat.S_IMODE(script.stat().st_mode) == 0o750
    assert main(["patch", repo, "--ratio", "0.5"]) == 0
    assert "already patched" in capsys.readouterr().out
    assert main(["patch", "--check", repo]) == 0
    assert main(["unpatch", "--diff", repo]) == 0
    assert snapshot(tmp_path) == patched
    assert main(["unpatch", repo]) == 0
    assert "restored to the byte" in capsys.readouterr().out
    assert snapshot(tmp_path) == original
    assert main(["unpatch", repo]) == 0
    assert "nothing is patched" in capsys.readouterr().out


def test_edited_since(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = lay_out(tmp_path)
    main(["patch", str(tmp_path)])
    with script.open("ab") as file:
        file.write(b"# mine\n")
    assert main(["patch", "--check", str(tmp_path)]) == 3
    assert "edited since" in capsys.readouterr().out
    assert main(["patch", str(tmp_path)]) == 0
    assert main(["unpatch", str(tmp_path)]) == 1
    assert "the edits are kept" in capsys.readouterr().out
    assert script.read_bytes() == b"import os\nprint(os.sep)\n# mine\n"


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path)
    main(["patch", str(tmp_path)])
    before = snapshot(tmp_path)
    assert main(["patch", str(tmp_path), "--ratio", "0.1"]) == 2
    assert "with other settings" in capsys.readouterr().err
    assert main(["patch", "--diff", str(tmp_path), "--ratio", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "-    ratio=0.7,\n+    ratio=0.1,\n" in out
    assert not any(line.startswith(("+import", "-import")) for line in out.splitlines())
    assert snapshot(tmp_path) == before


def test_a_profile_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("import os\n")
    (tmp_path / "mine.py").write_text(
        "from kcd_adapters.profiles import Profile\n"
        "PROFILE = Profile('mine', 'Mine', 'train.py', (), 'mine.acc', lambda arguments: 'kd')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["patch", ".", "--profile", "mine.py"]) == 0
    # By its whole path: the script may be started in another folder.
    assert f"profile={str(tmp_path.resolve() / 'mine.py')!r}" in (tmp_path / "train.py").read_text()


def test_block_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = lay_out(tmp_path)
    original = script.read_bytes()
    main(["patch", str(tmp_path)])
    script.write_bytes(script.read_bytes().replace(b"kcd patch 1 ", b"kcd patch 99 "))
    assert main(["patch", str(tmp_path)]) == 2
    assert "another version" in capsys.readouterr().err
    later = script.read_bytes()
    script.write_bytes(later + b"# mine\n")
    assert main(["unpatch", str(tmp_path)]) == 2  # what that version may have put elsewhere is unknown
    assert script.read_bytes() == later + b"# mine\n"
    script.write_bytes(later)
    assert main(["unpatch", str(tmp_path)]) == 0  # but a matching digest is proof enough
    assert script.read_bytes() == original


def test_unknown_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text("import os\n")
    before = snapshot(tmp_path)
    assert main(["patch", str(tmp_path)]) == 2
    assert "no profile knows" in capsys.readouterr().err
    assert main(["patch", "--check", str(tmp_path)]) == 2
    assert main(["patch", str(tmp_path), "--profile", "none such"]) == 2
    assert main(["patch", str(tmp_path / "absent")]) == 2
    assert "is neither a repository's folder nor a script" in capsys.readouterr().err
    assert main(["patch", str(tmp_path / "train.py")]) == 2
    assert "no profile knows" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "kind", ["absent", "folder", "fifo", "loop", "read-only", "outside", "folder outside"]
)
def test_scripts_not_as_expected(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    repo, outside = tmp_path / "repo", tmp_path / "outside"
    script = lay_out(repo)
    lay_out(outside)
    name, reason = "student.py", ""
    if kind == "read-only":
        script.chmod(0o444)
        reason = "read-only"
    elif kind == "folder outside":
        (repo / "tools").symlink_to(outside, target_is_directory=True)
        name, reason = "tools/student.py", "outside the repository"
    else:
        script.unlink()
        if kind == "absent":
            reason = "does not exist"
        elif kind == "folder":
            script.mkdir()
            reason = "not a regular file"
        elif kind == "fifo":
            os.mkfifo(script)
            reason = "not a regular file"
        elif kind == "loop":
            script.symlink_to("student.py")
        else:
            script.symlink_to(outside / "student.py")
            reason = "outside the repository"
    before = snapshot(outside)
    with pytest.raises(ValueError, match=rf"{name} can't be patched.*{reason}"):
        scripts.read_script(repo, name)
    assert main(["unpatch", str(repo)]) == 0  # never hangs on a pipe, never follows a link
    assert snapshot(outside) == before


def test_link_inside_the_repository_stays_a_link(tmp_path: Path) -> None:
    script = lay_out(tmp_path)
    script.rename(tmp_path / "real.py")
    script.symlink_to("real.py")
    original = (tmp_path / "real.py").read_bytes()
    assert main(["patch", str(tmp_path)]) == 0
    assert script.is_symlink()
    assert main(["patch", "--check", str(tmp_path)]) == 0
    assert main(["unpatch", str(tmp_path)]) == 0
    assert script.is_symlink()
    assert (tmp_path / "real.py").read_bytes() == original


def test_repository_reached_by_a_link(tmp_path: Path) -> None:
    script = lay_out(tmp_path / "repo")
    original = script.read_bytes()
    (tmp_path / "link").symlink_to("repo")
    assert main(["patch", str(tmp_path / "link")]) == 0
    assert main(["unpatch", str(tmp_path / "repo")]) == 0
    assert script.read_bytes() == original


# ----------------------------------------------------------------------------------------- crashes and races


def test_crash_between_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    (tmp_path / "other.py").write_bytes(b"import sys\r\n")
    original = snapshot(tmp_path)
    both = [patch.Meant(name, "sskd", "SSKD") for name in ("other.py", "student.py")]
    monkeypatch.setattr(patch, "meant", lambda *_: both)
    whole, calls = scripts.write_whole, []

    def crash_at_second(path: Path, content: bytes, *, expected: bytes | None = None) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(path, content, expected=expected)

    for argv in (["patch"], ["unpatch"]):
        calls.clear()
        monkeypatch.setattr(scripts, "write_whole", crash_at_second)
        with pytest.raises(KeyboardInterrupt):
            main([*argv, str(tmp_path)])
        half = snapshot(tmp_path)
        assert half != original
        assert main(["patch", "--check", str(tmp_path)]) == 0  # of one
        monkeypatch.setattr(scripts, "write_whole", whole)
        assert main(["patch", str(tmp_path)]) == 0
        assert main(["patch", "--check", str(tmp_path)]) == 0
    assert main(["unpatch", str(tmp_path)]) == 0
    assert snapshot(tmp_path) == original


def test_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    original = snapshot(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match=r"student.py can't be written: disk full"):
        patch.plan_patch(tmp_path, Settings(), patch.meant(tmp_path, None, None))[0].write()
    assert snapshot(tmp_path) == original


def test_what_a_killed_run_left_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path)
    original = snapshot(tmp_path)
    (tmp_path / ".student.py.kcd-abcd_123.tmp").write_bytes(b"half")
    (tmp_path / ".student.py.kcd-notes.tmp").write_bytes(b"somebody's")
    assert main(["unpatch", str(tmp_path)]) == 0
    assert "left behind" in capsys.readouterr().out
    (tmp_path / ".student.py.kcd-notes.tmp").unlink()
    assert snapshot(tmp_path) == original


def test_change_behind_our_back_is_not_overwritten(tmp_path: Path) -> None:
    script = lay_out(tmp_path)
    (change,) = patch.plan_patch(tmp_path, Settings(), patch.meant(tmp_path, None, None))
    script.write_bytes(b"import sys\n")
    with pytest.raises(ValueError, match="somebody else"):
        change.write()
    assert script.read_bytes() == b"import sys\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*PROFILE.marks, "student.py"])


def test_link_swapped_in_is_not_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, b"new")
    assert target.read_bytes() == b"old"
    assert not link.is_symlink()


# ------------------------------------------------------------------------------------------------ end to end


def run_script(repo: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """A repository's own command line."""
    return subprocess.run(
        [sys.executable, *argv], cwd=repo, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_imported_script_installs_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path)
    main(["patch", str(tmp_path)])
    done = run_script(
        tmp_path, "-c", "import student, sys; print('kcd_adapters.hosts.engine' in sys.modules)"
    )
    assert done.stdout.splitlines() == [os.sep, "False"], done.stderr


def test_mistyped_setting_stops_the_script_at_its_line(tmp_path: Path) -> None:
    script = lay_out(tmp_path)
    main(["patch", str(tmp_path)])
    script.write_bytes(script.read_bytes().replace(b"ratio=0.7", b"ratoi=0.7"))
    done = run_script(tmp_path, "student.py")
    assert done.returncode == 1
    assert 'student.py", line' in done.stderr
    assert "ratoi" in done.stderr


def test_digest_is_of_the_original(tmp_path: Path) -> None:
    script = lay_out(tmp_path)
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    main(["patch", str(tmp_path)])
    assert digest.encode() in script.read_bytes()
