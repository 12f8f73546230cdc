"""Change the library one spot at a time and see whether a notebook's checks notice.

    python tools/mutation.py                       a sample over all modules; results/
    python tools/mutation.py --seed 4 --sample 200 --out ""    another one, not stored
    python tools/mutation.py --all                 every mutation (hours)
    python tools/mutation.py --module sampling --cell top-k --all --out ""
    python tools/mutation.py --check               and fail if too few are noticed

The library is the notebooks' exported cells. Cosmic Ray's operators change one spot of
such a cell: a number by one, `<` to `<=`, `and` to `or`, a loop that never runs. Then
only the check cells of that notebook run which need the cell, each with the cells that
it needs itself (`tools/slices.py`), the quickest first. A mutation is killed when a
cell raises anything, or takes five times as long as without it; the others survive.

One mutation is drawn per spot, so that a spot counts once, however many operators fit
it. No mutations, because no check can or should see them: of docstrings, annotations
and imports; between `==` and `is`, which only differ in how Python stores small things;
between operators of arithmetic that mostly raise TypeError (`+` to `<<`), which would
be killed by any cell that runs the line: one counterpart of each is kept.

Mutations that cannot change what the library does are listed, with the reason, in
`tests/mutants/equivalent.toml`. They are run and counted, but apart.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cosmic_ray.ast import ast_nodes, get_ast  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.plugins import get_operator, operator_names  # noqa: E402
from side_by_side import describe_machine  # noqa: E402

from tools.slices import Notebook, python_of  # noqa: E402

EQUIVALENT = ROOT / "tests/mutants/equivalent.toml"
WANTED = 0.85  # of the mutations that are not equivalent
STAGES = (1, 4, 10)  # seconds: checks up to so long run together; longer ones, never
MEMORY = 12 << 30  # bytes that a mutation may take
COUNTERPARTS = {
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_Mul"),
    *("Pow_Mul", "RShift_LShift", "LShift_RShift", "BitOr_BitAnd", "BitAnd_BitOr"),
}
LATE = "out of time"
SCRATCH = tempfile.gettempdir()
ARITHMETIC, COMPARISON = "ReplaceBinaryOperator_", "ReplaceComparisonOperator_"


@dataclass
class Mutation:
    """One change of one cell, and what became of it."""

    module: str
    cell: str
    operator: str
    number: int  # of the places in the cell where the operator fits
    spot: tuple  # what operators share: family, line, column
    line: str
    before: str = ""  # the lines that it changes
    after: str = ""
    source: str = ""  # the whole cell, changed
    fate: str = ""  # killed, out of time, survived
    by: str = ""  # the cell that raised, and what

    def apply(self, source):
        """Make the change; return whether it is one, of a program that Python reads."""
        self.source = mutate_code(source, get_operator(self.operator)(), self.number)
        self.before, self.after = differing(source, self.source)
        try:
            return ast.dump(ast.parse(self.source)) != ast.dump(ast.parse(source))
        except SyntaxError:
            return False


def operators():
    """Cosmic Ray's operators that are used, by name."""
    for name in operator_names():
        name = name.removeprefix("core/")
        if name.startswith(ARITHMETIC):
            if name.removeprefix(ARITHMETIC) not in COUNTERPARTS:
                continue
        elif name.startswith(COMPARISON):
            old, new = name.removeprefix(COMPARISON).split("_")
            if old.startswith("Is") != new.startswith("Is"):
                continue
        elif name.startswith("Variable"):  # these need names, and draw at random
            continue
        yield name, get_operator(f"core/{name}")()


def unseen(source):
    """Spans, in lines and columns, of what is not mutated."""
    for node in ast.walk(ast.parse(source)):
        skipped = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped.append(node)
        for part in filter(None, skipped):
            yield span(part)


