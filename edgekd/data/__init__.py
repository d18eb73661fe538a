"""Data sets: sources, splits, fingerprints and seeded views. Importing this loads no numpy, torch or pyarrow.

`edgekd.data.source` opens and loads a data set, `edgekd.data.table` holds what was loaded, `edgekd.data.views`
enumerates augmentation.
"""

from edgekd.data.settings import AugmentSettings, DataSettings

__all__ = ["AugmentSettings", "DataSettings"]
