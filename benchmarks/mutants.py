"""Single mutations of kcd, drawn with a seed: do the tests notice them?

    python benchmarks/mutants.py [--quick] [--mutants 120] [--minutes 60] [--seed 0] [--modules GLOB ...] [--patience 3]
    python benchmarks/mutants.py --again

Cosmic Ray makes the mutants, and two operators more: a call or an assignment to an attribute left out, and an
entry of a dict left out. Each is put into a copy of the checkout and met by the tests that `SERVING` names
for its module, up to the first that fails. The working tree is never touched. Mutants that an earlier call has met
are not met again, and stay in the results; ``--again`` meets those that survived with the tests of today. A reason
written beside a survivor in the JSON file is kept; one that begins with "equivalent" says that no test could tell
the mutant from the original, and takes it out of the score.
"""

from __future__ import annotations

import ast
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from _common.report import about, bounded, heading, named, needed, parser

needed("mutants", "cosmic_ray")

import cosmic_ray.plugins  # noqa: E402
import parso  # noqa: E402
from cosmic_ray.ast import ast_nodes  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.operators.operator import Operator  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[1]
SLOW = "not cuda and not spawn and not process and not torchrun and not worker"

#: Modules, the most valuable first; how many mutants a round draws of each; and the tests that serve them.
SERVING = {
    "kcd_core/em_step.py": (3, "condense agreement stages selection"),
    "kcd_core/all_ranks.py": (1, "condense agreement distributed stages"),
    "kcd_core/run.py": (2, "agreement stages loader stream"),
    "kcd_core/run_state.py": (2, "agreement stages loader_resume stream"),
    "kcd_core/stages.py": (1, "stages ahead agreement"),
    "kcd_core/progress.py": (1, "stages"),
    "kcd_core/layout.py": (2, "stages loader_resume sharded agreement"),
    "kcd_core/condense.py": (2, "condense selection golden"),
    "kcd_core/sampler.py": (1, "sampler loader_resume"),
    "kcd_core/epoch_sampler.py": (1, "sampler loader loader_resume"),
    "kcd_core/sampler_state.py": (1, "sampler loader_resume"),
    "kcd_core/tracker.py": (1, "tracker"),
    "kcd_core/recordings.py": (1, "tracker"),
    "kcd_core/sums.py": (2, "tracker exactness"),
    "kcd_core/recipes.py": (1, "recipes sampler"),
    "kcd_core/mixing.py": (2, "mixing loader_kinds"),
    "kcd_core/raw_images.py": (1, "mixing rehearsal"),
    "kcd_core/history.py": (2, "history"),
    "kcd_core/schedule.py": (1, "schedule"),
    "kcd_core/values.py": (1, "values"),
    "kcd_core/formulas.py": (1, "values"),
    "kcd_core/logits.py": (1, "values loader_guards"),
    "kcd_core/sequences.py": (1, "sequences"),
    "kcd_core/loss.py": (1, "loss"),
    "kcd_core/gate.py": (1, "gate"),
    "kcd_core/row_losses.py": (1, "gate"),
    "kcd_core/loading/asking.py": (1, "loader_asks"),
    "kcd_core/skipped.py": (1, "tracker"),
    "kcd_core/loading/loader.py": (2, "loader_guards loader loader_resume"),
    "kcd_core/loading/lengths.py": (1, "loader loader_resume"),
    "kcd_core/loading/alignment.py": (1, "loader_batches loader_guards loader loader_resume"),
    "kcd_core/loading/reader.py": (1, "loader_batches loader_guards loader loader_resume"),
    "kcd_core/loading/row_order.py": (1, "loader_batches"),
    "kcd_core/loading/mixed_images.py": (1, "mixing_cache"),
    "kcd_core/loading/array_file.py": (1, "mixing_cache"),
    "kcd_core/loading/keys.py": (2, "loader loader_kinds mixing"),
    "kcd_core/loading/*.py": (1, "agreement loader loader_kinds mixing sharded"),
    "kcd_core/streaming/*.py": (1, "stream stages"),
    "kcd_core/sharded/*.py": (1, "agreement sharded"),
    "kcd_core/base/distributed.py": (1, "agreement distributed"),
    "kcd_core/base/states.py": (1, "loader_resume stages tracker exactness"),
    "kcd_core/base/padding.py": (1, "stages loader sampler"),
    "kcd_core/base/checkpoint.py": (1, "checkpoint"),
    "kcd_core/base/description.py": (1, "checkpoint"),
    "kcd_core/base/collisions.py": (1, "checkpoint"),
    "kcd_core/base/files.py": (1, "files checkpoint"),
    "kcd_core/base/arrays.py": (1, "values tracker condense"),
    "kcd_core/base/rows.py": (1, "values exactness"),
    "kcd_core/algorithms/permutation.py": (1, "sampler stream"),
    "kcd_core/algorithms/bitset.py": (1, "sharded sampler"),
    "kcd_core/algorithms/*.py": (1, "selection condense sharded"),
    "adapters/hosts/engine.py": (2, "hosts/engine hosts/resume"),
    "adapters/hosts/loader.py": (2, "hosts/engine hosts/resume"),
    "adapters/hosts/order.py": (1, "hosts/engine hosts/parity"),
    "adapters/hosts/alignment.py": (1, "hosts/engine"),
    "adapters/hosts/resume.py": (1, "hosts/resume hosts/engine"),
}  # fmt: skip