def arithmetic(source):
    """Spans of sums, products and so on; the `*` of a signature is none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp):
            yield span(node)


def span(node):
    first = (node.lineno, node.col_offset)
    return first, (node.end_lineno, node.end_col_offset)


def mutations_of(module, cell, source):
    """What could be changed; docstrings hold nothing that an operator changes."""
    skipped, sums = list(unseen(source)), list(arithmetic(source))
    lines = source.splitlines()

    def is_in(spot, spans):
        return any(first <= spot[0] and spot[1] <= last for first, last in spans)

    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators():
        spots = [spot for node in nodes for spot in operator.mutation_positions(node)]
        for number, place in enumerate(spots):
            if is_in(place, skipped):
                continue
            if name.startswith(ARITHMETIC) and not is_in(place, sums):
                continue
            start = place[0]
            spot, line = (name.split("_")[0], *start), lines[start[0] - 1]
            yield Mutation(module, cell, f"core/{name}", number, spot, line)


def differing(old, new):
    """The lines of the one that are not in the other, and the other way round."""
    lines = list(difflib.ndiff(old.splitlines(), new.splitlines()))
    return [
        " ".join(line[2:].strip() for line in lines if line.startswith(sign))
        for sign in "-+"
    ]


def draw(mutations, sample, seed):
    """One mutation per spot, and of these `sample`, the modules in proportion.

    The order is that of a hash of the mutation and the seed: a cell that changes
    leaves the draw of the others nearly as it was.
    """

    def rank(mutation):
        own = (mutation.cell, mutation.operator, mutation.line, mutation.spot[2])
        return hashlib.sha256(repr((seed, own, mutation.number)).encode()).digest()

    spots = {(m.module, m.cell, m.spot): m for m in sorted(mutations, key=rank)}
    share = min(1, sample / len(spots))
    by_module = defaultdict(list)
    for mutation in sorted(spots.values(), key=rank):
        by_module[mutation.module].append(mutation)
    for drawn in by_module.values():
        yield from drawn[: max(1, round(share * len(drawn)))]


# --- Running cells: in a child process, which a mutation may spoil or hang


def in_child(work, seconds=None):
    """Return what `work` returns, from a child of this process, or LATE.

    `seconds` are those of the processor, so that a busy machine kills nothing.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.setpgid(0, 0)
        if seconds:
            for timer, kind, times in (
                (signal.ITIMER_PROF, signal.SIGPROF, 1),
                (signal.ITIMER_REAL, signal.SIGALRM, 60),  # it waits for something
            ):
                signal.signal(kind, signal.SIG_DFL)
                signal.setitimer(timer, times * seconds)
        answer = json.dumps(work())
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left running
    if answer:
        return json.loads(answer)
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (
        signal.SIGPROF,
        signal.SIGALRM,
    )
    return LATE if late else ["", "the process died"]


def run(book, cells, space, instead=None, times=None):
    """Run the cells as a notebook would; return None, or which raised, and what."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for cell in cells:
            begin = time.process_time()
            try:
                book.run([cell], space, instead)
            except BaseException as error:
                if times is None:
                    return [cell, f"{type(error).__name__}: {error}"[:200]]
                times[cell] = float("inf")  # too slow, or needs one that is
            else:
                if times is not None:
                    times[cell] = time.process_time() - begin
    return None


def prepare():
    """Load once what all cells need, so that a child begins with it."""
    import matplotlib
    import torch
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    quiet = Config()
    quiet.HistoryManager.enabled = False
    main = sys.modules["__main__"]
    InteractiveShell.instance(config=quiet)  # for cells that display, or capture that
    sys.modules["__main__"] = main  # which the shell has put its own place in
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def fresh():
    return {"__name__": "__main__", "sys": sys}


def measure(path):
    """Seconds of each cell that checks of exported cells need, by its id."""
    book = Notebook(path)
    wanted = {i for check in checks(book) for i in (*book.needs(check), check)}

    def work():
        times, space = {}, fresh()

        def stop(*_):
            raise TimeoutError

        signal.signal(signal.SIGPROF, stop)
        for cell in book.sources:
            if cell in wanted:
                signal.setitimer(signal.ITIMER_PROF, STAGES[-1])
                run(book, [cell], space, times=times)
                signal.setitimer(signal.ITIMER_PROF, 0)
        return times

    return path.stem, in_child(work)


def exported(book):
    """The exported cells and their modules."""
    found = {i: re.match(r"#\|\s*export\s+(\S+)", s) for i, s in book.sources.items()}
    return {cell: match[1] for cell, match in found.items() if match}


def checks(book):
    own = exported(book)
    return [
        i
        for i, source in book.sources.items()
        if i not in own
        and any(
            isinstance(n, ast.Assert) for n in ast.walk(ast.parse(python_of(source)))
        )
    ]


def stages(book, cell, times):
    """Cells from `cell` on that its checks need, the quick ones' first, and seconds."""
    groups = [[] for _ in STAGES]
    for check in checks(book):
        if cell in book.needs(check):
            cost = sum(times.get(i, 0.1) for i in (*book.needs(check), check))
            for group, limit in zip(groups, STAGES, strict=True):
                if cost <= limit:
                    group.append(check)
                    break
    done, order = set(), list(book.sources)
    for group in filter(None, groups):
        wanted = {i for check in group for i in (*book.needs(check), check)} | {cell}
        done |= wanted
        yield [i for i in order if i in wanted]


