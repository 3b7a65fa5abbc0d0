import logging
import secrets

import polars as pl
import pytest
from prefect import flow

from refit.settings import SettingsTree
from refit.tasks.dataset import build_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")


@flow
def build(settings: SettingsTree) -> None:
    build_dataset(secrets.token_hex(32), settings, [None, None])


def test_what_the_data_set_holds_is_logged_and_what_makes_its_test_score_doubtful_is_a_warning(tmp_path, caplog):
    rows = pl.DataFrame({"x1": range(100), "x2": [float(-n) for n in range(100)], "y": [0, 1] * 50})
    pl.concat([rows, rows]).write_csv(tmp_path / "rows.csv")
    with caplog.at_level(logging.INFO):
        build(SettingsTree.model_validate({"data": {"source": str(tmp_path / "rows.csv")}}))
    told = {record.levelname: record.getMessage() for record in caplog.records if "test rows have" in record.getMessage()}
    assert told.keys() == {"INFO", "WARNING"}
    assert told["INFO"].startswith("copies: ")
    assert told["WARNING"].startswith("expected test rows that are new to the model, found ")
