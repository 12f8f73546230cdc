"""The book to take along: the zip and the PDF open, and hold all of the book.

The whole book is printed; where `PORTABLE` names the folder of a printed one, that is
read in its place. PDFium reads it, which Chromium shows PDFs with, and qpdf.
"""

import json
import os
import re
import zipfile
from collections import Counter
from html import unescape
from pathlib import Path

import pikepdf
import pypdfium2 as pdfium
import pytest
from conftest import NOTEBOOKS
from in_browser import open_tab

from tools.portable import (
    NAME,
    article,
    chapters,
    pages_of,
    slug,
    write_pdf,
    write_zip,
)

POINTS = 72 / 25.4  # in a millimetre
MARGIN = 18 * POINTS  # of the PDF's pages, left and right
OVERHANG = 3  # points by which a letter such as j or f leaves its place
NOT_ON_PAPER = re.compile(
    r"Search the book|^On this page$|Done with “|sections? done|Copy to clipboard"
    r"|^(Code|Details|Compare|Show all \d+|Step|Reset)$",
    re.M,
)


def report(faults):
    """Fail with one line for each fault."""
    faults = list(faults)
    assert not faults, "\n" + "\n".join(map(str, faults))


# The zip ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(site, tmp_path_factory):
    """The folder that the zip leaves, where a name needs quoting."""
    path = write_zip(site, tmp_path_factory.mktemp("portable") / f"{NAME}.zip")
    folder = path.with_name("Books & notes (1) #ü")
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        file.extractall(folder)
    return folder / NAME


def test_the_zip_holds_the_site_under_one_folder(unpacked, site):
    assert [path.name for path in unpacked.parent.iterdir()] == [NAME]
    for path in site.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            copy = unpacked / path.relative_to(site)
            assert copy.read_bytes() == path.read_bytes(), copy


def test_the_unpacked_site_opens(unpacked, browser):
    """A double click on `index.html`; nothing is asked for outside of the folder."""
    tab, faults = open_tab(browser, unpacked.as_uri() + "/")
    tab.context.set_offline(True)
    tab.goto((unpacked / "index.html").as_uri())
    tab.wait_for_url("**/book/index.html")
    tab.get_by_role("link", name="Phase 1: Core components").first.click()
    tab.wait_for_url("**/phase1_components.html")
    assert tab.locator(".katex").count()
    assert tab.evaluate("[...document.images].every((one) => one.naturalWidth)")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("causal mask")
    tab.keyboard.press("Enter")
    tab.locator("#search-results a", has_text="Glossary").first.click()
    tab.wait_for_url("**/glossary.html*")
    report(faults)


def test_the_model_runs_in_the_unpacked_site(unpacked, browser):
    tab, faults = open_tab(browser, unpacked.as_uri() + "/")
    tab.goto((unpacked / "notebooks" / "play.html").as_uri())
    text = tab.locator("gpt2-play-panel textarea")
    text.fill("ROMEO:\nBut")
    tab.get_by_text("running in this page").first.wait_for(timeout=40_000)
    tab.get_by_role("button", name="Step").first.click()
    tab.wait_for_function(
        "(element) => element.value.length > 10", arg=text.element_handle()
    )
    report(faults)


# The PDF ------------------------------------------------------------------------------


class Book:
    """A PDF of the book, and what was found in it."""

    def __init__(self, path, site):
        self.site, self.chapters = site, chapters(site)
        self.pdf = pdfium.PdfDocument(path)
        self.pages = [page.get_textpage() for page in self.pdf]
        self.texts = [page.get_text_range().replace("\r", "") for page in self.pages]
        self.file = pikepdf.open(path)
        self.places = pages_of(path.read_bytes())
        self.starts = [self.places[slug(one.page)] for one in self.chapters]

    def of(self, page):
        """Return the numbers of a chapter's pages."""
        n = [one.page for one in self.chapters].index(page)
        ends = [*self.starts[1:], len(self.texts) + 1]
        return range(self.starts[n], ends[n])

    def text(self, page):
        return "\n".join(self.texts[n - 1] for n in self.of(page))

    def structure(self, kind):
        """Return the elements of the PDF's structure of one kind."""
        found = (
            one for one in self.file.objects if isinstance(one, pikepdf.Dictionary)
        )
        return [one for one in found if one.get("/S") == kind]


