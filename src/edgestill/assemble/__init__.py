"""Recipe -> parts. The only place that unpacks a Recipe: everything behind it takes plain values."""

from edgestill.assemble.data import Splits
from edgestill.assemble.job import (
    BASELINE,
    QUANTIZED,
    SCRATCH,
    SIMILARITY_SAMPLES,
    STUDENT,
    TEACHER,
    Job,
    cpu_threads,
)
from edgestill.assemble.stores import (
    check_served,
    check_store,
    check_taps,
    coarsest,
    codec_of,
    description_of,
    online,
    without_store,
)
from edgestill.assemble.terms import with_measured_maps
from edgestill.assemble.whole import assemble

__all__ = [
    "BASELINE",
    "QUANTIZED",
    "SCRATCH",
    "SIMILARITY_SAMPLES",
    "STUDENT",
    "TEACHER",
    "Job",
    "Splits",
    "assemble",
    "check_served",
    "check_store",
    "check_taps",
    "coarsest",
    "codec_of",
    "cpu_threads",
    "description_of",
    "online",
    "with_measured_maps",
    "without_store",
]
