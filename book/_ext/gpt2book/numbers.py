"""The page of numbers: what was measured, each with the command that measures it.

    ```{numbers} parity
    ```

makes one table; its argument names a function of `TABLES`. Every number comes from a
file in `benchmarks/results/`, but for sizes, which are counted in the library's files
when the book is built. A result that a table wants and a file lacks stops the build.
"""

import json
import statistics
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .library import read_module
from .workbook import table

RESULTS = "benchmarks/results"
LIBRARY = "gpt2lib"
GPT2LIB, THEIRS, LITGPT = "gpt2lib", "transformers", "litgpt"
CARD = "gpt2lib/static/shakespeare-char/card.json"

# Words --------------------------------------------------------------------------------


def seconds(number):
    """Return a time with three figures: 62.6 ms, 3.61 s, 128 s."""
    if number < 1:
        return f"{1000 * number:,.3g} ms"
    return f"{number:.3g} s" if number < 1000 else f"{number / 60:.0f} minutes"


def share(number):
    """Return a difference, `none` or 7e−07 with a minus at which no line breaks."""
    return "none" if number == 0 else f"{number:.0e}".replace("-", "\N{MINUS SIGN}")


def times(interval, ours, theirs):
    """Return a factor with its interval and, in a paragraph of its own, both sides."""
    factor = "{:.2f} × ({:.2f} to {:.2f})".format(*interval)
    return f"{factor}\n\n{ours} against {theirs}"


def rate(number):
    return f"{number:,.1f}" if number < 100 else f"{number:,.0f}"


def tokens(interval, ours, theirs):
    return f"{times(interval, rate(ours), rate(theirs))} tokens/s"


def size(count):
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def counted(lines):
    """Return the sum of {name: lines} and, in a paragraph of its own, each."""
    each = ", ".join(f"`{name}` {n:,}" for name, n in lines.items())
    return f"{sum(lines.values()):,} lines\n\n{each}"


def in_order(page):
    """The phases come before the appendices."""
    return "appendix" in page, page


# Tables: each yields its heads, then rows of a subject, its command, numbers ----------


def parity(read):
    yield "compared", "difference"
    found = read("parity")
    for name, one in found["logits"].items():
        kinds = (
            f"{share(one['float32'])} in float32, {share(one['float64'])} in float64"
        )
        model = f"{one['parameters'] / 1e6:,.3g} million parameters"
        command = f"{found['command']} --models " + (
            f'"{name}"' if " " in name else name
        )
        yield f"logits with `{THEIRS}`, {model}", command, kinds
    for name, one in found["tokenizer"].items():
        differ = f"{one['differ']:,} of {one['texts']:,} texts"
        subject = f"token ids with `tiktoken`, {one['tokens']:,}, {name}"
        yield subject, found["command"], differ
    yield from same_tokens(read("generation"), THEIRS)
    yield from same_tokens(read("generation_litgpt"), LITGPT)
    agreement, command = read("gpu")["agreement"], read("gpu")["command"]
    command += " --parts agreement"
    for kind in ("float32", "bfloat16 by autocast"):
        difference = share(agreement["logits"][kind])
        subject = f"logits on an H100, {kind}, with a CPU's"
        yield subject, command, f"{difference} of their length"
    subject = "losses of a run broken off and resumed, with one in one piece"
    yield subject, command, share(agreement["resumed"])
    page = read("play")
    logits = f"logits in JavaScript, {page['agreement']['positions']:,} positions"
    difference = share(page["agreement"]["largest_error"])
    yield f"{logits}, with PyTorch's", page["command"], difference


def same_tokens(found, peer):
    """Yield a row for each prompt after which the peer wrote."""
    for case in found["cases"].values():
        if peer in case["tokens_in_common"]:
            new, same = case["new_tokens"], case["tokens_in_common"][peer]
            said = f"none in {new}" if same == new else f"after {same} of {new}"
            subject = f"greedy text with `{peer}`, after {case['prompt_tokens']} tokens"
            yield subject, found["command"], f"{said} tokens"


