"""Which scripts are known by which profile, and what is said of those that are not. No script is executed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from kcd_adapters.profiles import Found, Profile, find, profiles, scripts_in

MINIATURES = Path(__file__).parent / "miniatures"
Lay = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Lays out a copy of a miniature, with further files or other ones, and goes into it."""

    def lay(name: str, *, folder: str = "", **files: str) -> Path:
        root = tmp_path / (folder or name)
        shutil.copytree(MINIATURES / name, root) if name else root.mkdir()
        for path, text in files.items():
            target = root / path.replace("__", "/").replace("_py", ".py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        monkeypatch.chdir(root)
        return root

    return lay


def trains(root: Path) -> list[tuple[str, str]]:
    return [(one.script, one.profile.name) for one in found(root)]


def found(root: Path) -> list[Found]:
    return scripts_in(root, profiles())


def refusal(script: str) -> str:
    with pytest.raises(ValueError, match=script) as error:
        find(Path(script))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "scripts", "profile"),
    [
        ("mdistiller", ["tools/train.py"], "mdistiller"),
        ("mlld", ["tools/train.py", "tools/train_ours.py"], "mdistiller"),
        ("repdistiller", ["train_student.py"], "repdistiller"),
        ("norm", ["train_cifar_student.py"], "repdistiller"),
        ("simkd", ["train_student.py"], "simkd"),
        ("sskd", ["student.py"], "sskd"),
        ("reviewkd", ["CIFAR-100/train.py"], "reviewkd"),
        ("timm", ["train.py"], "timm"),
        ("hunto", ["tools/train.py"], "hunto"),
    ],
)
def test_scripts_that_train(name: str, scripts: list[str], profile: str) -> None:
    assert trains(MINIATURES / name) == [(script, profile) for script in scripts]
    for script in scripts:
        assert find(MINIATURES / name / script).name == profile


def test_a_repository_goes_by_its_folder_and_its_original_by_its_own_name(lay: Lay) -> None:
    assert found(lay("mlld", folder="RLD-main"))[0].profile.title == "mdistiller family: 'RLD'"
    assert found(lay("mdistiller"))[0].profile.title == "mdistiller"
    assert found(lay("simkd", folder="MaskKD"))[0].profile.title == "SimKD family: 'MaskKD'"


@pytest.mark.parametrize(
    "imports",
    [
        "from helper.loops import train_distill\ntrain_distill()",
        "from helper.loops import train_distill as go\nfor _ in (): go()",
        "from helper.loops import *\ntrain_distill()",
        "from helper import loops\nloops.train_distill()",
        "import helper.loops as loops\nloops.train_distill()",
        "def main():\n    from helper.loops import train_distill as train\n    train()",
    ],
)
def test_all_ways_to_import(lay: Lay, imports: str) -> None:
    root = lay("norm", main_py=imports)
    assert ("main.py", "repdistiller") in trains(root)


@pytest.mark.parametrize(
    "imports",
    [
        "from helper.loops import train_distill",  # in vain
        "from helper.loops import train_vanilla\ntrain_vanilla()",
        "from helper.loops import accuracy\naccuracy()",
        "from other.loops import train_distill\ntrain_distill()",
        "from .helper.loops import train_distill\ntrain_distill()",
        "# from helper.loops import train_distill\ntrain_distill()",
        "print('from helper.loops import train_distill')",
    ],
)
def test_scripts_that_train_no_student(lay: Lay, imports: str) -> None:
    root = lay("norm", main_py=imports)
    assert "main.py" not in dict(trains(root))


