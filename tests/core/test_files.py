"""Files are written whole or not at all, and what a killed writer left behind goes."""

import os
import signal
import stat
import subprocess
import sys
import threading
from functools import partial

import pytest
from helpers import SECONDS

from kcd_core.base import files
from kcd_core.base.files import check_writable, open_regular, remove_leftover, write_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="about locks and pipes")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.json"


def names(path):
    return sorted(os.listdir(path.parent))


def test_bytes_and_what_writes_them(path):
    write_whole(path, b"one")
    assert path.read_bytes() == b"one"
    write_whole(str(path), lambda file: file.writelines([b"t", b"wo"]))
    assert path.read_bytes() == b"two"
    assert names(path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file(path, error):
    def fail(file):
        file.write(b"half")
        raise error

    path.write_bytes(b"old")
    with pytest.raises(error):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert names(path) == ["a.json"]


def test_what_was_expected(path):
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="changed by somebody else"):
        write_whole(path, b"new", expected=b"older")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new", expected=b"old")
    assert path.read_bytes() == b"new"
    assert names(path) == ["a.json"]


def test_everything_reaches_the_disk_before_the_rename(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        true = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, true=true: (calls.append((name, a)), true(*a))[1])
    write_whole(path, b"new")
    assert [name for name, _ in calls] == ["fsync", "replace", "fsync"]


def test_the_content_is_flushed_before_it_is_synced(path, monkeypatch):
    sizes, true = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (sizes.append(os.fstat(handle).st_size), true(handle)))
    write_whole(path, b"new")
    assert sizes[0] == 3


def test_a_link_is_replaced_or_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_whole(link, b"new", follow_links=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    before = os.umask(0o022)
    try:
        write_whole(link, b"newer")
    finally:
        os.umask(before)
    assert not link.is_symlink()
    assert (target.read_bytes(), link.read_bytes()) == (b"new", b"newer")
    assert stat.S_IMODE(link.stat().st_mode) == 0o644  # not the target's


def test_permissions(path):
    before = os.umask(0o027)
    try:
        write_whole(path, b"")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o444):
            path.chmod(mode)
            write_whole(path, b"")
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_private_file_is_never_open_to_others(path, monkeypatch):
    path.touch(mode=0o600)
    modes, true = [], files._take_over
    monkeypatch.setattr(
        files, "_take_over", lambda old, new: (modes.append(stat.S_IMODE(new.stat().st_mode)), true(old, new))
    )
    before = os.umask(0)
    try:
        write_whole(path, lambda file: modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode)))
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_is_kept(path):
    path.touch()
    os.chown(path, 12345, 23456)
    write_whole(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def irregular(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "socket":
        import socket

        before = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(kind)
        finally:
            os.chdir(before)
    return path


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_only_regular_files_are_written_or_read(tmp_path, kind, follow_links):
    path = irregular(tmp_path, kind)
    before, written = path.lstat(), []
    link = tmp_path / "link"
    link.symlink_to(path)
    for target in (path, link):
        with pytest.raises(OSError, match="not a regular file") as caught:
            write_whole(target, written.append, follow_links=follow_links)
        assert caught.value.filename in (str(target), os.path.realpath(target))
        with pytest.raises(ValueError, match=f"^--out {target}: not a regular file"):
            check_writable(target, "--out")
        with pytest.raises(OSError, match=r"not a regular file|Is a directory|No such device"):
            open_regular(target)
    assert written == []
    assert path.lstat() == before
    assert sorted(os.listdir(tmp_path)) == sorted([kind, "link"])


def test_writable(tmp_path):
    check_writable(tmp_path / "new", "--out")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match=r"^--out .*No such file or directory; give a file in a folder"):
        check_writable(tmp_path / "missing" / "new", "--out")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "new", b"")


def test_a_regular_file_is_read(path):
    path.write_bytes(b"content")
    with open_regular(path) as file:
        assert file.read() == b"content"


