import gzip
import re
from datetime import datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from refit.data.signature import Target
from refit.errors import DataError, RefitError, SettingsError
from refit.models.building import build_model
from refit.serving.saved_model import Model
from refit.serving.scoring import score_files
from refit.settings import SettingsTree
from refit.tables.preprocessing import fit_columns, sign_columns
from refit.tables.profiles import profile_columns
from refit.tables.sources import csv_files
from refit.tables.sources.dialects import Dialect
from refit.tables.sources.opening import open_source
from refit.tables.table_examples import TableExamples

NUM_ROWS = 1000
KINDS = {"size": "numeric", "colour": "categorical", "is_new": "boolean", "seen": "datetime"}


def make_rows(num_rows: int = NUM_ROWS, seed: int = 0) -> pl.DataFrame:
    """Rows of every kind of column, with missing values and a number for each row."""
    generator = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "number": range(num_rows),
            "size": generator.normal(size=num_rows),
            "colour": generator.choice(np.array(["red", "green", "blue, dark"]), num_rows),
            "is_new": generator.random(num_rows) < 0.5,
            "seen": [datetime(2024, 1, 1) + timedelta(minutes=int(minutes)) for minutes in generator.integers(0, 10**6, num_rows)],
        }
    )
    is_gone = pl.col("number") % 7 == 3
    return frame.with_columns(pl.when(~is_gone).then(name).alias(name) for name in KINDS)


def make_model(classes: list) -> Model:
    """A model with random weights."""
    settings = SettingsTree()
    columns = fit_columns(make_rows(), KINDS, settings.data.null_values)
    unused = {"splits": {}, "rows": 0, "rows_without_target": 0, "source_rows": 0, "dropped_columns": {}}
    unused |= {"source_digest": "", "test_source_digest": None, "profiles": profile_columns(make_rows(), KINDS)}
    fields = TableExamples.model_fields
    signature = sign_columns(columns, Target(name="y", classes=classes))
    known = {"signature": signature, "columns": columns, **{k: v for k, v in unused.items() if k in fields}}
    manifest = TableExamples.model_construct(**known)
    torch.manual_seed(0)
    return Model(build_model(settings.model, manifest.signature).eval(), manifest, settings)


@pytest.fixture
def model() -> Model:
    return make_model(["no", "perhaps", "yes"])


def read_scores(path: str) -> tuple[list, np.ndarray]:
    scored = pl.read_parquet(path)
    probabilities = scored.select(pl.col("^probability of .*$")).to_numpy()
    return scored["class"].to_list(), probabilities


def assert_scores_are_those_of_predict(model: Model, source: str, output: str) -> None:
    """To the bit, over all rows at once."""
    rows = open_source(source).read().frame
    classes, probabilities = read_scores(output)
    assert classes == model.predict(rows).tolist()
    assert probabilities.tobytes() == model.predict_proba(rows).tobytes()


def write(rows: pl.DataFrame, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        rows.write_parquet(path, row_group_size=300)
    else:
        content = rows.write_csv().encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.fixture(params=[1, 77, 8192], ids=lambda size: f"{size} rows")
def rows_per_batch(request, monkeypatch) -> int:
    """Sizes of a batch; the model's own are as large, so that the bits must be those of one pass."""
    monkeypatch.setattr("refit.data.loaders.EVALUATION_BATCH_SIZE", request.param)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 40 * request.param)
    return request.param


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_scores_are_those_of_predict_to_the_bit_in_the_order_of_files_and_rows(model, tmp_path, suffix, rows_per_batch):
    rows = make_rows(100)
    for name, part in {"b": rows[80:], "a/z": rows[:50], "a/z2": rows[50:80], "a/empty": rows[:0]}.items():
        write(part, tmp_path / "rows" / f"{name.replace('/', '-')}{suffix}")
    scored = score_files(model, f"{tmp_path}/rows", "scored.parquet", "penguins@v3", keep=["number"], rows_per_batch=rows_per_batch)
    assert scored.num_rows == 100
    assert pl.read_parquet("scored.parquet")["number"].cast(int).to_list() == list(range(100))
    assert_scores_are_those_of_predict(model, f"{tmp_path}/rows", "scored.parquet")


def test_a_file_is_scored_in_the_precision_that_the_model_was_trained_in(model, tmp_path):
    source = write(make_rows(200), tmp_path / "rows.parquet")
    rounding = Model(model.module, model.manifest, SettingsTree.model_validate({"compute": {"precision": "bf16"}}))
    score_files(rounding, source, "scored.parquet", "penguins@v3")
    assert_scores_are_those_of_predict(rounding, source, "scored.parquet")
    assert read_scores("scored.parquet")[1].tobytes() != model.predict_proba(open_source(source).read().frame).tobytes()