@pytest.fixture(scope="module")
def book(site, browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("portable") / f"{NAME}.pdf"
    if "PORTABLE" in os.environ:  # what `make portable` wrote
        path = Path(os.environ["PORTABLE"]) / path.name
    else:
        write_pdf(browser, site, path)
    return Book(path, site)


def plain(html):
    """Return the words of HTML, as far as a PDF's text can be compared with them."""
    return squeeze(unescape(re.sub(r"<[^>]*>", "", html)))


def squeeze(text):
    return re.sub(r"\W+", "", text)


def test_chapters_stand_in_order_under_their_titles(book):
    assert book.starts == sorted(set(book.starts))
    for (page, title, _), start in zip(book.chapters, book.starts, strict=True):
        head, *lines = book.texts[start - 1].split("\n")
        assert head == title, f"page {start}: the head is not of {page}"
        assert squeeze(title) in squeeze("".join(lines[:4])), f"{page}: no title"
    assert book.starts[0] == 3  # after the cover and the contents


def test_pages_bear_their_numbers_and_none_is_blank(book):
    for n, text in enumerate(book.texts[1:], 2):
        _, number, *rest = text.split("\n")
        assert number == str(n)
        assert len("".join(rest)) > 20 or book.file.pages[n - 1].images, f"page {n}"
    words = sum(len(plain(article(book.site, one.page))) for one in book.chapters)
    assert words / 2500 < len(book.texts) < words / 1000


def test_contents_name_the_pages(book):
    lines = book.texts[1].split("\n")
    for (_, title, _), start in zip(book.chapters, book.starts, strict=True):
        assert f"{title} {start}" in lines


def test_outline_leads_to_its_headings(book):
    found = [(mark, mark.get_dest().get_index() + 1) for mark in book.pdf.get_toc()]
    for mark, n in found:
        title = squeeze(mark.get_title())
        assert title in squeeze(book.texts[n - 1]), f"page {n} has no {title}"
    top = {mark.get_title(): n for mark, n in found if mark.level == 0}
    titles = [title for _, title, _ in book.chapters]
    assert [title for title in top if title in titles] == titles
    assert [top[title] for title in titles] == book.starts
    assert len(found) > 4 * len(titles)
    headings = re.findall(
        r"<h[123][^>]*>(.*?)<a class=\"headerlink",
        "".join(article(book.site, one.page) for one in book.chapters),
    )
    words = {unescape(re.sub("<[^>]*>", "", heading)) for heading in headings}
    squeezed = {squeeze(heading) for heading in words}
    report(
        f"the outline has {mark.get_title()!r}"
        for mark, _ in found
        if squeeze(mark.get_title()) in squeezed and mark.get_title() not in words
    )


def test_links_lead_into_the_book_or_to_the_web(book):
    inside, faults = Counter(), []
    for n, page in enumerate(book.file.pages, 1):
        for link in page.get("/Annots", []):
            action = link.get("/A", {})
            place = str(link.get("/Dest") or action.get("/D", ""))[:]
            address = str(action.get("/URI", ""))
            if place.lstrip("/") in book.places:
                inside[n] += 1
            elif not address.startswith("https://"):
                faults.append(f"page {n}: a link to {place or address or 'nothing'}")
    report(faults)
    assert inside[2] == len(book.chapters)
    assert inside.total() > 2 * len(book.texts)


def test_hints_and_solutions_stand_on_the_pages_that_are_named(book):
    label, named = re.compile("^(Hint|Solution|Answer)$", re.M), 0
    for page, *_ in book.chapters:
        text = book.text(page)
        folded = re.findall(
            r"<summary>(Hint|Solution|Answer)<", article(book.site, page)
        )
        assert Counter(label.findall(text)) == Counter(folded), page
        front, _, back = text.partition("\nHints and solutions\n")
        assert label.findall(back).count("Hint") == folded.count("Hint"), page
        for n in re.findall(r"^Hint[\w ]*: page (\d+)\.$", front, re.M):
            assert label.search(book.texts[int(n) - 1]), f"{page}: page {n}"
            named += 1
    assert named


def test_fonts_are_embedded(book):
    fonts = [
        one
        for one in book.file.objects
        if isinstance(one, pikepdf.Dictionary) and one.get("/Type") == "/FontDescriptor"
    ]
    assert fonts
    for font in fonts:
        embedded = {"/FontFile", "/FontFile2", "/FontFile3"} & set(font.keys())
        assert embedded, f"{font.FontName} is not embedded"


def test_formulas_are_set(book):
    """A chapter with formulas uses KaTeX's letters, one without does not."""
    for page, *_ in book.chapters:
        names = set()
        for n in book.of(page):
            fonts = book.file.pages[n - 1].resources.get("/Font", {})
            names |= {str(font.get("/BaseFont", "")) for font in fonts.values()}
        formulas = 'class="katex"' in article(book.site, page)
        assert formulas == any("KaTeX_" in name for name in names), page
    assert "softmax" in squeeze(book.text("notebooks/phase1_components"))


def test_figures_are_those_of_the_notebooks(book):
    found = Counter(str(one.get("/Alt", "")) for one in book.structure("/Figure"))
    wanted = Counter()
    for path in NOTEBOOKS:
        if f"notebooks/{path.stem}" not in [one.page for one in book.chapters]:
            continue
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            shown = [out.get("data", {}) for out in cell.get("outputs", [])]
            figures = sum(any("image/" in kind for kind in data) for data in shown)
            if figures:
                wanted[cell["metadata"]["mystnb"]["image"]["alt"]] += figures
    assert wanted.total() > 5
    report([f"not printed: {alt}" for alt in wanted - found])


def test_nothing_reaches_into_the_margin(book):
    faults = []
    for n, page in enumerate(book.pages, 1):
        width, height = book.pdf[n - 1].get_size()
        assert (round(width / POINTS), round(height / POINTS)) == (210, 297)
        for k in range(page.count_rects()):
            left, low, right, high = page.get_rect(k)
            if left < MARGIN - OVERHANG or right > width - MARGIN + OVERHANG:
                text = page.get_text_bounded(left, low, right, high)
                faults.append(f"page {n}: {text!r} from {left:.0f} to {right:.0f}")
    report(faults)


def test_what_is_drawn_stays_in_its_place(book):
    """The margins are white, whatever is drawn between them."""
    for n in range(len(book.pdf)):
        image = book.pdf[n].render(scale=0.5, grayscale=True).to_numpy()
        edge = int(MARGIN * 0.5) - 2
        assert image[:, :edge].min() > 250, f"page {n + 1}: ink in the left margin"
        assert image[:, -edge:].min() > 250, f"page {n + 1}: ink in the right margin"
        assert image.min() < 200, f"page {n + 1} is blank"


def test_nothing_of_the_site_that_paper_cannot_do(book):
    faults = []
    for n, text in enumerate(book.texts, 1):
        faults += [f"page {n}: {one[0]!r}" for one in NOT_ON_PAPER.finditer(text)]
    report(faults)
    for page, *_ in book.chapters:
        elements = len(re.findall(r"<gpt2-\w", article(book.site, page)))
        said = squeeze(book.text(page)).count("Onpaperonestateofseveral")
        assert said == elements, page


# A page of the site, printed by its reader --------------------------------------------

# What is wider than the paper, or cut where it would scroll.
CUT = """() => [...document.querySelectorAll("article *")].filter((element) => {
  const box = element.getBoundingClientRect();
  const { overflowX, overflowY, position } = getComputedStyle(element);
  const unseen = !box.width || position === "absolute";
  if (unseen || element.closest(".katex, svg")) return false;
  const wide = element.scrollWidth > element.clientWidth + 1;
  const high = element.scrollHeight > element.clientHeight + 1;
  const cut = (wide && overflowX !== "visible") || (high && overflowY !== "visible");
  return cut || box.right > innerWidth + 1 || box.left < -1;
}).map((element) => `${element.outerHTML.slice(0, 120)} is cut`)"""
PAPER = {"width": 672, "height": 1000}  # A4 between the margins of the site's pages


@pytest.fixture(scope="module")
def printer(server, browser):
    tab, faults = open_tab(browser, server, "dark")
    yield tab, server
    report(faults)


@pytest.mark.parametrize(
    "page", ["notebooks/phase1_components", "notebooks/play", "book/map"]
)
def test_a_page_of_the_site_prints_whole(printer, site, tmp_path, page):
    tab, server = printer
    tab.goto(f"{server}{page}.html")
    path = tmp_path / "page.pdf"
    tab.pdf(path=path, format="A4", print_background=True)
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    pdf = pdfium.PdfDocument(path)
    pages = [one.get_textpage() for one in pdf]
    text = "\n".join(one.get_text_range() for one in pages).replace("\r", "")
    assert not re.search("Search the book|Done with “|Colab$", text, re.M)
    for n, one in enumerate(pages):
        width, _ = pdf[n].get_size()
        boxes = [one.get_rect(k) for k in range(one.count_rects())]
        assert min(left for left, *_ in boxes) > 16 * POINTS - OVERHANG
        assert max(right for _, _, right, _ in boxes) < width - 16 * POINTS + OVERHANG
        image = pdf[n].render(scale=0.5, grayscale=True).to_numpy()
        assert image[0].min() == image[-1].min() == 255, "the page has a ground"
    folds = re.findall(r"<details.*?</summary>\s*<p>([^<]+)", article(site, page))
    for fold in folds:
        assert plain(fold) in squeeze(text), "an answer is folded away"


def test_no_page_of_the_site_is_cut_on_paper(printer, site):
    tab, server = printer
    tab.emulate_media(media="print", color_scheme="light")
    tab.set_viewport_size(PAPER)
    faults = []
    for page, *_ in chapters(site):
        tab.goto(f"{server}{page}.html")
        faults += [f"{page}: {fault}" for fault in tab.evaluate(CUT)]
    tab.emulate_media(media="screen", color_scheme="dark")
    report(faults)


def test_nothing_moves_where_it_is_not_wanted(printer):
    tab, server = printer
    tab.emulate_media(reduced_motion="reduce")
    tab.goto(f"{server}notebooks/play.html")
    moving = """() => [document.documentElement, ...document.querySelectorAll("body *")]
      .filter((element) => {
        const style = getComputedStyle(element);
        const times = `${style.transitionDuration}, ${style.animationDuration}`;
        return /[1-9]/.test(times) || style.scrollBehavior === "smooth";
      }).map((element) => element.outerHTML.slice(0, 120))"""
    report(tab.evaluate(moving))
    tab.emulate_media(reduced_motion="no-preference")
