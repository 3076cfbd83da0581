"""A teacher's signals on disk, captured once and trained from many times."""

from edgestill.store.codecs import CODECS, Codec, Dense, Sampled, TopK
from edgestill.store.store import Description, Store, Views, read_store, refuse_other, write_store
from edgestill.store.taps import Tap

__all__ = [
    "CODECS",
    "Codec",
    "Dense",
    "Description",
    "Sampled",
    "Store",
    "Tap",
    "TopK",
    "Views",
    "read_store",
    "refuse_other",
    "write_store",
]