# -- what is left behind ----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from kcd_core.base.files import write_whole
if sys.argv[2] == "renaming":
    os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
def write(file):
    file.write(bytes(10**6))
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "waiting":
        print("within", flush=True)
        sys.stdin.read()
write_whole(sys.argv[1], write)
"""


def writer(path, how):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("how", ["writing", "renaming"])
def test_killed(path, how):
    path.write_bytes(b"old")
    for _ in range(2):  # the second removes what the first left
        process = writer(path, how)
        process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"old"
        left = [name for name in names(path) if name != path.name]
        assert len(left) == 1
        assert left[0].startswith(".a.json.kcd-")
    write_whole(path, b"new")
    assert names(path) == ["a.json"]


def test_what_another_process_is_writing_is_left(path):
    process = writer(path, "waiting")
    assert process.stdout.readline() == b"within\n"
    (temporary,) = names(path)
    write_whole(path, b"mine")
    assert names(path) == [temporary, "a.json"]
    assert not remove_leftover(path.parent / temporary)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert path.read_bytes() == bytes(10**6)
    assert names(path) == ["a.json"]


def test_what_another_thread_is_about_to_rename_is_left(path, monkeypatch):
    true, within, ready = os.replace, threading.Event(), threading.Event()

    def replace(source, target):
        if threading.current_thread() is thread:
            within.set()
            assert ready.wait(SECONDS)
        true(source, target)

    monkeypatch.setattr(os, "replace", replace)
    thread = threading.Thread(target=partial(write_whole, path, b"theirs"))
    thread.start()
    assert within.wait(SECONDS)
    write_whole(path, b"mine")
    ready.set()
    thread.join()
    assert path.read_bytes() == b"theirs"


def test_what_is_taken_for_a_leftover_before_it_is_locked_is_begun_anew(path, monkeypatch):
    true, removed = files.fcntl.flock, []

    def flock(handle, how):
        if how == files.fcntl.LOCK_EX and not removed:
            monkeypatch.setattr(files.fcntl, "flock", true)
            removed.extend(path.parent / name for name in names(path))
            assert all(map(remove_leftover, removed))
        return true(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    write_whole(path, b"new")
    assert len(removed) == 1
    assert path.read_bytes() == b"new"
    assert names(path) == ["a.json"]


def test_where_there_are_no_locks_files_are_written_and_nothing_is_removed(path, monkeypatch):
    def flock(handle, how):
        raise OSError("no locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    left = path.parent / ".a.json.kcd-00000000.tmp"
    left.touch()
    write_whole(path, b"new")
    assert names(path) == [left.name, "a.json"]
    assert path.read_bytes() == b"new"


def test_what_is_somebody_elses_is_left(path):
    others = [
        ".a.json.kcd-notes.tmp",
        ".a.json.kcd-0123abcd.tmp.txt",
        ".b.json.kcd-0123abcd.tmp",
        "a.json.kcd-0123abcd.tmp",
        "a.json.tmp",
    ]
    for name in others:
        (path.parent / name).touch()
    (path.parent / ".a.json.kcd-folder00.tmp").mkdir()
    os.mkfifo(path.parent / ".a.json.kcd-pipe0000.tmp")
    (path.parent / ".a.json.kcd-link0000.tmp").symlink_to(path.parent / others[0])
    before = names(path)
    (path.parent / ".a.json.kcd-0123abcd.tmp").touch(mode=0o444)
    write_whole(path, b"new")
    assert names(path) == sorted([*before, "a.json"])


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_long_names(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(KeyError):
        write_whole(path, lambda file: {}[0])
    process = writer(path, "writing")
    process.communicate(timeout=SECONDS)
    assert len(names(path)) == 1
    other = tmp_path / (name[:-1] + "y")  # begins like it
    write_whole(other, b"")
    assert len(names(path)) == 2
    write_whole(path, b"new")
    assert names(path) == sorted([path.name, other.name])