class LeaveOut(Operator):  # type: ignore[misc]
    """Leaves out a call whose result is not used, or an assignment to an attribute."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt":
            first = node.children[0]
            call = first.type == "atom_expr" and first.children[-1].get_code().endswith(")")
            target = first.children[0] if first.type == "expr_stmt" else None
            if call or (target is not None and target.type == "atom_expr"):
                yield first.start_pos, first.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        nothing = parso.parse("pass").get_first_leaf()
        nothing.prefix = node.get_first_leaf().prefix
        node.children[0] = nothing
        return node

    @classmethod
    def examples(cls) -> Any:
        return ()


class LeaveOutEntry(Operator):  # type: ignore[misc]
    """Leaves out an entry of a dict that has several."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "dictorsetmaker":
            for at, child in enumerate(node.children):
                if child == ":":
                    yield node.children[at - 1].start_pos, node.children[at + 1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        at = [at for at, child in enumerate(node.children) if child == ":"][index]
        del node.children[at - 1 : at + 3]
        return node

    @classmethod
    def examples(cls) -> Any:
        return ()


def operators() -> Iterator[Any]:
    for name in cosmic_ray.plugins.operator_names():
        made = cosmic_ray.plugins.get_operator(name)
        identity = name.endswith(("_Is", "_IsNot")) and "Operator_Is" not in name  # of numbers
        if not made.arguments() and not identity:
            yield made()
    yield from (LeaveOut(), LeaveOutEntry())


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations and docstrings stand, which are never evaluated."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            if isinstance(noted := getattr(node, field, None), ast.AST):
                spans.append(noted)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in spans]  # type: ignore[attr-defined]


def differs(source: str, mutated: str) -> bool:
    """Whether a mutant is Python, and other than the original."""
    try:
        return ast.dump(ast.parse(source)) != ast.dump(ast.parse(mutated))
    except SyntaxError:
        return False


def mutations(root: Path, module: str, rng: random.Random) -> Iterator[dict[str, Any]]:
    """The mutants of a module, in random order: each place once, with one of the mutations possible there."""
    source = (root / module).read_text()
    nodes, ignored = list(ast_nodes(parso.parse(source))), annotations(source)
    places: dict[Any, list[tuple[Any, int]]] = {}
    some = {kind: [node for node in nodes if node.type == kind] for kind in ("operator", "comparison")}
    for operator in operators():
        name = type(operator).__name__
        kind = (
            "operator" if name.startswith("ReplaceBinary") else "comparison" if "Comparison" in name else ""
        )
        found = (place for node in some.get(kind, nodes) for place in operator.mutation_positions(node))
        for occurrence, (begin, end) in enumerate(found):
            if not any(low <= begin and end <= high for low, high in ignored):
                places.setdefault((begin, end), []).append((operator, occurrence))
    for place in rng.sample(sorted(places), len(places)):
        operator, occurrence = rng.choice(places[place])
        mutated = mutate_code(source, operator, occurrence)
        if mutated is None or not differs(source, mutated):
            continue
        old, new = source.splitlines(), mutated.splitlines()
        first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(new) - 1)
        last = next(i for i, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b)
        last = min(last, min(len(old), len(new)) - first - 1)
        was, now = old[first : len(old) - last], new[first : len(new) - last]
        name = type(operator).__name__
        yield {"module": module, "line": first + 1, "operator": name, "was": was, "now": now}


