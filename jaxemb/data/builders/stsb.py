"""STS-Benchmark in eleven languages, as TFDS dataset `stsb/<language>`."""

import numpy as np
import tensorflow_datasets as tfds

from jaxemb.data import records

LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")


class Stsb(tfds.core.GeneratorBasedBuilder):
    """Sentence pairs with a similarity score of 0 to 5; records of all languages are aligned by index.

    Features: `sentence1`, `sentence2`, `score`. Splits: `train` (5,749) and `dev` (1,500).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=language) for language in LANGUAGES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put stsb-<language>-train.csv.gz and stsb-<language>-dev.csv.gz of "
        "https://github.com/PhilipMay/stsb-multi-mt (CSV without header, gzipped) into the directory."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=Stsb.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "sentence1": tfds.features.Text(),
                    "sentence2": tfds.features.Text(),
                    "score": tfds.features.Scalar(np.float32),
                }
            ),
            homepage="https://github.com/PhilipMay/stsb-multi-mt",
            disable_shuffling=True,  # keeps the languages aligned
        )

    def _split_generators(self, dl_manager):
        language = self.builder_config.name
        return {
            split: self._generate_examples(dl_manager.manual_dir / f"stsb-{language}-{split}.csv.gz")
            for split in ("train", "dev")
        }

    def _generate_examples(self, path):
        fields = ("sentence1", "sentence2", "score")
        source = records.read(path, names=fields, types={"score": float})
        for index in range(len(source)):
            yield index, source[index]
