"""The book to take along: a zip of the site, and one PDF of all its pages.

    python tools/portable.py                # what is in _build/html, to _build/portable
    python tools/portable.py book/index notebooks/play      # a PDF of some pages

The PDF is the site's own pages, one after another in one file that Chromium prints,
without a network: `portable.js` joins them there, `portable.css` is their look. It is
printed twice, because only the first print knows which page a chapter begins on.
"""

import argparse
import io
import json
import os
import posixpath
import re
import sys
import tempfile
import zipfile
from collections import namedtuple
from html import escape, unescape
from pathlib import Path

import pikepdf
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tests"))  # the browser that the tests use
from in_browser import open_tab, running_browser  # noqa: E402

SITE, OUT = ROOT / "_build" / "html", ROOT / "_build" / "portable"
NAME = "gpt2-from-scratch"
FRONT, ABOUT = "book/index", "About this book"
MENU = re.compile(  # the captions of the parts and the pages in them
    r'class="caption-text">([^<]*)<|toctree-l1[^>]*><a[^>]*href="([^"]*)\.html">([^<]*)<'
)
Chapter = namedtuple("Chapter", "page title part")


def settings():
    return yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))


# The zip ------------------------------------------------------------------------------


def write_zip(site, path):
    """Write all of the site under one folder; `index.html` lies at its top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for found in sorted(site.rglob("*")):
            if found.is_file() and not found.name.startswith("."):
                file.write(found, f"{NAME}/{found.relative_to(site).as_posix()}")
    return path


# The book as one page of HTML ---------------------------------------------------------


def chapters(site):
    """Return the book's pages as the front page lists them, with titles and parts."""
    front = (site / FRONT).with_suffix(".html").read_text("utf-8")
    menu = re.search(r'<nav class="bd-links.*?</nav>', front, re.S)[0]
    found, part = [Chapter(FRONT, ABOUT, "")], ""
    for caption, link, title in re.findall(MENU, menu):
        part = unescape(caption) or part
        if link:
            page = posixpath.normpath(posixpath.join(posixpath.dirname(FRONT), link))
            found.append(Chapter(page, unescape(title), part))
    return found


def article(site, page):
    """Return the text of a page, without what is around it."""
    text = (site / f"{page}.html").read_text("utf-8")
    start = text.index(">", text.index('<article class="bd-article"')) + 1
    return text[start : text.index("</article>", start)]


def slug(page):
    return page.replace("/", "-").replace("_", "-")


def contents(found, numbers):
    """Return the table of contents: parts, chapters, and the pages they begin on."""
    rows, last = [], ""
    for page, title, part in found:
        if part != last:
            rows.append(f'<li class="part">{escape(part)}</li>')
            last = part
        number = numbers.get(slug(page), "000")
        link = f"<span>{escape(title)}</span> <b>{number}</b>"
        rows.append(f'<li><a href="#{slug(page)}">{link}</a></li>')
    return f'<nav class="contents-page"><h1>Contents</h1><ol>{"".join(rows)}</ol></nav>'


def heads(found):
    """Return the style of the pages' heads: each bears its chapter's title."""
    rules = []
    for page, title, _ in found:
        rules.append(f"#{slug(page)} {{ page: {slug(page)}; }}")
        head = f"@top-left {{ content: {json.dumps(title)}; }}"
        rules.append(f"@page {slug(page)} {{ {head} }}")
    return "\n".join(rules)


def cover(site, config):
    """Return the first page: title, what it is, who made it."""
    says = re.search(r"<p>(.*?)</p>", article(site, FRONT), re.S)[1]
    year, licence = config["copyright"], config["html"]["extra_footer"].split(". ")[-1]
    address = config["repository"]["url"]
    return (
        f'<header class="cover"><img src="{site.as_uri()}/_static/mask.svg" alt="">'
        f'<p class="title">{escape(config["title"])}</p><p class="says">{says}</p>'
        f'<p class="foot">{escape(config["author"])}, {year}. {licence}<br>'
        f'<a href="{address}">{address}</a></p></header>'
    )


def styles(site, found):
    """Return what the pages' head loads, and our own style."""
    source = "".join((site / f"{c.page}.html").read_text("utf-8") for c in found)
    paths = re.findall(r'<link[^>]*?href="\.\./(_static/[^"?]*\.css)', source)
    paths = sorted(dict.fromkeys(paths), key=lambda path: path.endswith("/site.css"))
    links = "".join(
        f'<link rel="stylesheet" href="{site.as_uri()}/{path}">' for path in paths
    )
    style = (HERE / "portable.css").read_text("utf-8")
    return f"{links}<style>{style}\n{heads(found)}</style>"


