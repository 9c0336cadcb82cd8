"""What a sidecar says about its photo, as a digest: the listings' column `sidecar`.

Only what shapes results counts: a person's texts, keywords and rating. So an edit in another
program makes a photo stale, but neither that program's own history nor what photo-tagger writes.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from phototagger import own_metadata
from phototagger.xmp import Packet

RECIPE = 1  # raise it when the same sidecar shall have another token


class Tokens(NamedTuple):
    """16 hex digits each; "" says nothing. Equal tokens say the same about a photo."""

    human: str = ""
    ours: str = ""

    def of(self, by: Iterable[str]) -> str:
        """The token, if what counts is what these (person, photo-tagger) say."""
        if self.ours and "photo-tagger" in by:
            return _digest([self.human, self.ours])
        return self.human


NOTHING = Tokens()


def tokens_of(packet: Packet | None) -> Tokens:
    """The tokens of a sidecar; of one that cannot be read (None) they say nothing.

    They do not depend on the order of keywords, nor on the lists that a keyword is in, as long as
    it is in one: photo-tagger copies a person's keywords to the lists where they are missing.
    """
    if packet is None:
        return NOTHING
    said = own_metadata.columns(packet.theirs)
    human = {name: sorted(v) if isinstance(v, list) else v for name, v in said.items()}
    ours = sorted(own_metadata.ours_of(packet))
    return Tokens(_digest(human) if any(human.values()) else "", _digest(ours) if ours else "")


def joined(found: Sequence[Tokens], by: Iterable[str]) -> str:
    """The token of all sidecars of one photo."""
    if len(found) == 1:
        return found[0].of(by)
    tokens = [token for each in found if (token := each.of(by))]
    return tokens[0] if len(tokens) == 1 else _digest(tokens) if tokens else ""


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
