"""The core where torch is not installed: in a process of its own, in which importing torch fails."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from helpers import SECONDS

PRELUDE = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.modules["torch"] = None
sys.meta_path.insert(0, NoTorch())
import numpy as np
import kcd_core as kcd
"""


def run(code: str) -> str:
    """What ``code`` prints, run after the prelude with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_condense_by_hand() -> None:
    """Tracker, sampler and condense_step over three stages, mixing and resuming included."""
    out = run(
        """
        n, rng = 200, np.random.default_rng(0)
        images = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
        schedule = kcd.CondensationSchedule(ratio=0.5, stages=3, period=2)

        class Images:
            data = images
            def __len__(self): return n
            def __getitem__(self, i): return self.data[i], i

        def parts():
            return kcd.KnowledgeValueTracker(n), kcd.CondensedSampler(n)

        def train(tracker, sampler, epochs, sets):
            for epoch in epochs:
                sampler.set_epoch(epoch)
                order = list(sampler)
                assert len(order) == schedule.size(n, epoch) == len(set(order))
                for at in range(0, len(order), 32):
                    batch = order[at : at + 32]
                    logits = np.random.default_rng([epoch, at]).normal(0, 2, (len(batch), 10))
                    tracker.update(batch, logits.astype(np.float32))
                if schedule.due(epoch):
                    sets.append(kcd.condense_step(tracker, sampler, schedule))
            return sets

        whole = parts()
        want = train(*whole, range(1, 9), [])
        assert [len(s.kept) for s in want] == [167, 134, 101, 100]

        first, second = parts(), parts()
        got = train(*first, range(1, 4), [])
        for a, b in zip(first, second):
            state = a.state_dict()
            assert all(type(x) in (int, str, bool, list, np.ndarray) for x in state.values()), state
            b.load_state_dict(state)
        got = train(*second, range(4, 9), got)
        for a, b in zip(got, want, strict=True):
            assert (a.kept == b.kept).all() and (a.tail == b.tail).all() and (a.dropped == b.dropped).all()

        sampler = whole[1]
        mixed = [i for i in sampler if sampler.steps(i)]
        assert mixed
        for i in mixed:
            image, target = kcd.mix_arrays(Images(), i, sampler.steps(i))
            assert target == i and image.dtype == np.uint8 and image.shape == (4, 4, 3)

        history = kcd.CondensationHistory(n)
        history.append(want[0], whole[0].value, whole[0].count, epoch=2)
        assert "167" in str(history)
        assert sys.modules["torch"] is None
        assert not [name for name in sys.modules if name.startswith("torch.")]
        print("done", want[-1].kept.sum())
        """
    )
    assert out.startswith("done")


def test_every_value_and_refusal() -> None:
    run(
        """
        student, teacher = np.zeros((3, 4)), np.ones((3, 4))
        for name in ("entropy", "cross_entropy", "kd_divergence", "margin", "reducible_loss"):
            tracker = kcd.KnowledgeValueTracker(3, value=name)
            tracker.update([0, 1, 2], student, teacher_logits=teacher, targets=[0, 1, 2])
            assert tracker.count.tolist() == [1, 1, 1]
            assert np.isfinite(tracker.value).all()
        tracker = kcd.KnowledgeValueTracker(3, value="sequence_entropy")
        tracker.update([0, 1, 2], np.zeros((3, 2, 4)), targets=[[0, -100], [1, 2], [-100, 3]])
        assert np.allclose(tracker.value, np.log(4))
        tracker = kcd.KnowledgeValueTracker(3)
        for call, error in [
            (lambda: tracker.update([3], student[:1]), IndexError),
            (lambda: tracker.update([0], student[:1].astype(int)), TypeError),
            (lambda: kcd.KnowledgeValueTracker(0), ValueError),
        ]:
            try:
                call()
            except error:
                continue
            raise SystemExit(f"no {error}")
        """
    )


def test_what_needs_torch_says_so() -> None:
    run(
        """
        for name in ("wrap_loader", "CondensedLoader", "CondensedLoss"):
            assert name in dir(kcd)
            try:
                getattr(kcd, name)
            except ImportError as error:
                assert f"kcd_core.{name} needs torch, which is not installed" in str(error), error
            else:
                raise SystemExit(f"{name} came without torch")
        try:
            kcd.KnowledgeValueTracker(3, device="cpu")
        except ImportError as error:
            assert "torch" in str(error), error
        else:
            raise SystemExit("a device without torch")
        try:
            kcd.wrap_loaders
        except AttributeError as error:
            assert "wrap_loaders" in str(error)
        """
    )


@pytest.mark.parametrize("forgotten", ["nothing", "torch kcd_core"])
def test_a_star_import_takes_what_there_is(forgotten: str) -> None:
    """Whether torch is known not to be there, or whoever looks for it is told so by an error."""
    run(
        f"""
        for name in [name for name in sys.modules if name.partition(".")[0] in {forgotten.split()}]:
            del sys.modules[name]
        from kcd_core import *
        assert condense(np.ones(2), np.ones(2, int), previous=2, target=1).kept.tolist() == [0]
        assert "wrap_loader" not in globals()
        """
    )


@pytest.mark.parametrize(
    "started", ["import kcd_core", "import runpy; runpy.run_module('kcd_adapters', run_name='__main__')"]
)
def test_a_start_does_not_load_torch(started: str) -> None:
    """Where torch is installed, neither `import kcd_core` nor `kcd --help` loads it: it costs a second or more."""
    code = f"""
        import sys
        sys.argv[1:] = ["--help"]
        try:
            {started}
        except SystemExit as done:
            assert not done.code
        assert "kcd_core" in sys.modules
        print(sorted(name for name in sys.modules if name.partition(".")[0] == "torch"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_state_moves_between_with_and_without() -> None:
    """Saved without torch, loaded with it."""
    import ast

    import numpy as np

    import kcd_core as kcd

    out = run(
        """
        tracker = kcd.KnowledgeValueTracker(3)
        tracker.record([0, 1, 1], [0.5, 1.0, 2.0])
        print({k: x.tolist() if hasattr(x, "tolist") else x for k, x in tracker.state_dict().items()})
        """
    )
    state = ast.literal_eval(out)
    state["total"], state["count"] = np.array(state["total"], np.int64), np.array(state["count"], np.int32)
    for device in (None, "cpu"):
        tracker = kcd.KnowledgeValueTracker(3, device=device)
        tracker.load_state_dict(state)
        assert tracker.count.tolist() == [1, 2, 0]
        assert tracker.value[:2].tolist() == [0.5, 1.5]