def speed(read):
    yield "work, and beside what", "gpt2lib is faster (95 % interval)"
    found = read("forward_and_step")
    tasks = {
        "forward 124M": "forward pass, 124M, 512 tokens",
        "step 124M": "training step, 124M, 512 tokens",
        "step 4x128": "training step, 4 blocks of 128",
    }
    for name, task in tasks.items():
        case = found["cases"][name]
        sides = (statistics.median(case["seconds"][side]) for side in (GPT2LIB, THEIRS))
        faster = times(case["times_faster_than"][THEIRS], *map(seconds, sides))
        yield f"{task}; `{THEIRS}`", found["command"], faster
    found = read("generation")
    for name in ("after 64", "after 512"):
        yield writing(found, name, GPT2LIB, THEIRS)
    yield writing(found, "after 64", "gpt2lib, int8", THEIRS)
    yield writing(found, "no cache, after 512", GPT2LIB, "gpt2lib, no cache")
    yield writing(read("generation_litgpt"), "after 64", "gpt2lib, rotary", LITGPT)
    yield from speed_on_gpu(read("gpu"))


def writing(found, name, ours, theirs):
    """Return the row of one case of generation."""
    case = found["cases"][name]
    sides = (case["tokens_per_second"][side] for side in (ours, theirs))
    way, other = ours.partition(", ")[2], theirs.partition(", ")[2]
    said = f"writing, after {case['prompt_tokens']} tokens{way and f', {way}'}"
    beside = f"with {other}" if other else f"`{theirs}`"
    faster = tokens(case["times_faster"][ours], *sides)
    return f"{said}; {beside}", found["command"], faster


def speed_on_gpu(found):
    step, case = found["step"], found["generation"]
    names = {THEIRS: f"`{THEIRS}`", "nanoGPT's choices": "nanoGPT's choices"}
    for side, said in names.items():
        sides = (step["tokens_per_second"][name] for name in (GPT2LIB, side))
        faster = tokens(step["times_faster_than"][side], *sides)
        command = f"{found['command']} --parts step"
        yield f"training step on an H100, 124M; {said}", command, faster
    sides = (case["tokens_per_second"][f"{s}, float32"] for s in (GPT2LIB, THEIRS))
    faster = tokens(case["times_faster"]["float32"], *sides)
    subject = f"writing on an H100, after {case['prompt_tokens']} tokens"
    command = f"{found['command']} --parts generation"
    yield f"{subject}; `{THEIRS}`", command, faster


def training(read):
    yield "run", "validation loss, nats a character"
    found = read("training")
    names = {
        "nanogpt-cpu": "nanoGPT's recipe, on a CPU",
        "shakespeare-cpu": "ours, in as much time",
        "in 40 % of the steps": "ours, in fewer steps",
    }
    for name, said in names.items():
        runs = found["runs"][name]
        losses = [run["validation_loss"] for run in runs]
        loss = f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}"
        took = statistics.median(run["seconds"] for run in runs)
        yield run_row(said, found["command"], runs[0] | {"seconds": took}, loss)
    card = read(CARD)
    command = "python -m gpt2lib.train --preset shakespeare-char"
    loss = f"{card['validation_loss']:.3f}"
    yield run_row("the model of the library", command, card, loss)
    found = read("gpu")
    said = {"run": "`shakespeare-gpu`, on an H100", "long_run": "the same, too long"}
    for name, words in said.items():
        run = found[name]
        end, best = run["curve"][-1][2], run["best"]
        loss = f"{end:.3f}"
        if best[2] < end:
            loss += f", lowest {best[2]:.3f} at step {best[0]:,}"
        yield run_row(words, f"{found['command']} --parts {name}", run, loss)


def run_row(said, command, run, loss):
    took = f"{run['steps']:,} steps in {seconds(run['seconds'])}"
    return said, command, f"{loss}\n\n{run['parameters']:,} parameters, {took}"


