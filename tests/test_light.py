"""What makes the pages light (`book/_ext/gpt2book/light.py`) changes nothing seen."""

import importlib.util
import io
from base64 import b64decode, b64encode
from importlib.resources import files

import numpy as np
import pytest
import tinycss2
from conftest import ROOT
from in_browser import open_tab
from PIL import Image

spec = importlib.util.spec_from_file_location(
    "light", ROOT / "book" / "_ext" / "gpt2book" / "light.py"
)
light = importlib.util.module_from_spec(spec)
spec.loader.exec_module(light)

SHEETS = {
    "pydata-sphinx-theme.css": "pydata_sphinx_theme/theme/pydata_sphinx_theme/static",
    "sphinx-book-theme.css": "sphinx_book_theme/theme/sphinx_book_theme/static",
}
# The look of every element that is drawn, each a string.
LOOK = """() => [...document.querySelectorAll("body, body *")]
  .filter((e) => e.checkVisibility())
  .flatMap((e) => [null, "::before", "::after"].map((part) => {
    const style = getComputedStyle(e, part), box = e.getBoundingClientRect();
    const of = ["color", "backgroundColor", "backgroundImage", "content", "display",
      "font", "borderTop", "borderLeft", "padding", "margin", "opacity", "filter",
      "boxShadow", "textDecoration", "textAlign", "position", "overflow", "visibility"];
    return [e.localName, e.className, part, Math.round(box.width), Math.round(box.x),
      ...of.map((name) => style[name])].join(" | ");
  }))"""


def css(text, words):
    rules = tinycss2.parse_stylesheet(text, skip_whitespace=True)
    return light.used_rules(rules, set(words))


def test_rules_go_when_nothing_can_match_them():
    text = "/*! MIT */ a{b:c} .x,.y{b:c} @media print{.x{b:c}} @media print{.y{b:c}}"
    assert css(text, ["y"]).split("\n") == [
        "/*! MIT */",
        "a{b:c}",
        ".y{b:c}",
        "@media print{.y{b:c}}",
    ]


@pytest.mark.parametrize(
    "selector", ["a:not(.x)", ".y:is(.x, .y)", '[class="x"]', ".y::before", "#y>*"]
)
def test_what_may_match_stays(selector):
    assert css(f"{selector}{{b:c}}", ["y"]) == f"{selector}{{b:c}}"
    assert light.can_match(".x" + selector.removeprefix("a"), {"y"}) is False


def test_a_picture_keeps_every_point():
    draw = np.random.default_rng(0).integers
    colours = draw(0, 256, (16, 4)).astype("uint8")
    pixels = colours[draw(0, 16, (30, 40))]
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    before = b64encode(written.getvalue()).decode()
    short = light.short_picture([before])
    after = Image.open(io.BytesIO(b64decode(short))).convert("RGBA")
    assert np.array_equal(np.asarray(after), pixels)
    assert len(short) < len(before)


def test_a_drawing_keeps_its_references_colours_and_places():
    drawing = (
        '<svg><!-- a --><metadata>b</metadata>\n <g id="axes_1">\n'
        '<path id="glyph-1" d="M 1.23456 2 \nL 3 4 \n" transform="scale(0.015625)"/>'
        '<use xlink:href="#glyph-1" x="7.0001" style="fill: #555555"/></g></svg>'
    )
    assert light.short_drawing(drawing) == (
        '<svg><g><path id="i0" d="M 1.23 2 L 3 4" transform="scale(0.015625)"/>'
        '<use xlink:href="#i0" x="7.00" style="fill:#555555"/></g></svg>'
    )


def test_drawings_have_a_frame_and_a_size(tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.svg").write_text('<svg width="300pt" height="150.2pt">')
    images = ['<img alt="a" src="../_images/a.svg" />', '<img src="b.png">']
    page = tmp_path / "page.html"
    page.write_text("".join(images))
    for _ in range(2):  # a page that was not written anew has its frames
        light.frame_drawings(tmp_path)
        assert page.read_text() == (
            '<span class="drawing" style="--drawn:400px"><img width="400" height="200" '
            f'alt="a" src="../_images/a.svg" /></span>{images[1]}'
        )


def sending(text):
    return lambda route: route.fulfill(body=text, content_type="text/css")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_look_as_with_the_whole_style_sheets(server, browser, scheme):
    """A second tab gets the theme's own files in place of those that were cut."""
    cut, _ = open_tab(browser, server, scheme)
    whole, _ = open_tab(browser, server, scheme)
    for name, package in SHEETS.items():
        root, _, rest = package.partition("/")
        text = (files(root) / rest / "styles" / name).read_text("utf-8")
        whole.route(f"**/{name}*", sending(text))
    for page in ("book/index.html", "notebooks/phase0_foundation.html"):
        looks = []
        for tab in (cut, whole):
            tab.emulate_media(reduced_motion="reduce")
            tab.goto(server + page)
            tab.evaluate("document.fonts.ready")
            tab.keyboard.press("Control+k")
            looks.append(tab.evaluate(LOOK))
        assert len(looks[0]) == len(looks[1]) > 100
        other = [pair for pair in zip(*looks, strict=True) if pair[0] != pair[1]]
        assert not other, f"{page}: {len(other)} differ, first {other[0]}"
