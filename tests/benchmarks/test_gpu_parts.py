"""The parts `distil` and `host` of benchmarks/gpu.py, on the CPU and at a small size."""

import gzip
import importlib
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

import kcd_core as kcd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
N = 120
SMALL = {"tests": 40, "batch": 30, "teacher": (1, 4), "student": (1, 4), "teacher_epochs": 1, "every": 4}


@pytest.fixture(scope="module")
def gpu():
    """A part's module by its name; it finds the script's neighbours."""
    sys.path.insert(0, str(BENCHMARKS))
    yield lambda name: importlib.import_module(f"_gpu.{name}")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def small(gpu):
    """Sizes for these tests."""
    size = gpu("_pictures").Size(images=N, periods=(1,), seeds=2, **SMALL)
    return {("cpu", True): size}


@pytest.fixture(scope="module")
def part_of(gpu, tmp_path_factory):
    """A part's run, on the CPU."""

    def make(name="distil", *, seconds=1e6, **given):
        out = tmp_path_factory.mktemp(name) / "rows.json"
        deadline = time.monotonic() + seconds
        settings = {"where": "cpu", "quick": True, "data_dir": None, **given}
        return gpu("part").Part(name=name, out=out, deadline=deadline, **settings)

    return make


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Files such as Fashion-MNIST's, where torchvision puts them; a class is a brightness, blurred."""
    folder = tmp_path_factory.mktemp("data")
    below = folder / "FashionMNIST" / "raw"
    below.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 150), ("t10k", 50)):
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        images = (20 * labels[:, None, None] + generator.integers(0, 50, (count, 28, 28))).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (below / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


@pytest.fixture(scope="module")
def watched(gpu, small, part_of, data_dir):
    """The part, once, and what went on in its runs: by arm and seed, the samples of each loss and of each recording,
    and the rows of which the teacher was asked."""
    distil, arms = gpu("distil"), gpu("_distil_arms")
    losses, records, trackers, now = defaultdict(list), defaultdict(list), {}, []
    queries = defaultdict(list)
    run_of, loss_of, update = distil.run_of, arms.loss_of, kcd.KnowledgeValueTracker.update

    def watched_run(arm, seed, *rest):
        now[:] = [(next(name for name in arms.ARMS if arms.ARMS[name] is arm), seed)]
        result = run_of(arm, seed, *rest)
        now.clear()
        return result

    def watched_loss(logits, teacher_logits, targets, rows):
        if now:
            losses[now[0]].append(len(logits))
            asked = list(range(len(logits))) if rows is None else rows.tolist()
            assert len(teacher_logits) == len(asked)
            queries[now[0]].append(asked)
        return loss_of(logits, teacher_logits, targets, rows)

    def watched_update(tracker, indices, logits):
        if now:
            trackers[now[0]] = tracker
            records[now[0]].append((indices.copy(), logits.detach().double().numpy()))
        update(tracker, indices, logits)

    part = part_of(data_dir=data_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil, "SIZES", small)
        patch.setattr(distil, "run_of", watched_run)
        patch.setattr(arms, "loss_of", watched_loss)
        patch.setattr(kcd.KnowledgeValueTracker, "update", watched_update)
        distil.run(part)
    return part, losses, records, trackers, queries


# -- distil ----------------------------------------------------------------------------------------------


def test_all_arms_run_and_are_written(watched):
    part, losses, *_ = watched
    assert part.failures == []
    written = json.loads(part.out.read_text())
    assert written["rows"] == json.loads(json.dumps(part.rows))
    assert part.rows[0]["what"] == "images of Fashion-MNIST"
    assert part.rows[1]["data"].startswith(f"the first {N} images of Fashion-MNIST")
    single = [row for row in part.rows if "seed" in row]
    assert sorted((row["arm"], row["seed"]) for row in single) == sorted(losses)
    assert len(single) == 14
    for row in single:
        assert 0 <= row["accuracy"] <= 1
        assert row["seconds"] > 0


def test_an_arm_draws_what_the_schedule_says(watched):
    part, losses, *_ = watched
    for ratio in ("0.7", "0.3"):
        wanted = sum(reference.sizes(N, ratio, 6, 1, 0, 6))
        assert [sum(losses[f"kc-kd-{ratio}", seed]) for seed in (0, 1)] == [wanted] * 2
    equal = sum(reference.sizes(N, "0.7", 6, 1, 0, 6))
    assert [sum(losses[name, 0]) for name in ("kd", "kd-equal", "random")] == [6 * N, equal, equal]
    assert all(row["drawn"] == sum(losses[row["arm"], row["seed"]]) for row in part.rows if "seed" in row)
    assert min(min(batches) for batches in losses.values()) > 1, "BatchNorm"


def test_the_summary_is_of_the_runs(watched):
    part, *_, queries = watched
    runs = defaultdict(dict)
    for row in part.rows:
        if "seed" in row:
            runs[row["arm"]][row["seed"]] = row
    summaries = [row for row in part.rows if "seeds" in row]
    assert [row["arm"] for row in summaries] == list(runs)
    for row in summaries:
        own, base = runs[row["arm"]], runs["kd"]
        assert row["accuracy"] == pytest.approx(50 * sum(own[seed]["accuracy"] for seed in (0, 1)))
        ratios = [own[seed]["seconds"] / base[seed]["seconds"] for seed in (0, 1)]
        assert row["time_ratio"] == pytest.approx(sum(ratios) / 2)
        assert row["queries"] == sum(len(asked) for seed in (0, 1) for asked in queries[row["arm"], seed]) / 2
        if row["arm"] != "kd":
            apart = [own[seed]["accuracy"] - base[seed]["accuracy"] for seed in (0, 1)]
            assert row["to_kd"] == pytest.approx(50 * sum(apart), abs=1e-9)


def test_what_is_recorded_and_drawn_follows_from_the_logits(watched):
    """V and F, and the set of every epoch, from a float64 reading of what the student predicted."""
    _, _, records, trackers, _ = watched
    for ratio in ("0.7", "0.3"):
        key = (f"kc-kd-{ratio}", 0)
        sizes = reference.sizes(N, ratio, 6, 1, 0, 6)
        record, kept = -np.ones((N, 6)), list(range(N))
        batches = iter(records[key])
        for epoch, size in enumerate(sizes):
            drawn = []
            while len(drawn) < size:
                indices, logits = next(batches)
                drawn += indices.tolist()
                record[indices, epoch] = [reference.entropy(row) for row in logits]
            assert sorted(drawn) == sorted(kept)
            value, count = reference.recorded(record)
            if epoch < 5:
                kept = reference.condense(value, count, previous=size, target=sizes[epoch + 1]).kept
        assert next(batches, None) is None
        np.testing.assert_allclose(trackers[key].value, value, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(trackers[key].count, count)


@pytest.mark.parametrize(("name", "ratio"), [("gate", "1"), ("gate-0.3", "0.3")])
def test_the_teacher_is_asked_for_a_quarter_by_value_and_for_what_is_mixed(watched, name, ratio):
    part, _, records, _, queries = watched
    record, kept, asked, mixed, rows = -np.ones((N, 6)), list(range(N)), set(range(N)), set(), 0
    batches = zip(records[name, 0], queries[name, 0], strict=True)
    sizes = reference.sizes(N, ratio, 6, 1, 0, 6)
    for epoch, size in enumerate(sizes):
        drawn = []
        while len(drawn) < size:
            (indices, logits), queried = next(batches)
            drawn += indices.tolist()
            record[indices, epoch] = [reference.entropy(row) for row in logits]
            assert queried == [row for row, i in enumerate(indices.tolist()) if i in asked | mixed]
            rows += len(queried)
        assert sorted(drawn) == sorted(kept)
        value, count = reference.recorded(record)
        asked = set(reference.ranking(value, count, 0.03)[: N // 4])
        if epoch < 5 and ratio != "1":
            stage = reference.condense(value, count, previous=size, target=sizes[epoch + 1])
            kept, mixed = stage.kept, mixed | set(stage.tail)
    assert next(batches, None) is None
    (own,) = [row["queries"] for row in part.rows if (row.get("arm"), row.get("seed")) == (name, 0)]
    assert own == rows
    assert (rows == N + 5 * N // 4) == (ratio == "1")


def test_the_gates_loss_is_plain_distillation_where_asked_and_labels_elsewhere(gpu):
    loss_of, generator = gpu("_distil_arms").loss_of, torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(6, 4, generator=generator) * 3 for _ in range(2))
    targets, rows, expected = torch.tensor([0, 1, 2, 3, 0, 1]), [1, 4], 0.0
    for i, (own, taught) in enumerate(zip(logits.tolist(), teacher.tolist(), strict=True)):
        label = -np.log(reference.softmax(own)[targets[i]])
        p, q = (reference.softmax([x / 4 for x in z]) for z in (taught, own))
        apart = 16 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
        expected += (0.1 * label + 0.9 * apart if i in rows else label) / 6
    gated = loss_of(logits, teacher[rows], targets, torch.tensor(rows))
    assert gated.item() == pytest.approx(expected, rel=1e-5)
    everything = loss_of(logits, teacher, targets, torch.arange(6)).item()
    assert everything == pytest.approx(loss_of(logits, teacher, targets, None).item(), rel=1e-5)


def test_a_teacher_meets_every_number_of_rows_before_a_run_counts(gpu, small, part_of, data_dir, monkeypatch):
    distil, arms = gpu("distil"), gpu("_distil_arms")
    (size,) = small.values()
    met, teacher_of = set(), distil.teacher_of

    def watched_teacher(*given):
        teacher, steps = teacher_of(*given)
        teacher.register_forward_pre_hook(lambda module, inputs: met.add(len(inputs[0])))
        return teacher, steps

    monkeypatch.setattr(distil, "SIZES", {("cpu", True): replace(size, batch=40)})
    monkeypatch.setattr(distil, "teacher_of", watched_teacher)
    monkeypatch.setattr(distil, "run_of", lambda *_: None)
    distil.run(part_of(data_dir=data_dir))
    assert arms.multiple_of(replace(size, batch=40)) == 2
    assert met >= set(range(2, 41, 2))


def test_who_begins_changes_and_a_seed_that_was_begun_in_vain_does_not_count(
    gpu, small, part_of, data_dir, monkeypatch
):
    """KD, to which all are compared, is there of each seed that counts."""
    distil = gpu("distil")
    (size,) = small.values()
    monkeypatch.setattr(distil, "SIZES", {("cpu", True): replace(size, seeds=3)})
    monkeypatch.setattr(distil, "pace_of", lambda *_: distil.Pace(0, 0))
    monkeypatch.setattr(distil, "warm_up", lambda *_: None)
    names, begun = list(distil.ARMS), []

    def run_of(arm, seed, period, pictures, *_):
        name = next(name for name in names if distil.ARMS[name] is arm)
        begun.append((seed, name))
        if seed == 2 and name == "kd":
            return None
        drawn = distil.lengths_of(arm, N, period, size.batch)
        return {
            "seed": seed,
            "seconds": 1.0,
            "drawn": sum(drawn),
            "drawn_by_epoch": drawn,
            "queries": sum(drawn),
            "accuracy": 0.5 + seed / 10,
        }

    monkeypatch.setattr(distil, "run_of", run_of)
    part = part_of(data_dir=data_dir)
    distil.run(part)
    assert part.failures == []
    order = [[name for own, name in begun if own == seed] for seed in range(3)]
    assert order == [names, names[1:] + names[:1], names[2:] + names[:1]]
    assert [row["seeds"] for row in part.rows if "seeds" in row] == [2] * len(names)


def test_all_that_a_run_does_was_done_before_the_first_that_counts(
    gpu, small, part_of, data_dir, monkeypatch
):
    distil, arms = gpu("distil"), gpu("_distil_arms")
    done = []
    run_of, condense_step = arms.run_of, kcd.condense_step
    monkeypatch.setattr(distil, "SIZES", small)
    monkeypatch.setattr(kcd, "condense_step", lambda *a, **k: done.append("stage") or condense_step(*a, **k))
    monkeypatch.setattr(arms, "run_of", lambda arm, *rest: done.append(arm) or run_of(arm, *rest))
    monkeypatch.setattr(distil, "run_of", lambda *_: done.append("first"))
    distil.run(part_of(data_dir=data_dir))
    assert done.count("first") == 1
    assert done[-1] == "first"
    assert [arm for arm in done if isinstance(arm, arms.Arm)] == list(arms.ARMS.values())
    assert done.count("stage") == 4 * 5 + 2 * 5  # of four arms that choose, and of two gates


def test_mixtures_are_the_methods(gpu):
    generator = np.random.default_rng(0)
    start = generator.integers(0, 256, (40, 5, 5), dtype=np.uint8)
    expected, images = dict(enumerate(start)), torch.from_numpy(start.copy())
    for stage, target in enumerate((34, 28, 22), 1):
        value = generator.random(40)
        chosen = kcd.condense(value, np.ones(40, int), previous=target + 6, target=target, stage=stage)
        expected = reference.mix(expected, chosen.tail, chosen.dropped, chosen.weights)
        images = gpu("_distil_arms").mixed(images, chosen)
    np.testing.assert_array_equal(images.numpy(), np.stack([expected[i] for i in range(40)]))
    assert (images.numpy() != start).any()


@pytest.mark.parametrize(("samples", "period", "batch"), [(120, 1, 30), (60_000, 4, 500), (101, 3, 64)])
def test_equal_samples_are_equal(gpu, samples, period, batch):
    arms = gpu("_distil_arms")
    equal, kcd_s = (
        arms.lengths_of(arms.ARMS[name], samples, period, batch) for name in ("kd-equal", "kc-kd-0.7")
    )
    assert sum(equal) == sum(kcd_s) == sum(reference.sizes(samples, "0.7", 6, period, 0, 6 * period))
    assert equal[0] == samples
    assert batch <= min(equal) <= max(equal) < 2 * samples


def test_no_stage_of_all_images_leaves_a_smaller_batch_for_a_device_to_choose_kernels_for(gpu):
    arms, size = gpu("_distil_arms"), gpu("_pictures").SIZES["cuda", False]
    for arm in arms.ARMS.values():
        for period in size.periods:
            assert all(n % size.batch == 0 for n in arms.lengths_of(arm, 60_000, period, size.batch))


def test_a_part_ends_before_its_deadline_though_the_runs_are_longer_than_they_seemed(
    gpu, small, part_of, data_dir, monkeypatch
):
    distil, left = gpu("distil"), iter(np.arange(6, 0, -0.1))  # seconds, whenever it is asked
    (size,) = small.values()
    long = replace(size, periods=(200,))
    monkeypatch.setattr(distil, "SIZES", {("cpu", True): long})
    monkeypatch.setattr(distil, "pace_of", lambda *_: distil.Pace(0, 0))
    monkeypatch.setattr(gpu("part").Part, "left", lambda part: next(left))
    part = part_of(data_dir=data_dir)
    distil.run(part)
    assert part.left() > 0.5
    assert [row["what"] for row in part.rows[1:3]] == ["teacher", "setting"]
    assert len(part.failures) == 1
    assert "no time for a single run of" in part.failures[0]
    assert json.loads(part.out.read_text())["failures"] == part.failures


def test_a_run_that_does_not_fit_is_not_begun(gpu, small, part_of, data_dir, monkeypatch):
    distil = gpu("distil")
    monkeypatch.setattr(distil, "SIZES", small)
    monkeypatch.setattr(distil, "pace_of", lambda *_: distil.Pace(1e6, 1e6))
    monkeypatch.delattr(distil, "run_of")
    part = part_of(data_dir=data_dir)
    distil.run(part)
    assert "single run of KD, KD at equal samples, random dropping to 0.7" in part.failures[0]


def test_absent_and_damaged_files_are_told_and_replaced_by_digits(gpu, small, part_of, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    pictures = gpu("_pictures")
    monkeypatch.setattr(pictures, "DEBIAN", tmp_path / "none")
    (size,) = small.values()
    part = part_of()
    shown, _ = pictures.pictures_of(part, size)
    assert shown.name.startswith("the first 600 images of scikit-learn's digits")
    first, second = part.rows
    assert first["what"] == "Fashion-MNIST"
    assert first["left_out"]
    assert "pass --data-dir" in first["figure"]
    assert second["what"] == "images of scikit-learn's digits", "so that no results of others are replaced"
    assert part.failures == []
    part = part_of(data_dir=tmp_path)
    shown, _ = pictures.pictures_of(part, size)
    assert "digits" in shown.name
    assert f"--data-dir {tmp_path} has neither train-images" in part.failures[0]


# -- host ------------------------------------------------------------------------------------------------


def test_a_miniature_is_observed_and_condensed(gpu, part_of, monkeypatch):
    """The second one; the first runs with all other parts."""
    host = gpu("host")
    monkeypatch.setattr(host, "MINIATURES", host.MINIATURES[1:])
    part = part_of("host")
    host.run(part)
    assert part.failures == []
    first, row = part.rows
    assert first["left_out"]
    assert row["what"] == "mdistiller"
    assert row["drawn"] == reference.sizes(200, "0.5", 2, 1, 0, 4)
    assert row["observed"] == sum(row["drawn"])
    assert row["dtype"] == "bfloat16"


def test_a_run_that_breaks_says_how(gpu, part_of, monkeypatch):
    host = gpu("host")
    monkeypatch.setattr(host, "MINIATURES", (host.Host("SSKD", "sskd", ("missing.py",), "float16"),))
    part = part_of("host")
    host.run(part)
    assert "SSKD: the plain run ended with 2: " in part.failures[0]
    assert "missing.py" in part.failures[0]
    part = part_of("host", seconds=1)
    host.run(part)
    assert part.failures == ["SSKD: there was no time for the plain run"]


def steps(host, sizes, inside, first=()):
    """The notes of a run whose steps wait at the lines ``inside``, and each epoch's first at ``first``, too."""
    made = []
    for epoch, size in enumerate(sizes, 1):
        for start in range(0, size, 250):
            waited = [*inside, *first] if start == 0 or epoch == 1 else list(inside)
            made.append({"epoch": epoch, "rows": min(250, size - start), "waited": waited})
            made[-1] |= {"device": "cuda", "dtype": "float16"}
    records = [{"kept": size} for size in sizes[1:]]
    history = {"summary": {"observed": sum(sizes)}, "history": {"records": records}}
    return host.Trained(made, history)


@pytest.mark.parametrize(
    ("plain", "mine", "error"),
    [
        (["a:1"], ["a:1"], None),
        (["a:1"], ["a:1", "b:2"], "kcd run waits at b:2"),
        (["a:1"], ["a:1", "a:1"], "lines where the host waits, too"),
        ([], [], "none was counted in the plain run"),
    ],
)
def test_a_synchronisation_that_kcd_adds_to_a_step_is_found(gpu, part_of, plain, mine, error):
    host = gpu("host")
    part = part_of("host", where="cuda")
    runs = steps(host, [1000] * 4, plain), steps(host, [1000, 750, 500, 500], mine, first=["c:3", "d:4"])
    if error is None:
        host.look(host.MINIATURES[0], *runs, part)
    else:
        with pytest.raises(host.RunError, match=error):
            host.look(host.MINIATURES[0], *runs, part)
    (row,) = part.rows
    assert row["synchronisations"] == {"plain": len(plain), "kcd": len(mine)}
    assert row["synchronisations_at_start"] == {"plain": len(plain), "kcd": len(mine) + 2}