def one_page(site, found, numbers):
    """Return the book as one page of HTML, as `portable.js` takes it."""
    config = settings()
    body = "".join(
        f'<section class="chapter" id="{slug(c.page)}" data-page="{c.page}">'
        f"{article(site, c.page)}</section>"
        for c in found
    )
    body = re.sub(r'\bsrc="\.\./(_\w+/)', rf'src="{site.as_uri()}/\1', body)
    facts = {
        "site": site.as_uri() + "/",
        "repository": config["repository"]["url"],
        "branch": config["repository"]["branch"],
        "front": FRONT,
        "about": ABOUT,
        "numbers": numbers,
    }
    script = (HERE / "portable.js").read_text("utf-8")
    return (
        '<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8">'
        f"<title>{escape(config['title'])}</title>{styles(site, found)}"
        '<body class="paper"><main class="bd-main"><div class="bd-content">'
        '<div class="bd-article-container"><article class="bd-article">'
        f"{cover(site, config)}{contents(found, numbers)}{body}"
        f"</article></div></div></main>{elements(site, body)}"
        f"<script>const FACTS = {json.dumps(facts)};\n{script}</script>"
    )


def elements(site, body):
    """Return the scripts of the elements in the text."""
    names = set(re.findall(r"<gpt2-([\w-]+)", body))
    paths = [(site / "_static" / f"{name}.js").as_uri() for name in sorted(names)]
    return "".join(f'<script src="{path}"></script>' for path in paths)


# The PDF ------------------------------------------------------------------------------


def pages_of(pdf):
    """Return {name: page, from 1} of the places that the PDF's links lead to."""
    with pikepdf.open(io.BytesIO(pdf)) as book:
        pages = {page.objgen: n for n, page in enumerate(book.pages, 1)}
        places = book.Root.get("/Dests", {})
        return {str(name)[1:]: pages[place[0].objgen] for name, place in places.items()}


def write_pdf(browser, site, path):
    """Print the book; return the path."""
    found, numbers = chapters(site), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    tab, faults = open_tab(browser, "file://")
    tab.set_default_timeout(300_000)  # milliseconds: the whole book is a long page
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "book.html"
        for last in (False, True):
            source.write_text(one_page(site, found, numbers), "utf-8")
            tab.goto(source.as_uri())
            faults += tab.evaluate("ready")
            printed = tab.pdf(
                prefer_css_page_size=True,
                print_background=True,
                outline=last,
                tagged=last,
            )
            numbers = pages_of(printed)
    headings = tab.evaluate("headings()")
    if letters := tab.evaluate("withoutFont()"):
        print(
            f"Printed as boxes, for want of a font: {letters} "
            "(Debian's fonts-droid-fallback and fonts-lohit-deva have them)"
        )
    tab.context.close()
    assert not faults, "\n".join(sorted(set(faults)))
    with pikepdf.open(io.BytesIO(printed)) as book:
        finish(book, headings)
        book.save(path, object_stream_mode=pikepdf.ObjectStreamMode.generate)
    return path


def finish(book, headings):
    """Say whose book it is; have a reader show its outline, with a mend, beside it."""
    config = settings()
    book.docinfo["/Title"], book.docinfo["/Author"] = config["title"], config["author"]
    book.Root.PageMode = pikepdf.Name.UseOutlines
    book.Root.ViewerPreferences = pikepdf.Dictionary(DisplayDocTitle=True)
    # Chromium leaves out the space where a heading goes on in a second line.
    spaced = {re.sub(r"\s", "", heading): heading for heading in headings}
    with book.open_outline() as outline:
        items = list(outline.root)
        for item in items:
            item.title = spaced.get(re.sub(r"\s", "", item.title), item.title)
            items += item.children  # which this loop comes to, too


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", help="such as notebooks/play; all of them")
    parser.add_argument("--site", type=Path, default=os.environ.get("SITE", SITE))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    site, out = Path(options.site).resolve(), options.out.resolve()
    files = [write_zip(site, out / f"{NAME}.zip")]
    with running_browser() as browser:
        path = out / f"{NAME}.pdf"
        files.append(write_pdf(browser, site, path, options.pages))
    for path in files:
        print(f"{os.path.relpath(path)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
