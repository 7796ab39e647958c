"""What docs/costs.md says of figures, against those that the benchmarks wrote down."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())


def result(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def seconds(text):
    """Of "7.53 ms"."""
    number, unit = text.split()
    return float(number) * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}[unit]


def test_a_step():
    told = re.findall(
        r"^\| ([\d.]+) ms.*? \| ([\d.]+) ms \| ([\d.]+) % \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| (.*?) \|$",
        PAGE,
        re.MULTILINE,
    )
    pairs = result("overhead-cpu")["pairs"]
    for (step, added, share, *ratios, verdict), pair in zip(told, pairs, strict=True):
        kcd, plain = pair["arms"]["kcd"], pair["arms"]["kd"]["median_ms"]
        assert step == (f"{plain:.1f}" if plain < 100 else f"{plain:.0f}")
        assert added == f"{kcd['added_us'] / 1000:.2f}"
        assert share == f"{100 * kcd['added_share']:.{len(share.partition('.')[2])}f}"
        low, high = kcd["ratio_95"]
        assert ratios == [f"{figure:.3f}" for figure in (kcd["ratio"], low, high)]
        assert verdict == ("met" if high <= 1.005 else "missed" if low > 1.005 else "can't tell")
    to_authors = [pair["arms"]["kcd"]["added_to_authors"] for pair in pairs]
    least, most = (f"{pick(to_authors):.1f}" for pick in (min, max))
    assert f"It takes {least} to {most} times as long as the authors' recording" in PROSE
    assert min(pair["arms"]["kcd"]["added_to_authors_95"][0] for pair in pairs) > 0.7
    assert "where the target is at most 0.7 times" in PROSE


def test_a_recorded_batch():
    row = result("recording")["rows"]["tracker.update, 64 x 100, vs the authors' recording"]
    assert f"without a training step between, takes {row['ratio']} times as long (" in PROSE


def test_the_end_of_a_stage():
    rows = result("selection")["rows"]
    small, imagenet, large = (
        seconds(next(row["kcd"] for what, row in rows.items() if what.startswith(f"condense, N = {size},")))
        for size in ("50,000", "1,281,167", "100,000,000")
    )
    told = f"{1e3 * small:.1f} ms for 50,000 samples, {1e3 * imagenet:.1f} ms for 1,281,167 and {large:.2f} s for 10⁸"
    assert told in PROSE


def test_the_start():
    rows = result("startup")["rows"]
    core, command, wrap = (
        rows[f"{what}, vs import torch"]
        for what in ("import kcd_core", "kcd --help", "from kcd_core import wrap_loader")
    )
    torch = seconds(core["reference"])
    assert f"`import kcd_core` takes {seconds(core['kcd']):.2f} s" in PROSE
    assert f"`kcd --help` {seconds(command['kcd']):.2f} s" in PROSE
    assert f"an eighth of what `import torch` takes ({torch:.2f} s)" in PROSE
    assert 7 < torch / seconds(core["kcd"]) < 9
    assert 7 < torch / seconds(command["kcd"]) < 9
    assert f"does, and takes {wrap['ratio']} of its time" in PROSE


def test_memory():
    rows = result("memory")["rows"]
    for told, parts in {
        "held with a set in force": ["held after it"],
        "peak of a stage": ["peak of a stage"],
        "peak of saving or loading a state": ["peak of saving", "peak of loading"],
    }.items():
        without, mixed = (
            max(float(rows[f"default, {mixing} mixing: {part}"]["kcd"]) for part in parts)
            for mixing in ("without", "with")
        )
        assert f"| {told} | {without:.0f} | {mixed:.0f} |" in PAGE


def test_between_ranks():
    rows = result("communication")["rows"]
    shares = [float(row["ratio"]) for what, row in rows.items() if "bytes sent" in what and row["ratio"]]
    assert f"{100 * min(shares):.1f} % to {100 * max(shares):.1f} % of the bytes" in PROSE


def test_a_billion_samples():
    rows, share = result("scale")["rows"], 10**10 / 64
    real = seconds(rows["N = 300,000,000, 1 rank(s), counts: a stage"]["kcd"])
    simulated = rows[
        "N = 1,000,000,000, 64 simulated ranks, counts: a stage of all ranks, one after the other"
    ]
    assert f"| a stage, at best | {real * share / 3e8:.0f} s |" in PAGE
    assert f"| a stage, at worst | {seconds(simulated['kcd']) / 64 * 10:.0f} s |" in PAGE
    (held,) = re.findall(r"\| ([\d.]+) bytes for each sample of a slice \|", PAGE)
    assert f"| memory on each rank | {float(held) * share / 1e9:.1f} GB, instead of 120 GB |" in PAGE
    assert float(simulated["reference"].removeprefix("sends ").removesuffix(" MB")) < 2.1
