"""TFDS datasets as sources, without TensorFlow. What needs the package is imported when it is first used."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxemb.checks import checked
from jaxemb.data.files import Fields
from jaxemb.data.records import Source
from jaxemb.packages import remedy


@checked()
def tfds(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    download: bool = False,
    columns: Fields = None,
) -> Source:
    """A TFDS dataset as an ArrayRecord data source, without TensorFlow. Bytes become str.

    jaxemb's own datasets (`stsb/<language>`, `code_search`; see `jaxemb.data.builders`) need no download and are
    prepared on first use.

    Args:
      name: `dataset`, `dataset/config` or `dataset/config:version`.
      split: such as "train", or "train[:1000]".
      data_dir: where prepared datasets are; TFDS's default is `~/tensorflow_datasets`.
      manual_dir: files that the dataset is made from and that TFDS cannot download (`stsb`: the directory of its CSVs).
      download: download and prepare the dataset if it is not there.
      columns: see `Source.with_columns`.

    Raises:
      ValueError: no such dataset, config or split; it is not prepared, and `download` is false; `manual_dir` is empty.
      ModuleNotFoundError: without the package tensorflow_datasets.
    """
    with remedy():
        import tensorflow_datasets

        from jaxemb.data import builders  # defines subclasses of the package's

    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    except tensorflow_datasets.core.DatasetNotFoundError:
        raise ValueError(f"name: TFDS has no dataset {name!r}; {_close_matches(name)}") from None
    if not builder.data_path.exists():
        if not (download or isinstance(builder, builders.OWN)):
            raise ValueError(f"{name} is not in {builder.data_dir}; pass download=True to download and prepare it")
        config = tensorflow_datasets.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=config)
        except AssertionError as error:  # what TFDS raises where manual_dir is missing or empty
            raise ValueError(f"manual_dir: {error}") from error
    rows = builder.as_data_source(split=split)
    return Source(rows, f"{name}[{split}]", transforms=(_plain,)).with_columns(columns)


def _plain(value: Any) -> Any:
    """TFDS's NumPy values as Python ones: bytes as str, scalars and arrays of strings as Python scalars and lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind in "OSU"):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _close_matches(name: str) -> str:
    import tensorflow_datasets

    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(name.split("/")[0].split(":")[0], known)
    return f"did you mean {' or '.join(close)}?" if close else f"it has {len(known)} others"
