"""What is left of the time a batch system has given: when to stop asking, and when to be gone."""

import time
from dataclasses import dataclass

from phototagger.allocation import Allocation
from phototagger.errors import TransientError

RESERVE = 60.0  # seconds before the end in which no question is asked any more ...
SLOWEST = 3  # ... or this many times the slowest answer so far, if that is more
LEAVING = 30.0  # seconds to stop the server and to write down what became of the job


@dataclass
class TimeLeft:
    """Until the end of an allocation; without one, there is always enough."""

    ends: float | None = None  # seconds since 1970
    slowest: float = 0.0  # seconds of an answer

    @classmethod
    def of(cls, place: Allocation | None) -> "TimeLeft":
        return cls(place.ends if place else None)

    def answered(self, seconds: float) -> None:
        self.slowest = max(self.slowest, seconds)

    def is_enough(self) -> bool:
        """Whether another question can be asked."""
        if self.ends is None:
            return True
        return self.ends - time.time() > max(RESERVE, SLOWEST * self.slowest)

    def check(self) -> None:
        """Raise TransientError if no other question can be asked."""
        if not self.is_enough():
            raise self.over()

    def until_leaving(self) -> float | None:
        """Seconds after which also what is under way has to be given up; None if never."""
        return None if self.ends is None else max(0.0, self.ends - time.time() - LEAVING)

    def over(self) -> TransientError:
        left = max(0.0, (self.ends or 0.0) - time.time())
        return TransientError(
            f"the allocation ends in {left:.0f} s; what was answered is kept, and the next attempt "
            "goes on from there (give the rule more runtime, or make plan.shard_size smaller)"
        )
