"""A grammar of SELECT in which only the schema's names occur: a model that follows it cannot make up a table or a column.

Lists are short and queries stand in queries once, so that a small model that goes in circles comes to an end. What is optional is written as
alternatives: engines cut a text into the longest pieces that a rule without recursion can take, and never take a piece back.
"""

from __future__ import annotations

from luthier.apps.sql.schema import Schema, quoted
from luthier.core.engine import Constraint

_QUERY = r"""
query# ::= set# | set# tail#
set# ::= select# | select# " UNION " select# | select# " INTERSECT " select# | select# " EXCEPT " select#
select# ::= "SELECT " selected# " FROM " from# where#? group#?
selected# ::= "DISTINCT " items# | items#
items# ::= item# (", " item#){0,7}
item# ::= "*" | value# | value# " AS " alias
from# ::= source# join#{0,4}
source# ::= origin# | origin# " AS " alias
join# ::= " JOIN " source# " ON " condition# | " LEFT JOIN " source# " ON " condition#
where# ::= " WHERE " condition#
group# ::= " GROUP BY " value# (", " value#){0,3} | " GROUP BY " value# (", " value#){0,3} " HAVING " condition#
tail# ::= " ORDER BY " order# (", " order#){0,3} | " ORDER BY " order# (", " order#){0,3} " LIMIT " integer | " LIMIT " integer
order# ::= value# | value# " ASC" | value# " DESC"
condition# ::= comparison# (" AND " comparison#){0,4} | comparison# (" OR " comparison#){1,4}
comparison# ::= value# test# | "NOT " value# test# | "(" condition# ")" EXISTS
test# ::= operator value# | " IS NULL" | " IS NOT NULL" | " LIKE " text | " NOT LIKE " text | " BETWEEN " value# " AND " value# | " IN (" literals ")" | " NOT IN (" literals ")" INQUERY
value# ::= term# | term# arithmetic term#
term# ::= column | literal | call# | "(" value# ")" SUBQUERY
call# ::= aggregate inside# ")" | one value# ")" | two value# ", " value# ")" | three value# ", " value# ", " value# ")"
inside# ::= "*" | value# | "DISTINCT " value#
"""
_WORDS = r"""
operator ::= " = " | " != " | " <= " | " >= " | " < " | " > "
arithmetic ::= " + " | " - " | " * " | " / "
literals ::= literal (", " literal){0,9}
aggregate ::= "COUNT(" | "SUM(" | "AVG(" | "MIN(" | "MAX("
column ::= ((table | alias) ".")? name | alias
alias ::= [tT] [1-9] | "total" | "average" | "number" | "result" | "month" | "year"
literal ::= text | number | "NULL"
text ::= "'" ([^'\x00-\x1f\x7f] | "''"){0,60} "'"
number ::= "-"? [0-9]{1,15} ("." [0-9]{1,9})?
integer ::= [0-9]{1,4}
"""
_FUNCTIONS = {
    "one": ("LOWER", "UPPER", "LENGTH", "ABS", "ROUND", "TRIM"),
    "two": ("ROUND", "COALESCE"),
    "three": ("SUBSTR", "REPLACE"),
}
"""By how many arguments they take."""

_OWN_FUNCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "sqlite": {"one": ("DATE",), "two": ("STRFTIME",)},
    "duckdb": {"one": ("YEAR", "MONTH"), "two": ("STRFTIME",)},
    "postgres": {"two": ("DATE_TRUNC", "DATE_PART")},
    "mysql": {"one": ("DATE", "YEAR", "MONTH"), "two": ("DATE_FORMAT",)},
}


def grammar(schema: Schema, dialect: str = "sqlite") -> Constraint:
    """The constraint for engines that honour ``grammar``. It admits a part of SQL: what the check and the database refuse can still be written."""
    tables = " | ".join(_terminal(quoted(table.name, dialect)) for table in schema.tables)
    names = sorted({quoted(column.name, dialect) for table in schema.tables for column in table.columns})
    functions = [
        f"{count} ::= " + " | ".join(f'"{each}("' for each in (*every, *_OWN_FUNCTIONS[dialect].get(count, ())))
        for count, every in _FUNCTIONS.items()
    ]
    rules = [
        "root ::= queryouter",
        _level("outer", "inner"),
        _level("inner", ""),
        _WORDS.strip(),
        *functions,
        f"table ::= {tables}",
        f"name ::= {' | '.join(map(_terminal, names))}",
    ]
    return Constraint("grammar", "\n".join(rules) + "\n")


def _level(name: str, below: str) -> str:
    """The rules of a query; ``below`` is the level of those that stand in it, if any may."""
    # where no query may stand, parentheses around a table keep the rule recursive: engines would else take it and what follows for one piece
    rules = f'{_QUERY.strip()}\norigin# ::= table | "(" {f"query{below}" if below else "origin#"} ")"'
    subqueries = {
        "EXISTS": f' | "EXISTS (" query{below} ")"',
        "INQUERY": f' | " IN (" query{below} ")" | " NOT IN (" query{below} ")"',
        "SUBQUERY": f' | "(" query{below} ")"',
    }
    for mark, rule in subqueries.items():
        rules = rules.replace(f" {mark}", rule if below else "")
    return rules.replace("#", name)


def _terminal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in escaped) + '"'
