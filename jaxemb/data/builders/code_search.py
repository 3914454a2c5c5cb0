"""Python code search from the standard library, as TFDS dataset `code_search`."""

import platform

import numpy as np
import tensorflow_datasets as tfds

from jaxemb.data import python_code


class CodeSearch(tfds.core.GeneratorBasedBuilder):
    """Docstrings and the code they describe, from the running Python's standard library; split by module.

    Features as in `jaxemb.data.python_code.pairs`. Splits: `train`, `validation`, `test`. The one config is named
    after the running Python's version, as another version's library holds other pairs.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=f"python-{platform.python_version()}"),)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = ("query", "code", "body", "module", "qualname", "path")
        return tfds.core.DatasetInfo(
            builder=self,
            description=CodeSearch.__doc__,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in texts} | {"line": np.int32}),
            supervised_keys=("query", "code"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        pairs = python_code.pairs()
        return {split: self._generate_examples(pairs, split) for split in python_code.SPLITS}

    def _generate_examples(self, pairs, split):
        yield from enumerate(pair for pair in pairs if python_code.split_of(pair["module"]) == split)
