"""Every setting of a run: what there is, where it is kept, and what makes no sense.

A file in configs/ is a function `config()` that returns a `Config`; the command line overrides any
leaf by its dotted name; `validate` refuses combinations that make no sense.
"""

from jgolf.config.check import validate, validate_model
from jgolf.config.marks import Mark, marked
from jgolf.config.resolve import resolved
from jgolf.config.settings import (
    STORAGE_FORMS,
    AdamWConfig,
    AdaptedConfig,
    Addition,
    Average,
    AverageConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    LqerConfig,
    ModelConfig,
    MuonConfig,
    OptimConfig,
    QuantizeConfig,
    SGDConfig,
    StorageForm,
    TrainConfig,
    form_bits,
)
from jgolf.config.store import (
    choices,
    config_names,
    from_dict,
    from_written,
    leading_name,
    leaves,
    load,
    read_json,
    replace,
    replace_all,
    to_dict,
    with_absolute_paths,
    write_json,
)

__all__ = [
    "STORAGE_FORMS",
    "AdamWConfig",
    "AdaptedConfig",
    "Addition",
    "Average",
    "AverageConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "LqerConfig",
    "Mark",
    "ModelConfig",
    "MuonConfig",
    "OptimConfig",
    "QuantizeConfig",
    "SGDConfig",
    "StorageForm",
    "TrainConfig",
    "choices",
    "config_names",
    "form_bits",
    "from_dict",
    "from_written",
    "leading_name",
    "leaves",
    "load",
    "marked",
    "read_json",
    "replace",
    "replace_all",
    "resolved",
    "to_dict",
    "validate",
    "validate_model",
    "with_absolute_paths",
    "write_json",
]