def test_several_batches_of_the_size_in_use_give_the_bits_of_predict(model, tmp_path):
    source = write(make_rows(150_000, seed=1), tmp_path / "rows.parquet")
    scored_so_far = []
    assert score_files(model, source, "scored.parquet", "penguins@v3", scored_so_far.append).num_rows == 150_000
    assert scored_so_far == [65536, 131072, 150_000]
    assert_scores_are_those_of_predict(model, source, "scored.parquet")


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(["no", "yes"], pl.String), ([3, 7, 10**12], pl.Int64), ([False, True], pl.Boolean), (["猫", "$|"], pl.String)],
)
def test_the_columns_are_those_kept_then_class_probabilities_and_model(tmp_path, classes, dtype):
    source = write(make_rows(), tmp_path / "rows.parquet")
    score_files(make_model(classes), source, "scored.parquet", "penguins@v3", keep=["number", "seen"])
    scored = pl.read_parquet("scored.parquet")
    names = [f"probability of {label}" for label in classes]
    types = [pl.Int64, pl.Datetime("us"), dtype, *[pl.Float32] * len(classes)]
    assert scored.drop("model").schema == pl.Schema(zip(["number", "seen", "class", *names], types, strict=True))
    assert scored["seen"].equals(make_rows()["seen"])
    assert str(pq.read_schema("scored.parquet").field("model").type).startswith("dictionary<values=string")
    assert scored["model"].cast(pl.String).unique().to_list() == ["penguins@v3"]