def drawn(root: Path, modules: list[str], number: int, seed: int) -> list[dict[str, Any]]:
    """``number`` mutants, in rounds over the modules."""
    table: dict[str, tuple[int, str]] = {}
    for pattern, entry in SERVING.items():
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            if path.stem != "__init__" and any(fnmatch(name, wanted) for wanted in modules):
                table.setdefault(name, entry)
    queues = {name: mutations(root, name, random.Random(f"{seed} {name}")) for name in table}
    chosen: list[dict[str, Any]] = []
    while queues and len(chosen) < number:
        for name in list(queues):
            some = [one for _, one in zip(range(table[name][0]), queues[name], strict=False)]
            chosen += [{**one, "tests": table[name][1]} for one in some]
            if not some:
                del queues[name]
    return chosen[:number]


def paths_of(tests: str) -> list[str]:
    """The files that `SERVING` names."""
    folders = {"core": "tests/core", "hosts": "tests/adapters/hosts"}
    stems = [stem if "/" in stem else f"core/{stem}" for stem in tests.split()]
    return [f"{folders[folder]}/test_{stem}.py" for folder, stem in (stem.split("/") for stem in stems)]


#: Runs pytest in forked children: torch is imported once, and kcd in each of them.
SERVER = """
import json, os, sys
import numpy, pytest, torch, torch.utils.data
for line in sys.stdin:
    log, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1), os.dup2(written, 2)
        status = pytest.main(arguments)
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Copy:
    """The checkout in a folder of its own, with all that git does not ignore."""

    def __init__(self, folder: Path, patience: float) -> None:
        self.root, self.patience = folder / "kcd", patience
        listed = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split("\0")
        for name in filter(None, files):
            if (CHECKOUT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / name, self.root / name)
        (folder / "paths").mkdir()
        (folder / "paths" / "kcd_adapters").symlink_to(self.root / "adapters")
        paths = os.pathsep.join([str(self.root), str(folder / "paths"), os.environ.get("PYTHONPATH", "")])
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.log = folder / "log"
        self.usual: dict[str, float] = {}
        self.broken: set[str] = set()

    def arguments(self, tests: str) -> list[str]:
        return ["-x", "-q", "-p", "no:cacheprovider", "-m", "not cuda", "-k", SLOW, *paths_of(tests)]

    def passes(self, tests: str, limit: float) -> bool:
        """Whether these tests pass within ``limit`` seconds. No process is left behind."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([str(self.log), *self.arguments(tests)]), file=self.server.stdin, flush=True)
        child = int(self.server.stdout.readline())
        ended, _, _ = select.select([self.server.stdout], [], [], limit)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        status = int(self.server.stdout.readline())
        self.output = self.log.read_text(errors="replace") if ended else "timeout"
        return status == 0

    def survives(self, mutant: dict[str, Any]) -> bool | None:
        """Whether the tests pass with a mutation; None if what it mutates is not there any more."""
        tests, path = mutant["tests"], self.root / mutant["module"]
        for one in set(tests.split()) - set(self.usual):
            began = time.monotonic()
            if not self.passes(one, 900):
                print(f"without any mutation {one} fails:\n{self.output[-800:]}", flush=True)
                self.broken.add(one)
            self.usual[one] = time.monotonic() - began
            print(f"  {self.usual[one]:.0f} s: {one}", flush=True)
        tests = " ".join(one for one in tests.split() if one not in self.broken)
        usual = sum(self.usual[one] for one in tests.split())
        if not tests:
            return None
        source = path.read_text()
        lines, size = source.splitlines(), len(mutant["was"])
        places = [at for at in range(len(lines)) if lines[at : at + size] == mutant["was"]]
        if not places:
            return None
        at = min(places, key=lambda place: abs(place + 1 - mutant["line"]))
        path.write_text("\n".join([*lines[:at], *mutant["now"], *lines[at + size :]]) + "\n")
        try:
            survived = self.passes(tests, self.patience * usual + 30)
        finally:
            path.write_text(source)
        failed = [line for line in self.output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        mutant["by"] = None if survived else (failed or [self.output.strip()[-60:]])[0].split(" - ")[0]
        return survived


def same(mutant: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a mutant from others, wherever it stands."""
    return mutant["module"], *mutant["was"], "->", *mutant["now"]


def write(path: Path, facts: dict[str, Any], mutants: list[dict[str, Any]]) -> None:
    met = [one for one in mutants if one.get("outcome")]
    equal = [one for one in met if one.get("reason", "").startswith("equivalent")]
    killed = [one for one in met if one["outcome"].startswith("killed")]
    left = [one for one in met if one["outcome"] == "survived"]
    since = [one for one in killed if one["outcome"] == "killed since"]
    score, first = (x / max(1, len(met) - len(equal)) for x in (len(killed), len(killed) - len(since)))
    counts = {"mutants": len(met), "killed": len(killed), "survived": len(left), "equivalent": len(equal)}
    scores = {"score": round(score, 4), "at first": round(first, 4)}
    path.with_suffix(".json").write_text(
        json.dumps({**facts, **counts, **scores, "all": met}, indent=1) + "\n"
    )
    lines = [
        "# mutants", "", heading(facts), "",
        f"{len(met)} mutants of {len({one['module'] for one in met})} modules were met, in all calls: {len(killed)} killed, "
        f"{len(left)} survived, {len(equal)} of them equivalent. **{score:.1%}** of those that change behaviour are "
        f"killed; {first:.1%} were at first.",
        "", *(["Earlier calls:", ""] if facts["earlier"] else []), *(f"- {call}" for call in facts["earlier"]),
    ]  # fmt: skip
    for title, some in (
        ("Survived", left),
        ("Killed since, by a test written then or first met then", since),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            f"| where | was | now | {'reason' if some is left else 'by'} |",
            "|---|---|---|---|",
        ]
        for one in some:
            was, now = (" ".join(x.strip() for x in one[key]).replace("|", "\\|") for key in ("was", "now"))
            why = one.get("reason", "") if some is left else one["by"]
            lines.append(f"| {one['module']}:{one['line']} | `{was}` | `{now}` | {why} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--mutants", type=int, default=120, metavar="N", help="how many; 3 with --quick")
    options.add_argument(
        "--minutes", type=float, default=60, metavar="M", help="no further one after so many"
    )
    options.add_argument("--seed", type=int, default=0, metavar="S", help="of the choice")
    options.add_argument("--modules", nargs="+", default=["*"], metavar="GLOB", help="among these only")
    options.add_argument(
        "--patience",
        type=float,
        default=3,
        metavar="X",
        help="killed after X times the usual seconds, and 30",
    )
    options.add_argument("--again", action="store_true", help="those that survived, with the tests of today")
    given = options.parse_args(arguments)
    bounded(options, given, mutants=1, seed=0)
    name = named("mutants", options, given, "quick")
    path, facts = given.out / name, about()
    before = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").exists() else {}
    mutants = before.get("all", [])
    facts["earlier"] = [*before.get("earlier", []), *([heading(before)] if before else [])]
    given.out.mkdir(parents=True, exist_ok=True)
    stop = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), given.patience)
        if given.again:
            todo = [one for one in mutants if one["outcome"] == "survived" and not one.get("reason")]
            for one in todo:
                one["tests"] = next(
                    tests for pattern, (_, tests) in SERVING.items() if fnmatch(one["module"], pattern)
                )
        else:
            known = {same(one) for one in mutants}
            some = drawn(copy.root, given.modules, 3 if given.quick else given.mutants, given.seed)
            todo = [one for one in some if same(one) not in known]
            mutants = [*mutants, *todo]
        for one in todo:
            if time.monotonic() > stop:
                break
            survived = copy.survives(one)
            if survived is None:
                continue
            one["outcome"] = "survived" if survived else "killed since" if given.again else "killed"
            print(
                f"{one['outcome']:<12} {one['module']}:{one['line']} {one['now']} {one['by'] or ''}",
                flush=True,
            )
            write(path, facts, mutants)
    print(f"{sum(not one.get('outcome') for one in mutants)} of those drawn were not met", flush=True)
    return bool(copy.broken)


if __name__ == "__main__":
    sys.exit(main())
