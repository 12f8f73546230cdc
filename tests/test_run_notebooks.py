"""`make look`: which notebooks are run again after a change."""

from tools.run_notebooks import code_of, concerned, modules_in

MODULES = {
    "config": "from dataclasses import dataclass",
    "block": "from .config import GPT2Config",
    "model": "from .block import TransformerBlock",
    "figures": "import matplotlib",
}
NOTEBOOKS = {
    "phase0": "from gpt2lib.config import GPT2Config",
    "phase1": "import torch\nfrom gpt2lib.figures import glue",
    "phase3": "def late():\n    from gpt2lib import model",
}


def test_a_changed_module_concerns_those_that_import_it_also_through_others():
    assert concerned(NOTEBOOKS, MODULES, {"config"}) == ["phase0", "phase3"]
    assert concerned(NOTEBOOKS, MODULES, {"block"}) == ["phase3"]
    assert concerned(NOTEBOOKS, MODULES, {"figures"}) == ["phase1"]


def test_a_changed_notebook_concerns_itself_alone():
    assert concerned(NOTEBOOKS, MODULES, {"phase1"}) == ["phase1"]
    assert concerned(NOTEBOOKS, MODULES, set()) == []


def test_modules_that_import_each_other_end():
    circle = {"a": "from .b import x", "b": "from .a import y"}
    notebook = {"one": "import gpt2lib.a"}
    assert concerned(notebook, circle, {"b"}) == ["one"]
    assert concerned(notebook, circle, {"c"}) == []


def test_every_form_of_import_counts():
    source = """
import gpt2lib.config as c, torch
from gpt2lib.block import TransformerBlock
from gpt2lib import model, rotary
from .train import main
from . import web
from gpt2library import nothing
"""
    wanted = {"config", "block", "model", "rotary", "train", "web"}
    assert modules_in(source) == wanted


def test_prose_outputs_and_shell_lines_are_no_code():
    notebook = """{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
      {"id": "a", "cell_type": "markdown", "metadata": {}, "source": "from gpt2lib"},
      {"id": "b", "cell_type": "code", "metadata": {}, "execution_count": 1,
       "outputs": [], "source": "%pip install x\\nx = 1"}]}"""
    assert code_of(notebook) == "pass\nx = 1"
