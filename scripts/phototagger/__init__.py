"""What several of photo-tagger's rules, its command line and its app share."""

__version__ = "0.1.0"
