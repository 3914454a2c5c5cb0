import gzip
import platform
import subprocess
import sys
import textwrap

import pytest
import tensorflow_datasets

from jaxemb.data import python_code, tfds


@pytest.fixture
def stsb_files(tmp_path):
    directory = tmp_path / "csv"
    directory.mkdir()
    for split, rows in (("train", ["A,B,5.0", '"C, c",D,2.25', "Ä,漢,0"]), ("dev", ["E,F,1"])):
        (directory / f"stsb-de-{split}.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    return directory


def test_stsb_is_written_and_read_back_in_order(stsb_files, tmp_path):
    source = tfds("stsb/de", "train", data_dir=tmp_path / "tfds", manual_dir=stsb_files)
    assert [source[i] for i in range(len(source))] == [
        {"sentence1": "A", "sentence2": "B", "score": 5.0},
        {"sentence1": "C, c", "sentence2": "D", "score": 2.25},
        {"sentence1": "Ä", "sentence2": "漢", "score": 0.0},
    ]
    assert list((tmp_path / "tfds").rglob("*.array_record*"))
    again = tfds("stsb/de:1.0.0", "dev", data_dir=tmp_path / "tfds", columns={"query": "sentence1"})
    assert again.__getitems__([0]) == [{"query": "E"}]
    assert len(tfds("stsb/de", "train[:2]", data_dir=tmp_path / "tfds")) == 2
    with pytest.raises(ValueError, match=r"Unknown split 'test'. Should be one of \['train', 'dev'\]"):
        tfds("stsb/de", "test", data_dir=tmp_path / "tfds")


def test_stsb_of_the_data_directory(data_dir, tmp_path):
    files = data_dir / "stsb_multi"
    sources = [tfds(f"stsb/{language}", "dev", data_dir=tmp_path, manual_dir=files) for language in ("en", "ja")]
    assert [len(source) for source in sources] == [1500, 1500]
    english, japanese = (source.__getitems__(range(1500)) for source in sources)
    assert english[0]["sentence1"] == "A man with a hard hat is dancing."
    assert [record["score"] for record in english] == [record["score"] for record in japanese]  # aligned


def made_up_pairs() -> list[dict]:
    texts = ("query", "code", "body", "qualname", "path")
    modules = ("email.x", "logging.x", "json.x", "email.y")
    return [{name: f"{name} {i}" for name in texts} | {"module": m, "line": i} for i, m in enumerate(modules)]


@pytest.mark.parametrize("pairs", [made_up_pairs, pytest.param(python_code.pairs, marks=pytest.mark.slow)])
def test_code_search_is_the_pairs_by_split(tmp_path, monkeypatch, pairs):
    pairs = pairs()
    monkeypatch.setattr(python_code, "pairs", lambda: pairs)
    for split in python_code.SPLITS:
        source = tfds("code_search", split, data_dir=tmp_path)
        expected = [pair for pair in pairs if python_code.split_of(pair["module"]) == split]
        assert source.__getitems__(range(len(source))) == expected
    assert (tmp_path / "code_search" / f"python-{platform.python_version()}").is_dir()


def test_a_public_dataset_by_name(tmp_path, monkeypatch):
    """TFDS's own builder code, without its download."""
    (tmp_path / "ag_news_csv").mkdir()
    for split in ("train", "test"):
        (tmp_path / "ag_news_csv" / f"{split}.csv").write_text('"3","A title","Some ""quoted"" text"\n"1","B","C"\n')
    manager = tensorflow_datasets.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, urls: dict.fromkeys(urls, str(tmp_path)))
    source = tfds("ag_news_subset", "test", data_dir=tmp_path / "tfds", download=True)
    assert sorted(source.__getitems__([0, 1]), key=lambda record: record["title"]) == [
        {"title": "A title", "description": 'Some "quoted" text', "label": 2},
        {"title": "B", "description": "C", "label": 0},
    ]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("stbs", "dev", "name: TFDS has no dataset 'stbs'; did you mean stsb?"),
        ("zzzzqqqq", "dev", r"name: TFDS has no dataset 'zzzzqqqq'; it has \d+ others"),
        ("ag_news_subset", "train", "ag_news_subset is not in .*; pass download=True to download and prepare it"),
        ("stsb/xx", "dev", "BuilderConfig xx not found"),
        (
            "stsb/de",
            "dev",
            r"manual_dir: Manual directory .* does not exist or is empty[\s\S]*stsb-<language>-train.csv.gz",
        ),
    ],
)
def test_unknown_names_are_said_to_be_so(tmp_path, name, split, message):
    with pytest.raises(ValueError, match=message):
        tfds(name, split, data_dir=tmp_path)


def test_no_heavy_library_is_imported(stsb_files, tmp_path):
    program = textwrap.dedent(f"""
        import sys
        import jaxemb.data
        assert not {{"grain", "pyarrow", "tensorflow_datasets", "datasets"}} & set(sys.modules), "import jaxemb.data"
        jaxemb.data.tfds("stsb/de", "train", data_dir={str(tmp_path / "tfds")!r}, manual_dir={str(stsb_files)!r})[0]
        assert not {{"tensorflow", "torch", "transformers"}} & set(sys.modules), "tfds"
    """)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
