"""The picture of a photo that a vision-language model is shown, within its setup's limits."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phototagger import images, thumbnails
from phototagger.machine import Machine
from phototagger.setups import ImageLimits

if TYPE_CHECKING:
    from PIL import Image

RECIPE = "1"  # raised when the way from photo to the picture that is sent changes
LONGEST = 8  # width : height (or the reverse) beyond which only the middle is sent

Row = Mapping[str, Any]  # of the thumbs table


class Pictures:
    """Encodes photos as a setup wants them."""

    def __init__(self, limits: ImageLimits, machine: Machine, *, size: int, quality: int):
        self._limits = limits
        self._machine = machine
        self._thumb = {"size": size, "quality": quality}

    @property
    def recipe(self) -> str:
        """All that shapes a picture, besides the photo."""
        limits = self._limits
        shape = f"{limits.max_edge} {limits.max_bytes} {limits.format} {limits.quality}"
        source = f"{thumbnails.PIXELS} {self._thumb}" if self._from_thumb else "photo"
        return f"{RECIPE} {shape} {source}"

    @property
    def _from_thumb(self) -> bool:
        return self._limits.max_edge <= self._thumb["size"]

    def __call__(self, row: Row) -> bytes:
        """The encoded picture of a row of the thumbs table. Raises PhotoProblem."""
        if self._from_thumb:
            image = thumbnails.load_thumb(row, machine=self._machine, **self._thumb)
        else:
            edge = self._limits.max_edge
            image = thumbnails.load_photo(row, machine=self._machine, long_edge=edge)
        return encode(images.middle(image, LONGEST), self._limits)


def encode(image: "Image.Image", limits: ImageLimits) -> bytes:
    """A picture within the limits; the same picture gives the same bytes."""
    image.thumbnail((limits.max_edge, limits.max_edge))
    while True:
        buffer = io.BytesIO()
        options = {"quality": limits.quality} if limits.format == "jpeg" else {}
        image.save(buffer, limits.format.upper(), **options)
        if not limits.max_bytes or buffer.tell() <= limits.max_bytes or max(image.size) < 64:
            return buffer.getvalue()
        image.thumbnail((image.width * 3 // 4, image.height * 3 // 4))
