"""What a query may consist of: parts of SQL that read, types, and functions that only compute. Whatever is not here is refused."""

# ruff: noqa: SIM905 - a list of a hundred words is read, not counted
from __future__ import annotations

PARTS = frozenset(
    """Select Union Intersect Except Subquery CTE With From Join Lateral Table TableAlias Where Group Having Order Ordered Limit Offset
    Fetch Distinct Qualify Window WindowSpec WithinGroup Filter IgnoreNulls RespectNulls Column Identifier Star Literal Null Boolean Paren
    Tuple Values Alias Aliases Between In Is Like ILike Glob SimilarTo Escape Not And Or Xor EQ NEQ GT GTE LT LTE NullSafeEQ NullSafeNEQ
    Add Sub Mul Div IntDiv Mod Neg DPipe BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitwiseLeftShift BitwiseRightShift Case If Interval
    IntervalSpan DataType DataTypeParam Var AtTimeZone Rollup Cube GroupingSets Any All Exists Bracket Slice Dot JSONPath JSONPathRoot
    JSONPathKey JSONPathSubscript JSONPathWildcard Reference PropertyEQ WeekStart National""".split()
)
"""Classes of sqlglot that are no functions."""

TYPED = frozenset(
    """Abs Acos Acosh AddMonths AnyValue ApproxDistinct ApproxQuantile ArgMax ArgMin Array ArrayAgg ArrayAny ArrayContains ArrayDistinct
    ArraySize ArraySort ArrayToString Ascii Asin Asinh Atan Atan2 Atanh Avg BitLength BitwiseCount ByteLength Cast Cbrt Ceil Chr Coalesce
    Collate Concat ConcatWs Contains Corr Cos Cosh Cot Count CountIf CovarPop CovarSamp CumeDist CurrentDate CurrentDatetime CurrentTime
    CurrentTimestamp Date DateAdd DateBin DateDiff DateFromParts DateStrToDate DateSub DateToDateStr DateTrunc Datetime DatetimeAdd
    DatetimeDiff DatetimeSub DatetimeTrunc Day DayOfMonth DayOfWeek DayOfWeekIso DayOfYear Dayname Degrees DenseRank Elt EndsWith Exp
    Explode Extract Factorial First FirstValue Floor Format Greatest GroupConcat Grouping Hex Hour Initcap IsInf IsNan JSONArray JSONArrayAgg
    JSONArrayContains JSONBExtract JSONBExtractScalar JSONExtract JSONExtractArray JSONExtractScalar JSONKeys JSONObject JSONType
    JSONValueArray Kurtosis Lag Last LastDay LastValue Lead Least Left Length Levenshtein List Ln Localtime Localtimestamp Log LogicalAnd
    LogicalOr Lower MD5 Max Median Min Minute Mode Month Monthname MonthsBetween Negative NextDay NthValue Ntile Nullif NumberToStr Nvl2
    Overlay Pad PercentRank PercentileCont PercentileDisc Pi Pow Quantile Quarter Radians Rand Rank RegexpCount RegexpExtract
    RegexpFullMatch RegexpILike RegexpInstr RegexpLike RegexpReplace RegexpSplit RegexpSubstr RegrCount RegrIntercept RegrR2 RegrSlope
    Repeat Replace Reverse Right Rint Round RowNumber SafeDivide Second Sign Sin Sinh Skewness Soundex Space Split SplitPart Sqrt StartsWith
    Stddev StddevPop StddevSamp StrPosition StrToDate StrToTime StrToUnix String StringToArray Struct StructExtract Stuff Substring
    SubstringIndex Sum Tan Tanh Time TimeAdd TimeDiff TimeFromParts TimeStrToDate TimeStrToTime TimeStrToUnix TimeSub TimeToStr
    TimeToUnix TimeTrunc Timestamp TimestampAdd TimestampDiff TimestampFromParts TimestampSub TimestampTrunc ToChar ToDays ToNumber Translate
    Trim Trunc TryCast TsOrDiToDi TsOrDsAdd TsOrDsDiff TsOrDsToDate TsOrDsToDateStr TsOrDsToDatetime TsOrDsToTime TsOrDsToTimestamp Typeof
    Unhex Unicode UnixMicros UnixMillis UnixSeconds UnixToStr UnixToTime UnixToTimeStr Unnest Upper UtcDate UtcTime UtcTimestamp Variance
    VariancePop Week WeekOfYear WidthBucket Xor Year YearOfWeek And Or Case If Exists Any""".split()
)
"""Functions that sqlglot has a class for."""

NAMED = frozenset(
    """age approx_count_distinct arg_max arg_min array_agg array_length bit_and bit_count bit_length bit_or bool_and bool_or btrim
    cardinality ceiling char char_length character_length date_add date_diff date_format date_part date_sub date_trunc datediff datepart
    datetime day dayname dayofmonth dayofweek dayofyear div epoch epoch_ms every field find_in_set first format format_date from_days
    from_unixtime fsum group_concat hour ifnull iif instr isfinite isnull isodow isoyear json_array_length json_each_text json_type julian
    julianday justify_days justify_interval kurtosis last last_day len list list_aggregate list_avg list_contains list_distinct list_max
    list_min list_sort list_sum locate log10 log2 mad make_date make_time make_timestamp maketime makedate microsecond mid millisecond
    minute mod month monthname nvl octet_length period_diff position printf product quantile_cont quantile_disc quarter
    regexp_extract regexp_extract_all regexp_full_match regexp_like regexp_matches regexp_replace regexp_split_to_array round_even
    sec_to_time second sem skewness spread std str_split strftime string_agg string_split strip_accents strlen strpos strptime
    substring_index time time_to_sec timediff timestampadd timestampdiff to_char to_date to_days to_number to_timestamp total truncate
    try_strptime typeof ucase unicode unixepoch var_samp variance week weekday weekofyear year yearweek""".split()
)
"""Functions that sqlglot knows by name only, in small letters."""

REFUSED_TYPES = frozenset(
    """USERDEFINED OBJECT OBJECT_IDENTIFIER UNKNOWN AGGREGATEFUNCTION SIMPLEAGGREGATEFUNCTION FILE HLLSKETCH ROWVERSION XML""".split()
)
"""Types that are not cast to: those of a database's own, whose conversions may be anybody's code."""