def test_kept_cells_of_csv_are_text_and_inputs_can_be_kept_too(model, tmp_path):
    source = write(make_rows(), tmp_path / "rows.csv")
    score_files(model, source, "scored.parquet", "penguins@v3", keep=["colour", "number"])
    scored = pl.read_parquet("scored.parquet")
    assert scored.columns[:2] == ["colour", "number"]
    assert scored["number"].to_list() == [str(number) for number in range(NUM_ROWS)]
    assert scored["colour"].to_list() == make_rows()["colour"].to_list()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["numbr"], r"--keep: expected a column of .*rows.csv, found no `numbr` among .*; did you mean `number`\?"),
        (["number", "number"], r"--keep: expected columns once, .*found `number`"),
        (["class"], r"--keep: expected columns once, and named unlike those of the predictions, found `class`"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(model, tmp_path, keep, message):
    source = write(make_rows(), tmp_path / "rows.csv")
    with pytest.raises(DataError, match=message):
        score_files(model, source, "scored.parquet", "penguins@v3", keep=keep)


def test_a_kept_column_of_another_type_is_refused_by_file(model, tmp_path):
    write(make_rows(), tmp_path / "rows" / "1.parquet")
    write(make_rows().cast({"number": pl.Float64}), tmp_path / "rows" / "2.parquet")
    score_files(model, "rows", "scored.parquet", "penguins@v3")
    with pytest.raises(
        DataError, match=r"rows/2.parquet, column `number`: expected Int64 as in .*1.parquet, found Float64; convert"
    ):
        score_files(model, "rows", "scored.parquet", "penguins@v3", keep=["number"])


def test_blank_lines_quotes_and_line_ends_within_cells_are_read_as_training_reads_them(model, tmp_path, monkeypatch):
    content = 'colour,size,is_new,seen\n"blue, dark",1,true,2024-01-01\n\nred,,,\r\n"a\nb\n""c",2,,2024-01-02T00:01:02Z\n,,,\n'
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    expected = open_source("rows.csv").read().frame
    for block_bytes in (2, 7, 30, 1000):
        monkeypatch.setattr(csv_files, "BLOCK_BYTES", block_bytes)
        (found,) = open_source("rows.csv").iterate(expected.columns, [], 100)
        assert found.frame.equals(expected)
    assert score_files(model, "rows.csv", "scored.parquet", "penguins@v3").num_rows == 4


BROKEN = {
    "short row": (b"1,red,true\n", r"row 901 of .*2\.csv, line 902: expected 4 cells as in the header, found 3; correct the row"),
    "long row": (b"1,red,true,,\n", r"row 901 of .*2\.csv, line 902: expected 4 cells as in the header, found 5; correct the row"),
    "other bytes": (
        b"1,r\x81d,true,\n",
        r"row 901 of .*2\.csv, line 902, column `colour`: expected text in Windows-1252, found the bytes",
    ),
    "open quote": (b'1,"red,true,\n', r"row 901 of .*2\.csv, line 902: expected quotes in pairs"),
    "text": (b"big,red,true,\n", r"row 901 of .*2\.csv, line 902, column `size`: expected a number, found 'big'"),
    "infinite": (b"inf,red,true,\n", r"row 901 of .*2\.csv, line 902, column `size`: expected a finite number, found inf"),
}


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize(("line", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_named_and_leaves_what_was_there(model, tmp_path, monkeypatch, line, message, has_old):
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 5000)
    rows = make_rows().select(*KINDS)
    write(rows, tmp_path / "rows" / "1.csv")
    (tmp_path / "rows" / "2.csv").write_bytes(
        rows[:900].write_csv().encode() + line + rows[900:].write_csv(include_header=False).encode()
    )
    (tmp_path / "out").mkdir()
    if has_old:
        (tmp_path / "out" / "scored.parquet").write_text("old")
    with pytest.raises(DataError, match=message):
        score_files(model, "rows", "out/scored.parquet", "penguins@v3", rows_per_batch=500)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == ({"scored.parquet": "old"} if has_old else {})


def test_a_mistake_in_the_second_parquet_file_is_named_by_row_and_file(model, tmp_path):
    write(make_rows(), tmp_path / "rows" / "1.parquet")
    write(
        make_rows().with_columns(size=pl.when(pl.col("number") == 600).then(np.inf).otherwise("size")),
        tmp_path / "rows" / "2.parquet",
    )
    with pytest.raises(DataError, match=r"row 601 of .*rows/2\.parquet, column `size`"):
        score_files(model, "rows", "out/scored.parquet", "penguins@v3", rows_per_batch=512)
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("output", ["out/scored.parquet", "memory://prediction-tests/scored.parquet"])
def test_nothing_half_written_stays_after_an_interruption(model, tmp_path, monkeypatch, error, output):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    source = write(make_rows(), tmp_path / "rows.parquet")

    def interrupt(_: int) -> None:
        raise error

    with pytest.raises(error):
        score_files(model, source, output, "penguins@v3", interrupt)
    files, path = fsspec.url_to_fs(output)
    assert not files.exists(path)
    assert [path for name in ("out", "temporary") for path in Path(name).glob("*")] == []


def test_a_column_more_is_ignored_and_an_unseen_category_counts_as_another(model, tmp_path):
    rows = make_rows()
    write(rows, tmp_path / "rows" / "1.csv")
    write(rows.with_columns(colour=pl.lit("mauve"), extra=pl.lit("x")), tmp_path / "rows" / "2.csv")
    assert score_files(model, "rows", "scored.parquet", "penguins@v3").num_rows == 2 * NUM_ROWS
    _, probabilities = read_scores("scored.parquet")
    other = model.predict_proba(rows.with_columns(colour=pl.lit("none of these")))
    assert probabilities[:NUM_ROWS].tobytes() == model.predict_proba(rows).tobytes()
    assert probabilities[NUM_ROWS:].tobytes() == other.tobytes() != probabilities[:NUM_ROWS].tobytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colour": pl.lit("mauve")}, r"column `colour`: 1,000 of 1,000 rows hold a category .* not know, such as `mauve` \(0% of"),
        (
            {"colour": pl.lit(17)},
            r"column `colour`: 1,000 of 1,000 rows hold a category that the model does not know, such as `17`",
        ),
        ({"size": pl.lit(None)}, r"column `size`: 1,000 of 1,000 rows have no value \(14% of the train rows\)"),
        (
            {"colour": pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("mauve")).otherwise("colour")},
            r"column `colour`: 334 of 1,000 rows hold a category that the model does not know, such as `mauve`",
        ),
        (
            {"size": pl.when(pl.int_range(pl.len()) % 3 == 0).then(-999.0).otherwise("size")},
            r"column `size`: 334 of 1,000 rows hold numbers far outside the range from .*, such as `-999\.0`",
        ),
        ({"seen": pl.lit(None)}, r"column `seen`: 1,000 of 1,000 rows have no value"),
        (
            {"size": pl.col("size") * 1000},
            r"column `size`: 8\d\d of 1,000 rows hold numbers far outside the range from -\d\.\d* to \d\.\d*, such as",
        ),
        (
            {"size": pl.col("size") / 1000},
            r"column `size`: 8\d\d of 1,000 rows hold numbers more than 100 times smaller than usual",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_has_changed_is_told_with_a_count_and_refused_where_strict(model, tmp_path, change, told, suffix):
    like = write(make_rows(seed=1), tmp_path / f"like{suffix}")
    assert score_files(model, like, "scored.parquet", "penguins@v3", rows_per_batch=400).deviations == []
    source = write(make_rows().with_columns(**change), tmp_path / f"rows{suffix}")
    (deviation,) = score_files(model, source, "scored.parquet", "penguins@v3", rows_per_batch=400).deviations
    assert re.match(told, deviation.describe())
    Path("scored.parquet").write_text("old")
    with pytest.raises(DataError, match=rf"rows\..*: expected rows like those that penguins@v3 learned from, found\n{told}"):
        score_files(model, source, "scored.parquet", "penguins@v3", rows_per_batch=400, is_strict=True)
    assert Path("scored.parquet").read_text() == "old"


def test_a_row_whose_logits_are_not_finite_is_refused_by_name(model, tmp_path):
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(100)
    write(make_rows().with_columns(size=pl.when(pl.col("number") == 600).then(1e37).otherwise("size")), tmp_path / "rows.parquet")
    with pytest.raises(
        DataError, match=r"row 601 of .*rows\.parquet: expected values that give finite outputs, found \[.*; correct"
    ):
        score_files(model, "rows.parquet", "scored.parquet", "penguins@v3")
    assert not Path("scored.parquet").exists()


def test_missing_columns_are_named_with_their_file_before_anything_is_scored(model, tmp_path):
    write(make_rows(), tmp_path / "rows" / "1.parquet")
    write(make_rows().drop("size", "seen"), tmp_path / "rows" / "2.parquet")
    with pytest.raises(
        DataError, match=r"rows/2\.parquet: expected column `size`, `seen`, found `number`, `colour`, `is_new`; add"
    ):
        score_files(model, "rows", "out/scored.parquet", "penguins@v3")
    assert not Path("out").exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_no_rows_are_refused(model, tmp_path, suffix):
    source = write(make_rows()[:0], tmp_path / f"rows{suffix}")
    with pytest.raises(DataError, match=r"rows\..*: expected rows, found an empty table with columns `number`, "):
        score_files(model, source, "scored.parquet", "penguins@v3")
    assert not Path("scored.parquet").exists()


def test_a_damaged_parquet_file_is_refused_by_name(model, tmp_path):
    write(make_rows(), tmp_path / "rows" / "1.parquet")
    path = tmp_path / "rows" / "2.parquet"
    path.write_bytes(Path(write(make_rows(), path)).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"rows/2\.parquet: expected a whole Parquet file, found a damaged one"):
        score_files(model, "rows", "scored.parquet", "penguins@v3")


def test_a_cut_gzip_file_is_refused_by_name(model, tmp_path):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(Path(write(make_rows(), path)).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"rows\.csv\.gz: expected"):
        score_files(model, str(path), "scored.parquet", "penguins@v3")


def test_columns_of_types_that_do_not_go_together_are_refused_wherever_a_batch_ends(model, tmp_path):
    write(make_rows(), tmp_path / "rows" / "1.parquet")
    write(make_rows().cast({"size": pl.String}), tmp_path / "rows" / "2.parquet")
    with pytest.raises(DataError, match=r"rows/2\.parquet, column `size`: expected Float64 as in .*1\.parquet, found String"):
        score_files(model, "rows", "scored.parquet", "penguins@v3")


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(model, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(csv_files, "MAX_ROW_BYTES", 3000)
    rows = make_rows().select(*KINDS).write_csv()
    (tmp_path / "open.csv").write_text('size,colour,is_new,seen\n1,"red,true,\n' + rows)
    with pytest.raises(DataError, match=r"row 1 of .*open\.csv, line 2: expected quotes in pairs"):
        score_files(model, "open.csv", "scored.parquet", "penguins@v3")


@pytest.mark.parametrize("source", ["nowhere", "nowhere://rows", "memory://nowhere"])
def test_a_source_that_is_not_there_is_refused(model, source):
    with pytest.raises(DataError, match=f"{source}: expected "):
        score_files(model, source, "scored.parquet", "penguins@v3")


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("rows", "scored.csv", r"--output: expected a file ending in \.parquet, found scored\.csv; rename it"),
        ("rows", "folder.parquet", r"--output: expected a file, found the folder folder\.parquet; name a file in it"),
        ("rows", "nowhere://scored.parquet", r"--output: expected a path or an fsspec URL, found 'nowhere://scored\.parquet'"),
        (
            "rows",
            "rows/scored.parquet",
            r"--output: expected a file outside of the rows to score, found rows/scored\.parquet in rows",
        ),
        ("rows", "rows/new/scored.parquet", r"--output: expected a file outside"),
        ("rows/1.parquet", "rows/1.parquet", r"--output: expected a file outside"),
        ("rows/1.parquet", "rows/../link.parquet", r"--output: expected a file outside"),
        ("rows/*.parquet", "rows/scored.parquet", r"--output: expected a file outside"),
        ("memory://rows", "memory://rows/scored.parquet", r"--output: expected a file outside"),
    ],
)
def test_an_output_is_a_parquet_file_outside_of_the_source(model, tmp_path, source, output, message):
    before = Path(write(make_rows(), tmp_path / "rows" / "1.parquet")).read_bytes()
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "link.parquet").symlink_to(tmp_path / "rows" / "1.parquet")
    with pytest.raises(SettingsError, match=message):
        score_files(model, source, output, "penguins@v3")
    assert Path("rows/1.parquet").read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(model, tmp_path):
    source = write(make_rows(), tmp_path / "rows.parquet")
    with pytest.raises(RefitError, match=r"--output: expected a place that can be written, found /proc/scored\.parquet: "):
        score_files(model, source, "/proc/scored.parquet", "penguins@v3")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_sources_and_outputs_may_be_remote(model, tmp_path, suffix):
    files = fsspec.filesystem("memory")
    for number in (1, 2):
        files.pipe_file(f"/scoring/{number}{suffix}", Path(write(make_rows(), tmp_path / f"rows{suffix}")).read_bytes())
    output = "memory://scored/scored.parquet"
    assert score_files(model, "memory://scoring", output, "penguins@v3").num_rows == 2 * NUM_ROWS
    files.get_file("/scored/scored.parquet", "local.parquet")
    assert_scores_are_those_of_predict(model, "memory://scoring", "local.parquet")
    files.rm("/scoring", recursive=True)
    files.rm("/scored", recursive=True)


@pytest.mark.parametrize(
    ("separator", "encoding", "message"),
    [
        (";", "utf-8", None),
        (",", "utf-8", r"expected `;` between cells, as in the files that the model learned from, found `,`; write the file alike"),
        (";", "cp1252", r"expected text in UTF-8, as in the files that the model learned from, found Windows-1252; write the"),
    ],
)
def test_files_to_score_must_be_written_like_those_that_the_model_learned_from(model, tmp_path, separator, encoding, message):
    alike = Dialect(separator=";", encoding="utf-8", header=True)
    model = Model(model.module, model.manifest.model_copy(update={"dialect": alike}), model.settings)
    rows = make_rows(2).with_columns(colour=pl.lit("blau, grün"))
    (tmp_path / "rows.csv").write_bytes(rows.write_csv(separator=separator).encode(encoding))
    if message is None:
        score_files(model, f"{tmp_path}/rows.csv", "scored.parquet", "a@v1")
        assert read_scores("scored.parquet")[1].tobytes() == model.predict_proba(rows).tobytes()
        return
    with pytest.raises(DataError, match=message):
        score_files(model, f"{tmp_path}/rows.csv", "scored.parquet", "a@v1")


def test_texts_of_unknown_words_are_told_and_others_are_not(tmp_path):
    draw = np.random.default_rng(0)
    english, other = (["see", "you", "later", "lunch", "report", "thanks"], ["привет", "завтра", "отчет", "обед"])
    texts = [[" ".join(draw.choice(words, 6)) for _ in range(100)] for words in (english, english, other)]
    train = pl.DataFrame({"note": texts[0]})
    columns = fit_columns(train, {"note": "text"})
    manifest = TableExamples.model_construct(
        signature=sign_columns(columns, Target(name="y", classes=["no", "yes"])),
        columns=columns,
        profiles=profile_columns(train, {"note": "text"}),
        dialect=None,
    )
    settings = SettingsTree()
    model = Model(build_model(settings.model, manifest.signature).eval(), manifest, settings)
    known, unknown = (write(pl.DataFrame({"note": cells}), tmp_path / f"{cells[0][:3]}.parquet") for cells in texts[1:])
    assert score_files(model, known, "scored.parquet", "notes@v1").deviations == []
    (deviation,) = score_files(model, unknown, "scored.parquet", "notes@v1", rows_per_batch=17).deviations
    told = r"column `note`: 100 of 100 rows hold texts of which the model knows few words, such as `.*` \(0% of the train rows\)"
    assert re.match(told, deviation.describe())
