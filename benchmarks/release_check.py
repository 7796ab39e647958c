"""Does what would be published install and work, with pip and with uv, in every Python that is here?

    make release-check        # builds the archives, has twine check them, and runs this on them

For each of Python 3.10 to 3.14 that is found and each installer, an empty environment is made, in which a wheel and then an
sdist is installed and used. Torch, which kcd_core needs for loaders and losses alone, is left out: what is used works without.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
MINORS = range(10, 15)

#: Run by the environment's own Python, in an empty folder.
SMOKE = """
import sys
from importlib.metadata import version
import numpy as np
import kcd_core as kcd, kcd_adapters

for package in (kcd, kcd_adapters):
    assert package.__file__.startswith(sys.prefix), package.__file__
assert version("kcd-core") == kcd.__version__
sampler = kcd.CondensedSampler(200)
run = kcd.Condensation(sampler, schedule=kcd.CondensationSchedule(ratio=0.5, stages=2, period=1))
logits = np.random.default_rng(0).normal(0, 2, (200, 10)).astype(np.float32)
for epoch in range(3):
    for indices in np.array_split(sampler.order(), 7):
        run.record(logits[indices], indices=indices)
    run.end_epoch()
assert [record["kept"] for record in run.history] == [150, 100, 100]
try:
    kcd.wrap_loader
except ImportError as error:
    assert "needs torch" in str(error)
else:
    raise SystemExit("torch is there")
"""


def works(python: str, minor: int) -> bool:
    """Whether ``python`` is Python 3.``minor``. A shim of pyenv may be there, and run nothing."""
    asked = [python, "-c", "import sys; print(sys.version_info[:2])"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == f"(3, {minor})"


def pythons() -> Iterator[tuple[int, str | None]]:
    """(minor, command) of each Python 3.10 to 3.14: on PATH, or of pyenv; None where there is none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in MINORS:
        here = shutil.which(f"python3.{minor}")
        found = [here] if here else []
        found += [str(path) for path in sorted(versions.glob(f"3.{minor}.*/bin/python"))]
        yield minor, next((python for python in found if works(python, minor)), None)


def required() -> list[str]:
    """What the package requires, but for torch."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(CHECKOUT / "setup.cfg")
    lines = config["options"]["install_requires"].split()
    return [line for line in lines if not line.startswith("torch")]


def uv() -> list[str]:
    """The command of uv, on PATH or a package of this environment; empty where there is none."""
    if found := shutil.which("uv"):
        return [found]
    asked = [sys.executable, "-m", "uv", "--version"]
    there = subprocess.run(asked, capture_output=True, check=False).returncode == 0
    return asked[:-1] if there else []


def check(python: str, installer: str, archives: list[Path], folder: Path) -> None:
    """Install and use each archive in an environment that is made in ``folder``."""
    own = str(folder / "env" / "bin" / "python")
    if installer == "uv":
        call(folder, *uv(), "venv", "--quiet", "--python", python, "env")
        install = [*uv(), "pip", "install", "--quiet", "--python", own]
    else:
        call(folder, python, "-m", "venv", "env")
        install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call(folder, *install, *required())
    again = "--force-reinstall"
    for archive in archives:
        call(folder, *install, again, "--no-deps", str(archive))
        call(folder, own, "-I", "-W", "error", "-c", SMOKE)
        for option in ("--version", "--help"):
            call(folder, str(folder / "env" / "bin" / "kcd"), option)


def call(folder: Path, *command: str) -> None:
    """Run ``command``; what it said is shown if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} … failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("archives", nargs="+", type=Path, help="wheel and sdist")
    archives = [path.resolve() for path in options.parse_args().archives]
    if missing := [path for path in archives if not path.is_file()]:
        options.error(f"there is no {missing[0]}: make release-check builds it")
    installers = ["pip", "uv"] if uv() else ["pip"]
    if "uv" not in installers:
        print("uv: not found, not checked")
    checked, failed = 0, 0
    for minor, python in pythons():
        if python is None:
            print(f"Python 3.{minor}: not found, not checked")
            continue
        for installer in installers:
            print(f"Python 3.{minor} ({python}), {installer}: ", end="", flush=True)
            checked += 1
            with tempfile.TemporaryDirectory() as folder:
                try:
                    check(python, installer, archives, Path(folder))
                except RuntimeError as error:
                    failed += 1
                    print(error)
                else:
                    print(" and ".join(path.suffix for path in archives), "installed and used")
    if not checked:
        sys.exit("no Python 3.10 or newer was found: nothing was checked")
    print(f"{checked - failed} of {checked} environments work")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
