"""`python -m phototagger.cli`, the same as `photo-tagger`."""

from phototagger.cli import main

main()
