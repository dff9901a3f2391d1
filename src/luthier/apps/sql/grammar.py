"""A grammar of SELECT in which only the schema's names occur: a model that follows it cannot make up a table or a column."""

from __future__ import annotations

from luthier.apps.sql.schema import Schema, quoted
from luthier.core.engine import Constraint

_RULES = r"""
root ::= query
query ::= select (ws ("UNION" | "UNION ALL" | "INTERSECT" | "EXCEPT") ws select)?
select ::= "SELECT" ws ("DISTINCT" ws)? items ws "FROM" ws from (ws "WHERE" ws condition)? (ws "GROUP BY" ws columns (ws "HAVING" ws condition)?)? (ws "ORDER BY" ws orders)? (ws "LIMIT" ws integer)?
items ::= item ("," sp item)*
item ::= "*" | value (ws "AS" ws alias)?
from ::= source (ws join)*
source ::= table (ws "AS" ws alias)? | "(" query ")" ws "AS" ws alias
join ::= ("JOIN" | "LEFT JOIN" | "INNER JOIN") ws source ws "ON" ws condition
condition ::= comparison (ws ("AND" | "OR") ws comparison)*
comparison ::= ("NOT" ws)? (value ws test | "(" condition ")" | "EXISTS" ws "(" query ")")
test ::= operator ws value | "IS" ws ("NOT" ws)? "NULL" | ("NOT" ws)? "LIKE" ws text | ("NOT" ws)? "IN" ws "(" (query | values) ")" | ("NOT" ws)? "BETWEEN" ws value ws "AND" ws value
operator ::= "=" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
values ::= literal ("," sp literal)*
value ::= term (ws [-+*/] ws term)*
term ::= column | literal | call | "(" query ")" | "(" value ")"
call ::= aggregate "(" ("DISTINCT" ws)? ("*" | value) ")" | function "(" value ("," sp value)* ")"
aggregate ::= "COUNT" | "SUM" | "AVG" | "MIN" | "MAX"
function ::= "LOWER" | "UPPER" | "LENGTH" | "ABS" | "ROUND" | "COALESCE" | "SUBSTR" | "DATE" | "REPLACE" | "TRIM"FUNCTIONS
orders ::= value (ws ("ASC" | "DESC"))? ("," sp value (ws ("ASC" | "DESC"))?)*
columns ::= value ("," sp value)*
column ::= ((table | alias) ".")? name | alias
alias ::= [tT] [1-9] | "total" | "average" | "number" | "result" | "month" | "year"
literal ::= text | number | "NULL"
text ::= "'" ([^'\n] | "''"){0,80} "'"
number ::= "-"? [0-9]{1,15} ("." [0-9]{1,9})?
integer ::= [0-9]{1,9}
ws ::= " "
sp ::= " "?
"""
_OWN_FUNCTIONS = {
    "sqlite": ("STRFTIME",),
    "duckdb": ("STRFTIME", "YEAR", "MONTH"),
    "postgres": ("DATE_TRUNC",),
    "mysql": ("YEAR", "MONTH", "DATE_FORMAT"),
}


def grammar(schema: Schema, dialect: str = "sqlite") -> Constraint:
    """The constraint for engines that honour ``grammar``. It admits a part of SQL: what the check and the database refuse can still be written."""
    tables = " | ".join(_terminal(quoted(table.name, dialect)) for table in schema.tables)
    names = sorted({quoted(column.name, dialect) for table in schema.tables for column in table.columns})
    columns = " | ".join(map(_terminal, names))
    functions = "".join(f' | "{name}"' for name in _OWN_FUNCTIONS[dialect])
    rules = _RULES.strip().replace("FUNCTIONS", functions)
    return Constraint("grammar", f"{rules}\ntable ::= {tables}\nname ::= {columns}\n")


def _terminal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (
        '"'
        + "".join(
            each if each.isprintable() else f"\\u{ord(each):04x}" if ord(each) < 0x10000 else each for each in escaped
        )
        + '"'
    )
