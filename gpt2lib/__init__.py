"""GPT-2, built cell by cell in the notebooks of this repository and exported from them."""

__version__ = "0.1.0"
