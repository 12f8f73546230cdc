"""Stamp the repository's address, set in `_config.yml`, wherever else it stands.

    python tools/address.py            write it
    python tools/address.py --check    change nothing; fail on each file that disagrees

The address is `repository: url:` in `_config.yml`, where the launch buttons find it.
An address counts as this repository's own if it stands in one of these places; links to
other repositories stay as they are:

    repository = "https://github.com/OWNER/NAME"             the notebooks' setup cell
    https://github.com/OWNER/NAME/actions/workflows/...      a badge
    https://colab.research.google.com/github/OWNER/NAME/...  a launch badge
    git clone https://github.com/OWNER/NAME                  instructions
    repository-code: "https://github.com/OWNER/NAME"         the citation
    url: https://github.com/OWNER/NAME                       the issue templates
    [Read it online](https://OWNER.github.io/NAME/)          the published book
"""

import argparse
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = ["README.md", "book/*.md", "notebooks/*.ipynb", "learner/*.ipynb"]
FILES += ["CITATION.cff", "CONTRIBUTING.md", ".github/ISSUE_TEMPLATE/*.yml"]
NAME = r"([\w.-]+/[\w.-]+)"
OURS = re.compile(
    "|".join(
        [
            rf'(?<=repository = ")https://github\.com/{NAME}(?=")',
            rf'(?<=repository = \\")https://github\.com/{NAME}(?=\\")',  # in a notebook
            rf"https://github\.com/{NAME}(?=/actions/workflows/)",
            rf"(?<=colab\.research\.google\.com/github/){NAME}(?=/blob/)",
            rf"(?<=git clone )https://github\.com/{NAME}\b",
            rf'(?<=repository-code: ")https://github\.com/{NAME}(?=")',
            rf"(?<=url: )https://github\.com/{NAME}(?=/)",
        ]
    )
)
PAGES = re.compile(r"(?<=\[Read it online\]\()https://([\w-]+)\.github\.io/([\w.-]*)")


def address(root):
    """Return OWNER/NAME from `_config.yml`."""
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    url = config["repository"]["url"]
    found = re.fullmatch(rf"https://github\.com/{NAME}(?<!\.git)", url)
    if not found:
        sys.exit(
            f"_config.yml: repository: url: must be https://github.com/OWNER/NAME, "
            f"without .git (Colab opens notebooks from there), got {url!r}"
        )
    return found[1]


def stamp(root, check=False):
    """Write the address, or only compare; return a sentence for each file concerned."""
    name, told = address(root), []
    for path in sorted(path for pattern in FILES for path in root.glob(pattern)):
        text, file = path.read_text("utf-8"), path.relative_to(root).as_posix()
        names = {next(filter(None, match.groups())) for match in OURS.finditer(text)}
        pages = {match[0] for match in PAGES.finditer(text)} - {published(name)}
        if '"id": "setup"' in text and not names:
            told.append(f"{file}: its setup cell holds no address")
        others = sorted(names - {name} | pages)
        if not others:
            continue
        told.append(f"{file}: {', '.join(others)}, not {name}")
        if not check:
            text = OURS.sub(lambda match: replaced(match, name), text)
            path.write_text(PAGES.sub(published(name), text), "utf-8")
    return told


def published(name):
    """Return where GitHub Pages serves the repository, without the last slash."""
    owner, name = name.lower().split("/")[0], name.split("/")[1]
    own = name.lower() == f"{owner}.github.io"  # served from the top
    return f"https://{owner}.github.io/" + ("" if own else name)


def replaced(match, name):
    """Return the matched address with OWNER/NAME replaced."""
    return match[0].replace(next(filter(None, match.groups())), name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    told = stamp(ROOT, check)
    if check and told:
        told.append(
            "The address stands in _config.yml; `make address` writes the rest."
        )
        sys.exit("\n".join(told))
    print("\n".join(told) or f"The address is {address(ROOT)} everywhere")


if __name__ == "__main__":
    main()
