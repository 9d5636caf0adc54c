"""Networks of many kinds, on which every treatment of random weights is measured against draws of whole networks."""

from . import derivatives, images, language, meeting, sequences, vectors
from .entry import ZOO, Entry

__all__ = ["ZOO", "Entry", "derivatives", "images", "language", "meeting", "sequences", "vectors"]