def test_the_function_is_observed_where_the_script_takes_it_from(lay: Lay) -> None:
    loops = (MINIATURES / "norm" / "helper" / "loops.py").read_text()
    root = lay("norm", helper__loops_ot_py=loops, ot_py="from helper.loops_ot import train_distill as t\nt()")
    assert find(root / "ot.py").observe == "helper.loops_ot.accuracy"
    trainer = (MINIATURES / "mlld" / "mdistiller" / "engine" / "trainer.py").read_text()
    root = lay("mlld", mdistiller__engine__ddp_py=trainer, tools__ddp_py="")
    init = root / "mdistiller" / "engine" / "__init__.py"
    exports = "from .ddp import BaseTrainer as Base\nddp_dict = {'base': Base}\n"
    init.write_text(init.read_text() + exports)
    (root / "tools" / "ddp.py").write_text("from mdistiller.engine import ddp_dict\nddp_dict['base']()\n")
    assert find(root / "tools" / "ddp.py").observe == "mdistiller.engine.ddp.accuracy"
    assert find(root / "tools" / "train_ours.py").observe == "mdistiller.engine.trainer.accuracy"


def test_what_makes_the_family_must_be_there(lay: Lay) -> None:
    plain = "def train_distill(loss):\n    loss.backward()\n"  # no accuracy
    assert trains(lay("norm", helper__loops_py=plain)) == []
    silent = "from .util import accuracy\n\n\ndef train_distill(loss):\n    loss.backward()\n"
    assert trains(lay("norm", folder="silent", helper__loops_py=silent)) == []
    local = "def train_distill(loss):\n    from .util import accuracy\n    accuracy()\n    loss.backward()\n"
    assert trains(lay("norm", folder="other", helper__loops_py=local)) == []


def test_the_methods_of_a_fork(lay: Lay) -> None:
    root = lay("mlld")
    profile = find(root / "tools" / "train_ours.py")
    config = ("--cfg", "configs/cifar100/ours/res32x4_res8x4.yaml")
    kind = "MLKD (cifar100/ours/res32x4_res8x4)" if find_spec("yaml") else "cifar100/ours/res32x4_res8x4"
    assert profile.method(config) == kind
    assert profile.method([*config, "--epochs", "3", "--logit-stand", "DISTILLER.TYPE", "KD"]) == (
        "KD (cifar100/ours/res32x4_res8x4) --logit-stand"
    )
    assert profile.method(["--cfg", "configs/gone/kd.yaml"]) == "gone/kd"
    assert find(MINIATURES / "norm" / "train_cifar_student.py").method([]) == "NORM"
    assert find(MINIATURES / "norm" / "train_cifar_student.py").method(["--distill=at"]) == "at"


def test_options_in_a_module_beside_the_script(lay: Lay) -> None:
    root = lay(
        "norm",
        option_py="import argparse\np = argparse.ArgumentParser()\np.add_argument('--distill', default='dcs')\n"
        "p.add_argument('--epochs', type=int, default=100)\n",
        main_py="from helper.loops import train_distill\nfrom option import p\ntrain_distill(p)",
    )
    profile = find(root / "main.py")
    assert profile.method([]) == "dcs"
    assert profile.epochs([]) == 100


def test_the_authors_own_code_is_refused(lay: Lay) -> None:
    root = lay("norm")
    with (root / "helper" / "loops.py").open("a") as file:
        file.write("\n\ndef update_dataset_strategy():\n    pass\n")
    script = root / "train_cifar_student.py"
    script.write_text(
        "from helper.loops import train_distill, update_dataset_strategy\ntrain_distill(update_dataset_strategy)"
    )
    assert "condenses by itself" in str(find(script).refuse([]))


# -- refusals ------------------------------------------------------------------------------------------


def test_a_script_of_no_profile_goes_by_its_folders_name_and_its_own(tmp_path: Path) -> None:
    profile = find(tmp_path / "mine" / "fit.py", "auto")
    assert (profile.name, profile.title, profile.method([])) == ("auto", "'mine'", "fit.py")


