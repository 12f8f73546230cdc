"""What makes the pages light: fewer tags in code, no unused rules, short drawings.

A reader sees one difference: in code, names, brackets and operators have the colour of
the page's text, and no tag of their own. Of the theme's style sheets, those rules go
whose classes no page and no script holds; of Matplotlib's drawings, what is not drawn;
of their pictures, the colours that no point has. And each drawing says how large it
is, so that a page stands still while it loads, and a phone can let it scroll.
"""

import functools
import io
import re
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
import tinycss2
from PIL import Image
from pygments.formatters import HtmlFormatter
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Operator, Text
from sphinx.highlighting import PygmentsBridge

MODES = ("light", "dark")

# Code --------------------------------------------------------------------------------


class Lean(HtmlFormatter):
    """Colours code with the fewest tags that look the same in light and dark."""

    classes = STANDARD_TYPES

    def _get_css_classes(self, token):
        if token not in STANDARD_TYPES:  # of a terminal's output
            return super()._get_css_classes(token)
        return self.classes[token]


def classes_by_look(names):
    """Return {token: class}: one class for all tokens that look alike in all styles."""
    styles = [get_style_by_name(name) for name in names]

    def look(token):
        return [style.style_for_token(token) for style in styles]

    first = {str(look(Text)): ""}
    common = sorted(STANDARD_TYPES, key=lambda token: str(token).count("."))
    classes = {
        token: first.setdefault(str(look(token)), STANDARD_TYPES[token])
        for token in common
    }
    return classes | {Operator: ""}


def use_few_tags(app, config):
    options = config.html_theme_options
    names = [options.get(f"pygments_{mode}_style", "default") for mode in MODES]
    Lean.classes = classes_by_look(names)
    PygmentsBridge.html_formatter = Lean


# Style sheets ------------------------------------------------------------------------


def words_of(out):
    """Return every word that may be a class or an id: of tags, and of all scripts."""
    words = set()
    for path in out.rglob("*.html"):
        for held in re.findall(r'\b(?:class|id)="([^"]*)"', path.read_text("utf-8")):
            words.update(held.split())
    for path in out.glob("_static/**/*.js"):
        if not path.name.endswith(".gpt2.js"):  # the trained model
            words.update(re.findall(r"[\w-]+", path.read_text("utf-8")))
    return words


def can_match(selector, words):
    """Tell whether all classes and ids that a selector asks for are among the words."""
    nested = r"\([^()]*(?:\([^()]*\)[^()]*)*\)"
    plain = re.sub(rf":[\w-]+{nested}|\[[^\]]*\]", "", selector)
    names = re.findall(r"[.#]((?:[\w-]|\\.)+)", plain)
    return all(name.replace("\\", "") in words for name in names)


def used_rules(rules, words):
    """Return the CSS of the rules that can match something, licences included."""
    kept = []
    for rule in rules:
        if rule.type == "comment":
            kept += [rule.serialize()] if rule.value.startswith("!") else []
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            inner = used_rules(tinycss2.parse_rule_list(rule.content), words)
            head = tinycss2.serialize(rule.prelude)
            kept += [f"@{rule.at_keyword}{head}{{{inner}}}"] if inner else []
        elif rule.type == "qualified-rule":
            text = tinycss2.serialize(rule.prelude)
            selectors = re.split(r",(?![^(\[]*[)\]])", text)
            alive = [one.strip() for one in selectors if can_match(one, words)]
            body = tinycss2.serialize(rule.content).strip()
            kept += [f"{','.join(alive)}{{{body}}}"] if alive and body else []
        elif rule.type == "at-rule" and rule.lower_at_keyword != "charset":
            kept.append(rule.serialize())
    return "\n".join(kept)


def drop_unused_rules(out, sheets):
    """Rewrite the theme's style sheets without the rules that match nothing."""
    words = words_of(out)
    for path in (path for pattern in sheets for path in out.glob(pattern)):
        rules = tinycss2.parse_stylesheet(path.read_text("utf-8"), skip_whitespace=True)
        path.write_text(used_rules(rules, words), "utf-8")


