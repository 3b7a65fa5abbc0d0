import ast

from mutants import list_mutants

SOURCE = '''
"""A docstring, which stays."""

def save(rows: list[int], limit: int = 1) -> bool:
    while rows and limit > 0:
        store.sync(rows, wait=True)
    try:
        return rows[1:] == sorted(rows)
    except (KeyError, OSError):
        raise ValueError(f"expected {limit + 1} rows") from None
'''


def test_changes_are_small_have_names_and_leave_words_and_types_alone():
    assert [mutant.name for mutant in list_mutants("save", SOURCE)] == [
        "save: 1 -> 2",
        "save: while rows and limit > 0: -> while False:",
        "save: while rows and limit > 0: -> if rows and limit > 0:",
        "save: rows and limit > 0 -> rows or limit > 0",
        "save: rows and limit > 0 -> limit > 0",
        "save: rows and limit > 0 -> rows",
        "save: limit > 0 -> limit >= 0",
        "save: 0 -> 1",
        "save: store.sync(rows, wait=True) -> pass",
        "save: store.sync(rows, wait=True) -> store.sync(rows)",
        "save: True -> False",
        "save: return rows[1:] == sorted(rows) -> return",
        "save: rows[1:] == sorted(rows) -> rows[1:] != sorted(rows)",
        "save: [1:] -> [:]",
        "save: 1 -> 2 (2)",
        "save: sorted(rows) -> rows",
        "save: except (KeyError, OSError): -> except ():",
        "save: (KeyError, OSError) -> (OSError,)",
        "save: (KeyError, OSError) -> (KeyError,)",
        "save: raise ValueError(f'expected {limit + 1} rows') from None -> pass",
    ]


def test_each_change_is_the_only_one():
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in list_mutants("save", SOURCE):
        changed = mutant.source.splitlines()
        assert len(changed) == len(whole)
        assert sum(old != new for old, new in zip(whole, changed, strict=True)) == 1
