"""What several of photo-tagger's rules, its command line and its app share."""

from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]  # where the Snakefile, config/ and registry/ are

__version__ = "0.1.0"