def try_cell(job):
    """Run all mutations of one cell; return them with their fates."""
    path, cell, mutations, times = job
    book = Notebook(path)
    order = list(book.sources)
    plan = list(stages(book, cell, times))
    before = {i for cells in plan for i in cells[: cells.index(cell)]}
    space, sound = fresh(), {}
    files = Path(tempfile.mkdtemp(dir=SCRATCH))
    tempfile.tempdir = str(files / "now")  # what cells write to must not be seen by
    os.mkdir(tempfile.tempdir)  # the next mutation
    if fault := run(book, [i for i in order if i in before], space):
        raise RuntimeError(f"{path.stem}, without a mutation: {fault}")
    shutil.copytree(files / "now", files / "kept")

    def in_child_anew(work, seconds=None):
        shutil.rmtree(files / "now", ignore_errors=True)
        shutil.copytree(files / "kept", files / "now")
        return in_child(work, seconds)

    def verdict(mutation):
        for number in range(len(plan)):
            while answer := run_stage(number, {cell: mutation.source}):
                if answer == LATE:
                    return LATE, ""
                if number not in sound:
                    sound[number] = run_stage(number, None)
                if not sound[number]:
                    return "killed", answer
                if sound[number] == LATE:
                    break  # it tells nothing
                leave_out(*sound.pop(number))
        return "survived", ""

    def run_stage(number, instead):
        rest = plan[number][plan[number].index(cell) :]
        limit = 2 + 5 * sum(times.get(i, 0.1) for i in rest)
        return in_child_anew(lambda: run(book, rest, space, instead), limit)

    def leave_out(check, error):
        """Go on without a check that fails by itself: its slice lacks something."""
        if check not in book.sources or check == cell:
            raise RuntimeError(f"{path.stem}, {cell}, without a mutation: {error}")
        print(f"left out: {path.stem}, {check}: {error}", flush=True)
        for cells in plan:
            cells[:] = [i for i in cells if i != check]

    for mutation in mutations:
        mutation.fate, mutation.by = verdict(mutation)
    shutil.rmtree(files, ignore_errors=True)
    return mutations


# --- The report


def reasons():
    """Why a mutation is equivalent, by module, cell, and lines before and after."""
    listed = tomllib.loads(EQUIVALENT.read_text("utf-8"))["equivalent"]
    return {
        (entry["module"], entry["cell"], old, new): entry["why"]
        for entry in listed
        for old, new in entry["edits"]
    }


def count(mutations, known):
    """Fates of some mutations, and the share killed of those not equivalent."""
    fates = Counter(m.fate for m in mutations)
    equivalent = sum(m.fate == "survived" and key(m) in known for m in mutations)
    noticed = fates["killed"] + fates[LATE]
    rest = len(mutations) - equivalent
    return {
        "mutations": len(mutations),
        "killed": fates["killed"],
        "out of time": fates[LATE],
        "survived": fates["survived"],
        "equivalent": equivalent,
        "share killed": round(noticed / rest, 3) if rest else None,
    }


