{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}

{% macro milliseconds(start, end) %}{{ return(adapter.dispatch('milliseconds', 'imbrace_lake')(start, end)) }}{% endmacro %}

{% macro duckdb__milliseconds(start, end) %}date_diff('millisecond', {{ start }}, {{ end }}){% endmacro %}

{% macro spark__milliseconds(start, end) %}(unix_millis({{ end }}) - unix_millis({{ start }})){% endmacro %}

{% macro local(moment, time_zone) %}{{ return(adapter.dispatch('local', 'imbrace_lake')(moment, time_zone)) }}{% endmacro %}

{% macro duckdb__local(moment, time_zone) %}{{ moment }} AT TIME ZONE {{ time_zone }}{% endmacro %}

{% macro spark__local(moment, time_zone) %}from_utc_timestamp({{ moment }}, {{ time_zone }}){% endmacro %}

{% macro days(local) %}{{ return(adapter.dispatch('days', 'imbrace_lake')(local)) }}{% endmacro %}

{% macro duckdb__days(local) %}date_diff('day', DATE '1899-12-25', CAST({{ local }} AS DATE)){% endmacro %}

{% macro spark__days(local) %}CAST(datediff(CAST({{ local }} AS DATE), DATE '1899-12-25') AS BIGINT){% endmacro %}

{% macro lines(line, order) %}{{ return(adapter.dispatch('lines', 'imbrace_lake')(line, order)) }}{% endmacro %}

{% macro duckdb__lines(line, order) %}string_agg({{ line }}, chr(10) ORDER BY {{ order }}){% endmacro %}

{% macro spark__lines(line, order) %}array_join(transform(array_sort(collect_list(struct({{ order }} AS number, {{ line }} AS line))), one -> one.line), chr(10)){% endmacro %}

{% macro minute(local) %}{{ return(adapter.dispatch('minute', 'imbrace_lake')(local)) }}{% endmacro %}

{% macro duckdb__minute(local) %}substr(CAST({{ local }} AS VARCHAR), 1, 16){% endmacro %}

{% macro spark__minute(local) %}substr(CAST({{ local }} AS STRING), 1, 16){% endmacro %}

{% macro bare(text) %}{{ return(adapter.dispatch('bare', 'imbrace_lake')(text)) }}{% endmacro %}

{% macro duckdb__bare(text) %}trim(BOTH ' ' FROM replace(replace(replace(replace(replace(replace({{ text }}, chr(9), ' '), chr(10), ' '), chr(13), ' '), chr(160), ' '), chr(12288), ' '), chr(65279), ' ')){% endmacro %}

{% macro spark__bare(text) %}trim(BOTH ' ' FROM replace(replace(replace(replace(replace(replace({{ text }}, chr(9), ' '), chr(10), ' '), chr(13), ' '), chr(160), ' '), decode(unhex('e38080'), 'UTF-8'), ' '), decode(unhex('efbbbf'), 'UTF-8'), ' ')){% endmacro %}
