"""What can be wrong with a photo: a kind, a message, and what a person can do about it.

A photo with a problem is a row in `problems.csv`, never an exception that ends a job. Messages
depend on the photo only: no absolute path, temporary name or address, so that two runs agree byte
for byte.
"""

import re
from dataclasses import dataclass

# kind -> what to do
KINDS: dict[str, str] = {
    "missing": "The file was gone when it was its turn; run again.",
    "unreadable": "Make the file readable for the user that runs the pipeline.",
    "not_a_file": "Remove or rename it: it is a folder, pipe or device, not a file.",
    "empty": "The file has no content; restore it from a backup.",
    "too_large_bytes": "Raise photos.max_bytes if the file is to be trusted.",
    "too_many_pixels": "Raise thumbs.max_pixels if the file is to be trusted.",
    "truncated": "The end of the file is missing; copy it again or restore it from a backup.",
    "corrupt": "The file is damaged; copy it again or restore it from a backup.",
    "not_an_image": "The content is not a picture; rename the file or exclude it.",
    "unsupported_format": "Convert the file to JPEG, PNG, TIFF, WebP, HEIC or DNG, or exclude it.",
    "out_of_memory": "Use fewer threads or a machine with more memory, then run again.",
    "changed_while_reading": "Another program was writing the file; run again when it is done.",
    "embed_failed": "The model could not take this picture; see the log of its shard.",
    "picture_failed": "The picture could not be prepared for the model; see the log of its shard.",
    "answer_invalid": "The model does not keep to the form; try another setup or prompt profile.",
    "answer_truncated": "The model did not come to an end; raise describe.max_new_tokens.",
    "answer_digits": "The model answered with digits only; try another setup or prompt profile.",
    "answer_empty": "The model had nothing to say; try another setup or prompt profile.",
    "answer_language": "Not in describe.language; try another setup or prompt profile.",
    "answer_loop": "The model repeated itself; try another setup, or a higher temperature.",
    "answer_meta": "The answer is about the picture as a picture; try another prompt profile.",
    "answer_refusal": "The model refused; try another setup or prompt profile.",
    "answer_repeated": "Many photos got this same answer; try another setup or prompt profile.",
    "server_refused": "The server does not take this request; see the log of its shard.",
    "server_failed": "The server failed on this photo; run again, and it is asked again.",
}

_ADDRESS = re.compile(r"\s*at 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}")
_LONGEST = 300


@dataclass(frozen=True)
class Problem:
    """Why a photo has no result: `kind` is one of `KINDS`, `message` the particular cause."""

    kind: str
    message: str

    @property
    def what_to_do(self) -> str:
        return KINDS[self.kind]


class PhotoProblem(Exception):  # noqa: N818 - not an error of the program
    """Carries a Problem from where it is found to where the row is written."""

    def __init__(self, kind: str, message: str):
        if kind not in KINDS:
            raise ValueError(f"unknown kind of problem: {kind}")
        self.problem = Problem(kind, one_line(message))
        super().__init__(f"{kind}: {self.problem.message}")


def one_line(text: str) -> str:
    """A library's message as one printable line of bounded length, memory addresses left out."""
    text = _ADDRESS.sub("", text)
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:_LONGEST]