def key(mutation):
    return mutation.module, mutation.cell, mutation.before, mutation.after


def report(mutations, spots, known, arguments):
    by_module, by_operator = defaultdict(list), defaultdict(list)
    for mutation in mutations:
        by_module[mutation.module].append(mutation)
        by_operator[mutation.spot[0]].append(mutation)
    survivors = [m for m in mutations if m.fate == "survived"]
    return {
        "machine": describe_machine(cosmic_ray=version("cosmic-ray")),
        "command": " ".join(["python tools/mutation.py", *arguments]),
        "spots": spots,
        "all": count(mutations, known),
        "modules": {m: count(by_module[m], known) for m in sorted(by_module)},
        "operators": {o: count(by_operator[o], known) for o in sorted(by_operator)},
        "survivors": [
            {
                "module": m.module,
                "cell": m.cell,
                "operator": m.operator.removeprefix("core/"),
                "before": m.before,
                "after": m.after,
                **({"equivalent": known[key(m)]} if key(m) in known else {}),
            }
            for m in sorted(survivors, key=key)
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=420)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="draw nothing, run them all")
    parser.add_argument("--module")
    parser.add_argument("--cell")
    parser.add_argument("--out", default="benchmarks/results/mutation.json")
    parser.add_argument(
        "--check", action="store_true", help="fail if too few are killed"
    )
    parser.add_argument(
        "--times", type=Path, default="", help="keep the cells' seconds in this file"
    )
    parser.add_argument("-n", type=int, default=1, help="processes")
    parser.add_argument("--verbose", action="store_true", help="tell each fate")
    given = parser.parse_args()

    os.environ |= {"GPT2LIB_BOOK": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    known = reasons()
    mutations, home, sources = [], {}, {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = Notebook(path)
        for cell, module in exported(book).items():
            if given.module in (None, module) and given.cell in (None, cell):
                home[module], sources[module, cell] = path, book.sources[cell]
                mutations += mutations_of(module, cell, book.sources[cell])
    spots = len({(m.module, m.cell, m.spot) for m in mutations})
    if not given.all:
        mutations = draw(mutations, given.sample, given.seed)
    mutations = [m for m in mutations if m.apply(sources[m.module, m.cell])]
    print(f"{len(mutations)} mutations, of {spots} spots", flush=True)

    prepare()
    jobs = defaultdict(list)
    for mutation in mutations:
        jobs[home[mutation.module], mutation.cell].append(mutation)
    results = []
    forks = multiprocessing.get_context("fork")
    with forks.Pool(given.n, maxtasksperchild=1) as pool:
        times = json.loads(given.times.read_text()) if given.times.is_file() else {}
        unknown = sorted({path for path, _ in jobs if path.stem not in times})
        times |= dict(pool.imap_unordered(measure, unknown))
        if given.times.name:
            given.times.write_text(json.dumps(times, indent=1))
        work = [
            (path, cell, some, times[path.stem]) for (path, cell), some in jobs.items()
        ]
        work.sort(key=lambda job: -len(job[2]))
        for done in pool.imap_unordered(try_cell, work):
            results += done
            for m in done if given.verbose else ():
                print(
                    m.fate, m.module, m.cell, m.before, "=>", m.after, m.by, sep=" | "
                )
            sys.stdout.flush()

    asked = (f"--{name} {getattr(given, name)}" for name in ("sample", "seed"))
    told = report(results, spots, known, asked)
    for module, counts in told["modules"].items():
        print(f"{module:16}", *(f"{k} {v}," for k, v in counts.items()))
    unread = [s for s in told["survivors"] if "equivalent" not in s]
    for one in unread:
        print(
            "survived:",
            one["module"],
            one["cell"],
            one["before"],
            one["after"],
            sep=" | ",
        )
    print(json.dumps(told["all"]))
    if given.out:
        (ROOT / given.out).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    if given.check and told["all"]["share killed"] < WANTED:
        sys.exit(f"{told['all']['share killed']:.1%} are killed, not {WANTED:.0%}")


if __name__ == "__main__":
    main()
