"""What the server that we start does otherwise than Prefect's, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import asyncio
import sys

from prefect.server.database import provide_database_interface
from sqlalchemy import text

from refit.server.sqlite_server import write_first


async def count(db):
    async with db.session_context(begin_transaction=True) as session:
        number = (await session.execute(text("select number from counter"))).scalar()
        await asyncio.sleep(0.2)
        await session.execute(text("update counter set number = :number"), {"number": number + 1})


async def main():
    db = provide_database_interface()
    async with db.session_context(begin_transaction=True) as session:
        await session.execute(text("create table counter (number integer)"))
        await session.execute(text("insert into counter values (0)"))
    await asyncio.gather(count(db), count(db), count(db))
    async with db.session_context() as session:
        print((await session.execute(text("select number from counter"))).scalar())


if sys.argv[1] == "ours":
    write_first()
asyncio.run(main())
"""


@pytest.mark.parametrize(("server", "code", "told"), [("ours", 0, "3"), ("Prefect's", 1, "database is locked")])
def test_transactions_that_read_and_then_write_wait_for_one_another(tmp_path: Path, server: str, code: int, told: str) -> None:
    """Should Prefect's do so too one day, ours is not needed any more."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, server], capture_output=True, text=True, env={**mine, "PREFECT_HOME": str(tmp_path)}
    )
    assert done.returncode == code, done.stderr
    assert told in (done.stdout.split() or done.stderr)