def sizes(read):
    yield "what", "size"
    by_notebook = {}
    for name, lines in read.lines(f"{LIBRARY}/*.py").items():
        if module := read_module(read.root / LIBRARY / name):
            by_notebook.setdefault(module.notebook, {})[module.name] = lines
    for page in sorted(by_notebook, key=in_order):
        names = by_notebook[page]
        files = "{" + ",".join(names) + "}" if len(names) > 1 else min(names)
        command = f"wc -l {LIBRARY}/{files}.py"
        yield f"[](../{page}.ipynb)", command, counted(names)
    scripts = f"{LIBRARY}/static/*.js"
    yield "scripts of the pages", f"wc -l {scripts}", counted(read.lines(scripts))
    folder = Path(CARD).parent
    weights = (read.root / folder / "model.safetensors").stat().st_size
    yield "the small model, float32", f"ls -l {folder}", size(weights)
    page = read("play")
    yield "the same in a page, int8", page["command"], size(page["file_bytes"])


def notebooks(read):
    yield "notebook", "code cells", "seconds"
    found = read("notebooks")
    for name in sorted(found["notebooks"], key=in_order):
        one = found["notebooks"][name]
        took = f"{statistics.median(one['seconds']):.0f}"
        command = f"{found['command']} {name}"
        cells = str(one["code_cells"])
        yield f"[](../notebooks/{name}.ipynb)", command, cells, took


def pages(read):
    yield "page", "MB", "seconds"
    found = read("pages")
    for name, one in found["pages"].items():
        suffix = "ipynb" if name.startswith("notebooks/") else "md"
        took = f"{statistics.median(one['load_ms']) / 1000:.1f}"
        title, command = f"[](../{name}.{suffix})", f"{found['command']} {name}"
        yield title, command, f"{one['bytes'] / 1e6:.2f}", took


def machines(read):
    yield "results", "machine"
    for path in sorted((read.root / RESULTS).glob("*.json")):
        found = read(path.stem)
        if machine := found.get("machine"):
            said = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
            on = f"torch {machine['torch']}, {machine['threads']} of its threads"
            on += f", {machine['date']}"
            yield f"`{path.name}`", found["command"], f"{said}\n\n{on}"


MADE = (parity, speed, training, sizes, notebooks, pages, machines)
TABLES = {made.__name__: made for made in MADE}

# The directive ------------------------------------------------------------------------


class Results:
    """What the tables read: results by name, other files by their path."""

    def __init__(self, root, note=lambda path: None):
        self.root, self.note = Path(root), note

    def __call__(self, name):
        path = self.root / (name if "/" in name else f"{RESULTS}/{name}.json")
        self.note(path)
        return json.loads(path.read_text("utf-8"))

    def lines(self, pattern):
        """Return {name: lines} of the files that a pattern names."""
        found = {}
        for path in sorted(self.root.glob(pattern)):
            self.note(path)
            found[path.name] = path.read_text("utf-8").count("\n")
        return found


class Numbers(SphinxDirective):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"no table {name}; there are {', '.join(TABLES)}")
        read = Results(
            self.env.srcdir, lambda path: self.env.note_dependency(str(path))
        )
        try:
            heads, *rows = TABLES[name](read)
        except FileNotFoundError as fault:
            raise self.error(f"{fault.filename} has not been measured") from None
        except KeyError as fault:
            raise self.error(f"a result of the table {name} lacks {fault}") from None
        cells = [self.cells(*row) for row in rows]
        widths = [3] + [2] * (len(heads) - 1)
        return [table(heads, widths, cells, ["numbers"])]

    def cells(self, subject, command, *numbers):
        """Return the cells of a row: below the subject, how it was measured."""
        code = nodes.literal(command, command)
        below = nodes.paragraph("", "", code, classes=["made-in"])
        first = [*self.parse_text_to_nodes(subject), below]
        return [first, *(self.parse_text_to_nodes(words) for words in numbers)]


def setup(app):
    app.add_directive("numbers", Numbers)
