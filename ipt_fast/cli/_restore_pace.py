"""How fast photos go through the network, as a bar and a last line show it."""

import time
from collections.abc import Callable


class Pace:
    """Photos, and megapixels of them as they came in, since the first began."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the time from ``clock``, in seconds."""
        self._clock, self._start = clock, clock()
        self._photos = self._megapixels = 0.0

    def add(self, share: float, pixels: int) -> None:
        """Count a share of a photo of so many pixels."""
        self._photos += share
        self._megapixels += share * pixels / 1e6

    def rate(self) -> str:
        """Say how many a second."""
        seconds = max(self._clock() - self._start, 1e-9)
        return f"{self._photos / seconds:.3g} photos/s, {self._megapixels / seconds:.3g} MP/s"

    def total(self) -> str:
        """Say what it took in all."""
        seconds = self._clock() - self._start
        return f"{self._photos:.0f} photos, {self._megapixels:.3g} MP in {seconds:.1f} s: {self.rate()}"
