"""Numbers and tables in the words of the book's pages; see `report.py`."""


def number(seconds):
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def ratio(interval):
    return "{:.2f} × ({:.2f} to {:.2f})".format(*interval) if interval else "–"


def memory(count):
    return f"{count / 2**20:,.0f} MiB"


def label(side):
    """Return the name of a side as code, what follows its comma as words."""
    name, comma, how = side.partition(",")
    return f"`{name}`{comma}{how}"


def table(*rows):
    """Return the lines of a table, its first row the header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def unbroken(words):
    return words.replace(" ", "\N{NO-BREAK SPACE}")
