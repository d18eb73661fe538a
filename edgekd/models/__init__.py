"""Networks: a small zoo, everyone else's by "package.module:factory", and safe loading of weights.

Importing this loads no torch; a function that needs it loads it when it is called.
"""

from edgekd.models.facts import input_names, macs, parameter_count
from edgekd.models.names import ZOO, check_name
from edgekd.models.resolve import build, code_digest, load_factory
from edgekd.models.settings import ModelReference, ModelSettings
from edgekd.models.source import source_digest
from edgekd.models.weights import apply_state, load_state, save_state

__all__ = [
    "ZOO",
    "ModelReference",
    "ModelSettings",
    "apply_state",
    "build",
    "check_name",
    "code_digest",
    "input_names",
    "load_factory",
    "load_state",
    "macs",
    "parameter_count",
    "save_state",
    "source_digest",
]