def test_a_script_that_only_evaluates(lay: Lay) -> None:
    lay("mlld")
    text = refusal("tools/eval.py")
    assert text.startswith(
        "tools/eval.py is not known to train a student. The repository is known (mdistiller family: 'mlld')."
    )
    assert "In it, a script that trains one uses a trainer of mdistiller.engine" in text
    assert f"kcd run {os.path.join('tools', 'train_ours.py')} ...   (uses trainer_dict of" in text
    assert "kcd run --auto tools/eval.py ..." in text


def test_a_teachers_script(lay: Lay) -> None:
    lay("norm")
    text = refusal("train_cifar_teacher.py")
    assert "There is\n    kcd run train_cifar_student.py ...   (uses train_distill of helper.loops)" in text


def test_a_script_that_is_no_python(lay: Lay) -> None:
    lay("norm", train_py="print 'two'\n", only__train_py="print 'two'\n")
    assert refusal("train.py").startswith("train.py can't be run: it is no valid Python: Missing paren")
    assert refusal("only/train.py").startswith("only/train.py can't be run: it is no valid Python")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torchdistill.core", "- name: 'kcd_adapters.torchdistill'"),
        ("import lightning as L", "kcd_adapters.trainers.lightning.KCDCallback"),
        ("from pytorch_lightning import Trainer", "kcd_adapters.trainers.lightning.KCDCallback"),
        ("from transformers import Seq2SeqTrainer", "kcd_adapters.trainers.transformers.KCDTrainerMixin"),
        ("from trl import SFTTrainer\nimport transformers", "kcd_adapters.trainers.trl.KCDTrainerMixin"),
        ("from accelerate import Accelerator", "kcd_adapters.trainers.accelerate.prepare"),
    ],
)
def test_trainers_that_need_no_profile(lay: Lay, source: str, expected: str) -> None:
    lay("", folder="x", go_py=source)
    text = refusal("go.py")
    assert expected in text
    assert "--auto" not in text
    module, _, name = expected.strip("-' ").rpartition(".")
    if "trainers" in module:
        path = Path(__file__).parents[2] / "adapters" / "trainers" / f"{module.rpartition('.')[2]}.py"
        assert f" {name}(" in path.read_text()  # what is recommended is there


def test_transformers_without_a_trainer_is_a_loop_like_others(lay: Lay) -> None:
    lay("", folder="x", go_py="from transformers import AutoModel")
    text = refusal("go.py")
    assert text.startswith(
        "no profile knows go.py, nor the repository around it.\nWithout a profile: kcd run --auto go.py ..."
    )
    assert "nearest" not in text


def test_the_nearest_profile_is_named(lay: Lay) -> None:
    root = lay("sskd")
    (root / "teacher.py").unlink()
    assert (
        "The nearest profile is sskd: student.py, wrapper.py, cifar.py, utils.py are there, teacher.py not. "
        "If it is a fork: kcd run --profile sskd student.py ..."
    ) in refusal("student.py")
    lay("", folder="x", go_py="from helper.loops import train_distill\ntrain_distill()")
    assert (
        "The nearest profile is repdistiller: it imports helper.loops, but helper/loops.py is not near"
        in refusal("go.py")
    )
    lay("", folder="y", go_py="from mdistiller.engine import trainer_dict\ntrainer_dict()")
    assert "kcd run --profile mdistiller go.py ..." in refusal("go.py")


def test_a_profile_by_its_name_is_adapted_to_the_script(lay: Lay) -> None:
    root = lay("norm")
    assert find(root / "train_cifar_student.py", "repdistiller").title == "RepDistiller family: 'norm'"
    assert (
        find(root / "train_cifar_teacher.py", "repdistiller").title == "RepDistiller"
    )  # as it was asked for


def test_a_profile_needs_no_more_than_a_function_to_observe() -> None:
    profile = Profile(name="mine", title="Mine", observe="losses.kd")
    assert (profile.script, profile.marks, profile.method([])) == ("", (), "a method of its own")
    assert not profile.knows(MINIATURES)
    with pytest.raises(ValueError, match=r"profile mine: observe must name a function, as module\.function"):
        Profile(name="mine", title="Mine")
