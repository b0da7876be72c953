"""How fast images go through the network, as a bar and a last line show it."""

import time
from collections.abc import Callable


class Pace:
    """Images (each frame counts), and megapixels of them as they came in, since the first began."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the time from ``clock``, in seconds."""
        self._clock, self._start = clock, clock()
        self._images = self._megapixels = 0.0

    def add(self, images: float, pixels: float) -> None:
        """Count images, or a share of one, of so many pixels in all."""
        self._images += images
        self._megapixels += pixels / 1e6

    def rate(self) -> str:
        """Say how many a second."""
        seconds = max(self._clock() - self._start, 1e-9)
        return f"{self._images / seconds:.3g} images/s, {self._megapixels / seconds:.3g} MP/s"

    def total(self) -> str:
        """Say what it took in all."""
        seconds = self._clock() - self._start
        return f"{self._images:.0f} images, {self._megapixels:.3g} MP in {seconds:.1f} s: {self.rate()}"