# Drawings ----------------------------------------------------------------------------

UNDRAWN = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|(?<=>)\s+(?=<)", re.S)
NAMED = re.compile(r'((?:href="|url\()#)([\w-]+)')
# A drawing that has no frame yet.
IMAGE = re.compile(r'(?<!px">)<img(?=[^>]*src="(?:\.\./)*(_images/[^"]+\.svg)")[^>]*>')
PLACES = re.compile(r'(?<= )(?:d|points|transform|x|y)="[^"]+"')


def short_drawing(svg):
    """Return a drawing of Matplotlib's without what is not drawn, to 1/100 point."""

    def short(places):
        numbers = re.sub(r"\s+", " ", places[0]).replace(' "', '"')
        if "scale" in numbers or "matrix" in numbers:  # small numbers of large effect
            return numbers
        return re.sub(r"-?\d+\.\d{3,}", lambda it: f"{float(it[0]):.2f}", numbers)

    svg = PLACES.sub(short, UNDRAWN.sub("", svg))
    svg = re.sub(
        r'(?<=style=")[^"]+', lambda style: re.sub(r"(?<=[:;]) ", "", style[0]), svg
    )
    used = sorted({name for _, name in NAMED.findall(svg)})
    names = {name: f"i{place}" for place, name in enumerate(used)}
    svg = NAMED.sub(lambda it: it[1] + names[it[2]], svg)
    return re.sub(
        r' id="([^"]*)"',
        lambda it: f' id="{names[it[1]]}"' if it[1] in names else "",
        svg,
    )


def short_picture(found):
    """Return a PNG of up to 256 colours with each of them once, if that is shorter."""
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(found[0]))).convert("RGBA"))
    colours, which = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256:
        return found[0]
    picture = Image.fromarray(which.reshape(pixels.shape[:2]).astype("uint8"))
    picture.putpalette(colours[:, :3].tobytes())
    written = io.BytesIO()
    alpha = colours[:, 3].tobytes()
    picture.save(written, "PNG", optimize=True, transparency=alpha)
    return min(b64encode(written.getvalue()).decode(), found[0], key=len)


def shorten_drawings(out):
    for path in sorted(Path(out, "_images").glob("*.svg")):
        svg = path.read_text("utf-8")
        if "<text" not in svg:  # Matplotlib's letters are drawn; spaces mean nothing
            svg = re.sub(r'(?<=data:image/png;base64,)[^"]+', short_picture, svg)
            path.write_text(short_drawing(svg), "utf-8")


def frame_drawings(out):
    """Write the size of each drawing into its tag, and a frame around it."""

    @functools.cache
    def size(name):
        head = Path(out, name).read_text("utf-8")[:2000]
        points = re.search(r' width="([\d.]+)pt" height="([\d.]+)pt"', head)
        return points and [round(float(side) * 4 / 3) for side in points.groups()]

    def framed(image):
        if not size(image[1]):  # no drawing of Matplotlib's
            return image[0]
        width, height = size(image[1])
        tag = image[0].replace("<img", f'<img width="{width}" height="{height}"')
        return f'<span class="drawing" style="--drawn:{width}px">{tag}</span>'

    for path in out.rglob("*.html"):
        text = path.read_text("utf-8")
        if (new := IMAGE.sub(framed, text)) != text:
            path.write_text(new, "utf-8")


SHEETS = ["_static/styles/*.css", "_static/*.css"]


def lighten(app, error):
    """Rewrite what the finished site loads."""
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    frame_drawings(out)
    drop_unused_rules(out, SHEETS)
    shorten_drawings(out)


def setup(app):
    app.connect("config-inited", use_few_tags, priority=900)
    app.connect("build-finished", lighten, priority=950)  # when the pages are mended
